//! Takes deleted bytes out of the file of an embedded store.
//!
//! redb never overwrites a page in place: what is deleted stays in pages that are free, at the end of pages that are not
//! full, and beyond, until they are used again. Its own compaction moves pages together, which makes the file smaller and
//! promises nothing about what is in the free pages that are left. So the records are copied into a new file, which has
//! seen nothing else, and that file takes the place of the old one.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use redb::{
    Database, DatabaseError, Key, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, Value,
    WriteTransaction,
};

/// Copies what `old`, the database in the file `path`, holds into a new file and puts that in its place, whole or not at
/// all: also in a crash, `path` is the old file or the new one, either of them complete.
///
/// `create` makes a database in a new file; `copy` copies every table that is to stay, see [`copy_table`]. The caller
/// goes on with the database that comes back and drops the old one, whose file is then freed. There is no moment at which
/// the file at `path` is not locked.
///
/// # Errors
/// What stopped it, a full disk among others; then nothing was changed.
pub fn compact(
    old: &Database,
    path: &Path,
    create: impl FnOnce(&Path) -> Result<Database, DatabaseError>,
    copy: impl FnOnce(&ReadTransaction, &WriteTransaction) -> Result<(), redb::Error>,
) -> Result<Database, redb::Error> {
    remove_unfinished(path).map_err(redb::Error::Io)?;
    let unfinished = unfinished(path);
    let copied = copy_all(old, &unfinished, create, copy)
        .and_then(|new| std::fs::rename(&unfinished, path).map(|()| new).map_err(redb::Error::Io));
    match copied {
        Ok(new) => {
            // Without it a crash may bring the old file back, which is complete, too: no reason to go on with that one.
            if let Err(error) = sync_folder(path) {
                tracing::warn!(file = %path.display(), %error, "a compacted store may be undone by a crash");
            }
            Ok(new)
        }
        Err(cause) => {
            // A full disk must not stay full because of this file.
            let _ = std::fs::remove_file(&unfinished);
            Err(cause)
        }
    }
}

