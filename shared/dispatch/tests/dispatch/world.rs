//! A plain model beside the dispatcher, which checks every decision against what it promises.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;
use thicket_dispatch::{
    Action, AfterFailure, Answered, Dispatcher, Failure, GaveUp, Lane, Question, Refused, ReplicaId,
    ReplicaView, Settings, Ticket, Why,
};

use crate::node::{Node, limit};

type Checked<T = ()> = Result<T, TestCaseError>;

/// Something that happens to a dispatcher.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// The deadline is so long from now.
    Submit {
        question: Question,
        time_left: Option<Duration>,
    },
    Join {
        replica: ReplicaId,
        capacity: NonZeroU32,
    },
    Leave(ReplicaId),
    Drain(ReplicaId),
    /// Does everything that there is to do.
    Poll,
    /// Does one thing.
    PollOnce,
    /// Of a copy in flight.
    Answer(Index),
    Fail(Index, Failure),
    /// Of any question there ever was.
    Cancel(Index),
    Promote(Index),
    /// An answer and a failure from a replica that does not have the question.
    Late(Index, ReplicaId),
    Wait(Duration),
}

#[derive(Debug)]
struct Asked {
    question: Question,
    copies: BTreeMap<ReplicaId, Duration>,
    sends: u32,
    hedges: u32,
    passed_over: u32,
    has_ended: bool,
}

impl Asked {
    fn waits(&self) -> bool {
        !self.has_ended && self.copies.is_empty()
    }
}

#[derive(Debug, Default)]
struct Counts {
    firsts: u64,
    retries: u64,
    hedges: u64,
}

pub(crate) struct World {
    settings: Settings,
    /// After what time a second copy may be sent at the earliest.
    hedge_after: Option<Duration>,
    dispatcher: Dispatcher,
    now: Duration,
    asked: BTreeMap<Ticket, Asked>,
    nodes: BTreeMap<ReplicaId, Node>,
    counts: Counts,
    /// Questions of the high lane started in a row while the low lane waited.
    highs_in_a_row: u32,
    /// Questions that may wait beside the limit of their lane.
    moved: BTreeSet<Ticket>,
    pub(crate) log: Vec<Action>,
}

impl World {
    pub(crate) fn new(settings: Settings, hedge_after: Option<Duration>) -> Self {
        Self {
            settings,
            hedge_after,
            dispatcher: Dispatcher::new(settings).unwrap(),
            now: Duration::ZERO,
            asked: BTreeMap::new(),
            nodes: BTreeMap::new(),
            counts: Counts::default(),
            highs_in_a_row: 0,
            moved: BTreeSet::new(),
            log: Vec::new(),
        }
    }

    pub(crate) fn run(&mut self, events: &[Event]) -> Checked {
        for event in events {
            self.happens(event)?;
            self.agrees()?;
        }
        Ok(())
    }

    /// Lets a replica join that answers everything: whatever is open must end.
    pub(crate) fn finish(&mut self) -> Checked {
        let replica = ReplicaId::of("the last");
        self.happens(&Event::Join { replica, capacity: NonZeroU32::new(4).unwrap() })?;
        for _ in 0..self.asked.len() + 1 {
            self.happens(&Event::Poll)?;
            for (ticket, replica) in self.flights() {
                // The other copy's answer may have ended it.
                if self.asked[&ticket].copies.contains_key(&replica) {
                    self.answer(ticket, replica)?;
                }
            }
            self.agrees()?;
        }
        let left: Vec<_> = self.asked.iter().filter(|(_, asked)| !asked.has_ended).collect();
        prop_assert!(left.is_empty(), "never ended: {left:?}");
        prop_assert_eq!(self.dispatcher.open(), 0);
        prop_assert_eq!(self.dispatcher.poll(self.now), None);
        prop_assert_eq!(self.dispatcher.wake_at(), None);
        Ok(())
    }

