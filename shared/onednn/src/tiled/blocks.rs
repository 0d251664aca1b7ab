//! Products of many rows in the tiles of AMX.
//!
//! A block of a result, 32 rows by 32 outputs, is four tiles of sums; each step multiplies 32 inputs: two tiles of rows and two of
//! the weight are read, and each is used twice. Rows of a block are multiplied by all outputs of a part one after another: they stay in
//! the first cache, and the weight, which stays in the second while one part of the rows after another is multiplied by it, is read past
//! it. What follows the sums of a block, the bias, an activation, a residual sum and the rounding, is done in vectors between the steps
//! of the next block, so that the matrix unit does not wait for it.

use std::{
    arch::x86_64::{
        __m512, __m512bh, __m512i, __mmask16, __mmask32, _MM_HINT_T0, _MM_HINT_T1, _mm_sfence,
        _mm256_maskz_loadu_epi16, _mm512_add_ps, _mm512_castsi512_ps, _mm512_cvtepu16_epi32,
        _mm512_cvtne2ps_pbh, _mm512_div_ps, _mm512_loadu_ps, _mm512_mask_storeu_epi16, _mm512_mask_storeu_ps,
        _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_rcp14_ps, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_slli_epi32, _mm512_stream_ps, _mm512_stream_si512,
    },
    cell::RefCell,
    ops::Range,
};

use half::bf16;
use rayon::prelude::*;

use super::weight::{STEP_BYTES, WIDTH, Weight};
use crate::{
    Activation, Value,
    amx::{self, BLOCK, DEPTH, LINE, TILE, Tiles, ask_for},
    api::TYPE_BF16,
    exponentials::power_of_two,
    lines::Line,
    product::{Finish, LANES},
    target::Target,
    tiles,
};

/// Most inputs of a sum that is added up at once: those of a block's rows just fill a first cache of 48 KiB.
const MOST_INPUTS: usize = 768;
/// Longer sums are taken up again after so many inputs at the most: then the sums have room in the first cache too.
const INPUTS_OF_A_PART: usize = 512;

/// The sums of a block, row by row.
type Sums = [f32; BLOCK * BLOCK];

/// What a thread needs from part to part.
struct Memory {
    sums: Vec<Sums>,
    /// Unpacked.
    weights: Vec<Line>,
}

/// How rows lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// One after another, `[rows][columns]`.
    Rows,
    /// In the blocks in which they are multiplied, `[rows / 32][columns / 32][32][32]`: rows that are some powers of two apart would
    /// share a few sets of the first cache. The last block has the last 32 rows, some of which the one before it may have too.
    Blocks,
}

impl Layout {
    /// Values from the first row of a block to its second, and from one step of its inputs to the next.
    fn strides(self, columns: usize) -> (usize, usize) {
        match self {
            Self::Rows => (columns, DEPTH),
            Self::Blocks => (DEPTH, BLOCK * DEPTH),
        }
    }

    /// Row and column of a block's first value in a matrix of rows of so many values, in which it lies.
    fn start(self, place: Place, columns: usize) -> ((usize, usize), usize) {
        match self {
            Self::Rows => ((place.row, place.column), columns),
            Self::Blocks => ((place.nominal * (columns / BLOCK) + place.column, 0), BLOCK),
        }
    }

    /// Values of so many rows.
    pub(super) fn values(self, rows: usize, columns: usize) -> usize {
        match self {
            Self::Rows => rows * columns,
            Self::Blocks => rows.next_multiple_of(BLOCK) * columns,
        }
    }
}

/// Where a block lies in the result, and how many of its first rows the block before it has too.
#[derive(Clone, Copy)]
struct Place {
    /// Of its first row, those that it has with the block before it counted twice.
    nominal: usize,
    row: usize,
    skipped: usize,
    column: usize,
}

/// Sums that were added up and are not in the result yet.
#[derive(Clone, Copy)]
struct Pending<'a> {
    sums: &'a Sums,
    place: Place,
}

