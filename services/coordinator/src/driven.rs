//! A response stream that is fed by a task.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use thicket_runtime::Fault;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::Stream;
use tonic::Status;
use tracing::Instrument;

/// Messages that may wait for a slow caller before the work behind them pauses.
const CAPACITY: usize = 16;

/// Where a task puts its messages.
#[derive(Debug)]
pub(crate) struct Outlet<T>(mpsc::Sender<T>);

impl<T> Outlet<T> {
    /// Hands a message over, waiting while the caller is slow.
    pub(crate) async fn send(&self, message: T) -> Result<(), Fault> {
        self.0.send(message).await.map_err(|_| Fault::Cancelled)
    }
}

/// The messages of a task, then the status it failed with, if it did. Dropping the stream stops the task wherever it
/// is, and with it every call it has in flight.
#[derive(Debug)]
pub(crate) struct Driven<T> {
    messages: mpsc::Receiver<T>,
    task: Option<JoinHandle<Result<(), Fault>>>,
}

impl<T: Send + 'static> Driven<T> {
    /// Starts the task in the current span.
    pub(crate) fn spawn<F>(work: impl FnOnce(Outlet<T>) -> F) -> Self
    where
        F: Future<Output = Result<(), Fault>> + Send + 'static,
    {
        let (sender, messages) = mpsc::channel(CAPACITY);
        let task = tokio::spawn(work(Outlet(sender)).in_current_span());
        Self { messages, task: Some(task) }
    }
}

impl<T> Stream for Driven<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(message) = ready!(self.messages.poll_recv(cx)) {
            return Poll::Ready(Some(Ok(message)));
        }
        let Some(task) = self.task.as_mut() else { return Poll::Ready(None) };
        let ended = ready!(Pin::new(task).poll(cx));
        self.task = None;
        Poll::Ready(match ended {
            Ok(Ok(())) => None,
            Ok(Err(fault)) => Some(Err(fault.into_status())),
            Err(panic) => Some(Err(Fault::internal(panic).into_status())),
        })
    }
}

impl<T> Drop for Driven<T> {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn messages_come_before_the_failure_that_follows_them() {
        let mut stream = Driven::spawn(|outlet| async move {
            outlet.send(1).await?;
            Err(Fault::DeadlineExceeded)
        });
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        assert_eq!(stream.next().await.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn a_panic_ends_the_stream_with_an_error() {
        let mut stream = Driven::<()>::spawn(|_| async { panic!("a bug") });
        assert_eq!(stream.next().await.unwrap().unwrap_err().code(), Code::Internal);
    }

    #[tokio::test]
    async fn dropping_the_stream_drops_the_work() {
        let (held, released) = tokio::sync::oneshot::channel::<()>();
        let stream = Driven::<()>::spawn(|_| async move {
            let _held = held;
            std::future::pending().await
        });
        tokio::task::yield_now().await;
        drop(stream);
        assert!(released.await.is_err());
    }
}
