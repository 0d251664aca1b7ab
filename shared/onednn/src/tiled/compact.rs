//! A weight in bf16 in three quarters of its bytes, without loss.
//!
//! Decoding reads every weight once a token, so fewer bytes are less time. A bf16 is a sign, 8 bits of exponent and 7 of fraction.
//! Signs and fractions are as good as random, but the values of a weight are of much the same size: 15 exponents out of 256, and that of
//! zeros, are those of nearly all of them. So a value is kept as a byte of sign and fraction and four bits that number its exponent, and the
//! few values with another exponent are kept beside, whole. (That trained weights have so few exponents is what ZipNN,
//! arXiv 2411.05239, and DFloat11, arXiv 2504.11651, rest upon; they use codes of varying length.) Two bytes are put together
//! again by looking up 64 values at a time in a vector register, while memory is waited for anyway.

mod avx512;

use std::{mem::MaybeUninit, ops::Range};

use half::bf16;
use rayon::prelude::*;

use super::{
    few_rows::Source,
    weight::{STEP_LINES, WIDTH},
};
use crate::{
    Error,
    amx::{DEPTH, TILE},
    lines::{Line, Lines},
    product::{LANES, Sums},
};

/// Most rows that are multiplied in vectors: tiles are as fast for 4 and up to 16.
pub(super) const MOST_IN_VECTORS: usize = 3;
/// Vectors of a group.
const VECTORS: usize = WIDTH / LANES;
/// Values of one.
const VECTOR: usize = 2 * LANES;
/// Values that are kept together: those of a panel's outputs by two inputs.
const GROUP: usize = 2 * WIDTH;
/// Values whose bytes are put together at a time.
const HALF: usize = GROUP / 2;
/// Values of a step of a panel.
const STEP: usize = DEPTH * WIDTH;
/// Groups of a step.
const GROUPS: usize = STEP / GROUP;
/// The number of zeros' exponent.
const ZERO: u8 = NUMBERED as u8 - 1;
/// Bytes of a group: signs and fractions of all its values, and the numbers of their exponents.
const GROUP_BYTES: usize = GROUP + HALF;
/// Bytes of a step of a panel.
pub(super) const STEP_BYTES: usize = GROUPS * GROUP_BYTES;
/// Exponents that have a number. The last one is that of zeros: a value that is kept whole is one among the others.
const NUMBERED: usize = 16;
/// Of how many values one may be kept whole: at more of them it is not worth it.
const ONE_IN: usize = 128;

/// A weight `[outputs, inputs]` in panels of 64 outputs, compact: of a panel `[inputs / 2]` groups.
pub(super) struct Compact {
    /// Pairs of inputs.
    pairs: usize,
    groups: Lines,
    exponents: [u8; NUMBERED],
    /// Values whose exponents have no number, in the order in which they lie in memory.
    others: Vec<Other>,
    /// Where those of each panel begin, and where the last one's end.
    first_others: Vec<usize>,
}

/// A value that is kept whole.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Other {
    /// Among the values of its panel.
    place: u32,
    value: bf16,
}

impl Compact {
    /// None for values of too many different exponents. The inputs are a multiple of a step's, and the processor has AMX.
    ///
    /// # Errors
    /// [`Error::Memory`]
    pub(super) fn new(weight: &[bf16], input: usize) -> Result<Option<Self>, Error> {
        let (exponents, left) = most_frequent(weight);
        if left > weight.len() / ONE_IN || u32::try_from(WIDTH * input).is_err() {
            return Ok(None);
        }
        let (numbers, pairs) = (numbers(exponents), input / 2);
        let panel_bytes = pairs * GROUP_BYTES;
        let mut groups = Lines::zeros((weight.len() / input).div_ceil(WIDTH) * panel_bytes)?;
        let others: Vec<Vec<Other>> = groups
            .bytes_mut()
            .par_chunks_exact_mut(panel_bytes)
            .zip(weight.par_chunks(WIDTH * input))
            .map(|(panel, rows)| pack(rows, input, &numbers, panel))
            .collect();
        let first_others = std::iter::once(0)
            .chain(others.iter().scan(0, |sum, others| {
                *sum += others.len();
                Some(*sum)
            }))
            .collect();
        Ok(Some(Self { pairs, groups, exponents, others: others.concat(), first_others }))
    }

