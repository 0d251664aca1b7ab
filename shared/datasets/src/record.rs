use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::{DatasetError, Format, SplitName};

/// An image record as written: the known keys, unread; other keys are ignored.
#[derive(Debug, Deserialize)]
pub(crate) struct RawRecord {
    id: Option<Value>,
    split: Option<Value>,
    captions: Option<Value>,
    file_path: Option<Value>,
    img_path: Option<Value>,
}

/// A checked image record.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) identity: i64,
    pub(crate) split: SplitName,
    pub(crate) captions: Vec<String>,
    /// Relative, without `..`.
    pub(crate) path: PathBuf,
}

/// Parses the whole list; `file` is for messages.
pub(crate) fn parse_list(bytes: &[u8], file: &Path) -> Result<Vec<RawRecord>, DatasetError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let (file, line, column) = (file.to_owned(), error.line(), error.column());
        let reason = without_place(&error);
        match error.classify() {
            serde_json::error::Category::Data => DatasetError::NotRecords { file, line, column, reason },
            _ => DatasetError::Damaged { file, line, column, reason },
        }
    })
}

/// The parser's message without the place it appends, on one line.
fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    message.strip_suffix(&place).unwrap_or(&message).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Checks one record; `index` (from 0) and `file` are for messages.
pub(crate) fn check(
    raw: RawRecord,
    format: Format,
    index: usize,
    file: &Path,
) -> Result<Record, DatasetError> {
    let refuse = |field: &str, reason: String| DatasetError::Field {
        file: file.to_owned(),
        record: index,
        field: field.to_owned(),
        reason,
    };
    let path_key = format.path_key();
    let path_value = match path_key {
        "img_path" => raw.img_path,
        _ => raw.file_path,
    };

    let identity = match raw.id {
        None => return Err(refuse("id", "is missing".into())),
        Some(value) => value
            .as_i64()
            .filter(|id| *id >= 0)
            .ok_or_else(|| refuse("id", format!("must be an integer from 0, not {}", shown(&value))))?,
    };
    let split = SplitName::of_record(&text(raw.split, || "split".into(), &refuse)?);
    let path = text(path_value, || path_key.into(), &refuse)?;
    let captions = match raw.captions {
        None => return Err(refuse("captions", "is missing".into())),
        Some(Value::Array(captions)) => captions,
        Some(value) => {
            return Err(refuse("captions", format!("must be a list of texts, not {}", shown(&value))));
        }
    };
    let mut texts = Vec::with_capacity(captions.len());
    for (position, caption) in captions.into_iter().enumerate() {
        let field = || format!("captions[{position}]");
        let caption = text(Some(caption), field, &refuse)?;
        if caption.trim().is_empty() {
            return Err(refuse(&field(), "is empty".into()));
        }
        texts.push(caption);
    }
    let Some(path) = inside(&path) else {
        let file = file.to_owned();
        return Err(DatasetError::PathEscape { file, record: index, field: path_key, path });
    };
    Ok(Record { identity, split, captions: texts, path })
}

fn text(
    value: Option<Value>,
    field: impl Fn() -> String,
    refuse: &impl Fn(&str, String) -> DatasetError,
) -> Result<String, DatasetError> {
    match value {
        Some(Value::String(text)) => Ok(text),
        Some(value) => Err(refuse(&field(), format!("must be a text, not {}", shown(&value)))),
        None => Err(refuse(&field(), "is missing".into())),
    }
}

/// A value in a message: scalars as they are, the rest by kind.
fn shown(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(_) => "a text".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

/// The path if it names something inside its folder.
fn inside(path: &str) -> Option<PathBuf> {
    let clean = Path::new(path);
    let stays = clean.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    let names_something = clean.components().any(|part| matches!(part, Component::Normal(_)));
    (stays && names_something && !path.contains(['\0', '\\'])).then(|| clean.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_inside_the_folder_are_accepted() {
        for path in ["a.jpg", "cam_a/000_45.bmp", "./x.png", "a..b/..c.jpg"] {
            assert!(inside(path).is_some(), "{path}");
        }
        for path in ["", ".", "..", "../x.jpg", "a/../../x.jpg", "/etc/passwd", "a\0.jpg", "..\\x.jpg"] {
            assert!(inside(path).is_none(), "{path:?}");
        }
    }
}
