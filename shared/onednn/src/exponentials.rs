use half::bf16;

/// Writes `exp(scale * (score - largest score))` of every score, in bf16, and returns the sum of the exponentials, in f32; their
/// relative error is below 1e-5 before they are rounded. At least one score and a positive `scale` are expected. Weights beyond the scores
/// become zero.
///
/// `None`, and nothing is written, on a processor without AVX-512 and its instructions for bf16.
///
/// # Panics
/// For fewer weights than scores, or no scores.
pub fn exponentials(scores: &[f32], scale: f32, weights: &mut [bf16]) -> Option<f32> {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512dq")
        && std::is_x86_feature_detected!("avx512vl")
        && std::is_x86_feature_detected!("avx512bf16")
    {
        // SAFETY: the processor has them.
        return Some(unsafe { avx512::exponentials(scores, scale, weights) });
    }
    None
}

#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::power_of_two;

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m256bh, __m256i, __m512, __mmask16, _mm256_mask_storeu_epi16, _mm256_storeu_si256, _mm512_add_ps,
        _mm512_cvtneps_pbh, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_loadu_ps, _mm512_maskz_loadu_ps,
        _mm512_maskz_mov_ps, _mm512_max_ps, _mm512_reduce_add_ps, _mm512_reduce_max_ps, _mm512_reduce_ps,
        _mm512_scalef_ps, _mm512_set1_ps, _mm512_setzero_ps,
    };

    use half::bf16;

    const LANES: usize = 16;
    /// The polynomial of degree 4 that is nearest to `2^x` from 0 to 1, the largest power first: its relative error is 2.6e-6.
    const POLYNOMIAL: [f32; 5] = [0.013_534_168, 0.052_011_46, 0.241_442_76, 0.693_003_83, 1.000_002_6];
    /// What is left of a value above the next whole one below, without exceptions.
    const ABOVE_WHOLE: i32 = 0b1001;

    /// The largest of some scores, of which none that is no number.
    #[target_feature(enable = "avx512f")]
    fn largest(scores: &[f32]) -> f32 {
        let least = _mm512_set1_ps(f32::NEG_INFINITY);
        let mut top = least;
        let (chunks, rest) = scores.as_chunks::<LANES>();
        for chunk in chunks {
            // SAFETY: a vector is as long.
            top = _mm512_max_ps(unsafe { _mm512_loadu_ps(chunk.as_ptr()) }, top);
        }
        // SAFETY: the masked scores are there.
        let rest = unsafe { _mm512_mask_loadu_ps(least, there(rest.len()), rest.as_ptr()) };
        _mm512_reduce_max_ps(_mm512_max_ps(rest, top))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) fn exponentials(scores: &[f32], scale: f32, weights: &mut [bf16]) -> f32 {
        assert!(!scores.is_empty() && scores.len() <= weights.len(), "weights of {} scores", scores.len());
        let factor = scale * std::f32::consts::LOG2_E;
        let (factor, offset) = (_mm512_set1_ps(factor), _mm512_set1_ps(-(factor * largest(scores))));
        let whole = scores.len() - scores.len() % LANES;
        let mut sum = _mm512_setzero_ps();
        for first in (0..whole).step_by(LANES) {
            // SAFETY: there are as many scores, and weights; both types are 16 values of 16 bits.
            unsafe {
                let chunk = _mm512_loadu_ps(scores.as_ptr().add(first));
                let value = power_of_two(_mm512_fmadd_ps(chunk, factor, offset));
                sum = _mm512_add_ps(sum, value);
                let narrow = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(value));
                _mm256_storeu_si256(weights.as_mut_ptr().add(first).cast(), narrow);
            }
        }
        for first in (whole..weights.len()).step_by(LANES) {
            let mask = there(scores.len().saturating_sub(first));
            // SAFETY: the masked scores and weights are there; both types are 16 values of 16 bits.
            unsafe {
                let chunk = _mm512_maskz_loadu_ps(mask, scores.as_ptr().wrapping_add(first));
                let value = power_of_two(_mm512_fmadd_ps(chunk, factor, offset));
                let value = _mm512_maskz_mov_ps(mask, value);
                sum = _mm512_add_ps(sum, value);
                let narrow = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(value));
                let weight = weights.as_mut_ptr().add(first).cast();
                _mm256_mask_storeu_epi16(weight, there(weights.len() - first), narrow);
            }
        }
        _mm512_reduce_add_ps(sum)
    }

    /// The first of so many values, of a vector.
    #[inline]
    fn there(values: usize) -> __mmask16 {
        ((1u32 << values.min(LANES)) - 1) as __mmask16
    }

    /// `2^x`, with a relative error below 1e-5. Of an infinite `x` nothing is left above the whole: it gives infinity or zero.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    pub(crate) fn power_of_two(x: __m512) -> __m512 {
        let part = _mm512_reduce_ps::<ABOVE_WHOLE>(x);
        // A loop and no closure: code for a processor is not inlined where it may run on any.
        let mut power = _mm512_set1_ps(POLYNOMIAL[0]);
        for term in &POLYNOMIAL[1..] {
            power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(*term));
        }
        // The instruction takes the whole below itself.
        _mm512_scalef_ps(power, x)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn exponentials_are_those_of_the_standard_library(
            scores in proptest::collection::vec(-90f32..90.0, 1..300),
            scale in 0.01f32..1.5,
        ) {
            let mut weights = vec![bf16::ZERO; scores.len()];
            let Some(sum) = exponentials(&scores, scale, &mut weights) else { return Ok(()) };
            let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exact: Vec<f64> =
                scores.iter().map(|score| ((f64::from(*score) - f64::from(top)) * f64::from(scale)).exp()).collect();
            // The exponent itself is rounded: by 1e-5 of values up to 270.
            let total: f64 = exact.iter().sum();
            prop_assert!((f64::from(sum) - total).abs() <= 1e-4 * total, "{sum} for {total}");
            for (weight, exact) in weights.iter().zip(exact) {
                prop_assert!((weight.to_f64() - exact).abs() <= 5e-3 * exact + 1e-37, "{weight} for {exact}");
            }
        }
    }

    #[test]
    fn a_score_that_is_no_number_makes_the_sum_none() {
        let mut weights = [bf16::ZERO; 3];
        let Some(sum) = exponentials(&[1.0, f32::NAN, 2.0], 1.0, &mut weights) else { return };
        assert!(sum.is_nan() && weights[1].is_nan());
    }
}
