//! Captions, answers and descriptions agree with the ground truth.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use thicket_synth::{
    Appearance, Benchmark, Caption, QUESTION_COUNT, SLOT_COUNT, SLOTS, Sizes, Split, Style, View, Witness,
    answers, describe, merge, numbered, parse_answers, slot, vocabulary, write_caption,
};

fn views() -> Vec<View> {
    let sizes = Sizes { train: 0, val: 0, test: 200, ..Sizes::default() };
    Benchmark::new(11, sizes).expect("allowed sizes").views(Split::Test).collect()
}

fn captions(views: &[View], witness: &Witness) -> Vec<Caption> {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    views.iter().map(|view| write_caption(&mut rng, &view.appearance, witness)).collect()
}

/// Mentions of visible slots other than the gender: how many, how many of them wrong, how many vague.
fn count_mentions<'a>(pairs: impl Iterator<Item = (&'a Caption, &'a Appearance)>) -> (f64, f64, f64) {
    let (mut all, mut wrong, mut vague) = (0.0, 0.0, 0.0);
    for (caption, appearance) in pairs {
        for said in caption.claims.iter().flat_map(|claim| &claim.slots) {
            let implied = said.slot == slot::HAIR_STYLE && said.mask.count_ones() > 2;
            if said.slot == slot::GENDER || implied {
                continue;
            }
            let Some(value) = appearance.seen(said.slot) else { continue };
            all += 1.0;
            wrong += f64::from(u8::from(said.mask >> value & 1 == 0));
            vague += f64::from(u8::from(said.mask.count_ones() > 1));
        }
    }
    (all, wrong, vague)
}

#[test]
fn every_claim_of_a_witness_who_makes_no_errors_is_true_of_the_image() {
    let views = views();
    for style in [Style::Brief, Style::Ordinary, Style::Detailed, Style::Vague] {
        let captions = captions(&views, &Witness::new(style).with_error_rate(0.0));
        for (caption, view) in captions.iter().zip(&views) {
            for claim in &caption.claims {
                assert_eq!(
                    claim.fits(&view.appearance),
                    Some(true),
                    "{} in {}",
                    caption.phrase(claim),
                    caption.text
                );
            }
        }
    }
}

#[test]
fn the_stated_error_rate_is_met() {
    let views = views();
    for rate in [0.06, 0.2, 0.5] {
        let witness = Witness { vagueness: 0.0, ..Witness::new(Style::ErrorProne).with_error_rate(rate) };
        let captions = captions(&views, &witness);
        let (all, wrong, _) = count_mentions(captions.iter().zip(views.iter().map(|view| &view.appearance)));
        let measured = wrong / all;
        // Of about 25,000 mentions the standard deviation is below 0.004.
        assert!((measured - f64::from(rate)).abs() < 0.015, "stated {rate}, measured {measured}");
    }
}

#[test]
fn the_usual_mix_has_about_a_third_vague_and_six_in_a_hundred_wrong() {
    let views = views();
    let pairs = views.iter().flat_map(|view| view.captions.iter().map(|(_, text)| (text, &view.appearance)));
    let (all, wrong, vague) = count_mentions(pairs);
    assert!((0.05..0.08).contains(&(wrong / all)), "wrong {}", wrong / all);
    assert!((0.22..0.36).contains(&(vague / all)), "vague {}", vague / all);
}

#[test]
fn captions_name_between_a_third_and_four_fifths_of_what_is_there() {
    let views = views();
    for (style, least, most) in [(Style::Brief, 0.35, 0.55), (Style::Detailed, 0.62, 0.85)] {
        let witness =
            Witness { vagueness: 0.0, scene: 0.0, absence: 0.0, ..Witness::new(style) }.with_error_rate(0.0);
        let captions = captions(&views, &witness);
        let (mut named, mut there) = (0.0, 0.0);
        for (caption, view) in captions.iter().zip(&views) {
            for (index, slot) in SLOTS.iter().enumerate().take(19).skip(1) {
                let Some(value) = view.appearance.seen(index) else { continue };
                if slot.absent != Some(value) {
                    there += 1.0;
                    named += f64::from(u8::from(caption.allows(index).is_some()));
                }
            }
        }
        let share = named / there;
        assert!((least..most).contains(&share), "{style:?} names {share}");
    }
}

#[test]
fn spans_cover_phrases_in_order_without_overlap() {
    for view in views() {
        for (_, caption) in &view.captions {
            assert!(caption.text.is_ascii());
            assert!(caption.text.ends_with('.'), "{}", caption.text);
            let mut end = 0;
            for claim in &caption.claims {
                assert!(claim.span.start >= end && claim.span.end <= caption.text.len());
                end = claim.span.end;
                let phrase = caption.phrase(claim);
                assert!(!phrase.is_empty() && phrase == phrase.trim(), "{phrase:?}");
                assert!(!claim.slots.is_empty());
            }
        }
    }
}

