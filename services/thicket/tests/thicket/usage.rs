//! Usage: what is printed where, exit statuses, signals and readers that go away.

use std::process::Stdio;

use crate::support::{Files, run, thicket};

#[test]
fn an_unknown_subcommand_is_refused_in_one_line() {
    run(&["sing"]).refuses(&["sing"]);
}

#[test]
fn no_subcommand_is_refused_in_one_line() {
    run(&[]).refuses(&["subcommand"]);
}

#[test]
fn an_unknown_flag_is_refused_in_one_line() {
    run(&["eval", "--volume", "11"]).refuses(&["--volume"]);
}

#[test]
fn a_missing_argument_is_named() {
    run(&["rerank", "--lambda", "0.5"]).refuses(&["--similarity", "--anchors", "--out"]);
}

#[test]
fn help_and_version_go_to_stdout() {
    let help = run(&["--help"]);
    assert_eq!((help.status, help.stderr.as_str()), (0, ""));
    for name in ["eval", "rerank", "schedule"] {
        assert!(help.stdout.contains(name), "{name}");
    }
    let version = run(&["--version"]);
    assert_eq!(
        (version.status, version.stdout.trim_end()),
        (0, concat!("thicket ", env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn a_reader_that_went_away_is_no_panic() {
    let files = Files::new();
    let similarity = files.matrix("s.npy", 1, &vec![0.9f32; 50_000]);
    let answers = files.matrix("y.npy", 1, &vec![1u8; 50_000]);
    for json in [true, false] {
        let mut command = thicket();
        command.args(["schedule", "--similarity", &similarity, "--answers", &answers, "--xi", "0.5"]);
        command.args(["--rounds", "1"]).args(json.then_some("--json"));
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command.stdout(Stdio::from(writer)).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    }
}

#[test]
fn a_log_filter_with_an_error_is_refused() {
    let files = Files::new();
    let similarity = files.matrix("s.npy", 1, &[0.9f32]);
    let answers = files.matrix("y.npy", 1, &[1u8]);
    run(&[
        "schedule",
        "--similarity",
        &similarity,
        "--answers",
        &answers,
        "--xi",
        "0.5",
        "--rounds",
        "1",
        "--log",
        "thicket=loudly",
    ])
    .refuses(&["loudly"]);
}
