//! Pulls into a folder of one's own.

use std::fs;
use std::path::PathBuf;

use thicket_hub::{HubError, Place, Pulled};

use crate::support::{COMMIT, FakeHub, Fault};

const LARGE: &str = "nested/model.safetensors";

fn folder(hub: &FakeHub) -> PathBuf {
    hub.folder.path().join("to")
}

fn pull(hub: &FakeHub) -> Result<Pulled, HubError> {
    hub.pull_to(Place::Folder(folder(hub)), "main")
}

#[test]
fn files_have_their_own_names_and_no_links() {
    let hub = FakeHub::new();
    assert_eq!(pull(&hub).unwrap().folder, folder(&hub));
    for path in ["config.json", LARGE] {
        let file = folder(&hub).join(path);
        assert!(!file.is_symlink());
        assert_eq!(fs::read(file).unwrap(), hub.content(path).bytes);
    }
    let record = folder(&hub).join(".cache/huggingface/download/config.json.metadata");
    let record = fs::read_to_string(record).unwrap();
    let lines: Vec<&str> = record.lines().collect();
    assert_eq!(lines[..2], [COMMIT, hub.content("config.json").digest().as_str()]);
    assert!(lines[2].parse::<f64>().unwrap() > 1e9);
    assert!(!hub.cache().exists());
}

#[test]
fn a_second_pull_receives_nothing() {
    let hub = FakeHub::new();
    pull(&hub).unwrap();
    assert!(pull(&hub).unwrap().files.iter().all(|file| !file.received));
    assert_eq!(hub.cdn_requests().len(), 1);
}

#[test]
fn a_file_that_was_changed_since_is_pulled_again() {
    let hub = FakeHub::new();
    pull(&hub).unwrap();
    let path = folder(&hub).join("config.json");
    fs::write(&path, b"{\"a\": 7}\n").unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
    pull(&hub).unwrap();
    assert_eq!(fs::read(path).unwrap(), hub.content("config.json").bytes);
}

#[test]
fn a_file_that_was_put_there_by_hand_is_recognised_by_its_content() {
    let hub = FakeHub::new();
    fs::create_dir_all(folder(&hub).join("nested")).unwrap();
    fs::write(folder(&hub).join(LARGE), hub.content(LARGE).bytes).unwrap();
    pull(&hub).unwrap();
    assert!(hub.cdn_requests().is_empty());
}

#[test]
fn a_cut_transfer_goes_on_and_leaves_no_half_file_under_its_name() {
    let hub = FakeHub::new();
    hub.state().cdn_faults.extend([Fault::Cut(100_000), Fault::Cut(0), Fault::Cut(0)]);
    pull(&hub).unwrap_err();
    assert!(!folder(&hub).join(LARGE).exists());
    pull(&hub).unwrap();
    assert_eq!(hub.cdn_requests().last().unwrap().range.as_deref(), Some("bytes=100000-"));
    assert!(hub.partials().is_empty());
}

#[test]
fn a_place_that_is_a_file_is_named() {
    let hub = FakeHub::new();
    fs::write(folder(&hub), b"").unwrap();
    let text = pull(&hub).unwrap_err().to_string();
    assert!(text.contains("/to"), "{text}");
}
