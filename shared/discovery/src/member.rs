use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use thicket_runtime::Role;

use crate::shown;
use crate::{Address, AddressError};

/// Version of the form of a registration. Fields may be added under the same number: a reader passes over those that it
/// does not know.
pub const PROTOCOL: u32 = 1;
/// Most bytes of an encoded registration.
pub const MAX_VALUE_BYTES: usize = 64 << 10;
/// Most bytes of an instance's name.
pub const MAX_INSTANCE_BYTES: usize = 64;
/// Most bytes of a fingerprint.
pub const MAX_FINGERPRINT_BYTES: usize = 256;
/// Most adapters, and most collections, that a registration names.
pub const MAX_NAMES: usize = 1024;
/// Most bytes of the name of an adapter or a collection.
pub const MAX_NAME_BYTES: usize = 255;
/// Most calls that a member may say it works on at a time.
pub const MAX_CAPACITY: u32 = 1 << 20;

/// Name of one running process among those of its role: 1 to 64 letters, digits, dots, colons, hyphens and underscores.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(String);

impl InstanceId {
    /// A name of one's own, such as a pod's, which the next process under it takes over.
    ///
    /// # Errors
    /// [`MemberError::Length`] or [`MemberError::Characters`].
    pub fn new(name: &str) -> Result<Self, MemberError> {
        check_length("instance", name, MAX_INSTANCE_BYTES)?;
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b':' | b'-' | b'_');
        if !name.bytes().all(fits) {
            return Err(MemberError::Characters { field: "instance", value: shown(name) });
        }
        Ok(Self(name.to_owned()))
    }

    /// A name that no other process has.
    pub fn random() -> Self {
        Self(uuid::Uuid::now_v7().to_string())
    }

    /// The name of a member that has none of its own: its host and port.
    pub(crate) fn of_address(address: &Address) -> Self {
        Self(address.authority().replace(['[', ']'], ""))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for InstanceId {
    type Err = MemberError;

    fn from_str(name: &str) -> Result<Self, MemberError> {
        Self::new(name)
    }
}

/// One process of the cluster, as it describes itself to the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// What it does.
    pub role: Role,
    /// Which of its role it is.
    pub instance: InstanceId,
    /// Where it is called.
    pub address: Address,
    /// Fingerprint of its model, at most [`MAX_FINGERPRINT_BYTES`]; `None` where it has none or it is not known.
    pub fingerprint: Option<String>,
    /// Names of its loaded adapters, at most [`MAX_NAMES`], none twice.
    pub adapters: Vec<String>,
    /// Names of its collections, at most [`MAX_NAMES`], none twice.
    pub collections: Vec<String>,
    /// How many calls it works on at a time, 1 to [`MAX_CAPACITY`]: its weight among equals.
    pub capacity: u32,
    /// False where it answers reads alone, as a read replica of a gallery does.
    pub writable: bool,
}

