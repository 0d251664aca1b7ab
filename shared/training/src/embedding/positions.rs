//! Where a fresh image tower finds its patches.

use candle_core::{Device, Result, Tensor};
use thicket_clip::Config;

use crate::parameters::Parameters;

const NAME: &str = "base_model.visual.positional_embedding";

/// Starts the positional embedding as sines and cosines of rows and columns, as large as what the patches hold.
///
/// CLIP draws it at random and small. A tower that learns for minutes instead of weeks then hardly knows where a patch
/// lies, and so whether a red patch is a hat or a shoe. (Beyer, Zhai and Kolesnikov, 2022, start plain vision
/// transformers in this way.)
pub(crate) fn draw(parameters: &Parameters, config: &Config) -> Result<()> {
    let width = config.vision.width;
    let values = sinusoids(config.grid(), width);
    parameters.assign(NAME, &Tensor::from_vec(values, (config.image_tokens(), width), &Device::Cpu)?)
}

/// One row for the class token, all 0, and one for each patch. A quarter of the columns each for the sines and cosines
/// of the row and of the column, from half a wave over the whole image to half a wave over a patch.
fn sinusoids((rows, columns): (usize, usize), width: usize) -> Vec<f32> {
    let waves = width / 4;
    let mut values = vec![0.0; width];
    for row in 0..rows {
        for column in 0..columns {
            for (place, extent) in [(row, rows), (column, columns)] {
                let (place, extent) = (place as f32 + 0.5, extent as f32);
                for wave in 0..waves {
                    let frequency = std::f32::consts::PI * extent.powf(wave as f32 / waves as f32 - 1.0);
                    values.extend([(place * frequency).sin(), (place * frequency).cos()]);
                }
            }
            values.resize(values.len().next_multiple_of(width), 0.0);
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_has_values_of_its_own() {
        let (rows, columns, width) = (12, 6, 130);
        let values = sinusoids((rows, columns), width);
        let places: Vec<&[f32]> = values.chunks(width).collect();
        assert_eq!(places.len(), 1 + rows * columns);
        for (index, place) in places.iter().enumerate() {
            let distance = |other: &[f32]| place.iter().zip(other).map(|(a, b)| (a - b).abs()).sum::<f32>();
            assert!(places[..index].iter().all(|other| distance(other) > 1.0), "{index}");
        }
    }
}
