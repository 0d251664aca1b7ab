use half::bf16;

/// Writes `exp(scale * (score - largest score))` of every score, in bf16, and returns the sum of the exponentials, in f32; their
/// relative error is below 1e-5 before they are rounded. At least one score and a positive `scale` are expected.
///
/// `None`, and nothing is written, on a processor without AVX-512 and its instructions for bf16.
pub fn exponentials(scores: &[f32], scale: f32, weights: &mut [bf16]) -> Option<f32> {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bf16") {
        assert_eq!(scores.len(), weights.len());
        // SAFETY: the processor has both.
        return Some(unsafe { avx512::exponentials(scores, scale, weights) });
    }
    None
}

#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{exponentials as exponentials_in_vectors, power_of_two};

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m256bh, __m512, _mm512_add_ps, _mm512_cvtneps_pbh, _mm512_fmadd_ps, _mm512_loadu_ps,
        _mm512_mask_mov_ps, _mm512_max_ps, _mm512_reduce_add_ps, _mm512_reduce_max_ps, _mm512_roundscale_ps,
        _mm512_scalef_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_sub_ps,
    };

    use half::bf16;

    const LANES: usize = 16;
    /// `ln(2)^n / n!`, the largest power first.
    const SERIES: [f32; 6] =
        [0.001_333_355_8, 0.009_618_129, 0.055_504_11, 0.240_226_5, std::f32::consts::LN_2, 1.0];

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(crate) fn exponentials(scores: &[f32], scale: f32, weights: &mut [bf16]) -> f32 {
        let (chunks, rest) = scores.as_chunks::<LANES>();
        // Filled up with a score that changes no maximum and, left out of the sum, no sum.
        let mut last = [scores[0]; LANES];
        last[..rest.len()].copy_from_slice(rest);
        let mut top = load(&last);
        for chunk in chunks {
            top = _mm512_max_ps(load(chunk), top);
        }
        let factor = scale * std::f32::consts::LOG2_E;
        let top = _mm512_reduce_max_ps(top);
        let (factor, offset) = (_mm512_set1_ps(factor), _mm512_set1_ps(-(factor * top)));
        let mut sum = _mm512_setzero_ps();
        let (wide, narrow) = weights.as_chunks_mut::<LANES>();
        for (weights, chunk) in wide.iter_mut().zip(chunks) {
            let value = power_of_two(_mm512_fmadd_ps(load(chunk), factor, offset));
            sum = _mm512_add_ps(sum, value);
            *weights = rounded(value);
        }
        if !rest.is_empty() {
            let value = power_of_two(_mm512_fmadd_ps(load(&last), factor, offset));
            let value = _mm512_mask_mov_ps(_mm512_setzero_ps(), (1 << rest.len()) - 1, value);
            sum = _mm512_add_ps(sum, value);
            narrow.copy_from_slice(&rounded(value)[..rest.len()]);
        }
        _mm512_reduce_add_ps(sum)
    }

    /// `2^x`, with a relative error below 1e-5. An infinite `x` leaves no number of its part, which the last instruction does not
    /// heed: it gives infinity or zero.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) fn power_of_two(x: __m512) -> __m512 {
        let whole = _mm512_roundscale_ps::<0>(x);
        let part = _mm512_sub_ps(x, whole);
        // A loop and no closure: code for a processor is not inlined where it may run on any.
        let mut series = _mm512_set1_ps(SERIES[0]);
        for term in &SERIES[1..] {
            series = _mm512_fmadd_ps(series, part, _mm512_set1_ps(*term));
        }
        _mm512_scalef_ps(series, whole)
    }

    #[target_feature(enable = "avx512f")]
    fn load(values: &[f32; LANES]) -> __m512 {
        // SAFETY: a vector is as long.
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn rounded(values: __m512) -> [bf16; LANES] {
        // SAFETY: both are 16 values of 16 bits, any of which are a bf16.
        unsafe { std::mem::transmute::<__m256bh, [bf16; LANES]>(_mm512_cvtneps_pbh(values)) }
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
