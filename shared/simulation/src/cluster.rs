use std::collections::BTreeMap;
use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use thicket_dispatch::{Failure, ReplicaId};
use thicket_thi::{Answer, Interaction};

use crate::coordinator::{Coordinator, Effect};
use crate::fault::{self, Fault};
use crate::machine::{Arrival, Call, CallId, Machine, Task};
use crate::station::Station;
use crate::timeline::Timeline;
use crate::{Cohort, End, Scenario, ScenarioError};

/// What an overloaded replica asks for.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// What was drawn and what came of it.
#[derive(Debug, Clone)]
pub struct Run {
    /// The queries and all answers.
    pub cohort: Cohort,
    /// Every end of a query in the order of time: the query, how it ended, its interaction then, and when. A query
    /// that is missing never ended, one that is there twice ended twice; neither should be.
    pub ends: Vec<(usize, End, Interaction<usize>, Duration)>,
    /// When each query arrived.
    pub arrivals: Vec<Duration>,
    /// Questions sent, every copy counted.
    pub sent: usize,
    /// Answers that came when nobody waited for them.
    pub late: usize,
}

/// Runs a scenario to its end. Equal arguments give equal runs.
///
/// # Errors
/// [`ScenarioError`] where it cannot be simulated.
pub fn run(scenario: &Scenario, seed: u64) -> Result<Run, ScenarioError> {
    scenario.check()?;
    let stream = |stream| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        rng
    };
    // Streams of their own: the same queries meet the same faults whatever the schedule draws.
    let cohort = Cohort::draw(scenario, &mut stream(1));
    let faults = fault::draw(&scenario.faults, scenario.replicas, &mut stream(2));
    let mut arrivals = Vec::with_capacity(scenario.queries);
    let (mut rng, mut moment) = (stream(3), Duration::ZERO);
    for _ in 0..scenario.queries {
        moment += scenario.arrivals.draw(&mut rng);
        arrivals.push(moment);
    }

    let mut cluster = Cluster::new(scenario, &cohort, stream(4))?;
    for (query, &arrival) in arrivals.iter().enumerate() {
        cluster.timeline.at(arrival, Event::Arrives(query));
    }
    for (moment, replica, fault) in faults {
        cluster.timeline.at(moment, Event::Fault(replica, fault));
    }
    cluster.run();
    let Cluster { coordinator, sent, late, .. } = cluster;
    let ends = coordinator.ends;
    Ok(Run { cohort, ends, arrivals, sent, late })
}

/// What a replica says about a call.
#[derive(Debug, Clone, Copy)]
enum Reply {
    Answer(Answer),
    Failure(Failure),
}

/// A query to be ranked.
#[derive(Debug, Clone, Copy)]
enum Rank {
    First(usize),
    Again(usize),
}

#[derive(Debug)]
enum Event {
    /// A query arrives.
    Arrives(usize),
    /// A query has been ranked.
    Ranked(Rank),
    /// A query that was refused tries again.
    Later(usize),
    /// A message to a replica arrives.
    Asked(Call),
    Stopped(ReplicaId, CallId),
    /// A replica is done with a call.
    Done(usize, CallId),
    /// A message from a replica arrives.
    Replied(Call, Reply),
    /// A call has taken as long as calls may.
    TimedOut(Call),
    /// A lease that is not renewed ends.
    LeaseEnds(usize),
    Fault(usize, Fault),
    /// The dispatcher wanted to be asked now.
    Wake,
}

struct Cluster<'a> {
    scenario: &'a Scenario,
    cohort: &'a Cohort,
    rng: ChaCha8Rng,
    timeline: Timeline<Event>,
    names: Vec<ReplicaId>,
    numbers: BTreeMap<ReplicaId, usize>,
    machines: Vec<Machine>,
    coordinator: Coordinator<'a>,
    ranking: Station<Rank>,
    woken_at: Option<Duration>,
    sent: usize,
    late: usize,
}

impl<'a> Cluster<'a> {
    fn new(scenario: &'a Scenario, cohort: &'a Cohort, rng: ChaCha8Rng) -> Result<Self, ScenarioError> {
        let names: Vec<_> =
            (0..scenario.replicas).map(|number| ReplicaId::of(&format!("answer-{number}"))).collect();
        let mut coordinator = Coordinator::new(scenario, cohort)?;
        for name in &names {
            coordinator.join(*name, Duration::ZERO);
        }
        Ok(Self {
            scenario,
            cohort,
            rng,
            timeline: Timeline::new(),
            numbers: names.iter().enumerate().map(|(number, name)| (*name, number)).collect(),
            machines: names.iter().map(|_| Machine::new(scenario.slots)).collect(),
            names,
            coordinator,
            ranking: Station::new(scenario.ranking.slots),
            woken_at: None,
            sent: 0,
            late: 0,
        })
    }

    fn run(&mut self) {
        while let Some(event) = self.timeline.pop() {
            self.happens(event);
            let now = self.timeline.now();
            for effect in self.coordinator.effects(now) {
                self.takes_effect(effect);
            }
            self.plan_waking();
        }
    }

    fn plan_waking(&mut self) {
        let Some(wake) = self.coordinator.wake_at() else { return };
        if self.woken_at.is_none_or(|planned| wake < planned || planned <= self.timeline.now()) {
            self.woken_at = Some(wake);
            self.timeline.at(wake, Event::Wake);
        }
    }

