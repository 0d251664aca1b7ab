//! The page as a whole, from made-up data. With `THICKET_REPORT_OUT` set, the example page is written there to be
//! looked at.

use std::collections::BTreeMap;
use std::io::Cursor;

use image::{ImageFormat, Rgb, RgbImage};
use thicket_evaluation::{Difference, Differences, Histogram, Metrics};
use thicket_report::{
    Control, Example, Exchange, Fact, Image, MAX_PAGE_BYTES, Questions, Ranked, Report, ReportError, Stage,
    render,
};
use thicket_thi::{Answer, Outcome, Settings};

/// A figure in coloured clothes.
fn figure(number: u8) -> Image {
    let coat = [[178, 52, 44], [46, 84, 160], [60, 120, 70], [200, 170, 60], [110, 70, 140]]
        [usize::from(number) % 5];
    let legs = [[40, 44, 60], [90, 80, 70], [30, 60, 110]][usize::from(number) % 3];
    let ground = 150 + number * 3;
    let picture = RgbImage::from_fn(84, 168, |x, y| {
        let (dx, head) = (x.abs_diff(42), (x.abs_diff(42).pow(2) + y.abs_diff(28).pow(2)) < 150);
        match y {
            _ if head => Rgb([205, 165, 135]),
            42..92 if dx < 19 - (y - 42) / 12 => Rgb(coat),
            92..150 if (3..13).contains(&dx) => Rgb(legs),
            150..156 if (3..16).contains(&dx) => Rgb([25, 25, 25]),
            110.. => Rgb([ground - 20, ground - 25, ground - 30]),
            _ => Rgb([ground, ground.saturating_add(8), ground.saturating_add(14)]),
        }
    });
    let mut bytes = Vec::new();
    picture.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Jpeg).unwrap();
    Image {
        bytes,
        width: 84,
        height: 168,
        alt: format!("Made-up person {}, view {}", number / 4, number % 4),
    }
}

fn ranked(numbers: &[u8], right: u8) -> Vec<Ranked> {
    (0..)
        .zip(numbers)
        .map(|(place, number)| Ranked {
            image: format!("image-{number:02}"),
            right: number / 4 == right,
            score: 0.613 - place as f32 * 0.017,
        })
        .collect()
}

fn exchange(round: usize, image: u8, right: u8, answer: Answer, p_yes: f64) -> Exchange {
    Exchange {
        round,
        image: format!("image-{image:02}"),
        right: image / 4 == right,
        question: "Is the pedestrian in this image the one that the text describes?".into(),
        answer,
        p_yes,
    }
}

