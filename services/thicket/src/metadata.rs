//! Key-value pairs for the images that are ingested.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::Deserialize;

use crate::upload::Upload;
use crate::{Failure, disk};

/// Most bytes of a file of metadata.
const FILE_BYTES: usize = 1 << 30;

/// One line of a file of metadata.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    metadata: HashMap<String, String>,
}

/// Metadata by id, from a file of one JSON object a line: `{"id": "a.png", "metadata": {"camera": "gate"}}`.
///
/// # Errors
/// [`Failure::BadInput`] with the line where it is none of these or names an id twice.
pub(crate) fn read(path: &Path) -> Result<BTreeMap<String, HashMap<String, String>>, Failure> {
    let refuse = |reason: String| Failure::bad_input(format!("{}: {reason}", path.display()));
    let bytes = disk::read_at_most(path, FILE_BYTES).map_err(refuse)?;
    let text = String::from_utf8(bytes).map_err(|error| refuse(error.to_string()))?;
    let mut found = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let Line { id, metadata } =
            serde_json::from_str(line).map_err(|error| refuse(format!("line {number}: {error}")))?;
        if found.contains_key(&id) {
            return Err(refuse(format!("line {number}: {id:?} is named twice")));
        }
        found.insert(id, metadata);
    }
    Ok(found)
}

/// Adds pairs to the images: `common` to all, then those of each id. The later wins where a key is there already.
///
/// # Errors
/// [`Failure::BadInput`] where `by_id` names an id that no image has.
pub(crate) fn add(
    uploads: &mut [Upload],
    common: &[(String, String)],
    mut by_id: BTreeMap<String, HashMap<String, String>>,
) -> Result<(), Failure> {
    for upload in uploads {
        upload.metadata.extend(common.iter().cloned());
        upload.metadata.extend(by_id.remove(&upload.id).unwrap_or_default());
    }
    match by_id.keys().next() {
        None => Ok(()),
        Some(id) => {
            let more = by_id.len() - 1;
            Err(Failure::bad_input(format!(
                "metadata is given for {id:?} (and {more} more), which no image has"
            )))
        }
    }
}

/// Reads `KEY=VALUE`.
///
/// # Errors
/// A line for a person.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, as in camera=gate".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(id: &str, pairs: &[(&str, &str)]) -> Upload {
        Upload { id: id.to_owned(), path: id.into(), metadata: map(pairs) }
    }

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn the_more_particular_wins() {
        let mut uploads = [upload("a", &[("split", "test")]), upload("b", &[])];
        let common = [pair("camera=gate").unwrap(), pair("split=mine").unwrap(), pair("empty=").unwrap()];
        let by_id = read(file("{\"id\":\"b\",\"metadata\":{\"camera\":\"door\"}}\n\n").path()).unwrap();
        add(&mut uploads, &common, by_id).unwrap();
        assert_eq!(uploads[0].metadata, map(&[("split", "mine"), ("camera", "gate"), ("empty", "")]));
        assert_eq!(uploads[1].metadata, map(&[("split", "mine"), ("camera", "door"), ("empty", "")]));
    }

    #[test]
    fn metadata_for_no_image_is_refused() {
        let by_id = BTreeMap::from([("ghost".to_owned(), HashMap::new())]);
        let line = add(&mut [upload("a", &[])], &[], by_id).unwrap_err().to_string();
        assert!(line.contains("\"ghost\""), "{line}");
    }

    #[test]
    fn a_bad_line_is_named() {
        let good = "{\"id\":\"a\",\"metadata\":{}}";
        for (text, part) in [
            (format!("{good}\n{{\"id\":\"b\"}}\n"), "line 2"),
            (format!("{good}\nnonsense\n"), "line 2"),
            (format!("{good}\n{good}\n"), "named twice"),
            ("{\"id\":\"a\",\"metadata\":{\"k\":1}}".to_owned(), "line 1"),
        ] {
            let line = read(file(&text).path()).unwrap_err().to_string();
            assert!(line.contains(part) && line.lines().count() == 1, "{line}");
        }
    }

    #[test]
    fn a_pair_without_a_key_or_a_sign_is_refused() {
        for text in ["camera", "=gate", ""] {
            assert!(pair(text).is_err(), "{text}");
        }
        assert_eq!(pair("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
    }
}
