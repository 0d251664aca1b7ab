//! `thicket capacity`: what comes out follows from what goes in.

use serde_json::Value;

use crate::support::{Files, run};

fn simulated(flags: &[&str]) -> Value {
    run(&[&["capacity", "--json"], flags].concat()).json()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

#[test]
fn twice_the_replicas_answer_about_twice_the_queries_over_any_gallery() {
    let files = Files::new();
    let svg = files.arg("curves.svg");
    let document = simulated(&["--replicas", "2,4", "--gallery", "1e3,1e9", "--svg", &svg]);
    let points = document["points"].as_array().unwrap();
    let of = |place: usize| {
        (points[place]["gallery"].as_u64().unwrap(), points[place]["replicas"].as_u64().unwrap())
    };
    assert_eq!([0, 1, 2, 3].map(of), [(1_000, 2), (1_000, 4), (1_000_000_000, 2), (1_000_000_000, 4)]);
    let most = |place: usize| number(&points[place]["most_per_second"]);
    for place in [0, 2] {
        let times = most(place + 1) / most(place);
        assert!((1.7..2.3).contains(&times), "{times}: {document}");
    }
    // Images of a small gallery are held; those of a large one have to be seen for each question.
    assert!(most(0) > most(2), "{document}");
    let drawn = std::fs::read_to_string(svg).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.contains("1e9 vectors"), "{drawn}");
}

#[test]
fn a_heavier_load_needs_more_gpus_and_one_that_is_too_heavy_more_than_were_tried() {
    let flags = ["--gallery", "1e6", "--queries-per-second", "5,40,4000", "--replicas", "32", "--p99", "8"];
    let document = simulated(&flags);
    let needs = document["needs"].as_array().unwrap();
    let replicas = |place: usize| needs[place]["replicas"].as_u64();
    assert!(replicas(0).unwrap() < replicas(1).unwrap(), "{document}");
    assert_eq!(replicas(2), None);
    assert!(number(&needs[1]["p99_s"]) <= 8.0, "{document}");
    // The same again, but for the time that it took.
    let without_time = |mut document: Value| {
        document.as_object_mut().unwrap().remove("seconds");
        document
    };
    assert_eq!(without_time(simulated(&flags)), without_time(document));
}

#[test]
fn what_no_cluster_can_be_is_refused_in_one_line() {
    for (flags, wanted) in [
        (["--replicas", "0"], "--replicas: 1 to 4096 each, got 0"),
        (["--gallery", "0.5"], "--gallery: 1 to 1e12 each, got 0.5"),
        (["--load", "1"], "--load: above 0 and below 1, got 1"),
        (["--image-ms", "nan"], "--image-ms: 0 to 3600000, got NaN"),
        (["--rounds", "0"], "rounds"),
    ] {
        run(&[&["capacity"], &flags[..]].concat()).refuses(&[wanted]);
    }
}
