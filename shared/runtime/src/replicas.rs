use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::call::Deadline;
use crate::worker::lost;
use crate::{Done, Fault, Health, Steps, Worker, WorkerOptions};

/// Equal engines on threads of their own, one for each device. A job goes to the engine with the least to do; one that
/// is lost gets no more. Cheap to clone.
pub struct Replicas<W: Steps> {
    members: Arc<[Member<W>]>,
}

struct Member<W: Steps> {
    worker: Worker<W>,
    /// Weight of the jobs that wait or run.
    load: AtomicUsize,
}

impl<W: Steps> Clone for Replicas<W> {
    fn clone(&self) -> Self {
        Self { members: self.members.clone() }
    }
}

impl<W: Steps> fmt::Debug for Replicas<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.members.iter().map(|member| &member.worker)).finish()
    }
}

/// Takes a job's weight off its member, however the job ends.
struct Loaded<'a> {
    load: &'a AtomicUsize,
    weight: usize,
}

impl<'a> Loaded<'a> {
    fn new(load: &'a AtomicUsize, weight: usize) -> Self {
        load.fetch_add(weight, Ordering::Relaxed);
        Self { load, weight }
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        self.load.fetch_sub(self.weight, Ordering::Relaxed);
    }
}

impl<W: Steps> Replicas<W> {
    /// Starts a [`Worker`] for every name and load function; each has a queue of its own of [`WorkerOptions::queue_limit`].
    ///
    /// A single engine has the health checks of its worker. Several have theirs by name: all must load, and from then on
    /// the role is live while one of them is.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn spawn<E, L>(
        options: &WorkerOptions,
        health: &Health,
        loads: Vec<(String, L)>,
    ) -> std::io::Result<Self>
    where
        E: fmt::Display,
        L: FnOnce() -> Result<W, E> + Send + 'static,
    {
        let several = loads.len() > 1;
        let spawn = |(name, load): (String, L)| {
            let health = if several { health.of_replica(name) } else { health.clone() };
            let worker = Worker::spawn(options.clone(), &health, load)?;
            Ok(Member { worker, load: AtomicUsize::new(0) })
        };
        Ok(Self { members: loads.into_iter().map(spawn).collect::<std::io::Result<_>>()? })
    }

    /// Whether there are more engines than one, lost ones included.
    pub fn are_several(&self) -> bool {
        self.members.len() > 1
    }

    /// Waits until every engine is loaded, or one is not.
    ///
    /// # Errors
    /// Why one could not be loaded.
    pub async fn loaded(&self) -> Result<(), String> {
        let mut loading: Vec<_> =
            self.members.iter().map(|member| Box::pin(member.worker.loaded())).collect();
        std::future::poll_fn(|cx| {
            // The first that fails is told even while others are still loading.
            let mut failed = None;
            loading.retain_mut(|one| match one.as_mut().poll(cx) {
                std::task::Poll::Pending => true,
                std::task::Poll::Ready(Ok(())) => false,
                std::task::Poll::Ready(Err(reason)) => {
                    failed.get_or_insert(reason);
                    false
                }
            });
            match failed {
                Some(reason) => std::task::Poll::Ready(Err(reason)),
                None if loading.is_empty() => std::task::Poll::Ready(Ok(())),
                None => std::task::Poll::Pending,
            }
        })
        .await
    }

    /// Resolves with the reason when an engine could not be loaded; never where all could.
    pub async fn cannot_load(&self) -> String {
        match self.loaded().await {
            Ok(()) => std::future::pending().await,
            Err(reason) => reason,
        }
    }

    /// Has a job done by the engine with the least to do.
    ///
    /// # Errors
    /// As [`Worker::submit`]; [`Fault::Unavailable`] when every engine is lost, or the one that had the job was lost with
    /// it.
    ///
    /// # Cancel safety
    /// As [`Worker::submit`].
    pub async fn submit(&self, job: W::Job, deadline: Deadline) -> Result<Done<W::Output>, Fault> {
        let working = self.members.iter().filter(|member| member.worker.is_working());
        let member = working.min_by_key(|member| member.load.load(Ordering::Relaxed)).ok_or_else(lost)?;
        let _load = Loaded::new(&member.load, W::weight(&job).max(1));
        member.worker.submit(job, deadline).await
    }

    /// Has every engine that is left do the job that `make` makes, and gives back what each made of it.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] when every engine is lost, else the first fault, once all have answered.
    pub async fn submit_to_all(
        &self,
        make: impl Fn() -> W::Job,
        deadline: Deadline,
    ) -> Result<Vec<Done<W::Output>>, Fault> {
        let working = self.members.iter().filter(|member| member.worker.is_working());
        let answers: Vec<_> = working.map(|member| member.worker.submit(make(), deadline)).collect();
        if answers.is_empty() {
            return Err(lost());
        }
        futures::future::join_all(answers).await.into_iter().collect()
    }
}
