//! Who is in the cluster: finds the members and registers this process as one. The crate that knows how etcd is
//! reached; [`etcd`] is for others that keep something there.
//!
//! A member registers under a lease ([`Registration`]) and follows the others ([`Directory`]). Each works on a thread and a
//! runtime of its own, so that a busy process neither loses its lease nor misses who left. While etcd is away everyone
//! goes on with the last known members; [`Link`] says so.
//!
//! ```no_run
//! # use thicket_discovery::*;
//! # use thicket_runtime::Role;
//! # async fn role(etcd: EtcdConfig) -> Result<(), DiscoveryError> {
//! let address = Address::parse("http://10.0.0.7:7702")?;
//! let member = Member::new(Role::Gallery, InstanceId::random(), address);
//! let registration = Registration::start(&etcd, member)?;
//! let directory = Directory::start(Source::Etcd(Box::new(etcd)))?;
//! directory.known().await?;
//! for answer in directory.members().of(Role::Answer) {
//!     println!("{}", answer.address);
//! }
//! registration.withdraw().await?; // draining: nobody is sent here any more
//! registration.close().await
//! # }
//! ```

mod address;
mod announcement;
mod args;
mod backoff;
mod config;
mod directory;
mod follow;
mod held_lease;
mod keys;
mod lease;
mod link;
mod member;
mod members;
mod registration;
mod registrations;
mod resolve;
mod session;
mod thread;
mod watching;

pub use address::{Address, AddressError};
pub use announcement::{Announcement, Announcer};
pub use args::{ArgsError, DEFAULT_LEASE_TTL, DiscoveryArgs};
pub use config::{ConfigError, EtcdConfig, Login, MAX_LEASE_TTL, MIN_LEASE_TTL, Timing, TlsFiles};
pub use directory::{Directory, Source, StaticPeer};
pub use keys::{DEFAULT_PREFIX, MAX_PREFIX, Prefix, PrefixError};
pub use link::Link;
pub use member::{
    InstanceId, MAX_CAPACITY, MAX_FINGERPRINT_BYTES, MAX_INSTANCE_BYTES, MAX_NAME_BYTES, MAX_NAMES,
    MAX_VALUE_BYTES, Member, MemberError, PROTOCOL,
};
pub use members::Members;
pub use registration::{Registration, Standing};
pub use registrations::MAX_REGISTRATIONS;
pub use resolve::RESOLVE_INTERVAL;

/// Connections to etcd and what is held there, for what else is kept there.
pub mod etcd {
    pub use crate::held_lease::{HeldLease, Renewals};
    pub use crate::session::{Dialer, Session, SessionError};
    pub use crate::thread::Thread;
    pub use crate::watching::Watching;
}

use std::time::Duration;

/// Why discovery cannot be started or did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The settings do not do.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The member to register is out of its limits.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// An address cannot be used.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A registration keeps its role and instance for life.
    #[error("registration {registered} cannot become {asked}")]
    Renamed {
        /// Role and instance registered.
        registered: String,
        /// Role and instance asked for.
        asked: String,
    },
    /// The system gives no thread.
    #[error("discovery thread cannot start: {0}")]
    Thread(#[source] std::io::Error),
    /// It was not done in time: etcd is away.
    #[error("{what} took longer than {limit:?}")]
    Timeout {
        /// What was asked for.
        what: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// The thread that does the work is gone.
    #[error("discovery has stopped")]
    Stopped,
}

/// Most characters of something foreign in a message.
const SHOWN: usize = 120;

/// A foreign text for one line of a message: escaped and cut short.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push_str("...");
    }
    shown
}
