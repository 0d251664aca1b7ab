//! Pulls from a local server that behaves like the hub, and misbehaves like the network.

mod cache_layout;
mod interrupted;
mod names;
mod plain_folder;
mod refusals;
mod support;
mod tokens;
