//! One behaviour each, with numbers that can be followed by hand.

use std::num::NonZeroU32;
use std::time::Duration;

use thicket_dispatch::{
    Action, AfterFailure, AlreadyJoined, Answered, Backoff, Dispatcher, Failure, GaveUp, HedgeAfter,
    ImageKey, Kind, Lane, Question, QueueLimits, Refused, ReplicaId, ReplicaState, Settings, Share, Silence,
    Ticket, UnknownReplica, Urgency, Why,
};

const QUESTION: Question =
    Question { lane: Lane::High, urgency: Urgency::Interactive, deadline: None, image: None, kind: Kind(0) };

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn settings() -> Settings {
    let backoff = Backoff { base: secs(1), cap: secs(60) };
    Settings { backoff, silence: None, ..Settings::default() }
}

fn replica(number: usize) -> ReplicaId {
    ReplicaId::of(&format!("answer-{number}"))
}

/// A dispatcher with a replica for each capacity.
fn dispatcher(settings: Settings, capacities: &[u32]) -> Dispatcher {
    let mut dispatcher = Dispatcher::new(settings).unwrap();
    for (number, capacity) in capacities.iter().enumerate() {
        dispatcher.join(replica(number), NonZeroU32::new(*capacity).unwrap()).unwrap();
    }
    dispatcher
}

fn in_lane(lane: Lane) -> Question {
    Question { lane, ..QUESTION }
}

fn about(image: u64) -> Question {
    Question { image: Some(ImageKey::of(&image.to_le_bytes())), ..QUESTION }
}

fn until(seconds: u64) -> Question {
    Question { deadline: Some(secs(seconds)), ..QUESTION }
}

fn submit(dispatcher: &mut Dispatcher, question: Question) -> Ticket {
    dispatcher.submit(question, Duration::ZERO).unwrap()
}

/// The next question that is sent, and where and why.
fn asked(dispatcher: &mut Dispatcher, now: u64) -> Option<(Ticket, ReplicaId, Why)> {
    match dispatcher.poll(secs(now))? {
        Action::Ask { ticket, replica, why } => Some((ticket, replica, why)),
        other => panic!("{other:?}"),
    }
}

/// The order in which one replica with room for one at a time gets everything.
fn order(dispatcher: &mut Dispatcher) -> Vec<Ticket> {
    let mut order = Vec::new();
    while let Some((ticket, replica, _)) = asked(dispatcher, 0) {
        let _ = dispatcher.answered(ticket, replica, Duration::ZERO);
        order.push(ticket);
    }
    order
}

#[test]
fn the_low_lane_has_its_turn_after_a_burst_of_the_high_lane() {
    let mut dispatcher = dispatcher(Settings { high_burst: 2, ..settings() }, &[1]);
    let low = [(); 2].map(|()| submit(&mut dispatcher, in_lane(Lane::Low)));
    let high = [(); 5].map(|()| submit(&mut dispatcher, in_lane(Lane::High)));
    assert_eq!(order(&mut dispatcher), [high[0], high[1], low[0], high[2], high[3], low[1], high[4]]);
}

#[test]
fn questions_asked_ahead_go_when_nothing_else_waits() {
    let mut dispatcher = dispatcher(settings(), &[1]);
    let ahead = submit(&mut dispatcher, in_lane(Lane::Ahead));
    let low = submit(&mut dispatcher, in_lane(Lane::Low));
    let high = submit(&mut dispatcher, in_lane(Lane::High));
    assert_eq!(order(&mut dispatcher), [high, low, ahead]);
}

#[test]
fn a_promoted_question_waits_in_the_low_lane_at_the_place_of_its_arrival() {
    let mut dispatcher = dispatcher(settings(), &[1]);
    let ahead = submit(&mut dispatcher, in_lane(Lane::Ahead));
    let low = submit(&mut dispatcher, in_lane(Lane::Low));
    assert!(dispatcher.promote(ahead) && !dispatcher.promote(ahead) && !dispatcher.promote(low));
    assert_eq!(order(&mut dispatcher), [ahead, low]);
}

