//! The worker behind a service: bounded, batched, and honest about its end.

use std::pin::pin;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use crate::support::{config, soon, start, text, worker_options};
use thicket_runtime::{Batches, Deadline, Fault, PUSHBACK, Role, Server, Work, Worker, WorkerOptions};
use tonic::Code;
use tonic_types::StatusExt;

#[tokio::test]
async fn a_full_queue_is_resource_exhausted_with_a_pause_in_both_forms() {
    let role = start(&config()).await;
    let mut client = role.client();
    let running = tokio::spawn(async move { client.embed_text(text("hold")).await });
    role.meet().await;
    let mut waiting = pin!(role.handlers.worker.submit("wait".to_owned(), soon()));
    assert!(tokio::time::timeout(Duration::from_millis(1), &mut waiting).await.is_err(), "it has to wait");
    let refused = role.client().embed_text(text("more")).await.expect_err("one may wait");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let pushback = refused.metadata().get(PUSHBACK).expect("a trailer").to_str().expect("text");
    let pushback: u64 = pushback.parse().expect("a whole number of milliseconds");
    let delay = refused.get_details_retry_info().expect("details").retry_delay.expect("a delay");
    assert_eq!(u128::from(pushback), delay.as_millis());
    assert!(pushback >= 50);
    role.meet().await;
    assert!(running.await.expect("no panic").is_ok());
    assert!(waiting.await.is_ok());
}

#[tokio::test]
async fn a_caller_who_leaves_frees_its_place_in_the_queue() {
    let role = start(&config()).await;
    let holder = role.handlers.worker.clone();
    let holder = tokio::spawn(async move { holder.submit("hold".to_owned(), soon()).await });
    role.meet().await;
    let worker = &role.handlers.worker;
    let leaving = worker.submit("left".to_owned(), soon());
    assert!(tokio::time::timeout(Duration::from_millis(20), leaving).await.is_err(), "it has to wait");
    let staying = worker.clone();
    let staying = tokio::spawn(async move { staying.submit("stay".to_owned(), soon()).await });
    role.meet().await;
    assert!(holder.await.expect("no panic").is_ok());
    assert_eq!(staying.await.expect("no panic").expect("took the free place").output, 4);
}

#[tokio::test]
async fn a_job_whose_deadline_passes_in_the_queue_is_not_run() {
    let role = start(&config()).await;
    let holder = role.handlers.worker.clone();
    let holder = tokio::spawn(async move { holder.submit("hold".to_owned(), soon()).await });
    role.meet().await;
    // Were it run, the engine would panic and the role would not be live any more.
    let late =
        role.handlers.worker.submit("panic".to_owned(), Deadline::after(Duration::from_millis(30))).await;
    assert_eq!(late, Err(Fault::DeadlineExceeded));
    role.meet().await;
    assert!(holder.await.expect("no panic").is_ok());
    assert!(role.handlers.worker.submit("next".to_owned(), soon()).await.is_ok());
    assert!(role.health.snapshot().live);
}

