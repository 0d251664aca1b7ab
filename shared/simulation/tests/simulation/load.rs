use thicket_simulation::{
    Candidates, Capacity, Faults, Network, Ranking, Scenario, ScenarioError, Service, Spread, capacity,
    enough, run,
};
use thicket_thi::Settings;

use crate::scenarios::{between, calm, millis};

const NONE: Spread = Spread::fixed(std::time::Duration::ZERO);

/// One question a query, all of one lane, that takes 100 ms on average and nothing else: a queue that theory knows.
fn one_question(replicas: usize, arrivals: Spread, queries: usize) -> Scenario {
    Scenario {
        thi: Settings::new(1, -1.0, 0.8, 0.5).unwrap(),
        queries,
        arrivals,
        yes: 0.0,
        replicas,
        slots: 1,
        service: Service {
            image: NONE,
            locate: between(0, 100),
            describe: NONE,
            aggregate: NONE,
            images_held: 0,
        },
        call_timeout: millis(100_000),
        network: Network { latency: NONE, loss: 0.0 },
        faults: Faults::NONE,
        ..calm()
    }
}

fn measure(scenario: &Scenario) -> Capacity {
    let capacity = capacity(scenario, 1).unwrap();
    assert_eq!((capacity.finished, capacity.failed), (scenario.queries, 0));
    capacity
}

fn is_about(actual: f64, wanted: f64) -> bool {
    (actual / wanted - 1.0).abs() < 0.05
}

#[test]
fn one_replica_is_the_queue_of_theory() {
    let measured = measure(&one_question(1, between(0, 200), 40_000));
    // M/M/1 with 10 served and 5 arriving a second: time in the system is exponential with rate 5.
    let quantile = |share: f64| -(1.0 - share).ln() / 5.0;
    assert!(is_about(measured.p50.as_secs_f64(), quantile(0.5)), "{measured:?}");
    assert!(is_about(measured.p99.as_secs_f64(), quantile(0.99)), "{measured:?}");
    assert!(is_about(measured.per_second, 5.0), "{measured:?}");
}

#[test]
fn throughput_is_the_arrival_rate_until_the_replicas_are_busy_and_then_theirs() {
    for (replicas, per_second) in [(2, 20.0), (4, 40.0), (8, 50.0)] {
        // Fifty a second; each replica serves ten.
        let measured = measure(&one_question(replicas, between(0, 20), 4_000));
        assert!(is_about(measured.per_second, per_second), "{replicas}: {measured:?}");
    }
}

#[test]
fn questions_find_the_replica_that_keeps_their_image() {
    let images = Service { image: between(100, 100), images_held: 20, ..one_question(4, NONE, 0).service };
    let kept = Scenario { gallery: 60, slots: 4, service: images, ..one_question(4, between(0, 26), 8_000) };
    let forgotten = Scenario { service: Service { images_held: 0, ..images }, ..kept };
    let (kept, forgotten) = (measure(&kept), measure(&forgotten));
    // To see an image takes as long as to judge it: half of the time, where it is always held.
    assert!(kept.p50.mul_f64(1.4) < forgotten.p50, "{kept:?} {forgotten:?}");
}

#[test]
fn busy_replicas_keep_their_images_where_questions_may_be_passed_over() {
    let images = Service { image: between(100, 100), images_held: 20, ..one_question(4, NONE, 0).service };
    let strict = Scenario { gallery: 60, service: images, ..one_question(4, between(0, 20), 4_000) };
    let dispatch = thicket_dispatch::Settings { pass_over: 64, ..strict.dispatch };
    let (strict, lenient) = (measure(&strict), measure(&Scenario { dispatch, ..strict }));
    // Four replicas serve 20 a second that see every image and 40 that hold every image.
    assert!(strict.per_second < 25.0 && lenient.per_second > 36.0, "{strict:?} {lenient:?}");
    assert!(lenient.p99 < strict.p99, "{strict:?} {lenient:?}");
}

#[test]
fn the_smallest_number_of_replicas_that_is_enough_is_found() {
    // Fifty a second; each replica serves ten, so that five would just keep up and wait ever longer.
    let scenario = one_question(1, between(0, 20), 4_000);
    let found = enough(&scenario, (1, 64), millis(1_000), 1).unwrap().unwrap();
    let with = |replicas| measure(&Scenario { replicas, ..scenario });
    assert!(found.replicas > 5 && found.capacity == with(found.replicas), "{found:?}");
    assert!(found.capacity.p99 <= millis(1_000) && with(found.replicas - 1).p99 > millis(1_000), "{found:?}");
    assert_eq!(enough(&scenario, (1, 4), millis(1_000), 1).unwrap(), None);
}

#[test]
fn a_gallery_of_any_size_is_simulated_and_so_is_how_long_it_takes_to_rank() {
    let candidates = Candidates::Drawn { high: 1.0 };
    let ranking = Ranking { slots: 1_000, takes: Spread::fixed(millis(500)) };
    let scenario = Scenario { gallery: 1_000_000_000, candidates, yes: 1.0, ..calm() };
    let (instant, ranked) = (measure(&scenario), measure(&Scenario { ranking, ..scenario }));
    // One question each, and as each is confirmed it is described, merged and ranked once more.
    assert_eq!((instant.questions, ranked.questions), (3 * scenario.queries, 3 * scenario.queries));
    assert!(ranked.p50 >= instant.p50 + millis(900), "{instant:?} {ranked:?}");
}

#[test]
fn a_share_of_the_queries_is_of_the_high_class() {
    let candidates = Candidates::Drawn { high: 0.25 };
    let scenario = Scenario { gallery: 3, candidates, queries: 4_000, yes: 0.0, ..calm() };
    let cohort = run(&scenario, 1).unwrap().cohort;
    let high = (0..4_000).filter(|query| cohort.candidates(*query)[0].score > scenario.thi.xi()).count();
    assert!((900..1_100).contains(&high), "{high}");
    assert_eq!(cohort.candidates(0).len(), 3, "no image is a candidate twice");
}

#[test]
fn a_scenario_that_cannot_be_simulated_is_refused() {
    let refused = |scenario| capacity(&scenario, 0).unwrap_err().to_string();
    assert_eq!(refused(Scenario { replicas: 0, ..calm() }), "replicas: at least 1, got 0");
    assert_eq!(refused(Scenario { yes: 1.5, ..calm() }), "yes: 0 to 1, got 1.5");
    let candidates = Candidates::Drawn { high: -0.5 };
    assert_eq!(refused(Scenario { candidates, ..calm() }), "candidates.high: 0 to 1, got -0.5");
    let dispatch = thicket_dispatch::Settings { attempts: 0, ..calm().dispatch };
    let error = capacity(&Scenario { dispatch, ..calm() }, 0).unwrap_err();
    assert!(matches!(error, ScenarioError::Dispatch(_)), "{error}");
}
