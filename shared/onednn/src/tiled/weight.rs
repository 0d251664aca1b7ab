use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::{
    Keep,
    compact::{self, Compact, Unpacking},
    few_rows,
};
use crate::{
    Error,
    amx::{self, DEPTH, LINE, TILE, TILE_BYTES},
    lines::{Line, Lines},
    product::{FewRows, LANES, Sums, pairs},
};

/// Tiles of a panel, side by side.
const TILES: usize = 4;
/// Outputs of a panel.
pub(super) const WIDTH: usize = TILES * LANES;
/// Bytes of a step of a panel.
pub(super) const STEP_BYTES: usize = TILES * TILE_BYTES;
/// Values of a tile, and of a step.
const TILE_VALUES: usize = TILE_BYTES / size_of::<bf16>();
const STEP: usize = STEP_BYTES / size_of::<bf16>();
/// Lines of a step.
pub(super) const STEP_LINES: usize = STEP_BYTES / LINE;
/// Most rows that are multiplied panel by panel, all at a time.
pub(super) const MOST_FEW: usize = amx::BLOCK;

/// A weight `[outputs, inputs]` in panels, its outputs filled up with zeros: `[outputs / 64][inputs / 32][4][16][16][2]`.
pub(super) struct Weight {
    /// Of a panel.
    steps: usize,
    values: Values,
}

enum Values {
    Whole(Lines),
    Compact(Compact),
}

impl Weight {
    /// None without AMX, and for inputs that are no multiple of 32.
    ///
    /// # Errors
    /// [`Error::Memory`]
    pub(super) fn new(weight: &[bf16], input: usize, keep: Keep) -> Result<Option<Self>, Error> {
        if !input.is_multiple_of(DEPTH) || !amx::available() {
            return Ok(None);
        }
        let compact = match keep {
            Keep::Whole => None,
            Keep::Compact => Compact::new(weight, input)?,
        };
        let values = match compact {
            Some(compact) => Values::Compact(compact),
            None => Values::Whole(packed(weight, input)?),
        };
        Ok(Some(Self { steps: input / DEPTH, values }))
    }

    /// How many panels there are.
    pub(super) fn panels(&self) -> usize {
        match &self.values {
            Values::Whole(lines) => lines.len() / (self.steps * STEP_LINES),
            Values::Compact(compact) => compact.panels(),
        }
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        match &self.values {
            Values::Whole(lines) => size_of_val(&**lines),
            Values::Compact(compact) => compact.bytes(),
        }
    }

    /// A row of the weight.
    pub(super) fn row(&self, row: usize) -> Vec<bf16> {
        match &self.values {
            Values::Whole(lines) => {
                let panel = &lines.values()[row / WIDTH * self.steps * STEP..][..self.steps * STEP];
                inputs_of(panel, row % WIDTH).collect()
            }
            Values::Compact(compact) => compact.row(row),
        }
    }

    /// Where a step of a panel lies in memory, and its bytes. What lies behind the last one need not be there.
    pub(super) fn place(&self, panel: usize, step: usize) -> (*const u8, usize) {
        match &self.values {
            Values::Whole(lines) => {
                let step = panel * self.steps + step;
                (lines.bytes().as_ptr().wrapping_add(step * STEP_BYTES), STEP_BYTES)
            }
            Values::Compact(compact) => (compact.place(panel, step), compact::STEP_BYTES),
        }
    }

    /// Some steps of some panels, in `memory` where they have to be unpacked.
    pub(super) fn part<'a>(
        &'a self,
        panels: Range<usize>,
        steps: Range<usize>,
        memory: &'a mut Vec<Line>,
    ) -> Part<'a> {
        match &self.values {
            Values::Whole(lines) => {
                let stride = self.steps * STEP;
                Part { values: &lines.values()[panels.start * stride + steps.start * STEP..], stride }
            }
            Values::Compact(compact) => {
                let stride = steps.len() * STEP_LINES;
                memory.clear();
                memory.reserve(panels.len() * stride);
                let room = &mut memory.spare_capacity_mut()[..panels.len() * stride];
                for (panel, room) in panels.zip(room.chunks_exact_mut(stride)) {
                    compact.unpack(panel, steps.clone(), 0..2, room);
                }
                // SAFETY: lines of values, all of which were written.
                let values = unsafe {
                    std::slice::from_raw_parts(room.as_ptr().cast(), size_of_val(room) / size_of::<bf16>())
                };
                Part { values, stride: steps.len() * STEP }
            }
        }
    }
}

