use std::path::Path;

use crate::HubError;

/// Refuses to begin what would not fit the disk below `folder`, which need not exist yet.
pub(crate) fn check(folder: &Path, needed: u64) -> Result<(), HubError> {
    let at = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    let at = if at.as_os_str().is_empty() { Path::new(".") } else { at };
    let statistics = rustix::fs::statvfs(at).map_err(|error| HubError::file(at, &error.into()))?;
    let free = statistics.f_bavail.saturating_mul(statistics.f_frsize);
    if needed > free {
        return Err(HubError::NoSpace { at: folder.to_path_buf(), needed, free });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_is_free_is_refused_with_both_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("a/b");
        check(&absent, 1).unwrap();
        let text = check(&absent, u64::MAX).unwrap_err().to_string();
        assert!(text.contains(&u64::MAX.to_string()) && text.contains("free"), "{text}");
    }
}
