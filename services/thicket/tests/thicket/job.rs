//! Batches of queries as jobs of `thicket up`.

use crate::cluster::{Cluster, pictures};
use crate::support::{Files, run};

const QUERIES: &str = r#"{"id": "red", "text": "a woman in a red coat"}
{"id": "none", "text": " "}
a man with a bag
"#;

/// A cluster with three pictures in `lobby`.
fn cluster(files: &Files) -> Cluster {
    let cluster = Cluster::start(&files.path("data"), &[]);
    let picture = |name: &str| pictures(files) + name;
    let (a, b) = (picture("/a.png"), picture("/b.png"));
    cluster.run(&["ingest", &a, &b, "--collection", "lobby", "--json"]).json();
    cluster
}

#[test]
fn a_job_is_made_followed_fetched_and_deleted() {
    let files = Files::new();
    let cluster = cluster(&files);
    let queries = files.bytes("queries.jsonl", QUERIES.as_bytes());
    let submit =
        ["job", "submit", &queries, "--collection", "lobby", "--id", "nightly", "--rounds", "1", "--json"];
    let made = cluster.run(&submit).json();
    assert_eq!((&made["id"], &made["queries"]["total"]), (&"nightly".into(), &3.into()));
    let again = cluster.run(&submit);
    again.refuses(&["nightly", "exists"]);

    let done = cluster.run(&["job", "watch", "nightly", "--json"]).json();
    assert_eq!(done["state"], "done");
    assert_eq!((&done["queries"]["succeeded"], &done["queries"]["failed"]), (&2.into(), &1.into()));
    assert_eq!(cluster.run(&["job", "show", "nightly", "--json"]).json(), done);
    assert_eq!(cluster.run(&["job", "list", "--json"]).json()["jobs"], serde_json::json!([done]));

    let fetched = cluster.run(&["job", "results", "nightly", "--json"]).json();
    let results = fetched["results"].as_array().unwrap();
    let ids: Vec<_> = results.iter().map(|result| result["query_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["red", "none", "3"]);
    assert_eq!(results[0]["hits"].as_array().unwrap().len(), 2);
    assert_eq!(results[1]["error"]["code"], "INVALID_ARGUMENT");

    let out = files.arg("results.parquet");
    let saved = cluster.run(&["job", "results", "nightly", "--out", &out, "--json"]).json();
    let file = std::fs::read(&out).unwrap();
    assert_eq!(saved["bytes"], file.len());
    assert!(file.starts_with(b"PAR1") && file.ends_with(b"PAR1"));

    cluster.run(&["job", "cancel", "nightly"]).refuses(&["done"]);
    assert_eq!(cluster.run(&["job", "delete", "nightly", "--json"]).json()["deleted"], true);
    cluster.run(&["job", "show", "nightly"]).refuses(&["nightly", "does not exist"]);
    assert_eq!(cluster.run(&["job", "list", "--json"]).json()["jobs"], serde_json::json!([]));
    assert_eq!(cluster.stop(), Some(0));
}

#[test]
fn a_job_that_is_run_prints_its_end_and_outlives_the_cluster() {
    let files = Files::new();
    let first = cluster(&files);
    let queries = files.bytes("queries.jsonl", QUERIES.as_bytes());
    let run =
        first.run(&["job", "run", &queries, "--collection", "lobby", "--no-interaction", "--json"]).json();
    assert_eq!(run["job"]["state"], "done");
    assert_eq!(run["results"].as_array().unwrap().len(), 3);
    let id = run["job"]["id"].as_str().unwrap().to_owned();
    let results = first.run(&["job", "results", &id, "--json"]).json();
    assert_eq!(results["results"], run["results"]);
    assert_eq!(first.stop(), Some(0));
    let second = Cluster::start(&files.path("data"), &[]);
    assert_eq!(second.run(&["job", "results", &id, "--json"]).json(), results);
}

#[test]
fn a_picture_that_is_deleted_leaves_the_results_of_jobs() {
    let files = Files::new();
    let cluster = cluster(&files);
    let queries = files.bytes("queries.jsonl", QUERIES.as_bytes());
    cluster.run(&["job", "submit", &queries, "--collection", "lobby", "--id", "nightly", "--no-interaction"]);
    cluster.run(&["job", "watch", "nightly", "--json"]).json();
    let hits = || {
        let fetched = cluster.run(&["job", "results", "nightly", "--json"]).json();
        let hits = fetched["results"][0]["hits"].as_array().unwrap().clone();
        hits.into_iter().map(|hit| hit["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let before = hits();
    assert_eq!(before.len(), 2);
    cluster.run(&["delete", "--collection", "lobby", &before[0], "--yes", "--json"]).json();
    // The gallery tells the coordinator in its own time.
    let began = std::time::Instant::now();
    while hits() != before[1..] {
        assert!(began.elapsed() < std::time::Duration::from_secs(90), "{:?}", hits());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(cluster.stop(), Some(0));
}

#[test]
fn a_file_of_queries_that_cannot_be_read_is_told_by_line() {
    let files = Files::new();
    let bad = files.bytes("bad.jsonl", b"a red coat\n{\"id\": 7}\n");
    run(&["job", "submit", &bad]).refuses(&["bad.jsonl", "line 2"]);
    let empty = files.bytes("empty.jsonl", b"\n\n");
    run(&["job", "submit", &empty]).refuses(&["no query"]);
    run(&["job", "submit", &files.arg("missing.jsonl")]).refuses(&["missing.jsonl"]);
}
