//! What a cluster does at twice its capacity, and how throughput grows with answer replicas that take a fixed time.
//!
//! `cargo bench --workspace --bench load [-- FILE]` prints one JSON document, and writes it to FILE too. Everything runs in
//! this process, the callers included, through gRPC on loopback: nothing else should run on the machine.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use thicket_tests::{Fate, LoadOptions, LoadedCluster};

/// How long a question takes.
const TAKES: Duration = Duration::from_millis(100);
/// Questions that a replica works on at a time.
const SLOTS: usize = 2;
const DEADLINE: Duration = Duration::from_secs(10);
const REQUESTS: usize = 10_000;
/// How long a number of replicas is measured.
const WHILE: Duration = Duration::from_secs(15);

/// Searches a second that so many replicas can do at the most.
fn most(replicas: usize) -> f64 {
    (replicas * SLOTS) as f64 / TAKES.as_secs_f64()
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let document = runtime.block_on(async {
        json!({
            "machine": machine(),
            "question_ms": TAKES.as_millis(),
            "questions_at_a_time": SLOTS,
            "overload": overload(8, 256).await,
            "scaling": scaling(&[1, 2, 4, 8]).await,
        })
    });
    let text = format!("{document:#}");
    if let Some(file) = std::env::args().skip(1).find(|argument| !argument.starts_with('-')) {
        std::fs::write(Path::new(&file), &text).expect("a file that can be written");
    }
    use std::io::Write;
    writeln!(std::io::stdout(), "{text}").expect("a stdout that can be written");
}

fn options(replicas: usize, max_calls: usize, data: &Path) -> LoadOptions {
    LoadOptions { replicas, slots: SLOTS, takes: TAKES, max_calls, data: data.into() }
}

/// Searches at twice the rate that can be done.
async fn overload(replicas: usize, max_calls: usize) -> Value {
    let data = tempfile::tempdir().expect("a folder");
    let cluster =
        Arc::new(LoadedCluster::start(options(replicas, max_calls, data.path())).await.expect("a cluster"));
    let every = Duration::from_secs_f64(1.0 / (2.0 * most(replicas)));
    let is_over = Arc::new(AtomicBool::new(false));
    let memory = tokio::spawn(watch_memory(is_over.clone()));
    let began = Instant::now();
    let fates = cluster.pour(REQUESTS, every, DEADLINE).await;
    let seconds = began.elapsed().as_secs_f64();
    is_over.store(true, Ordering::Relaxed);
    let memory = memory.await.expect("a task");

    let (mut finished, mut refused, mut hints, mut failed) = (Vec::new(), Vec::new(), 0, Vec::new());
    for fate in fates {
        match fate {
            Fate::Finished(took) => finished.push(took),
            Fate::Refused(took, hint) => {
                hints += usize::from(hint.is_some());
                refused.push(took);
            }
            Fate::Failed(code, message) => failed.push(format!("{code:?}: {message}")),
        }
    }
    let asked: usize = cluster.asked().iter().sum();
    let in_time = finished.iter().filter(|took| **took <= DEADLINE).count();
    let per_second = finished.len() as f64 / seconds;
    failed.truncate(5);
    json!({
        "replicas": replicas,
        "max_calls": max_calls,
        "requests": REQUESTS,
        "offered_per_second": 2.0 * most(replicas),
        "most_per_second": most(replicas),
        "deadline_s": DEADLINE.as_secs(),
        "finished": finished.len(),
        "finished_in_time": in_time,
        "questions": asked,
        "refused": refused.len(),
        "refused_with_hint": hints,
        "failed": failed,
        "seconds": seconds,
        "finished_per_second": per_second,
        "share_of_most": per_second / most(replicas),
        "finished_after_s": quantiles(finished),
        "refused_after_s": quantiles(refused),
        "resident_mib": memory,
    })
}

/// Searches that follow each other, four times as many at a time as can be worked on.
async fn scaling(replicas: &[usize]) -> Value {
    let mut rows = Vec::new();
    let mut one = 0.0;
    for &replicas in replicas {
        let data = tempfile::tempdir().expect("a folder");
        let cluster =
            Arc::new(LoadedCluster::start(options(replicas, 1_024, data.path())).await.expect("a cluster"));
        let per_second = closed(&cluster, 4 * replicas * SLOTS).await;
        if one == 0.0 {
            one = per_second / replicas as f64;
        }
        rows.push(json!({
            "replicas": replicas,
            "per_second": per_second,
            "most_per_second": most(replicas),
            "share_of_linear": per_second / (one * replicas as f64),
        }));
    }
    rows.into()
}

/// Searches a second with so many callers, of whom each waits for the end of one before the next.
async fn closed(cluster: &Arc<LoadedCluster>, callers: usize) -> f64 {
    let done = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (cluster, done) = (cluster.clone(), done.clone());
            let client = cluster.client();
            tokio::spawn(async move {
                for number in (caller..).step_by(callers) {
                    match cluster.search(&client, number, DEADLINE).await {
                        Fate::Finished(_) => done.fetch_add(1, Ordering::Relaxed),
                        other => panic!("{other:?}"),
                    };
                }
            })
        })
        .collect();
    // Past the beginning, when all of them ask at once.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (before, began) = (done.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(WHILE).await;
    let per_second = (done.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    per_second
}

fn quantiles(mut times: Vec<Duration>) -> Value {
    times.sort_unstable();
    let at = |percent: usize| {
        let rank = (times.len() * percent).div_ceil(100).max(1);
        times.get(rank - 1).map(Duration::as_secs_f64)
    };
    json!({ "p50": at(50), "p99": at(99), "most": at(100) })
}

/// Memory of this process every two seconds.
async fn watch_memory(is_over: Arc<AtomicBool>) -> Vec<u64> {
    let mut seen = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        seen.push(resident_mib());
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    seen
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or_default() / 1_024
}

fn machine() -> Value {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    json!({
        "cpu": model,
        "cores": std::thread::available_parallelism().map(usize::from).unwrap_or_default(),
        "load_at_start": load.split(' ').next(),
    })
}
