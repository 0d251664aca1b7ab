use serde::Serialize;
use thicket_proto::v1::{Adapter, ListAdaptersRequest, LoadAdapterRequest, UnloadAdapterRequest};

use super::server::AnswerServerArgs;
use crate::client;
use crate::{Failure, console};

/// Lists, loads and gives up the LoRA adapters of a running answer service
///
/// Adapters share one base model; a search names the one that answers (`thicket search --adapter`). They come from the
/// folder that the service was started with (`--adapters`).
#[derive(Debug, clap::Args)]
pub(crate) struct AdaptersArgs {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    server: AnswerServerArgs,
    /// Print one JSON document
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Load an adapter, or load it anew
    Load {
        /// Its folder's name in the service's adapter folder
        name: String,
    },
    /// Give up a loaded adapter
    Unload {
        /// Its name
        name: String,
    },
}

/// The result as scripts see it: what is there after the action.
#[derive(Debug, Serialize)]
struct Document {
    loaded: Vec<AdapterDocument>,
    available: Vec<String>,
}

#[derive(Debug, Serialize)]
struct AdapterDocument {
    name: String,
    fingerprint: String,
}

impl From<Adapter> for AdapterDocument {
    fn from(adapter: Adapter) -> Self {
        Self { name: adapter.name, fingerprint: adapter.fingerprint }
    }
}

pub(super) async fn run(args: AdaptersArgs) -> Result<(), Failure> {
    let mut answer = client::answer(&args.server.answer, args.server.token())?;
    let done = match args.action {
        None => Ok(()),
        Some(Action::Load { name }) => answer.load_adapter(LoadAdapterRequest { name }).await.map(|_| ()),
        Some(Action::Unload { name }) => {
            answer.unload_adapter(UnloadAdapterRequest { name }).await.map(|_| ())
        }
    };
    done.map_err(|status| client::failure(&status))?;
    let listed = answer.list_adapters(ListAdaptersRequest {}).await;
    let listed = listed.map_err(|status| client::failure(&status))?.into_inner();
    if args.json {
        let loaded = listed.loaded.into_iter().map(Into::into).collect();
        return console::print_json(&Document { loaded, available: listed.available });
    }
    console::print(&table(&listed.loaded, &listed.available))
}

/// One line an adapter, loaded ones first.
fn table(loaded: &[Adapter], available: &[String]) -> String {
    let waiting = available.iter().filter(|name| !loaded.iter().any(|adapter| adapter.name == **name));
    let mut lines: Vec<String> = loaded
        .iter()
        .map(|adapter| {
            let digest: String = adapter.fingerprint.chars().take(12).collect();
            format!("{:<32} loaded     {}", client::printable(&adapter.name), client::printable(&digest))
        })
        .collect();
    lines.extend(waiting.map(|name| format!("{:<32} available", client::printable(name))));
    if lines.is_empty() {
        return "there is no adapter".to_owned();
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaded_adapters_come_first_and_once() {
        let loaded = [Adapter { name: "b".to_owned(), fingerprint: "0123456789abcdef".to_owned() }];
        let shown = table(&loaded, &["a".to_owned(), "b".to_owned()]);
        let words: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words, [vec!["b", "loaded", "0123456789ab"], vec!["a", "available"]]);
        assert_eq!(table(&[], &[]), "there is no adapter");
    }
}
