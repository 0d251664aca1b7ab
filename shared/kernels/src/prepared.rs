use std::sync::Arc;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, DType, Device, Error, Layout, Result, Shape, Storage, Tensor,
};
use half::bf16;
use thicket_onednn::{Keep, Library, PackedLinear, TiledLinear, Value};

use crate::{
    cast::{converted, rounded, widened},
    elementwise::{Activation, quick_gelu},
    memory::{contiguous, in_order, zeros},
    packed::{Finish, PackedMatrix},
};

/// What multiplies by the weights of a model on the CPU.
#[derive(Debug, Clone, Copy, Default)]
pub enum Backend {
    /// This crate's own products in f32, and candle's in other types.
    #[default]
    Plain,
    /// oneDNN, except where f32 is multiplied by a weight in 16 bits: it would need a second copy of that weight.
    OneDnn(&'static Library),
}

/// A linear map made ready for inference. On the CPU its weight is packed once, and bias, activation and residual sum are added
/// while a product is at hand; on a GPU they are one pass after it. It has no gradient. Clones share the weight.
#[derive(Debug, Clone)]
pub struct PreparedLinear {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    product: Product,
    output: usize,
    input: usize,
}

#[derive(Debug)]
enum Product {
    Panels {
        weight: PackedMatrix,
        bias: Option<Vec<f32>>,
    },
    OneDnn(PackedLinear<f32>),
    Narrow(Narrow),
    /// On a GPU: the weight as it is, the bias in f32.
    Gpu {
        weight: Tensor,
        bias: Option<Tensor>,
    },
}

/// A map in bf16: in tiles where the processor has them, else as oneDNN packs it.
#[derive(Debug)]
enum Narrow {
    Tiled(TiledLinear),
    Packed(PackedLinear<bf16>),
}

impl Narrow {
    fn new(
        library: &'static Library,
        weight: &[bf16],
        bias: Option<&[f32]>,
        (output, input): (usize, usize),
        keep: Keep,
    ) -> std::result::Result<Self, thicket_onednn::Error> {
        Ok(match TiledLinear::new(weight, bias, output, input, keep)? {
            Some(map) => Self::Tiled(map),
            None => Self::Packed(PackedLinear::new(library, weight, bias, output, input)?),
        })
    }

    fn can_read_rows(&self) -> bool {
        match self {
            Self::Tiled(_) => true,
            Self::Packed(map) => map.can_read_rows(),
        }
    }

    fn row(&self, row: usize) -> Option<Vec<bf16>> {
        match self {
            Self::Tiled(map) => map.row(row),
            Self::Packed(map) => map.row(row).map(Iterator::collect),
        }
    }

    fn forward<R: Value>(
        &self,
        x: &[bf16],
        activation: thicket_onednn::Activation,
        residual: Option<&[R]>,
    ) -> Result<Vec<R>> {
        match self {
            Self::Tiled(map) => map.forward(x, activation, residual),
            Self::Packed(map) => map.forward(x, activation, residual),
        }
        .map_err(Error::wrap)
    }
}

impl PreparedLinear {
    /// Packs `weight` `[out, in]` with `bias` `[out]` for inputs of type `compute`. The bytes of the weight stay as many:
    /// for f32 it stays in the type that it has, f32, f16 or bf16; for bf16 it becomes bf16.
    ///
    /// `None` where there is nothing better than candle's operations: for a `compute` that the backend does not multiply in, and
    /// on a GPU without the kernels of this project or with a weight of another type than f32 or bf16, or than `compute`.
    ///
    /// # Errors
    /// Another shape or type, or a failure of oneDNN.
    pub fn new(
        weight: &Tensor,
        bias: Option<&Tensor>,
        compute: DType,
        backend: Backend,
    ) -> Result<Option<Self>> {
        Self::made(weight, bias, compute, backend, Keep::Whole)
    }

    /// As [`Self::new`] for a map that is read for a row or a few at a time more than for many: in bf16 in tiles its weight is kept in
    /// three quarters of its bytes, without loss, where that can be, see [`Keep::Compact`].
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn for_few_rows(
        weight: &Tensor,
        bias: Option<&Tensor>,
        compute: DType,
        backend: Backend,
    ) -> Result<Option<Self>> {
        Self::made(weight, bias, compute, backend, Keep::Compact)
    }