/// Why a registration is ignored, or cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// The key is not `<prefix>/v1/members/<role>/<instance>`.
    #[error("key `{key}` does not name a role and an instance")]
    Key {
        /// The key, cut short.
        key: String,
    },
    /// The value says something else than its key.
    #[error("{field} is `{value}` in the value and `{key}` in the key")]
    Contradiction {
        /// `role` or `instance`.
        field: &'static str,
        /// What the key says.
        key: String,
        /// What the value says.
        value: String,
    },
    /// The value is too large.
    #[error("the registration has {actual} bytes, the limit is {limit}")]
    Size {
        /// [`MAX_VALUE_BYTES`].
        limit: usize,
        /// Its bytes.
        actual: usize,
    },
    /// The value is not the JSON of a registration.
    #[error("the registration is not the JSON expected: {reason}")]
    Json {
        /// What the parser says, cut short.
        reason: String,
    },
    /// The value is of another version.
    #[error("protocol is {actual}, this version reads {PROTOCOL}")]
    Protocol {
        /// The version of the value.
        actual: u32,
    },
    /// The value names no role of ours.
    #[error("role `{actual}` is not known")]
    Role {
        /// What it names, cut short.
        actual: String,
    },
    /// The address cannot be used.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A text is empty or too long.
    #[error("{field} has {actual} bytes, allowed are 1 to {limit}")]
    Length {
        /// Which field.
        field: &'static str,
        /// Most bytes.
        limit: usize,
        /// Its bytes.
        actual: usize,
    },
    /// A list is too long.
    #[error("{field} has {actual} entries, the limit is {limit}")]
    Count {
        /// Which field.
        field: &'static str,
        /// Most entries.
        limit: usize,
        /// Its entries.
        actual: usize,
    },
    /// A text has characters that are not allowed in it.
    #[error("{field} `{value}` has characters that are not allowed in it")]
    Characters {
        /// Which field.
        field: &'static str,
        /// The text, cut short.
        value: String,
    },
    /// A list names something twice.
    #[error("{field} names `{value}` twice")]
    Twice {
        /// Which field.
        field: &'static str,
        /// What it names, cut short.
        value: String,
    },
    /// The capacity is out of range.
    #[error("capacity is {actual}, allowed are 1 to {MAX_CAPACITY}")]
    Capacity {
        /// What was given.
        actual: u32,
    },
    /// There are more registrations than are kept.
    #[error("there are more than {limit} registrations")]
    TooMany {
        /// [`crate::MAX_REGISTRATIONS`].
        limit: usize,
    },
}

impl MemberError {
    /// The cause in one word of a fixed set, for a metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Key { .. } | Self::Contradiction { .. } => "key",
            Self::Size { .. } => "size",
            Self::Json { .. } => "json",
            Self::Protocol { .. } => "protocol",
            Self::Role { .. } => "role",
            Self::Address(_) => "address",
            Self::TooMany { .. } => "too_many",
            Self::Length { .. }
            | Self::Count { .. }
            | Self::Characters { .. }
            | Self::Twice { .. }
            | Self::Capacity { .. } => "field",
        }
    }
}

/// A registration as it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    protocol: u32,
    role: String,
    instance: String,
    address: String,
    #[serde(default)]
    fingerprint: Option<String>,
    #[serde(default)]
    adapters: Vec<String>,
    #[serde(default)]
    collections: Vec<String>,
    capacity: u32,
    /// Members of before there were others take writes.
    #[serde(default = "yes")]
    writable: bool,
}

fn yes() -> bool {
    true
}

/// The one field that every version has.
#[derive(Deserialize)]
struct Version {
    protocol: u32,
}

impl Member {
    /// A member without model, adapters and collections, that works on one call at a time.
    pub fn new(role: Role, instance: InstanceId, address: Address) -> Self {
        Self {
            role,
            instance,
            address,
            fingerprint: None,
            adapters: Vec::new(),
            collections: Vec::new(),
            capacity: 1,
            writable: true,
        }
    }

    /// The JSON that is registered.
    ///
    /// # Errors
    /// [`MemberError`] for a field out of its limits, or [`MemberError::Size`] where all of them together are too much.
    pub fn encode(&self) -> Result<Vec<u8>, MemberError> {
        self.check()?;
        let stored = Stored {
            protocol: PROTOCOL,
            role: self.role.name().to_owned(),
            instance: self.instance.0.clone(),
            address: self.address.to_string(),
            fingerprint: self.fingerprint.clone(),
            adapters: self.adapters.clone(),
            collections: self.collections.clone(),
            capacity: self.capacity,
            writable: self.writable,
        };
        let value = serde_json::to_vec(&stored).map_err(|error| not_json(&error))?;
        check_size(&value)?;
        Ok(value)
    }

    /// Reads what was registered, and holds it to the same limits.
    ///
    /// # Errors
    /// [`MemberError`] for anything that [`Member::encode`] would not have written, but for fields that are not known.
    pub fn decode(value: &[u8]) -> Result<Self, MemberError> {
        check_size(value)?;
        let version: Version = serde_json::from_slice(value).map_err(|error| not_json(&error))?;
        if version.protocol != PROTOCOL {
            return Err(MemberError::Protocol { actual: version.protocol });
        }
        let stored: Stored = serde_json::from_slice(value).map_err(|error| not_json(&error))?;
        let role = Role::named(&stored.role);
        let member = Self {
            role: role.ok_or_else(|| MemberError::Role { actual: shown(&stored.role) })?,
            instance: InstanceId::new(&stored.instance)?,
            address: Address::parse(&stored.address)?,
            fingerprint: stored.fingerprint,
            adapters: stored.adapters,
            collections: stored.collections,
            capacity: stored.capacity,
            writable: stored.writable,
        };
        member.check()?;
        Ok(member)
    }

