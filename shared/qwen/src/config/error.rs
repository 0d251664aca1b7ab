use std::path::{Path, PathBuf};

use serde_json::Value;

/// Largest value accepted for any size; keeps products of sizes far from overflow.
pub(super) const MAX_SIZE: usize = 1 << 24;

/// Why a `config.json` (or a file beside it) was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// The file is not the JSON that was expected.
    #[error("{} is malformed: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The cause, with the field where it is known.
        reason: String,
    },
    /// A field has a value that no such model can have, or that the weights contradict.
    #[error("{file}: {field}: {reason}")]
    Invalid {
        /// The name of the file.
        file: &'static str,
        /// The field, as a path into the file.
        field: &'static str,
        /// The rule and the actual value.
        reason: String,
    },
}

/// Reads a JSON file.
pub(crate) fn read_json(path: &Path) -> Result<Value, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|cause| ConfigError::Unreadable { path: path.to_path_buf(), reason: cause.to_string() })?;
    serde_json::from_str(&text)
        .map_err(|cause| ConfigError::Malformed { path: path.to_path_buf(), reason: cause.to_string() })
}

/// Takes a value of a file apart; the error names the field.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(value: Value, path: &Path) -> Result<T, ConfigError> {
    serde_path_to_error::deserialize(value).map_err(|cause| {
        let field = cause.path().to_string();
        let reason = cause.into_inner().to_string();
        // The path of a missing field is that of the object around it; the reason has its name.
        let reason = if field == "." { reason } else { format!("{field}: {reason}") };
        ConfigError::Malformed { path: path.to_path_buf(), reason }
    })
}

pub(super) fn invalid<T>(field: &'static str, reason: String) -> Result<T, ConfigError> {
    Err(ConfigError::Invalid { file: "config.json", field, reason })
}

pub(super) fn size(field: &'static str, value: usize) -> Result<(), ConfigError> {
    if (1..=MAX_SIZE).contains(&value) {
        Ok(())
    } else {
        invalid(field, format!("1 to {MAX_SIZE} expected, got {value}"))
    }
}

pub(super) fn divides(
    field: &'static str,
    part: usize,
    whole_field: &str,
    whole: usize,
) -> Result<(), ConfigError> {
    if whole.is_multiple_of(part) {
        Ok(())
    } else {
        invalid(field, format!("must divide {whole_field} {whole}, got {part}"))
    }
}

pub(super) fn positive_number(field: &'static str, value: f64) -> Result<(), ConfigError> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        invalid(field, format!("a positive number expected, got {value}"))
    }
}
