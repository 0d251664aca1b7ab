//! A prompt's answer depends on nothing but the prompt.

use crate::common::{FIXTURES, assert_close, cases, copy, edit_json, fixture, golden_tensors, greedy, load};
use candle_core::{Device, Tensor};
use thicket_engine::{Answerer, Finish, Prompt, Sampling};
use thicket_qwen::{Mask, Segment, next_position};

/// More prompts than are decoded side by side, of different lengths, with images that repeat.
fn many_prompts(name: &str) -> Vec<Prompt> {
    let cases = cases(name);
    (0..40)
        .map(|i| {
            let mut prompt = cases[i % cases.len()].prompt();
            prompt.text.push_str(&" Yes".repeat(i % 7));
            prompt
        })
        .collect()
}

#[test]
fn batched_answers_equal_single_answers() {
    for name in FIXTURES {
        let prompts = many_prompts(name);
        let together = load(&fixture(name)).unwrap().generate(&prompts, &greedy(9));
        let mut answerer = load(&fixture(name)).unwrap();
        for (prompt, together) in prompts.iter().zip(together) {
            let alone = answerer.generate(std::slice::from_ref(prompt), &greedy(9)).remove(0).unwrap();
            assert_eq!(together.unwrap().tokens, alone.tokens, "{name}: {}", prompt.text);
        }
    }
}

#[test]
fn batched_judgements_equal_single_judgements() {
    for name in FIXTURES {
        let prompts = many_prompts(name);
        let together = load(&fixture(name)).unwrap().judge(&prompts);
        let mut answerer = load(&fixture(name)).unwrap();
        for (prompt, together) in prompts.iter().zip(together) {
            let alone = answerer.judge(std::slice::from_ref(prompt)).remove(0).unwrap();
            let together = together.unwrap();
            assert!((together.p_yes - alone.p_yes).abs() < 1e-5, "{name}: {}", prompt.text);
            assert!((together.mass - alone.mass).abs() < 1e-5, "{name}: {}", prompt.text);
        }
    }
}

#[test]
fn a_sequence_that_ends_early_leaves_the_others_alone() {
    let cases = cases("untied");
    let dir = copy("untied");
    // The seventh token of the first answer becomes an end mark.
    let mark = cases[0].generated[6];
    edit_json(&dir.path().join("generation_config.json"), |config| config["eos_token_id"] = mark.into());
    let prompts: Vec<_> = cases.iter().map(crate::common::Case::prompt).collect();
    let answers = load(dir.path()).unwrap().generate(&prompts, &greedy(cases[0].generated.len()));
    for (case, answer) in cases.iter().zip(answers) {
        let answer = answer.unwrap();
        let expected: Vec<u32> = case.generated.iter().copied().take_while(|&token| token != mark).collect();
        let ended = expected.len() < case.generated.len();
        assert_eq!(answer.tokens, expected);
        assert_eq!(answer.finish, if ended { Finish::EndOfTurn } else { Finish::Length });
    }
}

#[test]
fn cached_decoding_equals_a_full_recomputation() {
    for name in FIXTURES {
        let (answerer, tensors) = (load(&fixture(name)).unwrap(), golden_tensors(name));
        let (model, case) = (answerer.model(), &cases(name)[0]);
        let tokens = [&case.tokens[..], &case.generated].concat();
        let mut positions = case.positions.clone();
        let next = next_position(&positions);
        positions.extend((next..).take(case.generated.len()).map(|position| [position; 3]));
        let embeddings = model.embed(&tokens, &[&tensors["0.features"]]).unwrap();
        let whole = model
            .language
            .forward_dense(&embeddings.unsqueeze(0).unwrap(), &positions, &Mask::Causal)
            .unwrap()
            .squeeze(0)
            .unwrap();
        // Capacity for less than the prompt: the cache has to grow.
        let mut cache = model.language.new_cache(5).unwrap();
        let mut start = 0;
        let one_by_one = std::iter::repeat_n(1, case.generated.len() - 8);
        for length in [case.tokens.len() - 3, 4, 7].into_iter().chain(one_by_one) {
            let part = embeddings.narrow(0, start, length).unwrap();
            let mut segments = [Segment { tokens: length, cache: Some(&mut cache) }];
            let last = model
                .language
                .forward_ragged(&part, &positions[start..start + length], &mut segments)
                .unwrap();
            start += length;
            assert_close(name, &last, &whole.narrow(0, start - 1, 1).unwrap(), 1e-4);
        }
        assert_eq!((cache.len(), start), (tokens.len(), tokens.len()));
    }
}

#[test]
fn questions_packed_behind_one_image_equal_separate_prompts() {
    let (answerer, tensors) = (load(&fixture("tied")).unwrap(), golden_tensors("tied"));
    let (model, encoder, features) = (answerer.model(), answerer.encoder(), &tensors["0.features"]);
    let (rows, columns) = cases("tied")[0].grid.unwrap();
    let prefix = encoder.image_prefix((rows / 2, columns / 2));
    let prefix_positions = encoder.positions(&prefix, &[(rows / 2, columns / 2)]).unwrap();
    let (mut tokens, mut positions) = (prefix.clone(), prefix_positions.clone());
    let mut sections = vec![0u32; prefix.len()];
    let mut ends = Vec::new();
    for (index, text) in ["Does the person carry a bag?", "Describe the shoes."].iter().enumerate() {
        let question = encoder.question(text).unwrap();
        let start = next_position(&prefix_positions);
        positions.extend((start..).take(question.len()).map(|position| [position; 3]));
        sections.extend(vec![index as u32 + 1; question.len()]);
        let alone = encoder.encode(text, Some((rows / 2, columns / 2))).unwrap();
        assert_eq!(alone.tokens, [&prefix[..], &question].concat());
        tokens.extend(question);
        ends.push((tokens.len() - 1, alone));
    }
    let mask = Mask::Sections(Tensor::new(sections, &Device::Cpu).unwrap().unsqueeze(0).unwrap());
    let embeddings = model.embed(&tokens, &[features]).unwrap().unsqueeze(0).unwrap();
    let packed = model.language.forward_dense(&embeddings, &positions, &mask).unwrap().squeeze(0).unwrap();
    for (end, alone) in ends {
        let embeddings = model.embed(&alone.tokens, &[features]).unwrap();
        let mut segments = [Segment { tokens: alone.tokens.len(), cache: None }];
        let last = model.language.forward_ragged(&embeddings, &alone.positions, &mut segments).unwrap();
        assert_close("packed", &packed.narrow(0, end, 1).unwrap(), &last, 1e-4);
    }
}

#[test]
fn a_seed_fixes_a_sampled_answer_whatever_the_batch() {
    let prompts = many_prompts("tied");
    let sampling = |seed| Sampling { max_tokens: 8, temperature: 1.5, seed };
    let mut answerer = load(&fixture("tied")).unwrap();
    let tokens = |answers: Vec<Result<thicket_engine::Generation, _>>| -> Vec<Vec<u32>> {
        answers.into_iter().map(|answer| answer.unwrap().tokens).collect()
    };
    let first = tokens(answerer.generate(&prompts, &sampling(5)));
    let alone = tokens(answerer.generate(&prompts[3..4], &sampling(5)));
    assert_eq!(alone[0], first[3]);
    let other = tokens(answerer.generate(&prompts, &sampling(6)));
    assert_ne!(first, other);
}
