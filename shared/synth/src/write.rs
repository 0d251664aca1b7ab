//! The benchmark as files, in the CUHK-PEDES layout.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use image::ImageEncoder;
use image::codecs::png::PngEncoder;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::benchmark::{Benchmark, Split, View};
use crate::render::render;
use crate::schema::SLOTS;

/// How far [`write()`] has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Images written.
    pub done: usize,
    /// Images to write.
    pub total: usize,
}

/// Why the benchmark could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The target exists and is not an empty folder.
    #[error("{} exists and is not an empty folder", path.display())]
    NotEmpty {
        /// The folder `CUHK-PEDES` under the given one.
        path: PathBuf,
    },
    /// The disk or the quota is full.
    #[error("no space left while writing {}", path.display())]
    DiskFull {
        /// The file that did not fit.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Any other failure of the file system.
    #[error("cannot write {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An image or document could not be encoded.
    #[error("cannot encode {}: {reason}", path.display())]
    Encode {
        /// The file it was meant for.
        path: PathBuf,
        /// What the encoder said.
        reason: String,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => WriteError::DiskFull { path, source },
        _ => WriteError::Io { path, source },
    }
}

fn ensure_empty(path: &Path) -> Result<(), WriteError> {
    match fs::read_dir(path) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(WriteError::NotEmpty { path: path.to_owned() });
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(WriteError::NotEmpty { path: path.to_owned() })
        }
        Err(error) => Err(io_error(path)(error)),
    }
}

fn record(view: &View) -> Value {
    let texts: Vec<&str> = view.captions.iter().map(|(_, caption)| caption.text.as_str()).collect();
    let tokens: Vec<Vec<String>> = texts
        .iter()
        .map(|text| {
            text.split_whitespace()
                .map(|word| word.trim_matches([',', '.']).to_lowercase())
                .filter(|word| !word.is_empty())
                .collect()
        })
        .collect();
    json!({
        "split": view.split.name(),
        "captions": texts,
        "file_path": view.file_path,
        "processed_tokens": tokens,
        "id": view.id,
    })
}

fn value_names(index: usize, mask: u16) -> Vec<&'static str> {
    let names = SLOTS[index].values.iter().enumerate();
    names.filter(|(value, _)| mask >> value & 1 == 1).map(|(_, name)| *name).collect()
}

fn truth(view: &View) -> Value {
    let mut attributes = Map::new();
    for (index, slot) in SLOTS.iter().enumerate() {
        attributes.insert(slot.name.to_owned(), json!(view.appearance.seen_name(index)));
    }
    let captions: Vec<Value> = view
        .captions
        .iter()
        .map(|(style, caption)| {
            let claims: Vec<Value> = caption
                .claims
                .iter()
                .map(|claim| {
                    let says: Map<String, Value> = claim
                        .slots
                        .iter()
                        .map(|said| {
                            (SLOTS[said.slot].name.to_owned(), json!(value_names(said.slot, said.mask)))
                        })
                        .collect();
                    json!({"start": claim.span.start, "end": claim.span.end, "says": says})
                })
                .collect();
            json!({"witness": style, "claims": claims})
        })
        .collect();
    json!({
        "file_path": view.file_path,
        "split": view.split.name(),
        "id": view.id,
        "family": view.family,
        "facing": view.scene.facing,
        "occluder": view.scene.occluder,
        "attributes": attributes,
        "captions": captions,
    })
}

fn png(view: &View, path: &Path) -> Result<Vec<u8>, WriteError> {
    let image = render(view);
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(image.as_raw(), image.width(), image.height(), image::ExtendedColorType::Rgb8)
        .map_err(|error| WriteError::Encode { path: path.to_owned(), reason: error.to_string() })?;
    Ok(bytes)
}

/// Writes under a name of its own and renames, so that the file is there whole or not at all.
fn write_document(path: &Path, document: &Value) -> Result<(), WriteError> {
    let text = serde_json::to_vec(document)
        .map_err(|error| WriteError::Encode { path: path.to_owned(), reason: error.to_string() })?;
    let partial = path.with_extension("json.partial");
    fs::write(&partial, text).map_err(io_error(&partial))?;
    fs::rename(&partial, path).map_err(io_error(path))
}

/// Paints `splits` and writes them under `dir`:
///
/// - `CUHK-PEDES/imgs/SPLIT/ID_VIEW.png`, the images;
/// - `CUHK-PEDES/attributes.json`, the ground truth of each image;
/// - `CUHK-PEDES/reid_raw.json`, the annotation, written last: where it is, everything is.
///
/// `progress` is called from several threads, once for each image. The same benchmark gives the same bytes.
///
/// # Errors
/// When `DIR/CUHK-PEDES` has something in it, when the disk is full, or on any other failure to write. What
/// was written until then stays there, without the annotation.
pub fn write(
    dir: &Path,
    benchmark: &Benchmark,
    splits: &[Split],
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<(), WriteError> {
    let root = dir.join("CUHK-PEDES");
    ensure_empty(&root)?;
    let images = root.join("imgs");
    let splits: Vec<Split> = Split::ALL.into_iter().filter(|split| splits.contains(split)).collect();
    for split in &splits {
        let folder = images.join(split.name());
        fs::create_dir_all(&folder).map_err(io_error(&folder))?;
    }
    fs::create_dir_all(&images).map_err(io_error(&images))?;
    let views: Vec<View> = splits.iter().flat_map(|&split| benchmark.views(split)).collect();
    let done = AtomicUsize::new(0);
    views.par_iter().try_for_each(|view| {
        let path = images.join(&view.file_path);
        let bytes = png(view, &path)?;
        fs::write(&path, bytes).map_err(io_error(&path))?;
        progress(Progress { done: done.fetch_add(1, Ordering::Relaxed) + 1, total: views.len() });
        Ok::<(), WriteError>(())
    })?;
    write_document(&root.join("attributes.json"), &Value::Array(views.iter().map(truth).collect()))?;
    write_document(&root.join("reid_raw.json"), &Value::Array(views.iter().map(record).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let path = Path::new("x.png");
        let full = io_error(path)(io::Error::from(io::ErrorKind::StorageFull));
        assert!(matches!(full, WriteError::DiskFull { .. }), "{full}");
        let denied = io_error(path)(io::Error::from(io::ErrorKind::PermissionDenied));
        assert!(matches!(denied, WriteError::Io { .. }), "{denied}");
    }
}
