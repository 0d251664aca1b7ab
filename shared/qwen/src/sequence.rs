use std::sync::Arc;

use candle_core::{Result, Tensor};
use image::RgbImage;
use thicket_engine::{EngineError, Finish, schedule::PrefixKey};

use crate::{
    cache::{KvCache, KvPrefix},
    choosing::Chooser,
    features::ImageKey,
    model::QwenModel,
    prompt::Position,
    readout::Readout,
};

/// The model that answers a prompt: the base, or the base with an adapter beside its weights.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) model: Arc<QwenModel>,
    /// Digest of the weights and the adapter.
    pub(crate) fingerprint: Arc<str>,
    /// Digest of an adapter that changes the vision tower; empty without one.
    pub(crate) eyes: Arc<str>,
}

/// The part of a prompt up to the end of its image, which all questions about the image have in common.
#[derive(Debug)]
pub(crate) struct Beginning {
    pub(crate) key: PrefixKey,
    pub(crate) image: Arc<RgbImage>,
    pub(crate) image_key: ImageKey,
    pub(crate) tokens: Vec<u32>,
    pub(crate) positions: Vec<Position>,
}

/// One question, waiting or running.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) view: View,
    /// What goes before its own tokens, until it is under way.
    pub(crate) beginning: Option<Beginning>,
    pub(crate) prefix: Option<PrefixKey>,
    /// The prompt after the beginning.
    pub(crate) tokens: Vec<u32>,
    pub(crate) positions: Vec<Position>,
    /// Tokens of the whole prompt.
    pub(crate) prompt_tokens: usize,
    /// The position of the token that follows.
    pub(crate) next_position: u32,
    pub(crate) goal: Goal,
    /// From its first tokens on.
    pub(crate) cache: Option<KvCache>,
}

/// What is wanted of a sequence.
#[derive(Debug)]
pub(crate) enum Goal {
    /// The logits after the prompt.
    Judge,
    /// A text.
    Write(Writing),
}

/// A text in the making.
#[derive(Debug)]
pub(crate) struct Writing {
    /// Most tokens to generate.
    pub(crate) limit: usize,
    pub(crate) tokens: Vec<u32>,
    pub(crate) chooser: Chooser,
}

impl Writing {
    /// Chooses the next token by a row of logits. Returns why the text ends, where it does.
    pub(crate) fn go_on(
        &mut self,
        readout: &Readout,
        row: usize,
        stops: &[u32],
    ) -> std::result::Result<Option<Finish>, EngineError> {
        let token = readout.choose(row, &mut self.chooser)?;
        if stops.contains(&token) {
            return Ok(Some(Finish::EndOfTurn));
        }
        self.tokens.push(token);
        Ok((self.tokens.len() >= self.limit).then_some(Finish::Length))
    }
}

impl Sequence {
    /// Most tokens that it generates.
    pub(crate) fn new_tokens(&self) -> usize {
        match &self.goal {
            Goal::Judge => 0,
            Goal::Write(writing) => writing.limit,
        }
    }

    /// Makes its cache, sized to the prompt and the longest answer, where it has none yet.
    pub(crate) fn begin(&mut self, prefix: Option<&KvPrefix>) -> Result<()> {
        if self.cache.is_none() {
            let (language, capacity) = (&self.view.model.language, self.tokens.len() + self.new_tokens());
            self.cache = Some(match prefix {
                None => language.new_cache(capacity)?,
                Some(prefix) => language.new_cache_after(prefix.clone(), capacity)?,
            });
        }
        Ok(())
    }
}

/// A beginning that running sequences share.
#[derive(Debug)]
pub(crate) struct Group {
    /// Its keys and values; written in full once [`Self::rest`] is gone.
    pub(crate) shared: KvPrefix,
    /// What it takes to run it, until it has been run.
    pub(crate) rest: Option<Unrun>,
}

/// A beginning that has not been run, or not to its end.
#[derive(Debug)]
pub(crate) struct Unrun {
    pub(crate) view: View,
    pub(crate) beginning: Beginning,
    /// Out only while a step runs it.
    pub(crate) cache: Option<KvCache>,
    /// (tokens, hidden), from the step on that sees the image.
    pub(crate) embeddings: Option<Tensor>,
}

impl Group {
    /// A beginning that was run before.
    pub(crate) fn held(shared: KvPrefix) -> Self {
        Self { shared, rest: None }
    }

    /// A beginning that is to be run.
    pub(crate) fn to_run(view: View, beginning: Beginning) -> Result<Self> {
        let cache = view.model.language.new_cache(beginning.tokens.len())?;
        let shared = cache.share()?;
        Ok(Self { shared, rest: Some(Unrun { view, beginning, cache: Some(cache), embeddings: None }) })
    }
}
