//! Transfers that are cut, slow or wrong.

use std::fs;
use std::time::Duration;

use thicket_hub::{Event, HubError, Place};

use crate::support::{FakeHub, Fault, noise, pull_with};

const LARGE: &str = "nested/model.safetensors";

fn large_is_whole(hub: &FakeHub) {
    let digest = hub.content(LARGE).digest();
    assert_eq!(fs::read(hub.repository().join("blobs").join(digest)).unwrap(), hub.content(LARGE).bytes);
    assert!(hub.partials().is_empty());
}

fn ranges(hub: &FakeHub) -> Vec<Option<String>> {
    hub.cdn_requests().into_iter().map(|seen| seen.range).collect()
}

#[test]
fn a_cut_transfer_goes_on_where_it_stopped() {
    let hub = FakeHub::new();
    hub.state().cdn_faults.extend([Fault::Cut(100_000), Fault::Cut(50_000)]);
    let mut retries = 0;
    let mut received = 0;
    pull_with(hub.settings(), Place::Cache, "main", &mut |event| match event {
        Event::Retrying { path, .. } => {
            assert_eq!(path, LARGE);
            retries += 1;
        }
        Event::Received { bytes } => received += bytes,
        _ => {}
    })
    .unwrap();
    assert_eq!(ranges(&hub), [None, Some("bytes=100000-".to_owned()), Some("bytes=150000-".to_owned())]);
    assert_eq!((retries, received), (2, 300_000 + hub.content("config.json").bytes.len() as u64));
    large_is_whole(&hub);
}

#[test]
fn progress_starts_the_count_of_attempts_again() {
    let hub = FakeHub::new();
    hub.state().cdn_faults.extend((0..8).map(|_| Fault::Cut(20_000)));
    hub.pull().unwrap();
    large_is_whole(&hub);
}

#[test]
fn a_later_pull_goes_on_with_what_an_earlier_one_left() {
    let hub = FakeHub::new();
    hub.state().cdn_faults.extend([Fault::Cut(100_000), Fault::Cut(0), Fault::Cut(0)]);
    let error = hub.pull().unwrap_err();
    assert!(matches!(error, HubError::Unreachable { attempts: 3, .. }), "{error}");
    assert_eq!(hub.partials().len(), 1);
    assert_eq!(fs::metadata(&hub.partials()[0]).unwrap().len(), 100_000);
    hub.state().seen.clear();
    hub.pull().unwrap();
    assert_eq!(ranges(&hub), [Some("bytes=100000-".to_owned())]);
    large_is_whole(&hub);
}

#[test]
fn what_is_whole_but_unnamed_is_checked_and_not_asked_for_again() {
    let hub = FakeHub::new();
    let content = hub.content(LARGE);
    let blobs = hub.repository().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{}.incomplete", content.digest())), &content.bytes).unwrap();
    hub.pull().unwrap();
    assert!(hub.cdn_requests().is_empty());
    large_is_whole(&hub);
}

#[test]
fn what_is_longer_than_the_file_is_begun_again() {
    let hub = FakeHub::new();
    let blobs = hub.repository().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let partial = blobs.join(format!("{}.incomplete", hub.content(LARGE).digest()));
    fs::write(partial, noise(300_001)).unwrap();
    hub.pull().unwrap();
    assert_eq!(ranges(&hub), [None]);
    large_is_whole(&hub);
}

#[test]
fn a_server_without_ranges_sends_the_whole_again() {
    let hub = FakeHub::new();
    hub.state().cdn_faults.extend([Fault::Cut(100_000), Fault::Whole]);
    hub.pull().unwrap();
    large_is_whole(&hub);
}

#[test]
fn a_range_that_begins_elsewhere_is_refused() {
    let hub = FakeHub::new();
    hub.state().cdn_faults.extend([Fault::Cut(100_000), Fault::OtherRange]);
    let text = hub.pull().unwrap_err().to_string();
    assert!(text.contains("Content-Range") && text.contains("100000"), "{text}");
}

#[test]
fn wrong_bytes_are_removed_and_named() {
    let hub = FakeHub::new();
    let mut wrong = hub.content(LARGE).bytes;
    wrong[1000] ^= 1;
    hub.state().cdn_faults.push_back(Fault::Bytes(wrong));
    let error = hub.pull().unwrap_err();
    assert!(matches!(&error, HubError::Checksum { path, .. } if path == LARGE), "{error}");
    assert!(hub.partials().is_empty());
    hub.pull().unwrap();
    large_is_whole(&hub);
}

#[test]
fn wrong_bytes_of_a_small_file_are_found_too() {
    let hub = FakeHub::new();
    hub.state().hub_faults.push_back(Fault::Bytes(b"{\"a\": 2}\n".to_vec()));
    let error = hub.pull().unwrap_err();
    assert!(matches!(&error, HubError::Checksum { path, .. } if path == "config.json"), "{error}");
}

#[test]
fn a_damaged_beginning_is_found_when_the_rest_has_come() {
    let hub = FakeHub::new();
    let content = hub.content(LARGE);
    let blobs = hub.repository().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{}.incomplete", content.digest())), vec![0; 1000]).unwrap();
    assert!(matches!(hub.pull().unwrap_err(), HubError::Checksum { .. }));
    hub.pull().unwrap();
    large_is_whole(&hub);
}

#[test]
fn more_bytes_than_listed_are_refused_and_removed() {
    let hub = FakeHub::new();
    hub.state().cdn_faults.push_back(Fault::Bytes(noise(300_010)));
    let text = hub.pull().unwrap_err().to_string();
    assert!(text.contains("300000"), "{text}");
    assert!(hub.partials().is_empty());
}

#[test]
fn a_server_in_trouble_is_asked_again() {
    let hub = FakeHub::new();
    hub.state().api_refusals.extend([(503, ""), (429, "")]);
    hub.state().hub_faults.extend([Fault::Status(500), Fault::Status(502)]);
    hub.state().cdn_faults.extend([Fault::Status(504)]);
    hub.pull().unwrap();
    large_is_whole(&hub);
}

#[test]
fn a_server_that_stays_in_trouble_is_given_up_with_its_status() {
    let hub = FakeHub::new();
    hub.state().api_refusals.extend([(503, ""), (503, ""), (503, "")]);
    let text = hub.pull().unwrap_err().to_string();
    assert!(text.contains("503") && text.contains("3 attempts"), "{text}");
}

#[test]
fn a_silent_connection_counts_as_cut() {
    let hub = FakeHub::new();
    hub.state().cdn_faults.push_back(Fault::Silence(Duration::from_secs(20)));
    let mut settings = hub.settings();
    settings.idle = Duration::from_millis(200);
    pull_with(settings, Place::Cache, "main", &mut |_| {}).unwrap();
    large_is_whole(&hub);
}
