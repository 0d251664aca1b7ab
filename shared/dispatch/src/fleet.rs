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
    /// Taken and no other, as long as it accepts questions and is not to be avoided.
    pub(crate) kept: Option<ReplicaId>,
    /// Taken only where there is no other.
    pub(crate) avoid: &'a [ReplicaId],
    /// Never taken.
    pub(crate) except: &'a [ReplicaId],
    /// Whether only a replica that has nothing to do is taken.
    pub(crate) is_patient: bool,
}

/// What the replicas that accept questions have, and may have, together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Totals {
    load: usize,
    limit: u64,
}

/// Where an image belongs, and for how long that is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Home {
    replica: Option<ReplicaId>,
    generation: u64,
    until: Option<Duration>,
}

/// The replicas that have joined.
#[derive(Debug, Clone)]
pub(crate) struct Fleet {
    replicas: BTreeMap<ReplicaId, Replica>,
    load_percent: u32,
    /// Changes with whatever but time may change who accepts questions.
    generation: u64,
}

impl Fleet {
    pub(crate) fn new(load_percent: u32) -> Self {
        Self { replicas: BTreeMap::new(), load_percent, generation: 0 }
    }

    pub(crate) fn join(&mut self, replica: ReplicaId, capacity: u32) -> Result<(), AlreadyJoined> {
        if self.replicas.contains_key(&replica) {
            return Err(AlreadyJoined { replica });
        }
        self.generation += 1;
        self.replicas.insert(replica, Replica::new(capacity));
        Ok(())
    }

    pub(crate) fn leave(&mut self, replica: ReplicaId) -> Result<BTreeSet<Ticket>, UnknownReplica> {
        self.generation += 1;
        self.replicas.remove(&replica).map(Replica::into_in_flight).ok_or(UnknownReplica { replica })
    }

    pub(crate) fn get(&self, replica: ReplicaId) -> Option<&Replica> {
        self.replicas.get(&replica)
    }

    /// For what a replica has; what may change whether it accepts questions goes through [`Self::change`].
    pub(crate) fn get_mut(&mut self, replica: ReplicaId) -> Result<&mut Replica, UnknownReplica> {
        self.replicas.get_mut(&replica).ok_or(UnknownReplica { replica })
    }

    pub(crate) fn change(&mut self, replica: ReplicaId) -> Result<&mut Replica, UnknownReplica> {
        self.generation += 1;
        self.get_mut(replica)
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

    /// Where an image belongs: the first in the order that it gives those who accept questions, whatever they have. What was
    /// `known` before is used for as long as it holds: to weigh hundreds of replicas takes a while.
    pub(crate) fn home(&self, image: ImageKey, known: Option<Home>, now: Duration) -> Home {
        let holds =
            |home: &Home| home.generation == self.generation && home.until.is_none_or(|until| now < until);
        if let Some(home) = known.filter(holds) {
            return home;
        }
        let weigh = |(id, replica): (&ReplicaId, &Replica)| (weight(image.0, id.0, replica.capacity()), *id);
        let accepting = self.replicas.iter().filter(|(_, replica)| replica.accepts(now));
        let heaviest = accepting.map(weigh).max_by(|a, b| a.0.total_cmp(&b.0));
        let replica = heaviest.map(|(_, id)| id);
        Home { replica, generation: self.generation, until: self.accepts_again(now) }
    }

    pub(crate) fn totals(&self, now: Duration) -> Totals {
        let accepting = self.replicas.values().filter(|replica| replica.accepts(now));
        accepting.fold(Totals { load: 0, limit: 0 }, |totals, replica| Totals {
            load: totals.load + replica.load(),
            limit: totals.limit + u64::from(replica.limit()),
        })
    }

    /// Whether a replica that accepts questions has room and is below its bound.
    pub(crate) fn has_room(&self, replica: &Replica, totals: Totals) -> bool {
        // Load is below its share of c (load + 1), rounded up: compared without division.
        let share = u128::from(self.load_percent) * (totals.load as u128 + 1) * u128::from(replica.limit());
        replica.has_room() && replica.load() as u128 * 100 * u128::from(totals.limit) < share
    }

    /// The replica for a question: of those that have room and are below their bound, the first in the order that the
    /// image gives them; for a question without an image the least loaded. `None` only where no replica that may be
    /// taken has room, or all that have are excepted or at their bound. The bound does not hold for a replica that the
    /// question is kept to.
    pub(crate) fn choose(&self, wish: Wish<'_>, now: Duration) -> Option<ReplicaId> {
        if let Some(kept) = wish.kept
            && !wish.avoid.contains(&kept)
            && let Some(replica) = self.replicas.get(&kept).filter(|replica| replica.accepts(now))
        {
            return (replica.has_room() && !wish.except.contains(&kept)).then_some(kept);
        }
        let totals = self.totals(now);
        self.replicas
            .iter()
            .filter(|(id, replica)| {
                replica.accepts(now)
                    && self.has_room(replica, totals)
                    && !(wish.is_patient && replica.load() > 0)
                    && !wish.except.contains(id)
            })
            .map(|(&id, replica)| Preference::new(id, replica, wish))
            .max_by(Preference::compare)
            .map(|preferred| preferred.replica)
    }
}

impl Home {
    pub(crate) fn replica(&self) -> Option<ReplicaId> {
        self.replica
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
