use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { step_tokens: 64, step_patches: 100, sequences: 8, cache_tokens: 800 };

fn demand(kind: Kind, tokens: usize, new_tokens: usize) -> Demand {
    Demand { kind, urgency: 0, prefix: None, tokens, new_tokens }
}

fn about(image: u8, demand: Demand) -> Demand {
    Demand { prefix: Some(Prefix { key: [image; 32], tokens: 30, patches: 60 }), ..demand }
}

fn scheduler(demands: &[Demand]) -> Scheduler {
    let mut scheduler = Scheduler::new(LIMITS).unwrap();
    for (index, demand) in demands.iter().enumerate() {
        scheduler.push(Ticket(index as u64), *demand).unwrap();
    }
    scheduler
}

fn plan(scheduler: &mut Scheduler) -> Plan {
    scheduler.plan(|_| false)
}

fn slice(ticket: u64, start: usize, tokens: usize, last: bool) -> Slice {
    Slice { ticket: Ticket(ticket), start, tokens, last }
}

#[test]
fn a_long_prompt_goes_in_chunks_and_a_judgement_that_arrives_is_in_the_next_step() {
    let mut scheduler = scheduler(&[demand(Kind::Aggregate, 400, 10)]);
    assert_eq!(plan(&mut scheduler).slices, [slice(0, 0, 64, false)]);
    scheduler.push(Ticket(1), demand(Kind::Locate, 40, 0)).unwrap();
    let next = plan(&mut scheduler);
    assert!(next.slices.contains(&slice(1, 0, 40, true)), "{next:?}");
    assert!(next.slices.contains(&slice(0, 64, 24, false)), "{next:?}");
}

#[test]
fn questions_about_one_image_run_its_prefix_once_and_follow_in_the_same_step() {
    let question = about(1, demand(Kind::Locate, 5, 0));
    let mut scheduler = scheduler(&[question; 3]);
    let first = plan(&mut scheduler);
    assert_eq!(first.prefixes, [PrefixSlice { key: [1; 32], start: 0, tokens: 30 }]);
    assert_eq!(first.slices.len(), 3);
    assert!(first.slices.iter().all(|slice| slice.last));
    assert_eq!(scheduler.cache_tokens(), 30 + 3 * 5);
}

#[test]
fn a_prefix_that_is_held_is_not_run() {
    let mut scheduler = scheduler(&[about(1, demand(Kind::Locate, 5, 0))]);
    let plan = scheduler.plan(|key| *key == [1; 32]);
    assert_eq!((plan.prefixes.len(), plan.slices), (0, vec![slice(0, 0, 5, true)]));
}

#[test]
fn more_images_than_a_step_may_see_are_seen_one_step_after_another() {
    let ask = |image| about(image, demand(Kind::Locate, 1, 0));
    let mut scheduler = scheduler(&[ask(1), ask(2)]);
    assert_eq!(plan(&mut scheduler).prefixes.len(), 1);
    assert_eq!(plan(&mut scheduler).prefixes.len(), 1);
}

#[test]
fn judgements_run_beside_texts_that_fill_their_pool() {
    let mut scheduler = scheduler(&[demand(Kind::Describe, 5, 50); 20]);
    plan(&mut scheduler);
    assert_eq!((scheduler.running(), scheduler.waiting()), (6, 14));
    scheduler.push(Ticket(100), demand(Kind::Locate, 5, 0)).unwrap();
    assert!(plan(&mut scheduler).slices.contains(&slice(100, 0, 5, true)));
}

#[test]
fn the_more_urgent_of_a_kind_goes_first_then_the_older() {
    let with = |urgency| Demand { urgency, ..demand(Kind::Describe, 40, 500) };
    let mut scheduler = scheduler(&[with(7), with(3), with(3)]);
    let mut order = Vec::new();
    while let [ticket] = plan(&mut scheduler).started[..] {
        order.push(ticket.0);
        scheduler.remove(ticket);
    }
    assert_eq!(order, [1, 2, 0]);
}

#[test]
fn a_question_that_could_never_run_is_refused_with_both_numbers() {
    let mut scheduler = scheduler(&[]);
    let refused = scheduler.push(Ticket(0), about(1, demand(Kind::Describe, 500, 100)));
    assert_eq!(refused, Err(TooLarge { needed: 630, limit: 600 }));
    assert_eq!(scheduler.waiting(), 0);
}

