//! Times the forward passes of an embedding model.
//!
//! Makes one pass untimed, and then one for every line of the standard input, whose seconds it prints: so it can be timed in turn with
//! another program. Tokens and pixels are made up and of full length: this measures the network, not the tokeniser and not the
//! decoding of images.

#![allow(clippy::print_stdout)]

use std::{error::Error, io, path::PathBuf, time::Instant};

use candle_core::{DType, Device, Tensor};
use clap::{Parser, ValueEnum};
use thicket_clip::{ClipEmbedder, LoadOptions, TwoTower};
use thicket_device::ComputeArgs;

/// As the services that embed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Args {
    /// Folder of the checkpoint
    folder: PathBuf,
    /// What is embedded
    kind: Kind,
    /// Images or texts in a pass
    batch: usize,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Image,
    Text,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let options = LoadOptions {
        name: "timed".to_owned(),
        dtype: args.compute.dtype(),
        device: args.compute.device.first().open()?,
        backend: args.compute.backend()?.backend,
    };
    let device = options.device.clone();
    let embedder = ClipEmbedder::load(&args.folder, options)?;
    let once = match args.kind {
        Kind::Image => image_pass(embedder.model(), args.batch, &device)?,
        Kind::Text => text_pass(embedder.model(), args.batch, &device)?,
    };
    once()?;
    for line in io::stdin().lines() {
        line?;
        let start = Instant::now();
        once()?;
        println!("{}", start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Ends when the device has computed.
type Pass<'a> = Box<dyn Fn() -> candle_core::Result<()> + 'a>;

fn image_pass<'a>(model: &'a TwoTower, batch: usize, device: &'a Device) -> candle_core::Result<Pass<'a>> {
    let (height, width) = model.config().image_size;
    let pixels = Tensor::randn(0f32, 1.0, (batch, 3, height, width), device)?;
    Ok(Box::new(move || {
        model.embed_image(&pixels)?;
        device.synchronize()
    }))
}

fn text_pass<'a>(model: &'a TwoTower, batch: usize, device: &'a Device) -> candle_core::Result<Pass<'a>> {
    let config = model.config();
    let (length, end) = (config.text_length, config.vocab_size as u32 - 1);
    let row = (0..length as u32).map(|at| if at + 1 == length as u32 { end } else { 7 + at });
    let ids: Vec<u32> = (0..batch).flat_map(|_| row.clone()).collect();
    let ids = Tensor::from_vec(ids, (batch, length), device)?.to_dtype(DType::U32)?;
    Ok(Box::new(move || {
        model.encode_text(&ids)?;
        device.synchronize()
    }))
}
