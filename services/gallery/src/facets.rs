//! What filters ask about items, by answer, so that no search reads the metadata of every item.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use thicket_runtime::unix_ms;

/// Metadata key of the camera.
const CAMERA: &str = "camera";
/// Metadata key of the time of capture, in RFC 3339.
pub(crate) const CAPTURED_AT: &str = "captured_at";
/// Metadata key of the tags, separated by commas.
const TAGS: &str = "tags";

type Metadata = BTreeMap<String, String>;

/// A condition on items: every part that is there must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// The camera is one of these; empty for any.
    pub(crate) cameras: Vec<String>,
    /// Captured at or after this, milliseconds since 1970-01-01 UTC.
    pub(crate) captured_from: Option<i64>,
    /// Captured before this.
    pub(crate) captured_until: Option<i64>,
    /// Each of these is among the tags.
    pub(crate) tags_all: Vec<String>,
    /// One of these is among the tags; empty for any.
    pub(crate) tags_any: Vec<String>,
}

/// Sequence numbers of a collection's items by camera, time and tag.
#[derive(Debug, Default)]
pub(crate) struct Facets {
    cameras: HashMap<String, BTreeSet<u64>>,
    tags: HashMap<String, BTreeSet<u64>>,
    captured: HashMap<u64, i64>,
    by_time: BTreeSet<(i64, u64)>,
}

/// What filters ask about one item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marks<'a> {
    pub(crate) camera: Option<&'a str>,
    /// Time of capture, milliseconds since 1970-01-01 UTC.
    pub(crate) captured: Option<i64>,
    /// As they are written: one may be there twice.
    pub(crate) tags: Vec<&'a str>,
}

impl<'a> Marks<'a> {
    /// Reads an item's metadata.
    pub(crate) fn of(metadata: &'a Metadata) -> Self {
        Self {
            camera: metadata.get(CAMERA).map(String::as_str),
            // An item from before times were checked may have one that is none.
            captured: metadata.get(CAPTURED_AT).and_then(|time| unix_ms(time)),
            tags: tags(metadata).collect(),
        }
    }
}

/// One part of a filter, with the sets that it names.
enum Condition<'a> {
    InOneOf(Vec<&'a BTreeSet<u64>>),
    Captured { from: i64, until: Option<i64> },
}

impl Facets {
    /// Takes an item in.
    pub(crate) fn insert(&mut self, sequence: u64, metadata: &Metadata) {
        if let Some(camera) = metadata.get(CAMERA) {
            self.cameras.entry(camera.clone()).or_default().insert(sequence);
        }
        for tag in tags(metadata) {
            self.tags.entry(tag.to_owned()).or_default().insert(sequence);
        }
        // An item from before times were checked may have one that is none.
        if let Some(time) = metadata.get(CAPTURED_AT).and_then(|time| unix_ms(time)) {
            self.captured.insert(sequence, time);
            self.by_time.insert((time, sequence));
        }
    }

    /// Takes an item out; `metadata` is what it was taken in with.
    pub(crate) fn remove(&mut self, sequence: u64, metadata: &Metadata) {
        if let Some(camera) = metadata.get(CAMERA) {
            remove_from(&mut self.cameras, camera, sequence);
        }
        for tag in tags(metadata) {
            remove_from(&mut self.tags, tag, sequence);
        }
        if let Some(time) = self.captured.remove(&sequence) {
            self.by_time.remove(&(time, sequence));
        }
    }

    /// Sequence numbers of the items that a filter holds for, each once; `None` where it asks for nothing.
    pub(crate) fn matching(&self, filter: &Filter) -> Option<Vec<u64>> {
        let mut conditions = self.conditions(filter);
        // The rarest first: the others are looked up for what it leaves.
        conditions.sort_by_key(|condition| self.most(condition));
        let (first, rest) = conditions.split_first()?;
        let mut items = self.items(first);
        items.retain(|sequence| rest.iter().all(|condition| self.holds(condition, *sequence)));
        Some(items)
    }

    fn conditions(&self, filter: &Filter) -> Vec<Condition<'_>> {
        let mut conditions = Vec::new();
        if !filter.cameras.is_empty() {
            conditions.push(Condition::InOneOf(named(&self.cameras, &filter.cameras)));
        }
        for tag in &filter.tags_all {
            conditions.push(Condition::InOneOf(named(&self.tags, std::slice::from_ref(tag))));
        }
        if !filter.tags_any.is_empty() {
            conditions.push(Condition::InOneOf(named(&self.tags, &filter.tags_any)));
        }
        if filter.captured_from.is_some() || filter.captured_until.is_some() {
            let from = filter.captured_from.unwrap_or(i64::MIN);
            conditions.push(Condition::Captured { from, until: filter.captured_until });
        }
        conditions
    }

    /// At most so many items meet a condition.
    fn most(&self, condition: &Condition<'_>) -> usize {
        match condition {
            Condition::InOneOf(sets) => sets.iter().map(|set| set.len()).sum(),
            Condition::Captured { .. } => self.captured.len(),
        }
    }

    fn items(&self, condition: &Condition<'_>) -> Vec<u64> {
        match condition {
            Condition::InOneOf(sets) => match sets[..] {
                [set] => set.iter().copied().collect(),
                _ => sets.iter().copied().flatten().copied().collect::<BTreeSet<u64>>().into_iter().collect(),
            },
            Condition::Captured { from, until } => {
                let after = self.by_time.range((*from, 0)..).map(|(time, sequence)| (*time, *sequence));
                let within = after.take_while(|(time, _)| until.is_none_or(|until| *time < until));
                within.map(|(_, sequence)| sequence).collect()
            }
        }
    }

    fn holds(&self, condition: &Condition<'_>, sequence: u64) -> bool {
        match condition {
            Condition::InOneOf(sets) => sets.iter().any(|set| set.contains(&sequence)),
            Condition::Captured { from, until } => self
                .captured
                .get(&sequence)
                .is_some_and(|time| time >= from && until.is_none_or(|until| *time < until)),
        }
    }
}

