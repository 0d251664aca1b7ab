//! Many questions at a time, step by step: each gets the answer it gets alone, bit for bit.

use std::{collections::BTreeMap, sync::Arc};

use image::RgbImage;
use rand::{Rng, SeedableRng, rngs::StdRng};
use thicket_engine::{Answer, Answerer, Ask, EngineError, Kind, Prompt, Question, Ticket};
use thicket_qwen::{Budgets, LoadOptions, QwenAnswerer};

use crate::common::{FIXTURES, cases, copy, edit_json, fixture, greedy};

fn load(name: &str, budgets: Budgets) -> QwenAnswerer {
    QwenAnswerer::load(&fixture(name), LoadOptions { budgets, ..LoadOptions::reference("fixture") }).unwrap()
}

/// Budgets so small that prompts are cut into chunks and questions wait.
fn tight() -> Budgets {
    Budgets { step_tokens: 16, sequences: 5, ..Budgets::default() }
}

/// An answer to the bit.
#[derive(Debug, Clone, PartialEq)]
enum Bits {
    Verdict(u64, u64),
    Text(Vec<u32>),
}

fn bits(answer: Result<Answer, EngineError>) -> Bits {
    match answer.unwrap() {
        Answer::Verdict(verdict) => Bits::Verdict(verdict.p_yes.to_bits(), verdict.mass.to_bits()),
        Answer::Text(generation) => Bits::Text(generation.tokens),
    }
}

fn alone(answerer: &mut QwenAnswerer, question: Question) -> Bits {
    answerer.submit(Ticket(0), question).unwrap();
    loop {
        if let Some((_, answer)) = answerer.step().done.pop() {
            return bits(answer);
        }
    }
}

fn picture(random: &mut StdRng) -> Arc<RgbImage> {
    let (width, height) = (random.random_range(28..120), random.random_range(28..200));
    let noise: u8 = random.random();
    Arc::new(RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x as u8).wrapping_mul(noise), (y as u8) ^ noise, (x * y) as u8])
    }))
}

fn question(random: &mut StdRng, pictures: &[Arc<RgbImage>]) -> Question {
    let words = ["Yes", "a man", "bag", "shoes?", "red", "Describe the person.", "no"];
    let count = random.random_range(1..20);
    let text: Vec<&str> = (0..count).map(|_| words[random.random_range(0..words.len())]).collect();
    let image =
        (random.random_range(0..4) > 0).then(|| pictures[random.random_range(0..pictures.len())].clone());
    let ask = if random.random() { Ask::Judgement } else { Ask::Text(greedy(random.random_range(1..10))) };
    Question::new(Prompt::new(image, text.join(" ")), ask)
}

/// Asks all, a few at a time between steps.
fn mixed(answerer: &mut QwenAnswerer, questions: &[Question], random: &mut StdRng) -> BTreeMap<u64, Bits> {
    let mut answers = BTreeMap::new();
    let mut next = 0;
    while answers.len() < questions.len() {
        for _ in 0..random.random_range(0..6) {
            if let Some(question) = questions.get(next) {
                answerer.submit(Ticket(next as u64), question.clone()).unwrap();
                next += 1;
            }
        }
        let done = answerer.step().done;
        answers.extend(done.into_iter().map(|(Ticket(id), answer)| (id, bits(answer))));
    }
    answers
}

#[test]
fn an_answer_is_the_same_to_the_bit_whatever_is_asked_beside_it_and_whatever_is_cached() {
    for name in FIXTURES {
        for seed in 0..6 {
            let mut random = StdRng::seed_from_u64(seed);
            let pictures: Vec<_> = (0..3).map(|_| picture(&mut random)).collect();
            let questions: Vec<_> = (0..24).map(|_| question(&mut random, &pictures)).collect();
            let uncached =
                Budgets { prefix_bytes: 0, feature_bytes: 0, step_tokens: 4096, ..Budgets::default() };
            let mut reference = load(name, uncached);
            let expected: Vec<Bits> =
                questions.iter().map(|question| alone(&mut reference, question.clone())).collect();
            for budgets in [Budgets::default(), tight(), Budgets { prefix_bytes: 0, ..tight() }] {
                let answers = mixed(&mut load(name, budgets), &questions, &mut random);
                for (index, expected) in expected.iter().enumerate() {
                    assert_eq!(
                        answers[&(index as u64)],
                        *expected,
                        "{name}, seed {seed}, {budgets:?}: {:?}",
                        questions[index]
                    );
                }
            }
        }
    }
}

#[test]
fn the_second_question_about_an_image_finds_its_beginning() {
    let mut answerer = load("tied", Budgets::default());
    let case = cases("tied").remove(0);
    answerer.judge(&[case.prompt()]).remove(0).unwrap();
    let first = answerer.load();
    assert_eq!((first.prefix_hits, first.prefix_misses), (0, 1));
    assert!(first.prefix_bytes > 0);
    let ask = Question::new(Prompt { text: "Another?".to_owned(), ..case.prompt() }, Ask::Judgement);
    answerer.submit(Ticket(1), ask).unwrap();
    let progress = answerer.step();
    assert_eq!(progress.done.len(), 1);
    assert!(progress.prompt_tokens < case.tokens.len() / 2, "only the question is run: {progress:?}");
    assert_eq!((answerer.load().prefix_hits, answerer.load().prefix_misses), (1, 1));
}

#[test]
fn questions_about_one_image_that_arrive_together_run_its_beginning_once() {
    let mut answerer = load("tied", Budgets::default());
    let case = cases("tied").remove(0);
    answerer.judge(&vec![case.prompt(); 5]).into_iter().for_each(|verdict| _ = verdict.unwrap());
    let load = answerer.load();
    assert_eq!((load.prefix_hits, load.prefix_misses), (4, 1));
}