#[tokio::test]
async fn a_panic_in_the_engine_is_internal_and_asks_for_a_restart() {
    let role = start(&config()).await;
    let status = role.client().embed_text(text("panic")).await.expect_err("it panicked");
    assert_eq!(status.code(), Code::Internal);
    assert!(!status.message().contains("told to"), "the cause stays in the log: {}", status.message());
    let (code, page) = role.get("/livez?verbose").await;
    assert_eq!(code, 503);
    assert!(page.contains("[-] model: panicked: told to"), "{page}");
    let status = role.client().embed_text(text("more")).await.expect_err("the engine is gone");
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_panic_in_a_handler_fails_that_call_only() {
    let role = start(&config()).await;
    let mut client = role.client();
    let status = client.embed_text(text("handler panic")).await.expect_err("it panicked");
    assert_eq!(status.code(), Code::Internal);
    assert!(client.embed_text(text("next")).await.is_ok());
    assert!(role.health.snapshot().live);
}

#[tokio::test]
async fn an_engine_that_cannot_load_says_why_and_never_starts() {
    let server = Server::bind(Role::Answer, &config()).await.expect("bound");
    let options = worker_options(1, 1);
    let worker: Worker<Batches<Sums>> =
        Worker::spawn(options, &server.health(), || Err("tensor `visual.proj` is missing"))
            .expect("a thread");
    assert_eq!(worker.loaded().await, Err("tensor `visual.proj` is missing".to_owned()));
    assert!(!server.health().snapshot().ready);
    assert!(matches!(worker.submit(1, soon()).await, Err(Fault::Unavailable { .. })));
}

/// Long enough for any machine; nothing waits for its end.
const WAIT: Duration = Duration::from_secs(20);

/// Answers each number with the sum of its batch.
struct Sums {
    gate: Option<Arc<Barrier>>,
}

impl Work for Sums {
    type Job = u64;
    type Output = u64;

    fn joins(first: &u64, next: &u64) -> bool {
        first % 2 == next % 2
    }

    fn run(&mut self, jobs: Vec<u64>) -> Vec<Result<u64, Fault>> {
        if let Some(gate) = self.gate.take() {
            gate.wait();
            gate.wait();
        }
        let sum = jobs.iter().sum();
        jobs.iter().map(|_| Ok(sum)).collect()
    }
}

#[tokio::test]
async fn jobs_that_wait_together_run_together_by_kind_up_to_the_limit() {
    let server = Server::bind(Role::Answer, &config()).await.expect("bound");
    let gate = Arc::new(Barrier::new(2));
    let engine = Sums { gate: Some(gate.clone()) };
    let options = worker_options(16, 2);
    let worker = Worker::spawn(options, &server.health(), move || Ok::<_, String>(Batches::of(engine)))
        .expect("a thread");
    let first = worker.clone();
    let first = tokio::spawn(async move { first.submit(1, soon()).await });
    let meet = |gate: Arc<Barrier>| tokio::task::spawn_blocking(move || gate.wait());
    meet(gate.clone()).await.expect("busy");

    // Polled in order, so queued in order: 10 and 20 go together, then 3 and 5, then 30.
    let submit = |number| {
        let worker = worker.clone();
        async move { worker.submit(number, soon()).await.map(|done| done.output) }
    };
    let release = async {
        tokio::task::yield_now().await;
        meet(gate.clone()).await.expect("let go");
    };
    let (a, b, c, d, e, ()) = tokio::join!(submit(10), submit(3), submit(20), submit(5), submit(30), release);
    assert_eq!([a, b, c, d, e], [Ok(30), Ok(8), Ok(30), Ok(8), Ok(30)]);
    assert_eq!(first.await.expect("no panic").map(|done| done.output), Ok(1));
}

#[tokio::test]
async fn a_stuck_engine_takes_no_jobs_and_is_not_ready_until_it_goes_on() {
    let server = Server::bind(Role::Answer, &config()).await.expect("bound");
    let (health, gate) = (server.health(), Arc::new(Barrier::new(2)));
    let engine = Sums { gate: Some(gate.clone()) };
    let options = WorkerOptions { stuck_after: Duration::from_millis(20), ..worker_options(16, 2) };
    let worker =
        Worker::spawn(options, &health, move || Ok::<_, String>(Batches::of(engine))).expect("a thread");
    let held = worker.clone();
    let held = tokio::spawn(async move { held.submit(1, soon()).await });
    let meet = |gate: Arc<Barrier>| tokio::task::spawn_blocking(move || gate.wait());
    meet(gate.clone()).await.expect("busy");
    let ready = |wanted| {
        let mut health = health.subscribe();
        async move { _ = health.wait_for(|now| now.ready == wanted).await.expect("health") }
    };
    tokio::time::timeout(WAIT, ready(false)).await.expect("it is stuck");
    let refused = worker.submit(3, soon()).await.expect_err("it takes nothing");
    assert!(matches!(refused, Fault::Unavailable { .. }), "{refused:?}");
    meet(gate).await.expect("let go");
    assert_eq!(held.await.expect("no panic").map(|done| done.output), Ok(1));
    tokio::time::timeout(WAIT, ready(true)).await.expect("it goes on");
    assert_eq!(worker.submit(3, soon()).await.map(|done| done.output), Ok(3));
}

#[tokio::test]
async fn an_engine_that_stays_stuck_asks_for_a_restart() {
    let server = Server::bind(Role::Answer, &config()).await.expect("bound");
    let (health, gate) = (server.health(), Arc::new(Barrier::new(2)));
    let engine = Sums { gate: Some(gate.clone()) };
    let options = WorkerOptions { stuck_after: Duration::from_millis(5), ..worker_options(16, 2) };
    let worker =
        Worker::spawn(options, &health, move || Ok::<_, String>(Batches::of(engine))).expect("a thread");
    let held = tokio::spawn(async move { worker.submit(1, soon()).await });
    let mut state = health.subscribe();
    let lost = state.wait_for(|now| !now.live);
    tokio::time::timeout(WAIT, lost).await.expect("it is given up").expect("health");
    gate.wait();
    gate.wait();
    assert!(held.await.expect("no panic").is_ok());
}
