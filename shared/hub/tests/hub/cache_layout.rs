//! What the cache holds after a pull.

use std::fs;
use std::path::Path;

use thicket_hub::{Place, snapshot};

use crate::support::{COMMIT, FakeHub, REPO, pull_with, walk};

#[test]
fn a_pull_leaves_the_layout_that_python_reads() {
    let hub = FakeHub::new();
    let pulled = hub.pull().unwrap();
    let repository = hub.repository();
    assert_eq!(pulled.commit.as_str(), COMMIT);
    assert_eq!(pulled.folder, repository.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(repository.join("refs/main")).unwrap(), COMMIT);
    for (path, up) in [("config.json", "../../blobs"), ("nested/model.safetensors", "../../../blobs")] {
        let content = hub.content(path);
        let link = pulled.folder.join(path);
        assert_eq!(fs::read_link(&link).unwrap(), Path::new(up).join(content.digest()));
        assert_eq!(fs::read(&link).unwrap(), content.bytes);
    }
    assert_eq!(pulled.files.len(), 2, "{pulled:?}");
    assert!(pulled.files.iter().all(|file| file.received));
    assert!(hub.partials().is_empty());
}

#[test]
fn a_file_that_is_not_wanted_is_not_asked_for() {
    let hub = FakeHub::new();
    hub.pull().unwrap();
    assert!(!hub.state().seen.iter().any(|seen| seen.target.contains("README")));
}

#[test]
fn a_second_pull_receives_nothing() {
    let hub = FakeHub::new();
    hub.pull().unwrap();
    hub.state().seen.clear();
    let again = hub.pull().unwrap();
    assert!(again.files.iter().all(|file| !file.received), "{again:?}");
    assert!(hub.state().seen.iter().all(|seen| seen.target.starts_with("/api/")), "{:?}", hub.state().seen);
}

#[test]
fn only_a_changed_file_comes_again() {
    let hub = FakeHub::new();
    hub.pull().unwrap();
    hub.put("config.json", b"{\"a\": 2}\n", false);
    let names: Vec<(String, bool)> =
        hub.pull().unwrap().files.iter().map(|file| (file.path.to_string(), file.received)).collect();
    assert_eq!(names, [("config.json".to_owned(), true), ("nested/model.safetensors".to_owned(), false)]);
}

#[test]
fn a_link_that_was_lost_is_made_again_without_a_transfer() {
    let hub = FakeHub::new();
    let pulled = hub.pull().unwrap();
    fs::remove_file(pulled.folder.join("config.json")).unwrap();
    let again = hub.pull().unwrap();
    assert!(again.files.iter().all(|file| !file.received));
    assert!(pulled.folder.join("config.json").is_file());
}

#[test]
fn a_content_of_the_wrong_length_is_replaced() {
    let hub = FakeHub::new();
    let pulled = hub.pull().unwrap();
    let path = "nested/model.safetensors";
    let blob = hub.repository().join("blobs").join(hub.content(path).digest());
    fs::write(&blob, b"cut").unwrap();
    hub.pull().unwrap();
    assert_eq!(fs::read(pulled.folder.join(path)).unwrap(), hub.content(path).bytes);
}

#[test]
fn a_long_listing_is_read_page_by_page() {
    let hub = FakeHub::new();
    hub.state().page = 1;
    assert_eq!(hub.pull().unwrap().files.len(), 2);
    let pages = hub.state().seen.iter().filter(|seen| seen.target.contains("/tree/")).count();
    assert_eq!(pages, 3);
}

#[test]
fn a_revision_with_a_slash_and_a_commit_are_pinned() {
    let hub = FakeHub::new();
    hub.pull_to(Place::Cache, "refs/pr/1").unwrap();
    let record = hub.repository().join("refs/refs/pr/1");
    assert_eq!(fs::read_to_string(record).unwrap(), COMMIT);
    hub.pull_to(Place::Cache, COMMIT).unwrap();
    assert!(!hub.repository().join("refs").join(COMMIT).exists());
}

#[test]
fn without_the_network_the_cache_answers() {
    let hub = FakeHub::new();
    let offline = || {
        let mut settings = hub.settings();
        settings.offline = true;
        pull_with(settings, Place::Cache, "main", &mut |_| {})
    };
    let refused = offline().unwrap_err().to_string();
    assert!(refused.contains("HF_HUB_OFFLINE") && refused.contains(REPO), "{refused}");
    hub.pull().unwrap();
    hub.state().seen.clear();
    let found = offline().unwrap();
    assert!(!found.online && found.folder.join("config.json").is_file());
    assert!(hub.state().seen.is_empty());
}

#[test]
fn a_pull_that_fails_does_not_move_the_branch() {
    let hub = FakeHub::new();
    hub.state().cdn_faults.extend([crate::support::Fault::Bytes(vec![0; 300_000])]);
    hub.pull().unwrap_err();
    assert!(!hub.repository().join("refs/main").exists());
    let (repo, revision) = (REPO.parse().unwrap(), "main".parse().unwrap());
    assert!(snapshot(&hub.cache(), &repo, &revision).is_none());
}

#[test]
fn pulls_at_the_same_time_do_not_harm_each_other() {
    let hub = FakeHub::new();
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| hub.pull().unwrap())).collect();
        for pull in pulls {
            pull.join().unwrap();
        }
    });
    // Whoever came second found the file there.
    assert_eq!(hub.cdn_requests().len(), 1);
    let snapshot = hub.repository().join("snapshots").join(COMMIT);
    assert_eq!(fs::read(snapshot.join("config.json")).unwrap(), hub.content("config.json").bytes);
    assert!(walk(hub.folder.path()).iter().all(|path| !path.to_string_lossy().ends_with(".new")));
}
