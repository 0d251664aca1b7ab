//! A snapshot comes back as it was written, or not at all.

use std::path::Path;

use thicket_index::{CollectionIndex, IndexKind, SnapshotError, TAG_BYTES};

const TAG: [u8; TAG_BYTES] = [3; TAG_BYTES];

fn saved(path: &Path) -> CollectionIndex {
    let mut index = CollectionIndex::new(3, IndexKind::Exact).unwrap();
    let ids: Vec<u64> = (0..2500).map(|i| i * 3 + 1).collect();
    let rows: Vec<f32> = (0..7500).map(|i| (i as f32 * 0.37).sin()).collect();
    index.add(&ids, &rows).unwrap();
    index.remove(&[4, 400]).unwrap();
    index.save(path, &TAG).unwrap();
    index
}

#[test]
fn a_snapshot_comes_back_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tidx");
    let written = saved(&path);
    let read = CollectionIndex::load(&path, 3, IndexKind::Exact, &TAG).unwrap();
    assert_eq!(read.exact().ids(), written.exact().ids());
    let query = [0.3, -0.2, 0.9];
    assert_eq!(read.top(&query, 3000).unwrap(), written.top(&query, 3000).unwrap());
}

#[test]
fn an_empty_index_survives_a_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tidx");
    CollectionIndex::new(3, IndexKind::Exact).unwrap().save(&path, &TAG).unwrap();
    assert!(CollectionIndex::load(&path, 3, IndexKind::Exact, &TAG).unwrap().is_empty());
}

#[test]
fn a_flipped_bit_anywhere_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tidx");
    saved(&path);
    let bytes = std::fs::read(&path).unwrap();
    for place in [0, 9, 14, 25, 40, 5000, bytes.len() / 2, bytes.len() - 40, bytes.len() - 1] {
        let mut bent = bytes.clone();
        bent[place] ^= 0x10;
        std::fs::write(&path, &bent).unwrap();
        let result = CollectionIndex::load(&path, 3, IndexKind::Exact, &TAG);
        assert!(matches!(result, Err(SnapshotError::Damaged { .. })), "byte {place}: {result:?}");
    }
}

#[test]
fn a_truncated_or_longer_file_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tidx");
    saved(&path);
    let mut bytes = std::fs::read(&path).unwrap();
    for length in [0, 7, 50, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(
            matches!(
                CollectionIndex::load(&path, 3, IndexKind::Exact, &TAG),
                Err(SnapshotError::Damaged { .. })
            ),
            "{length} bytes"
        );
    }
    bytes.push(0);
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(
        CollectionIndex::load(&path, 3, IndexKind::Exact, &TAG),
        Err(SnapshotError::Damaged { .. })
    ));
}

#[test]
fn a_snapshot_of_another_state_is_stale() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tidx");
    saved(&path);
    assert!(matches!(
        CollectionIndex::load(&path, 3, IndexKind::Exact, &[4; TAG_BYTES]),
        Err(SnapshotError::Stale { .. })
    ));
}

#[test]
fn a_snapshot_of_another_dimension_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tidx");
    saved(&path);
    assert!(matches!(
        CollectionIndex::load(&path, 4, IndexKind::Exact, &TAG),
        Err(SnapshotError::Damaged { .. })
    ));
}

#[test]
fn a_failed_write_leaves_the_older_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tidx");
    saved(&path);
    // A directory in the way of the unfinished file makes the write fail before the rename.
    std::fs::create_dir(folder.path().join("a.unfinished")).unwrap();
    let result = CollectionIndex::new(3, IndexKind::Exact).unwrap().save(&path, &TAG);
    assert!(matches!(result, Err(SnapshotError::Io { .. })), "{result:?}");
    assert_eq!(CollectionIndex::load(&path, 3, IndexKind::Exact, &TAG).unwrap().len(), 2498);
}