#[test]
fn within_a_lane_interactive_then_deadline_then_arrival() {
    let mut dispatcher = dispatcher(settings(), &[1]);
    let batch = submit(&mut dispatcher, Question { urgency: Urgency::Batch, ..until(1) });
    let never = submit(&mut dispatcher, QUESTION);
    let late = submit(&mut dispatcher, until(9));
    let early = submit(&mut dispatcher, until(5));
    let never_too = submit(&mut dispatcher, QUESTION);
    assert_eq!(order(&mut dispatcher), [early, late, never, never_too, batch]);
}

#[test]
fn a_full_lane_refuses_with_limit_actual_and_a_delay() {
    let queue = QueueLimits { high: 2, low: 1, ahead: 0 };
    let mut dispatcher = dispatcher(Settings { queue, ..settings() }, &[]);
    let first = submit(&mut dispatcher, QUESTION);
    submit(&mut dispatcher, QUESTION);
    let full = Refused::Full { lane: Lane::High, limit: 2, actual: 2, retry_after: secs(1) };
    assert_eq!(dispatcher.submit(QUESTION, secs(0)), Err(full));
    assert_eq!(full.to_string(), "the high lane holds 2 questions, at most 2 may wait: try again in 1s");
    assert!(dispatcher.submit(in_lane(Lane::Low), secs(0)).is_ok());
    assert!(dispatcher.submit(in_lane(Lane::Ahead), secs(0)).is_err());
    dispatcher.cancel(first).unwrap();
    assert!(dispatcher.submit(QUESTION, secs(0)).is_ok());
}

#[test]
fn a_refused_caller_is_told_about_how_long_the_lane_takes() {
    let queue = QueueLimits { high: 4, low: 1, ahead: 0 };
    let mut dispatcher = dispatcher(Settings { queue, ..settings() }, &[2]);
    let ticket = submit(&mut dispatcher, QUESTION);
    assert!(asked(&mut dispatcher, 0).is_some());
    let _ = dispatcher.answered(ticket, replica(0), secs(4));
    for _ in 0..4 {
        dispatcher.submit(QUESTION, secs(4)).unwrap();
    }
    let refused = dispatcher.submit(QUESTION, secs(4)).unwrap_err();
    // Five questions of 4 s, two at a time.
    assert!(matches!(refused, Refused::Full { retry_after, .. } if retry_after == secs(10)), "{refused}");
}

#[test]
fn a_question_that_expired_is_refused_and_one_that_expires_is_told_and_never_starts() {
    let mut dispatcher = dispatcher(settings(), &[]);
    assert_eq!(dispatcher.submit(until(3), secs(5)), Err(Refused::Expired { late: secs(2) }));
    let ticket = dispatcher.submit(until(9), secs(5)).unwrap();
    assert_eq!((dispatcher.poll(secs(5)), dispatcher.wake_at()), (None, Some(secs(9))));
    dispatcher.join(replica(0), NonZeroU32::MIN).unwrap();
    assert_eq!(dispatcher.poll(secs(9)), Some(Action::Expire { ticket, stop: vec![] }));
    assert_eq!((dispatcher.poll(secs(9)), dispatcher.wake_at(), dispatcher.open()), (None, None, 0));
}

#[test]
fn a_question_that_expires_in_flight_is_to_be_stopped() {
    let mut dispatcher = dispatcher(settings(), &[1]);
    let ticket = submit(&mut dispatcher, until(9));
    assert!(asked(&mut dispatcher, 0).is_some());
    assert_eq!(dispatcher.answered(ticket, replica(0), secs(9)), Answered::Late);
    assert_eq!(dispatcher.poll(secs(9)), Some(Action::Expire { ticket, stop: vec![replica(0)] }));
}

#[test]
fn a_slot_is_free_as_soon_as_its_question_expires() {
    let queue = QueueLimits { high: 1, low: 1, ahead: 0 };
    let mut dispatcher = dispatcher(Settings { queue, ..settings() }, &[]);
    submit(&mut dispatcher, until(9));
    assert!(dispatcher.submit(until(20), secs(8)).is_err());
    assert!(dispatcher.submit(until(20), secs(9)).is_ok());
}

