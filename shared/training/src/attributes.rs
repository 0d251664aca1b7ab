use candle_core::{D, DType, Device, Result, Tensor};
use thicket_synth::{Appearance, SLOT_COUNT, SLOTS};

/// Width of a row of attribute logits: the most values any slot has.
pub(crate) const SLOT_WIDTH: usize = 10;

/// Attribute ground truth of a batch of images.
#[derive(Debug)]
pub(crate) struct Targets {
    /// u32 (batch, slots, 1)
    values: Tensor,
    /// f32 (batch, slots); 1 where a viewer can tell the slot.
    visible: Tensor,
}

impl Targets {
    pub(crate) fn new(appearances: &[Appearance]) -> Result<Self> {
        let values: Vec<u32> =
            appearances.iter().flat_map(|appearance| appearance.values.map(u32::from)).collect();
        let visible: Vec<f32> = appearances
            .iter()
            .flat_map(|appearance| {
                (0..SLOT_COUNT).map(|slot| f32::from(u8::from(appearance.is_visible(slot))))
            })
            .collect();
        let batch = appearances.len();
        Ok(Self {
            values: Tensor::from_vec(values, (batch, SLOT_COUNT, 1), &Device::Cpu)?,
            visible: Tensor::from_vec(visible, (batch, SLOT_COUNT), &Device::Cpu)?,
        })
    }

    /// Mean cross-entropy of logits (batch, slots, [`SLOT_WIDTH`]) over the visible slots.
    pub(crate) fn loss(&self, logits: &Tensor) -> Result<Tensor> {
        let logits = logits.broadcast_add(&absent_values()?)?;
        let loss =
            candle_nn::ops::log_softmax(&logits, D::Minus1)?.gather(&self.values, 2)?.squeeze(2)?.neg()?;
        let count = self.visible.sum_all()?.to_scalar::<f32>()?.max(1.0);
        (loss * &self.visible)?.sum_all()?.affine(1.0 / f64::from(count), 0.0)
    }

    /// Share of the visible slots whose largest logit is the truth, 0 to 1.
    pub(crate) fn accuracy(&self, logits: &Tensor) -> Result<f32> {
        let guess = logits.broadcast_add(&absent_values()?)?.argmax(D::Minus1)?;
        let right = guess.eq(&self.values.squeeze(2)?)?.to_dtype(DType::F32)?;
        let right = (right * &self.visible)?.sum_all()?.to_scalar::<f32>()?;
        Ok(right / self.visible.sum_all()?.to_scalar::<f32>()?.max(1.0))
    }
}

/// A large negative number where a slot has no such value: (slots, [`SLOT_WIDTH`]).
fn absent_values() -> Result<Tensor> {
    const NEVER: f32 = -1e4;
    let values: Vec<f32> = SLOTS
        .iter()
        .flat_map(|slot| (0..SLOT_WIDTH).map(|value| if value < slot.values.len() { 0.0 } else { NEVER }))
        .collect();
    Tensor::from_vec(values, (SLOT_COUNT, SLOT_WIDTH), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_fits_the_logits() {
        assert!(SLOTS.iter().all(|slot| slot.values.len() <= SLOT_WIDTH));
    }

    #[test]
    fn a_hidden_slot_does_not_count() -> Result<()> {
        let appearance = Appearance { values: [1; SLOT_COUNT], visible: 0b11 };
        let targets = Targets::new(&[appearance])?;
        let mut logits = vec![0f32; SLOT_COUNT * SLOT_WIDTH];
        logits[1] = 50.0;
        logits[SLOT_WIDTH] = 50.0;
        let logits = Tensor::from_vec(logits, (1, SLOT_COUNT, SLOT_WIDTH), &Device::Cpu)?;
        assert_eq!(targets.accuracy(&logits)?, 0.5);
        assert!((targets.loss(&logits)?.to_scalar::<f32>()? - 25.0).abs() < 1e-3);
        Ok(())
    }
}
