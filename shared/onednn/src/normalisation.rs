use half::bf16;

/// Mean and variance of some values, at least one: the sum of their distances from the mean, squared, by their number.
///
/// `None` on a processor without AVX-512.
#[must_use]
pub fn moments(values: &[f32]) -> Option<(f32, f32)> {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has it.
        return Some(unsafe { avx512::moments(values) });
    }
    None
}

/// Writes `(x - mean) * scale * weight + bias` of every value, computed in f32, in bf16.
///
/// `false`, and nothing is written, on a processor without AVX-512 and its instructions for bf16.
///
/// # Panics
/// For slices of another length.
#[must_use]
pub fn normalised(
    x: &[f32],
    mean: f32,
    scale: f32,
    weight: &[f32],
    bias: Option<&[f32]>,
    output: &mut [bf16],
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512vl")
        && std::is_x86_feature_detected!("avx512bf16")
    {
        let fits = weight.len() == x.len() && bias.is_none_or(|bias| bias.len() == x.len());
        assert!(fits && output.len() == x.len(), "{} values to normalise", x.len());
        // SAFETY: the processor has them, and the slices are of one length.
        unsafe { avx512::normalised(x, mean, scale, weight, bias, output) };
        return true;
    }
    false
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m256bh, __m256i, __m512, __mmask16, _MM_HINT_T0, _mm256_mask_storeu_epi16, _mm512_add_ps,
        _mm512_cvtneps_pbh, _mm512_fmadd_ps, _mm512_maskz_loadu_ps, _mm512_maskz_sub_ps, _mm512_mul_ps,
        _mm512_reduce_add_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_sub_ps,
    };

    use half::bf16;

    use crate::amx::ask_for;

    const LANES: usize = 16;
    /// Sums side by side, so that none waits for the one before it.
    const SUMS: usize = 4;
    /// Values that are asked for so far ahead, behind the row too: the next one lies there where rows are taken in turn.
    const AHEAD: usize = 1024;

    #[target_feature(enable = "avx512f")]
    pub(super) fn moments(values: &[f32]) -> (f32, f32) {
        let count = values.len() as f32;
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for first in (0..values.len()).step_by(SUMS * LANES) {
            for (at, sum) in sums.iter_mut().enumerate() {
                let first = first + at * LANES;
                ask_for::<_MM_HINT_T0>(values.as_ptr().wrapping_add(first + AHEAD).cast());
                *sum = _mm512_add_ps(*sum, load(values, first, there(values, first)));
            }
        }
        let mean = total(sums) / count;
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for first in (0..values.len()).step_by(SUMS * LANES) {
            for (at, sum) in sums.iter_mut().enumerate() {
                let first = first + at * LANES;
                let mask = there(values, first);
                let apart = _mm512_maskz_sub_ps(mask, load(values, first, mask), _mm512_set1_ps(mean));
                *sum = _mm512_fmadd_ps(apart, apart, *sum);
            }
        }
        (mean, total(sums) / count)
    }

    /// # Safety
    /// The slices are of one length.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn normalised(
        x: &[f32],
        mean: f32,
        scale: f32,
        weight: &[f32],
        bias: Option<&[f32]>,
        output: &mut [bf16],
    ) {
        let (mean, scale) = (_mm512_set1_ps(mean), _mm512_set1_ps(scale));
        for first in (0..x.len()).step_by(LANES) {
            let mask = there(x, first);
            let apart = _mm512_sub_ps(load(x, first, mask), mean);
            let (scaled, weight) = (_mm512_mul_ps(apart, scale), load(weight, first, mask));
            let value = match bias {
                Some(bias) => _mm512_fmadd_ps(scaled, weight, load(bias, first, mask)),
                None => _mm512_mul_ps(scaled, weight),
            };
            // SAFETY: both types are 16 values of 16 bits, of which the masked ones are there.
            unsafe {
                let narrow = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(value));
                _mm256_mask_storeu_epi16(output.as_mut_ptr().add(first).cast(), mask, narrow);
            }
        }
    }

    /// Those of a vector that are there.
    #[inline]
    fn there(values: &[f32], first: usize) -> __mmask16 {
        ((1u32 << values.len().saturating_sub(first).min(LANES)) - 1) as __mmask16
    }

    /// Up to a vector of values, filled up with zeros.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(values: &[f32], first: usize, mask: __mmask16) -> __m512 {
        debug_assert!(first + mask.count_ones() as usize <= values.len());
        // SAFETY: the masked values are there.
        unsafe { _mm512_maskz_loadu_ps(mask, values.as_ptr().wrapping_add(first)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn total([a, b, c, d]: [__m512; SUMS]) -> f32 {
        _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_are_normalised_as_in_f64(
            values in proptest::collection::vec((-3f32..30.0, -2f32..2.0, -1f32..1.0), 1..300),
            with_bias: bool,
        ) {
            let x: Vec<f32> = values.iter().map(|value| value.0).collect();
            let weight: Vec<f32> = values.iter().map(|value| value.1).collect();
            let bias: Vec<f32> = values.iter().map(|value| value.2).collect();
            let count = x.len() as f64;
            let mean = x.iter().copied().map(f64::from).sum::<f64>() / count;
            let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count;
            let Some(found) = moments(&x) else { return Ok(()) };
            prop_assert!((f64::from(found.0) - mean).abs() < 1e-4, "{found:?} for {mean}");
            prop_assert!((f64::from(found.1) - variance).abs() < 1e-4 * (1.0 + variance), "{found:?} for {variance}");
            let mut output = vec![bf16::NAN; x.len()];
            let bias = with_bias.then_some(bias.as_slice());
            if !normalised(&x, 1.5, 0.25, &weight, bias, &mut output) {
                return Ok(());
            }
            for (place, output) in output.iter().enumerate() {
                let expected = (f64::from(x[place]) - 1.5) * 0.25 * f64::from(weight[place])
                    + bias.map_or(0.0, |bias| f64::from(bias[place]));
                // Half a step of bf16.
                prop_assert!((output.to_f64() - expected).abs() <= expected.abs() / 256.0 + 1e-5, "{output} for {expected}");
            }
        }
    }
}
