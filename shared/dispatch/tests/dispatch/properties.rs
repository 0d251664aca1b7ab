//! Whatever happens, nothing that the crate promises is broken. `world` holds the promises.

use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use thicket_dispatch::{
    Backoff, Dispatcher, Failure, HedgeAfter, ImageKey, Kind, Lane, Question, QueueLimits, ReplicaId,
    Settings, Share, Silence, Urgency,
};

use crate::world::{Event, World};

fn millis(range: std::ops::Range<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}

fn replica() -> impl Strategy<Value = ReplicaId> {
    select(&["a", "b", "c", "d"][..]).prop_map(ReplicaId::of)
}

fn question() -> impl Strategy<Value = Question> {
    let lane = select(&Lane::ALL[..]);
    let urgency = select(&[Urgency::Interactive, Urgency::Batch][..]);
    let image = prop::option::of((0u8..6).prop_map(|image| ImageKey::of(&[image])));
    (lane, urgency, image, 0u8..2).prop_map(|(lane, urgency, image, kind)| Question {
        lane,
        urgency,
        deadline: None,
        image,
        kind: Kind(kind),
    })
}

fn failure() -> impl Strategy<Value = Failure> {
    prop_oneof![
        3 => Just(Failure::Unavailable),
        2 => millis(0..80).prop_map(|retry_after| Failure::Overloaded { retry_after }),
        1 => Just(Failure::Broken),
        1 => Just(Failure::Rejected),
    ]
}

/// `failures` of about 20 events are failures and losses.
fn event(failures: u32) -> impl Strategy<Value = Event> {
    let join = (replica(), 1u32..5).prop_map(|(replica, capacity)| Event::Join {
        replica,
        capacity: NonZeroU32::new(capacity).unwrap(),
    });
    let submit = (question(), prop::option::weighted(0.7, millis(0..200)))
        .prop_map(|(question, time_left)| Event::Submit { question, time_left });
    prop_oneof![
        6 => submit,
        2 => join,
        3 => Just(Event::Poll),
        2 => Just(Event::PollOnce),
        4 => any::<Index>().prop_map(Event::Answer),
        failures => (any::<Index>(), failure()).prop_map(|(index, failure)| Event::Fail(index, failure)),
        1 => replica().prop_map(Event::Leave),
        1 => prop_oneof![
            replica().prop_map(Event::Drain),
            any::<Index>().prop_map(Event::Cancel),
            any::<Index>().prop_map(Event::Promote),
            (any::<Index>(), replica()).prop_map(|(index, replica)| Event::Late(index, replica)),
        ],
        3 => millis(0..30).prop_map(Event::Wait),
    ]
}

fn settings() -> impl Strategy<Value = Settings> {
    let queue =
        (1usize..8, 1usize..8, 0usize..6).prop_map(|(high, low, ahead)| QueueLimits { high, low, ahead });
    let share = || (0u32..=100, 0u32..4).prop_map(|(percent, burst)| Share { percent, burst });
    let pass_over = prop_oneof![Just(0u32), 1u32..4];
    (queue, 1u32..4, pass_over, 100u32..300, 1u32..5, share(), share()).prop_map(
        |(queue, high_burst, pass_over, load_percent, attempts, retries, hedges)| Settings {
            queue,
            high_burst,
            pass_over,
            load_percent,
            attempts,
            backoff: Backoff { base: Duration::from_millis(5), cap: Duration::from_millis(40) },
            retries,
            hedge_after: HedgeAfter::Never,
            hedges,
            silence: None,
        },
    )
}

const HEDGE_AFTER: Duration = Duration::from_millis(20);

const SILENCE: Silence = Silence {
    least: Duration::from_millis(25),
    percent: 200,
    unknown: Duration::from_millis(30),
    eject_after: 2,
};

fn hedging(settings: Settings) -> Settings {
    Settings { hedge_after: HedgeAfter::Fixed(HEDGE_AFTER), ..settings }
}

proptest! {
    #[test]
    fn every_question_ends_once_and_no_promise_is_broken(
        settings in settings(),
        events in prop::collection::vec(event(2), 0..150),
    ) {
        let mut world = World::new(settings, None);
        world.run(&events)?;
        world.finish()?;
    }

    #[test]
    fn hedging_breaks_no_promise(
        settings in settings(),
        events in prop::collection::vec(event(2), 0..150),
    ) {
        let mut world = World::new(hedging(settings), Some(HEDGE_AFTER));
        world.run(&events)?;
        world.finish()?;
    }

    #[test]
    fn a_storm_of_failures_breaks_no_promise(
        settings in settings(),
        events in prop::collection::vec(event(10), 0..150),
    ) {
        let settings = Settings { attempts: 9, ..settings };
        let mut world = World::new(hedging(settings), Some(HEDGE_AFTER));
        world.run(&events)?;
        world.finish()?;
    }

    /// Without deadlines, whose end is another reason to blame a replica, which the plain model does not follow.
    #[test]
    fn losing_what_is_not_answered_breaks_no_promise(
        settings in settings(),
        events in prop::collection::vec(event(3), 0..150),
    ) {
        let patient = |event: Event| match event {
            Event::Submit { question, .. } => Event::Submit { question, time_left: None },
            other => other,
        };
        let events: Vec<Event> = events.into_iter().map(patient).collect();
        let settings = Settings { silence: Some(SILENCE), ..hedging(settings) };
        let mut world = World::new(settings, Some(HEDGE_AFTER));
        world.run(&events)?;
        world.finish()?;
    }

    #[test]
    fn equal_inputs_give_equal_decisions(
        settings in settings(),
        events in prop::collection::vec(event(3), 0..100),
    ) {
        let log = || {
            let mut world = World::new(hedging(settings), Some(HEDGE_AFTER));
            world.run(&events).map(|()| world.log)
        };
        prop_assert_eq!(log()?, log()?);
    }

    /// Idle replicas, one image at a time: where it goes is where it belongs.
    #[test]
    fn a_replica_that_leaves_or_joins_moves_its_own_images_alone(
        capacities in prop::collection::btree_map(0u32..1_000, 1u32..9, 2..8),
        gone in any::<Index>(),
        images in prop::collection::vec(any::<u64>(), 1..30),
    ) {
        let name = |number: u32| ReplicaId::of(&format!("answer-{number}"));
        let gone = name(**gone.get(&capacities.keys().collect::<Vec<_>>()));
        let mut all = Dispatcher::new(Settings::default()).unwrap();
        let mut rest = all.clone();
        for (&number, &capacity) in &capacities {
            let capacity = NonZeroU32::new(capacity).unwrap();
            all.join(name(number), capacity).unwrap();
            if name(number) != gone {
                rest.join(name(number), capacity).unwrap();
            }
        }
        for image in images {
            let home = home(&mut all, image);
            if home != gone {
                prop_assert_eq!(home, self::home(&mut rest, image));
            }
        }
    }
}

fn home(dispatcher: &mut Dispatcher, image: u64) -> ReplicaId {
    let question = Question {
        lane: Lane::High,
        urgency: Urgency::Interactive,
        deadline: None,
        image: Some(ImageKey::of(&image.to_le_bytes())),
        kind: Kind(0),
    };
    let ticket = dispatcher.submit(question, Duration::ZERO).unwrap();
    assert!(dispatcher.poll(Duration::ZERO).is_some());
    dispatcher.cancel(ticket).unwrap()[0]
}
