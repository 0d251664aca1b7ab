//! `thicket schedule`: the method's decision table, and every input it must refuse.

use crate::support::{Files, Run, run};
use serde_json::json;

const ROUNDS: usize = 5;

fn schedule(similarity: &str, answers: &str, xi: &str, rounds: &str) -> Run {
    run(&[
        "schedule",
        "--similarity",
        similarity,
        "--answers",
        answers,
        "--xi",
        xi,
        "--rounds",
        rounds,
        "--json",
    ])
}

/// What the method decides for one query: the round that refines it and the questions that have to be asked.
fn decision(high: bool, answers: &[u8]) -> (Option<usize>, usize) {
    let first_yes = answers.iter().position(|answer| *answer == 1).map(|place| place + 1);
    match (high, first_yes) {
        (true, Some(1)) => (Some(1), 1),
        (true, _) => (None, 1),
        (false, Some(1)) => (None, 1),
        (false, Some(round)) => (Some(round), round),
        (false, None) => (None, answers.len()),
    }
}

#[test]
fn every_row_of_the_decision_table_holds_for_every_answer() {
    let files = Files::new();
    let (mut scores, mut answers, mut anchors, mut questions) = (vec![], vec![], vec![], 0);
    for table in 0..1u32 << ROUNDS {
        // Above the threshold, exactly at it (which counts as low), below it.
        for best in [0.75f32, 0.5, 0.25] {
            let row: Vec<u8> = (0..ROUNDS).map(|round| (table >> round & 1) as u8).collect();
            // Candidate k sits at gallery index 6 - k: the best image is the last column but one.
            scores.extend([-1.0, best - 0.4, best - 0.3, best - 0.2, best - 0.1, best, -1.0]);
            let (round, asked) = decision(best > 0.5, &row);
            anchors.push(round.map_or(-1, |round| 6 - round as i64));
            questions += asked;
            answers.extend(row);
        }
    }
    let json = schedule(
        &files.matrix("s.npy", 7, &scores),
        &files.matrix("y.npy", ROUNDS, &answers),
        "0.5",
        &ROUNDS.to_string(),
    )
    .json();
    assert_eq!(json, json!({ "anchors": anchors, "questions": questions }));
}

#[test]
fn a_gallery_smaller_than_the_rounds_asks_about_what_there_is() {
    let files = Files::new();
    let similarity = files.matrix("s.npy", 2, &[0.1f32, 0.2]);
    let json = schedule(&similarity, &files.matrix("y.npy", 5, &[0u8; 5]), "0.5", "5").json();
    assert_eq!(json, json!({ "anchors": [-1], "questions": 2 }));
}

#[test]
fn a_negative_threshold_is_a_number_and_not_a_flag() {
    let files = Files::new();
    let similarity = files.matrix("s.npy", 1, &[-0.1f32]);
    let answers = files.matrix("y.npy", 1, &[1u8]);
    assert_eq!(schedule(&similarity, &answers, "-0.2", "1").json()["anchors"], json!([0]));
    assert_eq!(schedule(&similarity, &answers, "-0.05", "1").json()["anchors"], json!([-1]));
}

#[test]
fn answers_of_another_shape_are_refused_with_both() {
    let files = Files::new();
    let similarity = files.matrix("s.npy", 2, &[0.1f32, 0.2]);
    let answers = files.matrix("y.npy", 2, &[0u8, 1]);
    schedule(&similarity, &answers, "0.5", "3").refuses(&["answers", "y.npy", "[1, 2]", "[1, 3]"]);
    let rows = files.matrix("rows.npy", 2, &[0u8; 4]);
    schedule(&similarity, &rows, "0.5", "2").refuses(&["rows.npy", "[2, 2]", "[1, 2]"]);
}

#[test]
fn answers_other_than_zero_and_one_are_refused() {
    let files = Files::new();
    let similarity = files.matrix("s.npy", 2, &[0.1f32, 0.2]);
    let answers = files.matrix("y.npy", 2, &[0u8, 3]);
    schedule(&similarity, &answers, "0.5", "2").refuses(&["y.npy", "[0, 1]", "3"]);
    let floats = files.matrix("floats.npy", 2, &[0.0f32, 1.0]);
    schedule(&similarity, &floats, "0.5", "2").refuses(&["floats.npy", "float32", "uint8"]);
}

#[test]
fn settings_out_of_range_are_refused() {
    let files = Files::new();
    let similarity = files.matrix("s.npy", 1, &[0.1f32]);
    let answers = files.matrix("y.npy", 1, &[1u8]);
    schedule(&similarity, &answers, "0.5", "0").refuses(&["rounds", "1 to 100", "0"]);
    schedule(&similarity, &answers, "0.5", "101").refuses(&["rounds", "1 to 100", "101"]);
    schedule(&similarity, &answers, "NaN", "1").refuses(&["xi", "NaN"]);
    schedule(&similarity, &answers, "inf", "1").refuses(&["xi", "inf"]);
    schedule(&similarity, &answers, "0.5", "-1").refuses(&["--rounds"]);
}

#[test]
fn a_score_that_is_not_a_number_is_refused_with_its_place() {
    let files = Files::new();
    let similarity = files.matrix("s.npy", 2, &[0.1f32, f32::NAN]);
    let answers = files.matrix("y.npy", 1, &[1u8]);
    schedule(&similarity, &answers, "0.5", "1").refuses(&["s.npy", "[0, 1]", "not a number"]);
}
