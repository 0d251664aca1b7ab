use std::{collections::HashMap, ffi::c_int, fmt, sync::Arc};

use half::bf16;
use parking_lot::Mutex;
use rayon::prelude::*;

use crate::{
    Error, Library,
    api::{
        ARG_BIAS, ARG_RESULT, ARG_SOURCE, ARG_WEIGHTS, GELU_ERF, GELU_TANH, MemoryDesc, ORDER_AB, ORDER_ANY,
        ORDER_BA, SWISH, TYPE_BF16, TYPE_F32,
    },
    primitive::{Followers, Primitive, Stream, equal, matrix, size},
};

/// Rows of every product in f32, a shorter block filled up with zeros: what a row becomes cannot depend on how many
/// there are, as the code that the library chooses does.
const ROWS: usize = 64;
/// Rows of a product in bf16, the fewest that hold a block. There the library may sum a short block in another order.
const SHORT_ROWS: [usize; 3] = [1, 8, 64];
/// Most outputs of a part of the weight: parts are multiplied by different threads.
const OUTPUTS: usize = 512;

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
    /// `x/2 * (1 + erf(x / sqrt 2))`
    GeluErf,
    /// The approximation of it by a hyperbolic tangent.
    GeluTanh,
}

impl Activation {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::None, Self::QuickGelu, Self::Silu, Self::GeluErf, Self::GeluTanh];

    fn elementwise(self) -> Option<(c_int, u32)> {
        match self {
            Self::None => None,
            Self::QuickGelu => Some((SWISH, 1.702f32.to_bits())),
            Self::Silu => Some((SWISH, 1f32.to_bits())),
            Self::GeluErf => Some((GELU_ERF, 0)),
            Self::GeluTanh => Some((GELU_TANH, 0)),
        }
    }
}

/// A type of inputs, weights or results: f32 or bf16.
pub trait Value: Copy + Default + Send + Sync + sealed::Sealed {}

impl Value for f32 {}
impl Value for bf16 {}

mod sealed {
    pub trait Sealed {
        /// `dnnl_data_type_t`
        const TYPE: std::ffi::c_int;
    }

    impl Sealed for f32 {
        const TYPE: std::ffi::c_int = crate::api::TYPE_F32;
    }

    impl Sealed for half::bf16 {
        const TYPE: std::ffi::c_int = crate::api::TYPE_BF16;
    }
}

/// Bytes that begin on a cache line, as the library's code likes them.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A weight `[out, in]` in the order that the library multiplies it in, with its bias, for inputs of the weight's type.
pub struct PackedLinear<T> {
    library: &'static Library,
    parts: Vec<Part>,
    bias: Option<Vec<f32>>,
    input: usize,
    output: usize,
    /// One for each shape and recipe that was asked for; there are few.
    products: Mutex<HashMap<Recipe, Arc<Product>>>,
    inputs: std::marker::PhantomData<T>,
}

