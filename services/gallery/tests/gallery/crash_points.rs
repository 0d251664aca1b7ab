//! The process dies at each of many places, and the next start has exactly what was acknowledged.
//!
//! Each case runs the same work in a process of its own that dies at one place, starts the gallery again on what is left
//! and compares: what was acknowledged is there with vector, image and metadata, what was not is there as a whole or not at
//! all, the ranking is that of a plain reference, and no file is left that nothing uses. Then the rest of the work is done
//! and everything compared again.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use crate::common::*;
use crate::replicas::assert_same;
use thicket_gallery::{App, Config, crash};
use thicket_index::dot;
use thicket_proto::v1;
use thicket_proto::v1::upsert_response::Result as Outcome;
use thicket_proto::v1::vector_index::Kind;
use thicket_runtime::Stop;
use tonic::Status;

const DATA: &str = "THICKET_TEST_CRASH_DATA";
const PLACE: &str = "THICKET_TEST_CRASH_PLACE";
const HIT: &str = "THICKET_TEST_CRASH_HIT";
const FOLLOW: &str = "THICKET_TEST_CRASH_FOLLOW";

/// The gallery as a process of its own, which dies where the environment says. It stops in order when its input ends.
#[test]
#[ignore = "the process that the crash tests start and let die"]
fn crashing_gallery() {
    let Ok(folder) = std::env::var(DATA) else { return };
    if let Ok(place) = std::env::var(PLACE) {
        crash::arm(&place, std::env::var(HIT).unwrap().parse().unwrap());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let follow = std::env::var(FOLLOW).ok().map(|writer| writer.parse().unwrap());
        let app = App::build(Config { follow, ..Config::in_process(folder) }).await.unwrap();
        eprintln!("serving={}", app.grpc_addr());
        let (handle, stop) = Stop::by_hand();
        std::thread::spawn(move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            handle.stop();
        });
        app.run(stop).await.unwrap();
    });
}

struct Process {
    child: Child,
    input: Option<ChildStdin>,
    client: Client,
}

impl Process {
    /// Starts a gallery; `None` where it dies before it serves.
    fn start(folder: &Path, die: Option<(&str, u64)>) -> Option<Self> {
        Self::start_following(folder, None, die)
    }

