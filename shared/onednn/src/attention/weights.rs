//! Weights of attention from scores.
//!
//! A weight is a power of two, `2^(whole + part)`, rounded to bf16: eight bits of it are seen. So it is computed in 16 bits, 32 weights
//! at a time, by instructions for integers. Of those for numbers with a point a core carries out half as many as otherwise while it
//! multiplies tiles, and for most of a microsecond after.

use std::{
    arch::x86_64::{
        __m512, __m512bh, __m512i, __mmask16, _CMP_ORD_Q, _mm512_add_epi16, _mm512_cvtps_epi32,
        _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_cmp_ps_mask, _mm512_mask_loadu_ps,
        _mm512_maskz_mov_epi16, _mm512_max_ps, _mm512_mulhrs_epi16, _mm512_or_si512, _mm512_packus_epi32,
        _mm512_reduce_add_ps, _mm512_reduce_max_ps, _mm512_set1_epi16, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_slli_epi16, _mm512_srli_epi16, _mm512_store_si512, _mm512_sub_epi16, _mm512_subs_epu16,
        _mm512_test_epi16_mask,
    },
    mem::transmute,
};

use crate::{
    amx::{DEPTH, LINE},
    lines::Line,
};

/// Values of a vector in f32.
const LANES: usize = 16;
/// Bits of an exponent behind its point, of which bf16 has so many not.
const PART_BITS: u32 = 11;
const ROUNDED: u32 = PART_BITS - 7;
/// The exponent of the largest weight, which is 1; the smallest there is has 0.
const MOST: i16 = 31;
const EXPONENT: i16 = (127 - MOST) << 7;
const ONE: i16 = 127 << 7;
/// `2^part - 1` is below `part` by about `(1/4 - middle^2) (BELOW + SLOPE middle)` with `middle = part - 1/2`, in the units of the products of
/// 16 bits. They were found by trying all for all parts: with the rounding the error is 4.1e-3 at most and 1.663e-3 in the mean square;
/// rounding alone makes 3.8e-3 and 1.659e-3.
const BELOW: i16 = 175;
const SLOPE: i16 = 20;
/// Half of the last bit that bf16 has, less what the products are too small in the mean.
const ROUNDING: i16 = 7;

/// The largest of some scores; not a number where one of them is none.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn largest(scores: &[f32]) -> f32 {
    let least = _mm512_set1_ps(f32::NEG_INFINITY);
    let (mut top, mut numbers) = (least, !0);
    let (whole, rest) = scores.as_chunks::<DEPTH>();
    for scores in whole {
        // SAFETY: there are 32 scores.
        let [low, high] = unsafe { [0, LANES].map(|first| _mm512_loadu_ps(scores.as_ptr().add(first))) };
        top = _mm512_max_ps(top, _mm512_max_ps(low, high));
        numbers = _mm512_mask_cmp_ps_mask::<_CMP_ORD_Q>(numbers, low, high);
    }
    let [low, high] = masked(rest, least);
    top = _mm512_max_ps(top, _mm512_max_ps(low, high));
    numbers = _mm512_mask_cmp_ps_mask::<_CMP_ORD_Q>(numbers, low, high);
    if numbers == !0 { _mm512_reduce_max_ps(top) } else { f32::NAN }
}

/// Up to 32 scores, filled up with others.
#[inline]
#[target_feature(enable = "avx512f")]
fn masked(scores: &[f32], others: __m512) -> [__m512; 2] {
    let there = ((1u64 << scores.len()) - 1) as u32;
    let (low, high) = (there as __mmask16, (there >> LANES) as __mmask16);
    // SAFETY: the masked scores are there.
    unsafe {
        [
            _mm512_mask_loadu_ps(others, low, scores.as_ptr()),
            _mm512_mask_loadu_ps(others, high, scores.as_ptr().wrapping_add(LANES)),
        ]
    }
}

/// Writes `2^(scale (score - top))` of every score, for a positive `scale` and the largest score, and returns the sum of what was
/// written. Where the largest is infinite or not a number the sum is not a number. Weights below 2^-31 become that, or zero; those behind the scores are zero.
///
/// A line has 32 weights, those of pairs of scores side by side: see [`place_of_pair`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn weigh(scores: &[f32], top: f32, scale: f32, weights: &mut [Line]) -> f32 {
    let unit = (1 << PART_BITS) as f32;
    let scale = scale * unit;
    // Its own rounding is a factor of all weights, and none of their shares.
    let largest = f32::from(MOST) * unit + f32::from(ROUNDING);
    let offset = _mm512_set1_ps(scale.mul_add(-top, largest));
    let scale = _mm512_set1_ps(scale);
    let (whole, rest) = scores.as_chunks::<DEPTH>();
    let mut sum = _mm512_setzero_ps();
    let (lines, unseen) = weights.split_at_mut(whole.len());
    for (scores, line) in whole.iter().zip(lines) {
        // SAFETY: there are 32 scores.
        let scores = unsafe { [0, LANES].map(|first| _mm512_loadu_ps(scores.as_ptr().add(first))) };
        sum = write(powers_of_two(exponents(scores, scale, offset)), sum, line);
    }
    let unseen = match unseen {
        [line, unseen @ ..] if !rest.is_empty() => {
            let exponents = exponents(masked(rest, _mm512_set1_ps(f32::NEG_INFINITY)), scale, offset);
            let seen = _mm512_test_epi16_mask(exponents, exponents);
            sum = write(_mm512_maskz_mov_epi16(seen, powers_of_two(exponents)), sum, line);
            unseen
        }
        unseen => unseen,
    };
    unseen.fill(Line([0; LINE]));
    if top.is_finite() { _mm512_reduce_add_ps(sum) } else { f32::NAN }
}

