//! Names from the hub that would lead elsewhere.

use thicket_hub::{HubError, Place};

use crate::support::{FakeHub, walk};

#[test]
fn a_listing_with_a_name_that_leads_out_is_refused_whole() {
    for path in ["../../evil.json", "/etc/evil.json", "a/../../evil.json", "..\\evil.json"] {
        let hub = FakeHub::new();
        let entry = serde_json::json!([
            {"type": "file", "path": "config.json", "size": 1, "oid": "0".repeat(40)},
            {"type": "file", "path": path, "size": 1, "oid": "0".repeat(40)},
        ]);
        hub.state().listing = Some(entry.to_string());
        let folder = hub.folder.path().join("to");
        let error = hub.pull_to(Place::Folder(folder), "main").unwrap_err();
        assert!(matches!(error, HubError::UnsafePath { .. }), "{error}");
        assert!(walk(hub.folder.path()).is_empty(), "{path}");
    }
}

#[test]
fn a_revision_that_is_none_never_reaches_the_network() {
    let hub = FakeHub::new();
    let error = hub.pull_to(Place::Cache, "../main").unwrap_err();
    assert!(matches!(error, HubError::Name { what: "revision", .. }), "{error}");
    assert!(hub.state().seen.is_empty());
}
