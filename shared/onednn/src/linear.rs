use std::{collections::HashMap, ffi::c_int, fmt, mem::MaybeUninit, ops::Range, sync::Arc};

use half::bf16;
use parking_lot::Mutex;
use rayon::prelude::*;

use crate::{
    Error, Library,
    api::{ARG_BIAS, ARG_RESULT, ARG_SOURCE, ARG_WEIGHTS, TYPE_BF16, TYPE_F32},
    desc::{MemoryDesc, Order},
    lines::{Line, Lines},
    panels::{self, Panels},
    primitive::{Followers, Primitive, Stream},
    product::{FewRows, Finish},
    target::Target,
    tiles,
};

/// Rows of every product in f32, a shorter block filled up with zeros: what a row becomes cannot depend on how many
/// there are, as the code that the library chooses does. In bf16 it may sum a short block in another order.
const ROWS: usize = 64;
/// Most outputs of a slice of the weight: slices are multiplied by different threads.
const SLICE: usize = 512;
/// Slices that a weight has at least, where it has so many outputs.
const SLICES: usize = 8;
/// Outputs that the library keeps together in a weight, as far as is known.
const TOGETHER: usize = 64;

/// What follows a linear map.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `x * sigmoid(1.702 x)`
    QuickGelu,
    /// `x * sigmoid(x)`
    Silu,
}

impl Activation {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::None, Self::QuickGelu, Self::Silu];
}

/// A type of inputs, weights or results: f32 or bf16.
pub trait Value: Copy + Default + Send + Sync + sealed::Sealed {}

impl Value for f32 {}
impl Value for bf16 {}

mod sealed {
    use half::bf16;

    pub trait Sealed: Sized {
        /// `dnnl_data_type_t`
        const TYPE: std::ffi::c_int;

        fn wide(self) -> f32;

        /// The nearest one.
        fn narrow(value: f32) -> Self;

        /// The values themselves, where they are bf16.
        fn bf16(values: &[Self]) -> Option<&[bf16]>;
    }

    impl Sealed for f32 {
        const TYPE: std::ffi::c_int = crate::api::TYPE_F32;

        #[inline(always)]
        fn wide(self) -> f32 {
            self
        }

        #[inline(always)]
        fn narrow(value: f32) -> Self {
            value
        }

        fn bf16(_: &[Self]) -> Option<&[bf16]> {
            None
        }
    }

    impl Sealed for bf16 {
        const TYPE: std::ffi::c_int = crate::api::TYPE_BF16;

        #[inline(always)]
        fn wide(self) -> f32 {
            self.to_f32()
        }

        #[inline(always)]
        fn narrow(value: f32) -> Self {
            super::rounded(value)
        }

        fn bf16(values: &[Self]) -> Option<&[bf16]> {
            Some(values)
        }
    }
}

/// The nearest bf16, of two the even one. Written without branches, so that loops over it vectorise; what is not a number
/// stays none.
#[inline(always)]
#[must_use]
pub fn rounded(value: f32) -> bf16 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    bf16::from_bits(if value.is_nan() { quiet } else { nearest } as u16)
}

/// A weight `[out, in]` in the order that the library multiplies it in, with its bias, for inputs of the weight's type.
pub struct PackedLinear<T> {
    library: &'static Library,
    weights: Lines,
    /// How the weight lies in memory, and its slices, by their numbers of outputs.
    orders: Vec<(usize, MemoryDesc)>,
    slices: Option<Slices>,
    bias: Option<Vec<f32>>,
    input: usize,
    output: usize,
    /// How few rows can be multiplied without the library, in bf16.
    panels: Option<Panels>,
    /// One for each shape and recipe that was asked for; there are few.
    products: Mutex<HashMap<Recipe, Arc<Product>>>,
    inputs: std::marker::PhantomData<T>,
}

/// How parts of the packed weight can be multiplied by themselves.
#[derive(Debug, Clone, Copy)]
struct Slices {
    /// Of each but the last.
    outputs: usize,
    bytes_per_output: usize,
}

/// What a product does and to how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Recipe {
    rows: usize,
    outputs: usize,
    followers: Followers,
    result: c_int,
}

struct Product {
    primitive: Primitive,
    source: MemoryDesc,
    weights: MemoryDesc,
    bias: MemoryDesc,
    result: MemoryDesc,
}