#[test]
fn an_image_goes_to_one_replica_until_that_has_more_than_its_share() {
    let mut dispatcher = dispatcher(settings(), &[8, 8]);
    let sent: Vec<ReplicaId> = (0..8)
        .map(|_| {
            submit(&mut dispatcher, about(7));
            asked(&mut dispatcher, 0).unwrap().1
        })
        .collect();
    let home = sent[0];
    // ceil(1.25 (m + 1) / 2) for m of 0 to 7 is 1, 2, 2, 3, 4, 4, 5, 5.
    let at_home = [true, true, false, true, true, false, true, false];
    assert_eq!(sent.iter().map(|replica| *replica == home).collect::<Vec<_>>(), at_home);
}

#[test]
fn a_question_is_passed_over_so_often_for_those_whose_images_have_room_and_no_more() {
    for pass_over in [0, 2] {
        let mut dispatcher = dispatcher(Settings { pass_over, ..settings() }, &[1, 1]);
        let (first, second) = (replica(0), replica(1));
        let home = |image| {
            let mut idle = dispatcher.clone();
            submit(&mut idle, about(image));
            asked(&mut idle, 0).unwrap().1
        };
        let image_at = |replica| (0..).find(|image| home(*image) == replica).unwrap();
        let (at_first, at_second) = (image_at(first), image_at(second));
        // The first replica is busy for good; all but one question belong to the second.
        submit(&mut dispatcher, about(at_first));
        assert_eq!(asked(&mut dispatcher, 0).unwrap().1, first);
        let stuck = submit(&mut dispatcher, about(at_first));
        let others = [(); 3].map(|()| submit(&mut dispatcher, about(at_second)));
        let order = order(&mut dispatcher);
        match pass_over {
            0 => assert_eq!(order, [stuck, others[0], others[1], others[2]]),
            _ => assert_eq!(order, [others[0], others[1], stuck, others[2]]),
        }
    }
}

#[test]
fn an_urgent_newcomer_is_not_passed_over_together_with_one_that_was_passed_over_enough() {
    let mut dispatcher = dispatcher(Settings { pass_over: 1, ..settings() }, &[1, 1]);
    let home = |image| {
        let mut idle = dispatcher.clone();
        submit(&mut idle, about(image));
        asked(&mut idle, 0).unwrap().1
    };
    let elsewhere = (2..).find(|image| home(*image) != home(1)).unwrap();
    submit(&mut dispatcher, about(1));
    assert!(asked(&mut dispatcher, 0).is_some());
    let passed = submit(&mut dispatcher, about(1));
    let passes = submit(&mut dispatcher, about(elsewhere));
    let (first, at, _) = asked(&mut dispatcher, 0).unwrap();
    assert_eq!(first, passes);
    let _ = dispatcher.answered(passes, at, secs(0));
    let urgent = submit(&mut dispatcher, Question { deadline: Some(secs(9)), ..about(1) });
    let last = submit(&mut dispatcher, about(elsewhere));
    assert_eq!(order(&mut dispatcher), [urgent, passed, last]);
}

#[test]
fn a_batch_question_passes_over_no_interactive_one() {
    let mut dispatcher = dispatcher(Settings { pass_over: 9, ..settings() }, &[1, 1]);
    let home = |image| {
        let mut idle = dispatcher.clone();
        submit(&mut idle, about(image));
        asked(&mut idle, 0).unwrap().1
    };
    let elsewhere = (2..).find(|image| home(*image) != home(1)).unwrap();
    submit(&mut dispatcher, about(1));
    assert!(asked(&mut dispatcher, 0).is_some());
    let interactive = submit(&mut dispatcher, about(1));
    submit(&mut dispatcher, Question { urgency: Urgency::Batch, ..about(elsewhere) });
    assert_eq!(asked(&mut dispatcher, 0).unwrap().0, interactive);
}

