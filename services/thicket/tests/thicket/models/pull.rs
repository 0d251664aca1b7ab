//! `thicket models pull`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::hub::{COMMIT, Hub, REPO};
use crate::support::{Files, Run, run, thicket};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn pull_command(files: &Files, endpoint: &str, args: &[&str]) -> Command {
    let mut command = thicket();
    for name in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "HF_HUB_DOWNLOAD_TIMEOUT"] {
        command.env_remove(name);
    }
    command.env("HF_HOME", files.root()).env("HF_HUB_CACHE", files.path("hub")).env("HF_ENDPOINT", endpoint);
    command.args(["models", "pull", REPO]).args(args);
    command
}

fn pull(files: &Files, endpoint: &str, args: &[&str]) -> Run {
    pull_command(files, endpoint, args).output().unwrap().into()
}

fn fails(run: &Run, parts: &[&str]) {
    assert_eq!((run.status, run.stdout.as_str()), (1, ""), "{run:?}");
    let last = run.stderr.lines().last().unwrap_or_default();
    for part in parts {
        assert!(last.contains(part), "{part:?} is not in {run:?}");
    }
}

#[test]
fn a_pulled_model_answers_and_a_second_pull_receives_nothing() {
    let files = Files::new();
    let hub = Hub::of(&golden("qwen/untied"));
    let document = pull(&files, &hub.endpoint, &["--json"]).json();
    assert_eq!((document["repo"].as_str(), document["commit"].as_str()), (Some(REPO), Some(COMMIT)));
    let names: Vec<&str> =
        document["files"].as_array().unwrap().iter().filter_map(|file| file["path"].as_str()).collect();
    assert!(names.contains(&"model.safetensors.index.json") && !names.contains(&"goldens.json"), "{names:?}");
    let folder = document["folder"].as_str().unwrap();
    run(&["models", "verify", folder, "--json"]).json();

    let before = hub.contents();
    let again = pull(&files, &hub.endpoint, &["--json"]).json();
    assert_eq!((again["received_bytes"].as_u64(), hub.contents()), (Some(0), before));
    let told = pull(&files, &hub.endpoint, &[]);
    assert!(told.status == 0 && told.stdout.contains("already here"), "{told:?}");
}

#[test]
fn a_plain_folder_holds_the_files_themselves() {
    let files = Files::new();
    let hub = Hub::of(&golden("clip/trained"));
    let to = files.arg("rde");
    let document = pull(&files, &hub.endpoint, &["--to", &to, "--json"]).json();
    assert_eq!(document["folder"].as_str(), Some(to.as_str()));
    assert!(Path::new(&to).join("model.safetensors").is_file());
    run(&["models", "verify", &to]).refuses_nothing();
}

#[test]
fn an_interrupted_pull_goes_on_where_it_stopped() {
    let files = Files::new();
    let hub = Hub::stalling(&golden("clip/trained"));
    let mut child = pull_command(&files, &hub.endpoint, &["--json"]).spawn().unwrap();
    let partial = || {
        let blobs = std::fs::read_dir(files.path("hub/models--someone--tiny/blobs")).ok()?;
        let sizes = blobs
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|ending| ending == "incomplete"));
        sizes.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).max()
    };
    let patience = Instant::now();
    while partial().is_none_or(|length| length < 100_000) {
        assert!(patience.elapsed() < Duration::from_secs(60), "no partial file came");
        std::thread::sleep(Duration::from_millis(20));
    }
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let had = partial().unwrap();
    assert!(had > 100_000);
    let document = pull(&files, &hub.endpoint, &["--json"]).json();
    run(&["models", "verify", document["folder"].as_str().unwrap()]).refuses_nothing();
    assert_eq!(partial(), None);
}

#[test]
fn a_name_that_is_none_is_bad_input_and_lists_those_that_are() {
    run(&["models", "pull", "qwen3"]).refuses(&["qwen3", "qwen2-vl-2b-instruct"]);
    run(&["models", "pull", "a/../b"]).refuses(&["repository"]);
    run(&["models", "pull", REPO, "--revision", "../x"]).refuses(&["revision"]);
}

#[test]
fn a_repository_that_does_not_exist_is_bad_input() {
    let files = Files::new();
    let hub = Hub::of(&golden("clip/trained"));
    let mut command = pull_command(&files, &hub.endpoint, &[]);
    let absent: Run = command.args(["--revision", "absent"]).output().unwrap().into();
    absent.refuses(&[REPO]);
}

#[test]
fn a_gated_repository_is_a_failure_that_tells_about_the_token() {
    let files = Files::new();
    let hub = Hub::refusing(&golden("clip/trained"), 403);
    fails(&pull(&files, &hub.endpoint, &[]), &["gated", "HF_TOKEN"]);
    let mut command = pull_command(&files, &hub.endpoint, &[]);
    let with_token: Run = command.env("HF_TOKEN", "hf_topsecret").output().unwrap().into();
    fails(&with_token, &["HF_TOKEN"]);
    assert!(!with_token.stderr.contains("topsecret"), "{with_token:?}");
}

#[test]
fn offline_and_not_in_the_cache_is_a_failure() {
    let files = Files::new();
    let offline: Run =
        pull_command(&files, "http://127.0.0.1:9", &[]).env("HF_HUB_OFFLINE", "1").output().unwrap().into();
    fails(&offline, &["HF_HUB_OFFLINE", REPO]);
}

#[test]
fn a_repository_without_weights_says_what_is_read() {
    let files = Files::new();
    std::fs::create_dir(files.path("repo")).unwrap();
    files.bytes("repo/pytorch_model.bin", b"x");
    let hub = Hub::of(&files.path("repo"));
    pull(&files, &hub.endpoint, &[]).refuses(&["pytorch_model.bin", "model.safetensors"]);
    pull(&files, &hub.endpoint, &["--include", "pytorch_model.bin"]).refuses_nothing();
    pull(&files, &hub.endpoint, &["--include", "absent"]).refuses(&["absent"]);
}
