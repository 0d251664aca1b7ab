use std::sync::Arc;
use std::time::Duration;

use thicket_discovery::EtcdConfig;
use thicket_discovery::etcd::{Dialer, HeldLease, Session, SessionError, Thread};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::{Stir, StoreError};

/// Holds one lease of etcd, by a thread of its own, until it is closed or dropped. One that is lost is taken anew.
#[derive(Debug)]
pub(super) struct LeaseKeeper {
    held: watch::Receiver<Option<i64>>,
    closing: watch::Sender<bool>,
    goodbye: Duration,
    _thread: Thread,
}

impl LeaseKeeper {
    pub(super) fn start(config: EtcdConfig, stir: Arc<Stir>) -> Result<Self, StoreError> {
        let (held_sender, held) = watch::channel(None);
        let (closing, closing_receiver) = watch::channel(false);
        let goodbye = config.timing.goodbye;
        let lease = HeldLease::new(config.lease_ttl);
        let keeping = Keeping { lease, held: held_sender, stir, closing: closing_receiver };
        let thread = Thread::start("job-lease", move || keeping.run(config))
            .map_err(|error| StoreError::Unavailable { reason: error.to_string() })?;
        Ok(Self { held, closing, goodbye, _thread: thread })
    }

    /// The lease, where one is held as far as is known.
    pub(super) fn held(&self) -> Option<i64> {
        *self.held.borrow()
    }

    /// Gives the lease back, which ends everything that is under it. Waits a limited time.
    pub(super) async fn close(&self) {
        self.closing.send_replace(true);
        let mut held = self.held.clone();
        // The sender goes when the thread's work is done.
        let closed = async { while held.changed().await.is_ok() {} };
        let _ = timeout(self.goodbye, closed).await;
    }
}

/// A lease over all its sessions.
struct Keeping {
    lease: HeldLease,
    held: watch::Sender<Option<i64>>,
    /// Told of a lease that is held: something can be taken under it.
    stir: Arc<Stir>,
    closing: watch::Receiver<bool>,
}

impl Keeping {
    async fn run(mut self, config: EtcdConfig) {
        let limit = config.timing.request.min(HeldLease::longest_wait(config.lease_ttl));
        let mut dialer = Dialer::new(config, limit);
        let mut failing = false;
        loop {
            let began = Instant::now();
            let ended = match dialer.dial().await {
                Ok(session) => self.hold(&session, &mut failing).await,
                Err(error) => Err(error),
            };
            let Err(error) = ended else { return };
            if matches!(error, SessionError::LeaseLost { .. }) {
                tracing::warn!("the lease of this coordinator's parts was lost, another is taken");
                self.held.send_replace(None);
            }
            if !std::mem::replace(&mut failing, true) {
                tracing::warn!(%error, "the lease of this coordinator's parts cannot be renewed");
            }
            if self.is_closing() {
                return;
            }
            tokio::select! {
                () = dialer.wait(began.elapsed()) => {}
                _ = self.closing.changed() => {}
            }
        }
    }

    /// Holds the lease until the session fails, or well until it is to be closed.
    async fn hold(&mut self, session: &Session, failing: &mut bool) -> Result<(), SessionError> {
        if self.is_closing() {
            return self.leave(session).await;
        }
        let lease = self.lease.take(session).await?;
        let mut renewals = self.lease.renewals(session).await?;
        if self.held.send_replace(Some(lease)) != Some(lease) {
            self.stir.stir();
        }
        if std::mem::replace(failing, false) {
            tracing::info!(
                endpoint = session.endpoint,
                "the lease of this coordinator's parts is renewed again"
            );
        }
        loop {
            tokio::select! {
                changed = self.closing.changed() => {
                    // The owner is gone without a word: the lease runs out.
                    if changed.is_err() {
                        return Ok(());
                    }
                    if self.is_closing() {
                        return self.leave(session).await;
                    }
                }
                () = renewals.due() => self.lease.renew(session, &mut renewals).await?,
            }
        }
    }

    async fn leave(&mut self, session: &Session) -> Result<(), SessionError> {
        self.lease.give_back(session).await?;
        self.held.send_replace(None);
        Ok(())
    }

    fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }
}
