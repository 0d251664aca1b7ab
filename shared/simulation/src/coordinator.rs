use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use thicket_dispatch::{
    Action, AfterFailure, Answered, Dispatcher, Failure, GaveUp, Kind, Lane, Question, Refused, ReplicaId,
    Ticket, Urgency,
};
use thicket_thi::{Answer, Class, Interaction, Outcome, Refinement, Step};

use crate::machine::{Call, CallId, Task};
use crate::{Cohort, Scenario, ScenarioError};

/// How a query ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// With the interaction's outcome; anchors are places in the gallery.
    Done(Outcome<usize>),
    /// A question that it needed was given up.
    Failed(GaveUp),
    /// Its patience ended.
    Expired,
}

/// What the coordinator wants done.
#[derive(Debug)]
pub(crate) enum Effect {
    Send(Call),
    Stop(ReplicaId, CallId),
    /// Call [`Coordinator::go_on`] then.
    Later(usize, Duration),
    /// Rank a refined query, then call [`Coordinator::ranked_again`].
    RankAgain(usize),
}

/// A query under way.
#[derive(Debug)]
struct Search {
    interaction: Interaction<usize>,
    /// The questions that are open.
    open: BTreeMap<Task, Ticket>,
    deadline: Option<Duration>,
    is_described: bool,
    has_ended: bool,
}

/// What a ticket is for.
#[derive(Debug, Clone, Copy)]
struct Work {
    query: usize,
    task: Task,
    image: Option<thicket_dispatch::ImageKey>,
    is_ahead: bool,
}

/// A coordinator without network and clock: what it hears goes in, what it wants done comes out of
/// [`Coordinator::effects`].
#[derive(Debug)]
pub(crate) struct Coordinator<'a> {
    scenario: &'a Scenario,
    cohort: &'a Cohort,
    dispatcher: Dispatcher,
    searches: BTreeMap<usize, Search>,
    work: BTreeMap<Ticket, Work>,
    calls: BTreeMap<(Ticket, ReplicaId), CallId>,
    next_call: u64,
    effects: Vec<Effect>,
    /// Every end of a query, with its interaction and the time.
    pub(crate) ends: Vec<(usize, End, Interaction<usize>, Duration)>,
}

impl<'a> Coordinator<'a> {
    pub(crate) fn new(scenario: &'a Scenario, cohort: &'a Cohort) -> Result<Self, ScenarioError> {
        Ok(Self {
            scenario,
            cohort,
            dispatcher: Dispatcher::new(scenario.dispatch)?,
            searches: BTreeMap::new(),
            work: BTreeMap::new(),
            calls: BTreeMap::new(),
            next_call: 0,
            effects: Vec::new(),
            ends: Vec::new(),
        })
    }

    /// What is to be done, after anything was heard.
    pub(crate) fn effects(&mut self, now: Duration) -> Vec<Effect> {
        while let Some(action) = self.dispatcher.poll(now) {
            match action {
                Action::Ask { ticket, replica, .. } => self.ask(ticket, replica),
                Action::Lose { ticket, replica, fate, .. } => {
                    self.stop(ticket, &[replica]);
                    self.fate(ticket, fate, now);
                }
                Action::Expire { ticket, stop } => {
                    self.stop(ticket, &stop);
                    if let Some(Work { query, .. }) = self.closed(ticket) {
                        self.end(query, End::Expired, now);
                    }
                }
            }
        }
        std::mem::take(&mut self.effects)
    }

    pub(crate) fn wake_at(&self) -> Option<Duration> {
        self.dispatcher.wake_at()
    }

    /// A replica has its lease, maybe as a new process under an old name.
    pub(crate) fn join(&mut self, replica: ReplicaId, now: Duration) {
        self.leave(replica, now);
        let slots = NonZeroU32::new(self.scenario.slots).unwrap_or(NonZeroU32::MIN);
        // It left just now.
        let _ = self.dispatcher.join(replica, slots);
    }

    pub(crate) fn drain(&mut self, replica: ReplicaId) {
        // One that is gone has nothing to drain.
        let _ = self.dispatcher.drain(replica);
    }

