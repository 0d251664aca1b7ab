use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use crate::{Activation, Value, target::Target};

/// Outputs of a vector.
pub(crate) const LANES: usize = 16;

/// A sum for each output of a vector.
pub(crate) type Sums = [f32; LANES];

/// What becomes of the sums: `activation(sum + bias) + residual`.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a, R> {
    /// `[outputs]`
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) activation: Activation,
    /// `[rows, outputs]`
    pub(crate) residual: Option<&'a [R]>,
}

/// A few rows that are multiplied by a weight panel by panel, as memory gives it.
pub(crate) trait FewRows: Sync {
    fn rows(&self) -> usize;

    /// Panels of the weight.
    fn panels(&self) -> usize;

    /// Outputs of a panel.
    fn width(&self) -> usize;

    /// How many panels they are best multiplied by at a time.
    fn group(&self) -> usize;

    /// The product with a group of panels, or less, as `[rows][outputs]` in vectors, added to `sums`, which are zeros.
    fn multiply(&self, group: Range<usize>, sums: &mut [Sums]);

    /// The finished product `[rows, output]`.
    ///
    /// # Panics
    /// For more outputs than the panels have.
    fn product<R: Value>(&self, output: usize, finish: Finish<'_, R>) -> Vec<R> {
        assert!(output <= self.panels() * self.width(), "{output} outputs of {} panels", self.panels());
        let mut y = Vec::with_capacity(self.rows() * output);
        let result = Target::new(&mut y, self.rows(), output);
        match finish.activation {
            Activation::None => self.write(&result, output, finish, |y| y),
            Activation::QuickGelu => self.write(&result, output, finish, |y| y / (1.0 + (-1.702 * y).exp())),
            Activation::Silu => self.write(&result, output, finish, |y| y / (1.0 + (-y).exp())),
        }
        // SAFETY: the whole result was written.
        unsafe { y.set_len(self.rows() * output) };
        y
    }

    /// Writes the result, every value of it.
    fn write<R: Value>(
        &self,
        result: &Target<R>,
        output: usize,
        Finish { bias, residual, .. }: Finish<'_, R>,
        activate: impl Fn(f32) -> f32 + Sync,
    ) {
        let (rows, width, group) = (self.rows(), self.width(), self.group());
        let groups = (0..self.panels().div_ceil(group)).into_par_iter();
        groups.for_each_init(Vec::new, |sums, place| {
            let panels = place * group..((place + 1) * group).min(self.panels());
            let first = panels.start * width;
            let width = panels.len() * width;
            sums.clear();
            sums.resize(rows * width / LANES, [0.0; LANES]);
            self.multiply(panels, sums);
            // Pass by pass, so that each is done in vectors.
            for (row, sums) in sums.as_flattened_mut().chunks_exact_mut(width).enumerate() {
                let outputs = first..(first + width).min(output);
                let sums = &mut sums[..outputs.len()];
                // SAFETY: groups do not overlap.
                let y = unsafe { result.part(row, outputs.clone()) };
                if let Some(bias) = bias {
                    sums.iter_mut().zip(&bias[outputs.clone()]).for_each(|(sum, bias)| *sum += bias);
                }
                sums.iter_mut().for_each(|sum| *sum = activate(*sum));
                if let Some(residual) = residual {
                    let before = &residual[row * output..][outputs];
                    sums.iter_mut().zip(before).for_each(|(sum, before)| *sum += before.wide());
                }
                y.iter_mut().zip(sums).for_each(|(y, sum)| {
                    y.write(R::narrow(*sum));
                });
            }
        });
    }
}

/// Pairs of the inputs of rows, which have an even number of them.
pub(crate) fn pairs(x: &[bf16]) -> &[[bf16; 2]] {
    x.as_chunks().0
}
