use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser};
use thicket_telemetry::TelemetryArgs;

use crate::Failure;
use crate::command::Command;

/// Log filter of commands that end by themselves: their results are what one wants to see.
const QUIET_LOG: &str = "warn";

/// Text-to-image person search with test-time interaction.
#[derive(Debug, Parser)]
#[command(name = "thicket", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) telemetry: TelemetryArgs,
}

/// What a command line asks for.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// Run a command.
    Run(Box<Cli>),
    /// Print the help or the version.
    Print(String),
}

/// Reads a command line, the program's name first.
///
/// # Errors
/// [`Failure::BadInput`] with what is wrong in one line.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Parsed, Failure> {
    let matches = match Cli::command().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return Ok(Parsed::Print(error.render().to_string()));
        }
        Err(error) => return Err(Failure::bad_input(usage_problem(&error))),
    };
    let mut cli =
        Cli::from_arg_matches(&matches).map_err(|error| Failure::bad_input(usage_problem(&error)))?;
    // A global argument's source is recorded with the subcommand that saw it.
    let chosen = |matches: &clap::ArgMatches| matches.value_source("log") != Some(ValueSource::DefaultValue);
    let log_was_chosen = chosen(&matches) || matches.subcommand().is_some_and(|(_, matches)| chosen(matches));
    if !log_was_chosen && !cli.command.drains() {
        cli.telemetry.log = QUIET_LOG.to_owned();
    }
    Ok(Parsed::Run(Box::new(cli)))
}

/// The first paragraph of clap's message, which says what is wrong; the usage that follows is in `--help`.
fn usage_problem(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "a subcommand is missing; `thicket --help` lists them".to_owned();
    }
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    first.strip_prefix("error: ").unwrap_or(first).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(args: &[&str]) -> String {
        parse(args.iter().map(OsString::from)).unwrap_err().to_string()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_bad_command_line_is_told_in_one_line() {
        assert!(problem(&["thicket", "sing"]).contains("'sing'"));
        assert!(problem(&["thicket"]).contains("subcommand"));
        let missing = problem(&["thicket", "eval"]);
        assert!(missing.contains("--similarity") && missing.contains("--gallery-ids"), "{missing}");
        assert!(!missing.contains('\n'));
    }

    #[test]
    fn help_is_asked_for_and_not_an_error() {
        let Ok(Parsed::Print(help)) = parse(["thicket", "--help"].iter().map(OsString::from)) else {
            panic!("help is a text to print");
        };
        assert!(help.contains("rerank"));
    }

    #[test]
    fn commands_that_end_by_themselves_log_warnings_unless_told_otherwise() {
        let log = |args: &[&str]| match parse(args.iter().map(OsString::from)).unwrap() {
            Parsed::Run(cli) => cli.telemetry.log,
            Parsed::Print(text) => panic!("{text}"),
        };
        let eval = ["thicket", "eval", "--similarity", "s", "--query-ids", "q", "--gallery-ids", "g"];
        assert_eq!(log(&eval), "warn");
        assert_eq!(log(&[&eval[..], &["--log", "debug"]].concat()), "debug");
    }
}