impl<T> fmt::Debug for PackedLinear<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedLinear")
            .field("out", &self.output)
            .field("in", &self.input)
            .finish_non_exhaustive()
    }
}

impl PackedLinear<bf16> {
    /// Whether [`Self::row`] finds rows.
    #[must_use]
    pub fn can_read_rows(&self) -> bool {
        self.panels.is_some()
    }

    /// A row of the weight, `[in]`. None where there is no such row, or the library keeps the weight in an order that is not
    /// known.
    pub fn row(&self, row: usize) -> Option<impl Iterator<Item = bf16>> {
        let panels = self.panels.filter(|_| row < self.output)?;
        let panel = self.weights.values().chunks_exact(panels.values()).nth(row / panels.width())?;
        Some(panels.row(panel, row % panels.width()).flatten().copied().take(self.input))
    }
}

impl<T: Value> PackedLinear<T> {
    /// Packs `weight`, row-major `[output, input]`, with `bias` `[output]`.
    ///
    /// # Errors
    /// [`Error`] for slices of another length, a size of zero, or a product that the library does not have.
    pub fn new(
        library: &'static Library,
        weight: &[T],
        bias: Option<&[f32]>,
        output: usize,
        input: usize,
    ) -> Result<Self, Error> {
        if output == 0 || input == 0 {
            return Err(Error::Size { input, output });
        }
        length("weight", weight.len(), output * input)?;
        length("bias", bias.map_or(output, <[f32]>::len), output)?;
        let mut map = Self {
            library,
            weights: Lines::zeros(0)?,
            orders: Vec::new(),
            slices: None,
            panels: None,
            bias: bias.map(<[f32]>::to_vec),
            input,
            output,
            products: Mutex::default(),
            inputs: std::marker::PhantomData,
        };
        let order = map.order(output)?;
        map.weights = map.pack(weight, &order)?;
        map.orders.push((output, order));
        map.cut(weight)?;
        map.panels = T::bf16(weight).and_then(|weight| Panels::of(map.weights.values(), weight, input));
        Ok(map)
    }

    /// (out, in)
    #[must_use]
    pub fn sizes(&self) -> (usize, usize) {
        (self.output, self.input)
    }

    /// How the library calls the code behind a product.
    ///
    /// # Errors
    /// [`Error`]
    pub fn implementation(&self) -> Result<String, Error> {
        self.product(plain_recipe(self.output))?.primitive.name(self.library)
    }

    /// The order that the library wants so many rows of the weight in.
    fn order(&self, outputs: usize) -> Result<MemoryDesc, Error> {
        Ok(self.made(plain_recipe(outputs))?.weights)
    }

    /// Some rows of the weight in an order.
    fn pack(&self, rows: &[T], order: &MemoryDesc) -> Result<Lines, Error> {
        let library = self.library;
        let mut weights = Lines::zeros(order.size(library))?;
        // The transpose of the stored matrix, as it lies in memory.
        let stored =
            MemoryDesc::matrix(library, self.input, rows.len() / self.input, T::TYPE, Order::ColumnMajor)?;
        let reorder = Primitive::reorder(library, &stored, order)?;
        let arguments = [
            (ARG_SOURCE, &stored, rows.as_ptr().cast_mut().cast()),
            (ARG_RESULT, order, weights.as_mut_ptr().cast()),
        ];
        // SAFETY: `rows` holds the values of the stored matrix and is only read; `weights` is as large as the library
        // asked for.
        unsafe { reorder.run(library, &Stream::new(library)?, &arguments, &mut Vec::new())? };
        Ok(weights)
    }

    /// Finds out whether parts of the packed weight are packed parts of the weight: the library does not tell its order,
    /// so two of them, the last among them, are packed by themselves and compared.
    fn cut(&mut self, weight: &[T]) -> Result<(), Error> {
        let outputs = self.output.div_ceil(SLICES).next_multiple_of(TOGETHER).min(SLICE);
        if outputs >= self.output {
            return Ok(());
        }
        let last = (self.output - 1) / outputs * outputs;
        let order = self.order(outputs)?;
        let bytes = order.size(self.library);
        let slices = Slices { outputs, bytes_per_output: bytes / outputs };
        let mut orders = vec![(outputs, order)];
        if self.output - last != outputs {
            orders.push((self.output - last, self.order(self.output - last)?));
        }
        let line = size_of::<Line>();
        if !(slices.bytes_per_output * outputs).is_multiple_of(line) {
            return Ok(());
        }
        for first in [outputs.min(last), last] {
            let count = outputs.min(self.output - first);
            let Some((_, order)) = orders.iter().find(|(outputs, _)| *outputs == count) else {
                return Ok(());
            };
            let alone = self.pack(&weight[first * self.input..(first + count) * self.input], order)?;
            let place = first * slices.bytes_per_output / line;
            if self.weights.get(place..place + alone.len()) != Some(&*alone) {
                return Ok(());
            }
        }
        self.orders.extend(orders);
        self.slices = Some(slices);
        Ok(())
    }