    /// A replica has lost its lease.
    pub(crate) fn leave(&mut self, replica: ReplicaId, now: Duration) {
        for (ticket, fate) in self.dispatcher.leave(replica, now).unwrap_or_default() {
            self.stop(ticket, &[replica]);
            self.fate(ticket, fate, now);
        }
    }

    /// A query arrives.
    pub(crate) fn arrives(&mut self, query: usize, now: Duration) {
        let candidates = self.cohort.candidates(query);
        // Scores are never NaN.
        let Ok(interaction) = Interaction::new(&self.scenario.thi, candidates) else { return };
        let deadline = self.scenario.patience.map(|patience| now.saturating_add(patience));
        let search =
            Search { interaction, open: BTreeMap::new(), deadline, is_described: false, has_ended: false };
        self.searches.insert(query, search);
        self.go_on(query, now);
    }

    /// A refined query has its final ranking.
    pub(crate) fn ranked_again(&mut self, query: usize, now: Duration) {
        let step = self.searches.get(&query).map(|search| search.interaction.step());
        if let Some(Step::Done(outcome)) = step {
            self.end(query, End::Done(outcome), now);
        }
    }

    /// Whether a call is still waited for.
    pub(crate) fn waits_for(&self, call: &Call) -> bool {
        self.calls.get(&(call.ticket, call.replica)) == Some(&call.id)
    }

    /// An answer has come.
    pub(crate) fn answered(&mut self, call: &Call, answer: Answer, now: Duration) {
        if !self.waits_for(call) {
            return;
        }
        let Answered::Accepted { stop } = self.dispatcher.answered(call.ticket, call.replica, now) else {
            return;
        };
        self.calls.remove(&(call.ticket, call.replica));
        self.stop(call.ticket, &stop);
        let Some(Work { query, task, .. }) = self.closed(call.ticket) else { return };
        let Some(search) = self.searches.get_mut(&query) else { return };
        // Only open questions are answered, each once, so that the interaction never refuses.
        let _ = match task {
            Task::Locate { round } => search.interaction.answer(round, answer).map(drop),
            Task::Describe => {
                search.is_described = true;
                Ok(())
            }
            Task::Aggregate => search.interaction.refined(Refinement::Done).map(drop),
        };
        self.go_on(query, now);
    }

    /// A call came to nothing.
    pub(crate) fn failed(&mut self, call: &Call, failure: Failure, now: Duration) {
        if !self.waits_for(call) {
            return;
        }
        let fate = self.dispatcher.failed(call.ticket, call.replica, failure, now);
        // One that expired at this moment is stopped when that is told.
        if fate != AfterFailure::Late {
            self.stop(call.ticket, &[call.replica]);
            self.fate(call.ticket, fate, now);
        }
    }

    /// Asks what the interaction wants asked, and stops what it does not want any more.
    pub(crate) fn go_on(&mut self, query: usize, now: Duration) {
        let Some(search) = self.searches.get(&query).filter(|search| !search.has_ended) else { return };
        let wanted: Vec<(Task, Lane, Option<usize>)> = match search.interaction.step() {
            Step::Ask(_) => {
                let questions = search.interaction.ahead(self.scenario.at_a_time);
                let first = match search.interaction.class() {
                    Class::High => Lane::High,
                    Class::Low => Lane::Low,
                };
                let lanes = std::iter::once(first).chain(std::iter::repeat(Lane::Ahead));
                let task = |question: &thicket_thi::Question<usize>| Task::Locate { round: question.round };
                questions
                    .iter()
                    .zip(lanes)
                    .map(|(question, lane)| (task(question), lane, Some(question.candidate)))
                    .collect()
            }
            Step::Refine { anchor, .. } if !search.is_described => {
                vec![(Task::Describe, Lane::Low, Some(anchor))]
            }
            Step::Refine { .. } => vec![(Task::Aggregate, Lane::Low, None)],
            Step::Done(Outcome::Refined { .. }) => return self.effects.push(Effect::RankAgain(query)),
            Step::Done(outcome) => return self.end(query, End::Done(outcome), now),
        };
        let unwanted: Vec<Ticket> = search
            .open
            .iter()
            .filter(|(open, _)| wanted.iter().all(|(task, ..)| task != *open))
            .map(|(_, ticket)| *ticket)
            .collect();
        for ticket in unwanted {
            self.cancel(ticket);
        }
        for (task, lane, candidate) in wanted {
            self.want(query, task, lane, candidate, now);
        }
    }

