//! Files on disk: reading within limits, finding images, finding the sample models.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::Failure;

/// Endings of the image files that a folder is searched for.
const IMAGE_ENDINGS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// Why not, for a person.
pub(crate) fn read_at_most(path: &Path, limit: usize) -> Result<Vec<u8>, String> {
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if metadata.is_dir() {
        return Err("it is a folder".to_owned());
    }
    if metadata.len() > limit as u64 {
        return Err(format!("the file has {} bytes, the limit is {limit}", metadata.len()));
    }
    std::fs::read(path).map_err(|error| error.to_string())
}

/// The images that `paths` mean, by id, in the order of their ids: a file is itself, under its name; a folder is every
/// image below it, under its path in the folder.
///
/// # Errors
/// [`Failure::BadInput`] where a path cannot be read, two images would have one id, or there is no image.
pub(crate) fn images(paths: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>, Failure> {
    let mut found = BTreeMap::new();
    for path in paths {
        let unreadable = |error: std::io::Error| Failure::bad_input(format!("{}: {error}", path.display()));
        if std::fs::metadata(path).map_err(unreadable)?.is_dir() {
            walk(path, path, &mut found)?;
        } else {
            let name = path.file_name().unwrap_or(path.as_os_str());
            insert(&mut found, name.to_string_lossy().into_owned(), path.clone())?;
        }
    }
    if found.is_empty() {
        return Err(Failure::bad_input(format!(
            "there is no image ({}) to ingest",
            IMAGE_ENDINGS.join(", ")
        )));
    }
    Ok(found)
}

fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<(), Failure> {
    let unreadable = |error: std::io::Error| Failure::bad_input(format!("{}: {error}", folder.display()));
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let path = entry.path();
        // A link to a folder is not followed: it may lead back up.
        if entry.file_type().map_err(unreadable)?.is_dir() {
            walk(root, &path, found)?;
        } else if is_image(&path) {
            let inside = path.strip_prefix(root).unwrap_or(&path);
            insert(found, inside.to_string_lossy().into_owned(), path.clone())?;
        }
    }
    Ok(())
}

fn is_image(path: &Path) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|ending| IMAGE_ENDINGS.contains(&ending.as_str()))
}

fn insert(found: &mut BTreeMap<String, PathBuf>, id: String, path: PathBuf) -> Result<(), Failure> {
    match found.get(&id) {
        Some(first) => Err(Failure::bad_input(format!(
            "{} and {} would both have the id {id:?}: ingest them into two collections or from a common folder",
            first.display(),
            path.display()
        ))),
        None => {
            found.insert(id, path);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_searched_below_and_ids_are_paths_in_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        for name in ["b.JPG", "a/c.png", "a/notes.txt"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let found = images(&[folder.path().to_owned()]).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["a/c.png", "b.JPG"]);
    }

    #[test]
    fn two_images_with_one_id_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join("x.png"), name).unwrap();
        }
        let refused = images(&[folder.path().join("a/x.png"), folder.path().join("b/x.png")]).unwrap_err();
        assert!(refused.to_string().contains("\"x.png\""), "{refused}");
    }

    #[test]
    fn nothing_to_ingest_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(images(&[folder.path().to_owned()]).is_err());
        assert!(images(&[folder.path().join("absent")]).is_err());
    }

    #[test]
    fn a_file_over_the_limit_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, [0; 10]).unwrap();
        assert_eq!(read_at_most(&path, 10).unwrap().len(), 10);
        let refused = read_at_most(&path, 9).unwrap_err();
        assert!(refused.contains("10 bytes") && refused.contains("limit is 9"), "{refused}");
    }
}
