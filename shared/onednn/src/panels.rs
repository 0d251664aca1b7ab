//! Products of few rows by a packed weight in bf16, without the library.
//!
//! Every weight is read once for them, so it is memory that limits their speed. The library's code for AMX reads at less than
//! half of what memory gives then, and it is what decodes.

use half::bf16;
use rayon::prelude::*;

/// Outputs that the library is known to keep side by side.
const WIDTHS: [usize; 4] = [64, 48, 32, 16];
/// The inputs are filled up to less than this many more.
const MOST_FILL: usize = 64;
/// Pairs of inputs after which the next row has its turn: 16 KiB of the weight at the most, which stay in the first cache.
const PAIRS: usize = 64;

/// How a weight `[outputs, inputs]` lies in memory: `[outputs / width][inputs / 2][width][2]`, outputs and inputs filled up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Panels {
    width: usize,
    /// Of a panel, with what fills it up.
    pairs: usize,
}

impl Panels {
    /// The panels in which `packed` holds a weight of so many inputs; none where it is in another order. The library does not
    /// tell, so every value is compared.
    pub(crate) fn of(packed: &[bf16], weight: &[bf16], input: usize) -> Option<Self> {
        if input == 0 || !input.is_multiple_of(2) || weight.is_empty() {
            return None;
        }
        let output = weight.len() / input;
        WIDTHS.into_iter().find_map(|width| {
            let outputs = output.next_multiple_of(width);
            let filled = packed.len() / outputs;
            let whole = packed.len() == outputs * filled;
            let fits = whole && (input..input + MOST_FILL).contains(&filled) && filled.is_multiple_of(2);
            let panels = Self { width, pairs: filled / 2 };
            (fits && panels.hold(packed, weight, input)).then_some(panels)
        })
    }

    fn hold(self, packed: &[bf16], weight: &[bf16], input: usize) -> bool {
        let bits = |value: &bf16| value.to_bits();
        weight.par_chunks(self.width * input).zip(packed.par_chunks(self.values())).all(|(rows, panel)| {
            rows.chunks(input).enumerate().all(|(output, row)| {
                let pairs = panel.chunks_exact(2 * self.width).map(|outputs| &outputs[2 * output..][..2]);
                row.chunks(2).zip(pairs).all(|(row, panel)| row.iter().map(bits).eq(panel.iter().map(bits)))
            })
        })
    }

    /// Outputs of a panel.
    pub(crate) fn width(self) -> usize {
        self.width
    }

    /// Values of a panel.
    pub(crate) fn values(self) -> usize {
        2 * self.width * self.pairs
    }

    /// The product of rows `x`, row-major `[rows, inputs]`, with a panel: `sums` `[rows, width]`, overwritten.
    pub(crate) fn multiply(self, panel: &[bf16], x: &[f32], input: usize, sums: &mut Vec<f32>) {
        sums.clear();
        sums.resize(x.len() / input * self.width, 0.0);
        match self.width {
            64 => multiply::<64>(panel, x, input, sums),
            48 => multiply::<48>(panel, x, input, sums),
            32 => multiply::<32>(panel, x, input, sums),
            _ => multiply::<16>(panel, x, input, sums),
        }
    }
}

#[inline(never)]
fn multiply<const WIDTH: usize>(panel: &[bf16], x: &[f32], input: usize, sums: &mut [f32]) {
    let (pairs, _) = panel.as_chunks::<2>();
    let (outputs, _) = pairs.as_chunks::<WIDTH>();
    let (sums, _) = sums.as_chunks_mut::<WIDTH>();
    for (part, outputs) in outputs.chunks(PAIRS).enumerate() {
        for (row, sums) in x.chunks_exact(input).zip(sums.iter_mut()) {
            let (row, _) = row.as_chunks::<2>();
            // What fills the panel up has no inputs.
            let row = row.get(part * PAIRS..).unwrap_or_default();
            let mut kept = *sums;
            for (weights, [even, odd]) in outputs.iter().zip(row) {
                for (sum, [first, second]) in kept.iter_mut().zip(weights) {
                    *sum = wide(*first).mul_add(*even, *sum);
                    *sum = wide(*second).mul_add(*odd, *sum);
                }
            }
            *sums = kept;
        }
    }
}

#[inline(always)]
fn wide(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn weight(output: usize, input: usize) -> Vec<bf16> {
        (0..output * input).map(|place| bf16::from_f32((place * 7 % 251) as f32 / 64.0 - 2.0)).collect()
    }

    fn packed(weight: &[bf16], input: usize, width: usize, filled: usize) -> Vec<bf16> {
        let outputs = (weight.len() / input).next_multiple_of(width);
        let mut packed = vec![bf16::ZERO; outputs * filled];
        for (place, value) in weight.iter().enumerate() {
            let (output, input) = (place / input, place % input);
            let pair = output / width * (filled / 2) + input / 2;
            packed[(pair * width + output % width) * 2 + input % 2] = *value;
        }
        packed
    }

    proptest! {
        #[test]
        fn panels_are_recognised_and_their_products_are_those_of_the_weight(
            width in proptest::sample::select(&WIDTHS[..]),
            output in 1usize..150,
            half in 1usize..200,
            rows in 1usize..6,
        ) {
            let input = 2 * half;
            let weight = weight(output, input);
            let packed = packed(&weight, input, width, input.next_multiple_of(32));
            let panels = Panels::of(&packed, &weight, input).expect("the order is a known one");
            let x: Vec<f32> = (0..rows * input).map(|place| (place % 17) as f32 / 8.0 - 1.0).collect();
            let mut sums = Vec::new();
            for (first, panel) in packed.chunks(panels.values()).enumerate() {
                panels.multiply(panel, &x, input, &mut sums);
                for (row, sums) in x.chunks(input).zip(sums.chunks(panels.width())) {
                    for (place, sum) in sums.iter().enumerate() {
                        let output = first * panels.width() + place;
                        let Some(weights) = weight.chunks(input).nth(output) else { continue };
                        let expected: f64 =
                            row.iter().zip(weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                        prop_assert!((f64::from(*sum) - expected).abs() < 1e-3, "{sum} for {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn another_order_is_not_taken_for_panels() {
        let weight = weight(64, 64);
        assert_eq!(Panels::of(&weight, &weight, 64), None);
        let mut packed = packed(&weight, 64, 64, 64);
        packed.swap(1, 3);
        assert_eq!(Panels::of(&packed, &weight, 64), None);
        packed.swap(1, 3);
        assert!(Panels::of(&packed, &weight, 64).is_some());
        packed.extend([bf16::ZERO; 32]);
        assert_eq!(Panels::of(&packed, &weight, 64), None);
    }
}
