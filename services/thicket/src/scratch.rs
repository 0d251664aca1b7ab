use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Temporary folders of this run. They outlive the work, however it ends, and go when this is dropped: work that was
/// interrupted may write until its threads have stopped.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    folders: Mutex<Vec<PathBuf>>,
}

impl Scratch {
    /// Makes a folder.
    ///
    /// # Errors
    /// Where the system's temporary folder cannot be written.
    pub(crate) fn folder(&self) -> std::io::Result<PathBuf> {
        let folder = tempfile::Builder::new().prefix("thicket-").tempdir()?.keep();
        self.folders.lock().unwrap_or_else(PoisonError::into_inner).push(folder.clone());
        Ok(folder)
    }

    /// Removes everything now. What cannot be removed is left to the system.
    pub(crate) fn clear(&self) {
        let folders = std::mem::take(&mut *self.folders.lock().unwrap_or_else(PoisonError::into_inner));
        folders.iter().for_each(|folder| remove(folder));
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Moves the folder aside and puts a file in its place while its content goes: a thread of interrupted work that still
/// runs then fails at whatever it does below it, where it could otherwise make the folder anew.
fn remove(folder: &Path) {
    let aside = folder.with_extension("gone");
    while std::fs::rename(folder, &aside).is_ok() {
        let closed = std::fs::File::create_new(folder).is_ok();
        let removed = std::fs::remove_dir_all(&aside).is_ok();
        if closed {
            let _ = std::fs::remove_file(folder);
        }
        if closed || !removed {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_there_until_the_owner_goes() {
        let scratch = Scratch::default();
        let folders = [scratch.folder().unwrap(), scratch.folder().unwrap()];
        std::fs::write(folders[0].join("file"), "text").unwrap();
        assert!(folders.iter().all(|folder| folder.is_dir()));
        drop(scratch);
        assert!(!folders.iter().any(|folder| folder.exists()));
    }
}