/// What the sums of a block are added up from.
struct Factors<'a> {
    /// From the first input of the first row on, whose strides are [`Layout::strides`].
    rows: &'a [bf16],
    /// From the first step's tiles on.
    weights: &'a [bf16],
    steps: usize,
}

/// Lines that a block asks for ahead: in each step some that are `stride` bytes apart, and in the next step those `advance` bytes behind.
#[derive(Clone, Copy)]
struct Ahead {
    place: *const u8,
    lines: usize,
    stride: usize,
    advance: usize,
}

/// What a block does between its steps.
struct Meanwhile<'a> {
    finish: Option<Pending<'a>>,
    ahead: Ahead,
}

/// A product of `x` `[rows, input]`, at least [`BLOCK`] of them, by a weight `[output, input]`.
pub(super) struct Blocks<'a, R> {
    pub(super) weight: &'a Weight,
    pub(super) x: &'a [bf16],
    pub(super) layout: Layout,
    pub(super) rows: usize,
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) finish: Finish<'a, R>,
}

impl<R: Value> Blocks<'_, R> {
    /// The result `[rows, output]`, in the layout that a residual has too. In blocks the outputs are a multiple of a block's.
    ///
    /// # Panics
    /// With fewer rows than a block has, or slices of another length.
    pub(super) fn product(&self, layout: Layout) -> Vec<R> {
        thread_local!(static MEMORY: RefCell<Memory> = const { RefCell::new(Memory { sums: Vec::new(), weights: Vec::new() }) });
        let (rows, output) = (self.rows, self.output);
        assert!(rows >= BLOCK && self.x.len() == self.layout.values(rows, self.input));
        assert!(self.input.is_multiple_of(DEPTH) && self.weight.panels() == output.div_ceil(WIDTH));
        assert!(self.finish.bias.is_none_or(|bias| bias.len() == output));
        let values = layout.values(rows, output);
        assert!(self.finish.residual.is_none_or(|residual| residual.len() == values));
        let mut y = Vec::with_capacity(values);
        let result = match layout {
            Layout::Rows => Target::new(&mut y, rows, output),
            Layout::Blocks => {
                assert!(output.is_multiple_of(BLOCK));
                Target::new(&mut y, values / BLOCK, BLOCK)
            }
        };
        let parts = tiles::blocks(rows, output, WIDTH, rayon::current_num_threads());
        parts.into_par_iter().with_max_len(1).for_each(|(rows, outputs)| {
            MEMORY.with_borrow_mut(|memory| {
                // SAFETY: asserted; there is no weight without AMX, and a processor with it has the vectors too. The parts of the result
                // do not overlap.
                unsafe { self.write_part(rows, outputs, (&result, layout), memory) }
            });
        });
        // SAFETY: the parts are all of the result.
        unsafe { y.set_len(values) };
        y
    }

    /// Some rows and outputs of the result.
    ///
    /// # Safety
    /// What [`Self::product`] asserts, and nobody else may hold these values of `y`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn write_part(
        &self,
        rows: Range<usize>,
        outputs: Range<usize>,
        y: (&Target<R>, Layout),
        Memory { sums, weights }: &mut Memory,
    ) {
        let columns = outputs.len().div_ceil(BLOCK);
        let high = rows.len().div_ceil(BLOCK);
        let steps = self.input / DEPTH;
        let panels = outputs.start / WIDTH..outputs.end.div_ceil(WIDTH);
        let parts = if self.input <= MOST_INPUTS { 1 } else { self.input.div_ceil(INPUTS_OF_A_PART) };
        // Sums that are finished at once need room for two blocks: one is added up while the other is finished.
        sums.resize(if parts == 1 { 2 } else { columns * high }, [0.0; BLOCK * BLOCK]);
        let sums = sums.as_mut_ptr();
        // SAFETY: AMX is there.
        let _tiles = unsafe { Tiles::shaped(BLOCK) };
        let mut pending = None;
        for part in 0..parts {
            let steps = part * steps / parts..(part + 1) * steps / parts;
            let last = part + 1 == parts;
            let source = self.weight.part(panels.clone(), steps.clone(), weights);
            for block in 0..columns * high {
                let (row, output) = (rows.start + block / columns * BLOCK, block % columns * BLOCK);
                // The last rows are read together with some of the block before.
                let first = row.min(self.rows - BLOCK);
                let column = outputs.start + output;
                let place = Place { nominal: row, row: first, skipped: row - first, column };
                // SAFETY: `sums` holds two, or one for each block; the pending block's are others.
                let own = unsafe { &mut *sums.add(if parts == 1 { block % 2 } else { block }) };
                let factors = Factors {
                    rows: self.rows_from(place, steps.start),
                    weights: source.block(output),
                    steps: steps.len(),
                };
                let ahead = if rows.len() < self.rows {
                    self.rows_ahead(&factors, block % columns, columns)
                } else {
                    let panel = panels.start + output / WIDTH;
                    let next = if last { (panel + panels.len(), 0) } else { (panel, steps.end) };
                    let turn = output % WIDTH / BLOCK * high + block / columns;
                    self.weights_ahead(next, steps.len(), turn, WIDTH / BLOCK * high)
                };
                if last {
                    self.ask_for_residual(place, y.1);
                }
                let meanwhile = Meanwhile { finish: pending, ahead };
                // SAFETY: there are as many rows, and the weight has as many steps.
                unsafe { self.add_up(factors, part > 0, own, meanwhile, y) };
                pending = last.then_some(Pending { sums: own, place });
            }
        }
        if let Some(block) = pending {
            let ending = self.ending(block, y);
            for row in ending.skipped..BLOCK {
                // SAFETY: the rows that are not skipped are of this thread's part.
                unsafe { ending.write(row) };
            }
        }
        // What was written past the caches is seen by the other threads from here on.
        _mm_sfence();
    }

    /// Adds the products of some steps to the sums of a block, or begins them, and does something else meanwhile.
    ///
    /// # Safety
    /// The thread's tiles have the shapes for it; the rows of a block and the weight have as many steps from there on.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn add_up(
        &self,
        Factors { rows, weights, steps }: Factors<'_>,
        begun: bool,
        sums: &mut Sums,
        Meanwhile { finish, ahead }: Meanwhile<'_>,
        y: (&Target<R>, Layout),
    ) {
        let (row_bytes, step_bytes) = self.strides();
        let (mut x, mut weights) = (rows.as_ptr().cast::<u8>(), weights.as_ptr().cast::<u8>());
        let row_of_sums = BLOCK * size_of::<f32>();
        let first = sums.as_mut_ptr().cast::<u8>();
        let second = first.wrapping_add(TILE * row_of_sums);
        // SAFETY: the tiles are this thread's; the sums are a block's.
        unsafe {
            if begun {
                amx::load_sums(first, second, row_of_sums);
            } else {
                amx::clear_sums();
            }
        }
        let share = BLOCK.div_ceil(steps);
        let ending = finish.map(|block| self.ending(block, y));
        let mut row = ending.as_ref().map_or(BLOCK, |ending| ending.skipped);
        let mut next = ahead.place;
        for _ in 0..steps {
            // SAFETY: a step of the rows and of the weight, which the caller answers for.
            unsafe { amx::multiply_two_tiles(x, x.wrapping_add(TILE * row_bytes), row_bytes, weights) };
            x = x.wrapping_add(step_bytes);
            weights = weights.wrapping_add(STEP_BYTES);
            for line in 0..ahead.lines {
                ask_for::<_MM_HINT_T1>(next.wrapping_add(line * ahead.stride));
            }
            next = next.wrapping_add(ahead.advance);
            if let Some(ending) = &ending {
                let last = (row + share).min(BLOCK);
                while row < last {
                    // SAFETY: the rows that are not skipped are of this thread's part.
                    unsafe { ending.write(row) };
                    row += 1;
                }
            }
        }
        // SAFETY: the sums are a block's.
        unsafe { amx::store_sums(first, second, row_of_sums) };
    }

    /// Bytes from the first row of a block to its second, and from one step of its inputs to the next.
    fn strides(&self) -> (usize, usize) {
        let (row, step) = self.layout.strides(self.input);
        (row * size_of::<bf16>(), step * size_of::<bf16>())
    }

    /// The rows of a block, from a step of its inputs on.
    fn rows_from(&self, place: Place, step: usize) -> &[bf16] {
        let row = match self.layout {
            Layout::Rows => place.row,
            Layout::Blocks => place.nominal,
        };
        &self.x[row * self.input + step * self.layout.strides(self.input).1..]
    }

    /// Of the rows behind a block's, which are multiplied next by the same outputs, the share of the block with this turn.
    fn rows_ahead(&self, factors: &Factors<'_>, turn: usize, turns: usize) -> Ahead {
        let ((stride, advance), lines) = (self.strides(), BLOCK.div_ceil(turns));
        let behind = factors.rows.as_ptr().wrapping_add(BLOCK * self.input).cast::<u8>();
        let place = behind.wrapping_add(turn * lines * stride);
        Ahead { place, lines, stride, advance }
    }

    /// Of what a panel has from a step on, which is multiplied after this part of it, the share of the block with this turn.
    fn weights_ahead(&self, (panel, step): (usize, usize), steps: usize, turn: usize, turns: usize) -> Ahead {
        let (next, step) = self.weight.place(panel, step);
        let lines = (step / LINE).div_ceil(turns);
        let place = next.wrapping_add(turn * steps * lines * LINE);
        Ahead { place, lines, stride: LINE, advance: lines * LINE }
    }

    /// Asks for what is added to a block at its end.
    fn ask_for_residual(&self, place: Place, layout: Layout) {
        let Some(residual) = self.finish.residual else { return };
        let ((row, column), width) = layout.start(place, self.output);
        for row in row..row + BLOCK {
            let place = residual.as_ptr().wrapping_add(row * width + column);
            for line in (0..size_of::<[R; BLOCK]>()).step_by(LINE) {
                ask_for::<_MM_HINT_T0>(place.cast::<u8>().wrapping_add(line));
            }
        }
    }

    /// Makes ready what becomes of a block's sums: once a block, where most of it would be done for every row.
    #[target_feature(enable = "avx512f")]
    fn ending<'a>(
        &'a self,
        Pending { sums, place }: Pending<'a>,
        (y, layout): (&Target<R>, Layout),
    ) -> Ending<'a, R> {
        let columns = place.column..(place.column + BLOCK).min(self.output);
        let there: __mmask32 = u32::MAX >> (BLOCK - columns.len());
        let masks = [there as __mmask16, (there >> LANES) as __mmask16];
        let mut bias = [_mm512_setzero_ps(); 2];
        if let Some(values) = self.finish.bias {
            let values = values[columns.clone()].as_ptr();
            for (half, bias) in bias.iter_mut().enumerate() {
                // SAFETY: the masked values are there.
                *bias = unsafe { _mm512_maskz_loadu_ps(masks[half], values.wrapping_add(half * LANES)) };
            }
        }
        let ((row, column), width) = layout.start(place, self.output);
        let end = (row + BLOCK - 1, column + columns.len() - 1);
        let residual = self.finish.residual.map(|values| {
            let values = &values[row * width..=end.0 * width + end.1];
            values[column..].as_ptr()
        });
        // The block's last value is there, so all of them are. Its first rows may be another thread's: there is no reference to them.
        y.place(end.0, end.1);
        let skipped = if layout == Layout::Rows { place.skipped } else { 0 };
        let (y, activation) = (y.place(row, column), self.finish.activation);
        Ending { sums, skipped, bias, activation, residual, y, width, masks }
    }
}