    fn check(&self) -> Result<(), MemberError> {
        if let Some(fingerprint) = &self.fingerprint {
            check_text("fingerprint", fingerprint, MAX_FINGERPRINT_BYTES)?;
        }
        check_names("adapters", &self.adapters)?;
        check_names("collections", &self.collections)?;
        if !(1..=MAX_CAPACITY).contains(&self.capacity) {
            return Err(MemberError::Capacity { actual: self.capacity });
        }
        Ok(())
    }
}

fn not_json(error: &serde_json::Error) -> MemberError {
    MemberError::Json { reason: shown(&error.to_string()) }
}

fn check_size(value: &[u8]) -> Result<(), MemberError> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(MemberError::Size { limit: MAX_VALUE_BYTES, actual: value.len() });
    }
    Ok(())
}

fn check_length(field: &'static str, text: &str, limit: usize) -> Result<(), MemberError> {
    if text.is_empty() || text.len() > limit {
        return Err(MemberError::Length { field, limit, actual: text.len() });
    }
    Ok(())
}

fn check_text(field: &'static str, text: &str, limit: usize) -> Result<(), MemberError> {
    check_length(field, text, limit)?;
    if text.chars().any(char::is_control) {
        return Err(MemberError::Characters { field, value: shown(text) });
    }
    Ok(())
}

