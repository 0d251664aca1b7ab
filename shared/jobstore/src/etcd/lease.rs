use std::time::Duration;

use etcd_client::{LeaseKeepAliveStream, LeaseKeeper as Renewals};
use thicket_discovery::EtcdConfig;
use thicket_discovery::etcd::{Dialer, Session, SessionError, Thread};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::StoreError;

/// The lease is renewed so many times in its life.
const RENEWALS: u32 = 3;

/// Holds one lease of etcd, by a thread of its own, until it is closed or dropped. One that is lost is taken anew.
#[derive(Debug)]
pub(super) struct LeaseKeeper {
    held: watch::Receiver<Option<i64>>,
    closing: watch::Sender<bool>,
    goodbye: Duration,
    _thread: Thread,
}

impl LeaseKeeper {
    pub(super) fn start(config: EtcdConfig) -> Result<Self, StoreError> {
        let (held_sender, held) = watch::channel(None);
        let (closing, closing_receiver) = watch::channel(false);
        let goodbye = config.timing.goodbye;
        let keeping =
            Keeping { ttl: config.lease_ttl, lease: None, held: held_sender, closing: closing_receiver };
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
    ttl: Duration,
    /// Outlives a session, because another endpoint can renew it.
    lease: Option<i64>,
    held: watch::Sender<Option<i64>>,
    closing: watch::Receiver<bool>,
}

impl Keeping {
    async fn run(mut self, config: EtcdConfig) {
        let limit = config.timing.request.min(config.lease_ttl / RENEWALS);
        let mut dialer = Dialer::new(config, limit);
        let mut failing = false;
        loop {
            let began = Instant::now();
            let ended = match dialer.dial().await {
                Ok(session) => self.hold(&session, &mut failing).await,
                Err(error) => Err(error),
            };
            let Err(error) = ended else { return };
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
        let lease = self.lease(session).await?;
        let (mut renewals, mut answers) = self.renewals(session, lease).await?;
        self.held.send_replace(Some(lease));
        if std::mem::replace(failing, false) {
            tracing::info!(
                endpoint = session.endpoint,
                "the lease of this coordinator's parts is renewed again"
            );
        }
        let mut ticks = interval(self.ttl / RENEWALS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
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
                _ = ticks.tick() => self.renew(session, &mut renewals, &mut answers).await?,
            }
        }
    }

    async fn lease(&mut self, session: &Session) -> Result<i64, SessionError> {
        if let Some(lease) = self.lease {
            return Ok(lease);
        }
        let seconds = i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX);
        let mut client = session.client.lease_client();
        let granted = session.answer("grant a lease", client.grant(seconds, None)).await?;
        // etcd may grant more than it was asked for, and never less.
        self.ttl = self.ttl.max(Duration::from_secs(u64::try_from(granted.ttl()).unwrap_or_default()));
        self.lease = Some(granted.id());
        Ok(granted.id())
    }

    /// Begins to renew the lease, and renews it once.
    async fn renewals(
        &mut self,
        session: &Session,
        lease: i64,
    ) -> Result<(Renewals, LeaseKeepAliveStream), SessionError> {
        let mut client = session.client.lease_client();
        match timeout(session.limit, client.keep_alive(lease)).await {
            // The client says so where etcd does not know the lease.
            Ok(Err(etcd_client::Error::LeaseKeepAliveError(_))) => Err(self.lost(session)),
            Ok(answer) => session.answer("renew the lease", std::future::ready(answer)).await,
            Err(_) => Err(session.timed_out("renew the lease")),
        }
    }

    async fn renew(
        &mut self,
        session: &Session,
        renewals: &mut Renewals,
        answers: &mut LeaseKeepAliveStream,
    ) -> Result<(), SessionError> {
        session.answer("renew the lease", renewals.keep_alive()).await?;
        match session.answer("renew the lease", answers.message()).await? {
            Some(answer) if answer.ttl() > 0 => Ok(()),
            Some(_) => Err(self.lost(session)),
            None => Err(session.error("renew the lease", "etcd ended the stream")),
        }
    }

    fn lost(&mut self, session: &Session) -> SessionError {
        tracing::warn!("the lease of this coordinator's parts was lost, another is taken");
        self.lease = None;
        self.held.send_replace(None);
        session.lease_lost()
    }

    async fn leave(&mut self, session: &Session) -> Result<(), SessionError> {
        if let Some(lease) = self.lease {
            let mut client = session.client.lease_client();
            session.answer("give the lease back", client.revoke(lease)).await?;
            self.lease = None;
        }
        self.held.send_replace(None);
        Ok(())
    }

    fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }
}