#[test]
fn images_are_shared_out_by_capacity() {
    let mut dispatcher = dispatcher(settings(), &[1, 3]);
    let mut at_first = 0;
    for image in 0..4_000 {
        let ticket = submit(&mut dispatcher, about(image));
        at_first += u32::from(asked(&mut dispatcher, 0).unwrap().1 == replica(0));
        dispatcher.cancel(ticket).unwrap();
    }
    assert!((900..1_100).contains(&at_first), "{at_first} of 4000, not about 1000");
}

#[test]
fn a_question_without_an_image_goes_to_the_least_loaded() {
    let mut dispatcher = dispatcher(settings(), &[4, 12]);
    let mut loads = [0; 2];
    for _ in 0..4 {
        submit(&mut dispatcher, QUESTION);
        let (_, to, _) = asked(&mut dispatcher, 0).unwrap();
        loads[usize::from(to == replica(1))] += 1;
    }
    assert_eq!(loads, [1, 3]);
}

#[test]
fn what_a_lost_replica_had_waits_again_at_its_old_place() {
    let mut dispatcher = dispatcher(settings(), &[2]);
    let tickets = [(); 3].map(|()| submit(&mut dispatcher, QUESTION));
    assert!(asked(&mut dispatcher, 0).is_some() && asked(&mut dispatcher, 0).is_some());
    let fates = dispatcher.leave(replica(0), secs(1)).unwrap();
    assert_eq!(fates, [(tickets[0], AfterFailure::Queued), (tickets[1], AfterFailure::Queued)]);
    assert_eq!(dispatcher.answered(tickets[0], replica(0), secs(1)), Answered::Late);
    dispatcher.join(replica(1), NonZeroU32::MIN).unwrap();
    assert_eq!(order(&mut dispatcher), tickets);
}

#[test]
fn a_question_is_lost_with_so_many_replicas_as_it_has_attempts_and_no_retry_budget_is_charged() {
    let none = Share { percent: 0, burst: 0 };
    let mut dispatcher = dispatcher(Settings { attempts: 2, retries: none, ..settings() }, &[1, 1]);
    let ticket = submit(&mut dispatcher, QUESTION);
    let (_, first, _) = asked(&mut dispatcher, 0).unwrap();
    assert_eq!(dispatcher.leave(first, secs(0)), Ok(vec![(ticket, AfterFailure::Queued)]));
    let (_, second, why) = asked(&mut dispatcher, 0).unwrap();
    assert_eq!(why, Why::Retry);
    let ended = AfterFailure::Ended { reason: GaveUp::Attempts { limit: 2 }, stop: vec![] };
    assert_eq!(dispatcher.leave(second, secs(0)), Ok(vec![(ticket, ended)]));
}

#[test]
fn a_retry_goes_where_the_question_has_not_failed() {
    let mut dispatcher = dispatcher(Settings { attempts: 9, ..settings() }, &[8, 8, 8]);
    let ticket = submit(&mut dispatcher, about(1));
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (_, to, _) = asked(&mut dispatcher, 100 * seen.len() as u64).unwrap();
        assert!(!seen.contains(&to));
        let now = secs(100 * seen.len() as u64);
        assert_eq!(dispatcher.failed(ticket, to, Failure::Unavailable, now), AfterFailure::Queued);
        seen.push(to);
    }
    // All have failed it by now: then any that accepts.
    assert!(asked(&mut dispatcher, 1_000).is_some());
}

#[test]
fn retries_end_with_their_budget() {
    let retries = Share { percent: 50, burst: 1 };
    let mut dispatcher = dispatcher(Settings { retries, attempts: 9, ..settings() }, &[1]);
    let ticket = submit(&mut dispatcher, QUESTION);
    assert!(asked(&mut dispatcher, 0).is_some());
    let failed = |dispatcher: &mut Dispatcher, ticket, now| {
        dispatcher.failed(ticket, replica(0), Failure::Unavailable, secs(now))
    };
    assert_eq!(failed(&mut dispatcher, ticket, 0), AfterFailure::Queued);
    assert!(asked(&mut dispatcher, 100).is_some());
    let spent = AfterFailure::Ended { reason: GaveUp::RetryBudget { percent: 50 }, stop: vec![] };
    assert_eq!(failed(&mut dispatcher, ticket, 100), spent);
    // Two more calls pay for another one.
    for now in [200, 300] {
        let ticket = dispatcher.submit(QUESTION, secs(now)).unwrap();
        assert!(asked(&mut dispatcher, now).is_some());
        let again = failed(&mut dispatcher, ticket, now);
        assert_eq!(again == AfterFailure::Queued, now == 300);
    }
}

