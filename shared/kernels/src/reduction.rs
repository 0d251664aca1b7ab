//! Sums and maxima of a row, taken side by side in as many lanes as two vector registers have.
//!
//! The order depends on the length of the row alone, so that a result does not depend on what is computed beside it. A
//! plain loop over a row cannot be vectorised: it says in which order to add.

const LANES: usize = 16;

/// Sum of `part` of every value.
#[inline(always)]
pub(crate) fn sum_of(values: &[f32], part: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += part(value);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|&value| part(value)).sum::<f32>()
}

/// Sum of the products of two rows of one length.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane = a.mul_add(*b, *lane);
        }
    }
    lanes.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// The largest value; minus infinity of none. Values that are not numbers are passed over.
#[inline(always)]
pub(crate) fn largest(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, value);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_counts_once_whatever_the_length() {
        for length in 0..70 {
            let values: Vec<f32> = (0..length).map(|value| value as f32).collect();
            assert_eq!(sum_of(&values, |value| 2.0 * value), (length * length) as f32 - length as f32);
            assert_eq!(dot(&values, &values), values.iter().map(|value| value * value).sum::<f32>());
            assert_eq!(largest(&values), values.last().copied().unwrap_or(f32::NEG_INFINITY));
        }
    }

    #[test]
    fn the_largest_is_found_wherever_it_stands() {
        for place in 0..40 {
            let mut values = vec![-5.0; 40];
            values[place] = -1.0;
            assert_eq!(largest(&values), -1.0);
        }
    }
}
