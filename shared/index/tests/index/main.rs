//! The index against a plain reference, and what it refuses.

mod exactness;
mod kinds;
mod refusals;
mod snapshots;