/// Some steps of some panels, which begin `stride` values apart.
pub(super) struct Part<'a> {
    values: &'a [bf16],
    stride: usize,
}

impl Part<'_> {
    /// From the first step on, the tiles of 32 of the outputs, counted from those of the first panel.
    pub(super) fn block(&self, output: usize) -> &[bf16] {
        &self.values[output / WIDTH * self.stride + output % WIDTH / LANES * TILE_VALUES..]
    }
}

/// The inputs of one output of a panel.
pub(super) fn inputs_of(panel: &[bf16], output: usize) -> impl Iterator<Item = bf16> {
    panel.chunks_exact(STEP).flat_map(move |step| {
        let tile = &step[output / LANES * TILE_VALUES..][..TILE_VALUES];
        (0..TILE).flat_map(move |pair| [0, 1].map(|odd| tile[(pair * LANES + output % LANES) * 2 + odd]))
    })
}

fn packed(weight: &[bf16], input: usize) -> Result<Lines, Error> {
    let panel = WIDTH * input;
    let mut lines = Lines::zeros(weight.len().div_ceil(panel) * panel * size_of::<bf16>())?;
    let panels = lines.values_mut().par_chunks_exact_mut(panel);
    panels.zip(weight.par_chunks(panel)).for_each(|(panel, rows)| {
        for (output, row) in rows.chunks_exact(input).enumerate() {
            for (step, inputs) in panel.chunks_exact_mut(STEP).zip(row.chunks_exact(DEPTH)) {
                let tile = &mut step[output / LANES * TILE_VALUES..][..TILE_VALUES];
                for (pairs, pair) in tile.chunks_exact_mut(2 * LANES).zip(inputs.chunks_exact(2)) {
                    pairs[output % LANES * 2..][..2].copy_from_slice(pair);
                }
            }
        }
    });
    Ok(lines)
}

/// Up to [`MOST_FEW`] rows, and the weight that they are multiplied by.
pub(super) struct Rows<'a> {
    rows: usize,
    panels: usize,
    factors: Factors<'a>,
}

/// Rows in the order in which they are multiplied: `[rows][inputs / 2]` in vectors, `[inputs / 32][rows][32]` in tiles.
enum Factors<'a> {
    Vectors { weight: &'a Compact, x: Vec<[bf16; 2]> },
    CompactTiles { weight: &'a Compact, x: Vec<bf16> },
    Tiles { values: &'a [bf16], panel: usize, x: Vec<bf16> },
}

impl<'a> Rows<'a> {
    /// Of `x`, row-major `[rows, inputs]`.
    pub(super) fn new(weight: &'a Weight, x: &[bf16], rows: usize) -> Self {
        let factors = match &weight.values {
            Values::Compact(weight) if rows <= compact::MOST_IN_VECTORS => {
                Factors::Vectors { weight, x: pairs(x).to_vec() }
            }
            Values::Compact(weight) => Factors::CompactTiles { weight, x: few_rows::packed(x, rows) },
            Values::Whole(lines) => {
                let (values, panel) = (lines.values(), weight.steps * STEP);
                Factors::Tiles { values, panel, x: few_rows::packed(x, rows) }
            }
        };
        Self { rows, panels: weight.panels(), factors }
    }
}

impl FewRows for Rows<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn panels(&self) -> usize {
        self.panels
    }

    fn width(&self) -> usize {
        WIDTH
    }

    fn group(&self) -> usize {
        1
    }

    fn multiply(&self, group: Range<usize>, sums: &mut [Sums]) {
        let place = group.start;
        match &self.factors {
            Factors::Vectors { weight, x } => weight.multiply(place, x, self.rows, sums),
            Factors::CompactTiles { weight, x } => {
                few_rows::multiply(&mut Unpacking::new(weight, place), x, self.rows, sums.as_flattened_mut());
            }
            Factors::Tiles { values, panel, x } => {
                let mut values = &values[place * panel..][..*panel];
                few_rows::multiply(&mut values, x, self.rows, sums.as_flattened_mut());
            }
        }
    }
}