    fn product(&self, recipe: Recipe) -> Result<Arc<Product>, Error> {
        let mut products = self.products.lock();
        if let Some(product) = products.get(&recipe) {
            return Ok(product.clone());
        }
        let product = Arc::new(self.made(recipe)?);
        products.insert(recipe, product.clone());
        Ok(product)
    }

    fn made(&self, recipe: Recipe) -> Result<Product, Error> {
        let library = self.library;
        let Recipe { rows, outputs, followers, result } = recipe;
        let source = MemoryDesc::matrix(library, rows, self.input, T::TYPE, Order::RowMajor)?;
        let order = self.orders.iter().find(|(count, _)| *count == outputs).map(|(_, order)| order);
        let asked = match order {
            Some(order) => order.clone(),
            None => MemoryDesc::matrix(library, self.input, outputs, T::TYPE, Order::Any)?,
        };
        let bias = MemoryDesc::matrix(library, 1, outputs, TYPE_F32, Order::RowMajor)?;
        let result = MemoryDesc::matrix(library, rows, outputs, result, Order::RowMajor)?;
        let with_bias = self.bias.as_ref().map(|_| &bias);
        let primitive = Primitive::product(library, &source, &asked, with_bias, &result, followers)?;
        let weights = primitive.weights(library)?;
        if order.is_some_and(|order| !order.equals(library, &weights)) {
            return Err(Error::Order { recipe: format!("{recipe:?}") });
        }
        Ok(Product { primitive, source, weights, bias, result })
    }

    /// `activation(x W^T + bias) + residual`: x `[rows, in]`, residual and result `[rows, out]`, row-major.
    ///
    /// In f32 a row of the result depends on its own row of x alone, bit for bit, whatever the number of rows and
    /// threads.
    ///
    /// # Errors
    /// [`Error`] for slices of another length or a call that the library refuses.
    pub fn forward<R: Value>(
        &self,
        x: &[T],
        activation: Activation,
        residual: Option<&[R]>,
    ) -> Result<Vec<R>, Error> {
        let (output, input) = (self.output, self.input);
        let rows = x.len() / input;
        length("x", x.len(), rows * input)?;
        length("residual", residual.map_or(rows * output, <[R]>::len), rows * output)?;
        if let (Some(panels), Some(x), 1..=panels::MOST_ROWS) = (self.panels, T::bf16(x), rows) {
            let finish = Finish { bias: self.bias.as_deref(), activation, residual };
            return Ok(panels::Rows::new(panels, self.weights.values(), x, rows).product(output, finish));
        }
        let followers = Followers { activation, sum: residual.is_some() };
        let slice = self.slices.map_or(output, |slices| slices.outputs);
        let tiles = if T::TYPE == TYPE_BF16 {
            tiles::shared(rows, output, slice, rayon::current_num_threads())
        } else {
            tiles::uniform(rows, output, slice, ROWS)
        };
        let mut y = Vec::with_capacity(rows * output);
        let result = Target::new(&mut y, rows, output);
        tiles.into_par_iter().try_for_each_init(Scratch::default, |scratch, tile| {
            let recipe =
                Recipe { rows: tile.height, outputs: tile.outputs.len(), followers, result: R::TYPE };
            let product = self.product(recipe)?;
            let whole = tile.rows.len() == tile.height;
            let source = &x[tile.rows.start * input..tile.rows.end * input];
            if !whole {
                scratch.x.clear();
                scratch.x.extend_from_slice(source);
                scratch.x.resize(tile.height * input, T::default());
            }
            let source = if whole { source } else { &scratch.x };
            if whole && tile.outputs.len() == output {
                // SAFETY: tiles do not overlap.
                let y = unsafe { result.rows(tile.rows.clone()) };
                if let Some(residual) = residual {
                    write(y, &residual[tile.rows.start * output..tile.rows.end * output]);
                }
                return self.run(&product, tile.outputs, source, y, &mut scratch.library);
            }
            scratch.y.clear();
            if let Some(residual) = residual {
                for row in tile.rows.clone() {
                    let start = row * output;
                    scratch
                        .y
                        .extend_from_slice(&residual[start + tile.outputs.start..start + tile.outputs.end]);
                }
            }
            scratch.y.resize(tile.height * tile.outputs.len(), R::default());
            let y = scratch.y.as_mut_slice();
            // SAFETY: values that are there are as good as places for them, and stay.
            let places = unsafe { &mut *(std::ptr::from_mut(y) as *mut [MaybeUninit<R>]) };
            self.run(&product, tile.outputs.clone(), source, places, &mut scratch.library)?;
            for (row, values) in tile.rows.zip(scratch.y.chunks_exact(tile.outputs.len())) {
                // SAFETY: tiles do not overlap.
                write(unsafe { result.part(row, tile.outputs.clone()) }, values);
            }
            Ok(())
        })?;
        // SAFETY: the tiles are all of the result, and every one was written.
        unsafe { y.set_len(rows * output) };
        Ok(y)
    }

