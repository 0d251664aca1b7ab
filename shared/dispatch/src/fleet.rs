use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::rendezvous::weight;
use crate::replica::Replica;
use crate::{ImageKey, ReplicaId, ReplicaView, Ticket};

/// A replica that joins twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("replica {replica} has joined already")]
pub struct AlreadyJoined {
    /// Its name.
    pub replica: ReplicaId,
}

/// A replica that has not joined or is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("replica {replica} is unknown")]
pub struct UnknownReplica {
    /// Its name.
    pub replica: ReplicaId,
}

/// What a question wants of its replica.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish<'a> {
    pub(crate) ticket: Ticket,
    pub(crate) image: Option<ImageKey>,
    /// Taken only where there is no other.
    pub(crate) avoid: &'a [ReplicaId],
    /// Never taken.
    pub(crate) except: &'a [ReplicaId],
}

/// The replicas that have joined.
#[derive(Debug, Clone)]
pub(crate) struct Fleet {
    replicas: BTreeMap<ReplicaId, Replica>,
    load_percent: u32,
}

impl Fleet {
    pub(crate) fn new(load_percent: u32) -> Self {
        Self { replicas: BTreeMap::new(), load_percent }
    }

    pub(crate) fn join(&mut self, replica: ReplicaId, capacity: u32) -> Result<(), AlreadyJoined> {
        if self.replicas.contains_key(&replica) {
            return Err(AlreadyJoined { replica });
        }
        self.replicas.insert(replica, Replica::new(capacity));
        Ok(())
    }

    pub(crate) fn leave(&mut self, replica: ReplicaId) -> Result<BTreeSet<Ticket>, UnknownReplica> {
        self.replicas.remove(&replica).map(Replica::into_in_flight).ok_or(UnknownReplica { replica })
    }

    pub(crate) fn get_mut(&mut self, replica: ReplicaId) -> Result<&mut Replica, UnknownReplica> {
        self.replicas.get_mut(&replica).ok_or(UnknownReplica { replica })
    }

    /// Most questions that all who are not draining may have at a time.
    pub(crate) fn capacity(&self) -> u64 {
        let staying = self.replicas.values().filter(|replica| !replica.is_draining());
        staying.map(|replica| u64::from(replica.capacity())).sum()
    }

    pub(crate) fn views(&self, now: Duration) -> impl Iterator<Item = ReplicaView> {
        self.replicas.iter().map(move |(&id, replica)| ReplicaView {
            id,
            capacity: replica.capacity(),
            in_flight: replica.load(),
            state: replica.state(now),
        })
    }

    /// The next moment at which a replica accepts questions again.
    pub(crate) fn accepts_again(&self, now: Duration) -> Option<Duration> {
        self.replicas.values().filter_map(|replica| replica.accepts_again(now)).min()
    }

    /// Where an image belongs: the first in the order that it gives those who accept questions, whatever they have.
    pub(crate) fn home(&self, image: ImageKey, now: Duration) -> Option<ReplicaId> {
        let weigh = |(id, replica): (&ReplicaId, &Replica)| (weight(image.0, id.0, replica.capacity()), *id);
        let accepting = self.replicas.iter().filter(|(_, replica)| replica.accepts(now));
        accepting.map(weigh).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, id)| id)
    }

    /// The replica for a question: of those that have room and are below their bound, the first in the order that the
    /// image gives them; for a question without an image the least loaded. `None` only where no replica that may be
    /// taken has room, or all that have are excepted or at their bound.
    pub(crate) fn choose(&self, wish: Wish<'_>, now: Duration) -> Option<ReplicaId> {
        let accepting = || self.replicas.iter().filter(|(_, replica)| replica.accepts(now));
        let load: usize = accepting().map(|(_, replica)| replica.load()).sum();
        let limit: u64 = accepting().map(|(_, replica)| u64::from(replica.limit())).sum();
        let below_bound = |replica: &Replica| {
            // Load is below its share of c (load + 1), rounded up: compared without division.
            let share = u128::from(self.load_percent) * (load as u128 + 1) * u128::from(replica.limit());
            replica.load() as u128 * 100 * u128::from(limit) < share
        };
        accepting()
            .filter(|(id, replica)| replica.has_room() && below_bound(replica) && !wish.except.contains(id))
            .map(|(&id, replica)| Preference::new(id, replica, wish))
            .max_by(Preference::compare)
            .map(|preferred| preferred.replica)
    }
}

/// How much a question wants a replica.
#[derive(Debug)]
struct Preference {
    replica: ReplicaId,
    is_fresh: bool,
    /// Load and capacity where load decides.
    load: Option<(u64, u64)>,
    weight: f64,
}

impl Preference {
    fn new(id: ReplicaId, replica: &Replica, wish: Wish<'_>) -> Self {
        let key = wish.image.map_or(wish.ticket.0, |image| image.0);
        Self {
            replica: id,
            is_fresh: !wish.avoid.contains(&id),
            load: wish.image.is_none().then(|| (replica.load() as u64, replica.limit().into())),
            weight: weight(key, id.0, replica.capacity()),
        }
    }

    fn compare(&self, other: &Self) -> std::cmp::Ordering {
        let less_loaded = match (self.load, other.load) {
            (Some((load, limit)), Some((other_load, other_limit))) => {
                (other_load * limit).cmp(&(load * other_limit))
            }
            _ => std::cmp::Ordering::Equal,
        };
        let by_weight = || self.weight.total_cmp(&other.weight);
        self.is_fresh.cmp(&other.is_fresh).then(less_loaded).then_with(by_weight)
    }
}
