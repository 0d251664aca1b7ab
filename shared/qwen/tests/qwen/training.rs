//! The dense path as training uses it.

use crate::common::{cases, fixture, golden_tensors};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use thicket_kernels::Backend;
use thicket_qwen::{Config, Mask, QwenModel};

/// Weighted sum of the logits of one prompt with an image.
fn loss(model: &QwenModel, weights: &Tensor) -> Tensor {
    let case = &cases("untied")[0];
    let patches = &golden_tensors("untied")["0.patches"];
    let features = model.vision.forward(patches, &[case.grid.unwrap()]).unwrap();
    let embeddings = model.embed(&case.tokens, &[&features]).unwrap().unsqueeze(0).unwrap();
    let hidden = model.language.forward_dense(&embeddings, &case.positions, &Mask::Causal).unwrap();
    let logits = model.language.logits(&hidden.squeeze(0).unwrap()).unwrap();
    (logits * weights).unwrap().sum_all().unwrap()
}

fn fresh() -> (VarMap, QwenModel, Tensor) {
    let mut config = Config::from_file(&fixture("untied").join("config.json")).unwrap();
    config.initializer_range = 0.2;
    config.vision_config.initializer_range = 0.2;
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
    let model = QwenModel::new(&config, &vb).unwrap();
    let shape = (cases("untied")[0].tokens.len(), config.vocab_size);
    let weights = Tensor::randn(0f32, 0.05, shape, &Device::Cpu).unwrap();
    (variables, model, weights)
}

#[test]
fn every_weight_receives_a_gradient() {
    let (variables, model, weights) = fresh();
    let gradients = loss(&model, &weights).backward().unwrap();
    for (name, variable) in variables.data().lock().unwrap().iter() {
        let gradient = gradients.get(variable).unwrap_or_else(|| panic!("{name} has no gradient"));
        let size = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        // A bias of the keys shifts all scores of a query alike: its gradient is zero but for rounding, except that
        // the rotation makes it differ from key to key.
        assert!(size.is_finite() && size > 0.0, "{name}: {size}");
    }
}

#[test]
fn the_gradient_predicts_the_change_of_the_loss() {
    let (variables, model, weights) = fresh();
    let gradients = loss(&model, &weights).backward().unwrap();
    let mut squared = 0.0;
    for variable in variables.all_vars() {
        let gradient = gradients.get(&variable).unwrap();
        squared += gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    }
    let norm = f64::from(squared.sqrt());
    let step = 2e-3;
    let moved = |distance: f64| {
        for variable in variables.all_vars() {
            let change = (gradients.get(&variable).unwrap() * (distance / norm)).unwrap();
            variable.set(&(variable.as_tensor() + change).unwrap()).unwrap();
        }
        f64::from(loss(&model, &weights).to_scalar::<f32>().unwrap())
    };
    let (ahead, behind) = (moved(step), moved(-2.0 * step));
    let slope = (ahead - behind) / (2.0 * step);
    assert!((slope / norm - 1.0).abs() < 0.02, "slope {slope}, gradient {norm}");
}

#[test]
fn fresh_weights_have_the_published_names_and_load_back_equal() {
    let (variables, model, weights) = fresh();
    let dir = tempfile::tempdir().unwrap();
    variables.save(dir.path().join("model.safetensors")).unwrap();
    std::fs::write(dir.path().join("config.json"), model.config().to_json().to_string()).unwrap();
    let (loaded, _) =
        QwenModel::load(dir.path(), None, None, DType::F32, &Device::Cpu, Backend::Plain).unwrap();
    assert_eq!(loaded.config(), model.config());
    // Up to rounding: what is loaded multiplies in the order of inference.
    let value = |model| loss(model, &weights).to_scalar::<f32>().unwrap();
    let (loaded, fresh) = (value(&loaded), value(&model));
    assert!((loaded - fresh).abs() <= 1e-5 * fresh.abs(), "{loaded} for {fresh}");
    assert!(variables.data().lock().unwrap().contains_key("visual.blocks.2.attn.qkv.weight"));
    assert!(variables.data().lock().unwrap().contains_key("model.layers.1.self_attn.k_proj.bias"));
}
