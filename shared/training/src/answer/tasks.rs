//! The three things the answer model learns to say, as rows of tokens.

use rand::{Rng, seq::IndexedRandom};
use thicket_qwen::PromptEncoder;
use thicket_synth::{Appearance, Caption, Claim, answers, describe, merge, numbered};
use thicket_thi::prompts::{PromptSet, describe::sentences};

use super::{
    rows::{Row, Section},
    tutor::Phrase,
};
use crate::{TrainingError, sample::Sample};

/// What the tasks are written with.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    encoder: &'a PromptEncoder,
    prompts: &'a PromptSet,
    yes: u32,
    no: u32,
    /// Where the caption begins in the locate prompt.
    before_caption: String,
    grid: (usize, usize),
}

impl<'a> Writer<'a> {
    pub(crate) fn new(
        encoder: &'a PromptEncoder,
        prompts: &'a PromptSet,
        grid: (usize, usize),
    ) -> Result<Self, TrainingError> {
        const MARK: &str = "CAPTION";
        let one = |word| match encoder.single_tokens(&[word])[..] {
            [id] => Ok(id),
            _ => Err(TrainingError::model("reading the tokenizer", format!("`{word}` is not one token"))),
        };
        let template =
            prompts.locate(MARK).map_err(|cause| TrainingError::model("writing a prompt", cause))?;
        let before_caption = template.split(MARK).next().unwrap_or_default().to_string();
        Ok(Self { encoder, prompts, yes: one("Yes")?, no: one("No")?, before_caption, grid })
    }

    fn tokens(&self, text: &str) -> Result<Vec<u32>, TrainingError> {
        self.encoder.tokenize(text).map_err(|cause| TrainingError::model("tokenizing", cause))
    }

    /// An empty row about an image.
    pub(crate) fn image_row(&self) -> Row {
        Row { prefix: self.encoder.image_prefix(self.grid), grid: Some(self.grid), sections: Vec::new() }
    }

    /// Is it the person? After each phrase, whether that phrase fits what the image shows.
    pub(crate) fn locate(
        &self,
        caption: &Caption,
        shown: &Appearance,
        same_person: bool,
    ) -> Result<Section, TrainingError> {
        let prompt = self
            .prompts
            .locate(&caption.text)
            .map_err(|cause| TrainingError::model("writing a prompt", cause))?;
        let question =
            self.encoder.question(&prompt).map_err(|cause| TrainingError::model("tokenizing", cause))?;
        let mut section = Section::judged(question, if same_person { self.yes } else { self.no });
        section.phrases = self.phrases(&self.before_caption, caption, shown)?;
        Ok(section)
    }

    /// A caption on its own, with no question: only its phrases are judged.
    pub(crate) fn drill(&self, caption: &Caption, shown: &Appearance) -> Result<Section, TrainingError> {
        let tokens = self.tokens(&format!("{}{}", self.before_caption, caption.text))?;
        let phrases = self.phrases(&self.before_caption, caption, shown)?;
        Ok(Section { tokens, phrases, ..Section::default() })
    }

    /// The phrases of a caption that stands after `before` at the beginning of a section.
    fn phrases(
        &self,
        before: &str,
        caption: &Caption,
        shown: &Appearance,
    ) -> Result<Vec<Phrase>, TrainingError> {
        let phrase = |claim: &Claim| {
            let said = format!("{before}{}", &caption.text[..claim.span.end]);
            let at = self.tokens(&said)?.len().saturating_sub(1);
            let claimed = claim.slots.iter().fold(0, |slots, claim| slots | 1 << claim.slot);
            let named = Appearance { visible: shown.visible & claimed, ..*shown };
            Ok(Phrase { at, fits: claim.fits(shown), named })
        };
        caption.claims.iter().map(phrase).collect()
    }

    /// The two words of a judgement, as tokens: Yes and No.
    pub(crate) fn words(&self) -> (u32, u32) {
        (self.yes, self.no)
    }

    /// The attribute answers.
    pub(crate) fn describe(&self, shown: &Appearance) -> Result<Section, TrainingError> {
        let prompt =
            self.prompts.describe().map_err(|cause| TrainingError::model("writing a prompt", cause))?;
        let question =
            self.encoder.question(&prompt).map_err(|cause| TrainingError::model("tokenizing", cause))?;
        Ok(Section::answered(question, &self.answer(&numbered(&answers(shown)))?))
    }

    /// The answers merged into the caption.
    pub(crate) fn aggregate(&self, caption: &Caption, shown: &Appearance) -> Result<Section, TrainingError> {
        let mut parts = vec![caption.text.clone()];
        parts.extend(sentences(&numbered(&answers(shown))));
        let prompt = self
            .prompts
            .aggregate(&parts)
            .map_err(|cause| TrainingError::model("writing a prompt", cause))?;
        let question = self
            .encoder
            .encode(&prompt, None)
            .map_err(|cause| TrainingError::model("tokenizing", cause))?
            .tokens;
        Ok(Section::answered(question, &self.answer(&merge(caption, shown))?))
    }

    fn answer(&self, text: &str) -> Result<Vec<u32>, TrainingError> {
        let mut tokens = self.tokens(text)?;
        tokens.push(self.encoder.end_of_turn());
        Ok(tokens)
    }
}

/// Which captions are asked about which images.
#[derive(Debug)]
pub(crate) struct Pairs {
    /// For each image, the images of other people whose captions rank it among their best.
    mined: Vec<Vec<u32>>,
}

