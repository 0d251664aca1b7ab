//! `thicket models`: what is supported and here, pulls from a local server, verified folders.

mod hub;
mod list;
mod pull;
mod verify;
