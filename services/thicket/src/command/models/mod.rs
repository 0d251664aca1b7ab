//! Checkpoints: what is supported and here, bringing one, checking one.

mod list;
mod pull;
mod verify;

use thicket_hub::Settings;

use crate::Failure;

/// Checkpoints: what is supported and what is here, pull one from the hub, verify a folder
///
/// The usual environment variables of the Hugging Face hub count: HF_ENDPOINT (a mirror), HF_TOKEN (or the file that
/// HF_TOKEN_PATH names), HF_HOME and HF_HUB_CACHE (the cache, shared with Python's tools), HF_HUB_OFFLINE,
/// HF_HUB_DOWNLOAD_TIMEOUT (seconds that a connection may be silent), HTTPS_PROXY and NO_PROXY, SSL_CERT_FILE.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    command: ModelsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ModelsCommand {
    List(list::ListArgs),
    Pull(pull::PullArgs),
    Verify(verify::VerifyArgs),
}

pub(super) fn run(args: ModelsArgs) -> Result<(), Failure> {
    match args.command {
        ModelsCommand::List(args) => list::run(&args),
        ModelsCommand::Pull(args) => pull::run(args),
        ModelsCommand::Verify(args) => verify::run(args),
    }
}

/// The hub as the environment describes it.
fn settings() -> Result<Settings, Failure> {
    Settings::from_environment(|name| std::env::var_os(name)).map_err(Failure::bad_input)
}

/// Bytes for a person: `15.44 GiB`.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS[unit])
}

/// Rows of equally many cells as lines, the columns aligned to the left, two spaces between.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_in_a_unit_that_fits() {
        let told = [0, 1023, 1024, 1 << 20, 16_582_751_232, u64::MAX].map(bytes);
        assert_eq!(told, ["0 B", "1023 B", "1.00 KiB", "1.00 MiB", "15.44 GiB", "16777216.00 TiB"]);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a", "bb"], ["ccc", "d"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "a    bb\nccc  d");
    }
}
