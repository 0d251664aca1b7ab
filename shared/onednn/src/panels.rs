//! Products of few rows by a weight in bf16 as the library packed it, without the library.
//!
//! Every weight is read once for few rows, so it is memory that limits their speed. The library's code reads at less than half of what
//! memory gives then.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use crate::product::{FewRows, LANES, Sums, pairs};

/// Most rows that are multiplied in vectors; the library is as fast with a few more.
pub(crate) const MOST_ROWS: usize = 12;
/// Outputs that the library is known to keep side by side.
const WIDTHS: [usize; 4] = [64, 48, 32, 16];
/// The inputs are filled up to less than this many more.
const MOST_FILL: usize = 64;
/// Pairs of inputs after which the next vectors of a panel have their turn: 32 KiB of two panels, which stay in the first cache.
const PAIRS: usize = 64;

/// A pair of inputs for each output of a vector.
type Weights = [[bf16; 2]; LANES];

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
                row.chunks(2)
                    .zip(self.row(panel, output))
                    .all(|(row, pair)| row.iter().map(bits).eq(pair.iter().map(bits)))
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

    /// The inputs of one output of a panel, in pairs, and what fills them up.
    pub(crate) fn row(self, panel: &[bf16], output: usize) -> impl Iterator<Item = &[bf16]> {
        panel.chunks_exact(2 * self.width).map(move |pair| &pair[2 * output..][..2])
    }

    /// The product of rows of pairs of inputs with some panels, as `[rows][outputs]` in vectors, added to `sums`.
    ///
    /// A sum takes up its products input by input, whatever the number of rows and panels.
    fn add_products(self, panels: &[bf16], x: &[[f32; 2]], rows: usize, sums: &mut [Sums]) {
        match rows {
            1 => self.add_rows::<1, 4, 4>(panels, x, sums),
            2 => self.add_rows::<2, 2, 4>(panels, x, sums),
            3 => self.add_rows::<3, 2, 4>(panels, x, sums),
            4 => self.add_rows::<4, 2, 2>(panels, x, sums),
            5 => self.add_rows::<5, 2, 2>(panels, x, sums),
            6 => self.add_rows::<6, 2, 2>(panels, x, sums),
            7 => self.add_rows::<7, 1, 2>(panels, x, sums),
            8 => self.add_rows::<8, 1, 2>(panels, x, sums),
            9 => self.add_rows::<9, 1, 2>(panels, x, sums),
            10 => self.add_rows::<10, 1, 2>(panels, x, sums),
            11 => self.add_rows::<11, 1, 2>(panels, x, sums),
            _ => self.add_rows::<MOST_ROWS, 1, 2>(panels, x, sums),
        }
    }

    /// `VECTORS` of `PANELS` side by side, where they divide so.
    fn add_rows<const ROWS: usize, const PANELS: usize, const VECTORS: usize>(
        self,
        panels: &[bf16],
        x: &[[f32; 2]],
        sums: &mut [Sums],
    ) {
        let pairs = x.len() / ROWS;
        let x: [_; ROWS] = std::array::from_fn(|row| &x[row * pairs..(row + 1) * pairs]);
        let (weights, _) = panels.as_chunks::<2>();
        let (weights, _) = weights.as_chunks::<LANES>();
        let vectors = self.width / LANES;
        let panels: Vec<&[Weights]> = weights.chunks_exact(self.pairs * vectors).collect();
        match <[&[Weights]; PANELS]>::try_from(panels.as_slice()) {
            Ok(panels) if vectors.is_multiple_of(VECTORS) => {
                add_products::<ROWS, PANELS, VECTORS>(panels, x, vectors, sums);
            }
            _ => {
                for (place, panel) in panels.iter().enumerate() {
                    let mut own = vec![[0.0; LANES]; ROWS * vectors];
                    add_products::<ROWS, 1, 1>([panel], x, vectors, &mut own);
                    let rows = sums.chunks_exact_mut(panels.len() * vectors);
                    for (sums, own) in rows.zip(own.chunks_exact(vectors)) {
                        sums[place * vectors..][..vectors].copy_from_slice(own);
                    }
                }
            }
        }
    }
}

/// Up to [`MOST_ROWS`] rows, and the weight that they are multiplied by, in panels.
pub(crate) struct Rows<'a> {
    panels: Panels,
    weight: &'a [bf16],
    rows: usize,
    /// `[rows][inputs / 2]`
    x: Vec<[f32; 2]>,
}

impl<'a> Rows<'a> {
    /// Of `x`, row-major `[rows, inputs]`, at least one.
    pub(crate) fn new(panels: Panels, weight: &'a [bf16], x: &[bf16], rows: usize) -> Self {
        Self { panels, weight, rows, x: pairs(x).iter().map(|pair| pair.map(bf16::to_f32)).collect() }
    }
}