#[test]
fn a_rejected_question_and_a_broken_answer_are_not_asked_again() {
    for (failure, reason) in [(Failure::Rejected, GaveUp::Rejected), (Failure::Broken, GaveUp::Broken)] {
        let mut dispatcher = dispatcher(settings(), &[1, 1]);
        let ticket = submit(&mut dispatcher, QUESTION);
        let (_, to, _) = asked(&mut dispatcher, 0).unwrap();
        let ended = AfterFailure::Ended { reason, stop: vec![] };
        assert_eq!(dispatcher.failed(ticket, to, failure, secs(0)), ended);
        let state = dispatcher.replicas().find(|view| view.id == to).unwrap().state;
        assert_eq!(state == ReplicaState::Open, failure == Failure::Rejected);
    }
}

#[test]
fn an_overloaded_replica_is_left_alone_until_the_moment_it_named() {
    let mut dispatcher = dispatcher(settings(), &[1]);
    let ticket = submit(&mut dispatcher, QUESTION);
    assert!(asked(&mut dispatcher, 0).is_some());
    let overloaded = Failure::Overloaded { retry_after: secs(7) };
    assert_eq!(dispatcher.failed(ticket, replica(0), overloaded, secs(1)), AfterFailure::Queued);
    assert_eq!((asked(&mut dispatcher, 7), dispatcher.wake_at()), (None, Some(secs(8))));
    assert_eq!(asked(&mut dispatcher, 8), Some((ticket, replica(0), Why::Retry)));
}

#[test]
fn a_replica_that_failed_is_left_alone_longer_each_time_and_tried_with_one_question() {
    let mut dispatcher = dispatcher(Settings { attempts: 9, ..settings() }, &[4]);
    for _ in 0..3 {
        submit(&mut dispatcher, QUESTION);
    }
    let mut now = 0;
    for wait in [1, 2, 4] {
        let (ticket, _, _) = asked(&mut dispatcher, now).unwrap();
        let _ = dispatcher.failed(ticket, replica(0), Failure::Unavailable, secs(now));
        assert_eq!(asked(&mut dispatcher, now), None);
        assert_eq!(dispatcher.wake_at(), Some(secs(now + wait)));
        now += wait;
    }
    let (ticket, _, _) = asked(&mut dispatcher, now).unwrap();
    assert_eq!(asked(&mut dispatcher, now), None);
    let _ = dispatcher.answered(ticket, replica(0), secs(now));
    assert!(asked(&mut dispatcher, now).is_some() && asked(&mut dispatcher, now).is_some());
}

#[test]
fn a_draining_replica_keeps_what_it_has_and_gets_nothing_more() {
    let mut dispatcher = dispatcher(settings(), &[2]);
    let tickets = [(); 2].map(|()| submit(&mut dispatcher, QUESTION));
    assert!(asked(&mut dispatcher, 0).is_some());
    dispatcher.drain(replica(0)).unwrap();
    assert_eq!(asked(&mut dispatcher, 0), None);
    assert_eq!(dispatcher.answered(tickets[0], replica(0), secs(1)), Answered::Accepted { stop: vec![] });
    assert_eq!(asked(&mut dispatcher, 1), None);
    assert_eq!(dispatcher.leave(replica(0), secs(1)), Ok(vec![]));
    assert_eq!(dispatcher.drain(replica(0)), Err(UnknownReplica { replica: replica(0) }));
}

#[test]
fn a_replica_joins_once() {
    let mut dispatcher = dispatcher(settings(), &[1]);
    let again = dispatcher.join(replica(0), NonZeroU32::MIN);
    assert_eq!(again, Err(AlreadyJoined { replica: replica(0) }));
}

