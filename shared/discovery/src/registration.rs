use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::config::EtcdConfig;
use crate::lease::{self, Wanted};
use crate::link::{Connectivity, Link};
use crate::thread::Thread;
use crate::{DiscoveryError, Member};

/// How a registration stands, as far as it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Not in etcd yet, or not any more since its lease was lost.
    Waiting,
    /// In etcd, under a lease that is kept alive.
    Registered,
    /// Another process has registered under the same role and instance; the later one counts. It comes back when the
    /// other is gone.
    Superseded,
    /// Taken out; the lease is kept.
    Withdrawn,
    /// Taken out, and the lease given back.
    Closed,
}

/// This process among the members, kept by a thread of its own.
///
/// A lease that is lost is taken anew, and a key that vanishes is put again. Dropping this stops the thread at once and
/// says nothing to etcd, as the death of the process would: the registration lasts for the rest of its lease. Call
/// [`Registration::close`] to leave at once.
#[derive(Debug)]
pub struct Registration {
    wanted: watch::Sender<Wanted>,
    standing: watch::Receiver<Standing>,
    link: watch::Receiver<Link>,
    goodbye: Duration,
    _thread: Thread,
}

impl Registration {
    /// Begins to register. Returns at once; etcd need not be there.
    ///
    /// # Errors
    /// [`DiscoveryError::Config`] and [`DiscoveryError::Member`] for settings and fields that do not do,
    /// [`DiscoveryError::Thread`].
    pub fn start(config: &EtcdConfig, member: Member) -> Result<Self, DiscoveryError> {
        config.check()?;
        let (wanted, wanted_receiver) = watch::channel(Wanted::new(member)?);
        let (standing, standing_receiver) = watch::channel(Standing::Waiting);
        let (link, link_receiver) = Connectivity::new("registration", config.endpoints.len());
        let work = {
            let config = config.clone();
            move || lease::keep(config, wanted_receiver, standing, link)
        };
        Ok(Self {
            wanted,
            standing: standing_receiver,
            link: link_receiver,
            goodbye: config.timing.goodbye,
            _thread: Thread::start("discovery-lease", work)?,
        })
    }

    /// Changes what is registered. Returns at once: it is put as soon as etcd is there.
    ///
    /// # Errors
    /// [`DiscoveryError::Member`] for a field out of its limits, [`DiscoveryError::Renamed`] for another role or instance;
    /// what was registered stays.
    pub fn update(&self, member: Member) -> Result<(), DiscoveryError> {
        let next = Wanted::new(member)?;
        let mut renamed = None;
        self.wanted.send_if_modified(|wanted| {
            if wanted.name() != next.name() {
                renamed = Some(wanted.name());
                return false;
            }
            wanted.replace(next.clone())
        });
        match renamed {
            Some(registered) => Err(DiscoveryError::Renamed { registered, asked: next.name() }),
            None => Ok(()),
        }
    }

    /// How it stands now, to follow.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Whether etcd is there, to follow.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// Waits until it is in etcd for the first time. Has no limit of its own.
    ///
    /// # Errors
    /// [`DiscoveryError::Stopped`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn registered(&self) -> Result<(), DiscoveryError> {
        let mut standing = self.standing.clone();
        let registered = standing.wait_for(|standing| *standing == Standing::Registered).await;
        registered.map(drop).map_err(|_| DiscoveryError::Stopped)
    }

    /// Takes it out of the members and keeps the lease: the beginning of a drain. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`DiscoveryError::Timeout`] where etcd did not confirm it within [`crate::Timing::goodbye`]; it is tried further.
    ///
    /// # Cancel safety
    /// Once called it goes on, awaited or not.
    pub async fn withdraw(&self) -> Result<(), DiscoveryError> {
        self.wanted.send_modify(|wanted| wanted.listed = false);
        self.reach("withdrawing from discovery", |standing| {
            matches!(standing, Standing::Withdrawn | Standing::Closed)
        })
        .await
    }

    /// Takes it out of the members, gives the lease back and ends the thread. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`DiscoveryError::Timeout`] where etcd did not confirm it within [`crate::Timing::goodbye`]: the thread is ended
    /// all the same, and etcd forgets the registration when its lease runs out.
    pub async fn close(self) -> Result<(), DiscoveryError> {
        self.wanted.send_modify(|wanted| {
            wanted.listed = false;
            wanted.closing = true;
        });
        self.reach("closing the registration", |standing| standing == Standing::Closed).await
    }

    async fn reach(
        &self,
        what: &'static str,
        reached: impl Fn(Standing) -> bool,
    ) -> Result<(), DiscoveryError> {
        let mut standing = self.standing.clone();
        match timeout(self.goodbye, standing.wait_for(|standing| reached(*standing))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(DiscoveryError::Stopped),
            Err(_) => Err(DiscoveryError::Timeout { what, limit: self.goodbye }),
        }
    }
}
