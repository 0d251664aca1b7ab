//! `thicket rerank`: Eq. 6 against a plain reference, and every input it must refuse.

use crate::support::{Files, Run, noise, run};
use ndarray::Array2;

fn rerank(files: &Files, similarity: &str, refined: &str, anchors: &str, lambda: &str) -> Run {
    let out = files.arg("out.npy");
    run(&[
        "rerank",
        "--similarity",
        similarity,
        "--refined",
        refined,
        "--anchors",
        anchors,
        "--lambda",
        lambda,
        "--out",
        &out,
        "--json",
    ])
}

#[test]
fn every_value_equals_the_plain_formula() {
    let files = Files::new();
    let (queries, gallery, lambda) = (17, 23, 0.8f64);
    let base = noise(1, queries * gallery);
    let mut other = noise(2, queries * gallery);
    let anchors: Vec<i64> =
        (0..queries as i64).map(|query| if query % 3 == 0 { -1 } else { query * 7 % 23 }).collect();
    other[0] = f32::NAN; // query 0 has no anchor: its row is not looked at

    let run = rerank(
        &files,
        &files.matrix("s.npy", gallery, &base),
        &files.matrix("r.npy", gallery, &other),
        &files.list("a.npy", &anchors),
        &lambda.to_string(),
    );
    let json = run.json();
    assert_eq!((json["queries"].as_u64(), json["gallery"].as_u64()), (Some(17), Some(23)));
    assert_eq!(json["refined"].as_u64(), Some(anchors.iter().filter(|anchor| **anchor >= 0).count() as u64));

    let mixed: Array2<f32> = ndarray_npy::read_npy(files.path("out.npy")).unwrap();
    assert_eq!(mixed.dim(), (queries, gallery));
    for query in 0..queries {
        for image in 0..gallery {
            let place = query * gallery + image;
            let expected = match anchors[query] {
                -1 => f64::from(base[place]),
                anchor => {
                    let refined = if image as i64 == anchor { 1.0 } else { f64::from(other[place]) };
                    lambda * f64::from(base[place]) + (1.0 - lambda) * refined
                }
            };
            assert!((f64::from(mixed[[query, image]]) - expected).abs() < 1e-6, "[{query}, {image}]");
        }
    }
}

#[test]
fn lambda_one_changes_nothing_and_lambda_zero_keeps_only_the_rewritten_query() {
    let files = Files::new();
    let similarity = files.matrix("s.npy", 2, &[0.25f32, 0.5]);
    let refined = files.matrix("r.npy", 2, &[0.75f32, 0.125]);
    let anchors = files.list("a.npy", &[0i32]);
    let result = |lambda: &str| -> Vec<f32> {
        rerank(&files, &similarity, &refined, &anchors, lambda).json();
        ndarray_npy::read_npy::<_, Array2<f32>>(files.path("out.npy")).unwrap().into_raw_vec_and_offset().0
    };
    assert_eq!(result("1"), [0.25, 0.5]);
    assert_eq!(result("0"), [1.0, 0.125]);
}

#[test]
fn an_anchor_outside_the_gallery_is_refused_with_its_row() {
    let files = Files::new();
    let matrix = files.matrix("s.npy", 2, &[0.1f32, 0.2, 0.3, 0.4]);
    for anchor in [2i64, -2, i64::MAX] {
        let anchors = files.list("a.npy", &[-1, anchor]);
        rerank(&files, &matrix, &matrix, &anchors, "0.8").refuses(&[
            "a.npy",
            "[1]",
            &anchor.to_string(),
            "-1 to 1",
        ]);
    }
    assert!(!files.path("out.npy").exists());
}

#[test]
fn shapes_that_disagree_are_refused_with_both() {
    let files = Files::new();
    let similarity = files.matrix("s.npy", 2, &[0.1f32, 0.2, 0.3, 0.4]);
    let narrow = files.matrix("r.npy", 1, &[0.1f32, 0.2]);
    let anchors = files.list("a.npy", &[0i64, 1]);
    rerank(&files, &similarity, &narrow, &anchors, "0.8").refuses(&["r.npy", "[2, 1]", "[2, 2]"]);
    let long = files.list("long.npy", &[0i64, 1, 1]);
    rerank(&files, &similarity, &similarity, &long, "0.8").refuses(&["long.npy", "3", "2 rows"]);
}

#[test]
fn lambda_outside_zero_to_one_is_refused() {
    let files = Files::new();
    let matrix = files.matrix("s.npy", 1, &[0.1f32]);
    let anchors = files.list("a.npy", &[0i64]);
    for lambda in ["1.01", "-0.5", "NaN", "inf"] {
        rerank(&files, &matrix, &matrix, &anchors, lambda).refuses(&["lambda", "0 to 1", lambda]);
    }
    rerank(&files, &matrix, &matrix, &anchors, "much").refuses(&["--lambda", "much"]);
}

#[test]
fn values_that_cannot_be_mixed_are_refused() {
    let files = Files::new();
    let good = files.matrix("s.npy", 2, &[0.1f32, 0.2]);
    let anchors = files.list("a.npy", &[0i64]);
    for bad in [f32::NAN, f32::INFINITY] {
        let bad = files.matrix("bad.npy", 2, &[0.1, bad]);
        rerank(&files, &bad, &good, &anchors, "0.8").refuses(&["similarity", "bad.npy", "[0, 1]"]);
        rerank(&files, &good, &bad, &anchors, "0.8").refuses(&["refined", "bad.npy", "[0, 1]"]);
    }
}

#[test]
fn a_result_that_cannot_be_written_is_failed_work() {
    let files = Files::new();
    let matrix = files.matrix("s.npy", 1, &[0.1f32]);
    let anchors = files.list("a.npy", &[0i64]);
    let out = files.arg("no/such/folder/out.npy");
    let run = run(&[
        "rerank",
        "--similarity",
        &matrix,
        "--refined",
        &matrix,
        "--anchors",
        &anchors,
        "--lambda",
        "0.8",
        "--out",
        &out,
    ]);
    assert_eq!((run.status, run.stderr.lines().count()), (1, 1), "{run:?}");
    assert!(run.stderr.contains("out.npy"));
}
