//! An engine that takes up jobs while others are in work.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use thicket_engine::Ticket;
use thicket_runtime::{Deadline, Fault, Role, Server, Stepped, Steps, Worker};

use crate::support::{config, soon, worker_options};

/// What the test lets happen and sees.
#[derive(Default)]
struct Window {
    /// Steps that may still be done; the engine waits for more.
    steps: usize,
    cancelled: usize,
}

/// A job that the engine panics over.
const FATAL: usize = 1000;

/// Works on one job in each of two places; a job is a number of steps, and its answer how many the engine had done.
struct Counter {
    window: Arc<Mutex<Window>>,
    waiting: Vec<(Ticket, usize)>,
    running: Vec<(Ticket, usize)>,
    done: usize,
}

impl Steps for Counter {
    type Job = usize;
    type Output = usize;

    const CONTINUOUS: bool = true;

    fn take(&mut self, ticket: Ticket, job: usize, _: Deadline) {
        self.waiting.push((ticket, job));
    }

    fn cancel(&mut self, ticket: Ticket) {
        self.window.lock().unwrap().cancelled += 1;
        self.waiting.retain(|(waiting, _)| *waiting != ticket);
        self.running.retain(|(running, _)| *running != ticket);
    }

    fn step(&mut self) -> Stepped<usize> {
        let nothing = Stepped { started: Vec::new(), done: Vec::new() };
        {
            let mut window = self.window.lock().unwrap();
            if window.steps == 0 {
                drop(window);
                std::thread::sleep(Duration::from_millis(1));
                return nothing;
            }
            window.steps -= 1;
        }
        assert!(self.waiting.iter().all(|(_, steps)| *steps != FATAL), "told to");
        self.done += 1;
        let free = 2_usize.saturating_sub(self.running.len()).min(self.waiting.len());
        let started: Vec<_> = self.waiting.drain(..free).collect();
        self.running.extend(&started);
        self.running.iter_mut().for_each(|(_, left)| *left -= 1);
        let (ended, running): (Vec<_>, Vec<_>) = self.running.drain(..).partition(|(_, left)| *left == 0);
        self.running = running;
        Stepped {
            started: started.into_iter().map(|(ticket, _)| ticket).collect(),
            done: ended.into_iter().map(|(ticket, _)| (ticket, Ok(self.done))).collect(),
        }
    }

    fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

/// A worker whose engine does `steps` steps, and its server, which holds the health.
async fn worker(steps: usize, queue_limit: usize) -> (Worker<Counter>, Arc<Mutex<Window>>, Server) {
    let server = Server::bind(Role::Answer, &config()).await.unwrap();
    let window = Arc::new(Mutex::new(Window { steps, cancelled: 0 }));
    let engine = Counter { window: window.clone(), waiting: Vec::new(), running: Vec::new(), done: 0 };
    let options = worker_options(queue_limit, 1);
    let worker = Worker::spawn(options, &server.health(), move || Ok::<_, String>(engine)).unwrap();
    (worker, window, server)
}

/// Waits until the engine's thread has come to see something.
async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_short_job_that_comes_later_ends_before_a_long_one() {
    let (worker, window, _server) = worker(1, 8).await;
    let long = {
        let worker = worker.clone();
        tokio::spawn(async move { worker.submit(50, soon()).await.map(|done| done.output) })
    };
    until(|| window.lock().unwrap().steps == 0).await;
    window.lock().unwrap().steps = 1000;
    let short = worker.submit(1, soon()).await.unwrap().output;
    assert!(short < 50, "{short}");
    assert_eq!(long.await.unwrap(), Ok(50));
}

#[tokio::test]
async fn a_job_whose_caller_leaves_is_given_up_before_the_next_step() {
    let (worker, window, _server) = worker(1, 8).await;
    let leaving = {
        let worker = worker.clone();
        tokio::spawn(async move { worker.submit(1_000_000_000, soon()).await })
    };
    until(|| window.lock().unwrap().steps == 0).await;
    leaving.abort();
    until(|| window.lock().unwrap().cancelled == 1).await;
}

#[tokio::test]
async fn a_job_whose_deadline_passes_is_given_up() {
    let (worker, window, _server) = worker(0, 8).await;
    let late = worker.submit(5, Deadline::after(Duration::from_millis(20))).await;
    assert!(matches!(late, Err(Fault::DeadlineExceeded)));
    until(|| window.lock().unwrap().cancelled == 1).await;
}

#[tokio::test]
async fn what_waits_inside_the_engine_takes_places_of_the_queue() {
    let (worker, window, _server) = worker(1, 2).await;
    let submit = || {
        let worker = worker.clone();
        tokio::spawn(async move { worker.submit(9, soon()).await.map(|_| ()) })
    };
    let running = submit();
    until(|| window.lock().unwrap().steps == 0).await;
    let mut accepted = vec![running, submit(), submit()];
    // One runs and two wait; another is refused as soon as both are there.
    let refused = loop {
        match tokio::time::timeout(Duration::from_millis(50), worker.submit(9, soon())).await {
            Ok(result) => break result,
            Err(_) => accepted.push(submit()),
        }
    };
    assert!(matches!(refused, Err(Fault::Exhausted { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_panic_in_a_step_fails_every_open_job_and_the_live_check() {
    let (worker, window, server) = worker(1, 8).await;
    let open = {
        let worker = worker.clone();
        tokio::spawn(async move { worker.submit(usize::MAX, soon()).await.map(|_| ()) })
    };
    until(|| window.lock().unwrap().steps == 0).await;
    let other = {
        let worker = worker.clone();
        tokio::spawn(async move { worker.submit(FATAL, soon()).await.map(|_| ()) })
    };
    window.lock().unwrap().steps = usize::MAX;
    for job in [open, other] {
        let failed = job.await.unwrap();
        assert!(matches!(failed, Err(Fault::Internal { .. } | Fault::Unavailable { .. })), "{failed:?}");
    }
    assert!(!server.health().snapshot().live);
}
