//! Reading a settings file field by field, so that an error can name the field.

use std::{fs, path::Path};

use serde_json::{Map, Value};

use crate::ClipError;

/// Largest value accepted for any size; keeps products of sizes far from overflow.
const MAX_SIZE: u64 = 1 << 24;

/// An object of a settings file.
pub(crate) struct Object<'a> {
    pub(crate) path: &'a Path,
    /// Where the object lies in the file, empty or with a point at its end.
    pub(crate) prefix: &'static str,
    pub(crate) values: Map<String, Value>,
}

/// Reads a file that holds one JSON object.
pub(crate) fn read(path: &Path) -> Result<Object<'_>, ClipError> {
    let text = fs::read_to_string(path)
        .map_err(|cause| ClipError::File { path: path.to_path_buf(), reason: cause.to_string() })?;
    let refuse = |reason| ClipError::Options { path: path.to_path_buf(), field: "file".to_owned(), reason };
    match serde_json::from_str(&text).map_err(|cause| refuse(cause.to_string()))? {
        Value::Object(values) => Ok(Object { path, prefix: "", values }),
        _ => Err(refuse("is not a JSON object".to_owned())),
    }
}

impl<'a> Object<'a> {
    /// The value of a field, `None` where it is missing or null.
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.values.get(field).filter(|value| !value.is_null())
    }

    /// The object of a field, `None` where it is missing or null. `prefix` is the field with a point behind it.
    pub(crate) fn object(&self, field: &str, prefix: &'static str) -> Result<Option<Object<'a>>, ClipError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(values)) => {
                Ok(Some(Object { path: self.path, prefix, values: values.clone() }))
            }
            Some(other) => Err(self.refuse(field, format!("{other} is not an object"))),
        }
    }

    pub(crate) fn refuse(&self, field: &str, reason: impl Into<String>) -> ClipError {
        ClipError::Options { path: self.path.to_path_buf(), field: self.name(field), reason: reason.into() }
    }

    /// The field as a path into the file.
    pub(crate) fn name(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }

    pub(crate) fn count(&self, field: &str, default: usize) -> Result<usize, ClipError> {
        self.get(field).map_or(Ok(default), |value| self.as_count(field, value))
    }

    /// A value of this field as a size.
    pub(crate) fn as_count(&self, field: &str, value: &Value) -> Result<usize, ClipError> {
        value
            .as_u64()
            .filter(|count| (1..=MAX_SIZE).contains(count))
            .and_then(|count| usize::try_from(count).ok())
            .ok_or_else(|| self.refuse(field, format!("{value} is not a whole number from 1 to {MAX_SIZE}")))
    }

    pub(crate) fn number(&self, field: &str, default: f64) -> Result<f64, ClipError> {
        self.get(field).map_or(Ok(default), |value| {
            value.as_f64().ok_or_else(|| self.refuse(field, format!("{value} is not a number")))
        })
    }

    pub(crate) fn flag(&self, field: &str, default: bool) -> Result<bool, ClipError> {
        self.get(field).map_or(Ok(default), |value| {
            value.as_bool().ok_or_else(|| self.refuse(field, format!("{value} is neither true nor false")))
        })
    }

    pub(crate) fn text(&self, field: &str) -> Result<Option<&str>, ClipError> {
        self.get(field)
            .map(|value| value.as_str().ok_or_else(|| self.refuse(field, format!("{value} is not a string"))))
            .transpose()
    }
}
