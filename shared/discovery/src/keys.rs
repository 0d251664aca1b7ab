use std::fmt;

use thicket_runtime::Role;

use crate::member::{InstanceId, MemberError};
use crate::shown;

/// Where the keys are unless told otherwise.
pub const DEFAULT_PREFIX: &str = "/thicket";
/// Most bytes of a prefix.
pub const MAX_PREFIX: usize = 128;

/// What the keys of one cluster in etcd begin with: `/name` or `/name/name...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(String);

/// Why something is no [`Prefix`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "etcd prefix `{prefix}` is not valid: write /name or /name/name, of letters, digits, dots, hyphens and underscores, \
     at most {MAX_PREFIX} bytes"
)]
pub struct PrefixError {
    /// What was given, cut short.
    pub prefix: String,
}

impl Prefix {
    /// Reads a prefix such as `/thicket`.
    ///
    /// # Errors
    /// [`PrefixError`] where it does not begin with a slash, ends with one, or has a part that is no plain name.
    pub fn parse(text: &str) -> Result<Self, PrefixError> {
        let fits = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
        };
        match text.strip_prefix('/') {
            Some(parts) if text.len() <= MAX_PREFIX && parts.split('/').all(fits) => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(PrefixError { prefix: shown(text) }),
        }
    }

    /// What every member's key begins with.
    pub(crate) fn members(&self) -> String {
        format!("{}/v1/members/", self.0)
    }

    /// The key of a member.
    pub(crate) fn member(&self, role: Role, instance: &InstanceId) -> String {
        format!("{}{role}/{instance}", self.members())
    }

    /// Reads the key of a member.
    pub(crate) fn read(&self, key: &[u8]) -> Result<(Role, InstanceId), MemberError> {
        let form = || MemberError::Key { key: shown(&String::from_utf8_lossy(key)) };
        let key = std::str::from_utf8(key).map_err(|_| form())?;
        let rest = key.strip_prefix(&self.members()).ok_or_else(form)?;
        let (role, instance) = rest.split_once('/').ok_or_else(form)?;
        let role = Role::named(role).ok_or_else(form)?;
        Ok((role, InstanceId::new(instance).map_err(|_| form())?))
    }
}

impl Default for Prefix {
    fn default() -> Self {
        Self(DEFAULT_PREFIX.to_owned())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let prefix = Prefix::parse("/people/north").unwrap();
        for role in Role::ALL {
            let instance = InstanceId::random();
            let key = prefix.member(role, &instance);
            assert_eq!(prefix.read(key.as_bytes()), Ok((role, instance)));
        }
    }

    #[test]
    fn the_default_prefix_is_valid() {
        assert_eq!(Prefix::parse(DEFAULT_PREFIX), Ok(Prefix::default()));
    }

    #[test]
    fn a_prefix_that_is_not_a_path_of_names_is_refused() {
        for text in [
            "",
            "/",
            "thicket",
            "/thicket/",
            "//thicket",
            "/a b",
            "/\u{e9}",
            &format!("/{}", "a".repeat(128)),
        ] {
            assert!(Prefix::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_key_of_another_form_is_refused() {
        let prefix = Prefix::default();
        for key in [
            &b"/thicket/v1/members/"[..],
            b"/thicket/v1/members/gallery",
            b"/thicket/v1/members/gallery/",
            b"/thicket/v1/members/gallery/a/b",
            b"/thicket/v1/members/chef/a",
            b"/thicket/v2/members/gallery/a",
            b"/other/v1/members/gallery/a",
            b"/thicket/v1/members/gallery/\xff",
        ] {
            assert!(matches!(prefix.read(key), Err(MemberError::Key { .. })), "{key:?}");
        }
    }

    proptest! {
        #[test]
        fn no_key_panics(tail in proptest::collection::vec(any::<u8>(), 0..80)) {
            let prefix = Prefix::default();
            let _ = prefix.read(&tail);
            let _ = prefix.read(&[prefix.members().as_bytes(), &tail].concat());
        }
    }
}