fn check_names(field: &'static str, names: &[String]) -> Result<(), MemberError> {
    if names.len() > MAX_NAMES {
        return Err(MemberError::Count { field, limit: MAX_NAMES, actual: names.len() });
    }
    let mut seen = HashSet::new();
    for name in names {
        check_text(field, name, MAX_NAME_BYTES)?;
        if !seen.insert(name) {
            return Err(MemberError::Twice { field, value: shown(name) });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn stored() -> Value {
        json!({
            "protocol": 1, "role": "answer", "instance": "answer-0", "address": "http://10.0.0.3:7703",
            "fingerprint": "ab12", "adapters": ["cuhk"], "collections": [], "capacity": 32,
        })
    }

    fn with(field: &str, value: Value) -> Vec<u8> {
        let mut stored = stored();
        stored[field] = value;
        stored.to_string().into_bytes()
    }

    fn reason(value: &[u8]) -> &'static str {
        let error = Member::decode(value).unwrap_err();
        let line = error.to_string();
        assert!(line.lines().count() == 1 && line.len() < 500, "{line}");
        error.reason()
    }

    #[test]
    fn a_registration_is_read_field_by_field() {
        let member = Member::decode(stored().to_string().as_bytes()).unwrap();
        assert_eq!(member.role, Role::Answer);
        assert_eq!(member.instance.as_str(), "answer-0");
        assert_eq!(member.address.to_string(), "http://10.0.0.3:7703");
        assert_eq!(member.fingerprint.as_deref(), Some("ab12"));
        assert_eq!(member.adapters, ["cuhk"]);
        assert!(member.collections.is_empty());
        assert_eq!(member.capacity, 32);
    }

    #[test]
    fn a_field_of_a_later_version_of_the_same_protocol_is_passed_over() {
        assert!(Member::decode(&with("zone", json!({"name": "north"}))).is_ok());
    }

    #[test]
    fn another_protocol_is_told_before_what_it_lacks() {
        assert_eq!(Member::decode(br#"{"protocol":2}"#), Err(MemberError::Protocol { actual: 2 }));
    }

    #[test]
    fn each_kind_of_garbage_has_its_reason() {
        for garbage in [&b""[..], b"garbage", b"[]", b"{}", b"null", b"\xff\xfe", br#"{"protocol":1}"#] {
            assert_eq!(reason(garbage), "json", "{garbage:?}");
        }
        assert_eq!(reason(&with("protocol", json!(-1))), "json");
        assert_eq!(reason(&with("protocol", json!(0))), "protocol");
        assert_eq!(reason(&with("role", json!("chef"))), "role");
        assert_eq!(reason(&with("instance", json!("a/b"))), "field");
        assert_eq!(reason(&with("instance", json!("a".repeat(65)))), "field");
        assert_eq!(reason(&with("address", json!("10.0.0.3"))), "address");
        assert_eq!(reason(&with("fingerprint", json!(""))), "field");
        assert_eq!(reason(&with("fingerprint", json!("a".repeat(257)))), "field");
        assert_eq!(reason(&with("adapters", json!(["a", "a"]))), "field");
        assert_eq!(reason(&with("adapters", json!(["a\nb"]))), "field");
        assert_eq!(reason(&with("adapters", json!("x".repeat(20_000)))), "json");
        assert_eq!(reason(&with("collections", json!(vec!["a"; 1025]))), "field");
        assert_eq!(reason(&with("collections", json!(["a".repeat(256)]))), "field");
        assert_eq!(reason(&with("capacity", json!(0))), "field");
        assert_eq!(reason(&with("capacity", json!(MAX_CAPACITY + 1))), "field");
        assert_eq!(reason(&vec![b' '; MAX_VALUE_BYTES + 1]), "size");
    }

    #[test]
    fn deep_nesting_does_not_exhaust_the_stack() {
        let deep = format!(r#"{{"zone":{}"#, "[".repeat(MAX_VALUE_BYTES - 10));
        assert_eq!(reason(deep.as_bytes()), "json");
    }

    #[test]
    fn fields_that_fit_one_by_one_may_be_too_much_together() {
        let mut member = Member::decode(stored().to_string().as_bytes()).unwrap();
        member.collections = (0..MAX_NAMES).map(|n| format!("{n:0>255}")).collect();
        assert!(matches!(member.encode(), Err(MemberError::Size { .. })));
    }

    fn members() -> impl Strategy<Value = Member> {
        let names = || proptest::collection::hash_set("[^\\p{Cc}]{1,20}", 0..12).prop_map(Vec::from_iter);
        let address = prop_oneof![
            ("[a-z][a-z0-9-]{0,20}", 1..=u16::MAX).prop_map(|(host, port)| format!("http://{host}:{port}")),
            (any::<[u8; 4]>(), 1..=u16::MAX)
                .prop_filter("nobody can call 0.0.0.0", |(ip, _)| *ip != [0; 4])
                .prop_map(|(ip, port)| format!("https://{}:{port}", std::net::Ipv4Addr::from(ip))),
        ];
        let fields = (
            proptest::sample::select(&Role::ALL[..]),
            "[A-Za-z0-9._:-]{1,64}",
            address,
            proptest::option::of("[0-9a-f]{1,256}"),
            names(),
            names(),
            (1..=MAX_CAPACITY, any::<bool>()),
        );
        fields.prop_map(
            |(role, instance, address, fingerprint, adapters, collections, (capacity, writable))| Member {
                role,
                instance: InstanceId::new(&instance).unwrap(),
                address: Address::parse(&address).unwrap(),
                fingerprint,
                adapters,
                collections,
                capacity,
                writable,
            },
        )
    }

    #[test]
    fn a_member_that_does_not_say_so_takes_writes() {
        assert!(Member::decode(stored().to_string().as_bytes()).unwrap().writable);
        assert!(!Member::decode(&with("writable", json!(false))).unwrap().writable);
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(member in members()) {
            prop_assert_eq!(Member::decode(&member.encode().unwrap()), Ok(member));
        }

        #[test]
        fn no_bytes_panic(value in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Member::decode(&value);
        }

        #[test]
        fn a_damaged_registration_is_read_or_refused(
            member in members(),
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut value = member.encode().unwrap();
            for (place, byte) in damage {
                let place = place.index(value.len());
                value[place] = byte;
            }
            if let Ok(read) = Member::decode(&value) {
                prop_assert_eq!(Member::decode(&read.encode().unwrap()), Ok(read));
            }
        }
    }
}
