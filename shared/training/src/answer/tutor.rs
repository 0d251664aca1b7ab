//! What the inner layers of the language model are taught about single phrases.
//!
//! A caption fits if its phrases fit, and a phrase fits if what it says of the person is what the image shows. Asked for
//! the last answers alone, a model of this size did not find the first step in 1,700 steps: it seemed to learn which phrases
//! are rarely true and no more. So each step is taught where it has to happen. At the end of every phrase, the state
//! after some layers should tell what the image shows of the attributes that the phrase names; the state after the next
//! layer, whether the phrase fits; the layers that are left then have only to gather the verdicts. (Supervision of inner
//! layers: Lee et al., 2015.) The heads are thrown away.

use candle_core::{D, DType, Device, Error, Module, Result, Tensor};
use thicket_kernels::{Linear, rms_norm};
use thicket_synth::{Appearance, SLOT_COUNT};

use crate::{
    attributes::{SLOT_WIDTH, Targets},
    parameters::Parameters,
};

const EPS: f64 = 1e-6;
/// Layers after the verdict, which gather.
const GATHERING: usize = 1;

/// The end of a phrase.
#[derive(Debug, Clone)]
pub(crate) struct Phrase {
    /// Index, in the section, of its last token.
    pub(crate) at: usize,
    /// Whether it is true of the image; `None` where that cannot be told.
    pub(crate) fits: Option<bool>,
    /// What the image shows of the attributes that it names; the others are not visible.
    pub(crate) named: Appearance,
}

/// Two heads on inner states of one model.
#[derive(Debug)]
pub(crate) struct Tutor {
    seen: Linear,
    verdict: Linear,
    unit: Tensor,
    layers: usize,
}

/// The states that the heads look at, (tokens, hidden) each.
#[derive(Debug, Default)]
pub(crate) struct States {
    pub(crate) seen: Option<Tensor>,
    pub(crate) verdict: Option<Tensor>,
}

/// Losses of a batch's phrases.
#[derive(Debug)]
pub(crate) struct PhraseLoss {
    pub(crate) seen: Tensor,
    pub(crate) verdict: Tensor,
}

/// The phrases of a batch; `at` counts over the batch.
#[derive(Debug)]
pub(crate) struct Phrases {
    at: Tensor,
    named: Targets,
    /// u32 (phrases, 1): 1 for one that fits.
    fits: Tensor,
    /// f32 (phrases): 0 where the verdict is not known.
    known: Tensor,
    /// The verdicts that are known.
    pub(crate) verdicts: Vec<Option<bool>>,
}

impl Phrases {
    /// `at` of the phrases must count over the batch. `None` where there are none.
    pub(crate) fn new(phrases: &[Phrase]) -> Result<Option<Self>> {
        if phrases.is_empty() {
            return Ok(None);
        }
        let (count, device) = (phrases.len(), &Device::Cpu);
        let at: Vec<u32> = phrases.iter().map(|phrase| phrase.at as u32).collect();
        let verdicts: Vec<Option<bool>> = phrases.iter().map(|phrase| phrase.fits).collect();
        let fits: Vec<u32> = verdicts.iter().map(|fits| u32::from(*fits == Some(true))).collect();
        let known: Vec<f32> = verdicts.iter().map(|fits| f32::from(u8::from(fits.is_some()))).collect();
        let named: Vec<Appearance> = phrases.iter().map(|phrase| phrase.named).collect();
        Ok(Some(Self {
            at: Tensor::from_vec(at, count, device)?,
            named: Targets::new(&named)?,
            fits: Tensor::from_vec(fits, (count, 1), device)?,
            known: Tensor::from_vec(known, count, device)?,
            verdicts,
        }))
    }
}

impl Tutor {
    /// For a language model of `hidden` channels and `layers` layers, at least 3.
    pub(crate) fn new(hidden: usize, layers: usize, scratch: &Parameters) -> Result<Self> {
        let vb = scratch.builder();
        Ok(Self {
            seen: Linear::new(hidden, SLOT_COUNT * SLOT_WIDTH, true, vb.pp("seen"))?,
            verdict: Linear::new(hidden, 2, true, vb.pp("verdict"))?,
            unit: Tensor::ones(hidden, DType::F32, &Device::Cpu)?,
            layers,
        })
    }

    /// Keeps what the heads look at, as a forward pass shows it.
    pub(crate) fn keep(&self, states: &mut States, passed: usize, state: &Tensor) {
        if passed + GATHERING == self.layers {
            states.verdict = Some(state.clone());
        } else if passed + GATHERING + 1 == self.layers {
            states.seen = Some(state.clone());
        }
    }

