//! The thread that keeps up the structures of approximate indexes and measures what they find, while the gallery serves.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};
use thicket_engine::EngineError;
use thicket_index::{RecallMeter, Work};

use crate::collection::{Collection, Measured};
use crate::gallery::Shared;

/// Recall is measured again when so large a part of the collection, one in so many items, came or went.
const CHANGED: u64 = 4;

/// Tells the indexer that there may be something to do.
#[derive(Debug, Default)]
pub(crate) struct Nudge {
    wanted: Mutex<Wanted>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
struct Wanted {
    look: bool,
    measure: bool,
    stop: bool,
}

impl Nudge {
    /// Something was written.
    pub(crate) fn wake(&self) {
        self.set(|wanted| wanted.look = true);
    }

    /// Recall is to be measured anew.
    pub(crate) fn measure(&self) {
        self.set(|wanted| (wanted.look, wanted.measure) = (true, true));
    }

    /// The indexer ends after the step that it is at.
    pub(crate) fn stop(&self) {
        self.set(|wanted| wanted.stop = true);
    }

    fn set(&self, change: impl FnOnce(&mut Wanted)) {
        change(&mut self.wanted.lock());
        self.changed.notify_one();
    }

    fn is_stopped(&self) -> bool {
        self.wanted.lock().stop
    }

    /// Waits until there may be something to do; whether recall is to be measured, or `None` at the end.
    fn next(&self) -> Option<bool> {
        let mut wanted = self.wanted.lock();
        while !wanted.stop && !wanted.look {
            self.changed.wait(&mut wanted);
        }
        if wanted.stop {
            return None;
        }
        let measure = wanted.measure;
        *wanted = Wanted::default();
        Some(measure)
    }
}

/// Starts the thread; it ends when [`Nudge::stop`] is called.
pub(crate) fn start(shared: Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("gallery-indexer".to_owned()).spawn(move || run(&shared))
}

fn run(shared: &Shared) {
    while let Some(measure) = shared.indexing.next() {
        let views: Vec<Arc<Collection>> = shared.collections.read().values().cloned().collect();
        for view in views {
            if let Err(error) = keep_up(shared, &view, measure) {
                // Every vector is compared then, or those of the structure and the rest one by one.
                tracing::error!(collection = view.name, %error, "the index's structure could not be kept up");
            }
        }
    }
}

fn keep_up(shared: &Shared, view: &Collection, measure: bool) -> Result<(), EngineError> {
    while let Some(work) = view.index_work() {
        if shared.indexing.is_stopped() {
            return Ok(());
        }
        match work {
            Work::Build => {
                if !build(shared, view)? {
                    return Ok(());
                }
            }
            Work::Fold | Work::GiveUp => view.keep_up(work)?,
        }
    }
    if !view.is_approximate() {
        view.set_measured(None);
    } else if measure || view.measured().is_none_or(|measured| has_changed(measured.items, view.len() as u64))
    {
        measure_recall(shared, view)?;
    }
    Ok(())
}

fn has_changed(before: u64, now: u64) -> bool {
    before.abs_diff(now) * CHANGED > before
}

/// Builds a new structure; false where the gallery is stopping.
fn build(shared: &Shared, view: &Collection) -> Result<bool, EngineError> {
    let started = Instant::now();
    let mut build = view.begin_build()?;
    build.train()?;
    loop {
        if shared.indexing.is_stopped() {
            return Ok(false);
        }
        let gathered = view.gather(&build);
        build.insert(&gathered)?;
        if gathered.is_last() {
            break;
        }
    }
    view.install(build);
    // What was measured was of the old one.
    view.set_measured(None);
    let seconds = started.elapsed().as_secs_f64();
    tracing::info!(collection = view.name, vectors = view.len(), seconds, "built the index's structure");
    Ok(true)
}

fn measure_recall(shared: &Shared, view: &Collection) -> Result<(), EngineError> {
    let items = view.len() as u64;
    let mut meter = RecallMeter::default();
    for sequence in view.recall_sample() {
        if shared.indexing.is_stopped() {
            return Ok(());
        }
        view.measure_recall(&mut meter, sequence)?;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let measured = meter.recall().map(|recall| Measured { recall, items, unix_ms: now.as_millis() as i64 });
    if let Some(Measured { recall, items, .. }) = measured {
        let (at_10, at_100) = (recall.at_10, recall.at_100);
        tracing::info!(collection = view.name, items, at_10, at_100, "measured recall");
    }
    view.set_measured(measured);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_more_or_fewer_is_a_change() {
        assert!(!has_changed(100, 125) && !has_changed(100, 75));
        assert!(has_changed(100, 126) && has_changed(100, 74));
        assert!(has_changed(0, 1) && !has_changed(0, 0));
    }

    #[test]
    fn nothing_that_was_asked_for_before_the_wait_is_missed() {
        let nudge = Nudge::default();
        nudge.measure();
        nudge.wake();
        assert_eq!(nudge.next(), Some(true));
        nudge.wake();
        assert_eq!(nudge.next(), Some(false));
        nudge.stop();
        assert_eq!(nudge.next(), None);
    }
}
