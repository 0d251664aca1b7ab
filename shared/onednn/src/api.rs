//! The functions of oneDNN that are used, by hand: names, types and constants as in its `dnnl.h` and `dnnl_types.h`.
//!
//! Versions 2 and 3 differ in how matrices and products are described, and in a few numbers; all else is shared.

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::Missing;

/// `dnnl_memory_desc_t` of version 2: 696 bytes of numbers that only the library reads and writes.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct DescBytes([u8; 696]);

/// `dnnl_matmul_desc_t` of version 2: four memory descriptors and three numbers.
#[repr(C, align(8))]
pub(crate) struct MatmulBytes([u8; 2800]);

impl DescBytes {
    pub(crate) const EMPTY: Self = Self([0; 696]);
}

impl MatmulBytes {
    pub(crate) const EMPTY: Self = Self([0; 2800]);
}

/// The address of a memory descriptor: a structure of the caller's in version 2, an object of the library in version 3.
pub(crate) type DescAddress = *const c_void;

/// `dnnl_exec_arg_t`
#[repr(C)]
pub(crate) struct Argument {
    pub(crate) place: c_int,
    pub(crate) memory: *mut c_void,
}

/// `dnnl_version_t`
#[repr(C)]
pub(crate) struct Version {
    pub(crate) major: c_int,
    pub(crate) minor: c_int,
    pub(crate) patch: c_int,
    hash: *const c_char,
    pub(crate) cpu_runtime: c_uint,
    gpu_runtime: c_uint,
}

/// An object of the library.
pub(crate) type Handle = *mut c_void;

pub(crate) const SUCCESS: c_int = 0;
pub(crate) const RUNTIME_SEQUENTIAL: c_uint = 1;
pub(crate) const RUNTIME_OPENMP: c_uint = 2;
pub(crate) const CPU: c_int = 1;
pub(crate) const DEFAULT_STREAM: c_uint = 1;
pub(crate) const USER_SCRATCHPAD: c_int = 1;
/// In place of a type: that of the result.
pub(crate) const TYPE_OF_RESULT: c_int = 0;
pub(crate) const TYPE_BF16: c_int = 2;
pub(crate) const TYPE_F32: c_int = 3;
/// Any order: the library chooses.
pub(crate) const ORDER_ANY: c_int = 1;
/// Row by row.
pub(crate) const ORDER_AB: c_int = 3;
pub(crate) const QUERY_NAME: c_int = 8;
pub(crate) const QUERY_WEIGHTS: c_int = 131;
pub(crate) const QUERY_SCRATCHPAD: c_int = 136;
pub(crate) const ARG_SOURCE: c_int = 1;
pub(crate) const ARG_RESULT: c_int = 17;
pub(crate) const ARG_WEIGHTS: c_int = 33;
pub(crate) const ARG_BIAS: c_int = 41;
pub(crate) const ARG_SCRATCHPAD: c_int = 80;
/// `dnnl_cpu_isa_avx512_core`: a bit mask that larger sets include.
pub(crate) const ISA_AVX512: c_int = 0x27;

/// Numbers that differ between the versions.
#[derive(Debug)]
pub(crate) struct Numbers {
    /// Column by column.
    pub(crate) order_ba: c_int,
    pub(crate) swish: c_int,
}

pub(crate) const NUMBERS_2: Numbers = Numbers { order_ba: 22, swish: 223 };
pub(crate) const NUMBERS_3: Numbers = Numbers { order_ba: 14, swish: 44 };

