//! Objects of the library that are destroyed when they are dropped, and calls on them.

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    ptr,
};

use crate::{
    Activation, Error, Library,
    api::{
        Argument, DEFAULT_STREAM, Dialect, Handle, MatmulBytes, QUERY_NAME, QUERY_SCRATCHPAD, QUERY_WEIGHTS,
        TYPE_OF_RESULT, USER_SCRATCHPAD,
    },
    desc::MemoryDesc,
    exit,
    library::checked,
};

/// An object and the function that destroys it.
pub(crate) struct Owned {
    pub(crate) handle: Handle,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
}

// SAFETY: the library's objects are not bound to the thread that made them.
unsafe impl Send for Owned {}
// SAFETY: shared objects are only read: primitives and their descriptions are constant once made, says the manual, and
// streams and memories are not shared (see `Primitive::run`).
unsafe impl Sync for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        let _call = exit::call();
        // SAFETY: the object is valid and nobody else holds it. A failure leaves nothing to do.
        unsafe { (self.destroy)(self.handle) };
    }
}

impl Owned {
    pub(crate) fn new(
        call: &'static str,
        destroy: unsafe extern "C" fn(Handle) -> c_int,
        make: impl FnOnce(*mut Handle) -> c_int,
    ) -> Result<Self, Error> {
        let _call = exit::call();
        let mut handle = ptr::null_mut();
        checked(call, make(&raw mut handle))?;
        Ok(Self { handle, destroy })
    }
}

/// What follows a product, in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Followers {
    pub(crate) activation: Activation,
    /// Whether what the result held before is added.
    pub(crate) sum: bool,
}

/// A compiled function of the library and how much memory it needs beside its arguments.
pub(crate) struct Primitive {
    primitive: Owned,
    desc: Owned,
    scratchpad: Option<MemoryDesc>,
}

impl Primitive {
    /// `source weights + bias`, with what follows.
    pub(crate) fn product(
        library: &Library,
        source: &MemoryDesc,
        weights: &MemoryDesc,
        bias: Option<&MemoryDesc>,
        result: &MemoryDesc,
        followers: Followers,
    ) -> Result<Self, Error> {
        let api = &library.api;
        let attributes = attributes(library, followers)?;
        let (source, weights, result) = (source.address(), weights.address(), result.address());
        let bias = bias.map_or(ptr::null(), MemoryDesc::address);
        let desc = match &library.dialect {
            Dialect::Two(two) => {
                let mut matmul = MatmulBytes::EMPTY;
                // SAFETY: every descriptor was filled by the library; a null bias means none.
                let status =
                    unsafe { (two.dnnl_matmul_desc_init)(&raw mut matmul, source, weights, bias, result) };
                checked("dnnl_matmul_desc_init", status)?;
                let matmul: *const c_void = (&raw const matmul).cast();
                Owned::new("dnnl_primitive_desc_create", api.dnnl_primitive_desc_destroy, |handle| {
                    let (attributes, engine) = (attributes.handle, library.engine);
                    // SAFETY: the descriptor was filled above, the attributes and the engine are valid.
                    unsafe {
                        (two.dnnl_primitive_desc_create)(handle, matmul, attributes, engine, ptr::null_mut())
                    }
                })
            }
            Dialect::Three(three) => {
                Owned::new("dnnl_matmul_primitive_desc_create", api.dnnl_primitive_desc_destroy, |handle| {
                    let (attributes, engine) = (attributes.handle, library.engine);
                    // SAFETY: every descriptor is one of the library's; a null bias means none.
                    unsafe {
                        (three.dnnl_matmul_primitive_desc_create)(
                            handle, engine, source, weights, bias, result, attributes,
                        )
                    }
                })
            }
        }?;
        Self::from_desc(library, desc)
    }

    /// A copy from one order to another.
    pub(crate) fn reorder(library: &Library, from: &MemoryDesc, to: &MemoryDesc) -> Result<Self, Error> {
        let api = &library.api;
        let engine = library.engine;
        let attributes = attributes(library, Followers::default())?;
        let desc =
            Owned::new("dnnl_reorder_primitive_desc_create", api.dnnl_primitive_desc_destroy, |handle| {
                // SAFETY: both descriptors were filled by the library, the attributes and the engine are valid.
                unsafe {
                    (api.dnnl_reorder_primitive_desc_create)(
                        handle,
                        from.address(),
                        engine,
                        to.address(),
                        engine,
                        attributes.handle,
                    )
                }
            })?;
        Self::from_desc(library, desc)
    }

    fn from_desc(library: &Library, desc: Owned) -> Result<Self, Error> {
        let api = &library.api;
        let primitive = Owned::new("dnnl_primitive_create", api.dnnl_primitive_destroy, |handle| {
            // SAFETY: the description is valid.
            unsafe { (api.dnnl_primitive_create)(handle, desc.handle) }
        })?;
        let mut made = Self { primitive, desc, scratchpad: None };
        made.scratchpad = made.memory_desc(library, QUERY_SCRATCHPAD)?.filter(|desc| desc.size(library) > 0);
        Ok(made)
    }

    /// The order in which the weights are expected.
    pub(crate) fn weights(&self, library: &Library) -> Result<MemoryDesc, Error> {
        const NONE: c_int = 0;
        self.memory_desc(library, QUERY_WEIGHTS)?
            .ok_or(Error::Call { call: "dnnl_primitive_desc_query_md", status: NONE })
    }

    fn memory_desc(&self, library: &Library, what: c_int) -> Result<Option<MemoryDesc>, Error> {
        // SAFETY: the description is valid.
        let address = unsafe { (library.api.dnnl_primitive_desc_query_md)(self.desc.handle, what, 0) };
        // SAFETY: the answer is null or lives as long as the description.
        unsafe { MemoryDesc::copy(library, address) }
    }

