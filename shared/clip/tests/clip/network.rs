//! Properties of the network itself: batching, padding, gradients, other number types.

use crate::support::{config, floats, folder, golden, ids, largest_difference, load, picture, pixels, row};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use thicket_clip::{ClipEmbedder, Config, EndMark, LoadOptions, TowerConfig, TseConfig, TwoTower};
use thicket_engine::Embedder;

fn small() -> Config {
    Config {
        embed_dim: 24,
        image_size: (24, 16),
        patch: 8,
        stride: 8,
        vision: TowerConfig::published(64, 2, 32),
        vocab_size: 530,
        text_length: 12,
        text: TowerConfig::published(64, 2, 32),
        end_mark: EndMark::Largest,
        tse: Some(TseConfig { dim: 20, hidden: 10, ratio: 0.4 }),
    }
}

fn fresh(config: &Config) -> (VarMap, TwoTower) {
    let variables = VarMap::new();
    let builder = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
    let model = TwoTower::new(config, builder).unwrap();
    (variables, model)
}

fn random(shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu).unwrap()
}

/// Values that are the same in every run, evenly spread over -1 to 1; candle's own generator cannot be seeded.
fn drawn(name: &str, shape: &candle_core::Shape) -> Tensor {
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let values: Vec<f32> = (0..shape.elem_count())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Gives every weight such values, in the sizes of a fresh model.
fn settle(variables: &VarMap) {
    for (name, variable) in variables.data().lock().unwrap().iter() {
        let values = drawn(name, variable.shape());
        let is_scale = variable.rank() == 1 && (name.ends_with("weight") || name.ends_with("running_var"));
        let values = match variable.dims() {
            [_] if is_scale => (values * 0.1).unwrap() + 1.0,
            [_] => values * 0.1,
            dims => values * (3.0 / dims[dims.len() - 1] as f64).sqrt(),
        };
        variable.set(&values.unwrap()).unwrap();
    }
}

#[test]
fn one_by_one_and_in_a_batch_texts_embed_alike() {
    // A short text alone runs without the padding that a long neighbour gives it.
    let embedder = load("published");
    let golden = golden("published");
    let rows: Vec<Vec<u32>> =
        golden["texts"].as_array().unwrap().iter().map(|text| ids(&text["ids"])).collect();
    let batch = Tensor::new(rows.clone(), &Device::Cpu).unwrap();
    let together = embedder.model().encode_text(&batch).unwrap();
    for (index, ids) in rows.into_iter().enumerate() {
        let alone = embedder.model().encode_text(&Tensor::new(vec![ids], &Device::Cpu).unwrap()).unwrap();
        assert!(largest_difference(&row(&together.bge, index), &row(&alone.bge, 0)) < 1e-5);
        let (a, b) = (together.tse.as_ref().unwrap(), alone.tse.as_ref().unwrap());
        assert!(largest_difference(&row(a, index), &row(b, 0)) < 1e-5);
    }
}

#[test]
fn padding_columns_change_nothing() {
    let (_, model) = fresh(&small());
    let padded = Tensor::new(&[[528_u32, 7, 300, 0, 0, 529, 0, 0, 0, 0, 0, 0]], &Device::Cpu).unwrap();
    let bare = padded.narrow(1, 0, 6).unwrap();
    let (padded, bare) = (model.encode_text(&padded).unwrap(), model.encode_text(&bare).unwrap());
    assert_eq!(row(&padded.bge, 0), row(&bare.bge, 0));
    assert_eq!(row(&padded.tse.unwrap(), 0), row(&bare.tse.unwrap(), 0));
}

#[test]
fn what_stands_behind_the_end_mark_is_not_seen() {
    let (_, model) = fresh(&Config { tse: None, ..small() });
    let encode =
        |ids: [u32; 6]| row(&model.encode_text(&Tensor::new(&[ids], &Device::Cpu).unwrap()).unwrap().bge, 0);
    let first = encode([528, 7, 9, 529, 0, 0]);
    let second = encode([528, 7, 9, 529, 44, 0]);
    let third = encode([528, 8, 9, 529, 0, 0]);
    assert!(largest_difference(&first, &second) < 1e-6);
    assert!(largest_difference(&first, &third) > 1e-3);
}

#[test]
fn one_by_one_and_in_a_batch_images_embed_alike() {
    let embedder = load("trained");
    let size = embedder.model().config().image_size;
    let all: Vec<Tensor> =
        (0..3).map(|index| pixels(&picture("trained", &format!("image{index}.png")), size)).collect();
    let together = embedder.model().encode_image(&Tensor::cat(&all, 0).unwrap()).unwrap();
    for (index, pixels) in all.iter().enumerate() {
        let alone = embedder.model().encode_image(pixels).unwrap();
        assert!(largest_difference(&row(&together.bge, index), &row(&alone.bge, 0)) < 1e-5);
        assert!(
            largest_difference(&row(&together.tse.clone().unwrap(), index), &row(&alone.tse.unwrap(), 0))
                < 1e-5
        );
    }
}

#[test]
fn chunks_of_an_embedder_come_back_in_order() {
    let mut embedder = load("trained");
    let texts: Vec<String> =
        (0..150).map(|index| "red hat ".repeat(1 + index % 7) + &index.to_string()).collect();
    let together = embedder.embed_texts(&texts).unwrap();
    for index in [0, 1, 63, 64, 149] {
        let alone = embedder.embed_texts(&texts[index..=index]).unwrap();
        assert!(largest_difference(&together[index], &alone[0]) < 1e-5, "text {index}");
    }
}

#[test]
fn a_fresh_model_passes_gradients_to_every_weight_but_the_running_statistics() {
    for stride in [8, 5] {
        let (variables, model) = fresh(&Config { stride, ..small() });
        let images = model.encode_image(&random((3, 3, 24, 16))).unwrap();
        let ids = Tensor::new(
            &[[528_u32, 5, 300, 301, 302, 529, 0], [528, 5, 529, 0, 0, 0, 0], [528, 1, 2, 3, 4, 5, 529]],
            &Device::Cpu,
        );
        let texts = model.encode_text(&ids.unwrap()).unwrap();
        let loss = [images.bge, images.tse.unwrap(), texts.bge, texts.tse.unwrap()]
            .iter()
            .map(|features| features.sqr().unwrap().sum_all().unwrap())
            .reduce(|a, b| (a + b).unwrap())
            .unwrap();
        let gradients = loss.backward().unwrap();
        for (name, variable) in variables.data().lock().unwrap().iter() {
            let gradient = gradients.get(variable.as_tensor());
            if name.contains("running_") {
                assert!(gradient.is_none(), "{name} must stay as it is");
                continue;
            }
            let gradient = gradient.unwrap_or_else(|| panic!("{name} has no gradient"));
            assert_eq!(gradient.dims(), variable.dims(), "{name}");
            let total = gradient.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(total.is_finite() && total > 0.0, "{name}: {total}");
        }
    }
}

#[test]
fn a_gradient_agrees_with_finite_differences() {
    // The greatest of several values and the rectifier have kinks, on which differences would stumble by chance.
    let (variables, model) = fresh(&small());
    settle(&variables);
    let ids = Tensor::new(&[[528_u32, 5, 300, 301, 302, 529], [528, 5, 529, 0, 0, 0]], &Device::Cpu).unwrap();
    let pixels = drawn("pixels", &(2, 3, 24, 16).into());
    let loss = || {
        let images = model.encode_image(&pixels).unwrap();
        let texts = model.encode_text(&ids).unwrap();
        let bge = (images.bge * texts.bge).unwrap().sum_all().unwrap();
        let tse = (images.tse.unwrap() * texts.tse.unwrap()).unwrap().sum_all().unwrap();
        (bge + tse).unwrap()
    };
    let gradients = loss().backward().unwrap();
    let data = variables.data().lock().unwrap();
    // Weights behind the selection, whose change cannot move the choice of tokens.
    for name in [
        "visul_emb_layer.mlp.layers.0.weight",
        "texual_emb_layer.mlp.bns.0.weight",
        "texual_emb_layer.linear.bias",
    ] {
        let variable = &data[name];
        let direction = drawn("direction", variable.shape());
        let slope = (gradients.get(variable.as_tensor()).unwrap() * &direction).unwrap().sum_all().unwrap();
        let slope = slope.to_scalar::<f32>().unwrap();
        let start = variable.as_tensor().copy().unwrap();
        let step = 1e-3;
        let at = |offset: f64| {
            variable.set(&(&start + (&direction * offset).unwrap()).unwrap()).unwrap();
            loss().to_scalar::<f32>().unwrap()
        };
        let numeric = (at(step) - at(-step)) / (2.0 * step as f32);
        variable.set(&start).unwrap();
        let allowed = 0.02 * slope.abs().max(numeric.abs()) + 2e-2;
        assert!((slope - numeric).abs() < allowed, "{name}: {slope} by backward, {numeric} by differences");
    }
}

/// The least cosine between vectors in a number type and in f32, over the texts and images of a fixture.
fn least_cosine(name: &str, dtype: DType) -> f32 {
    let options = LoadOptions { dtype, ..LoadOptions::reference("half") };
    let (mut reference, mut half) = (load(name), ClipEmbedder::load(&folder(name), options).unwrap());
    let golden = golden(name);
    let entries = |field: &str| golden[field].as_array().unwrap().clone();
    let texts: Vec<String> = entries("texts")
        .iter()
        .map(|text| text["text"].as_str().unwrap().to_owned())
        .filter(|text| !text.is_empty())
        .collect();
    let images: Vec<_> =
        entries("images").iter().map(|image| picture(name, image["file"].as_str().unwrap())).collect();
    let pairs = |embedder: &mut ClipEmbedder| {
        [embedder.embed_texts(&texts).unwrap(), embedder.embed_images(&images).unwrap()].concat()
    };
    let cosine = |(a, b): (&Vec<f32>, &Vec<f32>)| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    pairs(&mut reference).iter().zip(&pairs(&mut half)).map(cosine).fold(1.0, f32::min)
}

#[test]
fn half_precision_stays_close_to_the_reference() {
    for name in ["published", "trained", "irra", "long", "hf-files", "hf-json"] {
        for dtype in [DType::F16, DType::BF16] {
            let least = least_cosine(name, dtype);
            assert!(least >= 0.9995, "{name} {dtype:?}: {least}");
        }
    }
}

#[test]
fn wrong_shapes_and_unknown_ids_are_errors() {
    let (_, model) = fresh(&small());
    assert!(model.encode_image(&random((1, 3, 24, 24))).is_err());
    assert!(model.encode_image(&random((1, 1, 24, 16))).is_err());
    assert!(model.encode_text(&Tensor::new(&[[530_u32, 1]], &Device::Cpu).unwrap()).is_err());
    assert!(model.encode_text(&Tensor::zeros((1, 13), DType::U32, &Device::Cpu).unwrap()).is_err());
    assert!(model.encode_text(&Tensor::zeros((1, 0), DType::U32, &Device::Cpu).unwrap()).is_err());
}

#[test]
fn sizes_are_read_from_the_shapes() {
    let size = &golden("trained")["size"];
    let config = config("trained");
    let expected = |key: &str| usize::try_from(size[key].as_u64().unwrap()).unwrap();
    assert_eq!(config.vision.width, expected("vision_width"));
    assert_eq!(config.vision.layers, expected("vision_layers"));
    assert_eq!(config.text.width, expected("text_width"));
    assert_eq!(config.text.layers, expected("text_layers"));
    assert_eq!(config.embed_dim, expected("embed"));
    assert_eq!((config.patch, config.stride), (expected("patch"), expected("stride")));
    assert_eq!((config.vocab_size, config.text_length), (expected("vocab"), expected("text_length")));
    let ratio = f64::from(floats(&serde_json::json!([size["ratio"]]))[0]);
    let tse = config.tse.unwrap();
    assert_eq!((tse.dim, tse.hidden), (expected("tse"), expected("tse_hidden")));
    assert!((tse.ratio - ratio).abs() < 1e-6);
}
