use std::fmt;

use half::bf16;

#[cfg(target_arch = "x86_64")]
use crate::panels::{Compact, Finish, PanelProduct};
use crate::{Activation, Error, Value, linear::length};

/// A weight `[out, in]` in bf16 with its bias, for inputs in bf16, in three quarters of the weight's bytes and without loss: few rows are
/// multiplied by it as much faster, for it is memory that limits them. Many rows take longer than by a [`PackedLinear`], as it is
/// unpacked for every 256 of them.
///
/// [`PackedLinear`]: crate::PackedLinear
pub struct CompactLinear {
    #[cfg(target_arch = "x86_64")]
    weight: Compact,
    #[cfg(not(target_arch = "x86_64"))]
    weight: std::convert::Infallible,
    bias: Option<Vec<f32>>,
    output: usize,
    input: usize,
}

impl fmt::Debug for CompactLinear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompactLinear")
            .field("out", &self.output)
            .field("in", &self.input)
            .finish_non_exhaustive()
    }
}

impl CompactLinear {
    /// Packs `weight`, row-major `[output, input]`, with `bias` `[output]`. `None` on a processor without AMX in bf16, for inputs that
    /// are no multiple of 32, and where more than one value in 128 has none of the 16 exponents that most have.
    ///
    /// # Errors
    /// [`Error`] for slices of another length, a size of zero, or too little memory.
    pub fn new(
        weight: &[bf16],
        bias: Option<&[f32]>,
        output: usize,
        input: usize,
    ) -> Result<Option<Self>, Error> {
        if output == 0 || input == 0 {
            return Err(Error::Size { input, output });
        }
        length("weight", weight.len(), output * input)?;
        length("bias", bias.map_or(output, <[f32]>::len), output)?;
        #[cfg(not(target_arch = "x86_64"))]
        return Ok(None);
        #[cfg(target_arch = "x86_64")]
        Ok(Compact::new(weight, input)?.map(|weight| Self {
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
        let rows = x.len() / self.input;
        length("x", x.len(), rows * self.input)?;
        length("residual", residual.map_or(rows * self.output, <[R]>::len), rows * self.output)?;
        #[cfg(target_arch = "x86_64")]
        {
            let finish = Finish { bias: self.bias.as_deref(), activation, residual };
            let (weight, input, output) = (self.weight.weight(), self.input, self.output);
            let product = PanelProduct { weight, x, input, output, finish };
            Ok(product.computed())
        }
        #[cfg(not(target_arch = "x86_64"))]
        match self.weight {}
    }
}