    /// How the library calls the code behind it.
    pub(crate) fn name(&self, library: &Library) -> Result<String, Error> {
        let mut name: *const c_char = ptr::null();
        // SAFETY: this query writes the address of a string that lives as long as the description.
        let status = unsafe {
            (library.api.dnnl_primitive_desc_query)(self.desc.handle, QUERY_NAME, 0, (&raw mut name).cast())
        };
        checked("dnnl_primitive_desc_query", status)?;
        // SAFETY: see above.
        Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
    }

    /// Runs it on the calling thread.
    ///
    /// # Safety
    /// Every argument's memory must be as large as its descriptor says, and writable where it is written.
    pub(crate) unsafe fn run(
        &self,
        library: &Library,
        stream: &Stream,
        arguments: &[(c_int, &MemoryDesc, *mut c_void)],
        scratch: &mut Vec<u64>,
    ) -> Result<(), Error> {
        let call = exit::call();
        library.stay_on_this_thread();
        let mut memories = Vec::with_capacity(arguments.len() + 1);
        for &(place, desc, address) in arguments {
            memories.push((place, memory(library, desc, address)?));
        }
        if let Some(desc) = &self.scratchpad {
            scratch.resize(desc.size(library).div_ceil(8).max(scratch.len()), 0);
            memories.push((crate::api::ARG_SCRATCHPAD, memory(library, desc, scratch.as_mut_ptr().cast())?));
        }
        let list: Vec<Argument> = memories
            .iter()
            .map(|(place, memory)| Argument { place: *place, memory: memory.handle })
            .collect();
        let api = &library.api;
        // SAFETY: all handles are valid; the caller answers for the memory behind them. The stream is this thread's.
        let status = unsafe {
            (api.dnnl_primitive_execute)(
                self.primitive.handle,
                stream.0.handle,
                list.len() as c_int,
                list.as_ptr(),
            )
        };
        checked("dnnl_primitive_execute", status)?;
        // SAFETY: the stream is valid.
        checked("dnnl_stream_wait", unsafe { (api.dnnl_stream_wait)(stream.0.handle) })?;
        call.was_made();
        Ok(())
    }
}

/// A queue of work, for one thread.
pub(crate) struct Stream(Owned);

impl Stream {
    pub(crate) fn new(library: &Library) -> Result<Self, Error> {
        let api = &library.api;
        let flags: c_uint = DEFAULT_STREAM;
        Owned::new("dnnl_stream_create", api.dnnl_stream_destroy, |handle| {
            // SAFETY: the engine is valid.
            unsafe { (api.dnnl_stream_create)(handle, library.engine, flags) }
        })
        .map(Self)
    }
}

fn memory(library: &Library, desc: &MemoryDesc, address: *mut c_void) -> Result<Owned, Error> {
    let api = &library.api;
    Owned::new("dnnl_memory_create", api.dnnl_memory_destroy, |handle| {
        // SAFETY: the descriptor was filled by the library; the address is only stored.
        unsafe { (api.dnnl_memory_create)(handle, desc.address(), library.engine, address) }
    })
}

/// Attributes under which a primitive takes its working memory from its caller: what the library holds itself belongs
/// to the thread that made the primitive.
fn attributes(library: &Library, followers: Followers) -> Result<Owned, Error> {
    let api = &library.api;
    let attributes = Owned::new("dnnl_primitive_attr_create", api.dnnl_primitive_attr_destroy, |handle| {
        // SAFETY: the out-parameter is valid.
        unsafe { (api.dnnl_primitive_attr_create)(handle) }
    })?;
    // SAFETY: the attributes are valid.
    let status = unsafe { (api.dnnl_primitive_attr_set_scratchpad_mode)(attributes.handle, USER_SCRATCHPAD) };
    checked("dnnl_primitive_attr_set_scratchpad_mode", status)?;
    let list = Owned::new("dnnl_post_ops_create", api.dnnl_post_ops_destroy, |handle| {
        // SAFETY: the out-parameter is valid.
        unsafe { (api.dnnl_post_ops_create)(handle) }
    })?;
    if let Some((kind, alpha)) = elementwise(followers.activation, &library.dialect) {
        const BETA: f32 = 0.0;
        // SAFETY: the list is valid.
        let status = unsafe {
            match &library.dialect {
                Dialect::Two(two) => (two.dnnl_post_ops_append_eltwise)(list.handle, 1.0, kind, alpha, BETA),
                Dialect::Three(three) => (three.dnnl_post_ops_append_eltwise)(list.handle, kind, alpha, BETA),
            }
        };
        checked("dnnl_post_ops_append_eltwise", status)?;
    }
    if followers.sum {
        // SAFETY: the list is valid.
        let status = unsafe {
            match &library.dialect {
                Dialect::Two(two) => (two.dnnl_post_ops_append_sum)(list.handle, 1.0),
                Dialect::Three(three) => {
                    (three.dnnl_post_ops_append_sum)(list.handle, 1.0, 0, TYPE_OF_RESULT)
                }
            }
        };
        checked("dnnl_post_ops_append_sum", status)?;
    }
    // SAFETY: both are valid; the list is copied.
    let status = unsafe { (api.dnnl_primitive_attr_set_post_ops)(attributes.handle, list.handle) };
    checked("dnnl_primitive_attr_set_post_ops", status)?;
    Ok(attributes)
}

/// `dnnl_alg_kind_t` and its alpha.
fn elementwise(activation: Activation, dialect: &Dialect) -> Option<(c_int, f32)> {
    let numbers = dialect.numbers();
    match activation {
        Activation::None => None,
        Activation::QuickGelu => Some((numbers.swish, 1.702)),
        Activation::Silu => Some((numbers.swish, 1.0)),
    }
}
