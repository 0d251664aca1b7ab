//! The dispatcher as its callers see it.

mod node;
mod properties;
mod scenarios;
mod world;
