//! What was acknowledged outlives a restart, a kill and a damaged snapshot.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::common::*;
use thicket_gallery::{App, Config};
use thicket_proto::v1;
use thicket_proto::v1::upsert_response::Result as Outcome;
use thicket_runtime::Failure;

fn angle(i: usize) -> f32 {
    (i * 37 % 360) as f32
}

fn numbered(i: usize) -> v1::UpsertRequest {
    with_image(item(&format!("item-{i}"), at(angle(i))), png(i as u32))
}

/// Checks that each of `numbers` is there in full.
async fn assert_held(client: &mut Client, numbers: impl IntoIterator<Item = usize>) {
    for i in numbers {
        let id = format!("item-{i}");
        assert_eq!(image_of(client, &id).await.unwrap().image, png(i as u32), "{id}");
        let request = v1::ScoreRequest {
            collection: "lobby".to_owned(),
            query: Some(at(angle(i))),
            ids: vec![id],
            ..Default::default()
        };
        let score = client.score(request).await.unwrap().into_inner().scores[0];
        assert!((score - 1.0).abs() < 1e-5, "item {i} scores {score} with its own vector");
    }
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    create(&mut gallery.client, "empty", 7).await;
    fill(&mut gallery.client, (0..50).map(numbered).collect()).await;
    delete(&mut gallery.client, &["item-3", "item-10"]).await;
    let list = v1::ListCollectionsRequest {};
    let collections = gallery.client.list_collections(list).await.unwrap().into_inner();
    let ranking = search(&mut gallery.client, at(12.0), 100).await;
    gallery.stop().await;
    assert_eq!(std::fs::read_dir(folder.path().join("snapshots")).unwrap().count(), 2);

    let mut gallery = Running::on(folder.path()).await;
    assert_eq!(gallery.client.list_collections(list).await.unwrap().into_inner(), collections);
    assert_eq!(collections.collections.iter().map(|c| c.items).collect::<Vec<_>>(), [0, 48]);
    assert_eq!(search(&mut gallery.client, at(12.0), 100).await, ranking);
    assert_held(&mut gallery.client, (0..50).filter(|i| *i != 3 && *i != 10)).await;
    // The next item comes after all others, also after those that are gone.
    fill(&mut gallery.client, vec![item("late", at(angle(0)))]).await;
    assert_eq!(ids(&search(&mut gallery.client, at(angle(0)), 2).await), ["item-0", "late"]);
    gallery.stop().await;
}

#[tokio::test]
async fn a_damaged_or_missing_snapshot_is_rebuilt() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    fill(&mut gallery.client, (0..40).map(numbered).collect()).await;
    let ranking = search(&mut gallery.client, at(12.0), 100).await;
    gallery.stop().await;
    let snapshots = folder.path().join("snapshots");
    let file = std::fs::read_dir(&snapshots).unwrap().next().unwrap().unwrap().path();
    let sound = std::fs::read(&file).unwrap();
    let mut bent = sound.clone();
    bent[200] ^= 1;
    for damage in [Some(bent), Some(sound[..100].to_vec()), Some(Vec::new()), None] {
        match damage {
            Some(bytes) => std::fs::write(&file, bytes).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        std::fs::write(snapshots.join("9.unfinished"), b"half").unwrap();
        let mut gallery = Running::on(folder.path()).await;
        assert_eq!(search(&mut gallery.client, at(12.0), 100).await, ranking);
        gallery.stop().await;
        assert_eq!(std::fs::read(&file).unwrap().len(), sound.len(), "the snapshot was written again");
        assert!(!snapshots.join("9.unfinished").exists());
    }
}

#[tokio::test]
async fn a_snapshot_of_an_older_state_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    fill(&mut gallery.client, (0..10).map(numbered).collect()).await;
    gallery.stop().await;
    let file = std::fs::read_dir(folder.path().join("snapshots")).unwrap().next().unwrap().unwrap().path();
    let old = std::fs::read(&file).unwrap();
    let mut gallery = Running::on(folder.path()).await;
    // The same ids with other vectors: only the version tells the snapshots apart.
    fill(&mut gallery.client, (0..10).map(|i| item(&format!("item-{i}"), at(90.0))).collect()).await;
    let ranking = search(&mut gallery.client, at(12.0), 100).await;
    gallery.stop().await;
    std::fs::write(&file, old).unwrap();
    let mut gallery = Running::on(folder.path()).await;
    assert_eq!(search(&mut gallery.client, at(12.0), 100).await, ranking);
    gallery.stop().await;
}

