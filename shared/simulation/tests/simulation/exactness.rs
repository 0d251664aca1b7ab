use std::env;
use std::time::Duration;

use thicket_simulation::{End, Run, Scenario, run};
use thicket_thi::plain::{self, PlainQuery};
use thicket_thi::{Answer, Class, Decisions, decide_all};

use crate::scenarios::{calm, eager, hung, hurried, persistent, rough};

/// Seeds of a test where the environment names no other number.
const SEEDS: u64 = 2_000;
/// Names a number of seeds.
const ENV_SEEDS: &str = "THICKET_SIMULATION_SEEDS";
/// Names one seed, to run it again.
const ENV_SEED: &str = "THICKET_SIMULATION_SEED";

/// Runs a scenario with every seed and hands each run over; the first problem ends the test with its seed.
fn for_every_seed(scenario: &Scenario, mut check: impl FnMut(&Run) -> Result<(), String>) {
    let number = |name| env::var(name).ok().map(|value| value.parse::<u64>().expect(name));
    let seeds = match number(ENV_SEED) {
        Some(seed) => seed..seed + 1,
        None => 0..number(ENV_SEEDS).unwrap_or(SEEDS),
    };
    for seed in seeds {
        let run = run(scenario, seed).unwrap();
        if let Err(problem) = check(&run) {
            panic!("{problem}\nto run it again: {ENV_SEED}={seed}");
        }
    }
}

/// What the round-by-round algorithm decides, and what has to be asked for it.
fn reference(scenario: &Scenario, run: &Run) -> Decisions {
    let (queries, rounds) = (scenario.queries, scenario.thi.rounds());
    let answers: Vec<u8> = (0..queries * rounds)
        .map(|place| u8::from(run.cohort.answer(place / rounds, place % rounds + 1) == Answer::Yes))
        .collect();
    let similarity = run.cohort.similarity();
    let decisions = decide_all(&similarity, queries, scenario.gallery, &answers, &scenario.thi).unwrap();

    let plain_query = |query: usize| {
        let candidates = run.cohort.candidates(query);
        PlainQuery { best: candidates[0].score, candidates: candidates.len(), echo: false }
    };
    let plain_queries: Vec<_> = (0..queries).map(plain_query).collect();
    let plain = plain::run(&plain_queries, rounds, scenario.thi.xi(), |query, round| {
        run.cohort.answer(query, round) == Answer::Yes
    });
    assert_eq!(plain.refined_in, decisions.rounds);
    decisions
}

/// Rounds whose answers decide a query.
fn rounds_that_count(scenario: &Scenario, run: &Run, query: usize) -> usize {
    let candidates = run.cohort.candidates(query);
    let is_yes = |round: &usize| run.cohort.answer(query, *round) == Answer::Yes;
    match Class::of(candidates[0].score, scenario.thi.xi()) {
        Class::High => 1,
        Class::Low => (1..=candidates.len()).find(is_yes).unwrap_or(candidates.len()),
    }
}

/// Every query ended once, and those with an outcome as the plain algorithm decides.
fn decides_as_the_plain_algorithm(scenario: &Scenario, run: &Run) -> Result<(), String> {
    let reference = reference(scenario, run);
    for query in 0..scenario.queries {
        let times = run.ends.iter().filter(|(ended, ..)| *ended == query).count();
        if times != 1 {
            return Err(format!("query {query} ended {times} times"));
        }
    }
    let mut questions = 0;
    for (query, end, interaction, ended) in &run.ends {
        if *end == End::Expired && Some(*ended - run.arrivals[*query]) != scenario.patience {
            return Err(format!("query {query} expired at {ended:?}, not with its patience"));
        }
        let End::Done(outcome) = end else { continue };
        let refined = outcome.refined().map(|(round, anchor)| (round, *anchor));
        let wanted = reference.rounds[*query].zip(reference.anchors[*query]);
        if refined != wanted {
            return Err(format!("query {query} was refined from {refined:?}, not from {wanted:?}"));
        }
        let count = rounds_that_count(scenario, run, *query);
        let answers: Vec<_> = (1..=count).map(|round| Some(run.cohort.answer(*query, round))).collect();
        if interaction.answers()[..count] != answers {
            return Err(format!(
                "query {query} was decided by {:?}, not by {answers:?}",
                interaction.answers()
            ));
        }
        // Nothing is asked ahead of the first answer.
        if (scenario.at_a_time == 1 || count == 1) && interaction.questions_answered() != count {
            return Err(format!("query {query} was asked in vain: {:?}", interaction.answers()));
        }
        questions += count;
    }
    let all_are_done = run.ends.iter().all(|(_, end, ..)| matches!(end, End::Done(_)));
    if all_are_done && questions != reference.questions {
        return Err(format!("{questions} questions count, not {}", reference.questions));
    }
    Ok(())
}

