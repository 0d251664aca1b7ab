use half::bf16;
use rayon::prelude::*;

use super::Weight;
use crate::{Activation, Value, target::Target};

/// What becomes of the sums: `activation(sum + bias) + residual`.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a, R> {
    /// `[outputs]`
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) activation: Activation,
    /// `[rows, outputs]`
    pub(crate) residual: Option<&'a [R]>,
}

/// A product of `x` `[rows, input]` by a weight `[output, input]` in panels.
#[derive(Clone, Copy)]
pub(crate) struct PanelProduct<'a, R> {
    pub(crate) weight: Weight<'a>,
    pub(crate) x: &'a [bf16],
    pub(crate) input: usize,
    pub(crate) output: usize,
    pub(crate) finish: Finish<'a, R>,
}

impl<R: Value> PanelProduct<'_, R> {
    /// Whether there are no more rows than are multiplied here; any number of them where the weight has blocks.
    pub(crate) fn fits(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.weight.panels.has_blocks(self.input) {
            return true;
        }
        self.x.len() / self.input <= self.weight.most_rows()
    }

    /// The result `[rows, output]`.
    ///
    /// # Panics
    /// For a product that does not fit.
    pub(crate) fn computed(&self) -> Vec<R> {
        assert!(self.fits());
        let rows = self.x.len() / self.input;
        let mut y = Vec::with_capacity(rows * self.output);
        let result = Target::new(&mut y, rows, self.output);
        if rows <= self.weight.most_rows() {
            match self.finish.activation {
                Activation::None => self.write_few_rows(&result, |y| y),
                Activation::QuickGelu => self.write_few_rows(&result, |y| y / (1.0 + (-1.702 * y).exp())),
                Activation::Silu => self.write_few_rows(&result, |y| y / (1.0 + (-y).exp())),
            }
        } else {
            #[cfg(target_arch = "x86_64")]
            self.write_blocks(&result);
        }
        // SAFETY: the whole result was written.
        unsafe { y.set_len(rows * self.output) };
        y
    }

    fn write_few_rows(&self, result: &Target<R>, activate: impl Fn(f32) -> f32 + Sync) {
        let (rows, output) = (self.x.len() / self.input, self.output);
        if rows == 0 {
            return;
        }
        let Finish { bias, residual, .. } = self.finish;
        let x = self.weight.by(self.x, rows);
        let (width, count) = (self.weight.panels.width(), self.weight.count());
        let group = x.group();
        let groups = (0..count.div_ceil(group)).into_par_iter();
        groups.for_each_init(Vec::new, |sums, place| {
            x.multiply(place * group..((place + 1) * group).min(count), sums);
            let sums = sums.as_flattened_mut();
            let first = place * group * width;
            let width = sums.len() / rows;
            // Pass by pass, so that each is done in vectors.
            for (row, sums) in sums.chunks_exact_mut(width).enumerate() {
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