impl Pairs {
    /// `rankings` has, for the caption of each image, the most similar images of other people.
    pub(crate) fn new(rankings: &[Vec<u32>]) -> Self {
        let mut mined = vec![Vec::new(); rankings.len()];
        for (caption, ranking) in rankings.iter().enumerate() {
            for &image in ranking {
                mined[image as usize].push(caption as u32);
            }
        }
        Self { mined }
    }

    /// A caption to ask about image `view`, and whether it is of the same person: half of them are; of the others half
    /// are mined, a third look-alikes and the rest anyone.
    pub(crate) fn draw(&self, sample: &Sample, view: usize, rng: &mut impl Rng) -> (Caption, bool) {
        if rng.random_bool(0.5) {
            let other = sample.any_view(sample.person_of(view), rng);
            return (sample.fresh_caption(other, rng), true);
        }
        let chance: f32 = rng.random();
        if chance < 0.5
            && let Some(&caption) = self.mined[view].choose(rng)
        {
            let (_, caption) = &sample.views[caption as usize].captions[0];
            return (caption.clone(), false);
        }
        let other = if chance < 0.84 { sample.look_alike(view, rng) } else { None };
        let other = other.unwrap_or_else(|| {
            loop {
                let other = rng.random_range(0..sample.len());
                if sample.person_of(other) != sample.person_of(view) {
                    break other;
                }
            }
        });
        (sample.fresh_caption(other, rng), false)
    }
}

/// A few phrases in a row of what is said of the image itself, of its person or of anyone, in a witness's words or in
/// plain ones.
pub(crate) fn short_caption(sample: &Sample, view: usize, rng: &mut impl Rng) -> Caption {
    let source = match rng.random_range(0..10) {
        0..4 => view,
        4 => sample.any_view(sample.person_of(view), rng),
        _ => rng.random_range(0..sample.len()),
    };
    let full = if rng.random_bool(0.4) {
        describe(&sample.appearance(source))
    } else {
        sample.fresh_caption(source, rng)
    };
    let count = rng.random_range(1..=5).min(full.claims.len());
    let first = rng.random_range(0..=full.claims.len() - count);
    let claims = &full.claims[first..first + count];
    let start = claims.first().map_or(0, |claim| claim.span.start);
    let end = claims.last().map_or(full.text.len(), |claim| claim.span.end);
    let claims = claims
        .iter()
        .cloned()
        .map(|mut claim| {
            claim.span = claim.span.start - start..claim.span.end - start;
            claim
        })
        .collect();
    Caption { text: full.text[start..end].to_string(), claims }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};
    use thicket_synth::{Benchmark, Sizes, Split};

    use super::*;
    use crate::answer::{PROMPTS, VOCABULARY, config, corpus, vocabulary};

    fn sample() -> Sample {
        let sizes = Sizes { train: 3, val: 1, test: 1, ..Sizes::default() };
        Sample::paint(&Benchmark::new(5, sizes).unwrap(), Split::Train)
    }

    fn encoder(sample: &Sample) -> PromptEncoder {
        let tokenizer = vocabulary::learn(&corpus(sample), VOCABULARY).unwrap();
        let config = config(&tokenizer).unwrap();
        PromptEncoder::new(tokenizer, &config).unwrap()
    }

    #[test]
    fn a_phrase_is_judged_at_its_last_token_by_what_it_names() {
        let sample = sample();
        let encoder = encoder(&sample);
        let prompts = PromptSet::parse(PROMPTS).unwrap();
        let writer = Writer::new(&encoder, &prompts, (6, 3)).unwrap();
        let mut rng = StdRng::seed_from_u64(3);
        for view in 0..sample.len() {
            let caption = sample.fresh_caption((view + 1) % sample.len(), &mut rng);
            let shown = sample.appearance(view);
            let section = writer.locate(&caption, &shown, true).unwrap();
            assert_eq!(section.phrases.len(), caption.claims.len());
            for (phrase, claim) in section.phrases.iter().zip(&caption.claims) {
                let said = encoder.decode(&section.tokens[..=phrase.at]).unwrap();
                assert_eq!(said, caption.text[..claim.span.end]);
                assert_eq!(phrase.fits, claim.fits(&shown));
                for slot in 0..thicket_synth::SLOT_COUNT {
                    let claimed = claim.slots.iter().any(|claim| claim.slot == slot);
                    assert_eq!(phrase.named.is_visible(slot), claimed && shown.is_visible(slot));
                }
            }
        }
    }

    #[test]
    fn a_judgement_is_asked_for_after_the_whole_question() {
        let sample = sample();
        let encoder = encoder(&sample);
        let prompts = PromptSet::parse(PROMPTS).unwrap();
        let writer = Writer::new(&encoder, &prompts, (6, 3)).unwrap();
        let (yes, no) = writer.words();
        let (_, caption) = &sample.views[0].captions[0];
        for (same, word) in [(true, yes), (false, no)] {
            let section = writer.locate(caption, &sample.appearance(0), same).unwrap();
            let question = encoder.question(&prompts.locate(&caption.text).unwrap()).unwrap();
            assert_eq!(section.tokens, question);
            let target = section.judgement.unwrap();
            assert_eq!((target.at, target.token), (question.len() - 1, word));
        }
    }

    #[test]
    fn a_short_caption_holds_whole_phrases() {
        let sample = sample();
        let mut rng = StdRng::seed_from_u64(4);
        for view in 0..sample.len() {
            let caption = short_caption(&sample, view, &mut rng);
            assert!((1..=5).contains(&caption.claims.len()));
            assert_eq!(caption.claims[0].span.start, 0);
            assert_eq!(caption.claims.last().unwrap().span.end, caption.text.len());
        }
    }
}
