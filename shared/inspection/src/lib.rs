//! What a folder of weights is, and whether it works: told by loading it as the services do, and by one forward pass.
//!
//! [`Kind::of`] decides what a folder is from what lies in it, in one place. [`inspect`] hands it to the loader that a
//! service would use, which checks that every tensor is there, has its shape and holds finite values.

mod error;
mod forward;
mod inspect;
mod kind;
mod stored;

pub use error::InspectError;
pub use forward::Forward;
pub use inspect::{Inspection, Memory, Options, inspect};
pub use kind::Kind;
pub use stored::Stored;
