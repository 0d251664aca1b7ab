//! Places at which a test has the process die, to see what the next start makes of what is left.
//!
//! Nothing but a caller in the same process can arm one; a place that is not armed costs a load.

use std::fs::{File, OpenOptions};
use std::ops::Bound;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, Builder, Database, DatabaseError, StorageBackend};

struct Armed {
    place: String,
    left: AtomicU64,
}

static ARMED: OnceLock<Armed> = OnceLock::new();

/// Has the process die, as by SIGKILL, when it comes to a place for the `hit`-th time, from 1. For tests: once a process.
#[doc(hidden)]
pub fn arm(place: &str, hit: u64) {
    let armed = Armed { place: place.to_owned(), left: AtomicU64::new(hit) };
    assert!(ARMED.set(armed).is_ok(), "a process can die but once");
}

/// A place at which the process may die.
pub(crate) fn at(place: &'static str) {
    let Some(armed) = ARMED.get() else { return };
    if armed.place == place && armed.left.fetch_sub(1, Ordering::SeqCst) == 1 {
        // No destructor, no exit handler, no flush.
        std::process::abort();
    }
}

/// Opens a store's file, whose every operation is a place where an armed process may die.
pub(crate) fn open(builder: &Builder, path: &Path) -> Result<Database, DatabaseError> {
    if ARMED.get().is_none() {
        return builder.create(path);
    }
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file: File = file.map_err(|cause| DatabaseError::Storage(cause.into()))?;
    builder.create_with_backend(FragileFile(FileBackend::new(file)?))
}

/// The file of a store in an armed process.
#[derive(Debug)]
struct FragileFile(FileBackend);

impl StorageBackend for FragileFile {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        at("file.resize");
        self.0.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        at("file.sync");
        self.0.sync_data()?;
        at("file.synced");
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        at("file.write");
        // A page may be half written.
        let (first, rest) = data.split_at(data.len() / 2);
        self.0.write(offset, first)?;
        at("file.torn");
        self.0.write(offset + first.len() as u64, rest)
    }

    fn close(&self) -> std::io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}
