use std::sync::Arc;
use std::time::Duration;

use thicket_discovery::EtcdConfig;
use thicket_discovery::etcd::{Dialer, Session, SessionError, Thread, Watching};
use tokio::sync::watch;
use tokio::time::Instant;

use super::keys::Keys;
use crate::{Stir, StoreError};

/// Stirs whenever any process has changed something about jobs, by a watch on a thread of its own. What happened while
/// there was no watch is covered by a stir when there is one again.
#[derive(Debug)]
pub(super) struct Watcher {
    follows: watch::Receiver<bool>,
    _thread: Thread,
}

impl Watcher {
    pub(super) fn start(config: EtcdConfig, keys: Keys, stir: Arc<Stir>) -> Result<Self, StoreError> {
        let (sender, follows) = watch::channel(false);
        let thread = Thread::start("job-watch", move || follow(config, keys, stir, sender))
            .map_err(|error| StoreError::Unavailable { reason: error.to_string() })?;
        Ok(Self { follows, _thread: thread })
    }

    /// Whether there is a watch, as far as is known.
    pub(super) fn follows(&self) -> bool {
        *self.follows.borrow()
    }
}

/// Watches for ever.
async fn follow(config: EtcdConfig, keys: Keys, stir: Arc<Stir>, follows: watch::Sender<bool>) {
    let silence = config.timing.silence;
    let mut dialer = Dialer::new(config.clone(), config.timing.request);
    loop {
        let began = Instant::now();
        let error = match dialer.dial().await {
            Ok(session) => until_it_ends(&session, &keys, &stir, &follows, silence).await,
            Err(error) => error,
        };
        if follows.send_replace(false) {
            tracing::warn!(%error, "jobs are not watched, they are looked at again and again instead");
            stir.stir();
        }
        dialer.wait(began.elapsed()).await;
    }
}

async fn until_it_ends(
    session: &Session,
    keys: &Keys,
    stir: &Stir,
    follows: &watch::Sender<bool>,
    silence: Duration,
) -> SessionError {
    let mut watching = match Watching::begin(session, "watch jobs", keys.range(), 0, silence).await {
        Ok(watching) => watching,
        Err(error) => return error,
    };
    loop {
        let response = match watching.next().await {
            Ok(response) => response,
            Err(error) => return error,
        };
        if response.created() {
            follows.send_replace(true);
            tracing::debug!(endpoint = session.endpoint, "jobs are watched");
        }
        if response.created() || !response.events().is_empty() {
            stir.stir();
        }
    }
}