/// The exponents of 32 scores, with a point before the last 11 bits, and 7 more. None is below zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn exponents([low, high]: [__m512; 2], scale: __m512, offset: __m512) -> __m512i {
    let low = _mm512_cvtps_epi32(_mm512_fmadd_ps(low, scale, offset));
    let high = _mm512_cvtps_epi32(_mm512_fmadd_ps(high, scale, offset));
    _mm512_packus_epi32(low, high)
}

/// 2 to the power of [`exponents`] less [`MOST`], in bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn powers_of_two(exponents: __m512i) -> __m512i {
    // Products of 16 bits are here of numbers from -1 to 1, and rounded. The others that there are the compiler takes apart.
    let part = _mm512_slli_epi16::<{ 16 - PART_BITS }>(exponents);
    let middle = _mm512_sub_epi16(part, _mm512_set1_epi16(i16::MIN + (ROUNDING << (16 - PART_BITS))));
    let product = _mm512_sub_epi16(_mm512_set1_epi16(i16::MAX), _mm512_mulhrs_epi16(middle, middle));
    let slope = _mm512_mulhrs_epi16(middle, _mm512_set1_epi16(SLOPE));
    let below = _mm512_mulhrs_epi16(product, _mm512_add_epi16(slope, _mm512_set1_epi16(BELOW)));
    // Not below zero.
    let bits = _mm512_srli_epi16::<ROUNDED>(_mm512_subs_epu16(exponents, below));
    _mm512_or_si512(bits, _mm512_set1_epi16(EXPONENT))
}

/// Writes weights, and returns the sums of pairs of them added to `sum`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn write(weights: __m512i, sum: __m512, line: &mut Line) -> __m512 {
    let one = _mm512_set1_epi16(ONE);
    // SAFETY: both types are 32 values of 16 bits; a line is a vector, and aligned like one.
    unsafe {
        _mm512_store_si512((&raw mut line.0).cast(), weights);
        _mm512_dpbf16_ps(sum, transmute::<__m512i, __m512bh>(weights), transmute::<__m512i, __m512bh>(one))
    }
}

/// Where the weights of a pair of keys are among the 16 pairs of a line.
pub(super) const fn place_of_pair(pair: usize) -> usize {
    pair % 8 / 2 * 4 + pair / 8 * 2 + pair % 2
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;

    /// The sum of the weights, and the weights in the order of the scores.
    fn weighed(scores: &[f32], scale: f32) -> Option<(f32, Vec<bf16>)> {
        if !crate::amx::available() {
            return None;
        }
        let mut lines = vec![Line([0xff; LINE]); scores.len().div_ceil(DEPTH) + 1];
        // SAFETY: where AMX is, the vectors are.
        let sum = unsafe { weigh(scores, largest(scores), scale, &mut lines) };
        let value = |place: usize| {
            let at = 2 * place_of_pair(place % DEPTH / 2) + place % 2;
            let bytes = &lines[place / DEPTH].0[2 * at..][..2];
            bf16::from_ne_bytes([bytes[0], bytes[1]])
        };
        Some((sum, (0..lines.len() * DEPTH).map(value).collect()))
    }

    proptest! {
        #[test]
        fn weights_are_powers_of_two_rounded_to_bf16(
            scores in proptest::collection::vec(-90f32..90.0, 1..300),
            scale in 0.01f32..1.5,
        ) {
            let Some((sum, weights)) = weighed(&scores, scale) else { return Ok(()) };
            let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = weights.iter().map(|weight| weight.to_f64()).sum();
            prop_assert!((f64::from(sum) - total).abs() <= 1e-5 * total, "{sum} for {total}");
            // All of them by the same factor, which the offset's rounding makes.
            let exact = |score: &f32| ((f64::from(*score) - f64::from(top)) * f64::from(scale)).exp2();
            for (weight, exact) in weights.iter().zip(scores.iter().map(exact)) {
                if exact > (-30f64).exp2() {
                    prop_assert!((weight.to_f64() - exact).abs() <= 4.6e-3 * exact, "{weight} for {exact}");
                } else {
                    prop_assert!(weight.to_f64() <= (-29.9f64).exp2(), "{weight} for {exact}");
                }
            }
            prop_assert!(weights[scores.len()..].iter().all(|weight| *weight == bf16::ZERO));
        }
    }

    #[test]
    fn a_score_that_is_no_number_makes_the_sum_none() {
        for place in [0, 15, 40, 65] {
            for none in [f32::NAN, f32::INFINITY] {
                let mut scores = vec![1.0; 66];
                scores[place] = none;
                let Some((sum, _)) = weighed(&scores, 1.0) else { return };
                assert!(sum.is_nan(), "{none} at {place}: {sum}");
            }
        }
    }

    #[test]
    fn a_score_of_minus_infinity_has_next_to_no_weight() {
        let mut scores = vec![3.0; 40];
        scores[5] = f32::NEG_INFINITY;
        scores[39] = f32::NEG_INFINITY;
        let Some((sum, weights)) = weighed(&scores, 0.7) else { return };
        assert_eq!((sum, weights[0]), (38.0, bf16::ONE));
        assert!(weights[5].to_f32() <= 1e-9 && weights[39].to_f32() <= 1e-9);
    }
}
