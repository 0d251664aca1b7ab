use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Error, Layout, Result, Shape, Tensor};

use crate::{
    elementwise::Activation,
    memory::{contiguous, is_cpu_f32},
    packed::{Finish, PackedMatrix},
};

/// A linear map made ready for inference in f32 on the CPU: its weight is packed once, and bias, activation and residual
/// sum are added while a product is still in registers. It has no gradient. Clones share the weight.
#[derive(Debug, Clone)]
pub struct PreparedLinear {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    weight: PackedMatrix,
    bias: Option<Vec<f32>>,
}

impl PreparedLinear {
    /// Packs `weight` `[out, in]` of f32, f16 or bf16 on the CPU, in the type that it has, with `bias` `[out]`.
    ///
    /// # Errors
    /// Another shape, type or device.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let weight = PackedMatrix::new(weight)?;
        let bias = bias.map(|bias| bias.to_dtype(DType::F32)?.to_vec1::<f32>()).transpose()?;
        let (output, _) = weight.sizes();
        match &bias {
            Some(bias) if bias.len() != output => {
                Err(Error::Msg(format!("a bias of {} values for {output} outputs", bias.len())))
            }
            _ => Ok(Self { inner: Arc::new(Inner { weight, bias }) }),
        }
    }

    /// (out, in)
    #[must_use]
    pub fn sizes(&self) -> (usize, usize) {
        self.inner.weight.sizes()
    }

    /// `activation(x W^T + b) + residual`: x f32 `[..., in]`, residual f32 of the shape of the result, `[..., out]`.
    ///
    /// A row of the result depends on its own row of x alone, bit for bit, whatever the number of rows and threads.
    ///
    /// # Errors
    /// Shapes, types or devices that do not fit.
    pub fn forward(&self, x: &Tensor, activation: Activation, residual: Option<&Tensor>) -> Result<Tensor> {
        let (output, input) = self.sizes();
        let dims = x.dims();
        let fits = |residual: &Tensor| {
            is_cpu_f32(residual)
                && residual.dims().split_last() == dims.split_last().map(|(_, rows)| (&output, rows))
        };
        if !is_cpu_f32(x) || dims.last() != Some(&input) || !residual.is_none_or(fits) {
            return Err(Error::Msg(format!(
                "linear map of x {dims:?} of type {:?} by a prepared weight [{output}, {input}] and residual {:?}",
                x.dtype(),
                residual.map(Tensor::dims)
            )));
        }
        let fused = Fused { map: &self.inner, activation };
        let x = x.contiguous()?;
        match residual {
            None => x.apply_op1_no_bwd(&fused),
            Some(residual) => x.apply_op2_no_bwd(&residual.contiguous()?, &fused),
        }
    }
}

struct Fused<'a> {
    map: &'a Inner,
    activation: Activation,
}

impl Fused<'_> {
    fn run(&self, x: &CpuStorage, layout: &Layout, residual: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(x, layout)?;
        let (output, input) = self.map.weight.sizes();
        let mut y = vec![0f32; x.len() / input * output];
        let finish = Finish { bias: self.map.bias.as_deref(), activation: self.activation, residual };
        self.map.weight.multiply(x, finish, &mut y);
        let mut shape = layout.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = output;
        }
        Ok((CpuStorage::F32(y), Shape::from(shape)))
    }
}

impl CustomOp1 for Fused<'_> {
    fn name(&self) -> &'static str {
        "prepared linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.run(x, layout, None)
    }
}

impl CustomOp2 for Fused<'_> {
    fn name(&self) -> &'static str {
        "prepared linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run(x, x_layout, Some(contiguous(residual, residual_layout)?))
    }
}
