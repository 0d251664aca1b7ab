use half::bf16;

/// What a row is normalised by.
#[derive(Debug, Clone, Copy)]
pub struct Moments {
    /// Added to the variance.
    pub eps: f32,
    /// Whether the row is taken from its mean. Otherwise the mean counts as zero, and the variance is the mean square: root-mean-square
    /// normalisation.
    pub centred: bool,
}

impl Moments {
    /// Mean and `1 / sqrt(variance + eps)` of a row of at least one value.
    ///
    /// `None` on a processor without AVX-512.
    #[must_use]
    pub fn of(self, row: &[f32]) -> Option<(f32, f32)> {
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has it.
            return Some(unsafe { avx512::moments(row, self) });
        }
        let _ = row;
        None
    }
}

/// Normalisation of rows: `(x - mean) / sqrt(variance + eps) * weight + bias`.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// One for each value of a row; at least one.
    pub weight: &'a [f32],
    /// As many, or none.
    pub bias: Option<&'a [f32]>,
    /// Mean and variance.
    pub moments: Moments,
}

impl Norm<'_> {
    /// Rows `[rows, weight]`, one after the other, normalised in f32 and rounded to bf16, in parallel.
    ///
    /// `None` on a processor without AVX-512 and its instructions for bf16.
    ///
    /// # Panics
    /// For a bias of another length than the weight's, or values that are no whole rows.
    #[must_use]
    pub fn narrow(&self, x: &[f32]) -> Option<Vec<bf16>> {
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx512f")
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512bf16")
        {
            let width = self.weight.len();
            assert!(self.bias.is_none_or(|bias| bias.len() == width), "a bias for {width} values");
            assert!(width > 0 && x.len().is_multiple_of(width), "{} values in rows of {width}", x.len());
            // SAFETY: the processor has them.
            return Some(avx512::narrow(x, width, |row, y| unsafe { avx512::narrow_row(row, self, y) }));
        }
        let _ = x;
        None
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::{
        arch::x86_64::{
            __m512, __m512bh, __m512i, __mmask16, __mmask32, _MM_HINT_T0, _mm512_add_ps, _mm512_cvtne2ps_pbh,
            _mm512_fmadd_ps, _mm512_mask_storeu_epi16, _mm512_maskz_loadu_ps, _mm512_maskz_sub_ps,
            _mm512_mul_ps, _mm512_reduce_add_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_sub_ps,
        },
        mem::{MaybeUninit, transmute},
    };

    use half::bf16;
    use rayon::prelude::*;

    use super::{Moments, Norm};
    use crate::{amx::ask_for, target::Target};

    const LANES: usize = 16;
    /// Sums side by side, so that none waits for the one before it.
    const SUMS: usize = 4;
    /// Values that are asked for so far ahead, behind the row too: the next one lies there where rows are taken in turn.
    const AHEAD: usize = 1024;
    /// Values of a task: enough work to be worth a task switch.
    const VALUES_PER_TASK: usize = 16 * 1024;

    /// Calls `write` with every row of `x` and its place in the result.
    pub(super) fn narrow(
        x: &[f32],
        width: usize,
        write: impl Fn(&[f32], &mut [MaybeUninit<bf16>]) + Sync,
    ) -> Vec<bf16> {
        let mut y = Vec::with_capacity(x.len());
        let target = Target::new(&mut y, x.len() / width, width);
        let rows = (VALUES_PER_TASK / width).max(1);
        x.par_chunks(rows * width).enumerate().for_each(|(chunk, x)| {
            for (row, x) in x.chunks_exact(width).enumerate() {
                // SAFETY: a row of this chunk, which nobody else has.
                write(x, unsafe { target.part(chunk * rows + row, 0..width) });
            }
        });
        // SAFETY: every row was written.
        unsafe { y.set_len(x.len()) };
        y
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn moments(row: &[f32], Moments { eps, centred }: Moments) -> (f32, f32) {
        let count = row.len() as f32;
        let mut sums = [_mm512_setzero_ps(); SUMS];
        let mut mean = 0.0;
        if centred {
            for first in (0..row.len()).step_by(SUMS * LANES) {
                for (at, sum) in sums.iter_mut().enumerate() {
                    let first = first + at * LANES;
                    ask_for::<_MM_HINT_T0>(row.as_ptr().wrapping_add(first + AHEAD).cast());
                    *sum = _mm512_add_ps(*sum, load(row, first, there(row, first)));
                }
            }
            mean = total(sums) / count;
            sums = [_mm512_setzero_ps(); SUMS];
        }
        for first in (0..row.len()).step_by(SUMS * LANES) {
            for (at, sum) in sums.iter_mut().enumerate() {
                let first = first + at * LANES;
                if !centred {
                    ask_for::<_MM_HINT_T0>(row.as_ptr().wrapping_add(first + AHEAD).cast());
                }
                let mask = there(row, first);
                let apart = _mm512_maskz_sub_ps(mask, load(row, first, mask), _mm512_set1_ps(mean));
                *sum = _mm512_fmadd_ps(apart, apart, *sum);
            }
        }
        (mean, 1.0 / (total(sums) / count + eps).sqrt())
    }

    /// # Safety
    /// The row, its place and the norm are of one length.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn narrow_row(row: &[f32], norm: &Norm<'_>, y: &mut [MaybeUninit<bf16>]) {
        let (mean, scale) = moments(row, norm.moments);
        let (mean, scale) = (_mm512_set1_ps(mean), _mm512_set1_ps(scale));
        for first in (0..row.len()).step_by(2 * LANES) {
            let mut halves = [_mm512_setzero_ps(); 2];
            for (half, value) in halves.iter_mut().enumerate() {
                let first = first + half * LANES;
                let mask = there(row, first);
                let scaled = _mm512_mul_ps(_mm512_sub_ps(load(row, first, mask), mean), scale);
                let weight = load(norm.weight, first, mask);
                *value = match norm.bias {
                    Some(bias) => _mm512_fmadd_ps(scaled, weight, load(bias, first, mask)),
                    None => _mm512_mul_ps(scaled, weight),
                };
            }
            let mask = ((1u64 << (row.len() - first).min(2 * LANES)) - 1) as __mmask32;
            // SAFETY: both types are 32 values of 16 bits, of which the masked ones are there.
            unsafe {
                let narrow = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(halves[1], halves[0]));
                _mm512_mask_storeu_epi16(y.as_mut_ptr().add(first).cast(), mask, narrow);
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
        debug_assert!(mask == 0 || first + mask.count_ones() as usize <= values.len());
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
            rows in 1usize..5,
            with_bias: bool,
            centred: bool,
        ) {
            let row: Vec<f32> = values.iter().map(|value| value.0).collect();
            let x: Vec<f32> = (0..rows).flat_map(|times| row.iter().map(move |x| x * (times + 1) as f32)).collect();
            let weight: Vec<f32> = values.iter().map(|value| value.1).collect();
            let bias: Vec<f32> = values.iter().map(|value| value.2).collect();
            let norm = Norm {
                weight: &weight,
                bias: with_bias.then_some(&bias),
                moments: Moments { eps: 1e-5, centred },
            };
            let Some(narrow) = norm.narrow(&x) else { return Ok(()) };
            prop_assert_eq!(narrow.len(), x.len());
            let width = weight.len();
            for (x, narrow) in x.chunks(width).zip(narrow.chunks(width)) {
                let count = width as f64;
                let sum = x.iter().copied().map(f64::from).sum::<f64>();
                let mean = if centred { sum / count } else { 0.0 };
                let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count;
                let scale = 1.0 / (variance + 1e-5).sqrt();
                let found = norm.moments.of(x).unwrap();
                prop_assert!((f64::from(found.0) - mean).abs() < 1e-4, "{found:?} for {mean}");
                prop_assert!((f64::from(found.1) - scale).abs() < 1e-3 * scale, "{found:?} for {scale}");
                for (place, narrow) in narrow.iter().enumerate() {
                    let scaled = (f64::from(x[place]) - f64::from(found.0)) * f64::from(found.1);
                    let expected =
                        scaled * f64::from(weight[place]) + if with_bias { f64::from(bias[place]) } else { 0.0 };
                    // Half a step of bf16.
                    prop_assert!((narrow.to_f64() - expected).abs() <= expected.abs() / 256.0 + 1e-5, "{narrow} for {expected}");
                }
            }
        }
    }
}
