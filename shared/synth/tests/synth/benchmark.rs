//! The plan, its pictures and its files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use thicket_synth::{
    Benchmark, HEIGHT, IDENTITY_SLOTS, Sizes, Split, View, WIDTH, WriteError, differences, render, write,
};

const SMALL: Sizes = Sizes { train: 3, val: 1, test: 2, identities: 4, views: 2, captions: 2 };

fn benchmark(seed: u64, sizes: Sizes) -> Benchmark {
    Benchmark::new(seed, sizes).expect("allowed sizes")
}

fn identities(benchmark: &Benchmark, split: Split) -> BTreeSet<[u8; IDENTITY_SLOTS]> {
    benchmark.families(split).iter().flat_map(|family| &family.people).map(|person| person.values).collect()
}

#[test]
fn the_default_test_split_has_304_people_and_1216_images() {
    let benchmark = benchmark(1, Sizes::default());
    let views: Vec<View> = benchmark.views(Split::Test).collect();
    let ids: BTreeSet<usize> = views.iter().map(|view| view.id).collect();
    assert_eq!((ids.len(), views.len()), (304, 1216));
    assert!(views.iter().all(|view| view.captions.len() == 1));
}

#[test]
fn nobody_of_a_split_occurs_in_another() {
    let benchmark = benchmark(1, Sizes::default());
    let [train, val, test] = Split::ALL.map(|split| identities(&benchmark, split));
    assert_eq!((train.len(), val.len(), test.len()), (3200, 200, 304));
    assert!(train.is_disjoint(&test) && train.is_disjoint(&val) && val.is_disjoint(&test));
}

#[test]
fn no_appearance_of_the_test_split_occurs_in_training() {
    let benchmark = benchmark(1, Sizes::default());
    let train: BTreeSet<_> = benchmark.views(Split::Train).map(|view| view.appearance.values).collect();
    assert!(benchmark.views(Split::Test).all(|view| !train.contains(&view.appearance.values)));
}

#[test]
fn look_alikes_differ_in_two_to_four_slots_and_a_few_in_one() {
    let benchmark = benchmark(1, Sizes::default());
    let mut counts = [0usize; 5];
    for family in benchmark.families(Split::Test) {
        for (at, a) in family.people.iter().enumerate() {
            for b in &family.people[..at] {
                counts[differences(&a.values, &b.values)] += 1;
            }
        }
    }
    let [none, one, more @ ..] = counts;
    assert_eq!(none, 0);
    assert!(one > 0 && one * 10 < more.iter().sum::<usize>(), "{counts:?}");
}

#[test]
fn the_test_split_does_not_depend_on_the_size_of_training() {
    let small = benchmark(9, SMALL);
    let large = benchmark(9, Sizes { train: 20, ..SMALL });
    let people = |benchmark: &Benchmark| {
        benchmark
            .views(Split::Test)
            .map(|view| (view.person, view.appearance, view.captions))
            .collect::<Vec<_>>()
    };
    assert_eq!(people(&small), people(&large));
}

#[test]
fn one_view_alone_is_the_view_in_the_list() {
    let benchmark = benchmark(9, SMALL);
    let views: Vec<View> = benchmark.views(Split::Train).collect();
    assert_eq!(benchmark.view(Split::Train, 7).as_ref(), views.get(7));
    assert_eq!(benchmark.view(Split::Train, views.len()), None);
}

#[test]
fn the_same_seed_gives_the_same_pixels_and_another_seed_others() {
    let picture = |seed| {
        let view = benchmark(seed, SMALL).view(Split::Test, 3).expect("there are 16 images");
        render(&view).into_raw()
    };
    assert_eq!(picture(4), picture(4));
    assert_ne!(picture(4), picture(5));
}

#[test]
fn pictures_of_one_person_differ() {
    let benchmark = benchmark(4, SMALL);
    let pictures: BTreeSet<Vec<u8>> =
        benchmark.views(Split::Test).take(2).map(|view| render(&view).into_raw()).collect();
    assert_eq!(pictures.len(), 2);
}

#[test]
fn look_alikes_look_different_under_the_same_circumstances() {
    let benchmark = benchmark(4, Sizes { views: 1, ..SMALL });
    let views: Vec<View> = benchmark.views(Split::Test).collect();
    for family in views.chunks(4) {
        // The same place, camera and pose for everyone: only the person differs.
        let pictures: BTreeSet<Vec<u8>> = family
            .iter()
            .map(|view| {
                let mut staged = family[0].clone();
                staged.person.values = view.person.values;
                render(&staged).into_raw()
            })
            .collect();
        assert_eq!(pictures.len(), 4);
    }
}

