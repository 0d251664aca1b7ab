//! Tiles images of the sample into one PNG, to look at: `contact_sheet OUT.png [SEED [FIRST [COLUMNS [ROWS [STEP]]]]]`.

use std::error::Error;

use image::{RgbImage, imageops};
use rayon::prelude::*;
use thicket_synth::{Benchmark, HEIGHT, Sizes, Split, WIDTH, render};

/// Each picture is shown this many times as large.
const ZOOM: u32 = 2;
const GAP: u32 = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let out =
        arguments.next().ok_or("usage: contact_sheet OUT.png [SEED [FIRST [COLUMNS [ROWS [STEP]]]]]")?;
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |text| text.parse::<u64>());
    let (seed, first, columns, rows) =
        (number(1)?, number(0)? as usize, number(8)? as u32, number(4)? as u32);
    let step = number(1)?.max(1) as usize;
    let benchmark = Benchmark::new(seed, Sizes::default())?;
    let views: Vec<_> =
        benchmark.views(Split::Test).skip(first).step_by(step).take((columns * rows) as usize).collect();
    let started = std::time::Instant::now();
    let images: Vec<RgbImage> = views.par_iter().map(render).collect();
    eprintln!("{:.2} ms an image", started.elapsed().as_secs_f64() * 1e3 / images.len().max(1) as f64);
    let (cell_width, cell_height) = (WIDTH * ZOOM + GAP, HEIGHT * ZOOM + GAP);
    let mut sheet = RgbImage::new(columns * cell_width, rows * cell_height);
    for (at, (image, view)) in images.iter().zip(&views).enumerate() {
        let large = imageops::resize(image, WIDTH * ZOOM, HEIGHT * ZOOM, imageops::FilterType::Nearest);
        let (column, row) = (at as u32 % columns, at as u32 / columns);
        imageops::replace(&mut sheet, &large, i64::from(column * cell_width), i64::from(row * cell_height));
        let caption = view.captions.first().map_or("", |(_, caption)| caption.text.as_str());
        eprintln!(
            "{:2} {:?} {} | {}",
            at,
            view.scene.facing,
            thicket_synth::describe(&view.appearance).text,
            caption
        );
    }
    sheet.save(out)?;
    Ok(())
}