fn named<'a>(sets: &'a HashMap<String, BTreeSet<u64>>, names: &[String]) -> Vec<&'a BTreeSet<u64>> {
    names.iter().filter_map(|name| sets.get(name)).collect()
}

fn remove_from(sets: &mut HashMap<String, BTreeSet<u64>>, name: &str, sequence: u64) {
    if let Some(set) = sets.get_mut(name) {
        set.remove(&sequence);
        // A name that was deleted with its last item does not stay in memory.
        if set.is_empty() {
            sets.remove(name);
        }
    }
}

fn tags(metadata: &Metadata) -> impl Iterator<Item = &str> {
    metadata
        .get(TAGS)
        .into_iter()
        .flat_map(|tags| tags.split(','))
        .map(str::trim)
        .filter(|tag| !tag.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The plain reading of a filter, item by item.
    fn meets(metadata: &Metadata, filter: &Filter) -> bool {
        let camera = metadata.get(CAMERA);
        let tags: Vec<&str> = tags(metadata).collect();
        let time = metadata.get(CAPTURED_AT).and_then(|time| unix_ms(time));
        (filter.cameras.is_empty() || camera.is_some_and(|camera| filter.cameras.contains(camera)))
            && filter.captured_from.is_none_or(|from| time.is_some_and(|time| time >= from))
            && filter.captured_until.is_none_or(|until| time.is_some_and(|time| time < until))
            && filter.tags_all.iter().all(|tag| tags.contains(&tag.as_str()))
            && (filter.tags_any.is_empty() || filter.tags_any.iter().any(|tag| tags.contains(&tag.as_str())))
    }

    fn metadata() -> impl Strategy<Value = Metadata> {
        let camera = prop::option::of(prop::sample::select(vec!["1", "2", "3"]));
        let time = prop::option::of(prop::sample::select(vec![
            "1970-01-01T00:00:01Z",
            "1970-01-01T00:00:02Z",
            "1970-01-01T01:00:03+01:00",
            "yesterday",
        ]));
        let tags =
            prop::option::of(prop::sample::select(vec!["red", "red, bag", "bag,,hat ", "", "hat,red,hat"]));
        (camera, time, tags).prop_map(|(camera, time, tags)| {
            let pairs = [(CAMERA, camera), (CAPTURED_AT, time), (TAGS, tags)];
            pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned()))).collect()
        })
    }

    fn some_of(names: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec(prop::sample::select(names).prop_map(str::to_owned), 0..3)
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let time = || prop::option::of(0i64..5000);
        let tags = || some_of(&["red", "bag", "hat", "coat"]);
        (some_of(&["1", "2", "9"]), time(), time(), tags(), tags()).prop_map(
            |(cameras, captured_from, captured_until, tags_all, tags_any)| Filter {
                cameras,
                captured_from,
                captured_until,
                tags_all,
                tags_any,
            },
        )
    }

    proptest! {
        #[test]
        fn the_items_found_are_those_that_meet_the_filter(
            items in prop::collection::vec(metadata(), 0..40),
            removed in prop::collection::vec(any::<bool>(), 40),
            filter in filter(),
        ) {
            let mut facets = Facets::default();
            for (sequence, metadata) in (0..).zip(&items) {
                facets.insert(sequence, metadata);
            }
            for (sequence, metadata) in (0..).zip(&items).filter(|(sequence, _)| removed[*sequence as usize]) {
                facets.remove(sequence, metadata);
            }
            let expected: Vec<u64> = (0..)
                .zip(&items)
                .filter(|(sequence, metadata)| !removed[*sequence as usize] && meets(metadata, &filter))
                .map(|(sequence, _)| sequence)
                .collect();
            match facets.matching(&filter) {
                None => prop_assert_eq!(filter, Filter::default()),
                Some(mut found) => {
                    found.sort_unstable();
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }

    #[test]
    fn nothing_stays_of_items_that_are_gone() {
        let mut facets = Facets::default();
        let metadata = Metadata::from([
            (CAMERA.to_owned(), "gate".to_owned()),
            (CAPTURED_AT.to_owned(), "2026-03-01T00:00:00Z".to_owned()),
            (TAGS.to_owned(), "red,bag".to_owned()),
        ]);
        facets.insert(7, &metadata);
        facets.remove(7, &metadata);
        assert!(facets.cameras.is_empty() && facets.tags.is_empty());
        assert!(facets.captured.is_empty() && facets.by_time.is_empty());
    }
}
