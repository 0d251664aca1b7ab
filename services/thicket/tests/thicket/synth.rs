//! `thicket synth`: a data set that the loaders read, the same for the same seed.

use std::collections::BTreeMap;
use std::path::Path;

use crate::support::{Files, Run, run};

fn synth(out: &str, rest: &[&str]) -> Run {
    run(&[&["synth", "--out", out, "--families", "1,1,1", "--json"], rest].concat())
}

fn files_below(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            found.extend(
                files_below(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)),
            );
        } else {
            found.insert(name, std::fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let files = Files::new();
    for (name, seed) in [("a", "5"), ("b", "5"), ("c", "6")] {
        synth(&files.arg(name), &["--seed", seed, "--split", "test"]).json();
    }
    let [a, b, c] = ["a", "b", "c"].map(|name| files_below(&files.path(name)));
    assert!(a == b, "two runs with one seed differ");
    assert!(a != c, "two seeds agree");
    assert_eq!(a.len(), 16 + 2, "4 people x 4 views and two documents");
}

#[test]
fn what_is_written_is_what_the_loader_reads() {
    let files = Files::new();
    let json = synth(&files.arg("out"), &["--identities", "2", "--views", "3", "--captions", "2"]).json();
    let splits = json["splits"].as_array().unwrap();
    assert_eq!(splits.len(), 3);
    let dataset =
        thicket_datasets::Dataset::load(thicket_datasets::Format::CuhkPedes, &files.path("out")).unwrap();
    dataset.test.require_images().unwrap();
    assert_eq!(dataset.test.image_paths.len(), 6);
    assert_eq!(dataset.test.captions.len(), 12);
    assert_eq!(splits[2]["images"].as_u64(), Some(6));
    assert_eq!(splits[2]["captions"].as_u64(), Some(12));
}

#[test]
fn a_folder_with_something_in_it_is_refused_and_left_alone() {
    let files = Files::new();
    std::fs::create_dir(files.path("CUHK-PEDES")).unwrap();
    std::fs::write(files.path("CUHK-PEDES/mine.txt"), "mine").unwrap();
    synth(files.root().to_str().unwrap(), &[]).refuses(&["CUHK-PEDES", "not an empty folder"]);
    assert_eq!(std::fs::read(files.path("CUHK-PEDES/mine.txt")).unwrap(), b"mine");
}

#[test]
fn sizes_out_of_range_are_refused() {
    let files = Files::new();
    let out = files.arg("out");
    synth(&out, &["--views", "0"]).refuses(&["views", "0", "1 to 64"]);
    synth(&out, &["--identities", "9"]).refuses(&["identities", "9", "1 to 8"]);
    synth(&out, &["--split", "holdout"]).refuses(&["holdout"]);
    run(&["synth", "--out", &out, "--families", "1,2"]).refuses(&["--families", "1,2"]);
}
