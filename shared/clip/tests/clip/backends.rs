//! The vectors of the goldens, whatever multiplies.

use crate::support::{folder, golden, largest_difference, load, picture};
use candle_core::{Device, Tensor};
use image::RgbImage;
use thicket_clip::{ClipEmbedder, LoadOptions};
use thicket_engine::Embedder;
use thicket_kernels::Backend;
use thicket_onednn::Library;

/// Texts and images of a golden as vectors.
fn vectors(embedder: &mut ClipEmbedder, texts: &[String], images: &[RgbImage]) -> Vec<Vec<f32>> {
    let mut vectors = embedder.embed_texts(texts).unwrap();
    vectors.extend(embedder.embed_images(images).unwrap());
    vectors
}

#[test]
fn onednn_and_the_products_of_the_house_give_the_same_vectors() {
    let library = match Library::get() {
        Ok(library) => library,
        Err(missing) => return eprintln!("not checked: {missing}"),
    };
    let texts = ["a man in a dark jacket", "a woman with a red umbrella and a grey coat"].map(String::from);
    for name in ["trained", "published", "irra", "hf-files"] {
        let file = golden(name)["images"][0]["file"].as_str().map(str::to_owned);
        let images: Vec<RgbImage> = file.iter().map(|file| picture(name, file)).collect();
        let options = LoadOptions { backend: Backend::OneDnn(library), ..LoadOptions::reference(name) };
        let expected = vectors(&mut load(name), &texts, &images);
        let actual = vectors(&mut ClipEmbedder::load(&folder(name), options).unwrap(), &texts, &images);
        for (actual, expected) in actual.iter().zip(&expected) {
            assert!(largest_difference(actual, expected) < 1e-5, "{name}");
        }
    }
}

#[test]
fn an_image_embedded_alone_has_the_bits_of_its_features() {
    for name in ["trained", "irra"] {
        let embedder = load(name);
        let model = embedder.model();
        let (height, width) = model.config().image_size;
        let pixels = Tensor::randn(0f32, 1.0, (3, 3, height, width), &Device::Cpu).unwrap();
        let features = model.encode_image(&pixels).unwrap();
        let (bge, tse) = model.embed_image(&pixels).unwrap();
        let values = |tensor: Tensor| tensor.to_vec2::<f32>().unwrap();
        assert_eq!(values(bge), values(features.bge), "{name}");
        assert_eq!(tse.map(values), features.tse.map(values), "{name}");
    }
}