    fn happens(&mut self, event: &Event) -> Checked {
        match event {
            Event::Submit { question, time_left } => self.submit(*question, *time_left),
            Event::Join { replica, capacity } => self.join(*replica, *capacity),
            Event::Leave(replica) => self.leave(*replica),
            Event::Drain(replica) => self.drain(*replica),
            Event::Poll => {
                while self.poll()? {}
                Ok(())
            }
            Event::PollOnce => self.poll().map(|_| ()),
            Event::Answer(index) => match self.flight(index) {
                Some((ticket, replica)) => self.answer(ticket, replica),
                None => Ok(()),
            },
            Event::Fail(index, failure) => match self.flight(index) {
                Some((ticket, replica)) => self.fail(ticket, replica, *failure),
                None => Ok(()),
            },
            Event::Cancel(index) => self.cancel(index),
            Event::Promote(index) => self.promote(index),
            Event::Late(index, replica) => self.late(index, *replica),
            Event::Wait(time) => {
                self.now += *time;
                Ok(())
            }
        }
    }

    fn submit(&mut self, question: Question, time_left: Option<Duration>) -> Checked {
        let question = Question { deadline: time_left.map(|left| self.now + left), ..question };
        let lane = question.lane;
        let limit = match lane {
            Lane::High => self.settings.queue.high,
            Lane::Low => self.settings.queue.low,
            Lane::Ahead => self.settings.queue.ahead,
        };
        let waiting = self.waiting(lane).filter(|ticket| !self.is_expired(*ticket)).count();
        match self.dispatcher.submit(question, self.now) {
            Ok(ticket) => {
                prop_assert!(waiting < limit, "{waiting} of {limit} waited");
                prop_assert!(time_left != Some(Duration::ZERO), "taken when expired");
                prop_assert!(self.asked.keys().all(|other| *other < ticket), "tickets do not rise");
                let asked = Asked {
                    question,
                    copies: BTreeMap::new(),
                    sends: 0,
                    hedges: 0,
                    passed_over: 0,
                    has_ended: false,
                };
                self.asked.insert(ticket, asked);
            }
            Err(Refused::Expired { late }) => {
                prop_assert_eq!(Some(late), time_left);
            }
            Err(Refused::Full { lane: full, limit: said, actual, retry_after }) => {
                prop_assert_eq!((full, said, actual), (lane, limit, waiting));
                prop_assert!(waiting >= limit && retry_after > Duration::ZERO);
            }
        }
        Ok(())
    }

    fn join(&mut self, replica: ReplicaId, capacity: NonZeroU32) -> Checked {
        let is_new = !self.nodes.contains_key(&replica);
        prop_assert_eq!(self.dispatcher.join(replica, capacity).is_ok(), is_new);
        if is_new {
            self.nodes.insert(replica, Node::new(capacity.get()));
        }
        Ok(())
    }

    fn leave(&mut self, replica: ReplicaId) -> Checked {
        let fates = self.dispatcher.leave(replica, self.now);
        let Some(node) = self.nodes.remove(&replica) else {
            prop_assert!(fates.is_err());
            return Ok(());
        };
        let fates = fates.unwrap();
        let tickets: BTreeSet<Ticket> = fates.iter().map(|(ticket, _)| *ticket).collect();
        let had = node.has.into_iter().filter(|ticket| !self.is_expired(*ticket));
        prop_assert_eq!(&tickets, &had.collect::<BTreeSet<_>>());
        prop_assert_eq!(tickets.len(), fates.len());
        for (ticket, fate) in fates {
            self.asked.get_mut(&ticket).unwrap().copies.remove(&replica);
            let is_charged = matches!(fate, AfterFailure::Ended { reason: GaveUp::RetryBudget { .. }, .. });
            prop_assert!(!is_charged, "a loss is charged to the retry budget");
            self.fate(ticket, fate)?;
        }
        Ok(())
    }

    fn drain(&mut self, replica: ReplicaId) -> Checked {
        let drained = self.dispatcher.drain(replica).is_ok();
        prop_assert_eq!(drained, self.nodes.contains_key(&replica));
        if let Some(node) = self.nodes.get_mut(&replica) {
            node.is_draining = true;
        }
        Ok(())
    }

    /// Does one thing; false where there was nothing to do.
    fn poll(&mut self) -> Checked<bool> {
        let before: Vec<ReplicaView> = self.views_now();
        let Some(action) = self.dispatcher.poll(self.now) else {
            self.nothing_to_do()?;
            return Ok(false);
        };
        match &action {
            Action::Expire { ticket, stop } => self.expired(*ticket, stop)?,
            Action::Ask { ticket, replica, why } => self.sent(*ticket, *replica, *why, &before)?,
            Action::Lose { ticket, replica, is_ejected, fate } => {
                self.log.push(action.clone());
                self.lost(*ticket, *replica, *is_ejected, fate.clone())?;
                return Ok(true);
            }
        }
        self.log.push(action);
        Ok(true)
    }