/// Removes what a crash in [`compact`] may have left beside the store in the file `path`. To be called once that file is
/// locked.
///
/// # Errors
/// Where a file is there and cannot be removed.
pub fn remove_unfinished(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(unfinished(path)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Copies the records of a table whose key `keep` accepts.
///
/// # Errors
/// Where one of the stores fails or the table is not there.
pub fn copy_table<K: Key + 'static, V: Value + 'static>(
    from: &ReadTransaction,
    to: &WriteTransaction,
    table: TableDefinition<'_, K, V>,
    mut keep: impl FnMut(K::SelfType<'_>) -> bool,
) -> Result<(), redb::Error> {
    let source = from.open_table(table)?;
    let mut target = to.open_table(table)?;
    for entry in source.iter()? {
        let (key, value) = entry?;
        if keep(key.value()) {
            target.insert(key.value(), value.value())?;
        }
    }
    Ok(())
}

fn copy_all(
    old: &Database,
    unfinished: &Path,
    create: impl FnOnce(&Path) -> Result<Database, DatabaseError>,
    copy: impl FnOnce(&ReadTransaction, &WriteTransaction) -> Result<(), redb::Error>,
) -> Result<Database, redb::Error> {
    let new = create(unfinished)?;
    let from = old.begin_read()?;
    let mut to = new.begin_write()?;
    // A crash must not cost a walk over everything at the next start.
    to.set_quick_repair(true);
    copy(&from, &to)?;
    to.commit()?;
    Ok(new)
}

fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("unfinished")
}

fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: TableDefinition<'_, u64, &str> = TableDefinition::new("words");
    const COUNTS: TableDefinition<'_, &str, u64> = TableDefinition::new("counts");

    fn create(path: &Path) -> Result<Database, DatabaseError> {
        Database::create(path)
    }

    /// A thousand words of which one in ten is left.
    fn store(path: &Path) -> Database {
        let database = create(path).unwrap();
        for hundred in 0..10 {
            let transaction = database.begin_write().unwrap();
            {
                let mut words = transaction.open_table(WORDS).unwrap();
                for number in hundred * 100..(hundred + 1) * 100 {
                    words.insert(number, word(number).as_str()).unwrap();
                }
                transaction.open_table(COUNTS).unwrap().insert("words", 100 * (hundred + 1)).unwrap();
            }
            transaction.commit().unwrap();
        }
        let transaction = database.begin_write().unwrap();
        transaction.open_table(WORDS).unwrap().retain(|number, _| number.is_multiple_of(10)).unwrap();
        transaction.commit().unwrap();
        database
    }

    fn word(number: u64) -> String {
        format!("<word {number}>{}", "-".repeat(60))
    }

    fn copy(from: &ReadTransaction, to: &WriteTransaction) -> Result<(), redb::Error> {
        copy_table(from, to, WORDS, |_| true)?;
        copy_table(from, to, COUNTS, |_| true)
    }

    /// Numbers of the words whose bytes are in a file.
    fn in_file(path: &Path) -> Vec<u64> {
        let bytes = std::fs::read(path).unwrap();
        let holds = |number: &u64| {
            let word = format!("<word {number}>");
            bytes.windows(word.len()).any(|window| window == word.as_bytes())
        };
        (0..1000).step_by(37).chain((0..1000).step_by(70)).filter(holds).collect()
    }

    fn held(database: &Database) -> Vec<(u64, String)> {
        let table = database.begin_read().unwrap().open_table(WORDS).unwrap();
        let entries = table.iter().unwrap().map(|entry| entry.unwrap());
        entries.map(|(number, word)| (number.value(), word.value().to_owned())).collect()
    }

    #[test]
    fn what_was_deleted_leaves_the_file_and_the_rest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.redb");
        let old = store(&path);
        let before = held(&old);
        assert!(
            in_file(&path).iter().any(|number| !number.is_multiple_of(10)),
            "or there is nothing to take out"
        );
        let new = compact(&old, &path, create, copy).unwrap();
        drop(old);
        assert_eq!(held(&new), before);
        drop(new);
        let left = in_file(&path);
        assert!(!left.is_empty() && left.iter().all(|number| number.is_multiple_of(10)), "{left:?}");
        let database = create(&path).unwrap();
        assert_eq!(held(&database), before);
        let count = database.begin_read().unwrap().open_table(COUNTS).unwrap().get("words").unwrap();
        assert_eq!(count.map(|count| count.value()), Some(1000));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing stays beside the store");
    }

    #[test]
    fn the_file_is_locked_before_and_after() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.redb");
        let old = store(&path);
        let in_use = || matches!(create(&path), Err(DatabaseError::DatabaseAlreadyOpen));
        assert!(in_use());
        let new = compact(&old, &path, create, copy).unwrap();
        assert!(in_use());
        drop(old);
        assert!(in_use());
        drop(new);
        assert!(!in_use());
    }

    #[test]
    fn a_failed_copy_changes_nothing_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.redb");
        let old = store(&path);
        let before = held(&old);
        let failing = |from: &ReadTransaction, to: &WriteTransaction| {
            copy(from, to)?;
            Err(redb::Error::Io(ErrorKind::StorageFull.into()))
        };
        assert!(compact(&old, &path, create, failing).is_err());
        assert_eq!(held(&old), before);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        drop(old);
        assert_eq!(held(&create(&path).unwrap()), before);
    }

    #[test]
    fn what_a_crash_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.redb");
        std::fs::write(unfinished(&path), b"half").unwrap();
        remove_unfinished(&path).unwrap();
        remove_unfinished(&path).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_record_that_is_not_to_be_kept_is_not_copied() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.redb");
        let old = store(&path);
        let new = compact(&old, &path, create, |from, to| {
            copy_table(from, to, WORDS, |number| number < 50)?;
            copy_table(from, to, COUNTS, |name| name != "words")
        });
        let new = new.unwrap();
        assert_eq!(held(&new).iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 10, 20, 30, 40]);
    }
}
