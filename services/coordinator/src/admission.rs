use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use thicket_runtime::Fault;
use thicket_telemetry::{instruments, names};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// When a caller should come back to a coordinator with too many calls.
const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// A bounded number of calls at a time.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    limit: usize,
    calls: Arc<Semaphore>,
}

impl Admission {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, calls: Arc::new(Semaphore::new(limit)) }
    }

    /// A place among the calls, given back when dropped.
    pub(crate) fn admit(&self) -> Result<OwnedSemaphorePermit, Fault> {
        self.calls.clone().try_acquire_owned().map_err(|_| {
            instruments().admission_rejected.add(1, &[KeyValue::new(names::REASON, "max_calls")]);
            let message = format!("{} calls are under way, the most there may be", self.limit);
            Fault::exhausted("TOO_MANY_CALLS", message, BUSY_PAUSE)
        })
    }
}
