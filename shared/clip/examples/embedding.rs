//! Times the forward passes of an embedding model: `embedding FOLDER KIND BATCH REPETITIONS`, KIND `image` or `text`.
//!
//! Prints one line, the seconds of each repetition. Tokens and pixels are made up and of full length: this measures
//! the network, not the tokeniser and not the decoding of images.

#![allow(clippy::print_stdout)]

use std::{error::Error, path::Path, time::Instant};

use candle_core::{DType, Device, Tensor};
use thicket_clip::{ClipEmbedder, LoadOptions, TwoTower};

/// As the services that embed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "usage: embedding FOLDER image|text BATCH REPETITIONS";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, kind, batch, repetitions] = arguments.as_slice() else { return Err(USAGE.into()) };
    let (batch, repetitions): (usize, usize) = (batch.parse()?, repetitions.parse()?);
    let embedder = ClipEmbedder::load(Path::new(folder), LoadOptions::reference("timed"))?;
    let model = embedder.model();
    let once: Pass<'_> = match kind.as_str() {
        "image" => image_pass(model, batch)?,
        "text" => text_pass(model, batch)?,
        _ => return Err(USAGE.into()),
    };
    once()?;
    let mut seconds = Vec::with_capacity(repetitions);
    for _ in 0..repetitions {
        let start = Instant::now();
        once()?;
        seconds.push(start.elapsed().as_secs_f64().to_string());
    }
    println!("{}", seconds.join(" "));
    Ok(())
}

type Pass<'a> = Box<dyn Fn() -> candle_core::Result<()> + 'a>;

fn image_pass(model: &TwoTower, batch: usize) -> candle_core::Result<Pass<'_>> {
    let (height, width) = model.config().image_size;
    let pixels = Tensor::randn(0f32, 1.0, (batch, 3, height, width), &Device::Cpu)?;
    Ok(Box::new(move || model.embed_image(&pixels).map(drop)))
}

fn text_pass(model: &TwoTower, batch: usize) -> candle_core::Result<Pass<'_>> {
    let config = model.config();
    let (length, end) = (config.text_length, config.vocab_size as u32 - 1);
    let row = (0..length as u32).map(|at| if at + 1 == length as u32 { end } else { 7 + at });
    let ids: Vec<u32> = (0..batch).flat_map(|_| row.clone()).collect();
    let ids = Tensor::from_vec(ids, (batch, length), &Device::Cpu)?.to_dtype(DType::U32)?;
    Ok(Box::new(move || model.encode_text(&ids).map(drop)))
}
