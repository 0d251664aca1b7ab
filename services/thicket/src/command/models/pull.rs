use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use thicket_hub::{Digest, Event, Hub, HubError, Place, Pulled, RemoteFile, RepoId, Request, Revision};

use super::{bytes, settings};
use crate::{Failure, console};

/// Brings a model from the Hugging Face hub: only the files that are read, each checked against the hub's digest
///
/// A transfer that was cut goes on where it stopped, also after Ctrl-C: pull again. A second pull of what is here
/// receives nothing. The revision is resolved to a commit, which is printed. Exit status 2: no such model or revision;
/// 1: it could not be brought (network, access, disk, checksum).
#[derive(Debug, clap::Args)]
pub(super) struct PullArgs {
    /// A name of `thicket models list`, or any OWNER/REPOSITORY of the hub
    #[arg(value_name = "NAME")]
    name: String,
    /// Branch, tag or commit; a commit pins the files for good
    #[arg(long, value_name = "REVISION", default_value = "main")]
    revision: String,
    /// Plain folder for the files [default: the hub's cache, which Python's tools share]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Another file of the repository to bring, by its path; may be repeated
    #[arg(long, value_name = "PATH")]
    include: Vec<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The result as scripts see it.
#[derive(Debug, Serialize)]
struct Document {
    repo: String,
    revision: String,
    /// What the revision was.
    commit: String,
    /// The folder to load.
    folder: String,
    /// Bytes of all files.
    bytes: u64,
    /// Bytes of the files that were not here before.
    received_bytes: u64,
    files: Vec<File>,
    /// False where HF_HUB_OFFLINE is set: the cache was believed.
    checked_with_hub: bool,
}

#[derive(Debug, Serialize)]
struct File {
    path: String,
    bytes: u64,
    /// `sha256` or `git-blob`.
    digest_kind: &'static str,
    digest: String,
    /// False where it was here already.
    received: bool,
}

pub(super) fn run(args: PullArgs) -> Result<(), Failure> {
    let repo = repository(&args.name)?;
    let revision: Revision = args.revision.parse().map_err(failure)?;
    let place = args.to.clone().map_or(Place::Cache, Place::Folder);
    if let Place::Folder(folder) = &place
        && folder.exists()
        && !folder.is_dir()
    {
        return Err(Failure::bad_input(format!("to: {} is not a folder", folder.display())));
    }
    let hub = Hub::new(settings()?).map_err(failure)?;
    let request = Request { repo: repo.clone(), revision, place };
    let bar = bar(&args.name);
    let pulled = hub.pull(&request, |files| choose(files, &args.include), &mut |event| show(&bar, event));
    bar.finish_and_clear();
    let document = document(&repo, &args.revision, pulled.map_err(failure)?);
    if args.json {
        return console::print_json(&document);
    }
    console::print(&text(&document))
}

/// The repository of a catalogue name, or the repository that is named itself.
fn repository(name: &str) -> Result<RepoId, Failure> {
    let repo = match thicket_catalogue::find(name) {
        Some(model) => model.repo,
        None if name.contains('/') => name,
        None => {
            let known: Vec<&str> = thicket_catalogue::MODELS.iter().map(|model| model.name).collect();
            return Err(Failure::bad_input(format!(
                "name: there is no model {name:?}: OWNER/REPOSITORY or one of {} is expected",
                known.join(", ")
            )));
        }
    };
    repo.parse().map_err(failure)
}

/// What is read of a repository, and what was asked for by name.
fn choose(files: Vec<RemoteFile>, include: &[String]) -> Result<Vec<RemoteFile>, String> {
    let mut wanted: BTreeSet<String> = include.iter().cloned().collect();
    if let Some(absent) =
        include.iter().find(|path| files.iter().all(|file| file.path.as_str() != path.as_str()))
    {
        return Err(format!("there is no file {absent:?}"));
    }
    match thicket_catalogue::needed(files.iter().map(|file| file.path.as_str())) {
        Ok(needed) => wanted.extend(needed.into_iter().map(str::to_owned)),
        // What was asked for by name is wanted whether or not it is known how to load it.
        Err(_) if !wanted.is_empty() => {}
        Err(none) => return Err(none.to_string()),
    }
    Ok(files.into_iter().filter(|file| wanted.contains(file.path.as_str())).collect())
}

fn failure(error: HubError) -> Failure {
    if error.is_bad_input() { Failure::bad_input(error) } else { Failure::failed(error) }
}

/// A bar of bytes on stderr; drawn on a terminal only.
fn bar(name: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(
        "{msg:>12} [{bar:40}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} (eta {eta})",
    );
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar.set_message(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn show(bar: &ProgressBar, event: Event<'_>) {
    match event {
        Event::Planned { bytes, .. } => bar.set_length(bytes),
        // What was here did not come at any speed.
        Event::Had { bytes } => {
            bar.inc(bytes);
            bar.reset_eta();
        }
        Event::Received { bytes } => bar.inc(bytes),
        Event::Lost { bytes } => bar.set_position(bar.position().saturating_sub(bytes)),
        Event::Waiting { path } => {
            bar.suspend(|| console::note(&format!("another pull is bringing {path}; waiting for it")))
        }
        Event::Retrying { path, reason, pause } => bar.suspend(|| {
            console::note(&format!("{path}: {reason}; going on in {:.1} s", pause.as_secs_f64()));
        }),
    }
}

fn document(repo: &RepoId, revision: &str, pulled: Pulled) -> Document {
    let files: Vec<File> = pulled
        .files
        .iter()
        .map(|file| File {
            path: file.path.to_string(),
            bytes: file.size,
            digest_kind: match file.digest {
                Digest::Sha256(_) => "sha256",
                Digest::GitBlob(_) => "git-blob",
            },
            digest: file.digest.hex().to_owned(),
            received: file.received,
        })
        .collect();
    Document {
        repo: repo.to_string(),
        revision: revision.to_owned(),
        commit: pulled.commit.to_string(),
        folder: pulled.folder.display().to_string(),
        bytes: files.iter().map(|file| file.bytes).sum(),
        received_bytes: files.iter().filter(|file| file.received).map(|file| file.bytes).sum(),
        files,
        checked_with_hub: pulled.online,
    }
}

fn text(document: &Document) -> String {
    let received = document.files.iter().filter(|file| file.received).count();
    let what = if !document.checked_with_hub {
        "in the cache; HF_HUB_OFFLINE is set, so it was not compared with the hub".to_owned()
    } else if received == 0 {
        format!("already here: {} files, {}", document.files.len(), bytes(document.bytes))
    } else {
        format!(
            "pulled {received} of {} files, {} of {}",
            document.files.len(),
            bytes(document.received_bytes),
            bytes(document.bytes)
        )
    };
    format!("{} at {} ({})\n{what}\n{}", document.repo, document.revision, document.commit, document.folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_of_the_catalogue_or_a_repository() {
        assert_eq!(repository("qwen2-vl-2b-instruct").unwrap().to_string(), "Qwen/Qwen2-VL-2B-Instruct");
        assert_eq!(repository("someone/else").unwrap().to_string(), "someone/else");
        let refused = repository("qwen3").unwrap_err();
        assert_eq!(refused.exit_status(), 2);
        assert!(refused.to_string().contains("qwen2-vl-2b-instruct"), "{refused}");
        assert_eq!(repository("a/b/c").unwrap_err().exit_status(), 2);
    }
}