#[test]
fn every_word_of_every_text_is_in_the_vocabulary() {
    let known = vocabulary();
    let check = |text: &str| {
        for word in text.split_whitespace() {
            let word = word.trim_matches([',', '.']).to_lowercase();
            assert!(known.contains(&word.as_str()) || word.parse::<u8>().is_ok(), "{word:?} of {text:?}");
        }
    };
    for view in views() {
        view.captions.iter().for_each(|(_, caption)| check(&caption.text));
        check(&describe(&view.appearance).text);
        check(&numbered(&answers(&view.appearance)));
    }
}

#[test]
fn a_description_names_every_visible_slot_and_nothing_else() {
    for view in views() {
        let caption = describe(&view.appearance);
        for (index, slot) in SLOTS.iter().enumerate() {
            let expected = view.appearance.seen(index).map(|value| 1 << value);
            assert_eq!(caption.allows(index), expected, "{} in {}", slot.name, caption.text);
        }
        assert!(caption.claims.iter().all(|claim| claim.fits(&view.appearance) == Some(true)));
    }
}

#[test]
fn a_description_fits_the_text_length_of_the_models() {
    for view in views() {
        let text = describe(&view.appearance).text;
        assert!(text.split_whitespace().count() <= 62, "{text}");
        // Words, hyphenated parts and punctuation are a token each at least; 77 less start and end.
        let tokens = text.split([' ', '-']).count() + text.matches([',', '.', '-']).count();
        assert!(tokens <= 75, "{tokens}: {text}");
    }
}

#[test]
fn answers_read_back_give_the_visible_slots() {
    for view in views() {
        let text = numbered(&answers(&view.appearance));
        let expected: Vec<_> = (0..SLOT_COUNT).map(|index| view.appearance.seen(index)).collect();
        assert_eq!(parse_answers(&text).to_vec(), expected, "{text}");
    }
}

/// What the interaction does to a numbered answer before it is merged.
fn post_processed(text: &str) -> Vec<String> {
    let mut made = vec![];
    for line in text.split('\n') {
        if line.contains(':') {
            continue;
        }
        let second = line.split(". ").nth(1).unwrap_or("");
        let second = second.replace("Yes, ", "").replace("No, ", "");
        let mut chars = second.chars();
        let mut sentence: String =
            chars.next().into_iter().flat_map(char::to_uppercase).chain(chars).collect();
        if !sentence.ends_with('.') {
            sentence.push('.');
        }
        made.push(sentence);
    }
    made
}

#[test]
fn answers_survive_post_processing() {
    for view in views() {
        let answers = answers(&view.appearance);
        let expected: Vec<String> = answers.iter().map(|answer| format!("{answer}.")).collect();
        let text = numbered(&answers);
        assert_eq!(post_processed(&text), expected);
        assert_eq!(text.lines().count(), QUESTION_COUNT);
        assert!(text.lines().all(|line| line.matches(". ").count() == 1 && !line.contains(':')), "{text}");
    }
}

fn seen_from_behind_a_hedge() -> (Appearance, Appearance) {
    let view = views().into_iter().find(|view| {
        view.appearance.is_visible(slot::SHOES_TYPE) && view.appearance.seen(slot::BAG) == Some(0)
    });
    let open = view.expect("some view shows shoes and no bag").appearance;
    let mut hidden = open;
    hidden.visible &= !(1 << slot::SHOES_TYPE | 1 << slot::SHOES_COLOUR);
    (open, hidden)
}

#[test]
fn merging_fills_what_the_picture_hides_from_the_caption() {
    let (open, hidden) = seen_from_behind_a_hedge();
    let witness = describe(&open);
    assert_ne!(describe(&hidden).text, witness.text);
    assert_eq!(merge(&witness, &hidden), witness.text);
}

#[test]
fn merging_keeps_vague_words_about_hidden_things() {
    let (open, hidden) = seen_from_behind_a_hedge();
    let witness =
        Witness { coverage: (1.0, 1.0), vagueness: 1.0, ..Witness::new(Style::Vague).with_error_rate(0.0) };
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let caption = write_caption(&mut rng, &open, &witness);
    assert!(merge(&caption, &hidden).contains(" shoes"), "{} + {}", caption.text, merge(&caption, &hidden));
}

#[test]
fn merging_believes_the_picture_where_the_caption_disagrees() {
    let (open, hidden) = seen_from_behind_a_hedge();
    let mut mistaken = open;
    mistaken.values[slot::TOP_COLOUR] = (open.values[slot::TOP_COLOUR] + 1) % 9;
    mistaken.values[slot::BAG] = 1;
    mistaken.visible |= 1 << slot::BAG_COLOUR;
    assert_eq!(merge(&describe(&mistaken), &hidden), describe(&open).text);
}