    fn expired(&mut self, ticket: Ticket, stop: &[ReplicaId]) -> Checked {
        let asked = &self.asked[&ticket];
        prop_assert!(asked.question.deadline.is_some_and(|deadline| deadline <= self.now));
        self.ends(ticket, stop)
    }

    /// A copy was not answered for too long; after too many in a row everything that its replica has is told right away.
    fn lost(&mut self, ticket: Ticket, replica: ReplicaId, is_ejected: bool, fate: AfterFailure) -> Checked {
        let silence = self.settings.silence.expect("nothing is lost without a limit");
        let sent = self.asked[&ticket].copies[&replica];
        prop_assert!(self.now - sent >= silence.least, "lost too early");
        let node = self.nodes.get_mut(&replica).unwrap();
        node.unanswered += 1;
        prop_assert_eq!(is_ejected, node.unanswered >= silence.eject_after);
        node.learns(Failure::Unavailable, self.now, self.settings.backoff);
        self.goes_back(ticket, replica, is_ejected, fate)?;
        if !is_ejected {
            return Ok(());
        }
        for _ in 0..self.nodes[&replica].has.len() {
            let Some(Action::Lose { ticket, replica: from, is_ejected: true, fate }) =
                self.dispatcher.poll(self.now)
            else {
                return Err(TestCaseError::fail(format!("{replica} was ejected and keeps questions")));
            };
            prop_assert_eq!(from, replica);
            self.goes_back(ticket, replica, true, fate)?;
        }
        Ok(())
    }

    fn goes_back(
        &mut self,
        ticket: Ticket,
        replica: ReplicaId,
        is_free: bool,
        fate: AfterFailure,
    ) -> Checked {
        self.take_copy(ticket, replica);
        self.counts.retries += u64::from(fate == AfterFailure::Queued && !is_free);
        let is_charged = matches!(fate, AfterFailure::Ended { reason: GaveUp::RetryBudget { .. }, .. });
        prop_assert!(!(is_charged && is_free), "an ejection is charged to the retry budget");
        self.fate(ticket, fate)
    }

    fn sent(&mut self, ticket: Ticket, replica: ReplicaId, why: Why, before: &[ReplicaView]) -> Checked {
        let asked = &self.asked[&ticket];
        let lane = asked.question.lane;
        prop_assert!(!asked.has_ended, "{ticket} was sent after its end");
        prop_assert!(asked.question.deadline.is_none_or(|deadline| deadline > self.now), "expired");
        prop_assert!(!asked.copies.contains_key(&replica), "{replica} has {ticket} already");
        prop_assert!(asked.sends < self.settings.attempts, "too many attempts");
        self.may_take(replica, before)?;
        let is_idle = self.nodes[&replica].has.is_empty();
        prop_assert!(lane != Lane::Ahead || is_idle, "{replica} has something to do");
        match why {
            Why::First | Why::Retry => {
                prop_assert!(asked.waits());
                prop_assert_eq!(why == Why::First, asked.sends == 0);
                self.has_its_turn(ticket)?;
                let low_waits = self.waiting(Lane::Low).any(|other| other != ticket);
                self.highs_in_a_row =
                    if lane == Lane::High && low_waits { self.highs_in_a_row + 1 } else { 0 };
                self.counts.firsts += u64::from(why == Why::First);
            }
            Why::Hedge => {
                prop_assert_eq!((asked.copies.len(), asked.hedges), (1, 0));
                prop_assert!(lane != Lane::Ahead);
                let sent = *asked.copies.values().next().unwrap();
                let after = self.hedge_after.expect("no hedge without a delay");
                prop_assert!(self.now - sent >= after, "hedged too early");
                self.counts.hedges += 1;
            }
        }
        let share = |share: thicket_dispatch::Share| {
            u64::from(share.burst) + self.counts.firsts * u64::from(share.percent) / 100
        };
        prop_assert!(self.counts.hedges <= share(self.settings.hedges), "too many hedges");
        prop_assert!(self.counts.retries <= share(self.settings.retries), "too many retries");

        let asked = self.asked.get_mut(&ticket).unwrap();
        asked.copies.insert(replica, self.now);
        asked.sends += 1;
        asked.hedges += u32::from(why == Why::Hedge);
        self.moved.remove(&ticket);
        self.nodes.get_mut(&replica).unwrap().has.insert(ticket);
        Ok(())
    }

