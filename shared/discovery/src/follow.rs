use std::sync::Arc;
use std::time::Duration;

use etcd_client::{GetOptions, WatchResponse};
use opentelemetry::KeyValue;
use thicket_runtime::Role;
use thicket_telemetry::{instruments, names};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::EtcdConfig;
use crate::link::Connectivity;
use crate::members::Members;
use crate::registrations::{Complaint, Registrations};
use crate::session::{Dialer, Session, SessionError};
use crate::watching::{MAX_MESSAGE, Watching};

/// Registrations of one page of a listing.
const PAGE: i64 = 64;

/// Where what is known of the members goes.
#[derive(Debug)]
pub(crate) struct Publisher {
    pub(crate) members: watch::Sender<Arc<Members>>,
    /// Whether the members were known once.
    pub(crate) known: watch::Sender<bool>,
    pub(crate) link: Connectivity,
}

impl Publisher {
    /// Tells what is known now; where it is what was known, nobody is woken.
    pub(crate) fn publish(&self, now: Arc<Members>) {
        let changed = self.members.send_if_modified(|members| {
            let changed = *members != now;
            *members = now.clone();
            changed
        });
        let first = !self.known.send_replace(true);
        if changed || first {
            for role in Role::ALL {
                let count = now.of(role).len() as u64;
                instruments().discovery_members.record(count, &[KeyValue::new(names::ROLE, role.name())]);
            }
        }
    }
}

/// Follows the members in etcd for ever. Every session begins with a listing, so that nothing that happened in between,
/// a compaction included, can be missed.
pub(crate) async fn follow(config: EtcdConfig, mut publisher: Publisher) {
    let mut registrations = Registrations::new(config.prefix.clone());
    let (prefix, silence) = (config.prefix.members(), config.timing.silence);
    let mut dialer = Dialer::new(config.clone(), config.timing.request);
    loop {
        let began = Instant::now();
        let ended = match dialer.dial().await {
            Ok(session) => {
                let mut following =
                    Following { session: &session, prefix: &prefix, registrations: &mut registrations };
                following.until_it_ends(silence, &mut publisher).await
            }
            Err(error) => error,
        };
        publisher.link.failed(&ended.to_string());
        dialer.wait(began.elapsed()).await;
    }
}

/// The members as one session sees them.
struct Following<'a> {
    session: &'a Session,
    prefix: &'a str,
    registrations: &'a mut Registrations,
}

impl Following<'_> {
    async fn until_it_ends(&mut self, silence: Duration, publisher: &mut Publisher) -> SessionError {
        let watching = async {
            let revision = self.list().await?;
            publisher.publish(self.registrations.members());
            let range = (self.prefix, end_of(self.prefix));
            Watching::begin(self.session, "watch members", range, revision + 1, silence).await
        };
        let mut watching = match watching.await {
            Ok(watching) => watching,
            Err(error) => return error,
        };
        loop {
            let response = match watching.next().await {
                Ok(response) => response,
                Err(error) => return error,
            };
            if response.created() {
                publisher.link.up(&self.session.endpoint);
            }
            if self.apply(&response) {
                publisher.publish(self.registrations.members());
            }
        }
    }

    /// Reads all registrations, page by page of one revision, and gives back that revision.
    async fn list(&mut self) -> Result<i64, SessionError> {
        let mut client = self.session.client.kv_client().max_decoding_message_size(MAX_MESSAGE);
        let (mut from, mut revision) = (self.prefix.as_bytes().to_vec(), 0);
        self.registrations.relist();
        loop {
            let page =
                GetOptions::new().with_range(end_of(self.prefix)).with_limit(PAGE).with_revision(revision);
            let page = self.session.answer("list members", client.get(from, Some(page))).await?;
            if revision == 0 {
                let header = page.header().ok_or_else(|| self.session.error("list members", "no header"))?;
                revision = header.revision();
            }
            for entry in page.kvs() {
                complain(self.registrations.put(entry.key(), entry.value(), entry.mod_revision()));
            }
            match page.kvs().last() {
                Some(last) if page.more() && !self.registrations.has_overflowed() => {
                    from = [last.key(), b"\0"].concat();
                }
                _ => break,
            }
        }
        self.registrations.listed();
        Ok(revision)
    }

    /// Takes what happened; says whether anything did.
    fn apply(&mut self, response: &WatchResponse) -> bool {
        for entry in response.events().iter().filter_map(etcd_client::Event::kv) {
            // A key that exists has been written at least once. The type of the event is not asked for, because the client
            // panics at one that it does not know.
            if entry.version() > 0 {
                complain(self.registrations.put(entry.key(), entry.value(), entry.mod_revision()));
            } else {
                self.registrations.delete(entry.key());
            }
        }
        !response.events().is_empty()
    }
}

/// The first key after all that begin with a prefix, which ends in a slash.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

fn complain(complaint: Option<Complaint>) {
    let Some(Complaint { key, cause }) = complaint else { return };
    tracing::warn!(key, %cause, "a registration is ignored");
    instruments().discovery_ignored.add(1, &[KeyValue::new(names::REASON, cause.reason())]);
}
