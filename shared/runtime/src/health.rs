use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// What a check speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Passes until told otherwise; failing, it asks for a restart of the process.
    Live,
    /// Fails until told otherwise; the role starts to serve when every one has passed.
    Startup,
    /// Fails until told otherwise; calls are served, but the role is not ready for new traffic.
    Ready,
}

/// Where a role is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// A start-up check has not passed; calls are refused.
    Starting,
    /// Serving.
    Serving,
    /// Not ready any more, still serving.
    Draining,
    /// New calls are refused; calls in flight go on.
    Closing,
    /// Calls in flight are cut off.
    Closed,
}

#[derive(Debug, Clone)]
struct Entry {
    name: &'static str,
    /// Which of several equals the check is of.
    replica: Option<Arc<str>>,
    probe: Probe,
    failure: Option<String>,
    /// What shows beside it while it passes.
    note: Option<String>,
}

#[derive(Debug, Default)]
struct Inner {
    checks: Vec<Entry>,
    stopping: Option<State>,
}

/// The health of one role: named checks and the state that follows from them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Health {
    inner: Arc<Mutex<Inner>>,
    changed: watch::Sender<Snapshot>,
    /// Whose checks are added through this handle.
    replica: Option<Arc<str>>,
}

/// What the checks add up to at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Where the role is in its life.
    pub state: State,
    /// No live check fails.
    pub live: bool,
    /// Serving, live and every ready check passes.
    pub ready: bool,
}

/// One named check of a [`Health`].
#[derive(Debug, Clone)]
pub struct Check {
    health: Health,
    index: usize,
}

impl Health {
    pub(crate) fn new() -> Self {
        let inner = Inner::default();
        let changed = watch::Sender::new(inner.snapshot());
        Self { inner: Arc::new(Mutex::new(inner)), changed, replica: None }
    }

    /// This health for one of several equals that do the same work, such as `cuda:1`. Of live checks of one name that are
    /// added for replicas, one that passes is enough, and so of ready checks: the role goes on with fewer of them.
    #[must_use]
    pub fn of_replica(&self, replica: impl Into<Arc<str>>) -> Self {
        Self { replica: Some(replica.into()), ..self.clone() }
    }

    /// Adds a check. A start-up or ready check fails until [`Check::pass`] is called; a live check passes.
    ///
    /// Add start-up checks before [`crate::Server::serve`] is called: a role without one serves at once.
    pub fn check(&self, name: &'static str, probe: Probe) -> Check {
        let failure = (probe != Probe::Live).then(|| "not done yet".to_owned());
        let mut index = 0;
        self.update(|inner| {
            index = inner.checks.len();
            inner.checks.push(Entry { name, replica: self.replica.clone(), probe, failure, note: None });
        });
        Check { health: self.clone(), index }
    }

    /// The present state.
    pub fn snapshot(&self) -> Snapshot {
        *self.changed.borrow()
    }

    /// Follows the state.
    pub fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.changed.subscribe()
    }

    /// Waits until the role is ready.
    pub async fn ready(&self) {
        // The sender lives in self, so the wait ends in readiness only.
        let _ = self.subscribe().wait_for(|now| now.ready).await;
    }

    pub(crate) fn stop(&self, state: State) {
        self.update(|inner| inner.stopping = Some(state));
    }

    /// Name and failure of every check that `probe` looks at.
    pub(crate) fn report(&self, probe: Probe) -> Vec<(String, Option<String>)> {
        let inner = self.inner.lock();
        let counts = |entry: &&Entry| match probe {
            Probe::Ready => true,
            _ => entry.probe == probe,
        };
        let line = |entry: &Entry| (entry.full_name(), entry.failure.clone());
        let mut report: Vec<_> = inner.checks.iter().filter(counts).map(line).collect();
        if probe == Probe::Ready && inner.stopping.is_some() {
            report.push(("serving".to_owned(), Some("draining".to_owned())));
        }
        report
    }

    /// Name and note of every check that passes and has one.
    pub(crate) fn notes(&self) -> Vec<(String, String)> {
        let inner = self.inner.lock();
        let noted = inner.checks.iter().filter_map(|entry| Some((entry.full_name(), entry.note.clone()?)));
        noted.collect()
    }

    fn update(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.inner.lock();
        change(&mut inner);
        let now = inner.snapshot();
        self.changed.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}

impl Entry {
    fn full_name(&self) -> String {
        match &self.replica {
            Some(replica) => format!("{} ({replica})", self.name),
            None => self.name.to_owned(),
        }
    }

