use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU32;
use std::time::Duration;

use crate::budget::Budget;
use crate::fleet::{Fleet, Home, Totals, Wish};
use crate::hedge::Stragglers;
use crate::lane::Place;
use crate::lanes::Lanes;
use crate::overdue::Overdue;
use crate::{
    Action, AfterFailure, AlreadyJoined, Answered, Failure, GaveUp, Lane, Question, Refused, ReplicaId,
    ReplicaView, Settings, SettingsError, Ticket, UnknownReplica, Why,
};

/// What a refused caller is told while service times or replicas are unknown.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const RETRY_AFTER_LEAST: Duration = Duration::from_millis(100);
const RETRY_AFTER_MOST: Duration = Duration::from_secs(30);

/// Questions of a lane that are looked at to find one whose replica has room.
const LOOKED_AT: usize = 64;

/// A copy of a question that a replica has.
#[derive(Debug, Clone, Copy)]
struct Flight {
    replica: ReplicaId,
    sent: Duration,
}

/// A question that was taken and has not ended. It waits if and only if it has no copies in flight.
#[derive(Debug, Clone)]
struct Open {
    question: Question,
    place: Place,
    flights: Vec<Flight>,
    /// Copies that were ever sent.
    sends: u32,
    is_hedged: bool,
    /// Questions behind it that started before it.
    passed_over: u32,
    /// Replicas that failed it or were lost with it.
    failed_at: Vec<ReplicaId>,
    /// Where its image belongs, as last looked up.
    home: Option<Home>,
    /// The replica that it was kept to.
    kept: Option<ReplicaId>,
}

impl Open {
    fn replicas(&self) -> Vec<ReplicaId> {
        self.flights.iter().map(|flight| flight.replica).collect()
    }
}

/// The questions of a coordinator, waiting and in flight, and the replicas that answer them.
///
/// After every call, and at [`Dispatcher::wake_at`], do what [`Dispatcher::poll`] says until it says nothing. The
/// crate's documentation states what it guarantees.
///
/// ```
/// use std::num::NonZeroU32;
/// use std::time::Duration;
/// use thicket_dispatch::*;
///
/// let mut dispatcher = Dispatcher::new(Settings::default())?;
/// let replica = ReplicaId::of("answer-0");
/// dispatcher.join(replica, NonZeroU32::new(8).unwrap())?;
///
/// let question = Question {
///     lane: Lane::High,
///     urgency: Urgency::Interactive,
///     deadline: Some(Duration::from_secs(30)),
///     image: Some(ImageKey::of(b"the image's hash")),
///     kind: Kind(0),
/// };
/// let now = Duration::ZERO;
/// let ticket = dispatcher.submit(question, now)?;
/// assert_eq!(dispatcher.poll(now), Some(Action::Ask { ticket, replica, why: Why::First }));
/// assert_eq!(dispatcher.poll(now), None);
/// assert_eq!(dispatcher.wake_at(), Some(Duration::from_secs(30)));
///
/// let now = Duration::from_secs(1);
/// assert_eq!(dispatcher.answered(ticket, replica, now), Answered::Accepted { stop: vec![] });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Dispatcher {
    settings: Settings,
    now: Duration,
    next_ticket: u64,
    open: BTreeMap<Ticket, Open>,
    /// Of every open question that has one.
    deadlines: BTreeSet<(Duration, Ticket)>,
    lanes: Lanes,
    fleet: Fleet,
    stragglers: Stragglers,
    overdue: Overdue,
    retries: Budget,
    hedges: Budget,
    /// A running mean of all service times.
    service: Option<Duration>,
    /// What has happened and was not told yet.
    untold: VecDeque<Action>,
}