    /// Multiplies the rows of `x`, as many as the product has, by some outputs of the weight.
    fn run<R: Value>(
        &self,
        product: &Product,
        outputs: Range<usize>,
        x: &[T],
        y: &mut [MaybeUninit<R>],
        scratch: &mut Vec<u64>,
    ) -> Result<(), Error> {
        let library = self.library;
        let place =
            self.slices.map_or(0, |slices| outputs.start * slices.bytes_per_output / size_of::<Line>());
        let weights = &self.weights[place..];
        length("x", size_of_val(x), product.source.size(library))?;
        length("y", size_of_val(y), product.result.size(library))?;
        if size_of_val(weights) < product.weights.size(library) {
            return Err(Error::Order { recipe: format!("outputs {outputs:?}") });
        }
        let mut arguments = vec![
            (ARG_SOURCE, &product.source, x.as_ptr().cast_mut().cast()),
            (ARG_WEIGHTS, &product.weights, weights.as_ptr().cast_mut().cast()),
            (ARG_RESULT, &product.result, y.as_mut_ptr().cast()),
        ];
        if let Some(bias) = &self.bias {
            arguments.push((ARG_BIAS, &product.bias, bias[outputs].as_ptr().cast_mut().cast()));
        }
        let stream = Stream::new(library)?;
        // SAFETY: the lengths of `x`, `y` and the weights were compared with those of the product, the bias has a value for
        // each output. Only `y` is written.
        unsafe { product.primitive.run(library, &stream, &arguments, scratch) }
    }
}

fn write<R: Copy>(places: &mut [MaybeUninit<R>], values: &[R]) {
    for (place, value) in places.iter_mut().zip(values) {
        place.write(*value);
    }
}

fn plain_recipe(outputs: usize) -> Recipe {
    Recipe { rows: ROWS, outputs, followers: Followers::default(), result: TYPE_F32 }
}

/// What a thread uses from tile to tile.
struct Scratch<T, R> {
    x: Vec<T>,
    y: Vec<R>,
    library: Vec<u64>,
}

impl<T, R> Default for Scratch<T, R> {
    fn default() -> Self {
        Self { x: Vec::new(), y: Vec::new(), library: Vec::new() }
    }
}

pub(crate) fn length(what: &'static str, actual: usize, expected: usize) -> Result<(), Error> {
    if actual == expected { Ok(()) } else { Err(Error::Length { what, expected, actual }) }
}

/// The name of the code behind a product in bf16.
pub(crate) fn bf16_implementation(library: &'static Library) -> Result<String, Error> {
    const SIZE: usize = 256;
    let weight = vec![bf16::ZERO; SIZE * SIZE];
    PackedLinear::new(library, &weight, None, SIZE, SIZE)?.implementation()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rounding_is_that_of_the_type(bits: u32) {
            let value = f32::from_bits(bits);
            prop_assert_eq!(rounded(value).to_bits(), bf16::from_f32(value).to_bits());
        }
    }
}