fn all_are_done(run: &Run) -> Result<(), String> {
    match run.ends.iter().find(|(_, end, ..)| !matches!(end, End::Done(_))) {
        Some((query, end, ..)) => Err(format!("query {query} was given up: {end:?}")),
        None => Ok(()),
    }
}

#[test]
fn where_nothing_goes_wrong_all_are_done_and_asked_once_what_counts() {
    let scenario = calm();
    for_every_seed(&scenario, |run| {
        decides_as_the_plain_algorithm(&scenario, run)?;
        all_are_done(run)?;
        let located = reference(&scenario, run).questions;
        let refined = reference(&scenario, run).anchors.iter().flatten().count();
        // A refined query is described and merged as well.
        match run.sent == located + 2 * refined {
            true => Ok(()),
            false => Err(format!("{} were sent for {located} and {refined} refined", run.sent)),
        }
    });
}

#[test]
fn asking_ahead_and_hedging_change_no_decision() {
    let scenario = eager(calm());
    for_every_seed(&scenario, |run| {
        decides_as_the_plain_algorithm(&scenario, run)?;
        all_are_done(run)
    });
}

#[test]
fn faults_change_no_decision_and_end_every_query_once() {
    for scenario in [rough(calm()), rough(eager(calm()))] {
        for_every_seed(&scenario, |run| decides_as_the_plain_algorithm(&scenario, run));
    }
}

#[test]
fn where_nothing_is_given_up_every_query_is_done_once_the_faults_are_over() {
    for scenario in [persistent(rough(calm())), persistent(rough(eager(calm())))] {
        for_every_seed(&scenario, |run| {
            decides_as_the_plain_algorithm(&scenario, run)?;
            all_are_done(run)
        });
    }
}

/// Each call would wait for a hung replica for ever.
#[test]
fn hung_replicas_change_no_decision_and_lose_no_query() {
    for scenario in [persistent(hung(calm())), persistent(hung(eager(calm()))), hurried(hung(eager(calm())))]
    {
        for_every_seed(&scenario, |run| {
            decides_as_the_plain_algorithm(&scenario, run)?;
            let too_long = |(query, _, _, ended): &&(usize, End, _, Duration)| {
                *ended - run.arrivals[*query] > Duration::from_secs(120)
            };
            match (run.ends.iter().find(too_long), scenario.patience) {
                (Some((query, _, _, ended)), _) => Err(format!("query {query} ended at {ended:?}")),
                (None, None) => all_are_done(run),
                (None, Some(_)) => Ok(()),
            }
        });
    }
}

#[test]
fn overload_and_deadlines_change_no_decision_and_end_every_query_once() {
    for scenario in [hurried(calm()), hurried(rough(eager(calm())))] {
        for_every_seed(&scenario, |run| decides_as_the_plain_algorithm(&scenario, run));
    }
}

/// The scenarios above would prove nothing if their faults reached nobody.
#[test]
fn the_faults_are_felt() {
    let scenario = hurried(rough(eager(calm())));
    let (mut failed, mut expired, mut done, mut late) = (0, 0, 0, 0);
    for seed in 0..200 {
        let run = run(&scenario, seed).unwrap();
        late += run.late;
        for (_, end, ..) in &run.ends {
            match end {
                End::Done(_) => done += 1,
                End::Failed(_) => failed += 1,
                End::Expired => expired += 1,
            }
        }
    }
    assert!(failed > 50 && expired > 50 && done > 500 && late > 50, "{failed} {expired} {done} {late}");
}

#[test]
fn a_seed_gives_one_run() {
    let scenario = rough(eager(calm()));
    let ends = |seed| format!("{:?}", run(&scenario, seed).unwrap());
    assert_eq!(ends(7), ends(7));
    assert_ne!(ends(7), ends(8));
}