fn report() -> Report {
    let change = |mean, low, high| Difference { mean, low, high };
    let attributes = [
        "A man.",
        "Short black hair.",
        "A dark green coat with long sleeves.",
        "Grey trousers, full length.",
        "No pattern.",
        "Black shoes.",
        "No glasses.",
        "",
        "A red bag in the left hand.",
        "No backpack.",
        "No hat.",
    ]
    .map(str::to_owned);
    Report {
        title: "The built-in sample, without and with interaction".into(),
        data: "Every person and every picture here is drawn by a program; nobody in them exists. The models never saw these people in training.".into(),
        command: "thicket demo --out report".into(),
        queries: 1240,
        gallery: 1240,
        identities: 310,
        settings: Settings::new(5, 0.5312, 0.8, 0.62).unwrap(),
        baseline: Metrics { rank1: 49.35, rank5: 78.87, rank10: 87.9, map: 51.24, minp: 31.02 },
        thi: Metrics { rank1: 55.16, rank5: 79.19, rank10: 87.66, map: 54.11, minp: 32.45 },
        differences: Differences {
            rank1: change(5.81, 4.1, 7.6),
            rank5: change(0.32, -0.6, 1.2),
            rank10: change(-0.24, -0.9, 0.4),
            map: change(2.87, 2.1, 3.6),
            minp: change(1.43, 0.8, 2.1),
        },
        control: Some(Control {
            description: "every answer was given to another query; the gain must disappear.".into(),
            metrics: Metrics { rank1: 46.9, rank5: 78.1, rank10: 87.3, map: 50.1, minp: 30.6 },
            differences: Differences {
                rank1: change(-2.42, -3.6, -1.2),
                rank5: change(-0.8, -1.5, 0.0),
                rank10: change(-0.6, -1.1, -0.1),
                map: change(-1.1, -1.7, -0.6),
                minp: change(-0.4, -0.8, 0.1),
            },
        }),
        questions: Questions { locate: 2417, locate_round_by_round: 4390, describe: 388, aggregate: 452, unusable: 3 },
        outcomes: [("refined in round 1", "214"), ("refined later", "238"), ("first match rejected", "301"),
                   ("weak first match accepted", "192"), ("nobody confirmed", "295")]
            .map(|(name, value)| Fact { name: name.into(), value: value.into() })
            .to_vec(),
        seconds: [("embed the gallery", 9.4), ("embed the queries", 3.1), ("search", 0.21), ("ask", 61.7),
                  ("describe", 33.0), ("rewrite and search again", 18.2)]
            .map(|(name, seconds)| Stage { name: name.into(), seconds })
            .to_vec(),
        map_by_round: vec![51.24, 52.6, 53.4, 53.8, 54.0, 54.11],
        top1_right: Histogram { low: 0.28, high: 0.74, counts: vec![1, 3, 8, 15, 28, 44, 61, 77, 90, 96, 84, 60, 31, 12, 4, 2] },
        top1_wrong: Histogram { low: 0.28, high: 0.74, counts: vec![4, 12, 30, 52, 78, 96, 101, 90, 66, 48, 27, 14, 6, 2, 0, 0] },
        examples: vec![
            Example {
                heading: "A weak match, found in round 3".into(),
                query: "A man in a dark coat who carries something red, maybe a bag.".into(),
                exchanges: vec![
                    exchange(1, 0, 2, Answer::No, 0.21),
                    exchange(2, 4, 2, Answer::Unusable, 0.48),
                    exchange(3, 8, 2, Answer::Yes, 0.87),
                ],
                outcome: Outcome::Refined { round: 3, anchor: "image-08".into() },
                attributes: attributes.to_vec(),
                refined: Some("A man with short black hair in a dark green long-sleeved coat, grey trousers and black shoes carries a red bag in his left hand.".into()),
                before: ranked(&[0, 4, 8, 1, 12, 5, 9, 13, 16, 2], 2),
                after: ranked(&[8, 9, 10, 0, 4, 1, 11, 12, 5, 13], 2),
                first_match_before: 3,
                first_match_after: 1,
            },
            Example {
                heading: "A close match that was rejected".into(),
                query: "She wears a yellow jacket <b>and</b> blue trousers & white shoes.".into(),
                exchanges: vec![exchange(1, 3, 4, Answer::No, 0.34)],
                outcome: Outcome::HighRejected,
                attributes: vec![],
                refined: None,
                before: ranked(&[3, 16, 17, 6, 7, 10, 18, 14, 1, 19], 4),
                after: ranked(&[3, 16, 17, 6, 7, 10, 18, 14, 1, 19], 4),
                first_match_before: 2,
                first_match_after: 2,
            },
        ],
        images: (0..20).map(|number| (format!("image-{number:02}"), figure(number))).collect(),
        facts: [("Seed", "7"), ("Embedding model", "sample-rde, 1.3 M parameters, fingerprint 5f0c…"),
                ("Answer model", "sample-qwen2-vl, 2.1 M parameters"), ("Machine", "2 CPU cores")]
            .map(|(name, value)| Fact { name: name.into(), value: value.into() })
            .to_vec(),
    }
}

#[test]
fn the_page_is_complete_in_itself_and_small() {
    let page = render(&report()).unwrap();
    assert!(page.len() < MAX_PAGE_BYTES);
    assert!(page.trim_start().starts_with("<!DOCTYPE html>"));
    assert_eq!(page.matches("data:image/jpeg;base64,").count(), 20);
    for outside in ["http://", "https://", "<script", "<link", "url(h", "@import"] {
        assert!(!page.contains(outside), "{outside}");
    }
    if let Ok(file) = std::env::var("THICKET_REPORT_OUT") {
        std::fs::write(file, &page).unwrap();
    }
}

