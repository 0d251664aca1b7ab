//! What every role shares, over real sockets.

mod access;
mod admission;
mod deadline;
mod drain;
mod health;
mod process;
mod steps;
mod support;
