//! A step of the writer's, taken over by a replica's store in one transaction.

use std::collections::BTreeSet;

use thicket_proto::v1;

use crate::crash;
use crate::error::{GalleryError, count_storage_fault};
use crate::record::{CollectionRecord, ImageHash, ItemRecord};
use crate::source::Position;
use crate::store::Store;
use crate::tables::{LAST, Tables, parse};

/// Changed items that are remembered for the collections in memory; after more, those are read from the store again.
const REMEMBERED: usize = 10_000;

/// A step as it comes in.
#[derive(Debug)]
pub(crate) struct Begin {
    pub(crate) to: Position,
    pub(crate) whole: bool,
    pub(crate) collections: Vec<(String, CollectionRecord)>,
    pub(crate) dropped: BTreeSet<u64>,
}

/// An item that a step changed.
#[derive(Debug)]
pub(crate) enum Changed {
    Stored { number: u64, sequence: u64, item: ItemRecord, vector: Vec<f32> },
    Gone { number: u64, sequence: u64 },
}

/// What taking a step over did.
#[derive(Debug)]
pub(crate) struct TakenOver {
    /// The items that were changed, where they are few.
    pub(crate) changed: Option<Vec<Changed>>,
    /// True where bytes were deleted or replaced.
    pub(crate) freed: bool,
    /// Images that no item uses any more.
    pub(crate) unused: Vec<ImageHash>,
}

impl TryFrom<v1::StepBegin> for Begin {
    type Error = GalleryError;

    fn try_from(begin: v1::StepBegin) -> Result<Self, GalleryError> {
        let position = begin.to.ok_or("it leads nowhere").and_then(Position::try_from).map_err(broken)?;
        let collections = begin.collections.into_iter().map(|collection| {
            let record = serde_json::from_slice(&collection.record).map_err(broken)?;
            Ok((collection.name, record))
        });
        Ok(Self {
            to: position,
            whole: begin.whole,
            collections: collections.collect::<Result<_, GalleryError>>()?,
            dropped: begin.dropped.into_iter().collect(),
        })
    }
}

/// What does not keep the contract between the two galleries.
pub(crate) fn broken(cause: impl std::fmt::Display) -> GalleryError {
    GalleryError::internal("following the writer", format!("the writer sent what is no step: {cause}"))
}

impl Store {
    /// Takes a step over in one transaction, which is durable on return. `next` gives its items, part by part: `None` at the
    /// end, an error where it was cut off.
    ///
    /// # Errors
    /// What `next` failed with, [`GalleryError::DiskFull`] or [`GalleryError::Internal`]; then nothing was changed.
    pub(crate) fn take_over(
        &mut self,
        begin: &Begin,
        mut next: impl FnMut() -> Result<Option<Vec<v1::StoredItem>>, GalleryError>,
    ) -> Result<TakenOver, GalleryError> {
        let database = self.database()?;
        let outcome = (|| {
            let mut transaction = database.begin_write()?;
            // A crash must not cost a walk over all vectors at the next start.
            transaction.set_quick_repair(true);
            let taken = match take(&transaction, begin, &mut next)? {
                Ok(taken) => taken,
                Err(cut_off) => {
                    transaction.abort()?;
                    return Ok(Err(cut_off));
                }
            };
            crash::at("replica.commit");
            transaction.commit()?;
            crash::at("replica.committed");
            Ok::<_, redb::Error>(Ok(taken))
        })();
        match outcome {
            Ok(taken) => taken,
            Err(cause) => {
                let failure = GalleryError::from_write("taking a step over", &cause);
                count_storage_fault(failure.storage_reason());
                // The follower, which is told, says it once.
                tracing::debug!(error = %cause, "a step was not taken over, opening the store again");
                drop(database);
                self.give_up();
                if self.position()? != begin.to {
                    return Err(failure);
                }
                // It had reached the disk after all: the rest is found out from what is there.
                Ok(TakenOver { changed: None, freed: true, unused: Vec::new() })
            }
        }
    }
}

/// Outer: the store failed. Inner: the step was cut off, and nothing may be committed.
type Outcome = Result<Result<TakenOver, GalleryError>, redb::Error>;

