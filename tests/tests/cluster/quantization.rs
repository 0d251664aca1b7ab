//! What quantization does to the answers of the sample's trained model.

use std::path::Path;
use std::sync::Arc;

use thicket_engine::{Answerer, Prompt, Sampling};
use thicket_qwen::{LoadOptions, Quantization, QwenAnswerer};
use thicket_synth::{Benchmark, Sizes, Split, View, render};
use thicket_thi::prompts::PromptSet;

/// Images asked about: each with its own caption and with that of the next person, who is most often a look-alike.
const IMAGES: usize = 160;
/// Images described.
const DESCRIBED: usize = 24;
/// The sample's threshold on p(Yes).
const THRESHOLD: f64 = 0.6;

/// What a model says.
struct Said {
    confirms: Vec<bool>,
    descriptions: Vec<Vec<u32>>,
}

fn ask(quantization: Option<Quantization>) -> Said {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/sample-answer");
    let options = LoadOptions { quantization, ..LoadOptions::reference("sample-answer") };
    let mut answerer = QwenAnswerer::load(&folder, options).expect("the sample's model");
    let prompts = std::fs::read_to_string(folder.join("prompts.toml")).expect("prompts");
    let prompts = PromptSet::parse(&prompts).expect("prompts");
    let benchmark = Benchmark::new(1, Sizes { train: 0, val: 0, ..Sizes::default() }).expect("the sample");
    let views: Vec<View> = benchmark.views(Split::Test).take(IMAGES).collect();
    let other = benchmark.sizes().views;
    let mut questions = Vec::new();
    let mut descriptions = Vec::new();
    for (index, view) in views.iter().enumerate() {
        let picture = Arc::new(render(view));
        for asked in [view, &views[(index + other) % views.len()]] {
            let text = prompts.locate(&asked.captions[0].1.text).expect("a prompt");
            questions.push(Prompt::new(Some(picture.clone()), text));
        }
        if index < DESCRIBED {
            descriptions.push(Prompt::new(Some(picture), prompts.describe().expect("a prompt")));
        }
    }
    let greedy = Sampling { max_tokens: 160, temperature: 0.0, seed: 0 };
    let confirms = answerer.judge(&questions).into_iter().map(|verdict| verdict.unwrap().p_yes > THRESHOLD);
    let confirms = confirms.collect();
    let descriptions = answerer.generate(&descriptions, &greedy);
    Said { confirms, descriptions: descriptions.into_iter().map(|answer| answer.unwrap().tokens).collect() }
}

fn share_of_equal<T: PartialEq>(pairs: impl Iterator<Item = (T, T)>) -> f64 {
    let equal: Vec<bool> = pairs.map(|(a, b)| a == b).collect();
    equal.iter().filter(|&&equal| equal).count() as f64 / equal.len() as f64
}

/// Shares of equal decisions and of equal tokens, place by place; a description that is longer counts as different
/// there.
fn agreement(a: &Said, b: &Said) -> (f64, f64) {
    let decisions = share_of_equal(a.confirms.iter().zip(&b.confirms));
    let tokens = a.descriptions.iter().zip(&b.descriptions).flat_map(|(a, b)| {
        let length = a.len().max(b.len());
        (0..length).map(|place| (a.get(place), b.get(place)))
    });
    (decisions, share_of_equal(tokens))
}

#[test]
fn eight_bits_leave_nearly_every_answer_and_four_bits_most() {
    let exact = ask(None);
    assert!(exact.confirms.contains(&true) && exact.confirms.contains(&false));
    for (quantization, least_decisions, least_tokens) in
        [(Quantization::Q8, 0.99, 0.99), (Quantization::Q4, 0.94, 0.8)]
    {
        let (decisions, tokens) = agreement(&exact, &ask(Some(quantization)));
        eprintln!("{quantization}: {decisions:.4} of the decisions, {tokens:.4} of the tokens");
        assert!(
            decisions >= least_decisions && tokens >= least_tokens,
            "{quantization}: {decisions} {tokens}"
        );
    }
}
