use std::fmt;

/// Most bytes of a job's id.
pub const MAX_ID_BYTES: usize = 64;

/// The id of a job: 1 to [`MAX_ID_BYTES`] of `a-z`, `0-9` and hyphens, the first no hyphen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(String);

/// Why something is no [`JobId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write 1 to {MAX_ID_BYTES} of a-z, 0-9 and hyphens, the first no hyphen")]
pub struct IdError;

impl JobId {
    /// Reads an id.
    ///
    /// # Errors
    /// [`IdError`].
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_id =
            (1..=MAX_ID_BYTES).contains(&text.len()) && !text.starts_with('-') && text.bytes().all(fits);
        is_id.then(|| Self(text.to_owned())).ok_or(IdError)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_plain_name() {
        for good in ["a", "7", "nightly-2026", &"a".repeat(64)] {
            assert_eq!(JobId::parse(good).map(|id| id.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "-a", "A", "a/b", "a.b", "a b", "é", &"a".repeat(65)] {
            assert_eq!(JobId::parse(bad), Err(IdError), "{bad}");
        }
    }
}