/// Some rows of the weight.
struct Part {
    first: usize,
    outputs: usize,
    weights: Vec<Line>,
    order: MemoryDesc,
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
            parts: Vec::new(),
            bias: bias.map(<[f32]>::to_vec),
            input,
            output,
            products: Mutex::default(),
            inputs: std::marker::PhantomData,
        };
        for (index, rows) in weight.chunks(OUTPUTS * input).enumerate() {
            let part = map.pack(index * OUTPUTS, rows)?;
            map.parts.push(part);
        }
        Ok(map)
    }

    /// (out, in)
    #[must_use]
    pub fn sizes(&self) -> (usize, usize) {
        (self.output, self.input)
    }

    /// How the library calls the code of the largest blocks.
    ///
    /// # Errors
    /// [`Error`]
    pub fn implementation(&self) -> Result<String, Error> {
        let recipe = self.plain_recipe(self.output.min(OUTPUTS));
        self.product(recipe)?.primitive.name(self.library)
    }

    fn plain_recipe(&self, outputs: usize) -> Recipe {
        let followers = Followers { elementwise: None, sum: false };
        Recipe { rows: ROWS, outputs, followers, result: TYPE_F32 }
    }

    fn pack(&self, first: usize, rows: &[T]) -> Result<Part, Error> {
        let library = self.library;
        let outputs = rows.len() / self.input;
        let order = self.product(self.plain_recipe(outputs))?.primitive.weights(library);
        let mut weights = vec![Line([0; 64]); size(library, &order).div_ceil(size_of::<Line>())];
        // The transpose of the stored matrix, as it lies in memory.
        let stored = matrix(library, self.input, outputs, T::TYPE, ORDER_BA)?;
        let reorder = Primitive::reorder(library, &stored, &order)?;
        let arguments = [
            (ARG_SOURCE, &stored, rows.as_ptr().cast_mut().cast()),
            (ARG_RESULT, &order, weights.as_mut_ptr().cast()),
        ];
        // SAFETY: `rows` holds the outputs * input values of the stored matrix and is only read; `weights` is as large as
        // the library asked for.
        unsafe { reorder.run(library, &Stream::new(library)?, &arguments, &mut Vec::new())? };
        Ok(Part { first, outputs, weights, order })
    }

    fn product(&self, recipe: Recipe) -> Result<Arc<Product>, Error> {
        let mut products = self.products.lock();
        if let Some(product) = products.get(&recipe) {
            return Ok(product.clone());
        }
        let library = self.library;
        let Recipe { rows, outputs, followers, result } = recipe;
        let source = matrix(library, rows, self.input, T::TYPE, ORDER_AB)?;
        let weights = match self.parts.iter().find(|part| part.outputs == outputs) {
            Some(part) => part.order,
            None => matrix(library, self.input, outputs, T::TYPE, ORDER_ANY)?,
        };
        let bias = matrix(library, 1, outputs, TYPE_F32, ORDER_AB)?;
        let result = matrix(library, rows, outputs, result, ORDER_AB)?;
        let with_bias = self.bias.as_ref().map(|_| &bias);
        let primitive = Primitive::product(library, &source, &weights, with_bias, &result, followers)?;
        let of_outputs = |part: &&Part| part.outputs == outputs;
        if self
            .parts
            .iter()
            .find(of_outputs)
            .is_some_and(|part| !equal(library, &part.order, &primitive.weights(library)))
        {
            return Err(Error::Order { recipe: format!("{recipe:?}") });
        }
        let product = Arc::new(Product { primitive, source, bias, result });
        products.insert(recipe, product.clone());
        Ok(product)
    }

    /// Writes `activation(x W^T + bias) + residual` to `y`: x `[rows, in]`, residual and y `[rows, out]`, row-major.
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
        y: &mut [R],
    ) -> Result<(), Error> {
        let (output, input) = (self.output, self.input);
        let rows = x.len() / input;
        length("x", x.len(), rows * input)?;
        length("y", y.len(), rows * output)?;
        length("residual", residual.map_or(y.len(), <[R]>::len), y.len())?;
        let followers = Followers { elementwise: activation.elementwise(), sum: residual.is_some() };
        let mut tasks = Vec::new();
        for (block, y) in y.chunks_mut(ROWS * output).enumerate() {
            let first = tasks.len();
            for part in &self.parts {
                tasks.push(Task { part, first_row: block * ROWS, y: Vec::with_capacity(ROWS) });
            }
            for row in y.chunks_mut(output) {
                for (task, columns) in tasks[first..].iter_mut().zip(row.chunks_mut(OUTPUTS)) {
                    task.y.push(columns);
                }
            }
        }
        tasks.into_par_iter().try_for_each_init(Scratch::default, |scratch, mut task| {
            let rows = task.y.len();
            let recipe =
                Recipe { rows: Self::padded(rows), outputs: task.part.outputs, followers, result: R::TYPE };
            let product = self.product(recipe)?;
            scratch.x.clear();
            scratch.x.extend_from_slice(&x[task.first_row * input..][..rows * input]);
            scratch.x.resize(recipe.rows * input, T::default());
            scratch.y.clear();
            if let Some(residual) = residual {
                for row in task.first_row..task.first_row + rows {
                    let start = row * output + task.part.first;
                    scratch.y.extend_from_slice(&residual[start..start + task.part.outputs]);
                }
            }
            scratch.y.resize(recipe.rows * recipe.outputs, R::default());
            self.run(&product, task.part, scratch)?;
            for (y, values) in task.y.iter_mut().zip(scratch.y.chunks_exact(recipe.outputs)) {
                y.copy_from_slice(values);
            }
            Ok(())
        })
    }

    /// How many rows the product has that multiplies `rows` of them.
    fn padded(rows: usize) -> usize {
        if T::TYPE == TYPE_BF16 {
            SHORT_ROWS.into_iter().find(|&height| rows <= height).unwrap_or(ROWS)
        } else {
            ROWS
        }
    }

    /// Multiplies the padded rows in `scratch.x` and leaves the result in `scratch.y`.
    fn run<R: Value>(
        &self,
        product: &Product,
        part: &Part,
        scratch: &mut Scratch<T, R>,
    ) -> Result<(), Error> {
        let library = self.library;
        let mut arguments = vec![
            (ARG_SOURCE, &product.source, scratch.x.as_mut_ptr().cast()),
            (ARG_WEIGHTS, &part.order, part.weights.as_ptr().cast_mut().cast()),
            (ARG_RESULT, &product.result, scratch.y.as_mut_ptr().cast()),
        ];
        if let Some(bias) = &self.bias {
            let bias = &bias[part.first..part.first + part.outputs];
            arguments.push((ARG_BIAS, &product.bias, bias.as_ptr().cast_mut().cast()));
        }
        let stream = Stream::new(library)?;
        // SAFETY: `x` holds the padded rows of the product's source and `y` of its result, the weights are as large as
        // their order says, the bias has a value for each of the part's outputs. Only `y` is written.
        unsafe { product.primitive.run(library, &stream, &arguments, &mut scratch.library) }
    }
}

/// A block of the result: some rows of the part's columns.
struct Task<'a, R> {
    part: &'a Part,
    first_row: usize,
    y: Vec<&'a mut [R]>,
}

/// What a thread uses from block to block.
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

fn length(what: &'static str, actual: usize, expected: usize) -> Result<(), Error> {
    if actual == expected { Ok(()) } else { Err(Error::Length { what, expected, actual }) }
}

/// The name of the code behind a product in bf16.
pub(crate) fn bf16_implementation(library: &'static Library) -> Result<String, Error> {
    const SIZE: usize = 256;
    let weight = vec![bf16::ZERO; SIZE * SIZE];
    PackedLinear::new(library, &weight, None, SIZE, SIZE)?.implementation()
}