/// What becomes of a block's sums, made ready.
struct Ending<'a, R> {
    sums: &'a Sums,
    /// How many of its first rows are not written, but by the block before it.
    skipped: usize,
    /// Zeros without one.
    bias: [__m512; 2],
    activation: Activation,
    /// From the block's first value on, as `y`, rows of `width` values.
    residual: Option<*const R>,
    y: *mut R,
    width: usize,
    masks: [__mmask16; 2],
}

impl<R: Value> Ending<'_, R> {
    /// Writes a row of the block to the result.
    ///
    /// # Safety
    /// Nobody else may hold the row's values of the result.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn write(&self, row: usize) {
        let sums = &self.sums[row * BLOCK..][..BLOCK];
        let mut finished = [_mm512_setzero_ps(); 2];
        for (half, finished) in finished.iter_mut().enumerate() {
            // SAFETY: sums are whole rows.
            let sum = unsafe { _mm512_loadu_ps(sums.as_ptr().add(half * LANES)) };
            let mut value = activated::<R>(_mm512_add_ps(sum, self.bias[half]), self.activation);
            if let Some(residual) = self.residual {
                let before = residual.wrapping_add(row * self.width + half * LANES);
                // SAFETY: the masked values are there.
                value = _mm512_add_ps(value, unsafe { wide(before, self.masks[half]) });
            }
            *finished = value;
        }
        // SAFETY: the masked values have room.
        unsafe { store(self.y.wrapping_add(row * self.width), finished, self.masks) };
    }
}