#[test]
fn every_number_of_the_table_is_shown_with_its_interval() {
    let page = render(&report()).unwrap();
    for number in ["49.35", "55.16", "+5.8", "+4.1 to +7.6", "\u{2212}0.2", "46.90", "2,417", "4,390", "45 %"]
    {
        assert!(page.contains(number), "{number}");
    }
}

#[test]
fn a_difference_within_chance_is_not_called_a_gain() {
    let mut report = report();
    report.differences.rank1 = Difference { mean: 1.0, low: -0.5, high: 2.5 };
    let page = render(&report).unwrap();
    assert!(page.contains("<p class=\"note unclear\">+1.0 points, within chance</p>"));
}

#[test]
fn texts_of_users_and_models_are_escaped() {
    let mut report = report();
    let evil = "<script>alert('x')</script>\" onload=\"alert(1)";
    report.title = evil.into();
    report.examples[0].query = evil.into();
    report.examples[0].attributes = vec![evil.into()];
    report.examples[0].refined = Some(evil.into());
    report.examples[0].exchanges[0].question = evil.into();
    report.images.get_mut("image-00").unwrap().alt = evil.into();
    report.facts[0].value = evil.into();
    let page = render(&report).unwrap();
    assert!(!page.contains("<script"));
    assert!(!page.contains("\" onload=\""));
    assert!(page.matches("&lt;script&gt;").count() >= 7);
}

#[test]
fn right_and_wrong_are_told_by_a_mark_and_in_words_too() {
    let page = render(&report()).unwrap();
    let (right, wrong) =
        (page.matches("; the person searched for\"").count(), page.matches("; somebody else\"").count());
    assert_eq!(page.matches("aria-hidden=\"true\">✓</span>").count(), right);
    assert_eq!(page.matches("aria-hidden=\"true\">✗</span>").count(), wrong);
    assert_eq!((right, wrong), (1 + 2 + 4 + 4 + 4, 2 + 8 + 6 + 1 + 6 + 6));
}

#[test]
fn every_picture_has_an_alternative_text() {
    let page = render(&report()).unwrap();
    assert_eq!(page.matches("role=\"img\"").count(), page.matches("role=\"img\" aria-label=\"").count());
    assert!(page.contains("<html lang=\"en\">"));
}

#[test]
fn a_report_without_examples_control_or_stages_is_a_page_too() {
    let report = Report {
        examples: vec![],
        control: None,
        seconds: vec![],
        outcomes: vec![],
        images: BTreeMap::new(),
        map_by_round: vec![f64::NAN],
        questions: Questions::default(),
        ..report()
    };
    let page = render(&report).unwrap();
    assert!(!page.contains("id=\"examples\"") && !page.contains("Control"));
}

#[test]
fn an_image_that_is_none_is_refused() {
    let mut unknown = report();
    unknown.examples[1].after[0].image = "nowhere".into();
    assert_eq!(render(&unknown), Err(ReportError::UnknownImage { example: 1, image: "nowhere".into() }));

    let mut text = report();
    text.images.get_mut("image-03").unwrap().bytes = b"<svg/>".to_vec();
    assert_eq!(render(&text), Err(ReportError::ImageFormat { image: "image-03".into() }));

    let mut flat = report();
    flat.images.get_mut("image-03").unwrap().height = 0;
    assert!(matches!(render(&flat), Err(ReportError::ImageSize { height: 0, .. })));
}

#[test]
fn histograms_with_different_bins_are_refused() {
    let mut report = report();
    report.top1_wrong.counts.pop();
    assert_eq!(render(&report), Err(ReportError::Bins { right: 16, wrong: 15 }));
}

#[test]
fn a_page_too_large_to_send_is_refused() {
    let mut report = report();
    report.images.get_mut("image-00").unwrap().bytes.resize(MAX_PAGE_BYTES, 0);
    assert!(matches!(render(&report), Err(ReportError::TooLarge { .. })));
}
