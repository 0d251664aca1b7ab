use candle_core::{CpuStorage, DType, Device, Error, Result, Storage, Tensor};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use crate::{
    elementwise::{Activation, activate},
    memory::in_order,
    tile::{DEPTH, HEIGHT, WIDTH, interleave_rows, multiply_tile},
};

/// Most rows that one task multiplies: what it reads of them at a time, 288 KiB, stays in the second-level cache.
const ROWS: usize = 192;
/// Fewer rows for each thread than this are not shared out: the columns are.
const FEWEST_ROWS: usize = 48;
/// Tasks for each thread where columns are shared out.
const TASKS: usize = 4;
/// Panels that a single row is multiplied by at a time: eight vectors of sums hide the latency of an addition.
const PANELS: usize = 4;

/// A weight of shape `[out, in]` in the order in which the products read it: panels of 16 outputs, input by input.
///
/// It stays in the type that it is given in, f32, f16 or bf16, and 16-bit values are widened as they are used: the
/// result is that of the widened weight, bit for bit. A row of a product depends on its own row of the input alone, bit
/// for bit, whatever the number of rows and threads.
#[derive(Debug)]
pub struct PackedMatrix {
    panels: Panels,
    output: usize,
    input: usize,
}

#[derive(Debug)]
enum Panels {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// What is done to a product before it is stored: `activation(product + bias) + residual`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Finish<'a> {
    /// One value for each output.
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) activation: Activation,
    /// Of the shape of the result.
    pub(crate) residual: Option<&'a [f32]>,
}

/// A type that weights are stored in.
trait Stored: Copy + Default + Send + Sync {
    /// The values in f32, written to `wide` where they are not stored so.
    fn widened<'a>(values: &'a [Self], wide: &'a mut [f32]) -> &'a [f32];

    /// One value in f32.
    fn wide(self) -> f32;

    /// Whether [`Self::wide`] is so cheap that nothing is gained by widening many values beforehand.
    const WIDENS_IN_PASSING: bool;
}

impl Stored for f32 {
    const WIDENS_IN_PASSING: bool = true;

    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    fn widened<'a>(values: &'a [Self], _: &'a mut [f32]) -> &'a [f32] {
        values
    }
}

impl Stored for f16 {
    const WIDENS_IN_PASSING: bool = false;

    fn wide(self) -> f32 {
        self.to_f32()
    }

    fn widened<'a>(values: &'a [Self], wide: &'a mut [f32]) -> &'a [f32] {
        let wide = &mut wide[..values.len()];
        values.convert_to_f32_slice(wide);
        wide
    }
}

impl Stored for bf16 {
    const WIDENS_IN_PASSING: bool = true;

    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn widened<'a>(values: &'a [Self], wide: &'a mut [f32]) -> &'a [f32] {
        let wide = &mut wide[..values.len()];
        for (wide, value) in wide.iter_mut().zip(values) {
            *wide = value.wide();
        }
        wide
    }
}

impl PackedMatrix {
    /// Packs a weight `[out, in]` of f32, f16 or bf16 on the CPU.
    ///
    /// # Errors
    /// Another shape, type or device.
    pub fn new(weight: &Tensor) -> Result<Self> {
        let (output, input) = weight.dims2()?;
        if output == 0 || input == 0 {
            return Err(Error::Msg(format!("a weight of shape [{output}, {input}] cannot be packed")));
        }
        let weight = weight.contiguous()?;
        let (storage, layout) = weight.storage_and_layout();
        let panels = match &*storage {
            Storage::Cpu(CpuStorage::F32(values)) => Panels::F32(pack(in_order(values, layout)?, input)),
            Storage::Cpu(CpuStorage::F16(values)) => Panels::F16(pack(in_order(values, layout)?, input)),
            Storage::Cpu(CpuStorage::BF16(values)) => Panels::Bf16(pack(in_order(values, layout)?, input)),
            _ => {
                return Err(Error::Msg(format!(
                    "a weight of type {:?} on {:?} cannot be packed: f32, f16 or bf16 on the CPU expected",
                    weight.dtype(),
                    weight.device().location()
                )));
            }
        };
        Ok(Self { panels, output, input })
    }

