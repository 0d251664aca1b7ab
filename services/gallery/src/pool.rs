use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use opentelemetry::KeyValue;
use parking_lot::{Condvar, Mutex};
use thicket_telemetry::{instruments, names};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::error::GalleryError;

/// Name of the queue in metrics and messages.
const QUEUE: &str = "read";

/// Threads that search, decode and read files, so that no async thread blocks.
///
/// The threads end when the pool is dropped.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    /// One permit for each task that waits or runs.
    places: Arc<Semaphore>,
    limit: usize,
}

struct Shared {
    inner: Mutex<Inner>,
    wake: Condvar,
}

struct Inner {
    tasks: VecDeque<Box<dyn FnOnce() + Send>>,
    ended: bool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Pool {
    /// Starts `threads` threads; `limit` tasks may wait besides those that run.
    pub(crate) fn start(threads: usize, limit: usize) -> std::io::Result<Self> {
        let inner = Inner { tasks: VecDeque::new(), ended: false };
        let shared = Arc::new(Shared { inner: Mutex::new(inner), wake: Condvar::new() });
        let pool = Self { shared, places: Arc::new(Semaphore::new(limit + threads)), limit };
        for number in 0..threads {
            let shared = pool.shared.clone();
            std::thread::Builder::new()
                .name(format!("gallery-reader-{number}"))
                .spawn(move || shared.work())?;
        }
        Ok(pool)
    }

    /// Runs `task` on a thread of the pool.
    ///
    /// # Errors
    /// [`GalleryError::QueueFull`] at once where too many wait, else what the task returns.
    ///
    /// # Cancel safety
    /// Dropping the future takes the task out of the queue; one that runs is run to its end.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        task: impl FnOnce() -> Result<T, GalleryError> + Send + 'static,
    ) -> Result<T, GalleryError> {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            instruments().admission_rejected.add(1, &[KeyValue::new(names::REASON, "QUEUE_FULL")]);
            return Err(GalleryError::QueueFull { queue: QUEUE, limit: self.limit });
        };
        self.run_in(place, task).await
    }

    /// Like [`Self::run`], but waits for a place in the queue: for streams, which slow their caller down instead.
    pub(crate) async fn run_patiently<T: Send + 'static>(
        &self,
        task: impl FnOnce() -> Result<T, GalleryError> + Send + 'static,
    ) -> Result<T, GalleryError> {
        let place = self.places.clone().acquire_owned().await.map_err(|_| GalleryError::Stopping)?;
        self.run_in(place, task).await
    }

    async fn run_in<T: Send + 'static>(
        &self,
        place: OwnedSemaphorePermit,
        task: impl FnOnce() -> Result<T, GalleryError> + Send + 'static,
    ) -> Result<T, GalleryError> {
        let (reply, answer) = oneshot::channel();
        let since = Instant::now();
        self.shared.push(Box::new(move || {
            let _place = place;
            // The caller went away or ran out of time while the task waited.
            if reply.is_closed() {
                return;
            }
            instruments()
                .queue_wait
                .record(since.elapsed().as_secs_f64(), &[KeyValue::new(names::LANE, QUEUE)]);
            let result = catch_unwind(AssertUnwindSafe(task))
                .unwrap_or_else(|_| Err(GalleryError::internal("a read", "the task panicked")));
            let _ = reply.send(result);
        }));
        answer.await.unwrap_or(Err(GalleryError::Stopping))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.inner.lock().ended = true;
        self.shared.wake.notify_all();
    }
}

impl Shared {
    fn push(&self, task: Box<dyn FnOnce() + Send>) {
        let mut inner = self.inner.lock();
        inner.tasks.push_back(task);
        instruments().queue_depth.record(inner.tasks.len() as u64, &[KeyValue::new(names::LANE, QUEUE)]);
        drop(inner);
        self.wake.notify_one();
    }

    fn work(&self) {
        loop {
            let mut inner = self.inner.lock();
            let task = loop {
                if let Some(task) = inner.tasks.pop_front() {
                    break task;
                }
                if inner.ended {
                    return;
                }
                self.wake.wait(&mut inner);
            };
            drop(inner);
            task();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_recovers() {
        let pool = Arc::new(Pool::start(1, 1).unwrap());
        let (open, gate) = mpsc::channel::<()>();
        let (running, started) = oneshot::channel();
        let busy = tokio::spawn({
            let pool = pool.clone();
            async move {
                pool.run(move || {
                    let _ = running.send(());
                    let _ = gate.recv();
                    Ok(1)
                })
                .await
            }
        });
        started.await.unwrap();
        let mut waiting = Box::pin(pool.run(|| Ok(2)));
        assert!(futures::poll!(&mut waiting).is_pending());
        assert!(matches!(pool.run(|| Ok(3)).await, Err(GalleryError::QueueFull { limit: 1, .. })));
        open.send(()).unwrap();
        assert_eq!(busy.await.unwrap().unwrap(), 1);
        assert_eq!(waiting.await.unwrap(), 2);
        assert_eq!(pool.run(|| Ok(4)).await.unwrap(), 4);
    }

    #[tokio::test]
    async fn a_panic_fails_its_own_task_only() {
        let pool = Pool::start(1, 4).unwrap();
        let failed = pool.run::<()>(|| panic!("on purpose")).await;
        assert!(matches!(failed, Err(GalleryError::Internal { .. })));
        assert_eq!(pool.run(|| Ok(1)).await.unwrap(), 1);
    }
}
