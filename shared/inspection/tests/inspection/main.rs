//! Good folders and, for every way in which one can be broken, a copy broken in that way.

mod broken;
mod good;
mod support;