    /// (out, in)
    #[must_use]
    pub fn sizes(&self) -> (usize, usize) {
        (self.output, self.input)
    }

    /// The type of the stored values.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match self.panels {
            Panels::F32(_) => DType::F32,
            Panels::F16(_) => DType::F16,
            Panels::Bf16(_) => DType::BF16,
        }
    }

    /// The weight `[out, in]` as it was given, on the CPU.
    ///
    /// # Errors
    /// Those of candle.
    pub fn unpacked(&self) -> Result<Tensor> {
        let shape = (self.output, self.input);
        match &self.panels {
            Panels::F32(panels) => Tensor::from_vec(unpack(panels, shape), shape, &Device::Cpu),
            Panels::F16(panels) => Tensor::from_vec(unpack(panels, shape), shape, &Device::Cpu),
            Panels::Bf16(panels) => Tensor::from_vec(unpack(panels, shape), shape, &Device::Cpu),
        }
    }

    /// Some rows of the weight in f32, `[rows, in]`.
    ///
    /// # Errors
    /// A row that the weight does not have.
    pub fn rows(&self, rows: &[u32]) -> Result<Tensor> {
        if let Some(row) = rows.iter().find(|&&row| row as usize >= self.output) {
            return Err(Error::Msg(format!("row {row} of a weight of {}", self.output)));
        }
        let values = match &self.panels {
            Panels::F32(panels) => self.gathered(panels, rows),
            Panels::F16(panels) => self.gathered(panels, rows),
            Panels::Bf16(panels) => self.gathered(panels, rows),
        };
        Tensor::from_vec(values, (rows.len(), self.input), &Device::Cpu)
    }

    fn gathered<T: Stored>(&self, panels: &[T], rows: &[u32]) -> Vec<f32> {
        let row = |&row: &u32| {
            let (panel, place) = (row as usize / WIDTH, row as usize % WIDTH);
            panels[panel * WIDTH * self.input..].iter().skip(place).step_by(WIDTH).take(self.input)
        };
        rows.iter().flat_map(row).map(|value| value.wide()).collect()
    }

    /// Writes the finished product of the rows of `x`, each `in` long, to `y`, row by row.
    pub(crate) fn multiply(&self, x: &[f32], finish: Finish<'_>, y: &mut [f32]) {
        match &self.panels {
            Panels::F32(panels) => self.multiply_by(panels, x, finish, y),
            Panels::F16(panels) => self.multiply_by(panels, x, finish, y),
            Panels::Bf16(panels) => self.multiply_by(panels, x, finish, y),
        }
    }

    fn multiply_by<T: Stored>(&self, panels: &[T], x: &[f32], finish: Finish<'_>, y: &mut [f32]) {
        if y.is_empty() {
            return;
        }
        let (input, output) = (self.input, self.output);
        let (rows, columns) = shares(y.len() / output, output, rayon::current_num_threads());
        let mut tasks = Vec::new();
        for (block, y) in y.chunks_mut(rows * output).enumerate() {
            let first = tasks.len();
            tasks.extend((0..output.div_ceil(columns)).map(|part| Task {
                first_row: block * rows,
                first_column: part * columns,
                y: Vec::with_capacity(rows),
            }));
            for row in y.chunks_mut(output) {
                for (task, part) in tasks[first..].iter_mut().zip(row.chunks_mut(columns)) {
                    task.y.push(part);
                }
            }
        }
        tasks.into_par_iter().for_each_init(Scratch::default, |scratch, task| {
            let x = &x[task.first_row * input..][..task.y.len() * input];
            task.run(panels, x, input, output, finish, scratch);
        });
    }
}

/// Rows and columns of a task.
fn shares(rows: usize, output: usize, threads: usize) -> (usize, usize) {
    if rows >= threads * FEWEST_ROWS {
        let blocks = rows.div_ceil(ROWS).next_multiple_of(threads);
        (rows.div_ceil(blocks).next_multiple_of(HEIGHT), output)
    } else {
        let columns = output.div_ceil(threads * TASKS).next_multiple_of(WIDTH);
        (rows, columns)
    }
}