    /// The same, as a replica of a writer.
    fn start_following(folder: &Path, writer: Option<SocketAddr>, die: Option<(&str, u64)>) -> Option<Self> {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([
                "crash_points::crashing_gallery",
                "--exact",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(DATA, folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some((place, hit)) = die {
            command.env(PLACE, place).env(HIT, hit.to_string());
        }
        if let Some(writer) = writer {
            command.env(FOLLOW, format!("http://{writer}"));
        }
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("serving=").map(|address| address.parse().unwrap()));
        let Some(address) = address else {
            assert!(!child.wait().unwrap().success());
            return None;
        };
        // Somebody must go on reading, or the process blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let input = child.stdin.take();
        Some(Self { child, input, client: client(address) })
    }

    /// Stops it in order; true where it ended well, false where it died on the way.
    fn stop(mut self) -> bool {
        self.input.take();
        self.child.wait().unwrap().success()
    }

    /// Waits for its death.
    fn died(mut self) {
        assert!(!self.child.wait().unwrap().success());
    }

    /// Whether it dies before long.
    async fn dies(&mut self) -> bool {
        for _ in 0..400 {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(!status.success());
                return true;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        false
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What an item is, by the seed of its contents.
type State = BTreeMap<String, u32>;

/// One step of the work, done or refused as a whole, but for upserts, which are so one by one.
#[derive(Debug, Clone)]
enum Step {
    Create,
    Upsert(Vec<(String, u32)>),
    Delete(Vec<String>),
    Compact,
    /// Creates and fills another collection, then drops it.
    Passing,
}

fn work() -> Vec<Step> {
    let named = |numbers: std::ops::Range<u32>, shift: u32| -> Vec<(String, u32)> {
        numbers.map(|number| (format!("item-{number}"), number + shift)).collect()
    };
    let ids = |numbers: &[u32]| numbers.iter().map(|number| format!("item-{number}")).collect();
    vec![
        Step::Create,
        Step::Upsert(named(0..20, 0)),
        Step::Delete(ids(&[3, 4, 5, 18])),
        // Some anew, some with another vector, picture and camera, some with the same picture as before.
        Step::Upsert(named(4..12, 100)),
        Step::Upsert(vec![("twin-a".to_owned(), 7), ("twin-b".to_owned(), 7)]),
        Step::Compact,
        Step::Passing,
        Step::Upsert(named(30..40, 0)),
        Step::Delete(vec!["twin-a".to_owned(), "item-0".to_owned()]),
        Step::Compact,
        Step::Upsert(named(0..2, 200)),
    ]
}

fn vector(seed: u32) -> v1::Vector {
    at((seed * 37 % 3600) as f32 / 10.0)
}

fn request(collection: &str, id: &str, seed: u32) -> v1::UpsertRequest {
    let mut request = with_image(item(id, vector(seed)), png(seed));
    collection.clone_into(&mut request.collection);
    request.metadata = [("camera".to_owned(), seed.to_string())].into();
    request
}

/// What is known of a collection while work is done on it: each item's possible states, the acknowledged one first.
#[derive(Debug, Default)]
struct Known {
    exists: bool,
    items: BTreeMap<String, Vec<Option<u32>>>,
    /// Ids that an unanswered deletion takes together, or none of them.
    together: Vec<String>,
}

impl Known {
    fn certain(&self) -> State {
        let held = self.items.iter().filter_map(|(id, states)| Some((id.clone(), states[0]?)));
        held.collect()
    }

    fn set(&mut self, id: &str, state: Option<u32>) {
        self.items.insert(id.to_owned(), vec![state]);
    }

    fn unsure(&mut self, id: &str, state: Option<u32>) {
        let states = self.items.entry(id.to_owned()).or_insert_with(|| vec![None]);
        states.push(state);
    }
}

/// Does one step; an error where the process died in it.
async fn step(client: &mut Client, step: &Step, kind: Option<Kind>, known: &mut Known) -> Result<(), Status> {
    match step {
        Step::Create => {
            let request = v1::CreateCollectionRequest {
                name: "lobby".to_owned(),
                model_fingerprint: MODEL.to_owned(),
                dimension: 2,
                similarity: v1::Similarity::Cosine as i32,
                index: kind.map(|kind| v1::VectorIndex { kind: Some(kind) }),
            };
            client.create_collection(request).await?;
            known.exists = true;
        }
        Step::Upsert(items) => {
            let mut waiting = items.iter();
            let requests: Vec<_> = items.iter().map(|(id, seed)| request("lobby", id, *seed)).collect();
            let answered = client.upsert(tokio_stream::iter(requests)).await;
            let failed = match answered {
                Ok(response) => {
                    let mut answers = response.into_inner();
                    loop {
                        match answers.message().await {
                            Ok(Some(answer)) => {
                                assert!(matches!(answer.result, Some(Outcome::Item(_))), "{answer:?}");
                                let (id, seed) = waiting.next().unwrap();
                                known.set(id, Some(*seed));
                            }
                            Ok(None) => break None,
                            Err(status) => break Some(status),
                        }
                    }
                }
                Err(status) => Some(status),
            };
            let unanswered: Vec<_> = waiting.collect();
            for (id, seed) in &unanswered {
                known.unsure(id, Some(*seed));
            }
            if let Some(status) = failed {
                return Err(status);
            }
            if !unanswered.is_empty() {
                return Err(Status::unavailable("the stream ended early"));
            }
        }
        Step::Delete(ids) => {
            let request = v1::DeleteRequest { collection: "lobby".to_owned(), ids: ids.clone() };
            match client.delete(request).await {
                Ok(_) => ids.iter().for_each(|id| known.set(id, None)),
                Err(status) => {
                    ids.iter().for_each(|id| known.unsure(id, None));
                    known.together.clone_from(ids);
                    return Err(status);
                }
            }
        }
        Step::Compact => {
            client.compact(v1::CompactRequest {}).await?;
        }
        Step::Passing => {
            let name = "passing".to_owned();
            let request_of = v1::CreateCollectionRequest {
                name: name.clone(),
                model_fingerprint: MODEL.to_owned(),
                dimension: 2,
                similarity: v1::Similarity::Cosine as i32,
                index: None,
            };
            match client.create_collection(request_of).await {
                // An earlier attempt got so far.
                Err(status) if status.code() == tonic::Code::AlreadyExists => {}
                other => drop(other?),
            }
            let requests: Vec<_> = (500..506).map(|seed| request(&name, &seed.to_string(), seed)).collect();
            let mut answers = client.upsert(tokio_stream::iter(requests)).await?.into_inner();
            while answers.message().await?.is_some() {}
            client.delete_collection(v1::DeleteCollectionRequest { name, max_items: Some(4) }).await?;
            let name = "passing".to_owned();
            client.delete_collection(v1::DeleteCollectionRequest { name, max_items: None }).await?;
        }
    }
    Ok(())
}

/// What the collection holds, each item checked in full: by its score, its picture and its camera it has one seed.
async fn held(client: &mut Client) -> State {
    let mut held = State::new();
    for hit in search(client, at(0.0), 100_000).await {
        let item = hit.item.unwrap();
        let seed: u32 = item.metadata["camera"].parse().unwrap();
        assert_eq!(image_of(client, &item.id).await.unwrap().image, png(seed), "{}", item.id);
        let query = vector(seed);
        let own = dot(&query.values, &query.values);
        let ids = vec![item.id.clone()];
        let request = v1::ScoreRequest {
            collection: "lobby".to_owned(),
            query: Some(query),
            ids,
            ..Default::default()
        };
        assert_eq!(client.score(request).await.unwrap().into_inner().scores, [own], "{}", item.id);
        assert!(held.insert(item.id, seed).is_none(), "an item came twice");
    }
    held
}

/// The plain algorithm over what should be there. No two items score the same here.
fn reference(state: &State, query: &v1::Vector) -> Vec<(String, f32)> {
    let mut ranking: Vec<(String, f32)> =
        state.iter().map(|(id, seed)| (id.clone(), dot(&query.values, &vector(*seed).values))).collect();
    ranking.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranking
}

async fn assert_ranked(client: &mut Client, state: &State) {
    for degrees in [11.3, 207.9] {
        let hits = search(client, at(degrees), 100_000).await;
        let scores: Vec<f32> = hits.iter().map(|hit| hit.score).collect();
        let expected: Vec<f32> = reference(state, &at(degrees)).iter().map(|(_, score)| *score).collect();
        assert_eq!(scores, expected);
        for hit in hits {
            let seed = state[&hit.item.unwrap().id];
            assert_eq!(hit.score, dot(&at(degrees).values, &vector(seed).values));
        }
    }
}

fn assert_files(folder: &Path, state: &State, others: bool) {
    let mut images: Vec<String> =
        state.values().map(|seed| blake3::hash(&png(*seed)).to_hex().to_string()).collect();
    images.sort();
    images.dedup();
    if !others {
        assert_eq!(image_files(folder), images, "an image for each item and none besides");
    }
    let known = ["gallery.redb", "images", "snapshots", "reserve"];
    for file in std::fs::read_dir(folder).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(known.contains(&name.as_str()), "{name} was left behind");
    }
    for file in std::fs::read_dir(folder.join("snapshots")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(name.ends_with(".tidx"), "{name} was left behind");
    }
}

/// Compares what a start found with what is known, and makes that certain.
async fn assert_recovered(process: &mut Process, folder: &Path, known: &mut Known) {
    let client = &mut process.client;
    let listed = client.list_collections(v1::ListCollectionsRequest {}).await.unwrap().into_inner();
    let lobby = listed.collections.iter().find(|collection| collection.name == "lobby");
    assert!(lobby.is_some() || !known.exists, "an acknowledged collection is lost");
    known.exists = lobby.is_some();
    let state = if known.exists { held(client).await } else { State::new() };
    if let Some(lobby) = lobby {
        assert_eq!(lobby.items, state.len() as u64);
        assert_ranked(client, &state).await;
    }
    for (id, seed) in &state {
        assert!(known.items.contains_key(id), "{id} came from nowhere with {seed}");
    }
    for (id, states) in &known.items {
        let found = state.get(id).copied();
        assert!(states.contains(&found), "{id} is {found:?}, possible are {states:?}");
    }
    let there = known.together.iter().filter(|id| state.contains_key(*id)).count();
    let before = known.together.iter().filter(|id| known.items[*id][0].is_some()).count();
    assert!(there == 0 || there == before, "half of a deletion was done");
    known.together.clear();
    known.items = state.iter().map(|(id, seed)| (id.clone(), vec![Some(*seed)])).collect();
    let others = listed.collections.len() > usize::from(known.exists);
    assert_files(folder, &state, others);
}

/// Runs the work with a death on the way. False where the place was not come to.
async fn survives(place: &str, hit: u64, kind: Option<Kind>) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let mut known = Known::default();
    let mut done = 0;
    let steps = work();
    let mut reached = false;
    match Process::start(folder.path(), Some((place, hit))) {
        None => reached = true,
        Some(mut process) => {
            for next in &steps {
                if step(&mut process.client, next, kind, &mut known).await.is_err() {
                    reached = true;
                    break;
                }
                done += 1;
            }
            if reached {
                process.died();
            } else {
                reached = !process.stop();
            }
        }
    }
    if !reached {
        return false;
    }
    let mut process = Process::start(folder.path(), None).expect("the gallery starts again");
    assert_recovered(&mut process, folder.path(), &mut known).await;
    for next in &steps[done..] {
        match step(&mut process.client, next, kind, &mut known).await {
            Err(status) if matches!(next, Step::Create) => {
                assert_eq!(status.code(), tonic::Code::AlreadyExists, "{status:?}");
                known.exists = true;
            }
            other => other.unwrap(),
        }
    }
    let expected = known.certain();
    assert_eq!(held(&mut process.client).await, expected);
    assert_ranked(&mut process.client, &expected).await;
    assert!(process.stop());
    let mut process = Process::start(folder.path(), None).expect("and once more");
    assert_recovered(&mut process, folder.path(), &mut known).await;
    assert_eq!(known.certain(), expected);
    assert!(process.stop());
    true
}

async fn assert_survives(places: &[(&str, &[u64])], kind: Option<Kind>) {
    for (place, hits) in places {
        for hit in *hits {
            assert!(survives(place, *hit, kind).await, "{place} was not come to {hit} times");
        }
    }
}

#[tokio::test]
async fn a_death_while_items_are_written_loses_nothing_acknowledged() {
    let places: [(&str, &[u64]); 8] = [
        ("batch.taken", &[1, 2, 5]),
        ("image.put", &[1, 9, 24]),
        ("image.stored", &[1, 13, 30]),
        ("batch.images", &[2, 4]),
        ("store.apply", &[1, 8, 22, 33]),
        ("store.commit", &[1, 3, 6]),
        ("store.committed", &[1, 3, 6]),
        ("batch.answered", &[1, 2, 15, 29]),
    ];
    assert_survives(&places, None).await;
}

#[tokio::test]
async fn a_death_while_what_is_deleted_goes_leaves_all_of_it_or_nothing() {
    let places: [(&str, &[u64]); 3] = [
        ("batch.in_memory", &[2, 4]),
        ("image.delete", &[1, 3, 7, 12]),
        ("batch.images_deleted", &[2, 4, 7]),
    ];
    assert_survives(&places, None).await;
}

#[tokio::test]
async fn a_death_in_a_compaction_leaves_the_old_store_or_the_new_one() {
    let places: [(&str, &[u64]); 6] = [
        ("compact.snapshots", &[1, 2]),
        ("compact.files", &[1, 2]),
        ("compact.begin", &[1, 2]),
        ("compact.half", &[1]),
        ("compact.copied", &[1, 2]),
        ("compact.renamed", &[1, 2]),
    ];
    assert_survives(&places, None).await;
}

#[tokio::test]
async fn a_death_at_any_operation_on_the_stores_file_is_repaired() {
    let places: [(&str, &[u64]); 5] = [
        ("file.write", &[1, 10, 60, 150, 260]),
        ("file.torn", &[2, 25, 90, 210]),
        ("file.sync", &[1, 4, 9, 16, 23]),
        ("file.synced", &[2, 7, 13, 20, 27]),
        ("file.resize", &[1, 2]),
    ];
    assert_survives(&places, None).await;
}

#[tokio::test]
async fn a_death_at_start_or_at_the_end_changes_nothing() {
    let places: [(&str, &[u64]); 6] = [
        ("store.created", &[1]),
        ("open.store", &[1]),
        ("open.images", &[1]),
        ("open.loaded", &[1]),
        ("snapshot.begin", &[1]),
        ("snapshot.saved", &[1]),
    ];
    assert_survives(&places, None).await;
}

#[tokio::test]
async fn a_death_with_an_approximate_index_loses_nothing_acknowledged() {
    let kind = Kind::Ivf(v1::IvfIndex { lists: 1, probes: 1 });
    let places: [(&str, &[u64]); 2] = [("batch.answered", &[25]), ("snapshot.saved", &[1])];
    assert_survives(&places, Some(kind)).await;
}

#[tokio::test]
async fn a_replica_that_dies_at_any_place_comes_back_and_is_level_again() {
    let places: [(&str, &[u64]); 6] = [
        ("replica.item", &[1, 12, 31]),
        ("replica.commit", &[1, 2, 5]),
        ("replica.committed", &[1, 2, 5]),
        ("image.put", &[1, 9]),
        ("image.delete", &[1, 5]),
        ("file.torn", &[8, 40]),
    ];
    for (place, hits) in places {
        for hit in hits {
            let folder = tempfile::tempdir().unwrap();
            let data = folder.path().join("replica");
            let mut writer = Running::on(&folder.path().join("writer")).await;
            let mut known = Known::default();
            let mut steps = work().into_iter();
            for next in steps.by_ref().take(2) {
                step(&mut writer.client, &next, None, &mut known).await.unwrap();
            }
            let died = Process::start_following(&data, Some(writer.address), Some((place, *hit)));
            for next in steps {
                step(&mut writer.client, &next, None, &mut known).await.unwrap();
                // Most steps of the work become steps of the replica of their own.
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
            if let Some(mut process) = died {
                assert!(process.dies().await, "{place} was not come to {hit} times");
            }
            let mut replica = Process::start_following(&data, Some(writer.address), None).unwrap();
            assert_same(&mut writer.client, &mut replica.client).await;
            assert_eq!(held(&mut replica.client).await, known.certain());
            assert_eq!(image_files(&data), image_files(&folder.path().join("writer")), "after {place} {hit}");
            assert!(replica.stop());
            writer.stop().await;
        }
    }
}
