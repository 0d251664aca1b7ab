//! `thicket up` and the commands that call it, on two small checkpoints.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use crate::support::{Files, Run, thicket};

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

/// A running cluster; killed when dropped.
pub(crate) struct Cluster {
    process: Child,
    coordinator: String,
    gallery: String,
    answer: String,
}

impl Cluster {
    pub(crate) fn start(data: &Path, rest: &[&str]) -> Self {
        let mut process = thicket()
            .arg("up")
            .args([
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
                "--gallery-listen",
                "127.0.0.1:0",
                "--answer-listen",
                "127.0.0.1:0",
            ])
            .args(["--drain-delay", "0", "--log", "error"])
            .arg("--data")
            .arg(data)
            .arg("--embedding-model")
            .arg(goldens().join("clip/trained"))
            .arg("--answer-model")
            .arg(goldens().join("qwen/tied"))
            .args(rest)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (mut coordinator, mut gallery, mut answer) = (String::new(), String::new(), String::new());
        for line in lines.by_ref() {
            let line = line.unwrap();
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("coordinator"), Some(url)) => coordinator = url.to_owned(),
                (Some("gallery"), Some(url)) => gallery = url.to_owned(),
                (Some("answer"), Some(url)) => answer = url.to_owned(),
                (Some("ready;"), _) => break,
                _ => {}
            }
        }
        assert!(!coordinator.is_empty() && !gallery.is_empty(), "the cluster did not start");
        Self { process, coordinator, gallery, answer }
    }

    pub(crate) fn run(&self, args: &[&str]) -> Run {
        let mut command = thicket();
        command
            .args(args)
            .env("THICKET_SERVER", &self.coordinator)
            .env("THICKET_GALLERY", &self.gallery)
            .env("THICKET_ANSWER", &self.answer);
        command.output().unwrap().into()
    }

    /// Sends SIGTERM and tells the exit status.
    pub(crate) fn stop(mut self) -> Option<i32> {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.process.wait().unwrap().code()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A folder of three pictures, one that is none, and a note.
pub(crate) fn pictures(files: &Files) -> String {
    let folder = files.path("pictures");
    std::fs::create_dir_all(folder.join("more")).unwrap();
    for (from, to) in [("image0.png", "a.png"), ("image1.png", "b.png"), ("image2.png", "more/c.PNG")] {
        std::fs::copy(goldens().join("clip/trained").join(from), folder.join(to)).unwrap();
    }
    std::fs::write(folder.join("broken.jpg"), "not a picture").unwrap();
    std::fs::write(folder.join("notes.txt"), "not even named like one").unwrap();
    folder.to_str().unwrap().to_owned()
}

#[test]
fn a_folder_is_ingested_searched_listed_and_deleted() {
    let files = Files::new();
    let cluster = Cluster::start(&files.path("data"), &[]);
    let folder = pictures(&files);

    // The broken picture fails alone; the command tells and the others are stored.
    let ingested = cluster.run(&["ingest", &folder, "--collection", "lobby", "--json"]);
    assert_eq!(ingested.status, 1, "{ingested:?}");
    assert!(ingested.stderr.contains("broken.jpg") && ingested.stderr.contains("1 of 4"), "{ingested:?}");
    let document: serde_json::Value = serde_json::from_str(&ingested.stdout).unwrap();
    assert_eq!(document["stored"], 3);
    assert_eq!(document["refused"][0]["id"], "broken.jpg");

    let listed = cluster.run(&["collections", "--json"]).json();
    assert_eq!(listed["collections"][0]["name"], "lobby");
    assert_eq!(listed["collections"][0]["items"], 3);

    let found =
        cluster.run(&["search", "a", "woman", "--collection", "lobby", "--no-interaction", "--json"]).json();
    assert_eq!(found["text"], "a woman");
    assert_eq!(found["outcome"], "disabled");
    let hits = found["hits"].as_array().unwrap();
    let mut ids: Vec<&str> = hits.iter().map(|hit| hit["id"].as_str().unwrap()).collect();
    let scores: Vec<f64> = hits.iter().map(|hit| hit["score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|left, right| left >= right), "{scores:?}");
    ids.sort_unstable();
    assert_eq!(ids, ["a.png", "b.png", "more/c.PNG"]);

    // Everything is below a threshold of 2, so round 1 is asked and cannot refine.
    let asked =
        cluster.run(&["search", "a woman", "--collection", "lobby", "--xi", "2", "--rounds", "2", "--json"]);
    let asked = asked.json();
    assert_eq!(asked["rounds"][0]["id"], asked["hits"][0]["id"]);
    assert!(asked["questions"]["locate"].as_u64().unwrap() >= 1, "{asked}");

    let live = cluster.run(&["search", "a woman", "--collection", "lobby"]);
    assert_eq!(live.status, 0, "{live:?}");
    assert!(live.stdout.contains("first ranking") && live.stdout.contains("round 1"), "{live:?}");

    cluster.run(&["delete", "--collection", "lobby", "a.png"]).refuses(&["--yes"]);
    let deleted = cluster.run(&["delete", "--collection", "lobby", "a.png", "nobody.png", "--yes", "--json"]);
    assert_eq!(deleted.json()["deleted"], 1);
    assert!(deleted.json()["forgotten_answers"].is_u64(), "the answer service was told: {deleted:?}");
    let deleted = cluster.run(&["delete", "--collection", "lobby", "--all", "--yes", "--json"]).json();
    assert_eq!((&deleted["deleted"], &deleted["unused_images"]), (&2.into(), &2.into()));
    assert!(deleted["forgotten_answers"].is_u64(), "the answer service was told: {deleted}");
    assert_eq!(cluster.run(&["collections", "--json"]).json()["collections"], serde_json::json!([]));
    assert_eq!(cluster.stop(), Some(0));
}

#[test]
fn what_was_ingested_is_there_after_a_restart() {
    let files = Files::new();
    let picture = pictures(&files) + "/a.png";
    let cluster = Cluster::start(&files.path("data"), &[]);
    cluster.run(&["ingest", &picture, "--json"]).json();
    assert_eq!(cluster.stop(), Some(0));
    let cluster = Cluster::start(&files.path("data"), &[]);
    assert_eq!(cluster.run(&["collections", "--json"]).json()["collections"][0]["items"], 1);
}

#[test]
fn a_data_set_split_is_ingested_with_its_identities() {
    let files = Files::new();
    let root = files.arg("sample");
    let made =
        crate::support::run(&["synth", "--out", &root, "--families", "0,0,1", "--views", "1", "--json"])
            .json();
    assert_eq!(made["splits"][2]["images"], 4);
    let cluster = Cluster::start(&files.path("data"), &[]);
    let ingested = cluster.run(&["ingest", "--dataset", "cuhk-pedes", "--root", &root, "--json"]).json();
    assert_eq!(ingested["stored"], 4);
    let found = cluster.run(&["search", "a man", "--no-interaction", "--json"]).json();
    let identities: std::collections::BTreeSet<&str> = found["hits"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hit| hit["metadata"]["identity"].as_str().unwrap())
        .collect();
    assert_eq!(identities.len(), 4);
    cluster.run(&["ingest", "--dataset", "cuhk-pedes", "--root", &root, "--split", "val"]).refuses(&["val"]);
    cluster.run(&["ingest", "--dataset", "imagenet", "--root", &root]).refuses(&["imagenet"]);
}

#[test]
fn what_the_cluster_refuses_is_bad_input() {
    let files = Files::new();
    let cluster = Cluster::start(&files.path("data"), &[]);
    cluster.run(&["ingest", &(pictures(&files) + "/a.png")]);
    cluster.run(&["search", "a man", "--collection", "nowhere"]).refuses(&["nowhere"]);
    cluster.run(&["search", "   ", "--json"]).refuses(&["text"]);
    cluster.run(&["search", &"word ".repeat(10_000), "--json"]).refuses(&["text", "20000"]);
    cluster.run(&["search", "a man", "--rounds", "0", "--json"]).refuses(&["rounds", "0"]);
    cluster.run(&["search", "a man", "--xi", "NaN", "--json"]).refuses(&["xi"]);
    cluster.run(&["search", "a man", "--lambda", "1.5", "--json"]).refuses(&["lambda", "1.5"]);
    cluster.run(&["delete", "--collection", "nowhere", "--all", "--yes"]).refuses(&["nowhere"]);
    for text in ["🧥👖👟", "رجل يرتدي معطفا أحمر"] {
        assert_eq!(cluster.run(&["search", text, "--no-interaction", "--json"]).json()["hits"][0]["rank"], 1);
    }
}

#[test]
fn a_tokens_file_is_asked_of_every_caller() {
    let files = Files::new();
    // The SHA-256 of "secret".
    let tokens = r#"[{"name": "me", "rights": ["read", "write", "admin"],
        "sha256": "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"}]"#;
    let tokens = files.bytes("tokens.json", tokens.as_bytes());
    let cluster = Cluster::start(&files.path("data"), &["--tokens-file", &tokens]);
    let picture = pictures(&files) + "/a.png";
    cluster.run(&["collections"]).refuses(&["token"]);
    cluster.run(&["ingest", &picture]).refuses(&["token"]);
    cluster.run(&["ingest", &picture, "--token", "secret"]).refuses_nothing();
    cluster.run(&["search", "a man", "--no-interaction"]).refuses(&["token"]);
    cluster.run(&["search", "a man", "--token", "secret"]).refuses_nothing();
    cluster.run(&["collections", "--token", "secret"]).refuses_nothing();
}

#[test]
fn nobody_listening_is_failed_work_in_one_line() {
    let run = crate::support::run(&["search", "a man", "--server", "http://127.0.0.1:1", "--json"]);
    assert_eq!((run.status, run.stdout.as_str(), run.stderr.lines().count()), (1, "", 1), "{run:?}");
    crate::support::run(&["search", "a man", "--server", "nonsense"]).refuses(&["nonsense"]);
}

#[test]
fn a_cluster_without_a_model_is_refused_before_a_port_opens() {
    let files = Files::new();
    let data = files.arg("data");
    let up = |model: &str| {
        crate::support::run(&[
            "up",
            "--data",
            &data,
            "--embedding-model",
            model,
            "--answer-model",
            model,
            "--log",
            "error",
        ])
    };
    up("/nonexistent").refuses(&["/nonexistent"]);
    assert!(!files.path("data").exists());
}

#[test]
fn a_search_keeps_to_a_camera_a_time_and_tags() {
    let files = Files::new();
    let cluster = Cluster::start(&files.path("data"), &[]);
    let folder = pictures(&files);
    std::fs::remove_file(Path::new(&folder).join("broken.jpg")).unwrap();
    let of_each = files.path("metadata.jsonl");
    let lines = [
        r#"{"id":"a.png","metadata":{"camera":"door","captured_at":"2026-03-01T08:00:00+01:00"}}"#,
        r#"{"id":"b.png","metadata":{"captured_at":"2026-03-01T09:00:00Z","tags":"red, bag"}}"#,
    ];
    std::fs::write(&of_each, lines.join("\n")).unwrap();
    let of_each = of_each.to_str().unwrap();
    let ingest = ["ingest", &folder, "--meta", "camera=gate", "--meta", "tags=red", "--metadata", of_each];
    cluster.run(&ingest).refuses_nothing();

    let found = |filter: &[&str]| {
        let search = ["search", "a woman", "--collection", "default", "--no-interaction", "--json"];
        let found = cluster.run(&[&search[..], filter].concat()).json();
        let hits = found["hits"].as_array().unwrap().iter();
        let mut ids: Vec<String> = hits.map(|hit| hit["id"].as_str().unwrap().to_owned()).collect();
        ids.sort_unstable();
        ids.join(" ")
    };
    assert_eq!(found(&[]), "a.png b.png more/c.PNG");
    assert_eq!(found(&["--camera", "gate"]), "b.png more/c.PNG");
    assert_eq!(found(&["--camera", "gate", "--camera", "door", "--tag", "red"]), "a.png b.png more/c.PNG");
    assert_eq!(found(&["--from", "2026-03-01T07:00:00Z", "--until", "2026-03-01T09:00:00Z"]), "a.png");
    assert_eq!(found(&["--tag", "red", "--tag", "bag"]), "b.png");
    assert_eq!(found(&["--any-tag", "bag", "--any-tag", "hat", "--camera", "door"]), "");

    cluster.run(&["search", "a", "--from", "yesterday", "--json"]).refuses(&["--from", "yesterday"]);
    cluster.run(&["search", "a", "--tag", "a,b", "--json"]).refuses(&["filter.tags_all[0]"]);
    cluster.run(&["ingest", &folder, "--meta", "camera"]).refuses(&["--meta"]);
    std::fs::write(of_each, r#"{"id":"ghost.png","metadata":{}}"#).unwrap();
    cluster.run(&["ingest", &folder, "--metadata", of_each]).refuses(&["ghost.png"]);
}

/// Every file below a folder, its path and its bytes.
fn contents(folder: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.push([path.to_string_lossy().as_bytes(), &std::fs::read(&path).unwrap()[..]].concat());
        }
    }
    found
}

