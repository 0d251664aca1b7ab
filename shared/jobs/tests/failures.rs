//! A job under owners that die, hang, come back late and are interrupted, against a store of objects that keeps the first of
//! a name.

use std::collections::BTreeMap;

use proptest::prelude::*;
use thicket_jobs::{Change, Counts, Finish, Job, Place, Plan, Refusal, State, Token, Unit, Wish, next};

const OWNERS: usize = 3;
const NOW: i64 = 1_000;

/// What happens next; the number says to whom.
#[derive(Debug, Clone)]
enum Event {
    Take(usize),
    Write(usize),
    Finish(usize),
    GiveBack(usize),
    /// The owner forgets what it did; its lease stays.
    Die(usize),
    /// The lease runs out; the owner does not know.
    Expire(usize),
    Cancel,
    Resume,
    Reload,
}

fn event() -> impl Strategy<Value = Event> {
    let owner = 0..OWNERS;
    prop_oneof![
        6 => owner.clone().prop_map(Event::Take),
        6 => owner.clone().prop_map(Event::Write),
        6 => owner.clone().prop_map(Event::Finish),
        1 => owner.clone().prop_map(Event::GiveBack),
        1 => owner.clone().prop_map(Event::Die),
        2 => owner.prop_map(Event::Expire),
        1 => Just(Event::Cancel),
        2 => Just(Event::Resume),
        1 => Just(Event::Reload),
    ]
}

/// The results of a part, and who wrote them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Object {
    writer: Token,
    queries: Vec<u64>,
}

struct World {
    job: Job,
    parts: BTreeMap<u32, Object>,
    file: Option<Vec<u64>>,
    owners: [Option<(Unit, Token)>; OWNERS],
    /// Leases that were taken and have not ended, whether or not their owner remembers.
    leases: Vec<(Unit, Token)>,
    /// What was said to be done, and by which counts.
    done: BTreeMap<Unit, Place>,
    tokens: i64,
}

impl World {
    fn new(plan: Plan) -> Self {
        Self {
            job: Job::new(plan, None),
            parts: BTreeMap::new(),
            file: None,
            owners: [None; OWNERS],
            leases: Vec::new(),
            done: BTreeMap::new(),
            tokens: 0,
        }
    }

    fn take(&mut self, owner: usize) {
        if self.owners[owner].is_some() {
            return;
        }
        let Some(((), unit)) = next([((), &self.job)], NOW, |_, _| true) else { return };
        assert!(!self.done.contains_key(&unit), "{unit:?} is done and was to be done again");
        self.tokens += 1;
        let token = Token(self.tokens);
        self.job.take(unit, token).unwrap();
        self.owners[owner] = Some((unit, token));
        self.leases.push((unit, token));
    }

    /// The owner does the work, however late.
    fn write(&mut self, owner: usize) {
        let plan = self.job.plan();
        match self.owners[owner] {
            Some((Unit::Part(part), writer)) => {
                let queries = plan.range(part).collect();
                self.parts.entry(part).or_insert(Object { writer, queries });
            }
            Some((Unit::File, _)) => {
                let all: Vec<u64> = self.parts.values().flat_map(|object| object.queries.clone()).collect();
                let before = self.file.replace(all.clone());
                assert!(before.is_none_or(|before| before == all), "the file was written differently");
            }
            _ => {}
        }
    }

    fn finish(&mut self, owner: usize) {
        let Some((unit, token)) = self.owners[owner].take() else { return };
        let written = match unit {
            Unit::Part(part) => self.parts.contains_key(&part),
            Unit::File => self.file.is_some(),
            Unit::Removal => unreachable!("nothing is deleted here"),
        };
        if !written {
            self.owners[owner] = Some((unit, token));
            return;
        }
        let holds = self.leases.contains(&(unit, token));
        let counts = match unit {
            Unit::Part(part) => Counts { succeeded: self.parts[&part].queries.len() as u64, failed: 0 },
            _ => Counts::default(),
        };
        match self.job.finish(unit, token, counts) {
            Ok(Finish::Now) => {
                assert!(holds, "an owner without a lease finished {unit:?}");
                let place = self.job.place(unit);
                assert!(matches!(place, Place::Done(_)));
                assert!(self.done.insert(unit, place).is_none(), "{unit:?} was finished twice");
            }
            Ok(Finish::Before) => assert!(self.done.contains_key(&unit)),
            Err(refusal) => assert_eq!((refusal, holds), (Refusal::LeaseLost, false)),
        }
        self.leases.retain(|lease| *lease != (unit, token));
    }