#[tokio::test]
async fn images_that_nothing_uses_are_collected_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut gallery = Running::on(folder.path()).await;
    create(&mut gallery.client, "lobby", 2).await;
    fill(&mut gallery.client, vec![numbered(1)]).await;
    gallery.stop().await;
    let kept = image_files(folder.path());
    let orphan = blake3::hash(b"orphan").to_hex().to_string();
    let level = folder.path().join("images").join(&orphan[..2]);
    std::fs::create_dir_all(&level).unwrap();
    std::fs::write(level.join(&orphan), b"orphan").unwrap();
    std::fs::write(level.join(format!("{orphan}#1")), b"orp").unwrap();
    let gallery = Running::on(folder.path()).await;
    assert_eq!(image_files(folder.path()), kept);
    gallery.stop().await;
}

/// The program itself, on free ports.
struct Program {
    child: Child,
    client: Client,
}

impl Program {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_thicket-gallery"))
            .args([
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
                "--drain-delay",
                "0s",
                "--data",
            ])
            .arg(folder)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines
            .by_ref()
            .map(|line| line.unwrap())
            .find_map(|line| {
                let (_, address) = line.contains("serving").then(|| line.split_once("address=")).flatten()?;
                address.split_whitespace().next()?.parse().ok()
            })
            .expect("the program says where it serves");
        // Somebody must go on reading, or the program blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, client: client(address) }
    }

    /// SIGKILL: nothing of the program runs after this.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn terminate(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_middle_of_a_stream_loses_nothing_acknowledged() {
    const ITEMS: usize = 400;
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::start(folder.path());
    create(&mut program.client, "lobby", 2).await;
    let mut acknowledged = 0;
    for crash_after in [1, 2, 17, 90, 260] {
        // Each run goes on after the items that are known to be held, then the program dies in mid-stream.
        let items = (acknowledged..acknowledged + ITEMS).map(numbered).collect::<Vec<_>>();
        let mut answers = program.client.upsert(tokio_stream::iter(items)).await.unwrap().into_inner();
        let mut seen = 0;
        while let Ok(Some(answer)) = answers.message().await {
            assert!(matches!(answer.result, Some(Outcome::Item(_))), "{answer:?}");
            seen += 1;
            if seen == crash_after {
                break;
            }
        }
        program.kill();
        // Answers that were on their way count as well.
        while let Ok(Some(answer)) = answers.message().await {
            assert!(matches!(answer.result, Some(Outcome::Item(_))));
            seen += 1;
        }
        assert!(seen >= crash_after);
        acknowledged += seen;
        program = Program::start(folder.path());
        assert_held(&mut program.client, acknowledged - seen..acknowledged).await;
    }
    assert_held(&mut program.client, 0..acknowledged).await;
    let held = search(&mut program.client, at(0.0), 100_000).await;
    assert!(held.len() >= acknowledged);
    assert_eq!(image_files(folder.path()).len(), held.len(), "an image for each item and none besides");
    assert_eq!(program.terminate(), Some(0));
}

#[tokio::test]
async fn a_second_gallery_on_the_same_folder_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let gallery = Running::on(folder.path()).await;
    let second = App::build(Config::in_process(folder.path())).await;
    match second {
        Err(Failure::BadInput(line)) => assert!(line.contains("in use by another gallery"), "{line}"),
        other => panic!("expected a refusal, got {other:?}"),
    }
    let output = Command::new(env!("CARGO_BIN_EXE_thicket-gallery"))
        .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data"])
        .arg(folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("in use by another gallery"), "{stderr}");
    gallery.stop().await;
    Running::on(folder.path()).await.stop().await;
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gallery.redb");
    std::fs::write(&file, b"this is not a store, but somebody may need it").unwrap();
    let refused = App::build(Config::in_process(folder.path())).await;
    assert!(matches!(refused, Err(Failure::Failed(_))), "{refused:?}");
    assert!(std::fs::read(&file).unwrap().starts_with(b"this is not"));
}