#[test]
fn sizes_out_of_range_are_refused_with_the_limits() {
    let error =
        Benchmark::new(1, Sizes { identities: 9, ..SMALL }).expect_err("nine look-alikes are too many");
    assert_eq!((error.field, error.actual, error.least, error.most), ("identities", 9, 1, 8));
    assert_eq!(error.to_string(), "identities is 9, allowed are 1 to 8");
}

fn write_small(dir: &Path) -> Result<(), WriteError> {
    write(dir, &benchmark(2, SMALL), &Split::ALL, &|_| {})
}

#[test]
fn writing_twice_gives_the_same_bytes() {
    let (a, b) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    write_small(a.path()).expect("written");
    write_small(b.path()).expect("written");
    for name in ["reid_raw.json", "attributes.json", "imgs/test/00017_0.png", "imgs/train/00001_1.png"] {
        let read = |dir: &Path| fs::read(dir.join("CUHK-PEDES").join(name)).expect(name);
        assert_eq!(read(a.path()), read(b.path()), "{name}");
    }
}

#[test]
fn the_annotation_has_the_keys_and_the_order_of_cuhk_pedes() {
    let dir = tempfile::tempdir().expect("folder");
    write_small(dir.path()).expect("written");
    let root = dir.path().join("CUHK-PEDES");
    let text = fs::read_to_string(root.join("reid_raw.json")).expect("annotation");
    let records: Vec<Value> = serde_json::from_str(&text).expect("a list");
    assert_eq!(records.len(), 48);
    let ids: Vec<u64> = records.iter().filter_map(|record| record["id"].as_u64()).collect();
    let expected: Vec<u64> = (1..=24).flat_map(|id| [id, id]).collect();
    assert_eq!(ids, expected);
    for record in &records {
        assert_eq!(record["captions"].as_array().map(Vec::len), Some(2));
        assert_eq!(record["processed_tokens"].as_array().map(Vec::len), Some(2));
        let path = root.join("imgs").join(record["file_path"].as_str().expect("a path"));
        assert_eq!(image::image_dimensions(path).expect("an image"), (WIDTH, HEIGHT));
    }
    let splits: Vec<&str> = records.iter().filter_map(|record| record["split"].as_str()).collect();
    assert!(splits.is_sorted_by_key(|name| ["train", "val", "test"].iter().position(|n| n == name)));
}

#[test]
fn the_ground_truth_lists_a_value_or_null_for_each_slot() {
    let dir = tempfile::tempdir().expect("folder");
    write(dir.path(), &benchmark(2, SMALL), &[Split::Test], &|_| {}).expect("written");
    let text = fs::read_to_string(dir.path().join("CUHK-PEDES/attributes.json")).expect("ground truth");
    let records: Vec<Value> = serde_json::from_str(&text).expect("a list");
    let views: Vec<View> = benchmark(2, SMALL).views(Split::Test).collect();
    assert_eq!(records.len(), views.len());
    for (record, view) in records.iter().zip(&views) {
        assert_eq!(record["file_path"], view.file_path.as_str());
        for (index, slot) in thicket_synth::SLOTS.iter().enumerate() {
            assert_eq!(record["attributes"][slot.name].as_str(), view.appearance.seen_name(index));
        }
    }
}

#[test]
fn a_written_image_holds_the_pixels_of_its_view() {
    let dir = tempfile::tempdir().expect("folder");
    write_small(dir.path()).expect("written");
    let view = benchmark(2, SMALL).view(Split::Val, 5).expect("there are 8 images");
    let read = image::open(dir.path().join("CUHK-PEDES/imgs").join(&view.file_path)).expect("an image");
    assert_eq!(read.into_rgb8(), render(&view));
}

#[test]
fn a_folder_with_something_in_it_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("folder");
    let root = dir.path().join("CUHK-PEDES");
    fs::create_dir(&root).expect("folder");
    fs::write(root.join("mine"), "x").expect("file");
    assert!(matches!(write_small(dir.path()), Err(WriteError::NotEmpty { path }) if path == root));
    assert_eq!(fs::read_dir(&root).expect("folder").count(), 1);
}

#[test]
fn a_file_in_the_place_of_the_folder_is_refused() {
    let dir = tempfile::tempdir().expect("folder");
    fs::write(dir.path().join("CUHK-PEDES"), "x").expect("file");
    assert!(matches!(write_small(dir.path()), Err(WriteError::NotEmpty { .. })));
}

#[test]
fn progress_counts_every_image_once() {
    let dir = tempfile::tempdir().expect("folder");
    let (calls, greatest) = (AtomicUsize::new(0), AtomicUsize::new(0));
    write(dir.path(), &benchmark(2, SMALL), &[Split::Val], &|progress| {
        calls.fetch_add(1, Ordering::Relaxed);
        greatest.fetch_max(progress.done, Ordering::Relaxed);
        assert_eq!(progress.total, 8);
    })
    .expect("written");
    assert_eq!((calls.into_inner(), greatest.into_inner()), (8, 8));
}