    fn happens(&mut self, event: Event) {
        let now = self.timeline.now();
        match event {
            Event::Arrives(query) => self.rank(Rank::First(query)),
            Event::Ranked(rank) => {
                if let Some(next) = self.ranking.done() {
                    self.begin_ranking(next);
                }
                match rank {
                    Rank::First(query) => self.coordinator.arrives(query, now),
                    Rank::Again(query) => self.coordinator.ranked_again(query, now),
                }
            }
            Event::Later(query) => self.coordinator.go_on(query, now),
            Event::Asked(call) => self.asked(call),
            Event::Stopped(replica, call) => {
                let number = self.numbers[&replica];
                self.machines[number].stop(call);
                self.begin(number);
            }
            Event::Done(number, call) => {
                if let Some(call) = self.machines[number].done(call) {
                    self.reply(number, call, Reply::Answer(self.answer(&call)));
                    self.begin(number);
                }
            }
            Event::Replied(call, reply) => self.replied(&call, reply),
            Event::TimedOut(call) => self.coordinator.failed(&call, Failure::Unavailable, now),
            Event::LeaseEnds(number) => {
                if !self.machines[number].is_alive() {
                    self.coordinator.leave(self.names[number], now);
                }
            }
            Event::Fault(number, fault) => self.strikes(number, fault),
            Event::Wake => {}
        }
    }

    fn takes_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Send(call) => {
                self.sent += 1;
                self.timeline.after(self.scenario.call_timeout, Event::TimedOut(call));
                self.message(self.numbers[&call.replica], Event::Asked(call));
            }
            Effect::Stop(replica, call) => {
                self.message(self.numbers[&replica], Event::Stopped(replica, call));
            }
            Effect::Later(query, moment) => self.timeline.at(moment, Event::Later(query)),
            Effect::RankAgain(query) => self.rank(Rank::Again(query)),
        }
    }

    fn rank(&mut self, rank: Rank) {
        if let Some(rank) = self.ranking.arrives(rank) {
            self.begin_ranking(rank);
        }
    }

    fn begin_ranking(&mut self, rank: Rank) {
        let takes = self.scenario.ranking.takes.draw(&mut self.rng);
        self.timeline.after(takes, Event::Ranked(rank));
    }

    /// Sends a message to or from a replica; it may be lost on the way.
    fn message(&mut self, number: usize, event: Event) {
        let delay = self.scenario.network.latency.draw(&mut self.rng);
        let is_lost = rand::Rng::random::<f64>(&mut self.rng) < self.scenario.network.loss;
        if !is_lost && !self.machines[number].is_cut_off {
            self.timeline.after(delay, event);
        }
    }

    fn asked(&mut self, call: Call) {
        let number = self.numbers[&call.replica];
        let machine = &mut self.machines[number];
        if machine.is_cut_off {
            return;
        }
        match machine.arrives(call) {
            Arrival::Taken => self.begin(number),
            Arrival::Overloaded => {
                let failure = Failure::Overloaded { retry_after: RETRY_AFTER };
                self.reply(number, call, Reply::Failure(failure));
            }
            Arrival::Refused => self.reply(number, call, Reply::Failure(Failure::Unavailable)),
        }
    }

    fn begin(&mut self, number: usize) {
        for (call, takes) in self.machines[number].begin(&self.scenario.service, &mut self.rng) {
            self.timeline.after(takes, Event::Done(number, call));
        }
    }

    fn reply(&mut self, number: usize, call: Call, reply: Reply) {
        self.message(number, Event::Replied(call, reply));
    }

    fn replied(&mut self, call: &Call, reply: Reply) {
        if self.machines[self.numbers[&call.replica]].is_cut_off {
            return;
        }
        let now = self.timeline.now();
        self.late += usize::from(!self.coordinator.waits_for(call));
        match reply {
            Reply::Answer(answer) => self.coordinator.answered(call, answer, now),
            Reply::Failure(failure) => self.coordinator.failed(call, failure, now),
        }
    }

    /// What the model says, whichever replica it runs on.
    fn answer(&self, call: &Call) -> Answer {
        match call.task {
            Task::Locate { round } => self.cohort.answer(call.query, round),
            Task::Describe | Task::Aggregate => Answer::Yes,
        }
    }

    fn strikes(&mut self, number: usize, fault: Fault) {
        let now = self.timeline.now();
        let (name, lease) = (self.names[number], self.scenario.lease);
        let machine = &mut self.machines[number];
        match fault {
            Fault::Crash { is_silent } => {
                let had = machine.crash();
                self.timeline.after(lease, Event::LeaseEnds(number));
                for call in had.into_iter().filter(|_| !is_silent) {
                    self.reply(number, call, Reply::Failure(Failure::Unavailable));
                }
            }
            Fault::Drain => self.coordinator.drain(name),
            Fault::Stop => {
                machine.crash();
                self.coordinator.leave(name, now);
            }
            Fault::Start => {
                if !machine.is_up {
                    machine.is_up = true;
                    if machine.is_alive() {
                        self.coordinator.join(name, now);
                    }
                }
            }
            Fault::Partition { loses_lease } => {
                machine.is_cut_off = true;
                machine.loses_lease |= loses_lease;
                if loses_lease {
                    self.timeline.after(lease, Event::LeaseEnds(number));
                }
            }
            Fault::Heal => {
                machine.is_cut_off = false;
                if machine.is_up && machine.loses_lease {
                    self.coordinator.join(name, now);
                }
                machine.loses_lease = false;
            }
            Fault::Hang => machine.is_hung = true,
            Fault::Resume => {
                machine.is_hung = false;
                self.begin(number);
            }
            Fault::Slow => machine.is_slow = true,
            Fault::Recover => machine.is_slow = false,
        }
    }
}
