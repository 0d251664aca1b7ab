use std::time::Duration;

use thicket_runtime::{Health, Probe, Snapshot, State};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::config::EtcdConfig;
use crate::{DiscoveryError, Member, Registration};

/// How often a role is asked what it would say of itself now.
const REFRESH: Duration = Duration::from_secs(1);

/// A role that will register when it serves.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// Where etcd is.
    pub etcd: EtcdConfig,
    /// What is known of this process before it serves.
    pub member: Member,
}

/// A role that registers with its health: from its start on, until it drains. Dropping this leaves the registration to its
/// lease, as the death of the process would; call [`Announcer::close`].
#[derive(Debug)]
pub struct Announcer {
    close: oneshot::Sender<()>,
    task: JoinHandle<Result<(), DiscoveryError>>,
}

impl Announcement {
    /// Begins to follow the role's health. `describe` fills in what the role has now: its model, adapters, collections. The
    /// role is not ready before it has registered once. Must be called inside a tokio runtime.
    pub fn start(self, health: &Health, describe: impl Fn(&mut Member) + Send + 'static) -> Announcer {
        let (close, closed) = oneshot::channel();
        let announced = announce(self, health.clone(), describe, closed);
        Announcer { close, task: tokio::spawn(announced) }
    }
}

impl Announcer {
    /// Takes the role out of the members, where it still is one, and gives its lease back. What goes wrong is logged: the
    /// lease runs out by itself.
    pub async fn close(self) {
        // A task that has ended needs no word.
        let _ = self.close.send(());
        match self.task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the registration was not taken out"),
            Err(error) => tracing::error!(%error, "the registration's task failed"),
        }
    }
}

async fn announce(
    announcement: Announcement,
    health: Health,
    describe: impl Fn(&mut Member),
    mut closed: oneshot::Receiver<()>,
) -> Result<(), DiscoveryError> {
    let Announcement { etcd, mut member } = announcement;
    let ready = health.check("registration", Probe::Ready);
    let mut state = health.subscribe();
    tokio::select! {
        () = beyond(&mut state, State::Starting) => {}
        _ = &mut closed => return Ok(()),
    }
    describe(&mut member);
    let registration = Registration::start(&etcd, member.clone())?;
    let mut registered = false;
    let mut refresh = tokio::time::interval(REFRESH);
    let drains = beyond(&mut state, State::Serving);
    tokio::pin!(drains);
    loop {
        tokio::select! {
            done = registration.registered(), if !registered => {
                done?;
                registered = true;
                ready.pass();
            }
            _ = refresh.tick() => update(&registration, &mut member, &describe),
            () = &mut drains => break,
            _ = &mut closed => return registration.close().await,
        }
    }
    if let Err(error) = registration.withdraw().await {
        tracing::warn!(%error, "others may still call this role while it drains");
    }
    // Closed, or dropped by a role that has ended.
    let _ = closed.await;
    registration.close().await
}

/// Waits until the role is in another state.
async fn beyond(state: &mut watch::Receiver<Snapshot>, left: State) {
    // An error means that the role is gone, which is beyond every state.
    let _ = state.wait_for(|now| now.state != left).await;
}

fn update(registration: &Registration, member: &mut Member, describe: &impl Fn(&mut Member)) {
    let mut next = member.clone();
    describe(&mut next);
    if next == *member {
        return;
    }
    if let Err(error) = registration.update(next.clone()) {
        tracing::warn!(%error, "what this role has cannot be registered; the others know what it had");
    }
    // Even then: it would be refused again every time.
    *member = next;
}
