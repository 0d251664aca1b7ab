//! Matrix products in f32 on the CPU, rows or columns in parallel.

use candle_core::{Error, Result};
use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice, linalg::general_mat_mul};
use rayon::prelude::*;

/// Most rows of a product that one task computes: enough to repay packing the right-hand matrix, few enough that the
/// task's part of the result stays in the second-level cache. How the rows are shared out changes no result, as a row
/// depends on itself alone.
const ROWS: usize = 192;
/// Fewest: below this the packing costs more than a second thread saves.
const FEWEST_ROWS: usize = 64;

/// Writes the product of `a` and `b`, plus `bias` in every row, to `y`, row-major, rows in parallel.
pub(crate) fn multiply(
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    bias: Option<&[f32]>,
    y: &mut [f32],
) -> Result<()> {
    let width = b.ncols();
    if y.is_empty() {
        return Ok(());
    }
    let share = a.nrows().div_ceil(rayon::current_num_threads()).clamp(FEWEST_ROWS, ROWS);
    y.par_chunks_mut(share * width).enumerate().try_for_each(|(chunk, y)| {
        let rows = y.len() / width;
        let a = a.slice_axis(Axis(0), Slice::from(chunk * share..chunk * share + rows));
        if let Some(bias) = bias {
            y.chunks_mut(width).for_each(|row| row.copy_from_slice(bias));
        }
        let mut y = ArrayViewMut2::from_shape((rows, width), y)
            .map_err(|cause| Error::Msg(format!("linear map: {cause}")))?;
        general_mat_mul(1.0, &a, &b, f32::from(u8::from(bias.is_some())), &mut y);
        Ok(())
    })
}

/// Values of a packed matrix that a task unpacks at a time: 1 MiB in f32.
const UNPACKED: usize = 1 << 18;

/// As [`multiply`], with the transpose of a row-major matrix in a narrower form: `weight` holds the same number of `T`
/// for every row, and `unpack` turns whole rows of them into f32.
///
/// Every task computes some columns of the result. The products are summed in the order of [`multiply`], so that the
/// result is that of the unpacked matrix, bit for bit.
pub(crate) fn multiply_packed<T: Sync>(
    x: ArrayView2<'_, f32>,
    weight: &[T],
    bias: Option<&[f32]>,
    y: &mut [f32],
    unpack: impl Fn(&[T], &mut [f32]) + Sync,
) -> Result<()> {
    let (rows, input) = x.dim();
    if y.is_empty() || input == 0 {
        bias.into_iter().for_each(|bias| y.chunks_mut(bias.len()).for_each(|row| row.copy_from_slice(bias)));
        return Ok(());
    }
    let output = y.len() / rows;
    let per_row = weight.len() / output;
    let columns = (UNPACKED / input).clamp(8, 512).min(output.div_ceil(rayon::current_num_threads()).max(8));
    let mut y = ArrayViewMut2::from_shape((rows, output), y)
        .map_err(|cause| Error::Msg(format!("linear map: {cause}")))?;
    let blocks: Vec<_> = y.axis_chunks_iter_mut(Axis(1), columns).collect();
    blocks.into_par_iter().enumerate().try_for_each_init(Vec::new, |wide, (block, mut y)| {
        let (first, count) = (block * columns, y.ncols());
        wide.resize(count * input, 0f32);
        unpack(&weight[first * per_row..(first + count) * per_row], wide);
        if let Some(bias) = bias {
            for mut row in y.rows_mut() {
                row.assign(&ndarray::aview1(&bias[first..first + count]));
            }
        }
        general_mat_mul(
            1.0,
            &x,
            &matrix(wide, input)?.reversed_axes(),
            f32::from(u8::from(bias.is_some())),
            &mut y,
        );
        Ok(())
    })
}

pub(crate) fn matrix(values: &[f32], width: usize) -> Result<ArrayView2<'_, f32>> {
    ArrayView2::from_shape((values.len() / width.max(1), width), values)
        .map_err(|cause| Error::Msg(format!("linear map: {cause}")))
}