    /// Capacity, bounded load, and nothing to one that is lost, drains or is left alone.
    fn may_take(&self, replica: ReplicaId, before: &[ReplicaView]) -> Checked {
        let Some(node) = self.nodes.get(&replica) else {
            return Err(TestCaseError::fail(format!("{replica} has not joined or is lost")));
        };
        prop_assert!(!node.is_draining, "{replica} drains");
        prop_assert!(self.now >= node.not_before, "{replica} is backed off");
        prop_assert!(node.has.len() < node.capacity as usize, "{replica} is at its capacity");

        let accepting: Vec<_> = before.iter().filter_map(|view| Some((view, limit(view)?))).collect();
        let load: u64 = accepting.iter().map(|(view, _)| view.in_flight as u64).sum();
        let limits: u64 = accepting.iter().map(|(_, limit)| limit).sum();
        let Some((view, own)) = accepting.iter().find(|(view, _)| view.id == replica) else {
            return Err(TestCaseError::fail(format!("{replica} does not accept questions")));
        };
        let bound = (u64::from(self.settings.load_percent) * (load + 1) * own).div_ceil(100 * limits);
        prop_assert!((view.in_flight as u64) < bound, "{replica} is above its bound of {bound}");
        prop_assert!((view.in_flight as u64) < *own, "{replica} is on trial");
        Ok(())
    }

    /// It is the first of its lane, or those before it may be passed over; and it is its lane's turn.
    fn has_its_turn(&mut self, ticket: Ticket) -> Checked {
        let question = self.asked[&ticket].question;
        let place = |ticket: Ticket, question: &Question| {
            (question.urgency, question.deadline.unwrap_or(Duration::MAX), ticket)
        };
        let own = place(ticket, &question);
        for other in self.waiting(question.lane).collect::<Vec<_>>() {
            let passed = self.asked.get_mut(&other).unwrap();
            if place(other, &passed.question) < own {
                passed.passed_over += 1;
                prop_assert!(
                    passed.passed_over <= self.settings.pass_over,
                    "{other} is passed over too often"
                );
                prop_assert_eq!(passed.question.urgency, question.urgency, "batch before interactive");
                prop_assert!(question.image.is_some(), "no image to pass for");
            }
        }
        let waits = |lane| self.waiting(lane).next().is_some();
        match question.lane {
            Lane::High if waits(Lane::Low) => {
                prop_assert!(self.highs_in_a_row < self.settings.high_burst, "the low lane starves");
            }
            Lane::Low if waits(Lane::High) => {
                prop_assert_eq!(self.highs_in_a_row, self.settings.high_burst, "low before high");
            }
            Lane::High | Lane::Low => {}
            Lane::Ahead => prop_assert!(!waits(Lane::High) && !waits(Lane::Low), "ahead of its turn"),
        }
        Ok(())
    }

    /// Nothing to do means that nobody has room or nobody waits, and that no time before the next moment changes it.
    fn nothing_to_do(&self) -> Checked {
        let waits = |lane| self.waiting(lane).next().is_some();
        for view in self.dispatcher.replicas() {
            if limit(&view).is_some_and(|limit| (view.in_flight as u64) < limit) {
                prop_assert!(!waits(Lane::High) && !waits(Lane::Low), "one waits and {view:?} has room");
                prop_assert!(!waits(Lane::Ahead) || view.in_flight > 0, "{view:?} has nothing to do");
            }
        }
        let wake = self.dispatcher.wake_at();
        prop_assert!(wake.is_none_or(|wake| wake > self.now), "wakes at once");
        let before =
            wake.map_or(self.now + Duration::from_secs(86_400), |wake| wake - Duration::from_nanos(1));
        prop_assert_eq!(
            self.dispatcher.clone().poll(before),
            None,
            "there was something to do before {:?}",
            wake
        );
        Ok(())
    }

