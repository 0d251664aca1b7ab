//! Weights in bf16 in an order of this crate's own, for the tiles of AMX.
//!
//! A panel is 64 outputs; each step of it has 32 inputs, and is four tiles one after another: the bytes of a tile lie together, which
//! the processor reads up to a fifth faster than the library's order, where those of four tiles alternate line by line.

#[cfg(target_arch = "x86_64")]
mod blocks;
#[cfg(target_arch = "x86_64")]
mod compact;
#[cfg(target_arch = "x86_64")]
mod few_rows;
#[cfg(target_arch = "x86_64")]
mod weight;

use std::fmt;

use half::bf16;
#[cfg(target_arch = "x86_64")]
use {
    crate::product::{FewRows, Finish},
    blocks::{Blocks, Layout},
    weight::{MOST_FEW, Rows, Weight},
};

use crate::{Activation, Error, Value, linear::length};

/// A weight `[out, in]` in bf16 with its bias, for inputs in bf16, on a processor with AMX in bf16. It needs no library.
pub struct TiledLinear {
    #[cfg(target_arch = "x86_64")]
    weight: Weight,
    #[cfg(not(target_arch = "x86_64"))]
    weight: std::convert::Infallible,
    bias: Option<Vec<f32>>,
    output: usize,
    input: usize,
}

impl fmt::Debug for TiledLinear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TiledLinear")
            .field("out", &self.output)
            .field("in", &self.input)
            .finish_non_exhaustive()
    }
}

/// How the values of a weight are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// As they are, for many rows at a time.
    Whole,
    /// In three quarters of their bytes, without loss: a row or a few are multiplied by them as much faster, for it is memory that limits
    /// those. Many rows take a little longer, as the values are unpacked for every 256 of them. Where more than one value in 128 has
    /// none of the 15 exponents that most have, whole.
    Compact,
}

impl TiledLinear {
    /// Packs `weight`, row-major `[output, input]`, with `bias` `[output]`. `None` on a processor without AMX in bf16, and for inputs
    /// that are no multiple of 32.
    ///
    /// # Errors
    /// [`Error`] for slices of another length, a size of zero, or too little memory.
    pub fn new(
        weight: &[bf16],
        bias: Option<&[f32]>,
        output: usize,
        input: usize,
        keep: Keep,
    ) -> Result<Option<Self>, Error> {
        if output == 0 || input == 0 {
            return Err(Error::Size { input, output });
        }
        length("weight", weight.len(), output * input)?;
        length("bias", bias.map_or(output, <[f32]>::len), output)?;
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = keep;
            Ok(None)
        }
        #[cfg(target_arch = "x86_64")]
        Ok(Weight::new(weight, input, keep)?.map(|weight| Self {
            weight,
            bias: bias.map(<[f32]>::to_vec),
            output,
            input,
        }))
    }

    /// (out, in)
    #[must_use]
    pub fn sizes(&self) -> (usize, usize) {
        (self.output, self.input)
    }

    /// Of the weight in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        return self.weight.bytes();
        #[cfg(not(target_arch = "x86_64"))]
        match self.weight {}
    }

    /// A row of the weight, `[in]`. None where there is no such row.
    #[must_use]
    pub fn row(&self, row: usize) -> Option<Vec<bf16>> {
        #[cfg(target_arch = "x86_64")]
        return (row < self.output).then(|| self.weight.row(row));
        #[cfg(not(target_arch = "x86_64"))]
        match self.weight {}
    }

    /// `activation(x W^T + bias) + residual`: x `[rows, in]`, residual and result `[rows, out]`, row-major.
    ///
    /// # Errors
    /// [`Error`] for slices of another length.
    pub fn forward<R: Value>(
        &self,
        x: &[bf16],
        activation: Activation,
        residual: Option<&[R]>,
    ) -> Result<Vec<R>, Error> {
        let (rows, output) = (x.len() / self.input, self.output);
        length("x", x.len(), rows * self.input)?;
        length("residual", residual.map_or(rows * output, <[R]>::len), rows * output)?;
        #[cfg(target_arch = "x86_64")]
        return Ok(self.product(x, (Layout::Rows, Layout::Rows), rows, activation, residual));
        #[cfg(not(target_arch = "x86_64"))]
        match self.weight {}
    }

    /// `next(activation(x W^T + bias)) + residual`, with no activation of the next map: x `[rows, in]`, residual and result `[rows, out]` of
    /// the next map, row-major. What is between the two lies in the order in which it is multiplied, which is faster for many rows than
    /// [`Self::forward`] twice, and the same to the bit.
    ///
    /// # Errors
    /// [`Error`] for slices of another length, and a next map of other inputs than this one's outputs.
    pub fn forward_through<R: Value>(
        &self,
        x: &[bf16],
        activation: Activation,
        next: &Self,
        residual: Option<&[R]>,
    ) -> Result<Vec<R>, Error> {
        let (rows, output) = (x.len() / self.input, next.output);
        length("x", x.len(), rows * self.input)?;
        length("inputs of the next map", next.input, self.output)?;
        length("residual", residual.map_or(rows * output, <[R]>::len), rows * output)?;
        #[cfg(target_arch = "x86_64")]
        {
            let between = if rows > MOST_FEW { Layout::Blocks } else { Layout::Rows };
            let hidden: Vec<bf16> = self.product(x, (Layout::Rows, between), rows, activation, None);
            Ok(next.product(&hidden, (between, Layout::Rows), rows, Activation::None, residual))
        }
        #[cfg(not(target_arch = "x86_64"))]
        match self.weight {}
    }

    /// From and to rows in some layouts, of which a few are one after another.
    #[cfg(target_arch = "x86_64")]
    fn product<R: Value>(
        &self,
        x: &[bf16],
        (layout, target): (Layout, Layout),
        rows: usize,
        activation: Activation,
        residual: Option<&[R]>,
    ) -> Vec<R> {
        let (weight, input, output) = (&self.weight, self.input, self.output);
        let finish = Finish { bias: self.bias.as_deref(), activation, residual };
        match rows {
            0 => Vec::new(),
            1..=MOST_FEW => Rows::new(weight, x, rows).product(output, finish),
            _ => Blocks { weight, x, layout, rows, input, output, finish }.product(target),
        }
    }
}
