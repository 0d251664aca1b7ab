use std::sync::Arc;
use std::time::{Duration, Instant};

use thicket_discovery::Member;
use thicket_dispatch::ReplicaId;
use thicket_runtime::Peer;
use tokio::sync::watch;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::upstream::{Follower, Shared};

/// Pauses between attempts to reach a replica.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How long a replica that serves and is no member any more may take to say that it is draining; else it is lost.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long what it has may take then.
const DRAIN: Duration = Duration::from_secs(60);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(250);

/// What is known of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// It says that it serves, or has no way to say it.
    Serving,
    /// It says that it does not.
    NotServing,
    /// It cannot be reached.
    Away,
}

/// Watches a member's health for as long as it is one, and sees to what it has afterwards.
pub(crate) async fn follow(
    shared: Arc<Shared>,
    id: ReplicaId,
    follower: Follower,
    member: Member,
    peer: Peer,
    mut gone: watch::Receiver<bool>,
) {
    let (tell, mut known) = watch::channel(None);
    let watching = watch_health(peer.clone(), tell);
    let following = async {
        loop {
            let now = *known.borrow_and_update();
            match now {
                Some(Known::Serving) => shared.joined(id, follower, &member, &peer),
                Some(Known::NotServing | Known::Away) => shared.drained(id, follower),
                None => {}
            }
            tokio::select! {
                changed = known.changed() => if changed.is_err() { return None },
                _ = gone.wait_for(|gone| *gone) => return now,
            }
        }
    };
    tokio::pin!(watching);
    let last = tokio::select! {
        last = following => last,
        () = &mut watching => None,
    };
    shared.drained(id, follower);
    if last == Some(Known::Serving) {
        // A member that drains takes its name off the list first; one that is dead or cut off says nothing more.
        let says_so = known.wait_for(|now| *now == Some(Known::NotServing));
        let drains = async {
            tokio::select! {
                said = says_so => said.is_ok(),
                () = &mut watching => false,
            }
        };
        if !tokio::time::timeout(FAREWELL, drains).await.unwrap_or(false) {
            return shared.left(id, follower);
        }
    }
    let finished = async {
        while shared.in_flight(id, follower).is_some_and(|questions| questions > 0) {
            tokio::time::sleep(LOOK).await;
        }
    };
    // Cut off or not, it leaves.
    let _ = tokio::time::timeout(DRAIN, finished).await;
    shared.left(id, follower);
}

/// Follows what a replica says of itself, for ever.
async fn watch_health(peer: Peer, tell: watch::Sender<Option<Known>>) {
    let say = |known| {
        tell.send_if_modified(|before| {
            let modified = *before != Some(known);
            *before = Some(known);
            modified
        });
    };
    let mut pause = PAUSE.0;
    loop {
        match HealthClient::new(peer.clone()).watch(HealthCheckRequest::default()).await {
            Ok(response) => {
                let began = Instant::now();
                listen(response.into_inner(), say).await;
                // Connections are closed when they grow old, which says nothing of the replica.
                if began.elapsed() > PAUSE.1 {
                    pause = PAUSE.0;
                    continue;
                }
                say(Known::Away);
            }
            // A server without health checks: it has just answered, so it is there.
            Err(status) if status.code() == Code::Unimplemented => say(Known::Serving),
            Err(_) => say(Known::Away),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

async fn listen(mut stream: Streaming<HealthCheckResponse>, say: impl Fn(Known)) {
    while let Ok::<_, Status>(Some(response)) = stream.message().await {
        say(match response.status() {
            ServingStatus::Serving => Known::Serving,
            _ => Known::NotServing,
        });
    }
}
