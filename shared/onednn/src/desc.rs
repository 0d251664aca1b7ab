//! Descriptions of matrices.

use std::{ffi::c_int, ptr::NonNull, sync::Arc};

use crate::{
    Error, Library,
    api::{DescAddress, DescBytes, Dialect, ORDER_AB, ORDER_ANY},
    library::checked,
    primitive::Owned,
};

/// How the values of a matrix lie in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Order {
    /// The library chooses.
    Any,
    RowMajor,
    ColumnMajor,
}

/// A matrix of the library: its shape, type and order. Clones share it.
#[derive(Clone)]
pub(crate) struct MemoryDesc(Inner);

#[derive(Clone)]
enum Inner {
    Two(Arc<DescBytes>),
    Three(Arc<Owned>),
}

impl MemoryDesc {
    pub(crate) fn matrix(
        library: &Library,
        rows: usize,
        columns: usize,
        dtype: c_int,
        order: Order,
    ) -> Result<Self, Error> {
        const DIMENSIONS: c_int = 2;
        let too_large = |_| Error::Size { input: rows, output: columns };
        let sizes = [i64::try_from(rows).map_err(too_large)?, i64::try_from(columns).map_err(too_large)?];
        let order = match order {
            Order::Any => ORDER_ANY,
            Order::RowMajor => ORDER_AB,
            Order::ColumnMajor => library.dialect.numbers().order_ba,
        };
        let inner = match &library.dialect {
            Dialect::Two(two) => {
                let mut bytes = DescBytes::EMPTY;
                // SAFETY: `bytes` is as large as the library's type, `sizes` as long as is said.
                let status = unsafe {
                    (two.dnnl_memory_desc_init_by_tag)(
                        &raw mut bytes,
                        DIMENSIONS,
                        sizes.as_ptr(),
                        dtype,
                        order,
                    )
                };
                checked("dnnl_memory_desc_init_by_tag", status)?;
                Inner::Two(Arc::new(bytes))
            }
            Dialect::Three(three) => Inner::Three(Arc::new(Owned::new(
                "dnnl_memory_desc_create_with_tag",
                three.dnnl_memory_desc_destroy,
                // SAFETY: the out-parameter is valid, `sizes` is as long as is said and copied.
                |desc| unsafe {
                    (three.dnnl_memory_desc_create_with_tag)(desc, DIMENSIONS, sizes.as_ptr(), dtype, order)
                },
            )?)),
        };
        Ok(Self(inner))
    }

    /// A copy of one that something else of the library holds; none of null.
    ///
    /// # Safety
    /// The address must be null or that of a description of this library.
    pub(crate) unsafe fn copy(library: &Library, address: DescAddress) -> Result<Option<Self>, Error> {
        let Some(there) = NonNull::new(address.cast_mut()) else { return Ok(None) };
        let inner = match &library.dialect {
            // SAFETY: says the caller; in version 2 a description is these bytes.
            Dialect::Two(_) => Inner::Two(Arc::new(unsafe { there.cast::<DescBytes>().read() })),
            Dialect::Three(three) => {
                let desc = Owned::new("dnnl_memory_desc_clone", three.dnnl_memory_desc_destroy, |desc| {
                    // SAFETY: says the caller.
                    unsafe { (three.dnnl_memory_desc_clone)(desc, address) }
                })?;
                Inner::Three(Arc::new(desc))
            }
        };
        Ok(Some(Self(inner)))
    }

    /// Valid as long as this lives.
    pub(crate) fn address(&self) -> DescAddress {
        match &self.0 {
            Inner::Two(bytes) => Arc::as_ptr(bytes).cast(),
            Inner::Three(desc) => desc.handle,
        }
    }

    /// Bytes of the matrix.
    pub(crate) fn size(&self, library: &Library) -> usize {
        // SAFETY: the description is one of the library's.
        unsafe { (library.api.dnnl_memory_desc_get_size)(self.address()) }
    }

    /// Whether two matrices have the same shape, type and order.
    pub(crate) fn equals(&self, library: &Library, other: &Self) -> bool {
        // SAFETY: as above.
        unsafe { (library.api.dnnl_memory_desc_equal)(self.address(), other.address()) != 0 }
    }
}