    /// Has a question open, in its lane.
    fn want(&mut self, query: usize, task: Task, lane: Lane, candidate: Option<usize>, now: Duration) {
        let Some(search) = self.searches.get_mut(&query).filter(|search| !search.has_ended) else { return };
        if let Some(&ticket) = search.open.get(&task) {
            if lane != Lane::Ahead
                && self.dispatcher.promote(ticket)
                && let Some(work) = self.work.get_mut(&ticket)
            {
                work.is_ahead = false;
            }
            return;
        }
        let image = candidate.map(Cohort::image);
        let kind = Kind(match task {
            Task::Locate { .. } => 0,
            Task::Describe => 1,
            Task::Aggregate => 2,
        });
        let question =
            Question { lane, urgency: Urgency::Interactive, deadline: search.deadline, image, kind };
        match self.dispatcher.submit(question, now) {
            Ok(ticket) => {
                search.open.insert(task, ticket);
                let is_ahead = lane == Lane::Ahead;
                self.work.insert(ticket, Work { query, task, image, is_ahead });
            }
            Err(Refused::Full { .. }) if lane == Lane::Ahead => {}
            Err(Refused::Full { retry_after, .. }) => {
                let later = now.saturating_add(retry_after);
                // Its patience may end before.
                let later = search.deadline.map_or(later, |deadline| later.min(deadline));
                self.effects.push(Effect::Later(query, later));
            }
            Err(Refused::Expired { .. }) => self.end(query, End::Expired, now),
        }
    }

    fn ask(&mut self, ticket: Ticket, replica: ReplicaId) {
        let Some(Work { query, task, image, .. }) = self.work.get(&ticket).copied() else { return };
        let id = CallId(self.next_call);
        self.next_call += 1;
        self.calls.insert((ticket, replica), id);
        self.effects.push(Effect::Send(Call { id, ticket, replica, query, task, image }));
    }

    fn fate(&mut self, ticket: Ticket, fate: AfterFailure, now: Duration) {
        let AfterFailure::Ended { reason, stop } = fate else { return };
        self.stop(ticket, &stop);
        match self.closed(ticket) {
            // Nobody waits for it yet; if somebody comes to, it is asked anew.
            Some(Work { is_ahead: true, .. }) | None => {}
            Some(Work { query, .. }) => self.end(query, End::Failed(reason), now),
        }
    }

    /// Forgets a question that has ended.
    fn closed(&mut self, ticket: Ticket) -> Option<Work> {
        let work = self.work.remove(&ticket)?;
        if let Some(search) = self.searches.get_mut(&work.query) {
            search.open.remove(&work.task);
        }
        Some(work)
    }

    fn cancel(&mut self, ticket: Ticket) {
        let stop = self.dispatcher.cancel(ticket).unwrap_or_default();
        self.stop(ticket, &stop);
        self.closed(ticket);
    }

    fn stop(&mut self, ticket: Ticket, replicas: &[ReplicaId]) {
        for &replica in replicas {
            if let Some(call) = self.calls.remove(&(ticket, replica)) {
                self.effects.push(Effect::Stop(replica, call));
            }
        }
    }

    fn end(&mut self, query: usize, end: End, now: Duration) {
        let Some(search) = self.searches.get_mut(&query) else { return };
        search.has_ended = true;
        let interaction = search.interaction.clone();
        self.ends.push((query, end, interaction, now));
        let open: Vec<Ticket> = search.open.values().copied().collect();
        for ticket in open {
            self.cancel(ticket);
        }
    }
}
