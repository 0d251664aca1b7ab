use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use parking_lot::Mutex;
use thicket_discovery::{Address, Member, Members};
use thicket_dispatch::{
    Action, AfterFailure, Dispatcher, ImageKey, Kind, Lane, ReplicaId, ReplicaState, Ticket, Urgency, Why,
};
use thicket_runtime::{Deadline, Fault, Peer, PeerError, Role};
use thicket_telemetry::{instruments, names};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::Probing;
use crate::replica;

/// How long calls wait for a replica to appear where none serves.
const PATIENCE: Duration = Duration::from_secs(2);

/// How replicas are called.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Queues, retries, affinity.
    pub dispatch: thicket_dispatch::Settings,
    /// How long calls wait for a replica to appear where none serves. Default: 2 s.
    pub patience: Duration,
    /// How replicas that hang are found out.
    pub probing: Probing,
    /// Bearer token sent with every call; `None` sends none.
    pub token: Option<String>,
}

impl Default for Settings {
    /// The dispatcher's, but that up to 64 questions may go before one that waits, to where their images are: simulated, four
    /// busy replicas answer 38 questions a second instead of 24, and the slowest in a hundred wait 25 s instead of 116 s.
    fn default() -> Self {
        let dispatch = thicket_dispatch::Settings { pass_over: 64, ..thicket_dispatch::Settings::default() };
        Self { dispatch, patience: PATIENCE, probing: Probing::default(), token: None }
    }
}

/// Why an upstream cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The dispatcher's settings.
    #[error(transparent)]
    Settings(#[from] thicket_dispatch::SettingsError),
    /// The token.
    #[error(transparent)]
    Peer(#[from] PeerError),
}

/// What a call is to the dispatcher.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// Where it waits.
    pub lane: Lane,
    /// Who waits for it.
    pub urgency: Urgency,
    /// The image it is about, whose replica it should go to.
    pub image: Option<ImageKey>,
    /// What it is compared with to call it late.
    pub kind: Kind,
}

impl Default for Ask {
    /// Somebody waits for it, and any replica will do.
    fn default() -> Self {
        Self { lane: Lane::High, urgency: Urgency::Interactive, image: None, kind: Kind(0) }
    }
}

/// The replicas of one role. Cheap to clone; following them ends with the last clone.
#[derive(Debug, Clone)]
pub struct Upstream {
    pub(crate) shared: Arc<Shared>,
    _tasks: Arc<JoinSet<()>>,
}

/// What a caller is told about its question.
#[derive(Debug)]
pub(crate) enum Order {
    /// Send a copy.
    Send { replica: ReplicaId, peer: Peer },
    /// Drop the copy that this replica has.
    Stop(ReplicaId),
    /// Give up.
    End(Fault),
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) role: Role,
    pub(crate) patience: Duration,
    pub(crate) probing: Probing,
    token: Option<String>,
    epoch: Instant,
    /// What the lanes are called in the metrics.
    lanes: [KeyValue; Lane::ALL.len()],
    state: Mutex<State>,
    /// Time alone may change something at another moment than before.
    stirred: Notify,
    /// How many replicas can be sent questions.
    serving: watch::Sender<usize>,
}

/// Names a task that follows one replica; no two share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Follower(pub(crate) u64);

/// A replica that has served.
#[derive(Debug)]
struct Served {
    /// Who follows it: one that comes back under its old name has another follower, and the old one may still be seeing to
    /// what it had.
    follower: Follower,
    peer: Peer,
    address: Address,
    /// False where it only answers reads.
    writable: bool,
}

#[derive(Debug)]
struct State {
    dispatcher: Dispatcher,
    peers: HashMap<ReplicaId, Served>,
    /// Replicas that left calls unanswered and have not answered one since.
    silent: HashSet<ReplicaId>,
    callers: HashMap<Ticket, mpsc::UnboundedSender<Order>>,
}

