use std::time::Duration;

use etcd_client::{LeaseKeepAliveStream, LeaseKeeper};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use crate::session::{Session, SessionError};

/// A lease is renewed so many times in its life.
const RENEWALS: u32 = 3;

/// A lease of etcd over all the sessions of its holder. It outlives a session, because another endpoint can renew it.
///
/// Whatever finds that etcd does not know the lease any more ends with [`SessionError::LeaseLost`]; the next session then
/// takes another.
#[derive(Debug)]
pub struct HeldLease {
    /// What was asked for, then what was granted.
    ttl: Duration,
    id: Option<i64>,
}

/// The renewals of a lease in one session.
#[derive(Debug)]
pub struct Renewals {
    asks: LeaseKeeper,
    answers: LeaseKeepAliveStream,
    ticks: Interval,
}

impl HeldLease {
    /// None yet; one of so many whole seconds will be asked for.
    pub fn new(ttl: Duration) -> Self {
        Self { ttl, id: None }
    }

    /// Longest wait for an answer with which a lease of such a life is renewed in time.
    pub fn longest_wait(ttl: Duration) -> Duration {
        ttl / RENEWALS
    }

    /// The lease held, as far as is known.
    pub fn id(&self) -> Option<i64> {
        self.id
    }

    /// The lease held, or a new one.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn take(&mut self, session: &Session) -> Result<i64, SessionError> {
        if let Some(id) = self.id {
            return Ok(id);
        }
        let seconds = i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX);
        let mut client = session.client.lease_client();
        let granted = session.answer("grant a lease", client.grant(seconds, None)).await?;
        // etcd may grant more than it was asked for, and never less.
        self.ttl = self.ttl.max(Duration::from_secs(u64::try_from(granted.ttl()).unwrap_or_default()));
        self.id = Some(granted.id());
        Ok(granted.id())
    }

    /// Begins to renew the lease of [`HeldLease::take`], and renews it once.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn renewals(&mut self, session: &Session) -> Result<Renewals, SessionError> {
        let Some(id) = self.id else { return Err(session.lease_lost()) };
        let mut client = session.client.lease_client();
        let (asks, answers) = match timeout(session.limit, client.keep_alive(id)).await {
            // The client says so where etcd does not know the lease.
            Ok(Err(etcd_client::Error::LeaseKeepAliveError(_))) => return Err(self.lost(session)),
            Ok(answer) => session.answer("renew the lease", std::future::ready(answer)).await?,
            Err(_) => return Err(session.timed_out("renew the lease")),
        };
        let mut ticks = interval(self.ttl / RENEWALS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        Ok(Renewals { asks, answers, ticks })
    }

    /// Renews it, when [`Renewals::due`] says that it is time.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn renew(&mut self, session: &Session, renewals: &mut Renewals) -> Result<(), SessionError> {
        session.answer("renew the lease", renewals.asks.keep_alive()).await?;
        match session.answer("renew the lease", renewals.answers.message()).await? {
            Some(answer) if answer.ttl() > 0 => Ok(()),
            Some(_) => Err(self.lost(session)),
            None => Err(session.error("renew the lease", "etcd ended the stream")),
        }
    }

    /// Gives it back, which ends everything that is under it.
    ///
    /// # Errors
    /// [`SessionError`]; it is still held then, as far as is known.
    pub async fn give_back(&mut self, session: &Session) -> Result<(), SessionError> {
        let Some(id) = self.id else { return Ok(()) };
        let mut client = session.client.lease_client();
        session.answer("give the lease back", client.revoke(id)).await?;
        self.id = None;
        Ok(())
    }

    fn lost(&mut self, session: &Session) -> SessionError {
        self.id = None;
        session.lease_lost()
    }
}

impl Renewals {
    /// Waits until it is time for the next.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn due(&mut self) {
        self.ticks.tick().await;
    }
}
