//! What the hub does not give.

use std::net::TcpListener;

use thicket_hub::{HubError, Place, Token};

use crate::support::{COMMIT, FakeHub, Fault, pull_with};

#[test]
fn an_unknown_repository_and_an_unknown_revision_are_told_apart() {
    let hub = FakeHub::new();
    let error = hub.pull_to(Place::Cache, "absent").unwrap_err();
    assert!(matches!(&error, HubError::NoRevision { revision, .. } if revision == "absent"), "{error}");
    hub.state().api_refusals.push_back((404, "RepoNotFound"));
    let error = hub.pull().unwrap_err();
    assert!(matches!(error, HubError::NoRepository { .. }), "{error}");
    assert!(error.is_bad_input());
}

#[test]
fn a_gated_repository_tells_about_the_token() {
    for (status, code) in [(401, "GatedRepo"), (403, "GatedRepo"), (401, "")] {
        for token in [None, Token::new("hf_secret")] {
            let hub = FakeHub::new();
            hub.state().api_refusals.push_back((status, code));
            let mut settings = hub.settings();
            settings.token = token;
            let error = pull_with(settings, Place::Cache, "main", &mut |_| {}).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("HF_TOKEN") && text.contains(&status.to_string()), "{text}");
            assert!(!text.contains("hf_secret") && !error.is_bad_input(), "{text}");
        }
    }
}

#[test]
fn a_gate_that_shows_only_at_the_file_is_told_too() {
    let hub = FakeHub::new();
    hub.state().hub_faults.push_back(Fault::Status(403));
    assert!(matches!(hub.pull().unwrap_err(), HubError::Refused { status: 403, .. }));
}

#[test]
fn a_file_that_is_not_the_listed_one_is_refused_before_it_comes() {
    for fault in [Fault::Etag("a".repeat(40)), Fault::Commit("b".repeat(40))] {
        let hub = FakeHub::new();
        hub.state().hub_faults.push_back(fault);
        let error = hub.pull().unwrap_err();
        assert!(matches!(error, HubError::Answer { .. }), "{error}");
    }
}

#[test]
fn a_hub_that_is_not_there_is_named() {
    let hub = FakeHub::new();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut settings = hub.settings();
    settings.endpoint = format!("http://{closed}");
    let text = pull_with(settings, Place::Cache, "main", &mut |_| {}).unwrap_err().to_string();
    assert!(text.contains(&closed.to_string()) && text.contains("3 attempts"), "{text}");
}

#[test]
fn a_listing_that_is_no_json_is_refused() {
    let hub = FakeHub::new();
    hub.state().listing = Some("<html>captive portal</html>".to_owned());
    let error = hub.pull().unwrap_err();
    assert!(matches!(error, HubError::Answer { .. }), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);
}

#[test]
fn a_repository_without_a_wanted_file_says_what_was_looked_for() {
    let hub = FakeHub::new();
    hub.state().files.retain(|path, _| path == "README.md");
    let text = hub.pull().unwrap_err().to_string();
    assert!(text.contains("no weights") && text.contains(COMMIT), "{text}");
}

#[test]
fn files_that_do_not_fit_the_disk_are_refused_before_the_first_byte() {
    let hub = FakeHub::new();
    let entry = serde_json::json!([{
        "type": "file", "path": "model.safetensors", "oid": "0".repeat(40), "size": 134,
        "lfs": {"oid": "0".repeat(64), "size": 1u64 << 60, "pointerSize": 134},
    }]);
    hub.state().listing = Some(entry.to_string());
    let error = hub.pull().unwrap_err();
    assert!(matches!(error, HubError::NoSpace { needed, .. } if needed == 1 << 60), "{error}");
    assert!(hub.cdn_requests().is_empty());
}
