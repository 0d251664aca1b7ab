use std::sync::Arc;

use thicket_runtime::Role;
use tokio::sync::watch;

use crate::config::EtcdConfig;
use crate::follow::{self, Publisher};
use crate::link::{Connectivity, Link};
use crate::thread::Thread;
use crate::{Address, DiscoveryError, Members, resolve};

/// Where the members are learned from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Every process that registers in etcd.
    Etcd(Box<EtcdConfig>),
    /// A fixed list. A host name is resolved again every [`crate::RESOLVE_INTERVAL`], and is as many members as it has
    /// addresses; called over TLS it stays one member, because certificates name it.
    Static(Vec<StaticPeer>),
}

/// A member that does not register: only its role and address are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticPeer {
    /// What it does.
    pub role: Role,
    /// Where it is called.
    pub address: Address,
    /// False where it answers reads alone, as a read replica of a gallery does.
    pub writable: bool,
}

/// The members of the cluster, followed by a thread of its own until this is dropped.
///
/// While the source is away the last known members stay, and [`Directory::link`] says so.
#[derive(Debug)]
pub struct Directory {
    members: watch::Receiver<Arc<Members>>,
    known: watch::Receiver<bool>,
    link: watch::Receiver<Link>,
    _thread: Thread,
}

impl Directory {
    /// Begins to follow the members. Returns at once, with none known; the source need not be there.
    ///
    /// # Errors
    /// [`DiscoveryError::Config`] for settings that do not do, [`DiscoveryError::Thread`].
    pub fn start(source: Source) -> Result<Self, DiscoveryError> {
        let borne = match &source {
            Source::Etcd(config) => {
                config.check()?;
                config.endpoints.len()
            }
            Source::Static(_) => 0,
        };
        let (link, link_receiver) = Connectivity::new("members", borne);
        let (members, members_receiver) = watch::channel(Arc::default());
        let (known, known_receiver) = watch::channel(false);
        let publisher = Publisher { members, known, link };
        let thread = Thread::start("discovery", move || async move {
            match source {
                Source::Etcd(config) => follow::follow(*config, publisher).await,
                Source::Static(peers) => resolve::follow(peers, publisher, resolve::by_system).await,
            }
        })?;
        Ok(Self { members: members_receiver, known: known_receiver, link: link_receiver, _thread: thread })
    }

    /// The members known now.
    pub fn members(&self) -> Arc<Members> {
        self.members.borrow().clone()
    }

    /// Follows the members: it changes when they do, and at nothing else.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Members>> {
        self.members.clone()
    }

    /// Waits until the members are known for the first time, which may be that there are none. Has no limit of its own.
    ///
    /// # Errors
    /// [`DiscoveryError::Stopped`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn known(&self) -> Result<(), DiscoveryError> {
        let mut known = self.known.clone();
        known.wait_for(|known| *known).await.map(drop).map_err(|_| DiscoveryError::Stopped)
    }

    /// Whether the members are up to date; if not, they are the last that were known.
    pub fn connected(&self) -> bool {
        self.link.borrow().is_up()
    }

    /// [`Directory::connected`] with endpoint or reason, to follow.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }
}