    fn made(
        weight: &Tensor,
        bias: Option<&Tensor>,
        compute: DType,
        backend: Backend,
        keep: Keep,
    ) -> Result<Option<Self>> {
        let (output, input) = weight.dims2()?;
        if let Some(bias) = bias.filter(|bias| bias.dims() != [output]) {
            return Err(Error::Msg(format!("a bias {:?} for {output} outputs", bias.dims())));
        }
        if !weight.device().is_cpu() {
            let computed = weight.dtype() == compute && matches!(compute, DType::F32 | DType::BF16);
            if !thicket_cuda::BUILT || !computed {
                return Ok(None);
            }
            let bias = bias.map(|bias| bias.to_dtype(DType::F32)).transpose()?;
            let product = Product::Gpu { weight: weight.clone(), bias };
            return Ok(Some(Self { inner: Arc::new(Inner { product, output, input }) }));
        }
        let bias = bias.map(|bias| bias.to_dtype(DType::F32)?.to_vec1::<f32>()).transpose()?;
        let product = match (compute, backend) {
            (DType::F32, Backend::OneDnn(library)) if weight.dtype() == DType::F32 => {
                Product::OneDnn(with_slice(weight, |weight| {
                    PackedLinear::new(library, weight, bias.as_deref(), output, input).map_err(Error::wrap)
                })?)
            }
            (DType::F32, _) => Product::Panels { weight: PackedMatrix::new(weight)?, bias },
            (DType::BF16, Backend::OneDnn(library)) => {
                Product::Narrow(with_slice(&weight.to_dtype(DType::BF16)?, |weight| {
                    Narrow::new(library, weight, bias.as_deref(), (output, input), keep).map_err(Error::wrap)
                })?)
            }
            _ => return Ok(None),
        };
        Ok(Some(Self { inner: Arc::new(Inner { product, output, input }) }))
    }

    /// As [`Self::for_few_rows`] for a table whose rows are read too ([`Self::rows`]): for bf16 in tiles or as oneDNN packs it, where that
    /// order is known, and otherwise in panels, in the type that it has, which multiply inputs in f32 or bf16, in f32.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn table(weight: &Tensor, compute: DType, backend: Backend) -> Result<Option<Self>> {
        if !weight.device().is_cpu() || !matches!(compute, DType::F32 | DType::BF16) {
            return Ok(None);
        }
        if let (DType::BF16, Backend::OneDnn(_)) = (compute, backend)
            && let Some(map) = Self::for_few_rows(weight, None, compute, backend)?
            && matches!(&map.inner.product, Product::Narrow(product) if product.can_read_rows())
        {
            return Ok(Some(map));
        }
        let (output, input) = weight.dims2()?;
        let product = Product::Panels { weight: PackedMatrix::new(weight)?, bias: None };
        Ok(Some(Self { inner: Arc::new(Inner { product, output, input }) }))
    }

    /// (out, in)
    #[must_use]
    pub fn sizes(&self) -> (usize, usize) {
        (self.inner.output, self.inner.input)
    }

    /// Some rows of the weight in f32, `[rows, in]`, for a matrix that is read by rows too.
    ///
    /// # Errors
    /// A row that the weight does not have, or a weight that oneDNN holds in an order of its own.
    pub fn rows(&self, rows: &[u32]) -> Result<Tensor> {
        let map = match &self.inner.product {
            Product::Panels { weight, .. } => return weight.rows(rows),
            Product::Narrow(map) if map.can_read_rows() => map,
            _ => return Err(Error::Msg("rows of a weight that oneDNN holds".to_string())),
        };
        let (output, input) = self.sizes();
        let mut values = Vec::with_capacity(rows.len() * input);
        for &row in rows {
            let row = map
                .row(row as usize)
                .ok_or_else(|| Error::Msg(format!("row {row} of a weight of {output}")))?;
            values.extend(row.into_iter().map(widened));
        }
        Tensor::from_vec(values, (rows.len(), input), &Device::Cpu)
    }

    /// `activation(x W^T + b) + residual`: x `[..., in]` of the type that the map was made for, residual f32 of the shape
    /// of the result, `[..., out]`. The result has the type of x, or f32 where there is a residual.
    ///
    /// In f32 a row of the result depends on its own row of x alone, bit for bit, whatever the number of rows and threads.
    ///
    /// # Errors
    /// Shapes, types or devices that do not fit.
    pub fn forward(&self, x: &Tensor, activation: Activation, residual: Option<&Tensor>) -> Result<Tensor> {
        self.check(x, self.inner.output, residual)?;
        if let Product::Gpu { weight, bias } = &self.inner.product {
            return on_gpu(x, weight, bias.as_ref(), activation, residual);
        }
        applied(&Fused { map: &self.inner, activation }, x, residual)
    }

