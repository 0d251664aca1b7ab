//! Jobs: batches of queries that outlive the call that made them and the coordinator that took it.
//!
//! [`Board`] is what this coordinator knows of all jobs; [`Runner`] takes parts of them and does them; [`Service`] is the
//! contract's part. What a job may do next is decided by `thicket-jobs`, and made durable by `thicket-jobstore`.

mod board;
mod clock;
mod create;
mod fault;
mod fetch;
mod forget;
mod forgotten;
mod input;
mod objects;
mod query;
mod record;
mod rows;
mod runner;
mod service;
mod sweep;
mod unit;

use std::sync::Arc;
use std::time::Duration;

use thicket_jobstore::JobStore;
use thicket_thi::Settings;
use tokio::sync::mpsc;

use crate::clients::Clients;
use board::Board;
pub(crate) use objects::Objects;
pub(crate) use runner::Runner;
pub(crate) use service::Service;

/// Folders of jobs that did not come about, waiting to be cleared.
const LEFTOVERS: usize = 1_024;

/// What jobs are kept and done with, shared by the calls and the runner.
#[derive(Debug)]
pub(crate) struct Jobs {
    store: Arc<dyn JobStore>,
    objects: Objects,
    board: Board,
    clients: Clients,
    defaults: Settings,
    /// Folders that no job refers to.
    leftovers: mpsc::Sender<String>,
}

/// How a coordinator takes part in jobs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    /// Queries searched for at a time.
    pub(crate) queries: usize,
    /// Longest time of one attempt at a query.
    pub(crate) attempt: Duration,
}

impl Jobs {
    /// Over a store and a place for objects; and what does the work, which nobody does until it runs.
    pub(crate) fn new(
        store: Arc<dyn JobStore>,
        objects: Objects,
        clients: Clients,
        defaults: Settings,
        share: Share,
    ) -> (Arc<Self>, Runner) {
        let (leftovers, cleared) = mpsc::channel(LEFTOVERS);
        let board = Board::new(store.clone());
        let jobs = Arc::new(Self { store, objects, board, clients, defaults, leftovers });
        let runner = Runner::new(jobs.clone(), share, cleared);
        (jobs, runner)
    }
}