    /// How many panels there are.
    pub(super) fn panels(&self) -> usize {
        self.first_others.len() - 1
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.groups) + size_of_val(&*self.others) + size_of_val(&*self.first_others)
    }

    /// A row of the weight.
    pub(super) fn row(&self, row: usize) -> Vec<bf16> {
        let (panel, output) = (row / WIDTH, row % WIDTH);
        let mut row: Vec<bf16> = self
            .panel(panel)
            .chunks_exact(GROUP_BYTES)
            .flat_map(|group| [0, 1].map(|odd| self.value(group, 2 * output + odd)))
            .collect();
        for other in self.others_of(panel) {
            let place = other.place as usize;
            if place % GROUP / 2 == output {
                row[place / GROUP * 2 + place % 2] = other.value;
            }
        }
        row
    }

    fn panel(&self, panel: usize) -> &[u8] {
        let bytes = self.pairs * GROUP_BYTES;
        &self.groups.bytes()[panel * bytes..][..bytes]
    }

    fn others_of(&self, panel: usize) -> &[Other] {
        &self.others[self.first_others[panel]..self.first_others[panel + 1]]
    }

    /// A value of a group, unless it is another one.
    fn value(&self, group: &[u8], place: usize) -> bf16 {
        let (half, byte) = kept_at(place);
        let number = group[GROUP + byte] >> (4 * half) & 15;
        let rest = u16::from(group[half * HALF + byte]);
        let exponent = u16::from(self.exponents[usize::from(number)]);
        bf16::from_bits(rest >> 7 << 15 | exponent << 7 | rest & 0x7f)
    }

    /// Where a step of a panel lies in memory; what lies behind the last one need not be there.
    pub(super) fn place(&self, panel: usize, step: usize) -> *const u8 {
        self.groups.bytes().as_ptr().wrapping_add(panel * self.pairs * GROUP_BYTES + step * STEP_BYTES)
    }

    /// The product of up to [`MOST_IN_VECTORS`] rows of pairs of inputs with a panel, as `[rows][4]` in vectors, overwritten.
    ///
    /// # Panics
    /// For more rows.
    pub(super) fn multiply(&self, panel: usize, x: &[[bf16; 2]], rows: usize, sums: &mut [Sums]) {
        match rows {
            1 => self.multiply_rows::<1, 4>(panel, x, sums),
            2 => self.multiply_rows::<2, 2>(panel, x, sums),
            3 => self.multiply_rows::<3, 2>(panel, x, sums),
            _ => panic!("{rows} rows in vectors"),
        }
    }

    /// The same of `ROWS` rows, the panel being read at `STREAMS` places side by side.
    fn multiply_rows<const ROWS: usize, const STREAMS: usize>(
        &self,
        panel: usize,
        x: &[[bf16; 2]],
        sums: &mut [Sums],
    ) {
        let pairs = self.pairs;
        assert_eq!(x.len(), ROWS * pairs);
        let x: [_; ROWS] = std::array::from_fn(|row| &x[row * pairs..][..pairs]);
        // SAFETY: a processor with tiles has the vectors too.
        unsafe { avx512::multiply::<ROWS, STREAMS>(self.panel(panel), self.exponents, x, sums) };
        let sums = sums.as_flattened_mut();
        for other in self.others_of(panel) {
            let place = other.place as usize;
            for (x, sums) in x.iter().zip(sums.chunks_exact_mut(WIDTH)) {
                let sum = &mut sums[place % GROUP / 2];
                *sum = x[place / GROUP][place % 2].to_f32().mul_add(other.value.to_f32(), *sum);
            }
        }
    }

    /// Writes the tiles of some steps of a panel, the first or the second half of each step's or all.
    ///
    /// # Panics
    /// For steps that the panel does not have, or another length.
    pub(super) fn unpack(
        &self,
        panel: usize,
        steps: Range<usize>,
        halves: Range<usize>,
        to: &mut [MaybeUninit<Line>],
    ) {
        assert_eq!(to.len(), steps.len() * halves.len() * STEP_LINES / 2, "room for {steps:?}");
        let groups = &self.panel(panel)[steps.start * STEP_BYTES..steps.end * STEP_BYTES];
        // SAFETY: a processor with tiles has the vectors too; a half of a step is unpacked to two tiles.
        unsafe {
            match (halves.start, halves.end) {
                (0, 2) => avx512::unpack::<0, 2>(groups, self.exponents, to),
                (0, _) => avx512::unpack::<0, 1>(groups, self.exponents, to),
                _ => avx512::unpack::<1, 2>(groups, self.exponents, to),
            }
        }
        let others = self.others_of(panel);
        let first = others.partition_point(|other| (other.place as usize) < steps.start * STEP);
        let values = to.as_mut_ptr().cast::<bf16>();
        for other in &others[first..] {
            let place = other.place as usize - steps.start * STEP;
            if place >= steps.len() * STEP {
                break;
            }
            let (step, pair, place) = (place / STEP, place % STEP / GROUP, place % GROUP);
            if halves.contains(&(place / HALF)) {
                let (tile, word) = (place / VECTOR, place % VECTOR);
                let tile = step * halves.len() * VECTORS / 2 + tile - halves.start * VECTORS / 2;
                // SAFETY: there is room for these tiles of all steps.
                unsafe { values.add((tile * TILE + pair) * VECTOR + word).write(other.value) };
            }
        }
    }
}

