use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use thicket_cache::Cache;
use thicket_runtime::Fault;
use tokio::sync::watch;

use crate::store::Key;

/// What the model says about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    /// The generated text.
    pub(crate) text: String,
    /// The answers read from it.
    pub(crate) answers: Vec<String>,
}

/// The descriptions used last; and those being made, so that nothing is made twice at a time.
#[derive(Debug)]
pub(crate) struct Memory {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    kept: Cache<Key, Arc<Description>>,
    /// Resolves when the one who makes it has finished or given up.
    in_making: HashMap<Key, watch::Receiver<()>>,
    /// Images forgotten so far: what was begun before is not kept after.
    forgotten: u64,
}

/// Takes the place of a description in the making; gives it up when dropped, whether it is done or not.
struct Making<'a> {
    owner: &'a Memory,
    key: Key,
    forgotten: u64,
    _done: watch::Sender<()>,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.owner.state.lock().in_making.remove(&self.key);
    }
}

enum Turn<'a> {
    Kept(Arc<Description>),
    Make(Making<'a>),
    Wait(watch::Receiver<()>),
}

impl Memory {
    /// Keeps up to `limit` descriptions.
    pub(crate) fn new(limit: usize) -> Self {
        let state = State { kept: Cache::new(limit), in_making: HashMap::new(), forgotten: 0 };
        Self { state: Mutex::new(state) }
    }

    /// The description of `key`, made with `make` unless it is kept. Of several callers one makes it and the others wait;
    /// when that one fails or leaves, the next one makes it. `make` says whether it had it from elsewhere; returns whether
    /// it was had from here or there.
    pub(crate) async fn get_or_make<F>(
        &self,
        key: Key,
        make: impl FnOnce() -> F,
    ) -> Result<(Arc<Description>, bool), Fault>
    where
        F: Future<Output = Result<(Description, bool), Fault>>,
    {
        loop {
            match self.turn(key) {
                Turn::Kept(description) => return Ok((description, true)),
                Turn::Wait(mut done) => {
                    // Always an error: nothing is ever sent, the sender goes.
                    let _ = done.changed().await;
                }
                Turn::Make(making) => {
                    let (description, had) = make().await?;
                    let description = Arc::new(description);
                    let mut state = self.state.lock();
                    if state.forgotten == making.forgotten {
                        state.kept.insert(key, description.clone(), 1);
                    }
                    drop(state);
                    drop(making);
                    return Ok((description, had));
                }
            }
        }
    }

    /// Forgets what was said of images. What is being made now is not kept.
    pub(crate) fn forget(&self, images: &BTreeSet<[u8; 32]>) -> u64 {
        let mut state = self.state.lock();
        state.forgotten += 1;
        let before = state.kept.len();
        state.kept.retain(|key| !images.contains(&key.image));
        (before - state.kept.len()) as u64
    }

    fn turn(&self, key: Key) -> Turn<'_> {
        let mut state = self.state.lock();
        if let Some(description) = state.kept.get(&key) {
            return Turn::Kept(description.clone());
        }
        if let Some(done) = state.in_making.get(&key) {
            return Turn::Wait(done.clone());
        }
        let (sender, done) = watch::channel(());
        state.in_making.insert(key, done);
        Turn::Make(Making { owner: self, key, forgotten: state.forgotten, _done: sender })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::*;

    fn key(name: &str) -> Key {
        Key::new(name.as_bytes(), &["model", "prompt"])
    }

    fn description(text: &str) -> Result<(Description, bool), Fault> {
        Ok((Description { text: text.to_owned(), answers: Vec::new() }, false))
    }

    async fn ask(descriptions: &Memory, name: &str, text: &str) -> (String, bool) {
        let (found, cached) =
            descriptions.get_or_make(key(name), || async { description(text) }).await.expect("made");
        (found.text.clone(), cached)
    }

    #[tokio::test]
    async fn the_least_recently_used_description_leaves_first() {
        let descriptions = Memory::new(2);
        assert_eq!(ask(&descriptions, "a", "a1").await, ("a1".to_owned(), false));
        ask(&descriptions, "b", "b1").await;
        assert_eq!(ask(&descriptions, "a", "a2").await, ("a1".to_owned(), true));
        ask(&descriptions, "c", "c1").await;
        assert_eq!(ask(&descriptions, "a", "a2").await, ("a1".to_owned(), true));
        assert_eq!(ask(&descriptions, "b", "b2").await, ("b2".to_owned(), false));
    }

    #[tokio::test]
    async fn callers_at_one_time_share_one_run() {
        let descriptions = Memory::new(2);
        let runs = Cell::new(0);
        let call = || {
            descriptions.get_or_make(key("a"), || async {
                runs.set(runs.get() + 1);
                tokio::task::yield_now().await;
                description("a")
            })
        };
        let (first, second, third) = tokio::join!(call(), call(), call());
        assert_eq!([first, second, third].map(|result| result.expect("made").1), [false, true, true]);
        assert_eq!(runs.get(), 1);
    }

    #[tokio::test]
    async fn when_the_one_who_makes_it_leaves_another_does() {
        let descriptions = Memory::new(2);
        let leaving = descriptions.get_or_make(key("a"), std::future::pending);
        let staying = async {
            tokio::task::yield_now().await;
            ask(&descriptions, "a", "made").await
        };
        let leaving = tokio::time::timeout(Duration::from_millis(20), leaving);
        let (left, stayed) = tokio::join!(leaving, staying);
        assert!(left.is_err());
        assert_eq!(stayed, ("made".to_owned(), false));
    }

    #[tokio::test]
    async fn a_failure_is_not_kept() {
        let descriptions = Memory::new(2);
        let failed = descriptions.get_or_make(key("a"), || async { Err(Fault::DeadlineExceeded) }).await;
        assert_eq!(failed, Err(Fault::DeadlineExceeded));
        assert_eq!(ask(&descriptions, "a", "made").await, ("made".to_owned(), false));
    }

    #[tokio::test]
    async fn what_is_said_of_a_forgotten_image_is_made_anew() {
        let descriptions = Memory::new(3);
        ask(&descriptions, "a", "a1").await;
        ask(&descriptions, "b", "b1").await;
        assert_eq!(descriptions.forget(&[key("a").image].into()), 1);
        assert_eq!(ask(&descriptions, "a", "a2").await, ("a2".to_owned(), false));
        assert_eq!(ask(&descriptions, "b", "b2").await, ("b1".to_owned(), true));
    }

    #[tokio::test]
    async fn what_is_being_made_when_an_image_is_forgotten_is_not_kept() {
        let descriptions = Memory::new(3);
        let make = || async {
            descriptions.forget(&[key("a").image].into());
            description("a1")
        };
        descriptions.get_or_make(key("a"), make).await.expect("made");
        assert_eq!(ask(&descriptions, "a", "a2").await, ("a2".to_owned(), false));
    }
}
