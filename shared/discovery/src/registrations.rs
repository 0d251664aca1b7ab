use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use thicket_runtime::Role;

use crate::keys::Prefix;
use crate::member::{InstanceId, MemberError};
use crate::members::Members;
use crate::{Member, shown};

/// Most registrations that are kept, those that are ignored included.
pub const MAX_REGISTRATIONS: usize = 4096;

/// What etcd holds below a prefix, read: the members, and what was ignored, so that it is told once.
#[derive(Debug)]
pub(crate) struct Registrations {
    prefix: Prefix,
    members: BTreeMap<(Role, InstanceId), Member>,
    /// Hash of the key (a key may be large) and the revision that was told.
    ignored: HashMap<u64, i64>,
    /// What had been ignored before the listing that is going on.
    before: HashMap<u64, i64>,
    /// Something did not fit since the last listing began.
    overflowed: bool,
    /// That something did not fit was told, and has not ended since.
    told_overflow: bool,
    hasher: RandomState,
}

/// A registration that was ignored and has not been told yet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    /// Its key, cut short.
    pub(crate) key: String,
    pub(crate) cause: MemberError,
}

impl Registrations {
    pub(crate) fn new(prefix: Prefix) -> Self {
        Self {
            prefix,
            members: BTreeMap::new(),
            ignored: HashMap::new(),
            before: HashMap::new(),
            overflowed: false,
            told_overflow: false,
            hasher: RandomState::new(),
        }
    }

    /// Forgets every registration, for a listing to follow; what was told stays told.
    pub(crate) fn relist(&mut self) {
        self.members.clear();
        self.before.extend(self.ignored.drain());
        self.overflowed = false;
    }

    /// Ends a listing.
    pub(crate) fn listed(&mut self) {
        self.before = HashMap::new();
        self.told_overflow &= self.overflowed;
    }

