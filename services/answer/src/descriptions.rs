use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use thicket_runtime::Fault;
use tokio::sync::watch;

/// What the model says about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    /// The generated text.
    pub(crate) text: String,
    /// The answers read from it.
    pub(crate) answers: Vec<String>,
}

/// What a description depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key([u8; 32]);

impl Key {
    pub(crate) fn new(image: &[u8], model_fingerprint: &str, prompt_version: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(blake3::hash(image).as_bytes());
        for part in [model_fingerprint, prompt_version] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Self(hasher.finalize().into())
    }
}

/// The descriptions made so far, the least recently used one leaving first; and those being made, so that nothing is made
/// twice at a time.
#[derive(Debug)]
pub(crate) struct Descriptions {
    state: Mutex<State>,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    kept: HashMap<Key, (u64, Arc<Description>)>,
    /// By the time of the last use.
    order: BTreeMap<u64, Key>,
    clock: u64,
    /// Resolves when the one who makes it has finished or given up.
    in_making: HashMap<Key, watch::Receiver<()>>,
}

impl State {
    fn get(&mut self, key: Key) -> Option<Arc<Description>> {
        self.clock += 1;
        let (used, description) = self.kept.get_mut(&key)?;
        self.order.remove(used);
        *used = self.clock;
        self.order.insert(self.clock, key);
        Some(description.clone())
    }

    fn put(&mut self, key: Key, description: Arc<Description>, limit: usize) {
        self.clock += 1;
        if let Some((used, _)) = self.kept.insert(key, (self.clock, description)) {
            self.order.remove(&used);
        }
        self.order.insert(self.clock, key);
        while self.kept.len() > limit {
            let Some((_, oldest)) = self.order.pop_first() else { return };
            self.kept.remove(&oldest);
        }
    }
}

/// Takes the place of a description in the making; gives it up when dropped, whether it is done or not.
struct Making<'a> {
    owner: &'a Descriptions,
    key: Key,
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

impl Descriptions {
    pub(crate) fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), limit }
    }

    /// The description of `key`, made with `make` unless it is kept. Of several callers one makes it and the others wait;
    /// when that one fails or leaves, the next one makes it. Returns whether it came from the cache.
    pub(crate) async fn get_or_make<F>(
        &self,
        key: Key,
        make: impl FnOnce() -> F,
    ) -> Result<(Arc<Description>, bool), Fault>
    where
        F: Future<Output = Result<Description, Fault>>,
    {
        loop {
            match self.turn(key) {
                Turn::Kept(description) => return Ok((description, true)),
                Turn::Wait(mut done) => {
                    // Always an error: nothing is ever sent, the sender goes.
                    let _ = done.changed().await;
                }
                Turn::Make(making) => {
                    let description = Arc::new(make().await?);
                    self.state.lock().put(key, description.clone(), self.limit);
                    drop(making);
                    return Ok((description, false));
                }
            }
        }
    }

    fn turn(&self, key: Key) -> Turn<'_> {
        let mut state = self.state.lock();
        if let Some(description) = state.get(key) {
            return Turn::Kept(description);
        }
        if let Some(done) = state.in_making.get(&key) {
            return Turn::Wait(done.clone());
        }
        let (sender, done) = watch::channel(());
        state.in_making.insert(key, done);
        Turn::Make(Making { owner: self, key, _done: sender })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::*;

    fn key(name: &str) -> Key {
        Key::new(name.as_bytes(), "model", "prompt")
    }

    fn description(text: &str) -> Result<Description, Fault> {
        Ok(Description { text: text.to_owned(), answers: Vec::new() })
    }

    async fn ask(descriptions: &Descriptions, name: &str, text: &str) -> (String, bool) {
        let (found, cached) =
            descriptions.get_or_make(key(name), || async { description(text) }).await.expect("made");
        (found.text.clone(), cached)
    }

    #[test]
    fn a_key_depends_on_image_model_and_prompt() {
        let keys = [
            Key::new(b"image", "model", "prompt"),
            Key::new(b"imagf", "model", "prompt"),
            Key::new(b"image", "modem", "prompt"),
            Key::new(b"image", "model", "prompu"),
            Key::new(b"image", "modelp", "rompt"),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key), "{index}");
        }
    }

    #[tokio::test]
    async fn the_least_recently_used_description_leaves_first() {
        let descriptions = Descriptions::new(2);
        assert_eq!(ask(&descriptions, "a", "a1").await, ("a1".to_owned(), false));
        ask(&descriptions, "b", "b1").await;
        assert_eq!(ask(&descriptions, "a", "a2").await, ("a1".to_owned(), true));
        ask(&descriptions, "c", "c1").await;
        assert_eq!(ask(&descriptions, "a", "a2").await, ("a1".to_owned(), true));
        assert_eq!(ask(&descriptions, "b", "b2").await, ("b2".to_owned(), false));
    }

    #[tokio::test]
    async fn callers_at_one_time_share_one_run() {
        let descriptions = Descriptions::new(2);
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
        let descriptions = Descriptions::new(2);
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
        let descriptions = Descriptions::new(2);
        let failed = descriptions.get_or_make(key("a"), || async { Err(Fault::DeadlineExceeded) }).await;
        assert_eq!(failed, Err(Fault::DeadlineExceeded));
        assert_eq!(ask(&descriptions, "a", "made").await, ("made".to_owned(), false));
    }
}