    fn expire(&mut self, which: usize) {
        if self.leases.is_empty() {
            return;
        }
        let (unit, token) = self.leases.remove(which % self.leases.len());
        self.job.release(unit, token).unwrap();
        assert_eq!(self.job.release(unit, token), Err(Refusal::LeaseLost));
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Take(owner) => self.take(owner),
            Event::Write(owner) => self.write(owner),
            Event::Finish(owner) => self.finish(owner),
            Event::GiveBack(owner) => {
                if let Some((unit, token)) = self.owners[owner].take() {
                    let held = self.leases.contains(&(unit, token));
                    assert_eq!(self.job.release(unit, token).is_ok(), held);
                    self.leases.retain(|lease| *lease != (unit, token));
                }
            }
            Event::Die(owner) => self.owners[owner] = None,
            Event::Expire(which) => self.expire(which),
            Event::Cancel => {
                let outcome = self.job.change(Change::Cancel);
                assert_eq!(outcome.is_err(), self.job.finished().is_some());
            }
            Event::Resume => {
                let _ = self.job.change(Change::Resume { now: NOW, deadline: None });
            }
            Event::Reload => self.reload(),
        }
        for (unit, place) in &self.done {
            let now = self.job.place(*unit);
            let forgotten = self.job.finished().is_some() && matches!(unit, Unit::Part(_));
            assert!(now == *place || forgotten, "{unit:?} was {place:?} and is {now:?}");
        }
    }

    /// As a store that starts anew has it.
    fn reload(&mut self) {
        let plan = self.job.plan();
        let units = (0..plan.parts()).map(Unit::Part).chain([Unit::File, Unit::Removal]);
        let places: Vec<_> = units.map(|unit| (unit, self.job.place(unit))).collect();
        let restored = Job::restore(plan, self.job.deadline(), self.job.wish(), self.job.finished(), places);
        assert_eq!(restored, self.job);
        self.job = restored;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_query_is_lost_or_doubled_and_nothing_done_is_done_again(
        queries in 1_u64..40,
        part_size in 1_u32..12,
        events in proptest::collection::vec(event(), 0..120),
    ) {
        let mut world = World::new(Plan::new(queries, part_size).unwrap());
        for event in &events {
            world.apply(event);
        }
        let written = world.parts.clone();

        // Everybody else is gone, and one owner goes on.
        let _ = world.job.change(Change::Resume { now: NOW, deadline: None });
        while !world.leases.is_empty() {
            world.expire(0);
        }
        world.owners = [None; OWNERS];
        while world.job.state(NOW) != State::Done {
            let before = world.job.clone();
            for event in [Event::Take(0), Event::Write(0), Event::Finish(0)] {
                world.apply(&event);
            }
            prop_assert_ne!(&world.job, &before, "the job does not go on");
        }
        prop_assert_eq!(world.file.clone(), Some((0..queries).collect::<Vec<_>>()));
        prop_assert_eq!(world.job.finished(), Some(Counts { succeeded: queries, failed: 0 }));
        for (part, object) in &written {
            prop_assert_eq!(&world.parts[part], object, "what was written was written again");
        }
    }

    #[test]
    fn a_stopped_job_gives_nothing_out_and_a_resumed_one_goes_on(
        queries in 1_u64..40,
        part_size in 1_u32..12,
        events in proptest::collection::vec(event(), 0..60),
    ) {
        let mut world = World::new(Plan::new(queries, part_size).unwrap());
        for event in &events {
            world.apply(event);
        }
        if world.job.finished().is_some() {
            return Ok(());
        }
        world.job.change(Change::Cancel).unwrap();
        prop_assert_eq!(world.job.state(NOW), State::Cancelled);
        prop_assert_eq!(world.job.next(NOW), None);
        let done = world.job.progress().done;
        world.job.change(Change::Resume { now: NOW, deadline: Some(NOW + 1) }).unwrap();
        prop_assert_eq!(world.job.wish(), Wish::Run);
        prop_assert_eq!(world.job.progress().done, done);
        prop_assert_eq!(world.job.deadline(), Some(NOW + 1));
    }

    #[test]
    fn nothing_is_removed_while_somebody_works(
        queries in 1_u64..40,
        events in proptest::collection::vec(event(), 0..60),
    ) {
        let mut world = World::new(Plan::new(queries, 5).unwrap());
        for event in &events {
            world.apply(event);
        }
        world.job.change(Change::Delete).unwrap();
        while !world.leases.is_empty() {
            prop_assert_eq!(world.job.next(NOW), None);
            world.expire(0);
        }
        prop_assert_eq!(world.job.next(NOW), Some(Unit::Removal));
        prop_assert_eq!(world.job.change(Change::Cancel), Err(Refusal::Deleting));
    }
}

#[test]
fn a_job_past_its_deadline_begins_no_part_and_goes_on_with_another_deadline() {
    let mut job = Job::new(Plan::new(2, 1).unwrap(), Some(NOW));
    assert_eq!((job.state(NOW - 1), job.next(NOW - 1)), (State::Pending, Some(Unit::Part(0))));
    assert_eq!((job.state(NOW), job.next(NOW)), (State::Expired, None));
    job.change(Change::Resume { now: NOW, deadline: None }).unwrap();
    assert_eq!((job.deadline(), job.state(NOW)), (None, State::Pending));
}

#[test]
fn a_job_whose_parts_are_done_in_time_gets_its_file_after_the_deadline() {
    let mut job = Job::new(Plan::new(1, 1).unwrap(), Some(NOW));
    job.take(Unit::Part(0), Token(1)).unwrap();
    job.finish(Unit::Part(0), Token(1), Counts { succeeded: 1, failed: 0 }).unwrap();
    assert_eq!(job.next(NOW), Some(Unit::File));
    assert!(job.wants(Unit::File, NOW) && !job.wants(Unit::Part(0), NOW));
}

#[test]
fn a_late_owner_changes_nothing() {
    let mut job = Job::new(Plan::new(1, 1).unwrap(), None);
    job.take(Unit::Part(0), Token(1)).unwrap();
    job.release(Unit::Part(0), Token(1)).unwrap();
    job.take(Unit::Part(0), Token(2)).unwrap();
    let (late, good) = (Counts { succeeded: 0, failed: 1 }, Counts { succeeded: 1, failed: 0 });
    assert_eq!(job.finish(Unit::Part(0), Token(1), late), Err(Refusal::LeaseLost));
    assert_eq!(job.finish(Unit::Part(0), Token(2), good), Ok(Finish::Now));
    assert_eq!(job.finish(Unit::Part(0), Token(1), late), Ok(Finish::Before));
    assert_eq!(job.place(Unit::Part(0)), Place::Done(good));
}
