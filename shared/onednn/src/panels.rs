//! Products by a packed weight in bf16, without the library.
//!
//! Every weight is read once for few rows, so it is memory that limits their speed. The library's code for AMX reads at less than
//! half of what memory gives then, and it is what decodes. Many rows are multiplied here too where there is AMX: see [`blocks`].

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod blocks;
#[cfg(target_arch = "x86_64")]
mod compact;
mod portable;
mod product;

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
pub(crate) use blocks::BLOCK;
#[cfg(target_arch = "x86_64")]
pub(crate) use compact::{Compact, Unpacking};
use half::bf16;
pub(crate) use product::{Finish, PanelProduct};
use rayon::prelude::*;

/// Most rows that are multiplied in vectors; the library is as fast with a few more.
const MOST_IN_VECTORS: usize = 12;
/// Fewest rows that are multiplied in tiles, where there are any.
const FEWEST_IN_TILES: usize = 7;
/// Outputs that the library is known to keep side by side.
const WIDTHS: [usize; 4] = [64, 48, 32, 16];
/// The inputs are filled up to less than this many more.
const MOST_FILL: usize = 64;
/// Outputs of a vector.
const LANES: usize = 16;
/// Pairs of inputs after which the next vectors of a panel have their turn: 32 KiB of two panels, which stay in the first cache.
const PAIRS: usize = 64;

/// A pair of inputs for each output of a vector.
type Weights = [[bf16; 2]; LANES];
/// A sum for each output of a vector.
pub(crate) type Sums = [f32; LANES];

/// How a weight `[outputs, inputs]` lies in memory: `[outputs / width][inputs / 2][width][2]`, outputs and inputs filled up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Panels {
    width: usize,
    /// Of a panel, with what fills it up.
    pairs: usize,
}

impl Panels {
    /// Panels for tiles, of so many inputs. None without tiles, and for inputs that do not fill them.
    #[cfg(target_arch = "x86_64")]
    fn for_tiles(input: usize) -> Option<Self> {
        let panels = Self { width: amx::WIDTH, pairs: input / 2 };
        (input > 0 && panels.has_blocks(input)).then_some(panels)
    }

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

    /// Whether panels are multiplied in tiles too.
    fn has_tiles(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.width == amx::WIDTH && self.pairs.is_multiple_of(amx::DEPTH / 2) && amx::available();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether any number of rows of so many inputs is multiplied in [`Blocks`], from a block's on.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_blocks(self, input: usize) -> bool {
        self.has_tiles() && input.is_multiple_of(amx::DEPTH)
    }

    /// Most rows that are not multiplied in blocks.
    fn most_rows(self) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.has_tiles() {
            return amx::MOST_ROWS;
        }
        MOST_IN_VECTORS
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
            _ => self.add_rows::<MOST_IN_VECTORS, 1, 2>(panels, x, sums),
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

/// A weight in panels.
#[derive(Clone, Copy)]
pub(crate) struct Weight<'a> {
    pub(crate) panels: Panels,
    pub(crate) stored: Stored<'a>,
}

/// Where the values of the panels are.
#[derive(Clone, Copy)]
pub(crate) enum Stored<'a> {
    /// Panel by panel.
    Plain(&'a [bf16]),
    #[cfg(target_arch = "x86_64")]
    Compact(&'a Compact),
}

impl<'a> Weight<'a> {
    /// How many panels there are.
    pub(crate) fn count(self) -> usize {
        match self.stored {
            Stored::Plain(values) => values.len() / self.panels.values(),
            #[cfg(target_arch = "x86_64")]
            Stored::Compact(compact) => compact.count(),
        }
    }

    /// Where a step of a panel lies in memory, and its bytes. What lies behind the last one need not be there.
    #[cfg(target_arch = "x86_64")]
    fn place(self, panel: usize, step: usize) -> (*const u8, usize) {
        match self.stored {
            Stored::Plain(values) => {
                let start = values.as_ptr().wrapping_add(panel * self.panels.values());
                (start.cast::<u8>().wrapping_add(step * amx::STEP), amx::STEP)
            }
            Stored::Compact(compact) => (compact.place(panel, step), compact::STEP_BYTES),
        }
    }

    /// Most rows that are not multiplied in blocks.
    pub(crate) fn most_rows(self) -> usize {
        self.panels.most_rows()
    }

    /// Makes rows `x`, row-major `[rows, inputs]`, at least 1 and at most [`Self::most_rows`], ready to be multiplied by it.
    pub(crate) fn by(self, x: &[bf16], rows: usize) -> FewRows<'a> {
        let Self { panels, stored } = self;
        let factors = match stored {
            #[cfg(target_arch = "x86_64")]
            Stored::Plain(weight) if rows >= FEWEST_IN_TILES && panels.has_tiles() => {
                Factors::Tiles { weight, x: amx::packed(x, rows) }
            }
            Stored::Plain(weight) => {
                let (pairs, _) = x.as_chunks::<2>();
                let x = pairs.iter().map(|pair| pair.map(bf16::to_f32)).collect();
                Factors::Vectors { weight, x }
            }
            #[cfg(target_arch = "x86_64")]
            Stored::Compact(weight) if rows > compact::MOST_IN_VECTORS => {
                Factors::CompactTiles { weight, x: amx::packed(x, rows) }
            }
            #[cfg(target_arch = "x86_64")]
            Stored::Compact(weight) => Factors::CompactVectors { weight, x: x.as_chunks().0.to_vec() },
        };
        FewRows { rows, panels, factors }
    }
}