    /// `next(activation(x W^T + b)) + residual` as two times [`Self::forward`], with no activation of the next map. In tiles what is between
    /// the two never becomes a tensor, and many rows take less time.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_through(
        &self,
        x: &Tensor,
        activation: Activation,
        next: &Self,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (Product::Narrow(Narrow::Tiled(first)), Product::Narrow(Narrow::Tiled(next))) =
            (&self.inner.product, &next.inner.product)
        else {
            return next.forward(&self.forward(x, activation, None)?, Activation::None, residual);
        };
        self.check(x, next.sizes().0, residual)?;
        applied(&Through { first, activation, next }, x, residual)
    }

    /// Whether the map can be applied to `x`, and the residual is of so many outputs.
    fn check(&self, x: &Tensor, outputs: usize, residual: Option<&Tensor>) -> Result<()> {
        let (output, input) = self.sizes();
        let dims = x.dims();
        let fits = |residual: &Tensor| {
            residual.dims().split_last() == dims.split_last().map(|(_, rows)| (&outputs, rows))
        };
        let there = match &self.inner.product {
            Product::Gpu { weight, .. } => x.device().same_device(weight.device()),
            _ => x.device().is_cpu(),
        };
        if there && dims.last() == Some(&input) && residual.is_none_or(fits) {
            return Ok(());
        }
        Err(Error::Msg(format!(
            "linear map of x {dims:?} by a prepared weight [{output}, {input}] and residual {:?}",
            residual.map(Tensor::dims)
        )))
    }
}

fn applied<M: CustomOp1 + CustomOp2>(map: &M, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
    let x = x.contiguous()?;
    match residual {
        None => x.apply_op1_no_bwd(map),
        Some(residual) => x.apply_op2_no_bwd(&residual.contiguous()?, map),
    }
}

/// The map where weight `[out, in]`, bias f32 `[out]` and `x` `[..., in]` are on a GPU.
fn on_gpu(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let (output, input) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = output;
    }
    // One large product instead of one for each leading index.
    let y = x.reshape(((), input))?.matmul(&weight.t()?)?.reshape(shape)?;
    if bias.is_none() && activation == Activation::None && residual.is_none() {
        return Ok(y);
    }
    let residual = residual.map(Tensor::contiguous).transpose()?;
    if let Some(finished) = thicket_cuda::finished(&y, bias, activation, residual.as_ref())? {
        return Ok(finished);
    }
    let wide = y.to_dtype(DType::F32)?;
    let wide = match bias {
        Some(bias) => wide.broadcast_add(bias)?,
        None => wide,
    };
    let wide = match activation {
        Activation::None => wide,
        Activation::QuickGelu => quick_gelu(&wide)?,
        Activation::Silu => wide.silu()?,
    };
    match residual {
        Some(residual) => wide + residual,
        None => wide.to_dtype(y.dtype()),
    }
}

/// Calls `read` with the values of a tensor, made contiguous first.
fn with_slice<T: candle_core::WithDType, R>(
    tensor: &Tensor,
    read: impl FnOnce(&[T]) -> Result<R>,
) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => read(in_order(storage.as_slice::<T>()?, layout)?),
        _ => Err(Error::Msg("a prepared weight is not on the CPU".to_string())),
    }
}

/// `x` with another number of values in a row.
fn with_last(layout: &Layout, last: usize) -> Shape {
    let mut shape = layout.dims().to_vec();
    if let Some(values) = shape.last_mut() {
        *values = last;
    }
    Shape::from(shape)
}

struct Fused<'a> {
    map: &'a Inner,
    activation: Activation,
}

impl Fused<'_> {
    fn run(&self, x: &CpuStorage, layout: &Layout, residual: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let Inner { product, output, input } = self.map;
        let rows = layout.shape().elem_count() / input;
        let activation = self.activation;
        let y = match product {
            Product::Panels { weight, bias } => {
                let mut y = zeros(rows * output);
                let finish = Finish { bias: bias.as_deref(), activation, residual };
                match x {
                    CpuStorage::BF16(x) => {
                        weight.multiply(&converted(in_order(x, layout)?, widened), finish, &mut y);
                    }
                    _ => weight.multiply(contiguous(x, layout)?, finish, &mut y),
                }
                match (x, residual) {
                    (CpuStorage::BF16(_), None) => CpuStorage::BF16(converted(&y, rounded)),
                    _ => CpuStorage::F32(y),
                }
            }
            Product::Gpu { .. } => {
                return Err(Error::Msg("a weight on a GPU and values on the CPU".to_string()));
            }
            Product::OneDnn(map) => {
                let x = contiguous(x, layout)?;
                CpuStorage::F32(map.forward(x, followed(activation), residual).map_err(Error::wrap)?)
            }
            Product::Narrow(map) => {
                let x = in_order(x.as_slice::<bf16>()?, layout)?;
                let activation = followed(activation);
                match residual {
                    Some(_) => CpuStorage::F32(map.forward(x, activation, residual)?),
                    None => CpuStorage::BF16(map.forward(x, activation, None)?),
                }
            }
        };
        Ok((y, with_last(layout, *output)))
    }
}