fn hedging(delay: u64) -> Settings {
    Settings { hedge_after: HedgeAfter::Fixed(secs(delay)), ..settings() }
}

#[test]
fn of_a_question_that_takes_long_a_second_copy_is_sent_and_the_first_answer_wins() {
    for first_wins in [false, true] {
        let mut dispatcher = dispatcher(hedging(5), &[1, 1]);
        let ticket = submit(&mut dispatcher, about(1));
        let (_, first, _) = asked(&mut dispatcher, 0).unwrap();
        assert_eq!((asked(&mut dispatcher, 4), dispatcher.wake_at()), (None, Some(secs(5))));
        let (hedged, second, why) = asked(&mut dispatcher, 5).unwrap();
        assert_eq!((hedged, why), (ticket, Why::Hedge));
        assert_ne!(first, second);
        assert_eq!((asked(&mut dispatcher, 99), dispatcher.wake_at()), (None, None));
        let (winner, loser) = if first_wins { (first, second) } else { (second, first) };
        let accepted = Answered::Accepted { stop: vec![loser] };
        assert_eq!(dispatcher.answered(ticket, winner, secs(99)), accepted);
        assert_eq!(dispatcher.answered(ticket, loser, secs(99)), Answered::Late);
    }
}

#[test]
fn a_failed_copy_leaves_the_question_to_the_other() {
    let mut dispatcher = dispatcher(Settings { attempts: 2, ..hedging(5) }, &[1, 1]);
    let ticket = submit(&mut dispatcher, QUESTION);
    let (_, first, _) = asked(&mut dispatcher, 0).unwrap();
    let (_, second, _) = asked(&mut dispatcher, 5).unwrap();
    let failed = dispatcher.failed(ticket, first, Failure::Unavailable, secs(6));
    assert_eq!(failed, AfterFailure::OtherCopy);
    let ended = AfterFailure::Ended { reason: GaveUp::Attempts { limit: 2 }, stop: vec![] };
    assert_eq!(dispatcher.failed(ticket, second, Failure::Unavailable, secs(6)), ended);
}

#[test]
fn a_question_with_one_attempt_or_asked_ahead_is_not_hedged_until_somebody_waits_for_it() {
    let mut once = dispatcher(Settings { attempts: 1, ..hedging(5) }, &[1, 1]);
    submit(&mut once, QUESTION);
    assert!(asked(&mut once, 0).is_some());
    assert_eq!(asked(&mut once, 9), None);

    let mut ahead = dispatcher(hedging(5), &[1, 1]);
    let ticket = submit(&mut ahead, in_lane(Lane::Ahead));
    assert!(asked(&mut ahead, 0).is_some());
    assert_eq!(asked(&mut ahead, 9), None);
    assert!(ahead.promote(ticket));
    assert!(matches!(asked(&mut ahead, 9), Some((_, _, Why::Hedge))));
}

#[test]
fn no_more_than_their_share_is_hedged() {
    let hedges = Share { percent: 50, burst: 1 };
    let mut dispatcher = dispatcher(Settings { hedges, ..hedging(5) }, &[8, 8]);
    for _ in 0..4 {
        submit(&mut dispatcher, QUESTION);
        assert!(asked(&mut dispatcher, 0).is_some());
    }
    // One was saved up; calls beyond the burst save no more.
    assert!(asked(&mut dispatcher, 5).is_some());
    assert_eq!((asked(&mut dispatcher, 5), dispatcher.wake_at()), (None, None));
}

#[test]
fn a_hedge_waits_for_room_at_another_replica() {
    let mut dispatcher = dispatcher(hedging(5), &[1, 1]);
    let tickets = [(); 2].map(|()| submit(&mut dispatcher, QUESTION));
    let (_, first, _) = asked(&mut dispatcher, 0).unwrap();
    let (_, second, _) = asked(&mut dispatcher, 0).unwrap();
    assert_eq!(asked(&mut dispatcher, 6), None);
    let _ = dispatcher.answered(tickets[1], second, secs(7));
    assert_eq!(asked(&mut dispatcher, 7), Some((tickets[0], second, Why::Hedge)));
    assert_ne!(first, second);
}

