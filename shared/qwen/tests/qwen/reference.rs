//! Equality with the Python reference on small random checkpoints.

use crate::common::{FIXTURES, assert_close, cases, fixture, golden_tensors, greedy, load};
use candle_core::{DType, Device, Tensor};
use thicket_engine::{Answerer, Finish};
use thicket_qwen::{Mask, batch_patches};

#[test]
fn pixel_patches_equal_the_reference() {
    for name in FIXTURES {
        let (answerer, tensors) = (load(&fixture(name)).unwrap(), golden_tensors(name));
        for (index, case) in cases(name).iter().enumerate() {
            let Some(image) = case.image() else { continue };
            let patches = answerer.processor().patches(&image).unwrap();
            assert_eq!(Some(patches.grid), case.grid, "{name} {index}");
            let (actual, _) = batch_patches(&[&patches], DType::F32, &Device::Cpu).unwrap();
            assert_close(&format!("{name} {index}"), &actual, &tensors[&format!("{index}.patches")], 1e-6);
        }
    }
}

#[test]
fn tokens_and_positions_of_prompts_equal_the_reference() {
    for name in FIXTURES {
        let answerer = load(&fixture(name)).unwrap();
        for case in cases(name) {
            let grid = case
                .image()
                .map(|image| answerer.processor().token_grid(image.width(), image.height()).unwrap());
            let encoded = answerer.encoder().encode(&case.text, grid).unwrap();
            assert_eq!(encoded.tokens, case.tokens, "{name}: {}", case.text);
            assert_eq!(encoded.positions, case.positions, "{name}: {}", case.text);
        }
    }
}

#[test]
fn vision_tokens_equal_the_reference() {
    for name in FIXTURES {
        let (answerer, tensors) = (load(&fixture(name)).unwrap(), golden_tensors(name));
        for (index, case) in cases(name).iter().enumerate() {
            let Some(grid) = case.grid else { continue };
            let patches = &tensors[&format!("{index}.patches")];
            let features = answerer.model().vision.forward(patches, &[grid]).unwrap();
            assert_close(&format!("{name} {index}"), &features, &tensors[&format!("{index}.features")], 1e-4);
        }
    }
}

#[test]
fn several_images_at_once_equal_the_reference() {
    for name in FIXTURES {
        let (answerer, tensors) = (load(&fixture(name)).unwrap(), golden_tensors(name));
        let grids: Vec<_> = cases(name).iter().filter_map(|case| case.grid).collect();
        let order = [0, 1, 1, 0];
        let pick = |what: &str| {
            let parts: Vec<&Tensor> = order.iter().map(|i| &tensors[&format!("{i}.{what}")]).collect();
            Tensor::cat(&parts, 0).unwrap()
        };
        let features = answerer.model().vision.forward(&pick("patches"), &order.map(|i| grids[i])).unwrap();
        assert_close(name, &features, &pick("features"), 1e-4);
    }
}

#[test]
fn logits_of_every_prompt_token_equal_the_reference() {
    for name in FIXTURES {
        let (answerer, tensors) = (load(&fixture(name)).unwrap(), golden_tensors(name));
        for (index, case) in cases(name).iter().enumerate() {
            let images: Vec<&Tensor> = tensors.get(&format!("{index}.features")).into_iter().collect();
            let model = answerer.model();
            let embeddings = model.embed(&case.tokens, &images).unwrap().unsqueeze(0).unwrap();
            let hidden = model.language.forward_dense(&embeddings, &case.positions, &Mask::Causal).unwrap();
            let logits = model.language.logits(&hidden.squeeze(0).unwrap()).unwrap();
            assert_close(&format!("{name} {index}"), &logits, &tensors[&format!("{index}.logits")], 1e-4);
        }
    }
}

#[test]
fn greedy_answers_equal_the_reference() {
    for name in FIXTURES {
        let mut answerer = load(&fixture(name)).unwrap();
        for case in cases(name) {
            let answer =
                answerer.generate(&[case.prompt()], &greedy(case.generated.len())).remove(0).unwrap();
            assert_eq!(answer.tokens, case.generated, "{name}: {}", case.text);
            assert_eq!(answer.text, case.generated_text, "{name}: {}", case.text);
            assert_eq!(answer.prompt_tokens, case.tokens.len());
            assert_eq!(answer.finish, Finish::Length);
        }
    }
}

#[test]
fn judgements_equal_those_of_the_reference_logits() {
    for name in FIXTURES {
        let (mut answerer, tensors) = (load(&fixture(name)).unwrap(), golden_tensors(name));
        let words = |words: &[&str]| -> Vec<usize> {
            let tokenize = |word: &&str| answerer.encoder().tokenize(word).unwrap();
            let tokens = words.iter().map(tokenize);
            tokens.filter(|tokens| tokens.len() == 1).map(|tokens| tokens[0] as usize).collect()
        };
        let yes = words(&["Yes", "yes", "YES", " Yes", " yes", " YES"]);
        let no = words(&["No", "no", "NO", " No", " no", " NO"]);
        assert!(!yes.is_empty() && !no.is_empty());
        for (index, case) in cases(name).iter().enumerate() {
            let logits = tensors[&format!("{index}.logits")].to_vec2::<f32>().unwrap();
            let weights: Vec<f64> =
                logits.last().unwrap().iter().map(|&logit| f64::from(logit).exp()).collect();
            let sum = |ids: &[usize]| ids.iter().map(|&id| weights[id]).sum::<f64>();
            let verdict = answerer.judge(&[case.prompt()]).remove(0).unwrap();
            assert!((verdict.p_yes - sum(&yes) / (sum(&yes) + sum(&no))).abs() < 1e-4, "{name} {index}");
            let mass = (sum(&yes) + sum(&no)) / weights.iter().sum::<f64>();
            assert!((verdict.mass - mass).abs() < 1e-4, "{name} {index}");
            assert_eq!(verdict.prompt_tokens, case.tokens.len());
        }
    }
}
