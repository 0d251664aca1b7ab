//! Objects in a folder and in a bucket behave alike.

mod folder;
mod moto;
mod pieces;
mod place;
