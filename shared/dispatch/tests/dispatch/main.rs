//! The dispatcher as its callers see it.

mod properties;
mod scenarios;
mod world;
