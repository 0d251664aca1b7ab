//! `thicket eval`: the numbers, and every input it must refuse.

use crate::support::{Files, Run, run};

fn eval(similarity: &str, query_ids: &str, gallery_ids: &str) -> Run {
    run(&[
        "eval",
        "--similarity",
        similarity,
        "--query-ids",
        query_ids,
        "--gallery-ids",
        gallery_ids,
        "--json",
    ])
}

/// Two queries on four images, small enough to rank by hand.
fn tiny(files: &Files) -> (String, String, String) {
    let similarity = files.matrix(
        "s.npy",
        4,
        &[
            0.9f32, 0.8, 0.1, 0.7, // ids 1 2 1 2 -> query 1: matches at ranks 1 and 4
            0.5, 0.2, 0.4, 0.3, // query 2: order 1 1 2 2, matches at ranks 3 and 4
        ],
    );
    (similarity, files.list("q.npy", &[1i64, 2]), files.list("g.npy", &[1i64, 2, 1, 2]))
}

#[test]
fn metrics_are_the_hand_computed_percentages() {
    let files = Files::new();
    let (similarity, query_ids, gallery_ids) = tiny(&files);
    let json = eval(&similarity, &query_ids, &gallery_ids).json();
    // Query 1: AP = (1/1 + 2/4) / 2 = 0.75, INP = 2/4. Query 2: AP = (1/3 + 2/4) / 2 = 5/12, INP = 2/4.
    let expected = [
        ("rank1", 50.0),
        ("rank5", 100.0),
        ("rank10", 100.0),
        ("map", 100.0 * (0.75 + 5.0 / 12.0) / 2.0),
        ("minp", 50.0),
    ];
    for (name, value) in expected {
        assert!((json[name].as_f64().unwrap() - value).abs() < 1e-3, "{name}: {json}");
    }
    assert_eq!((json["queries"].as_u64(), json["gallery"].as_u64()), (Some(2), Some(4)));
}

#[test]
fn int32_ids_and_float64_scores_give_the_same_numbers() {
    let files = Files::new();
    let (similarity, query_ids, gallery_ids) = tiny(&files);
    let expected = eval(&similarity, &query_ids, &gallery_ids).json();
    let wide = [0.9f64, 0.8, 0.1, 0.7, 0.5, 0.2, 0.4, 0.3];
    let json = eval(
        &files.matrix("wide.npy", 4, &wide),
        &files.list("q32.npy", &[1i32, 2]),
        &files.list("g32.npy", &[1i32, 2, 1, 2]),
    )
    .json();
    assert_eq!(json, expected);
}

#[test]
fn equal_scores_rank_in_gallery_order() {
    let files = Files::new();
    let similarity = files.matrix("s.npy", 2, &[0.5f32, 0.5]);
    let gallery_ids = files.list("g.npy", &[2i64, 1]);
    let json = eval(&similarity, &files.list("q.npy", &[1i64]), &gallery_ids).json();
    assert_eq!(json["rank1"], 0.0);
    assert_eq!(json["rank5"], 100.0);
}

#[test]
fn without_json_a_person_reads_the_numbers() {
    let files = Files::new();
    let (similarity, query_ids, gallery_ids) = tiny(&files);
    let printed =
        run(&["eval", "--similarity", &similarity, "--query-ids", &query_ids, "--gallery-ids", &gallery_ids]);
    assert_eq!(printed.status, 0);
    assert!(printed.stdout.contains("Rank-1 50.00") && printed.stdout.contains("mINP 50.00"), "{printed:?}");
}

#[test]
fn ids_that_do_not_fit_the_matrix_are_refused_with_both_counts() {
    let files = Files::new();
    let (similarity, query_ids, gallery_ids) = tiny(&files);
    let short = files.list("short.npy", &[1i64]);
    eval(&similarity, &short, &gallery_ids).refuses(&["query-ids", "short.npy", "1 ids", "2 rows"]);
    eval(&similarity, &query_ids, &short).refuses(&["gallery-ids", "short.npy", "1 ids", "4 columns"]);
}

#[test]
fn a_score_that_is_not_a_number_is_refused_with_its_place() {
    let files = Files::new();
    let (_, query_ids, _) = tiny(&files);
    let similarity = files.matrix("nan.npy", 2, &[0.1f32, 0.2, 0.3, f32::NAN]);
    let gallery_ids = files.list("g.npy", &[1i64, 2]);
    eval(&similarity, &query_ids, &gallery_ids).refuses(&["nan.npy", "1", "not a number"]);
}

#[test]
fn a_query_that_nothing_matches_is_refused() {
    let files = Files::new();
    let (similarity, _, gallery_ids) = tiny(&files);
    let query_ids = files.list("q.npy", &[1i64, 77]);
    eval(&similarity, &query_ids, &gallery_ids).refuses(&["1", "77"]);
}

#[test]
fn a_matrix_without_queries_is_refused() {
    let files = Files::new();
    let empty = files.list::<i64>("none.npy", &[]);
    let similarity = files.matrix::<f32>("s.npy", 4, &[]);
    eval(&similarity, &empty, &files.list("g.npy", &[1i64, 2, 1, 2])).refuses(&["s.npy"]);
}

#[test]
fn damaged_files_are_refused_with_their_reason() {
    let files = Files::new();
    let (similarity, query_ids, gallery_ids) = tiny(&files);
    let whole = std::fs::read(&similarity).unwrap();

    let empty = files.bytes("empty.npy", b"");
    eval(&empty, &query_ids, &gallery_ids).refuses(&["similarity", "empty.npy", "is empty"]);
    let cut = files.bytes("cut.npy", &whole[..whole.len() - 3]);
    eval(&cut, &query_ids, &gallery_ids).refuses(&["cut.npy", "[2, 4]", "32", "29"]);
    let long = files.bytes("long.npy", &[&whole[..], b"x"].concat());
    eval(&long, &query_ids, &gallery_ids).refuses(&["long.npy", "32", "33"]);
    let header = files.bytes("header.npy", &whole[..40]);
    eval(&header, &query_ids, &gallery_ids).refuses(&["header.npy", "ends within its header"]);
    let text = files.bytes("text.npy", b"0.5 0.25\n");
    eval(&text, &query_ids, &gallery_ids).refuses(&["text.npy", "not an npy file"]);
    eval(&files.arg("absent.npy"), &query_ids, &gallery_ids).refuses(&["absent.npy", "cannot be read"]);
    eval(files.root().to_str().unwrap(), &query_ids, &gallery_ids).refuses(&["cannot be read"]);
}

#[test]
fn the_wrong_dtype_or_dimensions_are_refused_by_name() {
    let files = Files::new();
    let (similarity, query_ids, gallery_ids) = tiny(&files);
    let integers = files.matrix("ints.npy", 4, &[1i32; 8]);
    eval(&integers, &query_ids, &gallery_ids).refuses(&["ints.npy", "int32", "float32"]);
    let floats = files.list("floats.npy", &[1.0f32, 2.0]);
    eval(&similarity, &floats, &gallery_ids).refuses(&["query-ids", "floats.npy", "float32", "int64"]);
    eval(&floats, &query_ids, &gallery_ids).refuses(&["floats.npy", "1 dimensions", "2 expected"]);
}