impl FewRows for Rows<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn panels(&self) -> usize {
        self.weight.len() / self.panels.values()
    }

    fn width(&self) -> usize {
        self.panels.width
    }

    fn group(&self) -> usize {
        match self.rows {
            1 => 4,
            2..=6 => 2,
            _ => 1,
        }
    }

    fn multiply(&self, group: Range<usize>, sums: &mut [Sums]) {
        let values = group.start * self.panels.values()..group.end * self.panels.values();
        self.panels.add_products(&self.weight[values], &self.x, self.rows, sums);
    }
}

/// Adds the products of `ROWS` rows and `PANELS` panels to `sums` `[ROWS][PANELS][vectors]`. A panel is `[pairs][vectors]`; the
/// rows are pairs of inputs, of one length, and no longer than the panels.
///
/// Several panels are read side by side, `VECTORS` vectors of each at a time: memory gives more to several readings than to one.
fn add_products<const ROWS: usize, const PANELS: usize, const VECTORS: usize>(
    panels: [&[Weights]; PANELS],
    x: [&[[f32; 2]]; ROWS],
    vectors: usize,
    sums: &mut [Sums],
) {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has it.
        return unsafe { avx512::add_products::<ROWS, PANELS, VECTORS>(panels, x, vectors, sums) };
    }
    portable::add_products(panels, x, vectors, sums);
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
            output in 1usize..300,
            half in 1usize..200,
            rows in 1usize..=MOST_ROWS,
        ) {
            let input = 2 * half;
            let weight = weight(output, input);
            let packed = packed(&weight, input, width, input.next_multiple_of(32));
            let panels = Panels::of(&packed, &weight, input).expect("the order is a known one");
            let x: Vec<bf16> =
                (0..rows * input).map(|place| bf16::from_f32((place % 17) as f32 / 8.0 - 1.0)).collect();
            // Other panels than those that were made may hold the same values in the same places.
            let width = panels.width();
            let ready = Rows::new(panels, &packed, &x, rows);
            for first in (0..ready.panels()).step_by(ready.group()) {
                let group = first..(first + ready.group()).min(ready.panels());
                let mut sums = vec![[0.0; LANES]; rows * group.len() * width / LANES];
                ready.multiply(group, &mut sums);
                let sums = sums.as_flattened();
                for (row, sums) in x.chunks(input).zip(sums.chunks(sums.len() / rows)) {
                    for (place, sum) in sums.iter().enumerate() {
                        let output = first * width + place;
                        let Some(weights) = weight.chunks(input).nth(output) else { continue };
                        let expected: f64 =
                            row.iter().zip(weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                        prop_assert!((f64::from(*sum) - expected).abs() < 1e-3, "{sum} for {expected}");
                    }
                }
            }
        }

        #[test]
        fn every_processor_and_every_grouping_makes_the_same_sums(
            pairs in 1usize..200,
            values in proptest::collection::vec(-1f32..1.0, 97),
        ) {
            const VECTORS: usize = 4;
            let weights = |seed: usize| -> Vec<Weights> {
                let value = |place: usize| bf16::from_f32(values[(place * 31 + seed) % values.len()]);
                (0..pairs * VECTORS)
                    .map(|line| std::array::from_fn(|lane| [0, 1].map(|odd| value((line * LANES + lane) * 2 + odd))))
                    .collect()
            };
            let panels = [weights(0), weights(1)];
            let rows: [Vec<[f32; 2]>; 3] = std::array::from_fn(|row| {
                (0..pairs).map(|pair| [0, 1].map(|odd| values[(pair * 2 + odd + row * 7) % values.len()])).collect()
            });
            let x = rows.each_ref().map(Vec::as_slice);
            let [first, second] = panels.each_ref().map(Vec::as_slice);
            let zeros = |count: usize| vec![[0f32; LANES]; count];
            let mut together = zeros(3 * 2 * VECTORS);
            add_products::<3, 2, 4>([first, second], x, VECTORS, &mut together);
            let mut plain = zeros(3 * 2 * VECTORS);
            portable::add_products([first, second], x, VECTORS, &mut plain);
            prop_assert_eq!(&together, &plain);
            for (row, sums) in x.into_iter().zip(together.chunks(2 * VECTORS)) {
                for (panel, sums) in [first, second].into_iter().zip(sums.chunks(VECTORS)) {
                    let mut alone = zeros(VECTORS);
                    add_products::<1, 1, 1>([panel], [row], VECTORS, &mut alone);
                    prop_assert_eq!(alone.as_slice(), sums);
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