#[test]
fn limits_that_leave_prompts_no_room_are_refused() {
    let error = Scheduler::new(Limits { step_tokens: 15, ..LIMITS }).unwrap_err();
    assert_eq!(error, LimitsError::StepTokens { least: 16, actual: 15 });
    assert!(Scheduler::new(Limits { sequences: 0, ..LIMITS }).is_err());
}

#[test]
fn what_a_cancelled_question_held_is_free_at_once() {
    let mut scheduler = scheduler(&[about(1, demand(Kind::Describe, 9, 9)), demand(Kind::Locate, 5, 0)]);
    plan(&mut scheduler);
    assert!(scheduler.remove(Ticket(0)) && scheduler.remove(Ticket(1)));
    assert_eq!((scheduler.cache_tokens(), scheduler.running()), (0, 0));
    assert!(!scheduler.uses(&[1; 32]) && !scheduler.remove(Ticket(0)));
    assert_eq!(plan(&mut scheduler), Plan::default());
}

/// Something that happens between two steps.
#[derive(Debug, Clone)]
enum Event {
    Ask(Demand),
    /// Cancels the open question at this place, counted round.
    Cancel(usize),
    Step,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let kind = prop::sample::select(&Kind::ALL[..]);
    let ask =
        (kind, 0..3_u64, prop::option::of((0..4_u8, 1..80_usize, 0..150_usize)), 1..90_usize, 1..60_usize);
    let ask = ask.prop_map(|(kind, urgency, prefix, tokens, new_tokens)| {
        // Equal keys have equal sizes.
        let prefix = prefix.map(|(image, _, _)| Prefix {
            key: [image; 32],
            tokens: 10 + 20 * usize::from(image),
            patches: 40 * usize::from(image),
        });
        let new_tokens = if kind == Kind::Locate { 0 } else { new_tokens };
        Event::Ask(Demand { kind, urgency, prefix, tokens, new_tokens })
    });
    let cancel = (0..100_usize).prop_map(Event::Cancel);
    prop::collection::vec(prop_oneof![4 => ask, 1 => cancel, 4 => Just(Event::Step)], 0..150)
}

/// A question as the test follows it.
struct Open {
    demand: Demand,
    prefilled: usize,
    generated: usize,
    running: bool,
    /// Tokens of each other kind admitted to the pool for all since it last became the first of its kind to wait.
    passed: [usize; 3],
}

struct World {
    scheduler: Scheduler,
    open: BTreeMap<u64, Open>,
    prefixes: HashMap<PrefixKey, usize>,
    next: u64,
}

/// Largest demand that [`events`] makes.
const LARGEST: usize = 70 + 90 + 60;

impl World {
    fn first_waiting(&self, kind: Kind) -> Option<u64> {
        let waiting = self.open.iter().filter(|(_, open)| !open.running && open.demand.kind == kind);
        waiting.min_by_key(|(id, open)| (open.demand.urgency, **id)).map(|(id, _)| *id)
    }

    fn close(&mut self, id: u64) {
        self.open.remove(&id);
        self.scheduler.remove(Ticket(id));
        let scheduler = &self.scheduler;
        self.prefixes.retain(|key, _| scheduler.uses(key));
    }