#[test]
fn what_is_late_is_learnt_from_answers_of_the_same_kind() {
    let hedge_after = HedgeAfter::Quantile { percentile: 90, percent: 300 };
    let mut dispatcher = dispatcher(Settings { hedge_after, ..settings() }, &[1, 1]);
    for _ in 0..HedgeAfter::LEAST {
        let ticket = submit(&mut dispatcher, QUESTION);
        let (_, to, _) = asked(&mut dispatcher, 0).unwrap();
        let _ = dispatcher.answered(ticket, to, secs(0));
    }
    // All took no time: the smallest delay there is.
    let ticket = submit(&mut dispatcher, QUESTION);
    let other_kind = submit(&mut dispatcher, Question { kind: Kind(1), ..QUESTION });
    assert!(asked(&mut dispatcher, 0).is_some() && asked(&mut dispatcher, 0).is_some());
    assert_eq!(dispatcher.wake_at(), Some(Duration::from_nanos(1)));
    dispatcher.cancel(other_kind).unwrap();
    assert!(matches!(asked(&mut dispatcher, 1), Some((hedged, _, Why::Hedge)) if hedged == ticket));
}

/// A copy is lost after ten seconds, and a replica ejected after so many.
fn impatient(eject_after: u32, retries: Share) -> Settings {
    let silence = Silence { least: secs(10), percent: 1_000, unknown: secs(10), eject_after };
    Settings { silence: Some(silence), retries, ..settings() }
}

const NO_RETRIES: Share = Share { percent: 0, burst: 0 };

#[test]
fn a_copy_that_is_not_answered_for_too_long_goes_to_another_replica() {
    let mut dispatcher = dispatcher(impatient(3, Share { percent: 100, burst: 1 }), &[1, 1]);
    let question = submit(&mut dispatcher, QUESTION);
    let (_, hung, _) = asked(&mut dispatcher, 0).unwrap();
    assert_eq!(dispatcher.poll(secs(9)), None);
    assert_eq!(dispatcher.wake_at(), Some(secs(10)));
    let fate = AfterFailure::Queued;
    let lost = Action::Lose { ticket: question, replica: hung, is_ejected: false, fate };
    assert_eq!(dispatcher.poll(secs(10)), Some(lost));
    let (again, other, why) = asked(&mut dispatcher, 10).unwrap();
    assert_eq!((again, why), (question, Why::Retry));
    assert_ne!(other, hung);
    assert_eq!(dispatcher.answered(question, hung, secs(10)), Answered::Late);
    let view = dispatcher.replicas().find(|view| view.id == hung).unwrap();
    assert_eq!(view.state, ReplicaState::BackedOff { until: secs(11) });
}