fn take(
    transaction: &redb::WriteTransaction,
    begin: &Begin,
    next: &mut impl FnMut() -> Result<Option<Vec<v1::StoredItem>>, GalleryError>,
) -> Outcome {
    let mut tables = Tables::open(transaction, false)?;
    if begin.whole {
        tables.clear()?;
    } else {
        tables.drop_numbers(&begin.dropped)?;
    }
    let mut changed = Some(Vec::new());
    loop {
        let items = match next() {
            Ok(Some(items)) => items,
            Ok(None) => break,
            Err(cut_off) => return Ok(Err(cut_off)),
        };
        for stored in items {
            crash::at("replica.item");
            let (number, sequence) = (stored.collection, stored.sequence);
            tables.remove_item(number, sequence)?;
            let change = if stored.record.is_empty() {
                Changed::Gone { number, sequence }
            } else {
                let item: ItemRecord = parse(&stored.record)?;
                tables.insert_item(number, sequence, &item, &stored.record, &stored.vector)?;
                let (values, _) = stored.vector.as_chunks::<4>();
                let vector = values.iter().map(|value| f32::from_le_bytes(*value)).collect();
                Changed::Stored { number, sequence, item, vector }
            };
            if begin.whole || changed.as_ref().is_some_and(|changed| changed.len() >= REMEMBERED) {
                changed = None;
            }
            if let Some(changed) = &mut changed {
                changed.push(change);
            }
        }
    }
    for (name, record) in &begin.collections {
        tables.put_record(name, record)?;
    }
    tables.note_freed()?;
    tables.restart_log(begin.to)?;
    let freed = tables.freed;
    let unused = tables.doom_unused()?;
    drop(tables);
    transaction.open_table(LAST)?.insert("", begin.to.version)?;
    Ok(Ok(TakenOver { changed, freed, unused: unused.into_iter().collect() }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::record::{ImageFormat, ImageRef, StoredIndex, StoredSimilarity, Version};
    use crate::write::{Done, Put, Write};

    fn open(folder: &Path) -> Store {
        Store::open(folder, 1 << 20).unwrap()
    }

    /// One write: what it does, to which collection and item, with which contents.
    type Op = (u8, u8, u8, u8);

    fn create(name: &str) -> Write {
        let record = CollectionRecord {
            number: 0,
            model_fingerprint: "m".to_owned(),
            dimension: 1,
            similarity: StoredSimilarity::Cosine,
            index: StoredIndex::Exact,
            created_unix_ms: 0,
            next_sequence: 0,
            items: 0,
            version: Version::default(),
        };
        Write::Create { name: name.to_owned(), record }
    }

    fn apply(store: &mut Store, (what, collection, item, contents): Op) {
        let name = format!("c{}", collection % 3);
        let number = store.collections().unwrap().into_iter().find(|(other, _)| *other == name);
        let write = match what % 8 {
            0 => create(&name),
            1 => Write::Drop { name, most: (contents % 2 == 0).then_some(2) },
            2 | 3 => Write::Delete { collection: name, ids: vec![format!("i{}", item % 6), "i0".to_owned()] },
            _ => {
                let hash = ImageHash::of(&[contents % 5]);
                let image = (contents % 3 > 0).then_some(ImageRef { hash, format: ImageFormat::Png });
                let metadata = BTreeMap::from([("camera".to_owned(), contents.to_string())]);
                let item = ItemRecord { id: format!("i{}", item % 6), image, metadata };
                let number = number.map_or(0, |(_, record)| record.number);
                Write::Put(Put { collection: name, number, vector: vec![f32::from(contents)], item })
            }
        };
        let applied = store.apply(&[write], &[], &[]).unwrap();
        store.source().announce(applied.position);
        if let Some(Ok((Done::Created { record }, _))) = applied.results.first() {
            assert!(record.number > 0);
        }
    }

    /// Everything that a store holds, in words.
    fn contents(store: &mut Store) -> Vec<String> {
        let mut all = Vec::new();
        for (name, record) in store.collections().unwrap() {
            all.push(format!("{name} {record:?}"));
            for (sequence, item) in store.items(record.number).unwrap() {
                all.push(format!("{name} {sequence} {item:?}"));
            }
            let vectors = |sequences: &[u64], values: &[f32]| {
                all.push(format!("{name} {sequences:?} {values:?}"));
                Ok(())
            };
            store.vectors(record.number, vectors).unwrap();
        }
        let images: BTreeSet<ImageHash> = store.used_images().unwrap().into_iter().collect();
        all.push(format!("{images:?}"));
        all
    }

    /// Brings the replica to where the writer is; what kind of step that took, if any.
    fn follow(writer: &Store, replica: &mut Store) -> Option<bool> {
        let from = replica.position().unwrap();
        let mut reader = writer.source().step(from).unwrap()?;
        let begin = Begin::try_from(reader.begin().unwrap()).unwrap();
        let whole = begin.whole;
        let taken = replica.take_over(&begin, || Ok(Some(reader.items()?).filter(|items| !items.is_empty())));
        let used = replica.used_images().unwrap();
        assert!(taken.unwrap().unused.iter().all(|image| !used.contains(image)));
        Some(whole)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_replica_that_takes_every_step_over_has_what_the_writer_has(
            rounds in prop::collection::vec(prop::collection::vec(any::<Op>(), 0..12), 1..6),
        ) {
            let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            let mut writer = open(folders[0].path());
            let mut replica = open(folders[1].path());
            for (number, round) in rounds.into_iter().enumerate() {
                let wrote = !round.is_empty();
                for op in round {
                    apply(&mut writer, op);
                }
                let whole = follow(&writer, &mut replica);
                prop_assert!(whole.is_none() || wrote);
                prop_assert!(number == 0 || whole != Some(true) || replica.position().unwrap().transaction > 0);
                prop_assert_eq!(contents(&mut replica), contents(&mut writer));
                prop_assert_eq!(replica.position().unwrap(), writer.position().unwrap());
                // Neither a restart nor a compaction makes it forget where it is.
                drop(replica);
                replica = open(folders[1].path());
                replica.compact().unwrap();
                prop_assert_eq!(follow(&writer, &mut replica), None);
            }
        }
    }

    #[test]
    fn a_replica_that_was_there_before_is_sent_changes_alone() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (mut writer, mut replica) = (open(folders[0].path()), open(folders[1].path()));
        apply(&mut writer, (0, 0, 0, 0));
        apply(&mut writer, (4, 0, 1, 1));
        assert_eq!(follow(&writer, &mut replica), Some(true));
        apply(&mut writer, (4, 0, 2, 2));
        apply(&mut writer, (2, 0, 1, 0));
        writer.compact().unwrap();
        assert_eq!(follow(&writer, &mut replica), Some(false));
        assert_eq!(contents(&mut replica), contents(&mut writer));
        // A replica that becomes the writer goes on from there, and another one follows it with changes.
        let third_folder = tempfile::tempdir().unwrap();
        let mut third = open(third_folder.path());
        follow(&writer, &mut third);
        apply(&mut replica, (4, 0, 4, 4));
        apply(&mut replica, (0, 1, 0, 0));
        assert_eq!(follow(&replica, &mut third), Some(false));
        assert_eq!(contents(&mut third), contents(&mut replica));
    }

    #[test]
    fn a_writer_that_was_restored_is_told_by_its_history() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let mut writer = open(folders[0].path());
        let mut replica = open(folders[1].path());
        apply(&mut writer, (0, 0, 0, 0));
        apply(&mut writer, (4, 0, 1, 1));
        drop(writer);
        let copy = std::fs::read(folders[0].path().join("gallery.redb")).unwrap();
        let mut writer = open(folders[0].path());
        for number in 2..6 {
            apply(&mut writer, (4, 0, number, number));
        }
        follow(&writer, &mut replica);
        drop(writer);
        for later in [2, 9] {
            // Fewer transactions than before, then as many and more, under the same numbers.
            std::fs::write(folders[0].path().join("gallery.redb"), &copy).unwrap();
            let mut writer = open(folders[0].path());
            for number in 0..later {
                apply(&mut writer, (4, 0, number, 10 + number));
            }
            assert_eq!(follow(&writer, &mut replica), Some(true), "{later}");
            assert_eq!(contents(&mut replica), contents(&mut writer));
        }
    }

    #[test]
    fn a_step_that_is_cut_off_changes_nothing() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (mut writer, mut replica) = (open(folders[0].path()), open(folders[1].path()));
        apply(&mut writer, (0, 0, 0, 0));
        apply(&mut writer, (4, 0, 1, 1));
        follow(&writer, &mut replica);
        let (before, at) = (contents(&mut replica), replica.position().unwrap());
        apply(&mut writer, (4, 0, 2, 2));
        let mut reader = writer.source().step(at).unwrap().unwrap();
        let begin = Begin::try_from(reader.begin().unwrap()).unwrap();
        let mut parts = 0;
        let cut_off = replica.take_over(&begin, || {
            parts += 1;
            if parts == 1 { reader.items().map(Some) } else { Err(broken("it was cut off")) }
        });
        assert!(cut_off.is_err());
        assert_eq!((contents(&mut replica), replica.position().unwrap()), (before, at));
        follow(&writer, &mut replica);
        assert_eq!(contents(&mut replica), contents(&mut writer));
    }

    #[test]
    fn a_replica_that_lacks_more_than_the_log_has_is_sent_everything() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (mut writer, mut replica) = (open(folders[0].path()), open(folders[1].path()));
        apply(&mut writer, (0, 0, 0, 0));
        apply(&mut writer, (4, 0, 1, 1));
        follow(&writer, &mut replica);
        // As a version without a log would have left it.
        let at = writer.position().unwrap();
        let database = writer.database().unwrap();
        let transaction = database.begin_write().unwrap();
        Tables::open(&transaction, false)
            .unwrap()
            .restart_log(Position { transaction: at.transaction + 5, ..at })
            .unwrap();
        transaction.commit().unwrap();
        drop(database);
        assert_eq!(follow(&writer, &mut replica), Some(true));
        assert_eq!(contents(&mut replica), contents(&mut writer));
    }
}
