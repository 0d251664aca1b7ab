use std::time::Duration;

use etcd_client::Client;
use tokio::time::timeout;

use crate::backoff::Backoff;
use crate::config::{ConfigError, EtcdConfig};
use crate::shown;

/// Why a session with etcd ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The settings do not do, or a file that they name.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No answer in time. What was asked for may have been done.
    #[error("{endpoint}: {what}: no answer in {limit:?}")]
    Timeout {
        /// Who was asked.
        endpoint: String,
        /// For what.
        what: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// An answer that is none. What was asked for may have been done.
    #[error("{endpoint}: {what}: {reason}")]
    Etcd {
        /// Who was asked.
        endpoint: String,
        /// For what.
        what: &'static str,
        /// Why there is no answer, in one line.
        reason: String,
    },
    /// etcd does not know the lease any more.
    #[error("{endpoint}: the lease is gone")]
    LeaseLost {
        /// Who said so.
        endpoint: String,
    },
}

/// Makes sessions with one endpoint after the other, starting with any.
#[derive(Debug)]
pub struct Dialer {
    config: EtcdConfig,
    next: usize,
    backoff: Backoff,
    limit: Duration,
}

/// A connection to one endpoint, whose every answer is awaited for a limited time.
#[derive(Clone)]
pub struct Session {
    /// Makes the calls.
    pub client: Client,
    /// Where to.
    pub endpoint: String,
    /// Longest wait for an answer.
    pub limit: Duration,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("endpoint", &self.endpoint).field("limit", &self.limit).finish()
    }
}

impl Dialer {
    /// Sessions that wait at most `limit` for an answer.
    pub fn new(config: EtcdConfig, limit: Duration) -> Self {
        let mut backoff = Backoff::new(config.timing.first_wait, config.timing.longest_wait);
        let next = backoff.pick(config.endpoints.len().max(1));
        Self { config, next, backoff, limit }
    }

    /// A session with the next endpoint. Without a user this makes no call yet.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn dial(&mut self) -> Result<Session, SessionError> {
        let options = self.config.options()?;
        let count = self.config.endpoints.len();
        let Some(endpoint) = self.config.endpoints.get(self.next % count.max(1)) else {
            return Err(ConfigError::NoEndpoint.into());
        };
        let endpoint = endpoint.to_string();
        self.next = (self.next + 1) % count;
        let connecting = Client::connect([&endpoint], Some(options));
        let client = bounded(&endpoint, "connect", self.limit, connecting).await?;
        Ok(Session { client, endpoint, limit: self.limit })
    }

    /// Waits before the next attempt, after a session that lasted so long.
    pub async fn wait(&mut self, lasted: Duration) {
        tokio::time::sleep(self.backoff.after(lasted)).await;
    }
}

impl Session {
    /// The answer to a call, or why there is none.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn answer<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, SessionError> {
        bounded(&self.endpoint, what, self.limit, call).await
    }

    /// An answer that is none.
    pub fn error(&self, what: &'static str, reason: &str) -> SessionError {
        SessionError::Etcd { endpoint: self.endpoint.clone(), what, reason: shown(reason) }
    }

    /// No answer in time.
    pub fn timed_out(&self, what: &'static str) -> SessionError {
        SessionError::Timeout { endpoint: self.endpoint.clone(), what, limit: self.limit }
    }

    /// A lease that is gone.
    pub fn lease_lost(&self) -> SessionError {
        SessionError::LeaseLost { endpoint: self.endpoint.clone() }
    }
}

async fn bounded<T>(
    endpoint: &str,
    what: &'static str,
    limit: Duration,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, SessionError> {
    match timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            Err(SessionError::Etcd { endpoint: endpoint.to_owned(), what, reason: reason(&error) })
        }
        Err(_) => Err(SessionError::Timeout { endpoint: endpoint.to_owned(), what, limit }),
    }
}

/// One line, with the causes that tonic keeps to itself.
fn reason(error: &etcd_client::Error) -> String {
    let reason = match error {
        etcd_client::Error::GRpcStatus(status) => {
            let cause = std::error::Error::source(status).map(causes);
            cause
                .map_or_else(|| status.message().to_owned(), |cause| format!("{}: {cause}", status.message()))
        }
        etcd_client::Error::TransportError(error) => causes(error),
        error => error.to_string(),
    };
    shown(&reason)
}

/// An error and what caused it.
pub(crate) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut causes = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        causes += &format!(": {inner}");
        cause = inner.source();
    }
    causes
}