/// What a thread writes in between.
#[derive(Default)]
struct Scratch {
    tiles: Vec<f32>,
    wide: Vec<f32>,
}

/// A block of the result.
struct Task<'a> {
    first_row: usize,
    /// A multiple of the width of a panel.
    first_column: usize,
    /// The block's part of every row.
    y: Vec<&'a mut [f32]>,
}

impl Task<'_> {
    fn run<T: Stored>(
        mut self,
        panels: &[T],
        x: &[f32],
        input: usize,
        output: usize,
        finish: Finish<'_>,
        scratch: &mut Scratch,
    ) {
        if T::WIDENS_IN_PASSING && self.y.len() == 1 {
            return self.run_row(panels, x, finish);
        }
        let width = self.y.first().map_or(0, |row| row.len());
        scratch.wide.resize(DEPTH * WIDTH, 0.0);
        for start in (0..input).step_by(DEPTH) {
            let depth = DEPTH.min(input - start);
            let pass = Pass { first: start == 0, last: start + depth == input };
            scratch.tiles.resize(self.y.len() * depth, 0.0);
            for (rows, tile) in x.chunks(HEIGHT * input).zip(scratch.tiles.chunks_mut(HEIGHT * depth)) {
                interleave_rows(rows.chunks_exact(input).map(|row| &row[start..start + depth]), tile);
            }
            for column in (0..width).step_by(WIDTH) {
                let panel = &panels[(self.first_column + column) * input + start * WIDTH..][..depth * WIDTH];
                let panel = T::widened(panel, &mut scratch.wide);
                for (index, rows) in self.y.chunks_mut(HEIGHT).enumerate() {
                    let height = rows.len();
                    let tile = &scratch.tiles[index * HEIGHT * depth..][..height * depth];
                    let sums = multiply_tile(height, tile, panel);
                    for (row, (y, sums)) in rows.iter_mut().zip(&sums).enumerate() {
                        let place =
                            (self.first_row + index * HEIGHT + row) * output + self.first_column + column;
                        pass.store(sums, finish.at(place, self.first_column + column), &mut y[column..]);
                    }
                }
            }
        }
    }
}

impl Task<'_> {
    /// As [`Self::run`] for a single row, with the same bits. Every weight is read once, so it is memory that limits the
    /// speed: several panels are read at a time, and widened on the way.
    fn run_row<T: Stored>(self, panels: &[T], x: &[f32], finish: Finish<'_>) {
        let (input, first_column) = (x.len(), self.first_column);
        for y in self.y {
            for (group, y) in y.chunks_mut(PANELS * WIDTH).enumerate() {
                let column = first_column + group * PANELS * WIDTH;
                let panels = &panels[column * input..];
                if y.len() > (PANELS - 1) * WIDTH {
                    multiply_row::<T, PANELS>(panels, x, finish, column, y);
                } else {
                    for (panel, y) in y.chunks_mut(WIDTH).enumerate() {
                        let (panels, column) = (&panels[panel * WIDTH * input..], column + panel * WIDTH);
                        multiply_row::<T, 1>(panels, x, finish, column, y);
                    }
                }
            }
        }
    }
}

/// Multiplies a row by some panels side by side and finishes the results.
#[inline(never)]
fn multiply_row<T: Stored, const PANELS: usize>(
    panels: &[T],
    x: &[f32],
    finish: Finish<'_>,
    column: usize,
    y: &mut [f32],
) {
    let (panels, _) = panels.as_chunks::<WIDTH>();
    for start in (0..x.len()).step_by(DEPTH) {
        let part = &x[start..(start + DEPTH).min(x.len())];
        let pass = Pass { first: start == 0, last: start + part.len() == x.len() };
        let panels: [&[[T; WIDTH]]; PANELS] =
            std::array::from_fn(|panel| &panels[panel * x.len() + start..][..part.len()]);
        let mut sums = [[0f32; WIDTH]; PANELS];
        for (place, value) in part.iter().enumerate() {
            for (sums, panel) in sums.iter_mut().zip(&panels) {
                for (sum, weight) in sums.iter_mut().zip(&panel[place]) {
                    *sum = value.mul_add(weight.wide(), *sum);
                }
            }
        }
        for ((place, y), sums) in y.chunks_mut(WIDTH).enumerate().zip(&sums) {
            let column = column + place * WIDTH;
            pass.store(sums, finish.at(column, column), y);
        }
    }
}

