use std::time::Duration;

use thicket_dispatch::{Backoff, HedgeAfter, QueueLimits, Share, Silence};
use thicket_simulation::{Candidates, Faults, Network, Ranking, Scenario, Service, Spread};
use thicket_thi::Settings;

pub(crate) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) const fn between(least: u64, mean: u64) -> Spread {
    Spread { least: millis(least), mean: millis(mean) }
}

/// Twelve queries, three replicas, and nothing goes wrong.
pub(crate) fn calm() -> Scenario {
    Scenario {
        // Of 30 scores drawn evenly from 0 to 1 the best is above 0.975 about every other time.
        thi: Settings::new(5, 0.975, 0.8, 0.5).unwrap(),
        dispatch: thicket_dispatch::Settings {
            backoff: Backoff { base: millis(20), cap: millis(500) },
            ..thicket_dispatch::Settings::default()
        },
        queries: 12,
        gallery: 30,
        candidates: Candidates::Ranked,
        ranking: Ranking::INSTANT,
        arrivals: between(0, 40),
        yes: 0.25,
        at_a_time: 1,
        patience: None,
        replicas: 3,
        slots: 2,
        service: Service {
            image: between(10, 20),
            locate: between(5, 15),
            describe: between(30, 60),
            aggregate: between(20, 40),
            images_held: 8,
        },
        call_timeout: millis(1_000),
        lease: millis(300),
        network: Network { latency: between(1, 2), loss: 0.0 },
        faults: Faults::NONE,
    }
}

/// Questions are asked ahead, hedged and passed over.
pub(crate) fn eager(scenario: Scenario) -> Scenario {
    Scenario {
        at_a_time: 4,
        dispatch: thicket_dispatch::Settings {
            pass_over: 4,
            hedge_after: HedgeAfter::Fixed(millis(60)),
            hedges: Share { percent: 50, burst: 5 },
            ..scenario.dispatch
        },
        ..scenario
    }
}

/// Everything goes wrong that can be simulated.
pub(crate) fn rough(scenario: Scenario) -> Scenario {
    Scenario {
        call_timeout: millis(250),
        network: Network { latency: between(1, 5), loss: 0.03 },
        faults: Faults {
            during: millis(800),
            lasting: between(50, 300),
            crashes: 3,
            partitions: 3,
            slow: 2,
            drains: 2,
            hangs: 1,
        },
        ..scenario
    }
}

/// Replicas hang, and only the dispatcher finds out: a call has all the time in the world.
pub(crate) fn hung(scenario: Scenario) -> Scenario {
    Scenario {
        call_timeout: Duration::from_secs(1_000_000),
        dispatch: thicket_dispatch::Settings {
            silence: Some(Silence {
                least: millis(300),
                percent: 1_000,
                unknown: millis(600),
                eject_after: 2,
            }),
            ..scenario.dispatch
        },
        faults: Faults { during: millis(400), lasting: between(2_000, 6_000), hangs: 3, ..Faults::NONE },
        ..scenario
    }
}

/// Nothing is given up.
pub(crate) fn persistent(scenario: Scenario) -> Scenario {
    Scenario {
        patience: None,
        dispatch: thicket_dispatch::Settings {
            attempts: u32::MAX,
            retries: Share { percent: 100, burst: 1_000_000 },
            ..scenario.dispatch
        },
        ..scenario
    }
}

/// Little is waited for and little may wait.
pub(crate) fn hurried(scenario: Scenario) -> Scenario {
    Scenario {
        arrivals: between(0, 5),
        patience: Some(millis(600)),
        dispatch: thicket_dispatch::Settings {
            queue: QueueLimits { high: 2, low: 3, ahead: 2 },
            ..scenario.dispatch
        },
        ..scenario
    }
}
