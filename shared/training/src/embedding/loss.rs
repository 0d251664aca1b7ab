//! Contrastive losses over a matrix of cosines, rows texts and columns images.

use candle_core::{D, DType, Device, Result, Tensor};

/// Temperature of the triplet alignment loss, as RDE has it.
const TAU: f64 = 0.015;
/// Margin of the triplet alignment loss, as RDE has it.
const MARGIN: f64 = 0.1;
/// Bound on a sum of exponentials before its logarithm.
const LARGEST_SUM: f64 = 1e36;

/// Rows of unit length.
pub(crate) fn normalised(x: &Tensor) -> Result<Tensor> {
    let length = x.sqr()?.sum_keepdim(D::Minus1)?.affine(1.0, 1e-12)?.sqrt()?;
    x.broadcast_div(&length)
}

/// 1 where two people are the same: f32 (batch, batch).
pub(crate) fn same_person(people: &[usize]) -> Result<Tensor> {
    let same: Vec<f32> =
        people.iter().flat_map(|a| people.iter().map(move |b| f32::from(u8::from(a == b)))).collect();
    Tensor::from_vec(same, (people.len(), people.len()), &Device::Cpu)
}

/// Triplet alignment loss of RDE (CVPR 2024), in both directions, mean over the batch.
///
/// For each row, `max(0, m - sum_j a_ij S_ij + tau ln sum_j M_ij exp(S_ij / tau))`, where `a` is the softmax over the
/// positives (without gradient) and `M` marks the negatives. `cosines` and `same` are (batch, batch); every row needs a
/// positive and a negative.
pub(crate) fn triplet_alignment(cosines: &Tensor, same: &Tensor) -> Result<Tensor> {
    let one_way = |cosines: &Tensor, same: &Tensor| -> Result<Tensor> {
        let powers = (cosines / TAU)?.exp()?;
        let positives = (&powers * same)?.detach();
        let share = positives.broadcast_div(&positives.sum_keepdim(1)?)?;
        let aligned = (share * cosines)?.sum(1)?;
        let negatives = (powers * (1.0 - same)?)?.sum(1)?.clamp(1e-30, LARGEST_SUM)?;
        ((negatives.log()? * TAU)? - aligned)?.affine(1.0, MARGIN)?.relu()?.mean_all()
    };
    one_way(cosines, same)? + one_way(&cosines.t()?.contiguous()?, &same.t()?.contiguous()?)?
}

/// Cross-entropy of the softmax over the batch in both directions, at a fixed scale. The positives of a row share its
/// target evenly.
pub(crate) fn softmax_contrast(cosines: &Tensor, same: &Tensor, scale: f64) -> Result<Tensor> {
    let one_way = |cosines: &Tensor, same: &Tensor| -> Result<Tensor> {
        let target = same.broadcast_div(&same.sum_keepdim(1)?)?;
        let log_p = candle_nn::ops::log_softmax(&(cosines * scale)?, 1)?;
        (log_p * target)?.sum(1)?.neg()?.mean_all()
    };
    (one_way(cosines, same)? + one_way(&cosines.t()?.contiguous()?, &same.t()?.contiguous()?)?)? * 0.5
}

/// Shares of rows whose best column is of the same person, 0 to 1.
pub(crate) fn batch_rank1(cosines: &Tensor, same: &Tensor) -> Result<f32> {
    let best = cosines.argmax_keepdim(1)?;
    same.gather(&best, 1)?.to_dtype(DType::F32)?.mean_all()?.to_scalar()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formula of one row, written out.
    fn plain_row(scores: &[f32], same: &[bool]) -> f64 {
        let exp = |s: f32| (f64::from(s) / TAU).exp();
        let positive: f64 = scores.iter().zip(same).filter(|(_, same)| **same).map(|(s, _)| exp(*s)).sum();
        let aligned: f64 = scores
            .iter()
            .zip(same)
            .filter(|(_, same)| **same)
            .map(|(s, _)| exp(*s) / positive * f64::from(*s))
            .sum();
        let negative: f64 = scores.iter().zip(same).filter(|(_, same)| !**same).map(|(s, _)| exp(*s)).sum();
        (MARGIN - aligned + TAU * negative.ln()).max(0.0)
    }

    #[test]
    fn triplet_alignment_equals_its_formula() -> Result<()> {
        let scores = [[0.9f32, 0.2, 0.85], [0.1, 0.5, 0.45], [0.7, 0.3, 0.6]];
        let people = [4, 7, 4];
        let cosines = Tensor::new(&scores, &Device::Cpu)?;
        let actual = triplet_alignment(&cosines, &same_person(&people)?)?.to_scalar::<f32>()?;
        let mut expected = 0.0;
        for i in 0..3 {
            let same: Vec<bool> = (0..3).map(|j| people[i] == people[j]).collect();
            let column: Vec<f32> = (0..3).map(|j| scores[j][i]).collect();
            expected += (plain_row(&scores[i], &same) + plain_row(&column, &same)) / 3.0;
        }
        assert!((f64::from(actual) - expected).abs() < 1e-4, "{actual} {expected}");
        Ok(())
    }

    #[test]
    fn well_separated_pairs_cost_nothing() -> Result<()> {
        let cosines = Tensor::new(&[[0.9f32, -0.5], [-0.5, 0.9]], &Device::Cpu)?;
        let same = same_person(&[0, 1])?;
        assert_eq!(triplet_alignment(&cosines, &same)?.to_scalar::<f32>()?, 0.0);
        assert_eq!(batch_rank1(&cosines, &same)?, 1.0);
        Ok(())
    }
}
