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

/// How health checks are made beside the watch, which says nothing of a process that hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probing {
    /// Pause between two checks of a replica that has calls. Default: 1 s.
    pub every: Duration,
    /// How long each may take. Default: 2 s.
    pub limit: Duration,
    /// Checks without an answer in a row after which the replica counts as hung, until it answers one. Default: 3.
    pub misses: u32,
}

impl Default for Probing {
    fn default() -> Self {
        Self { every: Duration::from_secs(1), limit: Duration::from_secs(2), misses: 3 }
    }
}

/// What is known of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// It says that it serves, or has no way to say it.
    Serving,
    /// It says that it does not.
    NotServing,
    /// It cannot be reached.
    Away,
    /// It is connected, has calls and answers no health check.
    Hung,
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
    let probing = shared.probing;
    let has_calls = || shared.in_flight(id, follower).is_some_and(|calls| calls > 0);
    let watching = watch_health(peer.clone(), tell, probing, has_calls);
    let following = async {
        loop {
            let now = *known.borrow_and_update();
            match now {
                Some(Known::Serving) => shared.joined(id, follower, &member, &peer),
                Some(Known::NotServing | Known::Away) => shared.drained(id, follower),
                Some(Known::Hung) => shared.hung(id, follower, &member),
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
async fn watch_health(
    peer: Peer,
    tell: watch::Sender<Option<Known>>,
    probing: Probing,
    has_calls: impl Fn() -> bool,
) {
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
                listen(response.into_inner(), &peer, probing, &has_calls, say).await;
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

/// Passes on what a replica says until it says no more, and checks while it has calls that it would.
async fn listen(
    mut stream: Streaming<HealthCheckResponse>,
    peer: &Peer,
    probing: Probing,
    has_calls: impl Fn() -> bool,
    say: impl Fn(Known),
) {
    let known = |response: &HealthCheckResponse| match response.status() {
        ServingStatus::Serving => Known::Serving,
        _ => Known::NotServing,
    };
    let mut misses = 0;
    loop {
        tokio::select! {
            message = stream.message() => match message {
                Ok::<_, Status>(Some(response)) => {
                    misses = 0;
                    say(known(&response));
                }
                _ => return,
            },
            () = tokio::time::sleep(probing.every) => {
                let is_hung = misses >= probing.misses;
                if !is_hung && !has_calls() {
                    continue;
                }
                match probe(peer, probing.limit).await {
                    Some(answer) => {
                        misses = 0;
                        if let (true, Some(response)) = (is_hung, answer) {
                            say(known(&response));
                        }
                    }
                    None => {
                        misses = (misses + 1).min(probing.misses);
                        if misses == probing.misses {
                            say(Known::Hung);
                        }
                    }
                }
            }
        }
    }
}

/// What a replica answers to a health check, if it can say it; `None` where no answer comes in time.
async fn probe(peer: &Peer, limit: Duration) -> Option<Option<HealthCheckResponse>> {
    let mut client = HealthClient::new(peer.clone());
    let check = client.check(HealthCheckRequest::default());
    match tokio::time::timeout(limit, check).await {
        Ok(answer) => Some(answer.ok().map(tonic::Response::into_inner)),
        Err(_) => None,
    }
}