    /// Takes a key's value at a revision.
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8], revision: i64) -> Option<Complaint> {
        self.delete(key);
        if self.len() >= MAX_REGISTRATIONS {
            self.overflowed = true;
            let told = std::mem::replace(&mut self.told_overflow, true);
            let cause = MemberError::TooMany { limit: MAX_REGISTRATIONS };
            return (!told).then(|| Complaint { key: shown(&String::from_utf8_lossy(key)), cause });
        }
        match self.read(key, value) {
            Ok(member) => {
                self.members.insert((member.role, member.instance.clone()), member);
                None
            }
            Err(cause) => {
                let hash = self.hasher.hash_one(key);
                let told = self.before.get(&hash) == Some(&revision);
                self.ignored.insert(hash, revision);
                (!told).then(|| Complaint { key: shown(&String::from_utf8_lossy(key)), cause })
            }
        }
    }

    /// Takes the deletion of a key.
    pub(crate) fn delete(&mut self, key: &[u8]) {
        if let Ok(name) = self.prefix.read(key) {
            self.members.remove(&name);
        }
        self.ignored.remove(&self.hasher.hash_one(key));
    }

    pub(crate) fn members(&self) -> Arc<Members> {
        Members::new(self.members.values().cloned())
    }

    /// Whether something did not fit since the last listing began.
    pub(crate) fn has_overflowed(&self) -> bool {
        self.overflowed
    }

    fn len(&self) -> usize {
        self.members.len() + self.ignored.len()
    }

    fn read(&self, key: &[u8], value: &[u8]) -> Result<Member, MemberError> {
        let (role, instance) = self.prefix.read(key)?;
        let member = Member::decode(value)?;
        let contradiction = |field, key: &str, value: &str| {
            Err(MemberError::Contradiction { field, key: key.to_owned(), value: value.to_owned() })
        };
        if member.role != role {
            return contradiction("role", role.name(), member.role.name());
        }
        if member.instance != instance {
            return contradiction("instance", instance.as_str(), member.instance.as_str());
        }
        Ok(member)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Address;

    fn member(instance: &str, port: u16) -> Member {
        let address = Address::parse(&format!("http://127.0.0.1:{port}")).unwrap();
        Member::new(Role::Gallery, InstanceId::new(instance).unwrap(), address)
    }

    fn key(instance: &str) -> Vec<u8> {
        format!("/thicket/v1/members/gallery/{instance}").into_bytes()
    }

    fn registrations() -> Registrations {
        Registrations::new(Prefix::default())
    }

    #[test]
    fn a_put_adds_and_replaces_and_a_deletion_removes() {
        let mut registrations = registrations();
        let (old, new) = (member("a", 1), member("a", 2));
        assert_eq!(registrations.put(&key("a"), &old.encode().unwrap(), 1), None);
        assert_eq!(registrations.members(), Members::new([old]));
        assert_eq!(registrations.put(&key("a"), &new.encode().unwrap(), 2), None);
        assert_eq!(registrations.members(), Members::new([new]));
        registrations.delete(&key("a"));
        assert!(registrations.members().is_empty());
    }

    #[test]
    fn a_value_that_contradicts_its_key_is_ignored() {
        let mut registrations = registrations();
        let complaint = registrations.put(&key("b"), &member("a", 1).encode().unwrap(), 1).unwrap();
        assert_eq!(complaint.cause.reason(), "key");
        let answer = b"/thicket/v1/members/answer/a";
        let complaint = registrations.put(answer, &member("a", 1).encode().unwrap(), 2).unwrap();
        assert_eq!(complaint.cause.to_string(), "role is `gallery` in the value and `answer` in the key");
        assert!(registrations.members().is_empty());
    }

    #[test]
    fn garbage_takes_the_place_of_the_member_it_overwrites() {
        let mut registrations = registrations();
        registrations.put(&key("a"), &member("a", 1).encode().unwrap(), 1);
        assert!(registrations.put(&key("a"), b"garbage", 2).is_some());
        assert!(registrations.members().is_empty());
    }

    #[test]
    fn what_is_ignored_is_told_once_and_again_when_it_changes() {
        let mut registrations = registrations();
        assert!(registrations.put(&key("a"), b"garbage", 1).is_some());
        for _ in 0..3 {
            registrations.relist();
            assert_eq!(registrations.put(&key("a"), b"garbage", 1), None);
            registrations.listed();
        }
        registrations.relist();
        assert!(registrations.put(&key("a"), b"other garbage", 2).is_some());
    }

    #[test]
    fn a_listing_drops_what_it_does_not_name() {
        let mut registrations = registrations();
        registrations.put(&key("a"), &member("a", 1).encode().unwrap(), 1);
        registrations.put(&key("x"), b"garbage", 2);
        registrations.relist();
        registrations.put(&key("b"), &member("b", 2).encode().unwrap(), 3);
        registrations.listed();
        assert_eq!(registrations.members(), Members::new([member("b", 2)]));
        assert_eq!(registrations.len(), 1);
    }

    #[test]
    fn beyond_the_limit_one_complaint_stands_for_all() {
        let mut registrations = registrations();
        for n in 0..MAX_REGISTRATIONS {
            let name = n.to_string();
            assert_eq!(registrations.put(&key(&name), &member(&name, 1).encode().unwrap(), 1), None);
        }
        assert!(!registrations.has_overflowed());
        let complaint = registrations.put(&key("late"), &member("late", 1).encode().unwrap(), 2).unwrap();
        assert_eq!(complaint.cause.reason(), "too_many");
        assert_eq!(registrations.put(&key("later"), b"garbage", 3), None);
        assert!(registrations.has_overflowed());
        assert_eq!(registrations.members().len(), MAX_REGISTRATIONS);
        let known = member("7", 9);
        assert_eq!(registrations.put(&key("7"), &known.encode().unwrap(), 4), None);
        assert_eq!(registrations.members().get(Role::Gallery, &known.instance), Some(&known));
    }

    proptest! {
        /// Events in any order end in what a listing of the same keys says.
        #[test]
        fn events_and_a_listing_agree(events in proptest::collection::vec((0..4u8, 0..4u8), 0..40)) {
            let (mut followed, mut stored) = (registrations(), BTreeMap::new());
            for (revision, (name, what)) in (1..).zip(events) {
                let name = name.to_string();
                let value = match what {
                    0 => None,
                    1 => Some(b"garbage".to_vec()),
                    port => Some(member(&name, u16::from(port)).encode().unwrap()),
                };
                match value {
                    None => {
                        followed.delete(&key(&name));
                        stored.remove(&name);
                    }
                    Some(value) => {
                        followed.put(&key(&name), &value, revision);
                        stored.insert(name, (value, revision));
                    }
                }
            }
            let mut listed = registrations();
            for (name, (value, revision)) in &stored {
                listed.put(&key(name), value, *revision);
            }
            prop_assert_eq!(followed.members(), listed.members());
            prop_assert_eq!(followed.len(), listed.len());
        }
    }
}
