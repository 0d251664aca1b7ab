use std::ffi::c_int;

/// Why oneDNN cannot be used on this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// None of the names could be opened.
    #[error("oneDNN is not installed: {reason}")]
    Library {
        /// What the loader says of the last name tried.
        reason: String,
    },
    /// A version of another interface.
    #[error("oneDNN {found} has another interface: 2.6 or a later 2.x, or 3.x expected")]
    Version {
        /// `major.minor.patch`
        found: String,
    },
    /// A function that the library should have.
    #[error("oneDNN has no function `{name}`")]
    Function {
        /// Its name.
        name: &'static str,
    },
    /// Built for a thread pool that cannot be held to one thread.
    #[error("oneDNN is built for threading runtime {runtime}: OpenMP or none expected")]
    Threads {
        /// `cpu_runtime` of the library's version.
        runtime: u32,
    },
    /// The library has no fast product of this type on this processor.
    #[error("oneDNN has no fast bf16 product on this processor: {reason}")]
    Bf16 {
        /// What it offers instead.
        reason: String,
    },
    /// It failed while it was set up.
    #[error("oneDNN cannot be set up: {0}")]
    SetUp(#[from] Error),
}

/// A product that could not be made or run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// oneDNN refused a call.
    #[error("oneDNN {call} failed with status {status}")]
    Call {
        /// The function.
        call: &'static str,
        /// `dnnl_status_t`
        status: c_int,
    },
    /// A slice that does not have the length that its shape says.
    #[error("{what} of {actual} values, {expected} expected")]
    Length {
        /// Which argument.
        what: &'static str,
        /// How many values the shape asks for.
        expected: usize,
        /// How many there are.
        actual: usize,
    },
    /// A size that is zero or beyond the library's integers.
    #[error("a linear map of {input} inputs and {output} outputs")]
    Size {
        /// Inputs.
        input: usize,
        /// Outputs.
        output: usize,
    },
    /// The system gives no memory for a weight.
    #[error("no memory for a weight of {bytes} bytes: {reason}")]
    Memory {
        /// Of the weight.
        bytes: usize,
        /// What the system says.
        reason: String,
    },
    /// Two primitives of one map want its weight in different orders.
    #[error("oneDNN wants the weight in another order for {recipe}")]
    Order {
        /// What the primitive does.
        recipe: String,
    },
}