#[test]
fn a_deleted_collection_leaves_no_byte_of_image_metadata_or_answers_on_the_disk() {
    const MARK: &str = "camera at the back door of number 7";
    let files = Files::new();
    let data = files.path("data");
    let cluster = Cluster::start(&data, &[]);
    let folder = pictures(&files);
    let picture = std::fs::read(Path::new(&folder).join("a.png")).unwrap();
    let hash = blake3::hash(&picture);
    let ingest = ["ingest", &folder, "--collection", "lobby", "--meta", &format!("note={MARK}")];
    assert_eq!(cluster.run(&ingest).status, 1, "the broken picture alone fails");
    // Every picture is asked about, so that answers are kept of each.
    let search =
        ["search", "a woman", "--collection", "lobby", "--xi", "2", "--rounds", "3", "--yes-threshold", "1"];
    cluster.run(&search).refuses_nothing();
    // Keys of kept answers begin with the image's hash.
    let traces: [(&str, &[u8]); 4] = [
        ("image", &picture),
        ("metadata", MARK.as_bytes()),
        ("hash", hash.as_bytes()),
        ("hash in hex", &hash.to_hex().to_string().into_bytes()),
    ];
    let found = |below: &str| {
        let contents = contents(&data.join(below));
        let holds = |trace: &[u8]| {
            contents.iter().any(|content| content.windows(trace.len()).any(|window| window == trace))
        };
        let there = traces.iter().filter(|(_, trace)| holds(trace)).map(|(name, _)| *name);
        there.collect::<Vec<_>>().join(", ")
    };
    assert_eq!(found("gallery"), "image, metadata, hash, hash in hex");
    assert_eq!(found("answer"), "hash", "answers are kept of the image");
    let deleted =
        cluster.run(&["delete", "--collection", "lobby", "--all", "--compact", "--yes", "--json"]).json();
    assert_eq!((&deleted["deleted"], &deleted["compacted"]), (&3.into(), &true.into()));
    assert!(deleted["forgotten_answers"].as_u64().unwrap() >= 3, "{deleted}");
    assert_eq!(found(""), "");
    assert_eq!(cluster.stop(), Some(0));
    assert_eq!(found(""), "");
}