/// Two maps in tiles, one after the other.
struct Through<'a> {
    first: &'a TiledLinear,
    activation: Activation,
    next: &'a TiledLinear,
}

impl Through<'_> {
    fn run(&self, x: &CpuStorage, layout: &Layout, residual: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let x = in_order(x.as_slice::<bf16>()?, layout)?;
        let (activation, next) = (followed(self.activation), self.next);
        let y = match residual {
            Some(_) => self.first.forward_through(x, activation, next, residual).map(CpuStorage::F32),
            None => self.first.forward_through(x, activation, next, None).map(CpuStorage::BF16),
        };
        Ok((y.map_err(Error::wrap)?, with_last(layout, next.sizes().0)))
    }
}

/// The same of oneDNN.
fn followed(activation: Activation) -> thicket_onednn::Activation {
    match activation {
        Activation::None => thicket_onednn::Activation::None,
        Activation::QuickGelu => thicket_onednn::Activation::QuickGelu,
        Activation::Silu => thicket_onednn::Activation::Silu,
    }
}

macro_rules! custom_ops {
    ($map:ident, $name:literal) => {
        impl CustomOp1 for $map<'_> {
            fn name(&self) -> &'static str {
                $name
            }

            fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
                self.run(x, layout, None)
            }
        }

        impl CustomOp2 for $map<'_> {
            fn name(&self) -> &'static str {
                $name
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
    };
}