    fn step(&mut self) -> Result<usize, TestCaseError> {
        let heads = Kind::ALL.map(|kind| self.first_waiting(kind));
        // A more urgent question that came takes the place, and what went before it is no longer the other's wait.
        let later = self.open.iter_mut().filter(|(id, _)| !heads.contains(&Some(**id)));
        later.for_each(|(_, open)| open.passed = [0; 3]);
        let plan = self.scheduler.plan(|_| false);
        prop_assert!(plan.tokens() <= LIMITS.step_tokens);
        prop_assert!(self.scheduler.cache_tokens() <= LIMITS.cache_tokens);
        for Ticket(id) in &plan.started {
            let kind = self.open[id].demand.kind;
            prop_assert_eq!(self.first_waiting(kind), Some(*id), "in order within a kind");
            if let Some(open) = self.open.get_mut(id) {
                open.running = true;
            }
            let tokens = self.open[id].demand.whole();
            for (kind_waiting, head) in Kind::ALL.into_iter().zip(heads) {
                let Some(open) = head.and_then(|head| self.open.get_mut(&head)) else { continue };
                // Judgements also have a pool of their own, which takes nothing from the others.
                if !open.running && kind != kind_waiting && kind != Kind::Locate {
                    open.passed[kind.index()] += tokens;
                    let (w_j, w_k) = (kind.weight(), kind_waiting.weight());
                    let bound = (w_j * LARGEST).div_ceil(w_k) + LARGEST;
                    prop_assert!(open.passed[kind.index()] <= bound, "{kind_waiting:?} waits for {kind:?}");
                }
            }
        }
        for slice in &plan.prefixes {
            let done = self.prefixes.entry(slice.key).or_default();
            prop_assert_eq!(*done, slice.start);
            *done += slice.tokens;
        }
        let mut ended = Vec::new();
        for slice in &plan.slices {
            let Some(open) = self.open.get_mut(&slice.ticket.0) else {
                return Err(TestCaseError::fail("a question that is not open was given tokens"));
            };
            prop_assert_eq!(open.prefilled, slice.start);
            open.prefilled += slice.tokens;
            prop_assert_eq!(slice.last, open.prefilled == open.demand.tokens);
            if let Some(prefix) = open.demand.prefix {
                prop_assert_eq!(
                    self.prefixes.get(&prefix.key),
                    Some(&prefix.tokens),
                    "the prefix comes first"
                );
            }
            if slice.last && open.demand.new_tokens == 0 {
                ended.push(slice.ticket.0);
            }
        }
        for Ticket(id) in &plan.decoding {
            let Some(open) = self.open.get_mut(id) else {
                return Err(TestCaseError::fail("a question that is not open is decoded"));
            };
            open.generated += 1;
            if open.generated == open.demand.new_tokens {
                ended.push(*id);
            }
        }
        let tokens = plan.tokens();
        ended.into_iter().for_each(|id| self.close(id));
        Ok(tokens)
    }
}

proptest! {
    #[test]
    fn nothing_exceeds_its_limit_nothing_is_lost_and_nothing_waits_for_ever(events in events()) {
        let mut world = World {
            scheduler: Scheduler::new(LIMITS).unwrap(),
            open: BTreeMap::new(),
            prefixes: HashMap::new(),
            next: 0,
        };
        for event in events {
            match event {
                Event::Ask(demand) => {
                    let id = world.next;
                    world.next += 1;
                    prop_assert!(world.scheduler.push(Ticket(id), demand).is_ok());
                    let open = Open { demand, prefilled: 0, generated: 0, running: false, passed: [0; 3] };
                    world.open.insert(id, open);
                }
                Event::Cancel(place) => {
                    let id = world.open.keys().nth(place % world.open.len().max(1)).copied();
                    if let Some(id) = id {
                        world.close(id);
                    }
                }
                Event::Step => _ = world.step()?,
            }
        }
        while !world.open.is_empty() {
            prop_assert!(world.step()? > 0, "a step without work while {} questions are open", world.open.len());
        }
        prop_assert_eq!(world.scheduler.cache_tokens(), 0);
    }

    #[test]
    fn every_kind_that_wants_tokens_gets_its_share(
        lengths in prop::collection::vec((prop::sample::select(&Kind::ALL[..]), 1..100_usize), 1..6),
    ) {
        let demands: Vec<Demand> = lengths.iter().map(|(kind, tokens)| demand(*kind, *tokens, 1)).collect();
        let mut scheduler = scheduler(&demands);
        let plan = plan(&mut scheduler);
        let started: Vec<&Demand> = plan.started.iter().map(|ticket| &demands[ticket.0 as usize]).collect();
        let wanted = |kind| started.iter().filter(|d| d.kind == kind).map(|d| d.tokens).sum::<usize>();
        let weights: usize = Kind::ALL.into_iter().filter(|kind| wanted(*kind) > 0).map(Kind::weight).sum();
        for kind in Kind::ALL {
            let given: usize = plan.slices.iter()
                .filter(|slice| demands[slice.ticket.0 as usize].kind == kind)
                .map(|slice| slice.tokens)
                .sum();
            let share = LIMITS.step_tokens * kind.weight() / weights.max(1);
            prop_assert!(given >= wanted(kind).min(share), "{kind:?} got {given} of {}", wanted(kind));
        }
    }
}
