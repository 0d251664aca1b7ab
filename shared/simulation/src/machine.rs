use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::Rng;
use thicket_dispatch::{ImageKey, ReplicaId, Ticket};

use crate::Service;

/// Names one sending of a question to a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CallId(pub(crate) u64);

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Task {
    /// Whether the candidate of a round, from 1, is the one.
    Locate {
        round: usize,
    },
    Describe,
    Aggregate,
}

/// A question on its way to a replica and there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) id: CallId,
    pub(crate) ticket: Ticket,
    pub(crate) replica: ReplicaId,
    pub(crate) query: usize,
    pub(crate) task: Task,
    pub(crate) image: Option<ImageKey>,
}

/// What a machine does with a call that arrives.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It works on it, or will.
    Taken,
    /// It has too much to do.
    Overloaded,
    /// There is no process.
    Refused,
}

/// An answer replica: slots that work in parallel, a queue of as many places, and the images seen last.
#[derive(Debug)]
pub(crate) struct Machine {
    slots: usize,
    running: BTreeMap<CallId, Call>,
    queue: VecDeque<Call>,
    held: VecDeque<ImageKey>,
    pub(crate) is_up: bool,
    pub(crate) is_slow: bool,
    pub(crate) is_cut_off: bool,
    /// Takes everything and answers nothing.
    pub(crate) is_hung: bool,
    /// Whether it keeps its lease while it is cut off.
    pub(crate) loses_lease: bool,
}

impl Machine {
    pub(crate) fn new(slots: u32) -> Self {
        Self {
            slots: slots as usize,
            running: BTreeMap::new(),
            queue: VecDeque::new(),
            held: VecDeque::new(),
            is_up: true,
            is_slow: false,
            is_cut_off: false,
            is_hung: false,
            loses_lease: false,
        }
    }

    /// Whether its lease is renewed.
    pub(crate) fn is_alive(&self) -> bool {
        self.is_up && !(self.is_cut_off && self.loses_lease)
    }

    pub(crate) fn arrives(&mut self, call: Call) -> Arrival {
        if !self.is_up {
            return Arrival::Refused;
        }
        if self.running.len() >= self.slots && self.queue.len() >= self.slots {
            return Arrival::Overloaded;
        }
        self.queue.push_back(call);
        Arrival::Taken
    }

    /// Begins with what waits while there is a slot, and says how long each takes.
    pub(crate) fn begin(&mut self, service: &Service, rng: &mut impl Rng) -> Vec<(CallId, Duration)> {
        let mut begun = Vec::new();
        while !self.is_hung
            && self.running.len() < self.slots
            && let Some(call) = self.queue.pop_front()
        {
            let slowness = if self.is_slow { 10 } else { 1 };
            begun.push((call.id, self.takes(&call, service, rng) * slowness));
            self.running.insert(call.id, call);
        }
        begun
    }

    /// The call that is done; `None` where it was stopped or lost.
    pub(crate) fn done(&mut self, id: CallId) -> Option<Call> {
        self.running.remove(&id).filter(|_| !self.is_hung)
    }

    pub(crate) fn stop(&mut self, id: CallId) {
        self.running.remove(&id);
        self.queue.retain(|call| call.id != id);
    }

    /// The process ends; what it had is lost.
    pub(crate) fn crash(&mut self) -> Vec<Call> {
        self.is_up = false;
        self.held.clear();
        let running = std::mem::take(&mut self.running).into_values();
        running.chain(std::mem::take(&mut self.queue)).collect()
    }

    fn takes(&mut self, call: &Call, service: &Service, rng: &mut impl Rng) -> Duration {
        let task = match call.task {
            Task::Locate { .. } => service.locate,
            Task::Describe => service.describe,
            Task::Aggregate => service.aggregate,
        };
        let is_held = call.image.is_none_or(|image| self.sees(image, service.images_held));
        let image = if is_held { Duration::ZERO } else { service.image.draw(rng) };
        image + task.draw(rng)
    }

    /// Holds an image from now on; whether it did before.
    fn sees(&mut self, image: ImageKey, most: usize) -> bool {
        let before = self.held.len();
        self.held.retain(|held| *held != image);
        let was_held = self.held.len() < before;
        self.held.push_back(image);
        while self.held.len() > most {
            self.held.pop_front();
        }
        was_held
    }
}