impl Upstream {
    /// Begins to follow the members of a role. Must be called inside a tokio runtime; no connection is open yet.
    ///
    /// # Errors
    /// [`UpstreamError`] for settings or a token that cannot be used.
    pub fn follow(
        role: Role,
        members: watch::Receiver<Arc<Members>>,
        settings: Settings,
    ) -> Result<Self, UpstreamError> {
        if let Some(token) = &settings.token {
            // A token that cannot be sent is found out here and not at the first member.
            Peer::lazy("http://127.0.0.1:1", Some(token))?;
        }
        let shared = Arc::new(Shared {
            role,
            patience: settings.patience,
            probing: settings.probing,
            token: settings.token,
            epoch: Instant::now(),
            lanes: Lane::ALL.map(|lane| KeyValue::new(names::LANE, format!("{role}-{lane}"))),
            state: Mutex::new(State {
                dispatcher: Dispatcher::new(settings.dispatch)?,
                peers: HashMap::new(),
                silent: HashSet::new(),
                callers: HashMap::new(),
            }),
            stirred: Notify::new(),
            serving: watch::Sender::new(0),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(keep_time(shared.clone()));
        tasks.spawn(follow_members(shared.clone(), members));
        Ok(Self { shared, _tasks: Arc::new(tasks) })
    }

    /// Replicas that can be sent questions.
    pub fn serving(&self) -> usize {
        *self.shared.serving.borrow()
    }

    /// Replicas that can be sent questions and have none.
    pub fn idle(&self) -> usize {
        let state = self.shared.state.lock();
        let is_idle = |view: &thicket_dispatch::ReplicaView| {
            view.in_flight == 0 && matches!(view.state, ReplicaState::Open | ReplicaState::Trial)
        };
        state.dispatcher.replicas().filter(is_idle).count()
    }

    /// One replica that serves and takes writes, the same as long as it does: for calls that must not be made twice.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] where none does for as long as calls wait for one, [`Fault::DeadlineExceeded`].
    pub async fn one(&self, deadline: Deadline) -> Result<Peer, Fault> {
        let shared = &self.shared;
        let found = async {
            let mut serving = shared.serving.subscribe();
            loop {
                if let Some(peer) = shared.first_writable() {
                    return peer;
                }
                if serving.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        // Others may serve all the while, but none that would do.
        let patience = async {
            tokio::time::sleep(shared.patience).await;
            if shared.serving.borrow().eq(&0) {
                shared.abandoned().await;
            }
        };
        tokio::select! {
            peer = found => Ok(peer),
            () = patience => Err(shared.no_writer()),
            () = deadline.passed() => Err(Fault::DeadlineExceeded),
        }
    }
}

impl Shared {
    pub(crate) fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Changes something, tells callers what follows from it, and says how many replicas serve.
    fn update<T>(&self, change: impl FnOnce(&mut State, Duration) -> T) -> T {
        let mut state = self.state.lock();
        let changed = change(&mut state, self.now());
        while let Some(action) = state.dispatcher.poll(self.now()) {
            state.act(action, self.role);
        }
        let open = |view: &thicket_dispatch::ReplicaView| view.state != ReplicaState::Draining;
        let serving = state.dispatcher.replicas().filter(open).count();
        for (lane, label) in Lane::ALL.into_iter().zip(&self.lanes) {
            instruments()
                .queue_depth
                .record(state.dispatcher.waiting(lane) as u64, std::slice::from_ref(label));
        }
        drop(state);
        self.serving.send_if_modified(|before| {
            let modified = *before != serving;
            *before = serving;
            modified
        });
        self.stirred.notify_one();
        changed
    }

    /// Resolves when no replica has served for as long as calls wait for one.
    pub(crate) async fn abandoned(&self) {
        let mut serving = self.serving.subscribe();
        loop {
            if serving.wait_for(|count| *count == 0).await.is_err() {
                return std::future::pending().await;
            }
            let somebody = serving.wait_for(|count| *count > 0);
            if tokio::time::timeout(self.patience, somebody).await.is_err() {
                return;
            }
        }
    }

    pub(crate) fn no_replica(&self) -> Fault {
        Fault::unavailable("NO_REPLICA", format!("no {} replica serves", self.role), self.patience)
    }

    fn no_writer(&self) -> Fault {
        if *self.serving.borrow() == 0 {
            return self.no_replica();
        }
        let message = format!("no {} replica that takes writes serves", self.role);
        Fault::unavailable("NO_WRITER", message, self.patience)
    }

    fn first_writable(&self) -> Option<Peer> {
        let state = self.state.lock();
        let mut views = state.dispatcher.replicas().filter(|view| view.state != ReplicaState::Draining);
        views.find_map(|view| {
            state.peers.get(&view.id).filter(|known| known.writable).map(|known| known.peer.clone())
        })
    }

    /// Lets a question wait.
    pub(crate) fn submit(
        &self,
        ask: Ask,
        kept: Option<ReplicaId>,
        deadline: Deadline,
    ) -> Result<(Ticket, mpsc::UnboundedReceiver<Order>), Fault> {
        let (caller, orders) = mpsc::unbounded_channel();
        let ticket = self.update(|state, now| {
            let left = deadline.remaining().unwrap_or_default();
            let question = thicket_dispatch::Question {
                lane: ask.lane,
                urgency: ask.urgency,
                deadline: Some(now + left),
                image: ask.image,
                kind: ask.kind,
            };
            let ticket = state.dispatcher.submit(question, now)?;
            if let Some(replica) = kept {
                state.dispatcher.keep(ticket, replica);
            }
            state.callers.insert(ticket, caller);
            Ok(ticket)
        });
        match ticket {
            Ok(ticket) => Ok((ticket, orders)),
            Err(thicket_dispatch::Refused::Expired { .. }) => Err(Fault::DeadlineExceeded),
            Err(full @ thicket_dispatch::Refused::Full { retry_after, .. }) => {
                instruments().admission_rejected.add(1, &[KeyValue::new(names::REASON, "QUEUE_FULL")]);
                Err(Fault::exhausted("QUEUE_FULL", format!("{} role: {full}", self.role), retry_after))
            }
        }
    }

    /// A copy has been answered; other copies are told to stop.
    pub(crate) fn answered(&self, ticket: Ticket, replica: ReplicaId) {
        self.update(|state, now| {
            // The caller has its answer, whatever the dispatcher thinks of it, and drops its other copies by itself.
            let _ = state.dispatcher.answered(ticket, replica, now);
            if state.silent.remove(&replica) {
                tracing::info!(role = %self.role, address = %state.address(replica), "replica answers again");
            }
        });
    }

    pub(crate) fn failed(
        &self,
        ticket: Ticket,
        replica: ReplicaId,
        failure: thicket_dispatch::Failure,
    ) -> AfterFailure {
        self.update(|state, now| state.dispatcher.failed(ticket, replica, failure, now))
    }

    /// Somebody waits now for a question that was asked ahead.
    pub(crate) fn promote(&self, ticket: Ticket) {
        self.update(|state, _| state.dispatcher.promote(ticket));
    }

    /// A caller has gone.
    pub(crate) fn forget(&self, ticket: Ticket) {
        self.update(|state, _| {
            state.callers.remove(&ticket);
            state.dispatcher.cancel(ticket)
        });
    }

    /// A replica serves.
    pub(crate) fn joined(&self, replica: ReplicaId, follower: Follower, member: &Member, peer: &Peer) {
        self.update(|state, now| {
            state.leave(replica, now, self.role);
            let capacity = NonZeroU32::new(member.capacity).unwrap_or(NonZeroU32::MIN);
            // It has just left, so it cannot be there.
            let _ = state.dispatcher.join(replica, capacity);
            state.silent.remove(&replica);
            let known = Served {
                follower,
                peer: peer.clone(),
                address: member.address.clone(),
                writable: member.writable,
            };
            state.peers.insert(replica, known);
        });
        tracing::info!(role = %self.role, address = %member.address, "replica serves");
    }

    /// A replica takes nothing new; what it has it may finish.
    pub(crate) fn drained(&self, replica: ReplicaId, follower: Follower) {
        self.update(|state, _| {
            if state.is_followed(replica, follower) {
                // It is there, as it has served.
                let _ = state.dispatcher.drain(replica);
            }
        });
    }

    /// A replica is lost: what it had goes elsewhere.
    pub(crate) fn left(&self, replica: ReplicaId, follower: Follower) {
        self.update(|state, now| {
            if state.is_followed(replica, follower) {
                state.leave(replica, now, self.role);
                state.peers.remove(&replica);
            }
        });
    }

    /// A replica does not answer health checks, for whatever it has: that goes elsewhere.
    pub(crate) fn hung(&self, replica: ReplicaId, follower: Follower, member: &Member) {
        instruments().replica_ejections.add(1, &[KeyValue::new(names::ROLE, self.role.name())]);
        tracing::warn!(role = %self.role, address = %member.address, "replica answers no health check: its calls go elsewhere");
        self.left(replica, follower);
    }

    /// Questions that a replica has; `None` where it is not known, or followed by another.
    pub(crate) fn in_flight(&self, replica: ReplicaId, follower: Follower) -> Option<usize> {
        let state = self.state.lock();
        if !state.is_followed(replica, follower) {
            return None;
        }
        let view = state.dispatcher.replicas().find(|view| view.id == replica)?;
        Some(view.in_flight)
    }

    fn wake_at(&self) -> Option<Duration> {
        self.state.lock().dispatcher.wake_at()
    }

    pub(crate) fn peer(&self, member: &Member) -> Result<Peer, PeerError> {
        Peer::lazy(&member.address.to_string(), self.token.as_deref())
    }
}

impl State {
    fn act(&mut self, action: Action, role: Role) {
        match action {
            Action::Ask { ticket, replica, why } => {
                let sent = self.peers.get(&replica).is_some_and(|known| {
                    let order = Order::Send { replica, peer: known.peer.clone() };
                    self.callers.get(&ticket).is_some_and(|caller| caller.send(order).is_ok())
                });
                if !sent {
                    // Its caller is about to cancel it.
                    self.dispatcher.cancel(ticket);
                    tracing::debug!(%role, %ticket, "nobody waits for this question");
                }
                let reason = match why {
                    Why::First => return,
                    Why::Retry => "retry",
                    Why::Hedge => "hedge",
                };
                let labels = [KeyValue::new(names::ROLE, role.name()), KeyValue::new(names::REASON, reason)];
                instruments().calls_resent.add(1, &labels);
            }
            Action::Lose { ticket, replica, is_ejected, fate } => {
                self.tell(ticket, Order::Stop(replica));
                if let AfterFailure::Ended { reason, .. } = fate {
                    let message = format!("the {role} role did not answer: {reason}");
                    self.tell(ticket, Order::End(Fault::unavailable("PEER_SILENT", message, Duration::ZERO)));
                }
                if is_ejected && self.silent.insert(replica) {
                    instruments().replica_ejections.add(1, &[KeyValue::new(names::ROLE, role.name())]);
                    let address = self.address(replica);
                    tracing::warn!(%role, %address, "replica leaves calls unanswered: they go elsewhere");
                }
            }
            Action::Expire { ticket, .. } => self.tell(ticket, Order::End(Fault::DeadlineExceeded)),
        }
    }

    fn is_followed(&self, replica: ReplicaId, follower: Follower) -> bool {
        self.peers.get(&replica).is_some_and(|known| known.follower == follower)
    }

    fn address(&self, replica: ReplicaId) -> String {
        self.peers.get(&replica).map_or_else(|| replica.to_string(), |known| known.address.to_string())
    }

    fn tell(&self, ticket: Ticket, order: Order) {
        if let Some(caller) = self.callers.get(&ticket) {
            // A caller that has gone needs no orders.
            let _ = caller.send(order);
        }
    }

    /// Takes a replica out, if it is in; its questions go elsewhere.
    fn leave(&mut self, replica: ReplicaId, now: Duration, role: Role) {
        let Ok(fates) = self.dispatcher.leave(replica, now) else { return };
        for (ticket, fate) in fates {
            self.tell(ticket, Order::Stop(replica));
            if let AfterFailure::Ended { reason, .. } = fate {
                let message = format!("the {role} role was lost in a call: {reason}");
                let fault = Fault::unavailable("PEER_LOST", message, Duration::ZERO);
                self.tell(ticket, Order::End(fault));
            }
        }
    }
}

/// Lets the dispatcher know when time alone has changed something.
async fn keep_time(shared: Arc<Shared>) {
    loop {
        let stirred = shared.stirred.notified();
        match shared.wake_at() {
            Some(at) => {
                let wait = at.saturating_sub(shared.now());
                if tokio::time::timeout(wait, stirred).await.is_err() {
                    shared.update(|_, _| ());
                }
            }
            None => stirred.await,
        }
    }
}

/// One task for each member, as long as it is one.
async fn follow_members(shared: Arc<Shared>, mut members: watch::Receiver<Arc<Members>>) {
    let mut tasks = JoinSet::new();
    let mut known: HashMap<ReplicaId, watch::Sender<bool>> = HashMap::new();
    let mut followers = 0;
    let mut strangers: Vec<Member> = Vec::new();
    loop {
        let now = members.borrow_and_update().clone();
        let (alike, others) = alike(now.of(shared.role));
        if strangers.iter().ne(others.iter().copied()) {
            let before = std::mem::replace(&mut strangers, others.into_iter().cloned().collect());
            for stranger in strangers.iter().filter(|stranger| !before.contains(stranger)) {
                instruments().discovery_ignored.add(1, &[KeyValue::new(names::REASON, "model")]);
                tracing::warn!(
                    role = %shared.role,
                    address = %stranger.address,
                    fingerprint = stranger.fingerprint,
                    "not called: most replicas have another model"
                );
            }
        }
        let present: HashMap<ReplicaId, &Member> = alike.into_iter().map(|m| (name_of(m), m)).collect();
        known.retain(|id, gone| {
            let stays = present.contains_key(id);
            if !stays {
                gone.send_replace(true);
            }
            stays
        });
        for (id, member) in present {
            if known.contains_key(&id) {
                continue;
            }
            match shared.peer(member) {
                Ok(peer) => {
                    let (gone, is_gone) = watch::channel(false);
                    known.insert(id, gone);
                    followers += 1;
                    let follower = Follower(followers);
                    tasks.spawn(replica::follow(shared.clone(), id, follower, member.clone(), peer, is_gone));
                }
                Err(error) => tracing::warn!(role = %shared.role, %error, "member cannot be called"),
            }
        }
        tokio::select! {
            changed = members.changed() => if changed.is_err() { break },
            Some(_) = tasks.join_next() => {}
        }
    }
    // The directory has ended: the members stay as they were last known.
    while tasks.join_next().await.is_some() {}
}

/// The members whose model most of them have, of equally common ones the first by name, and the others: answers of two models
/// must not be mixed. A member that does not say what it has is taken for one of them.
fn alike(members: &[Member]) -> (Vec<&Member>, Vec<&Member>) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for fingerprint in members.iter().filter_map(|member| member.fingerprint.as_deref()) {
        *counts.entry(fingerprint).or_default() += 1;
    }
    let most = counts.values().max().copied();
    let common = counts.iter().find(|(_, count)| Some(**count) == most).map(|(fingerprint, _)| *fingerprint);
    members.iter().partition(|member| member.fingerprint.is_none() || member.fingerprint.as_deref() == common)
}

/// The same over a restart, and for every caller, where instance, address, capacity and what it takes are. What else a
/// member says of itself, such as its collections, may change under the name.
fn name_of(member: &Member) -> ReplicaId {
    let readable = if member.writable { "" } else { " read" };
    ReplicaId::of(&format!("{} {} {}{readable}", member.instance, member.address, member.capacity))
}

#[cfg(test)]
mod tests {
    use super::*;
    use thicket_discovery::{Address, InstanceId};

    fn member(port: u16, fingerprint: Option<&str>) -> Member {
        let address = Address::parse(&format!("http://127.0.0.1:{port}")).unwrap();
        let mut member = Member::new(Role::Answer, InstanceId::new(&port.to_string()).unwrap(), address);
        member.fingerprint = fingerprint.map(str::to_owned);
        member
    }

    fn ports(members: &[&Member]) -> Vec<u16> {
        members.iter().map(|member| member.address.port()).collect()
    }

    #[test]
    fn the_model_that_most_replicas_have_is_called() {
        let members = [member(1, Some("a")), member(2, Some("b")), member(3, Some("b")), member(4, None)];
        let (alike, others) = alike(&members);
        assert_eq!((ports(&alike), ports(&others)), (vec![2, 3, 4], vec![1]));
    }

    #[test]
    fn of_equally_common_models_every_caller_takes_the_same() {
        let members = [member(1, Some("b")), member(2, Some("a"))];
        assert_eq!(ports(&alike(&members).0), [2]);
    }
}
