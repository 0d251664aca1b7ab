use crate::Lane;
use crate::lane::{LaneQueue, Place};

/// The lanes, and whose turn it is.
#[derive(Debug, Clone)]
pub(crate) struct Lanes {
    queues: [LaneQueue; Lane::ALL.len()],
    high_burst: u32,
    /// Questions of the high lane started since the low lane had its last turn or was empty.
    burst: u32,
}

impl Lanes {
    pub(crate) fn new(high_burst: u32) -> Self {
        Self { queues: Default::default(), high_burst, burst: 0 }
    }

    pub(crate) fn len(&self, lane: Lane) -> usize {
        self.queue(lane).len()
    }

    pub(crate) fn insert(&mut self, lane: Lane, place: Place) {
        self.queue_mut(lane).insert(place);
    }

    /// Takes a question out that will not start. False where it does not wait.
    pub(crate) fn remove(&mut self, lane: Lane, place: &Place) -> bool {
        self.queue_mut(lane).remove(place)
    }

    /// The lane whose turn it is; it has a question.
    pub(crate) fn turn(&self) -> Option<Lane> {
        let waits = |lane: &Lane| !self.queue(*lane).is_empty();
        if self.burst >= self.high_burst && waits(&Lane::Low) {
            return Some(Lane::Low);
        }
        Lane::ALL.into_iter().find(waits)
    }

    pub(crate) fn in_order(&self, lane: Lane) -> impl Iterator<Item = Place> {
        self.queue(lane).in_order()
    }

    /// Takes a question of the lane out whose turn it is.
    pub(crate) fn start(&mut self, lane: Lane, place: &Place) {
        self.remove(lane, place);
        self.burst = match lane {
            Lane::High if !self.queue(Lane::Low).is_empty() => self.burst + 1,
            _ => 0,
        };
    }

    fn queue(&self, lane: Lane) -> &LaneQueue {
        &self.queues[lane as usize]
    }

    fn queue_mut(&mut self, lane: Lane) -> &mut LaneQueue {
        &mut self.queues[lane as usize]
    }
}
