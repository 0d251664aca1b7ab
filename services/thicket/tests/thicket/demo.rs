//! `thicket demo` on two small checkpoints that know nothing: the whole way, not the numbers.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Command;

use crate::support::{Files, run, thicket};

fn goldens(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    folder.to_str().unwrap().to_owned()
}

#[test]
fn the_document_has_both_rows_and_the_page_is_written() {
    let files = Files::new();
    for control in [false, true] {
        let out = files.arg("out");
        let (embedding, answer) = (goldens("clip/trained"), goldens("qwen/tied"));
        let mut args = vec!["demo", "--out", &out, "--queries", "12", "--json"];
        args.extend(["--embedding-model", &embedding, "--answer-model", &answer]);
        args.extend(control.then_some("--shuffle-answers"));
        let json = run(&args).json();

        assert_eq!((json["queries"].as_u64(), json["gallery"].as_u64()), (Some(12), Some(1216)));
        assert_eq!(json["shuffled_answers"], control);
        for row in ["baseline", "thi"] {
            let metric = |name: &str| json[row][name].as_f64().unwrap();
            assert!(metric("rank1") <= metric("rank5") && metric("rank5") <= metric("rank10"), "{json}");
            assert!(
                (0.0..=100.0).contains(&metric("map")) && (0.0..=100.0).contains(&metric("minp")),
                "{json}"
            );
        }
        let interval = &json["interval"]["map"];
        assert!(interval["low"].as_f64().unwrap() <= interval["high"].as_f64().unwrap());
        let asked = json["questions"]["asked"].as_u64().unwrap();
        assert!((12..=json["questions"]["round_by_round"].as_u64().unwrap()).contains(&asked), "{json}");
        for stage in ["render", "start", "ingest", "baseline", "thi", "report", "total"] {
            assert!(json["seconds"][stage].as_f64().unwrap() >= 0.0, "{stage}");
        }
        let page = std::fs::read_to_string(files.path("out/report.html")).unwrap();
        assert!(page.contains("<html") && page.contains("1,216"));
    }
}

#[test]
fn a_demo_without_models_is_refused() {
    let files = Files::new();
    let out = files.arg("out");
    run(&["demo", "--out", &out, "--models", files.root().to_str().unwrap()]).refuses(&["sample-embedding"]);
    run(&["demo", "--out", &out, "--queries", "0"]).refuses(&["--queries", "0"]);
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    let files = Files::new();
    let temporary = files.path("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let mut process = thicket()
        .args(["demo", "--out", &files.arg("out"), "--log", "error"])
        .args(["--embedding-model", &goldens("clip/trained"), "--answer-model", &goldens("qwen/tied")])
        .env("TMPDIR", &temporary)
        .spawn()
        .unwrap();
    // The first stage has ended: images are on disk and the cluster starts.
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("render")));
    assert!(Command::new("kill").args(["-INT", &process.id().to_string()]).status().unwrap().success());
    assert_eq!(process.wait().unwrap().code(), Some(130));
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0);
    assert!(!files.path("out/report.html").exists());
}