/// One of the passes over the inputs.
#[derive(Clone, Copy)]
struct Pass {
    first: bool,
    last: bool,
}

impl Finish<'_> {
    /// The same for the part of a row that begins at `place` of the result, in `column`.
    fn at(&self, place: usize, column: usize) -> Self {
        Self {
            bias: self.bias.map(|bias| &bias[column..]),
            activation: self.activation,
            residual: self.residual.map(|residual| &residual[place..]),
        }
    }

    #[inline(always)]
    fn apply(&self, values: &mut [f32]) {
        if let Some(bias) = self.bias {
            values.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
        }
        activate(self.activation, values);
        if let Some(residual) = self.residual {
            values.iter_mut().zip(residual).for_each(|(value, residual)| *value += residual);
        }
    }
}

impl Pass {
    /// Adds `sums` to the first values of `y`, at most a panel's width of them.
    #[inline(always)]
    fn store(self, sums: &[f32; WIDTH], finish: Finish<'_>, y: &mut [f32]) {
        let mut values = *sums;
        if let Some(y) = y.first_chunk_mut::<WIDTH>() {
            if !self.first {
                values.iter_mut().zip(&*y).for_each(|(value, y)| *value += y);
            }
            if self.last {
                finish.apply(&mut values);
            }
            *y = values;
        } else {
            let values = &mut values[..y.len()];
            if !self.first {
                values.iter_mut().zip(&*y).for_each(|(value, y)| *value += y);
            }
            if self.last {
                finish.apply(values);
            }
            y.copy_from_slice(values);
        }
    }
}

/// Panels of the rows of a matrix; the last is filled up with zeros.
fn pack<T: Stored>(weight: &[T], input: usize) -> Vec<T> {
    let output = weight.len() / input;
    let mut panels = vec![T::default(); output.next_multiple_of(WIDTH) * input];
    let panel = WIDTH * input;
    panels.par_chunks_mut(panel).zip(weight.par_chunks(panel)).for_each(|(panel, rows)| {
        for (place, row) in rows.chunks_exact(input).enumerate() {
            for (values, value) in panel.chunks_exact_mut(WIDTH).zip(row) {
                values[place] = *value;
            }
        }
    });
    panels
}