/// The activation of every value; of a result in bf16 as exact as that is.
#[target_feature(enable = "avx512f,avx512dq")]
fn activated<R: Value>(x: __m512, activation: Activation) -> __m512 {
    let slope = match activation {
        Activation::QuickGelu => 1.702,
        Activation::Silu => 1.0,
        Activation::None => return x,
    };
    let one = _mm512_set1_ps(1.0);
    let exponent = _mm512_mul_ps(x, _mm512_set1_ps(-slope * std::f32::consts::LOG2_E));
    let below = _mm512_add_ps(one, power_of_two(exponent));
    if R::TYPE == TYPE_BF16 { _mm512_mul_ps(x, _mm512_rcp14_ps(below)) } else { _mm512_div_ps(x, below) }
}

/// Up to 16 values, as f32.
///
/// # Safety
/// The masked ones are there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn wide<R: Value>(values: *const R, mask: __mmask16) -> __m512 {
    // SAFETY: of the type that is read, and there.
    unsafe {
        if R::TYPE == TYPE_BF16 {
            let narrow = _mm256_maskz_loadu_epi16(mask, values.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(narrow)))
        } else {
            _mm512_maskz_loadu_ps(mask, values.cast())
        }
    }
}

/// Writes up to 32 values in the type of the result. Whole lines of it go past the caches: a result is larger than they are, would
/// drive the rows and the weight out of them, and was read from memory first.
///
/// # Safety
/// The masked ones have room.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn store<R: Value>(y: *mut R, [low, high]: [__m512; 2], masks: [__mmask16; 2]) {
    let whole = masks[1] == __mmask16::MAX && y.addr().is_multiple_of(LINE);
    if R::TYPE == TYPE_BF16 {
        // SAFETY: both are 32 values of 16 bits.
        let narrow = unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) };
        let mask = u32::from(masks[0]) | u32::from(masks[1]) << LANES;
        // SAFETY: of the type that is written, and there.
        unsafe {
            if whole {
                _mm512_stream_si512(y.cast(), narrow);
            } else {
                _mm512_mask_storeu_epi16(y.cast(), mask, narrow);
            }
        }
    } else {
        let [first, second] = [y.cast::<f32>(), y.cast::<f32>().wrapping_add(LANES)];
        // SAFETY: as above.
        unsafe {
            if whole {
                _mm512_stream_ps(first, low);
                _mm512_stream_ps(second, high);
            } else {
                _mm512_mask_storeu_ps(first, masks[0], low);
                _mm512_mask_storeu_ps(second, masks[1], high);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tiled::Keep;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|place| ((place * 31 + seed) * 7919 % 1013) as f32 / 1013.0 - 0.5).collect()
    }

    fn narrow(values: &[f32]) -> Vec<bf16> {
        values.iter().copied().map(bf16::from_f32).collect()
    }

    fn activated(x: f64, activation: Activation) -> f64 {
        match activation {
            Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
            Activation::Silu => x / (1.0 + (-x).exp()),
            _ => x,
        }
    }

    #[test]
    fn an_activation_of_the_largest_values_is_the_value_itself_or_nothing() {
        if !amx::available() {
            return;
        }
        let (input, output) = (DEPTH, WIDTH);
        let mut weight = narrow(&values(output * input, 0));
        weight.iter_mut().step_by(input).for_each(|first| *first = bf16::ONE);
        let weight = Weight::new(&weight, input, Keep::Whole).unwrap().expect("there are tiles");
        let largest = [f32::INFINITY, 3e38, 1e3, -1e3, -3e38];
        let x: Vec<bf16> = (0..BLOCK * input)
            .map(|place| if place % input == 0 { largest[place / input % largest.len()] } else { 0.0 })
            .map(bf16::from_f32)
            .collect();
        for activation in [Activation::QuickGelu, Activation::Silu] {
            let finish = Finish::<f32> { bias: None, activation, residual: None };
            let y =
                Blocks { weight: &weight, x: &x, layout: Layout::Rows, rows: BLOCK, input, output, finish }
                    .product(Layout::Rows);
            let expected = |row: usize| if row % largest.len() < 3 { x[row * input].to_f32() } else { 0.0 };
            for (place, y) in y.into_iter().enumerate() {
                assert_eq!(y, expected(place / output), "{activation:?} of row {}", place / output);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_product_in_blocks_equals_f64_and_a_row_does_not_depend_on_its_companions(
            rows in BLOCK..300,
            output in 1usize..200,
            // Up to two of the pieces in which long sums are added up.
            steps in prop_oneof![1usize..20, 40usize..100],
            activation in proptest::sample::select(&Activation::ALL[..]),
            with_bias: bool,
            with_residual: bool,
            seed in 0usize..1000,
        ) {
            let input = steps * DEPTH;
            let weight = narrow(&values(output * input, seed));
            let Some(packed) = Weight::new(&weight, input, Keep::Whole).unwrap() else { return Ok(()) };
            let (x, bias) = (narrow(&values(rows * input, seed + 1)), values(output, seed + 2));
            let residual = values(rows * output, seed + 3);
            let finish = Finish {
                bias: with_bias.then_some(bias.as_slice()),
                activation,
                residual: with_residual.then_some(residual.as_slice()),
            };
            let layout = Layout::Rows;
            let blocks = Blocks { weight: &packed, x: &x, layout, rows, input, output, finish };
            let wide = blocks.product(layout);
            let residual_bf16 = narrow(&residual);
            let finish = Finish {
                bias: finish.bias,
                activation,
                residual: with_residual.then_some(residual_bf16.as_slice()),
            };
            let rounded = Blocks { weight: &packed, x: &x, layout, rows, input, output, finish }.product(layout);
            for place in (0..rows * output).step_by(7) {
                let (row, column) = (place / output, place % output);
                let pairs = x[row * input..][..input].iter().zip(&weight[column * input..][..input]);
                let sum: f64 = pairs.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                let sum = sum + if with_bias { f64::from(bias[column]) } else { 0.0 };
                let before = |value: f64| if with_residual { value } else { 0.0 };
                let expected = activated(sum, activation) + before(residual[place].into());
                let error = (f64::from(wide[place]) - expected).abs();
                prop_assert!(error < 1e-4 + 1e-5 * expected.abs(), "{} for {expected}", wide[place]);
                let expected = activated(sum, activation) + before(residual_bf16[place].into());
                let error = (rounded[place].to_f64() - expected).abs();
                // Half a step of bf16, and what the activation is off by.
                let tolerance = expected.abs() / 256.0 + activated(sum, activation).abs() * 2e-4 + 1e-4;
                prop_assert!(error <= tolerance, "{} for {expected}", rounded[place]);
            }
            let first = rows - BLOCK;
            let alone = Blocks {
                x: &x[first * input..],
                rows: BLOCK,
                finish: Finish { residual: with_residual.then(|| &residual[first * output..]), ..blocks.finish },
                ..blocks
            };
            prop_assert_eq!(alone.product(layout), &wide[first * output..]);
        }
    }
}
