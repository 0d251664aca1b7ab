//! A rendered person-search benchmark: pedestrians with known attributes, seen by several cameras and
//! described by several witnesses.
//!
//! Everything is a pure function of a seed. [`Benchmark::new`] draws families of look-alike people,
//! [`Benchmark::views`] lists the images of a split with their captions and their ground truth, [`render`]
//! paints one of them, and [`write()`] stores the whole in the CUHK-PEDES layout. The same seed gives the same
//! bytes, and one image can be made without the others.
//!
//! The ground truth of an image is an [`Appearance`]: a value for each of the [`SLOTS`] and which of them
//! a viewer can tell. [`answers`] turns it into the fifteen attribute answers, [`describe`] into one text,
//! and [`merge`] adds to that text what only a witness knew.

mod answers;
mod benchmark;
mod caption;
mod describe;
mod family;
mod lexicon;
mod render;
mod schema;
mod seed;
mod witness;
mod write;

pub use answers::{QUESTION_COUNT, Reading, answers, numbered, parse_answers, read_answer};
pub use benchmark::{Benchmark, ScopeError, Sizes, Split, View};
pub use caption::{Caption, Claim, SlotClaim};
pub use describe::{describe, merge};
pub use family::{Family, Person};
pub use lexicon::vocabulary;
pub use render::{HEIGHT, WIDTH, render};
pub use schema::{
    Appearance, COLOURS, Facing, HAIR_COLOURS, IDENTITY_SLOTS, Mask, Occluder, SLOT_COUNT, SLOTS, Scene,
    Slot, differences, slot,
};
pub use witness::{Style, Witness, write_caption};
pub use write::{Progress, WriteError, write};