#[test]
fn answers_about_a_replaced_picture_are_forgotten() {
    let files = Files::new();
    let cluster = Cluster::start(&files.path("data"), &[]);
    let folder = PathBuf::from(pictures(&files));
    std::fs::remove_file(folder.join("broken.jpg")).unwrap();
    let folder_name = folder.to_str().unwrap();
    let first = cluster.run(&["ingest", folder_name, "--json"]).json();
    assert_eq!(first["forgotten_answers"], 0);
    let search = ["search", "a woman", "--xi", "2", "--rounds", "3", "--yes-threshold", "1", "--json"];
    cluster.run(&search).json();
    // The others come again as they are.
    let picture = folder.join("a.png").to_str().unwrap().to_owned();
    std::fs::copy(goldens().join("clip/trained/image0.png"), folder.join("z.png")).unwrap();
    cluster.run(&["ingest", folder_name, "--json"]).json();
    std::fs::copy(goldens().join("clip/trained/image1.png"), &picture).unwrap();
    let shown_elsewhere = cluster.run(&["ingest", folder_name, "--json"]).json();
    assert_eq!(shown_elsewhere["forgotten_answers"], 0, "z.png shows the old picture still");
    std::fs::copy(goldens().join("clip/trained/image1.png"), folder.join("z.png")).unwrap();
    let replaced = cluster.run(&["ingest", folder_name, "--json"]).json();
    assert_eq!(replaced["forgotten_answers"], 1);
}
