//! The built-in sample.

mod benchmark;
mod texts;
