//! What is left of the reference's f32 logits in half precision.

use crate::common::{Case, FIXTURES, cases, copy, fixture, golden_tensors, load, load_as};
use candle_core::{DType, Device, Tensor};
use thicket_engine::Answerer;
use thicket_qwen::{QwenAnswerer, Segment, batch_patches};

/// Logits after the last token of a prompt, everything computed in the model's own precision.
fn last_logits(answerer: &QwenAnswerer, case: &Case) -> Vec<f32> {
    let model = answerer.model();
    let image = case.image().map(|image| {
        let patches = answerer.processor().patches(&image).unwrap();
        let (values, grids) = batch_patches(&[&patches], model.language.dtype(), &Device::Cpu).unwrap();
        model.vision.forward(&values, &grids).unwrap()
    });
    let images: Vec<&Tensor> = image.iter().collect();
    let embeddings = model.embed(&case.tokens, &images).unwrap();
    let mut segments = [Segment { tokens: case.tokens.len(), cache: None }];
    let hidden = model.language.forward_ragged(&embeddings, &case.positions, &mut segments).unwrap();
    let logits = model.language.logits(&hidden).unwrap();
    logits.squeeze(0).unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum() };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Asserts that the last logits of every prompt point where the reference's f32 logits do.
fn assert_near_the_reference(dtype: DType, least: f64) {
    let mut found_least = 1.0_f64;
    for name in FIXTURES {
        let (answerer, tensors) = (load_as(&fixture(name), None, dtype).unwrap(), golden_tensors(name));
        for (index, case) in cases(name).iter().enumerate() {
            let rows = tensors[&format!("{index}.logits")].to_vec2::<f32>().unwrap();
            let found = cosine(&last_logits(&answerer, case), rows.last().unwrap());
            assert!(found >= least, "{name} {index}: cosine {found}");
            found_least = found_least.min(found);
        }
    }
    eprintln!("{dtype:?}: least cosine {found_least}");
}

#[test]
fn f16_logits_point_where_the_reference_does() {
    assert_near_the_reference(DType::F16, 0.9995);
}

/// The weights of the fixtures lie far from zero, so that rounding shows: against its own f32 logits the reference comes
/// to 0.9984 with weights rounded to bf16 and everything else in f32, and to 0.9982 all in bf16. Here it is 0.99915.
#[test]
fn bf16_logits_point_where_the_reference_does() {
    assert_near_the_reference(DType::BF16, 0.999);
}

/// Published weights are stored in bf16, so that nothing is lost of them: what is left is the rounding of the arithmetic.
#[test]
fn bf16_arithmetic_on_weights_stored_in_bf16_points_where_f32_arithmetic_does() {
    for name in ["tied", "tied-2.5"] {
        let dir = copy(name);
        let path = dir.path().join("model.safetensors");
        let stored = candle_core::safetensors::load(&path, &Device::Cpu).unwrap().into_iter();
        let rounded = stored.map(|(name, tensor)| (name, tensor.to_dtype(DType::BF16).unwrap())).collect();
        candle_core::safetensors::save(&rounded, &path).unwrap();
        let [exact, half] = [DType::F32, DType::BF16].map(|dtype| load_as(dir.path(), None, dtype).unwrap());
        for (index, case) in cases(name).iter().enumerate() {
            let found = cosine(&last_logits(&half, case), &last_logits(&exact, case));
            assert!(found >= 0.9995, "{name} {index}: cosine {found}");
        }
    }
}

#[test]
fn half_precision_weights_give_nearly_the_same_judgement() {
    let case = &cases("tied")[0];
    let exact = load(&fixture("tied")).unwrap().judge(&[case.prompt()]).remove(0).unwrap();
    let mut half = load_as(&fixture("tied"), None, DType::BF16).unwrap();
    let rounded = half.judge(&[case.prompt()]).remove(0).unwrap();
    assert!((exact.p_yes - rounded.p_yes).abs() < 0.1, "{} {}", exact.p_yes, rounded.p_yes);
}