#[test]
fn a_replica_that_leaves_several_unanswered_is_ejected_and_what_it_has_costs_no_retry() {
    let mut dispatcher = dispatcher(impatient(1, NO_RETRIES), &[3]);
    let tickets: Vec<_> = (0..3).map(|_| submit(&mut dispatcher, QUESTION)).collect();
    for _ in 0..3 {
        asked(&mut dispatcher, 0).unwrap();
    }
    let mut lost = Vec::new();
    while let Some(action) = dispatcher.poll(secs(10)) {
        match action {
            Action::Lose { ticket, is_ejected: true, fate: AfterFailure::Queued, .. } => lost.push(ticket),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(lost, tickets);
    assert_eq!(dispatcher.waiting(Lane::High), 3);
    // Tried with one question then, as after any failure.
    let (_, hung, _) = asked(&mut dispatcher, 11).unwrap();
    assert_eq!(dispatcher.poll(secs(11)), None);
    let _ = dispatcher.answered(tickets[0], hung, secs(12));
    assert_eq!(dispatcher.replicas().next().unwrap().state, ReplicaState::Open);
}

#[test]
fn a_replica_that_lets_deadlines_pass_is_ejected_too() {
    let mut dispatcher = dispatcher(impatient(2, NO_RETRIES), &[4]);
    for _ in 0..2 {
        submit(&mut dispatcher, until(10));
    }
    let patient = submit(&mut dispatcher, QUESTION);
    let hung = asked(&mut dispatcher, 0).unwrap().1;
    for _ in 0..2 {
        asked(&mut dispatcher, 0).unwrap();
    }
    let expired = (0..2).filter(|_| matches!(dispatcher.poll(secs(10)), Some(Action::Expire { .. })));
    assert_eq!(expired.count(), 2);
    let fate = AfterFailure::Queued;
    let lost = Action::Lose { ticket: patient, replica: hung, is_ejected: true, fate };
    assert_eq!(dispatcher.poll(secs(10)), Some(lost));
}

#[test]
fn a_question_that_an_overloaded_replica_refuses_costs_no_retry() {
    let mut dispatcher = dispatcher(Settings { retries: NO_RETRIES, ..settings() }, &[1]);
    let question = submit(&mut dispatcher, QUESTION);
    let (_, busy, _) = asked(&mut dispatcher, 0).unwrap();
    let overloaded = Failure::Overloaded { retry_after: secs(2) };
    assert_eq!(dispatcher.failed(question, busy, overloaded, secs(0)), AfterFailure::Queued);
    assert_eq!(asked(&mut dispatcher, 2), Some((question, busy, Why::Retry)));
}

#[test]
fn a_cancelled_question_says_where_it_is_and_frees_its_slot() {
    let mut dispatcher = dispatcher(hedging(5), &[1, 1]);
    let ticket = submit(&mut dispatcher, QUESTION);
    let (_, first, _) = asked(&mut dispatcher, 0).unwrap();
    let (_, second, _) = asked(&mut dispatcher, 5).unwrap();
    assert_eq!(dispatcher.cancel(ticket), Some(vec![first, second]));
    assert_eq!((dispatcher.cancel(ticket), dispatcher.open()), (None, 0));
    assert!(dispatcher.replicas().all(|view| view.in_flight == 0));
}

#[test]
fn time_does_not_go_back() {
    let mut dispatcher = dispatcher(settings(), &[]);
    let ticket = submit(&mut dispatcher, until(9));
    assert_eq!(dispatcher.poll(secs(8)), None);
    assert_eq!(dispatcher.poll(secs(1)), None);
    assert_eq!(dispatcher.submit(until(8), secs(1)), Err(Refused::Expired { late: secs(0) }));
    assert_eq!(dispatcher.poll(secs(9)), Some(Action::Expire { ticket, stop: vec![] }));
}

#[test]
fn a_question_that_is_kept_to_a_replica_goes_there_whatever_it_has() {
    let mut dispatcher = dispatcher(settings(), &[8, 8]);
    for _ in 0..6 {
        let ticket = submit(&mut dispatcher, QUESTION);
        assert!(dispatcher.keep(ticket, replica(1)));
        assert_eq!(asked(&mut dispatcher, 0), Some((ticket, replica(1), Why::First)));
    }
    let free = submit(&mut dispatcher, QUESTION);
    assert_eq!(asked(&mut dispatcher, 0), Some((free, replica(0), Why::First)));
}

#[test]
fn a_kept_question_goes_elsewhere_when_its_replica_fails_it_or_leaves() {
    let mut dispatcher = dispatcher(settings(), &[8, 8]);
    let ticket = submit(&mut dispatcher, QUESTION);
    dispatcher.keep(ticket, replica(1));
    assert_eq!(asked(&mut dispatcher, 0), Some((ticket, replica(1), Why::First)));
    assert_eq!(dispatcher.failed(ticket, replica(1), Failure::Unavailable, secs(0)), AfterFailure::Queued);
    assert_eq!(asked(&mut dispatcher, 0), Some((ticket, replica(0), Why::Retry)));
    let next = submit(&mut dispatcher, QUESTION);
    dispatcher.keep(next, replica(7));
    assert_eq!(
        asked(&mut dispatcher, 0),
        Some((next, replica(0), Why::First)),
        "nobody of that name is there"
    );
    assert!(!dispatcher.keep(Ticket::clone(&ticket), replica(0)) || dispatcher.cancel(ticket).is_some());
}