/// A panel that is unpacked step by step.
pub(super) struct Unpacking<'a> {
    weight: &'a Compact,
    panel: usize,
    /// Of two steps, in turn.
    values: [[MaybeUninit<Line>; STEP_LINES]; 2],
}

impl<'a> Unpacking<'a> {
    pub(super) fn new(weight: &'a Compact, panel: usize) -> Self {
        Self { weight, panel, values: [[const { MaybeUninit::uninit() }; _]; 2] }
    }
}

impl Source for Unpacking<'_> {
    fn place(&self, step: usize) -> (*const u8, usize) {
        (self.weight.place(self.panel, step), STEP_BYTES)
    }

    fn step(&mut self, step: usize, tiles: Range<usize>) -> *const u8 {
        let halves = tiles.start / 2..tiles.end / 2;
        let to = &mut self.values[step % 2][..halves.len() * STEP_LINES / 2];
        self.weight.unpack(self.panel, step..step + 1, halves, to);
        to.as_ptr().cast()
    }
}

fn exponent(value: bf16) -> u8 {
    (value.to_bits() >> 7) as u8
}

/// The exponents that most values have, and that of zeros; and how many values have none of these.
fn most_frequent(weight: &[bf16]) -> ([u8; NUMBERED], usize) {
    let counts = weight
        .par_chunks(1 << 16)
        .fold(
            || [0usize; 256],
            |mut counts, values| {
                values.iter().for_each(|value| counts[usize::from(exponent(*value))] += 1);
                counts
            },
        )
        .reduce(|| [0; 256], |a, b| std::array::from_fn(|exponent| a[exponent] + b[exponent]));
    let mut exponents: [u8; 256] = std::array::from_fn(|exponent| exponent as u8);
    exponents[1..].sort_by_key(|exponent| std::cmp::Reverse(counts[usize::from(*exponent)]));
    let left = exponents[NUMBERED..].iter().map(|exponent| counts[usize::from(*exponent)]).sum();
    (std::array::from_fn(|number| exponents[(number + 1) % NUMBERED]), left)
}

/// The number of each exponent that has one.
fn numbers(exponents: [u8; NUMBERED]) -> [Option<u8>; 256] {
    let mut numbers = [None; 256];
    for (number, exponent) in exponents.into_iter().enumerate() {
        numbers[usize::from(exponent)] = Some(number as u8);
    }
    numbers
}

/// In which half of a group's bytes, and which of them, a value is kept: a vector's bytes are put together 8 by 8.
fn kept_at(place: usize) -> (usize, usize) {
    let (half, place) = (place / HALF, place % HALF);
    let (vector, word) = (place / VECTOR, place % VECTOR);
    (half, word / 8 * 16 + vector * 8 + word % 8)
}

