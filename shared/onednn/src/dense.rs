use std::{cell::RefCell, collections::HashMap, fmt, sync::Arc};

use half::bf16;
use parking_lot::Mutex;

use crate::{
    Error, Library,
    api::{ARG_RESULT, ARG_SOURCE, ARG_WEIGHTS, TYPE_BF16, TYPE_F32},
    desc::{MemoryDesc, Order},
    linear::length,
    primitive::{Followers, Primitive, Stream},
};

/// Products that are kept, with the code made for them; beyond it all are forgotten.
const KEPT: usize = 256;

/// The product of two matrices in bf16 that are both made anew each time, as those of attention are: a `[rows, inner]` by b
/// `[inner, columns]`, or the transpose of b `[columns, inner]`, to f32 `[rows, columns]`. All row-major.
#[derive(Clone)]
pub struct DenseProduct {
    library: &'static Library,
    shape: Shape,
    made: Arc<Made>,
}

/// Products that were made, by shape.
pub(crate) type Known = Mutex<HashMap<Shape, Arc<Made>>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    rows: usize,
    inner: usize,
    columns: usize,
    transposed: bool,
}

pub(crate) struct Made {
    primitive: Primitive,
    a: MemoryDesc,
    b: MemoryDesc,
    c: MemoryDesc,
}

impl fmt::Debug for DenseProduct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DenseProduct").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl DenseProduct {
    /// Code is generated for every shape, and a limited number of them kept: callers should round shapes up to a few.
    ///
    /// # Errors
    /// A size of zero, or a product that the library does not have.
    pub fn new(
        library: &'static Library,
        rows: usize,
        inner: usize,
        columns: usize,
        transposed: bool,
    ) -> Result<Self, Error> {
        let shape = Shape { rows, inner, columns, transposed };
        if rows == 0 || inner == 0 || columns == 0 {
            return Err(Error::Size { input: inner, output: columns });
        }
        let mut known = library.dense.lock();
        if let Some(made) = known.get(&shape) {
            return Ok(Self { library, shape, made: made.clone() });
        }
        let made = Arc::new(Made::new(library, shape)?);
        if known.len() == KEPT {
            known.clear();
        }
        known.insert(shape, made.clone());
        Ok(Self { library, shape, made })
    }

    /// Writes the product to `c`, on the calling thread.
    ///
    /// # Errors
    /// Slices of another length, or a call that the library refuses.
    pub fn run(&self, a: &[bf16], b: &[bf16], c: &mut [f32]) -> Result<(), Error> {
        thread_local!(static SCRATCH: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) });
        let Shape { rows, inner, columns, .. } = self.shape;
        length("a", a.len(), rows * inner)?;
        length("b", b.len(), inner * columns)?;
        length("c", c.len(), rows * columns)?;
        let arguments = [
            (ARG_SOURCE, &self.made.a, a.as_ptr().cast_mut().cast()),
            (ARG_WEIGHTS, &self.made.b, b.as_ptr().cast_mut().cast()),
            (ARG_RESULT, &self.made.c, c.as_mut_ptr().cast()),
        ];
        let stream = Stream::new(self.library)?;
        SCRATCH.with_borrow_mut(|scratch| {
            // SAFETY: the slices are as long as their shapes say, only `c` is written.
            unsafe { self.made.primitive.run(self.library, &stream, &arguments, scratch) }
        })
    }
}

impl Made {
    fn new(library: &Library, shape: Shape) -> Result<Self, Error> {
        let Shape { rows, inner, columns, transposed } = shape;
        let order = if transposed { Order::ColumnMajor } else { Order::RowMajor };
        let a = MemoryDesc::matrix(library, rows, inner, TYPE_BF16, Order::RowMajor)?;
        let b = MemoryDesc::matrix(library, inner, columns, TYPE_BF16, order)?;
        let c = MemoryDesc::matrix(library, rows, columns, TYPE_F32, Order::RowMajor)?;
        let primitive = Primitive::product(library, &a, &b, None, &c, Followers::default())?;
        Ok(Self { primitive, a, b, c })
    }
}
