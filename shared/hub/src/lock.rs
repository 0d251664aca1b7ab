use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

use crate::HubError;

/// A lock file that is held; other processes that ask for it wait. It stays on disk when it is given up, because a file
/// that is removed while another process waits for it locks nothing.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock at `path`; where another process holds it, calls `waiting` once and waits.
    pub(crate) fn take(path: &Path, waiting: impl FnOnce()) -> Result<Self, HubError> {
        let failed = |error: std::io::Error| HubError::file(path, &error);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| HubError::file(folder, &error))?;
        }
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock().map_err(failed)?;
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        Ok(Self { _file: file })
    }
}