impl Dispatcher {
    /// A dispatcher without questions and replicas.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        settings.check()?;
        Ok(Self {
            settings,
            now: Duration::ZERO,
            next_ticket: 0,
            open: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            lanes: Lanes::new(settings.high_burst),
            fleet: Fleet::new(settings.load_percent),
            stragglers: Stragglers::new(settings.hedge_after),
            overdue: Overdue::new(settings.silence),
            retries: Budget::new(settings.retries),
            hedges: Budget::new(settings.hedges),
            service: None,
            untold: VecDeque::new(),
        })
    }

    /// A replica begins to take questions, at most `capacity` at a time.
    ///
    /// # Errors
    /// [`AlreadyJoined`], also while it drains: it has to leave first.
    pub fn join(&mut self, replica: ReplicaId, capacity: NonZeroU32) -> Result<(), AlreadyJoined> {
        self.fleet.join(replica, capacity.get())
    }

    /// A replica takes no more questions; those it has are awaited. It leaves with [`Self::leave`].
    ///
    /// # Errors
    /// [`UnknownReplica`].
    pub fn drain(&mut self, replica: ReplicaId) -> Result<(), UnknownReplica> {
        self.fleet.change(replica)?.drain();
        Ok(())
    }

    /// A replica is gone or lost. Says what becomes of each question it had, oldest first: it waits again at its old
    /// place, another copy goes on, or its attempts are spent. Where an answer had begun to come, report
    /// [`Failure::Broken`] before this.
    ///
    /// # Errors
    /// [`UnknownReplica`].
    pub fn leave(
        &mut self,
        replica: ReplicaId,
        now: Duration,
    ) -> Result<Vec<(Ticket, AfterFailure)>, UnknownReplica> {
        self.advance(now);
        let had = self.fleet.leave(replica)?;
        let mut fates = Vec::with_capacity(had.len());
        for ticket in had {
            if self.take_flight(ticket, replica).is_some() {
                fates.push((ticket, self.again(ticket, replica, false)));
            }
        }
        Ok(fates)
    }

    /// Lets a question wait.
    ///
    /// # Errors
    /// [`Refused`] where its lane is full or its deadline has passed.
    pub fn submit(&mut self, question: Question, now: Duration) -> Result<Ticket, Refused> {
        self.advance(now);
        if let Some(deadline) = question.deadline
            && deadline <= self.now
        {
            return Err(Refused::Expired { late: self.now - deadline });
        }
        let lane = question.lane;
        let (limit, actual) = (self.settings.queue.of(lane), self.lanes.len(lane));
        if actual >= limit {
            return Err(Refused::Full { lane, limit, actual, retry_after: self.retry_after(actual) });
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let place = Place::new(&question, ticket);
        self.lanes.insert(lane, place);
        if let Some(deadline) = question.deadline {
            self.deadlines.insert((deadline, ticket));
        }
        let open = Open {
            question,
            place,
            flights: vec![],
            sends: 0,
            is_hedged: false,
            passed_over: 0,
            failed_at: vec![],
            home: None,
            kept: None,
        };
        self.open.insert(ticket, open);
        Ok(ticket)
    }

    /// Keeps a question to one replica, for as long as that accepts questions and has not failed this one: it waits for
    /// room there and is not hedged. For questions whose answers must come from one state. False where it is not open.
    pub fn keep(&mut self, ticket: Ticket, replica: ReplicaId) -> bool {
        let Some(open) = self.open.get_mut(&ticket) else { return false };
        open.kept = Some(replica);
        true
    }

    /// A question that was asked ahead is waited for now: from here on it is one of the low lane, which takes it
    /// whatever its limit. False where it is not open in the ahead lane.
    pub fn promote(&mut self, ticket: Ticket) -> bool {
        let Some(open) = self.open.get_mut(&ticket) else { return false };
        if open.question.lane != Lane::Ahead {
            return false;
        }
        open.question.lane = Lane::Low;
        if self.lanes.remove(Lane::Ahead, &open.place) {
            self.lanes.insert(Lane::Low, open.place);
        }
        self.watch(ticket);
        true
    }

    /// What has to be done next, one thing at a time; `None` where there is nothing before [`Self::wake_at`] or the
    /// next call.
    pub fn poll(&mut self, now: Duration) -> Option<Action> {
        self.advance(now);
        self.untold.pop_front().or_else(|| self.lose()).or_else(|| self.hedge()).or_else(|| self.start())
    }

    /// The next moment at which time alone may change what [`Self::poll`] says, once it has said nothing; `None` where
    /// no time will.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        if !self.untold.is_empty() {
            return Some(self.now);
        }
        if self.open.is_empty() {
            return None;
        }
        let deadline = self.deadlines.first().map(|(deadline, _)| *deadline);
        let late = self.hedges.has_token().then(|| self.stragglers.next_late(self.now)).flatten();
        let accepts_again = self.fleet.accepts_again(self.now);
        [deadline, late, self.overdue.next(), accepts_again].into_iter().flatten().min()
    }

    /// Reports an answer. The first one ends the question.
    pub fn answered(&mut self, ticket: Ticket, replica: ReplicaId, now: Duration) -> Answered {
        self.advance(now);
        let Some(flight) = self.take_flight(ticket, replica) else { return Answered::Late };
        if let Ok(replica) = self.fleet.get_mut(replica) {
            replica.responded();
        }
        let took = self.now - flight.sent;
        self.service = Some(self.service.map_or(took, |mean| mean - mean / 8 + took / 8));
        if let Some(open) = self.open.get(&ticket) {
            self.stragglers.record(open.question.kind, took);
            self.overdue.record(open.question.kind, took);
        }
        Answered::Accepted { stop: self.end(ticket).unwrap_or_default() }
    }

    /// Reports that a copy failed, and says what becomes of the question.
    pub fn failed(
        &mut self,
        ticket: Ticket,
        replica: ReplicaId,
        failure: Failure,
        now: Duration,
    ) -> AfterFailure {
        self.advance(now);
        if self.take_flight(ticket, replica).is_none() {
            return AfterFailure::Late;
        }
        let backoff = &self.settings.backoff;
        if let Ok(replica) = self.fleet.change(replica) {
            match failure {
                Failure::Overloaded { retry_after } => replica.overloaded(self.now, retry_after, backoff),
                Failure::Unavailable | Failure::Broken => replica.failed(self.now, backoff),
                Failure::Rejected => replica.responded(),
            }
        }
        match failure {
            Failure::Overloaded { .. } => self.again(ticket, replica, false),
            Failure::Unavailable => self.again(ticket, replica, true),
            Failure::Broken => self.give_up(ticket, GaveUp::Broken),
            Failure::Rejected => self.give_up(ticket, GaveUp::Rejected),
        }
    }

    /// Ends a question whose caller went away, and says where copies of it are to be stopped. `None` where it has ended.
    pub fn cancel(&mut self, ticket: Ticket) -> Option<Vec<ReplicaId>> {
        self.end(ticket)
    }

    /// Questions that wait in a lane.
    #[must_use]
    pub fn waiting(&self, lane: Lane) -> usize {
        self.lanes.len(lane)
    }

    /// Questions that were taken and have not ended.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// The replicas, as they are at the last moment that was passed in.
    pub fn replicas(&self) -> impl Iterator<Item = ReplicaView> {
        self.fleet.views(self.now)
    }

    /// Takes the time in and ends what expired by it, so that no other call sees an expired question.
    fn advance(&mut self, now: Duration) {
        self.now = self.now.max(now);
        while let Some(&(deadline, ticket)) = self.deadlines.first()
            && deadline <= self.now
        {
            let slow: Vec<ReplicaId> = self.open.get(&ticket).map_or_else(Vec::new, |open| {
                let is_long = |sent| self.overdue.is_long(open.question.kind, self.now.saturating_sub(sent));
                let flights = open.flights.iter().filter(|flight| is_long(flight.sent));
                flights.map(|flight| flight.replica).collect()
            });
            let stop = self.end(ticket).unwrap_or_default();
            self.untold.push_back(Action::Expire { ticket, stop });
            for replica in slow {
                self.blame(replica);
            }
        }
    }

    /// Gives up a copy that was not answered for too long.
    fn lose(&mut self) -> Option<Action> {
        let (ticket, replica) = self.overdue.first(self.now)?;
        self.take_flight(ticket, replica)?;
        let is_ejected = self.blame(replica);
        if !is_ejected && let Ok(replica) = self.fleet.change(replica) {
            replica.failed(self.now, &self.settings.backoff);
        }
        let fate = self.again(ticket, replica, !is_ejected);
        Some(Action::Lose { ticket, replica, is_ejected, fate })
    }

    /// A replica has left a copy unanswered. After too many in a row it is ejected; whether it was.
    fn blame(&mut self, replica: ReplicaId) -> bool {
        let Some(silence) = self.settings.silence else { return false };
        let Ok(hung) = self.fleet.change(replica) else { return false };
        if hung.was_silent() < silence.eject_after {
            return false;
        }
        hung.failed(self.now, &self.settings.backoff);
        let had: Vec<Ticket> = hung.in_flight().iter().copied().collect();
        for ticket in had {
            if self.take_flight(ticket, replica).is_some() {
                let fate = self.again(ticket, replica, false);
                self.untold.push_back(Action::Lose { ticket, replica, is_ejected: true, fate });
            }
        }
        true
    }

    fn start(&mut self) -> Option<Action> {
        let (ticket, replica) = self.next(self.lanes.turn()?)?;
        let open = self.open.get(&ticket)?;
        let why = if open.sends == 0 { Why::First } else { Why::Retry };
        let (lane, place) = (open.question.lane, open.place);
        let passed_over: Vec<_> = self.lanes.in_order(lane).take_while(|other| *other < place).collect();
        for other in passed_over {
            self.open.get_mut(&other.ticket)?.passed_over += 1;
        }
        self.lanes.start(lane, &place);
        if why == Why::First {
            self.retries.call();
            self.hedges.call();
        }
        self.send(ticket, replica);
        self.watch(ticket);
        Some(Action::Ask { ticket, replica, why })
    }

    /// The question of a lane that starts next, and where: the first, or one behind it that finds room where its image
    /// belongs when the first does not and may still be passed over.
    fn next(&mut self, lane: Lane) -> Option<(Ticket, ReplicaId)> {
        let looked_at = if self.settings.pass_over == 0 { 1 } else { LOOKED_AT };
        let waiting: Vec<Place> = self.lanes.in_order(lane).take(looked_at).collect();
        let (first, behind) = waiting.split_first()?;
        let elsewhere = self.choose(first.ticket)?;
        if behind.is_empty() || self.home(first.ticket).is_none_or(|home| home == elsewhere) {
            return Some((first.ticket, elsewhere));
        }
        let most = self.settings.pass_over;
        let may_pass = |open: Option<&Open>| open.is_some_and(|open| open.passed_over < most);
        let totals = self.fleet.totals(self.now);
        let mut before = first;
        for place in behind {
            if !may_pass(self.open.get(&before.ticket)) || place.urgency != first.urgency {
                break;
            }
            if let Some(home) = self.home(place.ticket)
                && self.goes_home(place.ticket, home, totals)
            {
                return Some((place.ticket, home));
            }
            before = place;
        }
        Some((first.ticket, elsewhere))
    }

    /// The replica that takes a waiting question.
    fn choose(&self, ticket: Ticket) -> Option<ReplicaId> {
        let open = self.open.get(&ticket)?;
        let wish = Wish {
            ticket,
            image: open.question.image,
            kept: open.kept,
            avoid: &open.failed_at,
            except: &[],
            is_patient: open.question.lane == Lane::Ahead,
        };
        self.fleet.choose(wish, self.now)
    }

    /// The replica where a question's image belongs.
    fn home(&mut self, ticket: Ticket) -> Option<ReplicaId> {
        let open = self.open.get_mut(&ticket)?;
        let home = self.fleet.home(open.question.image?, open.home, self.now);
        open.home = Some(home);
        home.replica()
    }

    /// Whether [`Self::choose`] gives a question to the replica where its image belongs.
    fn goes_home(&self, ticket: Ticket, home: ReplicaId, totals: Totals) -> bool {
        let Some((open, replica)) = self.open.get(&ticket).zip(self.fleet.get(home)) else { return false };
        let is_patient = open.question.lane == Lane::Ahead;
        if !self.fleet.has_room(replica, totals) || (is_patient && replica.load() > 0) {
            return false;
        }
        // It is the first in the image's order; only having failed the question puts it behind others.
        !open.failed_at.contains(&home) || self.choose(ticket) == Some(home)
    }

    fn hedge(&mut self) -> Option<Action> {
        if !self.hedges.has_token() {
            return None;
        }
        let elsewhere = |ticket| {
            let open = self.open.get(&ticket)?;
            let wish = Wish {
                ticket,
                image: open.question.image,
                kept: open.kept,
                avoid: &open.failed_at,
                except: &open.replicas(),
                is_patient: false,
            };
            Some((ticket, self.fleet.choose(wish, self.now)?))
        };
        let (ticket, replica) = self.stragglers.late(self.now).find_map(elsewhere)?;
        self.hedges.spend();
        self.unwatch(ticket);
        self.open.get_mut(&ticket)?.is_hedged = true;
        self.send(ticket, replica);
        Some(Action::Ask { ticket, replica, why: Why::Hedge })
    }

    fn send(&mut self, ticket: Ticket, replica: ReplicaId) {
        if let Some(open) = self.open.get_mut(&ticket) {
            open.sends += 1;
            open.flights.push(Flight { replica, sent: self.now });
            self.overdue.watch(open.question.kind, self.now, ticket, replica);
        }
        if let Ok(replica) = self.fleet.get_mut(replica) {
            replica.take(ticket);
        }
    }

    /// Takes a copy back from a replica; `None` where the replica does not have the question.
    fn take_flight(&mut self, ticket: Ticket, replica: ReplicaId) -> Option<Flight> {
        let open = self.open.get(&ticket)?;
        let position = open.flights.iter().position(|flight| flight.replica == replica)?;
        self.unwatch(ticket);
        let open = self.open.get_mut(&ticket)?;
        let flight = open.flights.remove(position);
        self.overdue.forget(open.question.kind, flight.sent, ticket, replica);
        if let Ok(replica) = self.fleet.get_mut(replica) {
            replica.give_back(ticket);
        }
        Some(flight)
    }

    /// Lets a question wait again whose copy came to nothing, where it may.
    fn again(&mut self, ticket: Ticket, failed_at: ReplicaId, is_counted: bool) -> AfterFailure {
        let Some(open) = self.open.get_mut(&ticket) else { return AfterFailure::Late };
        open.failed_at.push(failed_at);
        if !open.flights.is_empty() {
            return AfterFailure::OtherCopy;
        }
        let limit = self.settings.attempts;
        if open.sends >= limit {
            return self.give_up(ticket, GaveUp::Attempts { limit });
        }
        if is_counted && !self.retries.spend() {
            return self.give_up(ticket, GaveUp::RetryBudget { percent: self.retries.percent() });
        }
        self.lanes.insert(open.question.lane, open.place);
        AfterFailure::Queued
    }

    fn give_up(&mut self, ticket: Ticket, reason: GaveUp) -> AfterFailure {
        AfterFailure::Ended { reason, stop: self.end(ticket).unwrap_or_default() }
    }

    /// Takes a question out, wherever it is, and says where copies of it are.
    fn end(&mut self, ticket: Ticket) -> Option<Vec<ReplicaId>> {
        self.unwatch(ticket);
        let open = self.open.remove(&ticket)?;
        if let Some(deadline) = open.question.deadline {
            self.deadlines.remove(&(deadline, ticket));
        }
        self.lanes.remove(open.question.lane, &open.place);
        for flight in &open.flights {
            self.overdue.forget(open.question.kind, flight.sent, ticket, flight.replica);
        }
        let replicas = open.replicas();
        for replica in &replicas {
            if let Ok(replica) = self.fleet.get_mut(*replica) {
                replica.give_back(ticket);
            }
        }
        Some(replicas)
    }

    /// Watches a question for becoming late, where a second copy may be sent: somebody waits for it, it is in flight
    /// once, was not hedged and has an attempt left.
    fn watch(&mut self, ticket: Ticket) {
        if let Some(open) = self.open.get(&ticket)
            && let [Flight { sent, .. }] = open.flights[..]
            && open.question.lane != Lane::Ahead
            && !open.is_hedged
            && open.sends < self.settings.attempts
        {
            self.stragglers.watch(open.question.kind, sent, ticket);
        }
    }

    fn unwatch(&mut self, ticket: Ticket) {
        if let Some(open) = self.open.get(&ticket)
            && let [Flight { sent, .. }] = open.flights[..]
        {
            self.stragglers.forget(open.question.kind, sent, ticket);
        }
    }

    /// About as long as a lane with so many questions needs to be worked off.
    fn retry_after(&self, waiting: usize) -> Duration {
        let capacity = self.fleet.capacity();
        let Some(service) = self.service.filter(|_| capacity > 0) else { return RETRY_AFTER };
        let nanos = service.as_nanos() * (waiting as u128 + 1) / u128::from(capacity);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            .clamp(RETRY_AFTER_LEAST, RETRY_AFTER_MOST)
    }
}