    fn answer(&mut self, ticket: Ticket, replica: ReplicaId) -> Checked {
        if self.is_expired(ticket) {
            prop_assert_eq!(self.dispatcher.answered(ticket, replica, self.now), Answered::Late);
            return Ok(());
        }
        match self.dispatcher.answered(ticket, replica, self.now) {
            Answered::Late => Err(TestCaseError::fail(format!("the answer to {ticket} is not late"))),
            Answered::Accepted { stop } => {
                self.take_copy(ticket, replica);
                self.nodes.get_mut(&replica).unwrap().responds();
                self.ends(ticket, &stop)
            }
        }
    }

    fn fail(&mut self, ticket: Ticket, replica: ReplicaId, failure: Failure) -> Checked {
        let fate = self.dispatcher.failed(ticket, replica, failure, self.now);
        if self.is_expired(ticket) {
            prop_assert_eq!(fate, AfterFailure::Late);
            return Ok(());
        }
        self.take_copy(ticket, replica);
        self.nodes.get_mut(&replica).unwrap().learns(failure, self.now, self.settings.backoff);
        let is_final = matches!(failure, Failure::Broken | Failure::Rejected);
        match &fate {
            AfterFailure::Queued => {
                self.counts.retries += u64::from(!matches!(failure, Failure::Overloaded { .. }));
            }
            AfterFailure::Ended { reason: GaveUp::RetryBudget { .. }, .. } => {
                prop_assert_eq!(failure, Failure::Unavailable, "what is charged is a failure");
            }
            AfterFailure::Ended { reason: GaveUp::Broken, .. } => prop_assert_eq!(failure, Failure::Broken),
            AfterFailure::Ended { reason: GaveUp::Rejected, .. } => {
                prop_assert_eq!(failure, Failure::Rejected);
            }
            _ => {}
        }
        prop_assert!(!is_final || matches!(fate, AfterFailure::Ended { .. }), "asked again");
        self.fate(ticket, fate)
    }

    fn fate(&mut self, ticket: Ticket, fate: AfterFailure) -> Checked {
        let asked = &self.asked[&ticket];
        match fate {
            AfterFailure::Late => Err(TestCaseError::fail(format!("the failure of {ticket} is not late"))),
            AfterFailure::OtherCopy => {
                prop_assert!(!asked.copies.is_empty());
                Ok(())
            }
            AfterFailure::Queued => {
                prop_assert!(asked.copies.is_empty() && asked.sends < self.settings.attempts);
                self.moved.insert(ticket);
                Ok(())
            }
            AfterFailure::Ended { reason, stop } => {
                if let GaveUp::Attempts { limit } = reason {
                    prop_assert_eq!((limit, asked.sends), (self.settings.attempts, limit));
                }
                self.ends(ticket, &stop)
            }
        }
    }

    fn cancel(&mut self, index: &Index) -> Checked {
        let Some(ticket) = self.any_ticket(index) else { return Ok(()) };
        let stop = self.dispatcher.cancel(ticket);
        // One that expired and was not told yet is open to the model alone.
        let is_over = self.asked[&ticket].has_ended || (self.is_expired(ticket) && stop.is_none());
        if is_over {
            prop_assert_eq!(stop, None);
            return Ok(());
        }
        self.ends(ticket, &stop.unwrap())
    }

    fn promote(&mut self, index: &Index) -> Checked {
        let Some(ticket) = self.any_ticket(index) else { return Ok(()) };
        let promoted = self.dispatcher.promote(ticket);
        let is_expired = self.is_expired(ticket);
        let asked = self.asked.get_mut(&ticket).unwrap();
        let may_be = !asked.has_ended && asked.question.lane == Lane::Ahead;
        prop_assert!(promoted == may_be || (may_be && is_expired));
        if promoted {
            asked.question.lane = Lane::Low;
            self.moved.insert(ticket);
        }
        Ok(())
    }

    fn late(&mut self, index: &Index, replica: ReplicaId) -> Checked {
        let Some(ticket) = self.any_ticket(index) else { return Ok(()) };
        if self.asked[&ticket].copies.contains_key(&replica) {
            return Ok(());
        }
        prop_assert_eq!(self.dispatcher.answered(ticket, replica, self.now), Answered::Late);
        let failed = self.dispatcher.failed(ticket, replica, Failure::Unavailable, self.now);
        prop_assert_eq!(failed, AfterFailure::Late);
        Ok(())
    }