    /// Whether another of several equals could do this one's work.
    fn stands_in_for(&self, other: &Self) -> bool {
        matches!(self.probe, Probe::Live | Probe::Ready)
            && self.replica.is_some()
            && other.replica.is_some()
            && self.failure.is_none()
            && (self.name, self.probe) == (other.name, other.probe)
    }
}

impl Inner {
    fn snapshot(&self) -> Snapshot {
        let passes = |probe| {
            let mut of_probe = self.checks.iter().filter(|entry| entry.probe == probe);
            of_probe.all(|entry| {
                entry.failure.is_none() || self.checks.iter().any(|other| other.stands_in_for(entry))
            })
        };
        let state = match self.stopping {
            Some(state) => state,
            None if passes(Probe::Startup) => State::Serving,
            None => State::Starting,
        };
        let live = passes(Probe::Live);
        Snapshot { state, live, ready: live && state == State::Serving && passes(Probe::Ready) }
    }
}

impl Check {
    /// The check passes from now on.
    pub fn pass(&self) {
        self.set(None, None);
    }

    /// The check passes from now on; the note shows in `?verbose`.
    pub fn pass_with(&self, note: impl Into<String>) {
        self.set(None, Some(note.into()));
    }

    /// The check fails from now on; the reason shows in `?verbose`.
    pub fn fail(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()), None);
    }

    fn set(&self, failure: Option<String>, note: Option<String>) {
        self.health.update(|inner| {
            let entry = &mut inner.checks[self.index];
            (entry.failure, entry.note) = (failure, note);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_serves_when_every_start_up_check_has_passed() {
        let health = Health::new();
        let model = health.check("model", Probe::Startup);
        let index = health.check("index", Probe::Startup);
        model.pass();
        assert_eq!(health.snapshot().state, State::Starting);
        index.pass();
        assert_eq!(health.snapshot(), Snapshot { state: State::Serving, live: true, ready: true });
    }

    #[test]
    fn a_dead_model_is_neither_live_nor_ready() {
        let health = Health::new();
        let thread = health.check("model thread", Probe::Live);
        assert!(health.snapshot().live);
        thread.fail("panicked");
        assert_eq!(health.snapshot(), Snapshot { state: State::Serving, live: false, ready: false });
        assert_eq!(
            health.report(Probe::Live),
            vec![("model thread".to_owned(), Some("panicked".to_owned()))]
        );
    }

    #[test]
    fn a_role_goes_on_while_one_of_its_replicas_lives_and_names_the_dead() {
        let health = Health::new();
        let live = ["cuda:0", "cuda:1"].map(|gpu| health.of_replica(gpu).check("model", Probe::Live));
        live[1].fail("panicked");
        assert!(health.snapshot().ready);
        let report = health.report(Probe::Live);
        assert_eq!(report[0], ("model (cuda:0)".to_owned(), None));
        assert_eq!(report[1], ("model (cuda:1)".to_owned(), Some("panicked".to_owned())));
        live[0].fail("panicked too");
        assert_eq!(health.snapshot(), Snapshot { state: State::Serving, live: false, ready: false });
    }

    #[test]
    fn every_replica_must_have_started() {
        let health = Health::new();
        let started = ["cuda:0", "cuda:1"].map(|gpu| health.of_replica(gpu).check("model", Probe::Startup));
        started[0].pass();
        assert_eq!(health.snapshot().state, State::Starting);
        started[1].pass();
        assert_eq!(health.snapshot().state, State::Serving);
    }

    #[test]
    fn a_live_replica_does_not_stand_in_for_other_work() {
        let health = Health::new();
        let model = health.of_replica("cuda:0").check("model", Probe::Live);
        let index = health.check("index", Probe::Live);
        index.fail("corrupt");
        assert!(!health.snapshot().live);
        index.pass();
        model.fail("panicked");
        assert!(!health.snapshot().live);
    }

    #[test]
    fn a_note_shows_while_its_check_passes() {
        let health = Health::new();
        let lag = health.check("lag", Probe::Ready);
        lag.pass_with("3 s");
        assert!(health.snapshot().ready);
        assert_eq!(health.notes(), [("lag".to_owned(), "3 s".to_owned())]);
        lag.fail("lost");
        assert_eq!(health.notes(), []);
    }

    #[test]
    fn draining_ends_readiness_for_good() {
        let health = Health::new();
        let lease = health.check("lease", Probe::Ready);
        lease.pass();
        assert!(health.snapshot().ready);
        health.stop(State::Draining);
        lease.pass();
        assert!(!health.snapshot().ready);
    }
}
