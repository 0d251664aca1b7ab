//! The logits of the goldens, whatever multiplies.

use crate::common::{FIXTURES, assert_close, cases, fixture, load};
use candle_core::{DType, Device, Tensor};
use thicket_kernels::Backend;
use thicket_onednn::Library;
use thicket_qwen::{LoadOptions, QwenAnswerer, Segment, batch_patches};

/// Logits after the last token of the fixture's prompts.
fn logits(answerer: &QwenAnswerer, name: &str) -> Vec<Tensor> {
    let model = answerer.model();
    let of_case = |case: &crate::common::Case| {
        let image = case.image().map(|image| {
            let patches = answerer.processor().patches(&image).unwrap();
            let (values, grids) = batch_patches(&[&patches], DType::F32, &Device::Cpu).unwrap();
            model.vision.forward(&values, &grids).unwrap()
        });
        let images: Vec<&Tensor> = image.iter().collect();
        let embeddings = model.embed(&case.tokens, &images).unwrap();
        let mut segments = [Segment { tokens: case.tokens.len(), cache: None }];
        let hidden = model.language.forward_ragged(&embeddings, &case.positions, &mut segments).unwrap();
        model.language.logits(&hidden).unwrap()
    };
    cases(name).iter().map(of_case).collect()
}

#[test]
fn onednn_and_the_products_of_the_house_give_the_same_logits() {
    let library = match Library::get() {
        Ok(library) => library,
        Err(missing) => return eprintln!("not checked: {missing}"),
    };
    for name in FIXTURES {
        let expected = logits(&load(&fixture(name)).unwrap(), name);
        let options = LoadOptions { backend: Backend::OneDnn(library), ..LoadOptions::reference(name) };
        let actual = logits(&QwenAnswerer::load(&fixture(name), options).unwrap(), name);
        for (actual, expected) in actual.iter().zip(&expected) {
            assert_close(name, actual, expected, 1e-5);
        }
    }
}
