use std::sync::Arc;

use thicket_runtime::Role;

use crate::{InstanceId, Member};

/// The members of the cluster at one moment; it never changes. Ordered by role and instance.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Members(Vec<Member>);

impl Members {
    /// These members; of two with the same role and instance the later one counts.
    pub fn new(members: impl IntoIterator<Item = Member>) -> Arc<Self> {
        let by_name: std::collections::BTreeMap<_, _> =
            members.into_iter().map(|member| ((member.role, member.instance.clone()), member)).collect();
        Arc::new(Self(by_name.into_values().collect()))
    }

    /// Those of a role, ordered by instance.
    pub fn of(&self, role: Role) -> &[Member] {
        let start = self.0.partition_point(|member| member.role < role);
        let end = self.0.partition_point(|member| member.role <= role);
        &self.0[start..end]
    }

    /// One of them.
    pub fn get(&self, role: Role, instance: &InstanceId) -> Option<&Member> {
        let members = self.of(role);
        let place = members.binary_search_by(|member| member.instance.cmp(instance)).ok()?;
        Some(&members[place])
    }

    /// All of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Member> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> IntoIterator for &'a Members {
    type Item = &'a Member;
    type IntoIter = std::slice::Iter<'a, Member>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Address;

    fn member(role: Role, instance: &str, port: u16) -> Member {
        let address = Address::parse(&format!("http://127.0.0.1:{port}")).unwrap();
        Member::new(role, InstanceId::new(instance).unwrap(), address)
    }

    #[test]
    fn members_are_found_by_role_and_instance() {
        let (b, a, gallery) =
            (member(Role::Answer, "b", 1), member(Role::Answer, "a", 2), member(Role::Gallery, "a", 3));
        let members = Members::new([b.clone(), gallery.clone(), a.clone()]);
        assert_eq!(members.of(Role::Answer), [a.clone(), b]);
        assert_eq!(members.of(Role::Gallery), std::slice::from_ref(&gallery));
        assert!(members.of(Role::Embedding).is_empty());
        assert_eq!(members.get(Role::Gallery, &gallery.instance), Some(&gallery));
        assert_eq!(members.get(Role::Coordinator, &a.instance), None);
        assert_eq!(members.len(), 3);
    }

    #[test]
    fn the_order_in_which_they_came_does_not_matter() {
        let (a, b) = (member(Role::Answer, "a", 1), member(Role::Embedding, "b", 2));
        assert_eq!(Members::new([a.clone(), b.clone()]), Members::new([b, a]));
    }

    #[test]
    fn of_two_by_the_same_name_the_later_counts() {
        let (old, new) = (member(Role::Answer, "a", 1), member(Role::Answer, "a", 2));
        assert_eq!(Members::new([old, new.clone()]).of(Role::Answer), [new]);
    }
}