fn unpack<T: Stored>(panels: &[T], (output, input): (usize, usize)) -> Vec<T> {
    let mut weight = vec![T::default(); output * input];
    let panel = WIDTH * input;
    weight.par_chunks_mut(panel).zip(panels.par_chunks(panel)).for_each(|(rows, panel)| {
        for (place, row) in rows.chunks_exact_mut(input).enumerate() {
            for (value, values) in row.iter_mut().zip(panel.chunks_exact(WIDTH)) {
                *value = values[place];
            }
        }
    });
    weight
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: &[usize]) -> Tensor {
        Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
    }

    fn product(matrix: &PackedMatrix, x: &Tensor, finish: Finish<'_>) -> Vec<f32> {
        let x = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (output, input) = matrix.sizes();
        let mut y = vec![f32::NAN; x.len() / input * output];
        matrix.multiply(&x, finish, &mut y);
        y
    }

    #[test]
    fn products_equal_those_in_f64_whatever_the_shape() {
        for (rows, input, output) in
            [(1, 1, 1), (7, 300, 33), (301, 512, 70), (97, 257, 16), (13, 768, 130), (400, 20, 9)]
        {
            let (x, weight, bias) = (random(&[rows, input]), random(&[output, input]), random(&[output]));
            let bias = bias.to_vec1::<f32>().unwrap();
            let matrix = PackedMatrix::new(&weight).unwrap();
            let actual = product(&matrix, &x, Finish { bias: Some(&bias), ..Finish::default() });
            let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap();
            let expected = wide(&x).matmul(&wide(&weight).t().unwrap()).unwrap();
            let expected = expected.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            for (index, (actual, expected)) in actual.iter().zip(expected).enumerate() {
                let expected = expected + f64::from(bias[index % output]);
                let scale = (input as f64).sqrt();
                assert!((f64::from(*actual) - expected).abs() < 1e-5 * scale, "{actual} for {expected}");
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_companions() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let x = random(&[301, 700]);
            let matrix = PackedMatrix::new(&random(&[90, 700]).to_dtype(dtype).unwrap()).unwrap();
            let together = product(&matrix, &x, Finish::default());
            for count in [1, 2, 3, 5, 6, 7, 95, 96, 97, 192, 300] {
                let some = product(&matrix, &x.narrow(0, 1, count).unwrap(), Finish::default());
                assert_eq!(some, together[90..90 + some.len()], "{count} rows of {dtype:?}");
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_number_of_threads() {
        let x = random(&[301, 700]);
        let matrix = PackedMatrix::new(&random(&[90, 700])).unwrap();
        let expected = product(&matrix, &x, Finish::default());
        for threads in [1, 3, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| product(&matrix, &x, Finish::default())), expected);
        }
    }

    #[test]
    fn a_16_bit_weight_gives_the_bits_of_the_widened_one() {
        for dtype in [DType::F16, DType::BF16] {
            let narrow = random(&[70, 300]).to_dtype(dtype).unwrap();
            let wide = PackedMatrix::new(&narrow.to_dtype(DType::F32).unwrap()).unwrap();
            let narrow = PackedMatrix::new(&narrow).unwrap();
            for rows in [1, 40, 200] {
                let x = random(&[rows, 300]);
                assert_eq!(product(&narrow, &x, Finish::default()), product(&wide, &x, Finish::default()));
            }
        }
    }

    #[test]
    fn bias_activation_and_residual_come_in_this_order() {
        let (x, weight) = (random(&[50, 300]), random(&[33, 300]));
        let bias = random(&[33]).to_vec1::<f32>().unwrap();
        let residual = random(&[50 * 33]).to_vec1::<f32>().unwrap();
        let matrix = PackedMatrix::new(&weight).unwrap();
        let plain = product(&matrix, &x, Finish { bias: Some(&bias), ..Finish::default() });
        for activation in Activation::ALL {
            let finish = Finish { bias: Some(&bias), activation, residual: Some(&residual) };
            let mut expected = plain.clone();
            activate(activation, &mut expected);
            expected.iter_mut().zip(&residual).for_each(|(value, residual)| *value += residual);
            let actual = product(&matrix, &x, finish);
            for (actual, expected) in actual.iter().zip(&expected) {
                assert!((actual - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{activation:?}");
            }
        }
    }

    #[test]
    fn rows_are_read_as_they_were_given() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let weight = random(&[37, 19]).to_dtype(dtype).unwrap();
            let picked = [36, 0, 15, 16, 0];
            let expected = weight.index_select(&Tensor::new(&picked[..], &Device::Cpu).unwrap(), 0).unwrap();
            let matrix = PackedMatrix::new(&weight).unwrap();
            let values = |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(values(&matrix.rows(&picked).unwrap()), values(&expected));
            assert!(matrix.rows(&[37]).unwrap_err().to_string().contains("row 37 of a weight of 37"));
        }
    }

    #[test]
    fn a_weight_is_unpacked_as_it_was() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let weight = random(&[37, 19]).to_dtype(dtype).unwrap();
            let unpacked = PackedMatrix::new(&weight).unwrap().unpacked().unwrap();
            assert_eq!(unpacked.dtype(), dtype);
            let values = |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(values(&unpacked), values(&weight));
        }
    }

    #[test]
    fn an_integer_weight_is_refused_by_its_type() {
        let weight = Tensor::zeros((3, 4), DType::U32, &Device::Cpu).unwrap();
        let error = PackedMatrix::new(&weight).unwrap_err().to_string();
        assert!(error.contains("U32"), "{error}");
    }
}