/// Packs the rows of a panel, of which the last one may have fewer.
fn pack(rows: &[bf16], input: usize, numbers: &[Option<u8>; 256], panel: &mut [u8]) -> Vec<Other> {
    let mut others = Vec::new();
    for (pair, group) in panel.chunks_exact_mut(GROUP_BYTES).enumerate() {
        for (output, row) in rows.chunks_exact(input).enumerate() {
            for odd in 0..2 {
                let (place, value) = (2 * output + odd, row[2 * pair + odd]);
                let (half, byte) = kept_at(place);
                let (number, bits) = match numbers[usize::from(exponent(value))] {
                    Some(number) => (number, value.to_bits()),
                    None => {
                        others.push(Other { place: (pair * GROUP + place) as u32, value });
                        (ZERO, 0)
                    }
                };
                group[half * HALF + byte] = (bits >> 15 << 7 | bits & 0x7f) as u8;
                group[GROUP + byte] |= number << (4 * half);
            }
        }
    }
    others
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        Activation, amx,
        product::{FewRows, Finish},
        tiled::{
            Keep,
            blocks::{Blocks, Layout},
            weight::{MOST_FEW, Rows, Weight, inputs_of},
        },
    };

    /// Values about as large as each other, but for every one of `every`, which may be any bits.
    fn weight(count: usize, every: usize, seed: u64) -> Vec<bf16> {
        let mut state = seed | 1;
        let mut bits = move || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 40) as u16
        };
        (0..count)
            .map(|place| {
                let bits = bits();
                // Of exponents 120 to 127.
                let usual = bits & 0x83ff | 0x3c00;
                bf16::from_bits(if place % every == every - 1 { bits } else { usual })
            })
            .collect()
    }

    fn bits(values: &[bf16]) -> Vec<u16> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn every_value_of_a_compact_weight_is_kept_to_the_bit(
            output in 1usize..200,
            steps in 1usize..6,
            every in 150usize..1000,
            seed: u64,
        ) {
            if !amx::available() {
                return Ok(());
            }
            let input = steps * DEPTH;
            let weight = weight(output * input, every, seed);
            let compact = Compact::new(&weight, input).unwrap().expect("few other values");
            for (row, values) in weight.chunks(input).enumerate() {
                prop_assert_eq!(bits(&compact.row(row)), bits(values));
            }
            let mut room = vec![MaybeUninit::new(Line([0; 64])); steps * STEP_LINES];
            for panel in 0..compact.panels() {
                // In two pieces, as a panel may be unpacked from any step on.
                let half = steps / 2;
                let (first, second) = room.split_at_mut(half * STEP_LINES);
                compact.unpack(panel, 0..half, 0..2, first);
                compact.unpack(panel, half..steps, 0..2, second);
                // SAFETY: lines of values, all of which were written.
                let values: &[bf16] = unsafe { std::slice::from_raw_parts(room.as_ptr().cast(), steps * STEP) };
                for (output, row) in weight.chunks(input).skip(panel * WIDTH).take(WIDTH).enumerate() {
                    let unpacked: Vec<bf16> = inputs_of(values, output).collect();
                    prop_assert_eq!(bits(&unpacked), bits(row));
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_product_by_a_compact_weight_counts_the_values_that_are_kept_whole(
            rows in 1usize..40,
            output in 100usize..400,
            steps in 4usize..60,
            seed: u64,
        ) {
            let input = steps * DEPTH;
            let mut weight = weight(output * input, usize::MAX, seed);
            // Of 32 exponents more, none of them frequent, and as large as the sum of all usual ones.
            for (number, value) in weight.iter_mut().step_by(301).enumerate() {
                *value = bf16::from_f32((number % 32 + 2) as f32 * 100.0 * 2f32.powi((number % 32) as i32 / 4));
            }
            let Some(packed) = Weight::new(&weight, input, Keep::Compact).unwrap() else { return Ok(()) };
            prop_assert!(packed.bytes() < 2 * output.next_multiple_of(WIDTH) * input, "compact");
            let x: Vec<bf16> =
                (0..rows * input).map(|place| bf16::from_f32((place * 7 % 17) as f32 / 8.0 - 1.0)).collect();
            let finish = Finish::<f32> { bias: None, activation: Activation::None, residual: None };
            let y = match rows {
                1..=MOST_FEW => Rows::new(&packed, &x, rows).product(output, finish),
                _ => {
                    let layout = Layout::Rows;
                    Blocks { weight: &packed, x: &x, layout, rows, input, output, finish }.product(layout)
                }
            };
            for (place, y) in y.iter().enumerate() {
                let (x, weight) = (&x[place / output * input..][..input], &weight[place % output * input..][..input]);
                let products = x.iter().zip(weight).map(|(x, weight)| f64::from(*x) * f64::from(*weight));
                let (sum, size) = products.fold((0.0, 0.0), |(sum, size), value| (sum + value, size + value.abs()));
                prop_assert!((f64::from(*y) - sum).abs() <= 1e-5 * size, "{y} for {sum}");
            }
        }
    }

    #[test]
    fn a_weight_takes_three_quarters_of_its_bytes() {
        if !amx::available() {
            return;
        }
        let (output, input) = (640, 1536);
        let compact = Compact::new(&weight(output * input, 1000, 1), input).unwrap().unwrap();
        let share = compact.bytes() as f64 / (2 * output * input) as f64;
        assert!((0.75..0.76).contains(&share), "{share}");
    }

    #[test]
    fn a_weight_of_all_kinds_of_exponents_is_not_made_compact() {
        assert!(Compact::new(&weight(64 * 64, 2, 1), 64).unwrap().is_none());
    }
}