/// Declares a table of functions and how it is filled.
macro_rules! functions {
    ($(#[$doc:meta])* $table:ident: $($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        $(#[$doc])*
        pub(crate) struct $table {
            $(pub(crate) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl $table {
            /// Looks every function up.
            pub(crate) fn of(library: &libloading::Library) -> Result<Self, Missing> {
                Ok(Self {
                    // SAFETY: the types are those of the library's header; its version was checked before.
                    $($name: *unsafe { library.get(stringify!($name).as_bytes()) }
                        .map_err(|_| Missing::Function { name: stringify!($name) })?,)*
                })
            }
        }
    };
}

functions! {
    /// Functions of an opened library, which is never closed.
    Api:
    dnnl_engine_create: fn(*mut Handle, c_int, usize) -> c_int;
    dnnl_stream_create: fn(*mut Handle, Handle, c_uint) -> c_int;
    dnnl_stream_destroy: fn(Handle) -> c_int;
    dnnl_stream_wait: fn(Handle) -> c_int;
    dnnl_memory_desc_equal: fn(DescAddress, DescAddress) -> c_int;
    dnnl_memory_desc_get_size: fn(DescAddress) -> usize;
    dnnl_memory_create: fn(*mut Handle, DescAddress, Handle, *mut c_void) -> c_int;
    dnnl_memory_destroy: fn(Handle) -> c_int;
    dnnl_primitive_desc_destroy: fn(Handle) -> c_int;
    dnnl_primitive_desc_query: fn(Handle, c_int, c_int, *mut c_void) -> c_int;
    dnnl_primitive_desc_query_md: fn(Handle, c_int, c_int) -> DescAddress;
    dnnl_reorder_primitive_desc_create: fn(
        *mut Handle, DescAddress, Handle, DescAddress, Handle, Handle
    ) -> c_int;
    dnnl_primitive_create: fn(*mut Handle, Handle) -> c_int;
    dnnl_primitive_destroy: fn(Handle) -> c_int;
    dnnl_primitive_execute: fn(Handle, Handle, c_int, *const Argument) -> c_int;
    dnnl_primitive_attr_create: fn(*mut Handle) -> c_int;
    dnnl_primitive_attr_destroy: fn(Handle) -> c_int;
    dnnl_primitive_attr_set_scratchpad_mode: fn(Handle, c_int) -> c_int;
    dnnl_primitive_attr_set_post_ops: fn(Handle, Handle) -> c_int;
    dnnl_post_ops_create: fn(*mut Handle) -> c_int;
    dnnl_post_ops_destroy: fn(Handle) -> c_int;
    dnnl_get_effective_cpu_isa: fn() -> c_int;
}

functions! {
    /// What version 2 has of its own.
    Two:
    dnnl_memory_desc_init_by_tag: fn(*mut DescBytes, c_int, *const i64, c_int, c_int) -> c_int;
    dnnl_matmul_desc_init: fn(
        *mut MatmulBytes, DescAddress, DescAddress, DescAddress, DescAddress
    ) -> c_int;
    dnnl_primitive_desc_create: fn(*mut Handle, *const c_void, Handle, Handle, Handle) -> c_int;
    dnnl_post_ops_append_eltwise: fn(Handle, f32, c_int, f32, f32) -> c_int;
    dnnl_post_ops_append_sum: fn(Handle, f32) -> c_int;
}

functions! {
    /// What version 3 has of its own.
    Three:
    dnnl_memory_desc_create_with_tag: fn(*mut Handle, c_int, *const i64, c_int, c_int) -> c_int;
    dnnl_memory_desc_clone: fn(*mut Handle, DescAddress) -> c_int;
    dnnl_memory_desc_destroy: fn(Handle) -> c_int;
    dnnl_matmul_primitive_desc_create: fn(
        *mut Handle, Handle, DescAddress, DescAddress, DescAddress, DescAddress, Handle
    ) -> c_int;
    dnnl_post_ops_append_eltwise: fn(Handle, c_int, f32, f32) -> c_int;
    dnnl_post_ops_append_sum: fn(Handle, f32, i32, c_int) -> c_int;
}

/// What a version has of its own.
pub(crate) enum Dialect {
    Two(Two),
    Three(Three),
}

impl Dialect {
    pub(crate) fn numbers(&self) -> &'static Numbers {
        match self {
            Self::Two(_) => &NUMBERS_2,
            Self::Three(_) => &NUMBERS_3,
        }
    }
}
