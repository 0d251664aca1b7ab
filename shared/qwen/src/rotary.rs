use std::sync::Arc;

use candle_core::{
    CpuStorage, CustomOp1, DType, Device, Error, Layout, Result, Shape, Tensor, WithDType, bail,
};
use rayon::prelude::*;
use thicket_kernels::cast;

/// Rows handled by one task; below it the work does not pay for a second thread.
const ROWS_PER_TASK: usize = 64;

/// Rotary position embedding of a run of tokens, in the rotate-half convention: with the two halves `a`, `b` of a head
/// and an angle per pair, `(a cos - b sin, b cos + a sin)`. The angles are computed in f32.
///
/// On the CPU in f32 it is one fused, differentiable pass; elsewhere it is [`thicket_kernels::rotate`].
#[derive(Debug, Clone)]
pub(crate) struct Rotary {
    tables: Arc<Tables>,
    /// cos and sin as (tokens, 1, head_dim / 2), where the fused pass does not apply.
    tensors: Option<(Tensor, Tensor)>,
}

#[derive(Debug)]
struct Tables {
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Half the head width.
    half: usize,
}

impl Rotary {
    /// Prepares the rotation of `angles.len() / half` tokens; `angles` is (tokens, head_dim / 2), row-major.
    ///
    /// The rotation is computed in f32; the result has the dtype of what is rotated.
    pub(crate) fn new(angles: &[f32], half: usize, device: &Device) -> Result<Self> {
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.iter().map(|angle| angle.sin_cos()).unzip();
        Self::from_tables(Tables { cos, sin, half }, device)
    }

    fn from_tables(tables: Tables, device: &Device) -> Result<Self> {
        let tensors = if device.is_cpu() {
            None
        } else {
            let shape = (tables.cos.len() / tables.half, 1, tables.half);
            let tensor = |values: &Vec<f32>| Tensor::from_slice(values, shape, device);
            Some((tensor(&tables.cos)?, tensor(&tables.sin)?))
        };
        Ok(Self { tables: Arc::new(tables), tensors })
    }

    /// The rotation of some of the tokens only, in the order given.
    pub(crate) fn select(&self, rows: &[u32]) -> Result<Self> {
        let half = self.tables.half;
        let pick = |values: &[f32]| -> Vec<f32> {
            rows.iter().flat_map(|&row| &values[row as usize * half..][..half]).copied().collect()
        };
        let tables = Tables { cos: pick(&self.tables.cos), sin: pick(&self.tables.sin), half };
        match &self.tensors {
            None => Self::from_tables(tables, &Device::Cpu),
            Some((cos, _)) => Self::from_tables(tables, cos.device()),
        }
    }

    /// Rotates (tokens, heads, head_dim), contiguous or not.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let half = self.tables.half;
        let (tokens, _, head_dim) = x.dims3()?;
        if head_dim != 2 * half || tokens * half != self.tables.cos.len() {
            bail!(
                "rotary tables of {} tokens and head width {} do not fit {:?}",
                self.tables.cos.len() / half,
                2 * half,
                x.shape()
            );
        }
        match &self.tensors {
            Some((cos, sin)) => thicket_kernels::rotate(x, cos, sin),
            None => {
                let rotate = Rotate { tables: Arc::clone(&self.tables), backwards: false };
                cast(&cast(x, DType::F32)?.apply_op1(rotate)?, x.dtype())
            }
        }
    }
}