    /// A question ends, once, and says where its copies are.
    fn ends(&mut self, ticket: Ticket, stop: &[ReplicaId]) -> Checked {
        let asked = self.asked.get_mut(&ticket).unwrap();
        prop_assert!(!asked.has_ended, "{ticket} ended twice");
        asked.has_ended = true;
        let copies = std::mem::take(&mut asked.copies);
        prop_assert_eq!(stop.iter().collect::<BTreeSet<_>>(), copies.keys().collect::<BTreeSet<_>>());
        for replica in stop {
            // It may have left since.
            if let Some(node) = self.nodes.get_mut(replica) {
                node.has.remove(&ticket);
            }
        }
        self.moved.remove(&ticket);
        Ok(())
    }

    fn take_copy(&mut self, ticket: Ticket, replica: ReplicaId) {
        self.asked.get_mut(&ticket).unwrap().copies.remove(&replica);
        self.nodes.get_mut(&replica).unwrap().has.remove(&ticket);
    }

    /// What both sides count, unless the dispatcher has yet to tell what expired.
    fn agrees(&mut self) -> Checked {
        if self.asked.keys().any(|ticket| self.is_expired(*ticket)) {
            return Ok(());
        }
        for view in self.views_now() {
            let node = &self.nodes[&view.id];
            prop_assert_eq!((view.capacity, view.in_flight), (node.capacity, node.has.len()));
            prop_assert!(view.in_flight <= node.capacity as usize);
            // Without a question the time of the last call is not known here.
            if !self.asked.is_empty() {
                prop_assert_eq!(view.state, node.state(self.now));
            }
        }
        prop_assert_eq!(self.dispatcher.replicas().count(), self.nodes.len());
        let open = self.asked.values().filter(|asked| !asked.has_ended).count();
        prop_assert_eq!(self.dispatcher.open(), open);
        for (lane, limit) in [
            (Lane::High, self.settings.queue.high),
            (Lane::Low, self.settings.queue.low),
            (Lane::Ahead, self.settings.queue.ahead),
        ] {
            prop_assert_eq!(self.dispatcher.waiting(lane), self.waiting(lane).count());
            let beside = self.waiting(lane).filter(|ticket| self.moved.contains(ticket)).count();
            prop_assert!(self.dispatcher.waiting(lane) <= limit + beside, "{lane} holds too many");
        }
        Ok(())
    }

    fn views_now(&mut self) -> Vec<ReplicaView> {
        // Late news of an unknown replica takes the time in and changes nothing else.
        if let Some(ticket) = self.asked.keys().next() {
            let _ = self.dispatcher.answered(*ticket, ReplicaId::of("nobody"), self.now);
        }
        self.dispatcher.replicas().collect()
    }

    fn is_expired(&self, ticket: Ticket) -> bool {
        let asked = &self.asked[&ticket];
        !asked.has_ended && asked.question.deadline.is_some_and(|deadline| deadline <= self.now)
    }

    fn waiting(&self, lane: Lane) -> impl Iterator<Item = Ticket> {
        let waits = move |(_, asked): &(&Ticket, &Asked)| asked.waits() && asked.question.lane == lane;
        self.asked.iter().filter(waits).map(|(ticket, _)| *ticket)
    }

    fn flights(&self) -> Vec<(Ticket, ReplicaId)> {
        let copies = |(ticket, asked): (&Ticket, &Asked)| {
            let ticket = *ticket;
            asked.copies.keys().map(move |replica| (ticket, *replica)).collect::<Vec<_>>()
        };
        self.asked.iter().flat_map(copies).collect()
    }

    fn flight(&self, index: &Index) -> Option<(Ticket, ReplicaId)> {
        let flights = self.flights();
        (!flights.is_empty()).then(|| *index.get(&flights))
    }

    fn any_ticket(&self, index: &Index) -> Option<Ticket> {
        (!self.asked.is_empty()).then(|| *self.asked.keys().nth(index.index(self.asked.len())).unwrap())
    }
}