/// Rows, and the weight that they are multiplied by panel by panel.
pub(crate) struct FewRows<'a> {
    rows: usize,
    panels: Panels,
    factors: Factors<'a>,
}

/// Rows in the order in which they are multiplied.
enum Factors<'a> {
    /// `[rows][inputs / 2]`
    Vectors { weight: &'a [bf16], x: Vec<[f32; 2]> },
    #[cfg(target_arch = "x86_64")]
    Tiles { weight: &'a [bf16], x: Vec<bf16> },
    /// `[rows][inputs / 2]`
    #[cfg(target_arch = "x86_64")]
    CompactVectors { weight: &'a Compact, x: Vec<[bf16; 2]> },
    #[cfg(target_arch = "x86_64")]
    CompactTiles { weight: &'a Compact, x: Vec<bf16> },
}

impl FewRows<'_> {
    /// How many panels they are best multiplied by at a time.
    pub(crate) fn group(&self) -> usize {
        match (&self.factors, self.rows) {
            (Factors::Vectors { .. }, 1) => 4,
            (Factors::Vectors { .. }, 2..=6) => 2,
            _ => 1,
        }
    }

    /// The product with a group of panels, or less, as `[rows][outputs]` in vectors, overwritten.
    pub(crate) fn multiply(&self, group: Range<usize>, sums: &mut Vec<Sums>) {
        sums.clear();
        sums.resize(self.rows * group.len() * self.panels.width / LANES, [0.0; LANES]);
        let values = group.start * self.panels.values()..group.end * self.panels.values();
        match &self.factors {
            Factors::Vectors { weight, x } => {
                self.panels.add_products(&weight[values], x, self.rows, sums);
            }
            #[cfg(target_arch = "x86_64")]
            Factors::Tiles { weight, x } => {
                amx::multiply(&mut &weight[values], x, self.rows, sums.as_flattened_mut());
            }
            #[cfg(target_arch = "x86_64")]
            Factors::CompactVectors { weight, x } => weight.multiply(group.start, x, self.rows, sums),
            #[cfg(target_arch = "x86_64")]
            Factors::CompactTiles { weight, x } => {
                let mut panel = Unpacking::new(weight, group.start);
                amx::multiply(&mut panel, x, self.rows, sums.as_flattened_mut());
            }
        }
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

    pub(super) fn packed(weight: &[bf16], input: usize, width: usize, filled: usize) -> Vec<bf16> {
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
            rows in 1usize..=40,
        ) {
            let input = 2 * half;
            let weight = weight(output, input);
            let packed = packed(&weight, input, width, input.next_multiple_of(32));
            let panels = Panels::of(&packed, &weight, input).expect("the order is a known one");
            let rows = rows.min(panels.most_rows());
            let x: Vec<bf16> =
                (0..rows * input).map(|place| bf16::from_f32((place % 17) as f32 / 8.0 - 1.0)).collect();
            let weight_in_panels = Weight { panels, stored: Stored::Plain(&packed) };
            let ready = weight_in_panels.by(&x, rows);
            let mut sums = Vec::new();
            let (group, count) = (ready.group(), weight_in_panels.count());
            for first in 0..count.div_ceil(group) {
                ready.multiply(first * group..((first + 1) * group).min(count), &mut sums);
                let sums = sums.as_flattened();
                for (row, sums) in x.chunks(input).zip(sums.chunks(sums.len() / rows)) {
                    for (place, sum) in sums.iter().enumerate() {
                        let output = first * group * panels.width() + place;
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