struct Rotate {
    tables: Arc<Tables>,
    /// Turns by the opposite angles: the gradient of a rotation.
    backwards: bool,
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let values = f32::cpu_storage_as_slice(storage)?;
        let &[tokens, heads, head_dim] = layout.dims() else {
            bail!("rotary expects three dimensions, got {:?}", layout.shape())
        };
        let &[token_stride, head_stride, 1] = layout.stride() else {
            return Err(Error::RequiresContiguous { op: "rotary" }.bt());
        };
        let half = self.tables.half;
        let sign = if self.backwards { -1.0 } else { 1.0 };
        let width = heads * head_dim;
        let mut rotated = vec![0f32; tokens * width];
        let rotate_token = |(token, out): (usize, &mut [f32])| {
            let cos = &self.tables.cos[token * half..][..half];
            let sin = &self.tables.sin[token * half..][..half];
            for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
                let start = layout.start_offset() + token * token_stride + head * head_stride;
                let (a, b) = values[start..start + head_dim].split_at(half);
                let (first, second) = out.split_at_mut(half);
                for j in 0..half {
                    let (cos, sin) = (cos[j], sign * sin[j]);
                    first[j] = a[j] * cos - b[j] * sin;
                    second[j] = b[j] * cos + a[j] * sin;
                }
            }
        };
        if tokens <= ROWS_PER_TASK {
            rotated.chunks_exact_mut(width).enumerate().for_each(rotate_token);
        } else {
            rotated
                .par_chunks_exact_mut(width)
                .with_min_len(ROWS_PER_TASK)
                .enumerate()
                .for_each(rotate_token);
        }
        Ok((CpuStorage::F32(rotated), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let op = Self { tables: Arc::clone(&self.tables), backwards: !self.backwards };
        Ok(Some(grad.contiguous()?.apply_op1(op)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    const TOKENS: usize = 70;
    const HALF: usize = 3;

    fn rotary() -> Rotary {
        let angles: Vec<f32> = (0..TOKENS * HALF).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        Rotary::new(&angles, HALF, &Device::Cpu).unwrap()
    }

    fn composed(rotary: &Rotary) -> Rotary {
        let table = |values: &Vec<f32>| Tensor::from_slice(values, (TOKENS, 1, HALF), &Device::Cpu).unwrap();
        Rotary {
            tables: Arc::clone(&rotary.tables),
            tensors: Some((table(&rotary.tables.cos), table(&rotary.tables.sin))),
        }
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn assert_close(actual: &Tensor, expected: &Tensor) {
        assert_eq!(actual.dims(), expected.dims());
        for (a, b) in values(actual).iter().zip(values(expected)) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }

    #[test]
    fn the_fused_pass_equals_the_composed_one_on_a_strided_view_with_gradients() {
        let fused = rotary();
        let composed = composed(&fused);
        let packed = Var::randn(0f32, 1.0, (TOKENS, 3, 2, 2 * HALF), &Device::Cpu).unwrap();
        let weight = Tensor::randn(0f32, 1.0, (TOKENS, 2, 2 * HALF), &Device::Cpu).unwrap();
        let view = packed.narrow(1, 1, 1).unwrap().squeeze(1).unwrap();
        let mut gradients = Vec::new();
        let mut outputs = Vec::new();
        for rotary in [&fused, &composed] {
            let out = rotary.apply(&view).unwrap();
            let loss = (&out * &weight).unwrap().sum_all().unwrap();
            gradients.push(loss.backward().unwrap().get(&packed).unwrap().clone());
            outputs.push(out);
        }
        assert_close(&outputs[0], &outputs[1]);
        assert_close(&gradients[0], &gradients[1]);
    }

    #[test]
    fn selected_rows_rotate_as_they_do_in_the_whole() {
        let rotary = rotary();
        let x = Tensor::randn(0f32, 1.0, (TOKENS, 2, 2 * HALF), &Device::Cpu).unwrap();
        let rows = [69u32, 0, 5];
        let index = Tensor::new(&rows, &Device::Cpu).unwrap();
        let whole = rotary.apply(&x).unwrap().index_select(&index, 0).unwrap();
        let part = rotary.select(&rows).unwrap().apply(&x.index_select(&index, 0).unwrap()).unwrap();
        assert_close(&part, &whole);
    }

    #[test]
    fn a_token_count_that_does_not_fit_is_an_error() {
        let x = Tensor::zeros((TOKENS + 1, 1, 2 * HALF), DType::F32, &Device::Cpu).unwrap();
        assert!(rotary().apply(&x).unwrap_err().to_string().contains("do not fit"));
    }
}
