//! Passes over memory between the products.

use candle_core::{DType, Result, Tensor};

use crate::{
    Activation, Scale,
    launch::{Place, device, filled, grid, launch, place, suffix},
};

/// Values that a thread of an element-wise kernel takes at a time.
const RUN: usize = 8;
const THREADS: u32 = 256;
/// A pointer that is not there.
const NOTHING: u64 = 0;

/// Blocks of [`THREADS`] threads for so many of them.
fn blocks(threads: usize) -> (u32, u32, u32) {
    ((threads.div_ceil(THREADS as usize)) as u32, 1, 1)
}

/// Whether a tensor can be read beside `other` as f32, from its first value to its last.
fn is_table(tensor: &Tensor, other: &Tensor) -> bool {
    tensor.dtype() == DType::F32
        && tensor.is_contiguous()
        && tensor.device().same_device(other.device())
        && !tensor.track_op()
}

/// `activation(y + bias) + residual`: y f32 or bf16 `[..., d]`, bias f32 `[d]`, residual f32 of the shape of y. The result has
/// the type of y, or f32 where there is a residual. `d` must be a multiple of 8 and all contiguous.
///
/// # Errors
/// A failure of the device.
pub fn finished(
    y: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    let (Some(device), Some(&width)) = (device(y), y.dims().last()) else { return Ok(None) };
    let fits = |tensor: &Tensor, dims: &[usize]| tensor.dims() == dims && is_table(tensor, y);
    let suits = width.is_multiple_of(RUN)
        && y.elem_count() > 0
        && y.is_contiguous()
        && bias.is_none_or(|bias| fits(bias, &[width]))
        && residual.is_none_or(|residual| fits(residual, y.dims()));
    let (true, Some(suffix)) = (suits, suffix(y.dtype())) else { return Ok(None) };
    let (from, bias, residual) = (place(y)?, bias.map(place).transpose()?, residual.map(place).transpose()?);
    if ![Some(&from), bias.as_ref(), residual.as_ref()].into_iter().flatten().all(Place::is_aligned) {
        return Ok(None);
    }
    let (name, dtype) = match &residual {
        Some(_) => (format!("finish_onto_{suffix}"), DType::F32),
        None => (format!("finish_{suffix}"), y.dtype()),
    };
    let activation = match activation {
        Activation::None => 0i32,
        Activation::QuickGelu => 1,
        Activation::Silu => 2,
    };
    let count = y.elem_count();
    let [bias_at, residual_at] =
        [&bias, &residual].map(|place| place.as_ref().map_or(NOTHING, |place| place.address));
    filled(&device, dtype, y.shape(), |to| {
        launch!(
            &device,
            &name,
            grid(blocks(count / RUN), THREADS),
            from.address,
            bias_at,
            residual_at,
            to,
            count as u64,
            width as u32,
            activation,
        )
    })
    .map(Some)
}

/// `silu(gate) * up` of two tensors of one shape and type, f32 or bf16, contiguous, a multiple of 8 values.
///
/// # Errors
/// A failure of the device.
pub fn gated(gate: &Tensor, up: &Tensor) -> Result<Option<Tensor>> {
    let count = gate.elem_count();
    let (Some(device), Some(suffix)) = (device(gate), suffix(gate.dtype())) else { return Ok(None) };
    let alike = gate.dims() == up.dims()
        && gate.dtype() == up.dtype()
        && up.device().same_device(gate.device())
        && !up.track_op();
    if !alike || !gate.is_contiguous() || !up.is_contiguous() || count == 0 || !count.is_multiple_of(RUN) {
        return Ok(None);
    }
    let (gate_at, up_at) = (place(gate)?, place(up)?);
    if !gate_at.is_aligned() || !up_at.is_aligned() {
        return Ok(None);
    }
    filled(&device, gate.dtype(), gate.shape(), |to| {
        let name = format!("gate_{suffix}");
        launch!(
            &device,
            &name,
            grid(blocks(count / RUN), THREADS),
            gate_at.address,
            up_at.address,
            to,
            count as u64,
        )
    })
    .map(Some)
}

/// Normalisation over the last dimension of f32 `[..., d]`, contiguous, d a multiple of 4:
/// `(x - mean) / sqrt(variance + eps) * weight + bias` where `centred`, else `x / sqrt(mean(x^2) + eps) * weight + bias`. The
/// result is f32 or bf16.
///
/// # Errors
/// A failure of the device.
pub fn normalised(
    x: &Tensor,
    Scale { weight, bias }: Scale<'_>,
    eps: f32,
    centred: bool,
    output: DType,
) -> Result<Option<Tensor>> {
    const STEP: usize = 4;
    let (Some(device), Some(&width), Some(suffix)) = (device(x), x.dims().last(), suffix(output)) else {
        return Ok(None);
    };
    let fits = |tensor: &Tensor| tensor.dims() == [width] && is_table(tensor, x);
    let suits = x.dtype() == DType::F32
        && x.is_contiguous()
        && x.elem_count() > 0
        && width.is_multiple_of(STEP)
        && fits(weight)
        && bias.is_none_or(fits);
    if !suits {
        return Ok(None);
    }
    let (from, weight, bias) = (place(x)?, place(weight)?, bias.map(place).transpose()?);
    if ![Some(&from), Some(&weight), bias.as_ref()].into_iter().flatten().all(Place::is_aligned) {
        return Ok(None);
    }
    let bias_at = bias.as_ref().map_or(NOTHING, |bias| bias.address);
    // Whole warps, as many threads as have something to do.
    let threads = (width / STEP).next_multiple_of(32).min(THREADS as usize) as u32;
    filled(&device, output, x.shape(), |to| {
        let name = format!("normalise_{suffix}");
        let rows = (x.elem_count() / width) as u32;
        launch!(
            &device,
            &name,
            grid((rows, 1, 1), threads),
            from.address,
            weight.address,
            bias_at,
            to,
            width as u32,
            eps,
            i32::from(centred),
        )
    })
    .map(Some)
}

/// Rotary positions: the two halves `a`, `b` of every head of x, f32 or bf16 `[tokens, heads, d]`, become
/// `(a cos - b sin, b cos + a sin)`; cos and sin are f32 with d / 2 values a token, contiguous. Only the last dimension of x
/// must be.
///
/// # Errors
/// A failure of the device.
pub fn rotated(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Option<Tensor>> {
    let (Some(device), Some(suffix)) = (device(x), suffix(x.dtype())) else { return Ok(None) };
    let (tokens, heads, dim) = x.dims3()?;
    let half = dim / 2;
    let fits = |table: &Tensor| table.elem_count() == tokens * half && is_table(table, x);
    let &[token_stride, head_stride, 1] = x.stride() else { return Ok(None) };
    if !fits(cos) || !fits(sin) || dim != 2 * half || x.elem_count() == 0 {
        return Ok(None);
    }
    let (from, cos, sin) = (place(x)?, place(cos)?, place(sin)?);
    let pairs = tokens * heads * half;
    filled(&device, x.dtype(), x.shape(), |to| {
        let name = format!("rotate_{suffix}");
        launch!(
            &device,
            &name,
            grid(blocks(pairs), THREADS),
            from.address,
            cos.address,
            sin.address,
            to,
            pairs as u64,
            heads as u32,
            half as u32,
            token_stride as u64,
            head_stride as u64,
        )
    })
    .map(Some)
}