    fn look(&self, head: &Linear, state: Option<&Tensor>, phrases: &Phrases) -> Result<Tensor> {
        let state = state.ok_or_else(|| Error::Msg("too few layers to teach".to_string()))?;
        head.forward(&rms_norm(&state.index_select(&phrases.at, 0)?, &self.unit, EPS, DType::F32)?)
    }

    /// Mean losses over the phrases.
    pub(crate) fn loss(&self, states: &States, phrases: &Phrases) -> Result<PhraseLoss> {
        let seen = self.look(&self.seen, states.seen.as_ref(), phrases)?;
        let seen = phrases.named.loss(&seen.reshape(((), SLOT_COUNT, SLOT_WIDTH))?)?;
        let verdict = self.look(&self.verdict, states.verdict.as_ref(), phrases)?;
        let verdict =
            candle_nn::ops::log_softmax(&verdict, D::Minus1)?.gather(&phrases.fits, 1)?.squeeze(1)?;
        let known = phrases.known.sum_all()?.to_scalar::<f32>()?.max(1.0);
        let verdict = (verdict * &phrases.known)?.sum_all()?.affine(-1.0 / f64::from(known), 0.0)?;
        Ok(PhraseLoss { seen, verdict })
    }

    /// How much each phrase is held to fit rather than not, in logits.
    pub(crate) fn margins(&self, states: &States, phrases: &Phrases) -> Result<Vec<f32>> {
        let verdict = self.look(&self.verdict, states.verdict.as_ref(), phrases)?;
        (verdict.narrow(1, 1, 1)? - verdict.narrow(1, 0, 1)?)?.squeeze(1)?.to_vec1()
    }

    /// Share of the named attributes that are told as the image shows them, 0 to 1.
    pub(crate) fn accuracy(&self, states: &States, phrases: &Phrases) -> Result<f32> {
        let seen = self.look(&self.seen, states.seen.as_ref(), phrases)?;
        phrases.named.accuracy(&seen.reshape(((), SLOT_COUNT, SLOT_WIDTH))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIDDEN: usize = 8;

    fn phrase(at: usize, fits: Option<bool>) -> Phrase {
        Phrase { at, fits, named: Appearance { values: [0; SLOT_COUNT], visible: 1 } }
    }

    fn states(tutor: &Tutor) -> States {
        let mut states = States::default();
        for passed in 1..=4 {
            let state = Tensor::full(passed as f32, (6, HIDDEN), &Device::Cpu).unwrap();
            tutor.keep(&mut states, passed, &state);
        }
        states
    }

    #[test]
    fn the_verdict_is_looked_for_one_layer_before_the_last_and_what_is_seen_one_earlier() {
        let tutor = Tutor::new(HIDDEN, 4, &Parameters::new(1)).unwrap();
        let kept = states(&tutor);
        let value = |state: Option<Tensor>| state.unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(value(kept.verdict), 3.0);
        assert_eq!(value(kept.seen), 2.0);
    }

    #[test]
    fn a_phrase_whose_truth_cannot_be_told_does_not_count() {
        let tutor = Tutor::new(HIDDEN, 4, &Parameters::new(1)).unwrap();
        let states = states(&tutor);
        let verdict = |phrases: &[Phrase]| {
            let phrases = Phrases::new(phrases).unwrap().unwrap();
            tutor.loss(&states, &phrases).unwrap().verdict.to_scalar::<f32>().unwrap()
        };
        let alone = verdict(&[phrase(0, Some(true))]);
        assert!((verdict(&[phrase(0, Some(true)), phrase(3, None)]) - alone).abs() < 1e-6);
        assert!((verdict(&[phrase(0, Some(false))]) - alone).abs() > 1e-3);
    }

    #[test]
    fn margins_follow_the_verdict_head() {
        let tutor = Tutor::new(HIDDEN, 4, &Parameters::new(1)).unwrap();
        let phrases = Phrases::new(&[phrase(0, Some(true)), phrase(5, None)]).unwrap().unwrap();
        let states = states(&tutor);
        let margins = tutor.margins(&states, &phrases).unwrap();
        let loss = tutor.loss(&states, &phrases).unwrap().verdict.to_scalar::<f32>().unwrap();
        // Cross-entropy of two classes is ln(1 + exp(-margin)).
        assert!((loss - (1.0 + (-margins[0]).exp()).ln()).abs() < 1e-5);
        assert_eq!(margins.len(), 2);
    }

    #[test]
    fn no_phrases_are_no_batch_of_phrases() {
        assert!(Phrases::new(&[]).unwrap().is_none());
    }
}