#[test]
fn what_is_kept_of_images_stays_within_its_budget() {
    let case = cases("tied").remove(0);
    let mut answerer = load("tied", Budgets::default());
    answerer.judge(&[case.prompt()]).remove(0).unwrap();
    let one = answerer.load().prefix_bytes;
    let budget = one * 5 / 2;
    let mut answerer = load("tied", Budgets { prefix_bytes: budget, ..Budgets::default() });
    let (width, height) = case.image().unwrap().dimensions();
    for shade in 0..6 {
        let image = Arc::new(RgbImage::from_pixel(width, height, image::Rgb([shade; 3])));
        answerer.judge(&[Prompt::new(Some(image), "Yes?")]).remove(0).unwrap();
        assert!(answerer.load().prefix_bytes <= budget);
    }
    assert_eq!(answerer.load().prefix_bytes, 2 * one);
}

#[test]
fn judgements_that_arrive_while_a_long_text_is_written_are_answered_before_it_in_one_step_each() {
    let mut answerer = load("tied", Budgets::default());
    let case = cases("tied").remove(0);
    let long = Question::new(case.prompt(), Ask::Text(greedy(40)));
    answerer.submit(Ticket(0), long).unwrap();
    answerer.step();
    for id in 1..=20 {
        answerer.submit(Ticket(id), Question::new(case.prompt(), Ask::Judgement)).unwrap();
        let done: Vec<Ticket> = answerer.step().done.into_iter().map(|(ticket, _)| ticket).collect();
        assert_eq!(done, [Ticket(id)]);
    }
    assert_eq!(answerer.load().running, 1, "the text goes on");
}

#[test]
fn a_prompt_longer_than_a_step_does_not_hold_up_a_judgement() {
    let mut answerer = load("tied", Budgets { step_tokens: 64, ..Budgets::default() });
    let long = Prompt::new(None, "Yes ".repeat(80));
    let long = Question { kind: Kind::Aggregate, ..Question::new(long, Ask::Text(greedy(2))) };
    answerer.submit(Ticket(0), long).unwrap();
    assert!(answerer.step().done.is_empty());
    let short = Question::new(Prompt::new(None, "Yes?"), Ask::Judgement);
    answerer.submit(Ticket(1), short).unwrap();
    let progress = answerer.step();
    assert_eq!(progress.done.len(), 1, "{progress:?}");
    assert!(progress.prompt_tokens <= 64);
    assert_eq!(answerer.load().running, 1);
}

#[test]
fn a_cancelled_question_frees_its_place_at_once() {
    let mut answerer = load("tied", Budgets::default());
    let case = cases("tied").remove(0);
    answerer.submit(Ticket(0), Question::new(case.prompt(), Ask::Text(greedy(40)))).unwrap();
    answerer.step();
    assert!(answerer.load().cache_tokens > 0);
    answerer.cancel(Ticket(0));
    assert!(answerer.load().is_idle());
    assert_eq!(answerer.load().cache_tokens, 0);
    assert!(answerer.step().done.is_empty());
}

#[test]
fn a_question_that_the_budget_can_never_hold_is_refused_with_both_numbers() {
    let model = load("tied", Budgets::default());
    let per_token = model.model().language.cache_bytes_per_token();
    let mut answerer = load("tied", Budgets { cache_bytes: 40 * per_token, ..Budgets::default() });
    let case = cases("tied").remove(0);
    let error = answerer.submit(Ticket(0), Question::new(case.prompt(), Ask::Text(greedy(40)))).unwrap_err();
    let line = error.to_string();
    assert!(line.contains("at most 30") && line.contains("key-value budget"), "{line}");
    assert!(answerer.load().is_idle());
}

#[test]
fn budgets_that_leave_prompts_no_room_are_refused_when_the_model_is_loaded() {
    let budgets = Budgets { step_tokens: 8, sequences: 5, ..Budgets::default() };
    let options = LoadOptions { budgets, ..LoadOptions::reference("fixture") };
    let error = QwenAnswerer::load(&fixture("tied"), options).unwrap_err().to_string();
    assert!(error.contains("at least 10") && error.contains("got 8"), "{error}");
}

#[test]
fn a_prompt_longer_than_the_blocks_that_products_are_summed_in_is_the_same_in_chunks() {
    let question = || {
        let mut random = StdRng::seed_from_u64(1);
        let image = Some(picture(&mut random));
        Question::new(Prompt::new(image, "Yes no a man ".repeat(90)), Ask::Text(greedy(6)))
    };
    let judge = || Question { ask: Ask::Judgement, kind: Kind::Locate, ..question() };
    let whole = Budgets { step_tokens: 4096, ..Budgets::default() };
    for name in FIXTURES {
        let folder = copy(name);
        edit_json(&folder.path().join("config.json"), |config| {
            let nested = config.get("text_config").is_some();
            let sizes = if nested { &mut config["text_config"] } else { config };
            sizes["max_position_embeddings"] = 2000.into();
        });
        let load = |budgets| {
            let options = LoadOptions { budgets, ..LoadOptions::reference("long") };
            QwenAnswerer::load(folder.path(), options).unwrap()
        };
        let expected = (alone(&mut load(whole), question()), alone(&mut load(whole), judge()));
        for step_tokens in [37, 64, 300] {
            let mut answerer = load(Budgets { step_tokens, sequences: 4, ..Budgets::default() });
            let answers = (alone(&mut answerer, question()), alone(&mut answerer, judge()));
            assert_eq!(answers, expected, "{name}, {step_tokens}");
        }
    }
}
