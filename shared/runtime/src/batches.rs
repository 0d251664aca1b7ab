use thicket_engine::Ticket;

use crate::call::Deadline;
use crate::{Fault, Stepped, Steps};

/// Work that one thread does for many callers, a batch at a time: it owns a model or an index.
pub trait Work: Send + 'static {
    /// What a caller hands in.
    type Job: Send + 'static;
    /// What the caller gets back.
    type Output: Send + 'static;

    /// How much of a batch's budget a job takes.
    fn weight(job: &Self::Job) -> usize {
        let _ = job;
        1
    }

    /// Whether a job can be in one batch with the batch's first.
    fn joins(first: &Self::Job, next: &Self::Job) -> bool {
        let _ = (first, next);
        true
    }

    /// Does the jobs of one batch. Returns one result a job, in order.
    fn run(&mut self, jobs: Vec<Self::Job>) -> Vec<Result<Self::Output, Fault>>;
}

/// [`Work`] as [`Steps`]: every step is a batch.
#[derive(Debug)]
pub struct Batches<W: Work> {
    work: W,
    batch: Vec<(Ticket, W::Job)>,
}

impl<W: Work> Batches<W> {
    /// Takes over the work.
    pub fn of(work: W) -> Self {
        Self { work, batch: Vec::new() }
    }
}

impl<W: Work> Steps for Batches<W> {
    type Job = W::Job;
    type Output = W::Output;

    const CONTINUOUS: bool = false;

    fn weight(job: &W::Job) -> usize {
        W::weight(job)
    }

    fn joins(first: &W::Job, next: &W::Job) -> bool {
        W::joins(first, next)
    }

    fn take(&mut self, ticket: Ticket, job: W::Job, _: Deadline) {
        self.batch.push((ticket, job));
    }

    fn cancel(&mut self, ticket: Ticket) {
        self.batch.retain(|(waiting, _)| *waiting != ticket);
    }

    fn step(&mut self) -> Stepped<W::Output> {
        let (started, jobs): (Vec<Ticket>, Vec<W::Job>) = self.batch.drain(..).unzip();
        let mut results = self.work.run(jobs).into_iter();
        let left_out = || Err(Fault::internal("the engine left a job out"));
        let done = started.iter().map(|ticket| (*ticket, results.next().unwrap_or_else(left_out))).collect();
        Stepped { started, done }
    }
}