custom_ops!(Fused, "prepared linear");
custom_ops!(Through, "two prepared linears");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Linear, attention::tests::assert_close};

    /// Every backend that this machine has.
    fn backends() -> Vec<Backend> {
        let library = Library::get().inspect_err(|missing| eprintln!("not checked: {missing}"));
        [Backend::Plain].into_iter().chain(library.ok().map(Backend::OneDnn)).collect()
    }

    #[test]
    fn every_backend_equals_the_composition() -> Result<()> {
        let random = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu);
        let (x, weight, bias) = (random(&[3, 50, 300])?, random(&[70, 300])?, random(&[70])?);
        let (weight, residual) = ((weight * 0.05)?, random(&[3, 50, 70])?);
        let plain = Linear::from_parts(weight.clone(), Some(bias.clone()));
        for backend in backends() {
            let mut prepared = plain.clone();
            prepared.prepare(DType::F32, backend)?;
            for activation in Activation::ALL {
                for residual in [None, Some(&residual)] {
                    let actual = prepared.forward_into(&x, activation, residual)?;
                    assert_close(&actual, &plain.forward_into(&x, activation, residual)?, 1e-5)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn two_maps_at_once_are_one_after_the_other() -> Result<()> {
        let random = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu);
        let (x, residual) = (random(&[2, 50, 64])?, random(&[2, 50, 70])?);
        let (first, first_bias) = ((random(&[96, 64])? * 0.1)?, random(&[96])?);
        let (next, next_bias) = ((random(&[70, 96])? * 0.1)?, random(&[70])?);
        for compute in [DType::F32, DType::BF16] {
            for backend in backends() {
                let made = |weight, bias| PreparedLinear::new(weight, Some(bias), compute, backend);
                let (Some(first), Some(next)) = (made(&first, &first_bias)?, made(&next, &next_bias)?) else {
                    continue;
                };
                let x = x.to_dtype(compute)?;
                for residual in [None, Some(&residual)] {
                    let hidden = first.forward(&x, Activation::QuickGelu, None)?;
                    let expected = next.forward(&hidden, Activation::None, residual)?;
                    let actual = first.forward_through(&x, Activation::QuickGelu, &next, residual)?;
                    assert_eq!(actual.dtype(), expected.dtype());
                    let wide = |y: Tensor| y.to_dtype(DType::F32);
                    assert_close(&wide(actual)?, &wide(expected)?, 0.0)?;
                }
                let error =
                    first.forward_through(&x, Activation::None, &next, Some(&x)).unwrap_err().to_string();
                assert!(error.contains("residual Some([2, 50, 64])"), "{error}");
            }
        }
        Ok(())
    }

    #[test]
    fn rows_of_a_table_are_those_of_the_weight_and_it_multiplies_like_it() -> Result<()> {
        let weight = Tensor::randn(0f32, 1.0, (150, 40), &Device::Cpu)?.to_dtype(DType::BF16)?;
        let x = Tensor::randn(0f32, 1.0, (5, 40), &Device::Cpu)?.to_dtype(DType::BF16)?;
        let expected = x.to_dtype(DType::F32)?.matmul(&weight.to_dtype(DType::F32)?.t()?)?;
        let picked = [149, 0, 63, 64, 0];
        let rows = weight.to_dtype(DType::F32)?.index_select(&Tensor::new(&picked, &Device::Cpu)?, 0)?;
        for backend in backends() {
            let Some(table) = PreparedLinear::table(&weight, DType::BF16, backend)? else {
                panic!("{backend:?} has no table");
            };
            assert_close(&table.rows(&picked)?, &rows, 0.0)?;
            let error = table.rows(&[150]).unwrap_err().to_string();
            assert!(error.contains("row 150 of a weight of 150"), "{error}");
            let y = table.forward(&x, Activation::None, None)?.to_dtype(DType::F32)?;
            let error = (y - &expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(error < 0.1, "{backend:?}: {error}");
        }
        Ok(())
    }

    #[test]
    fn a_map_for_few_rows_equals_one_for_many() -> Result<()> {
        let weight = (Tensor::randn(0f32, 1.0, (150, 96), &Device::Cpu)? * 0.1)?.to_dtype(DType::BF16)?;
        let bias = Tensor::randn(0f32, 1.0, 150, &Device::Cpu)?;
        for backend in backends() {
            let few = PreparedLinear::for_few_rows(&weight, Some(&bias), DType::BF16, backend)?;
            let Some(many) = PreparedLinear::new(&weight, Some(&bias), DType::BF16, backend)? else {
                assert!(few.is_none(), "{backend:?}");
                continue;
            };
            for rows in [1, 7, 40] {
                let x = Tensor::randn(0f32, 1.0, (rows, 96), &Device::Cpu)?.to_dtype(DType::BF16)?;
                let residual = Tensor::randn(0f32, 1.0, (rows, 150), &Device::Cpu)?;
                let product = |map: &PreparedLinear| map.forward(&x, Activation::Silu, Some(&residual));
                let few = few.as_ref().map(product).transpose()?.expect("a map for many rows is there");
                assert_close(&few, &product(&many)?, 1e-3)?;
            }
        }
        Ok(())
    }

    #[test]
    fn a_map_for_few_rows_whose_values_are_of_all_sizes_is_an_ordinary_one() -> Result<()> {
        let values: Vec<f32> = (0..150 * 96).map(|place| 2f32.powi(-(place % 40))).collect();
        let weight = Tensor::from_vec(values, (150, 96), &Device::Cpu)?.to_dtype(DType::BF16)?;
        let x = Tensor::randn(0f32, 1.0, (2, 96), &Device::Cpu)?.to_dtype(DType::BF16)?;
        for backend in backends() {
            let Some(few) = PreparedLinear::for_few_rows(&weight, None, DType::BF16, backend)? else {
                continue;
            };
            let many =
                PreparedLinear::new(&weight, None, DType::BF16, backend)?.expect("as the one for few rows");
            let bytes = |map: &PreparedLinear| match &map.inner.product {
                Product::Narrow(Narrow::Tiled(map)) => map.bytes(),
                _ => 0,
            };
            assert_eq!(bytes(&few), bytes(&many));
            let product =
                |map: &PreparedLinear| map.forward(&x, Activation::None, None)?.to_dtype(DType::F32);
            assert_close(&product(&few)?, &product(&many)?, 0.0)?;
        }
        Ok(())
    }

    #[test]
    fn a_residual_of_another_shape_is_refused() -> Result<()> {
        let weight = Tensor::zeros((5, 4), DType::F32, &Device::Cpu)?;
        let map = PreparedLinear::new(&weight, None, DType::F32, Backend::Plain)?.unwrap();
        let x = Tensor::zeros((2, 4), DType::F32, &Device::Cpu)?;
        let error = map.forward(&x, Activation::None, Some(&x)).unwrap_err().to_string();
        assert!(error.contains("[5, 4]") && error.contains("[2, 4]"), "{error}");
        Ok(())
    }

    #[test]
    fn a_type_without_products_of_its_own_is_left_to_candle() -> Result<()> {
        let weight = Tensor::zeros((5, 4), DType::F16, &Device::Cpu)?;
        for backend in backends() {
            assert!(PreparedLinear::new(&weight, None, DType::F16, backend)?.is_none());
        }
        assert!(PreparedLinear::new(&weight, None, DType::BF16, Backend::Plain)?.is_none());
        Ok(())
    }
}
