use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, UndefinedBehavior, context};
use serde::Serialize;
use thicket_evaluation::Metric;
use thicket_thi::Outcome;

use crate::chart;
use crate::{Example, Report};

/// Largest page that is written, bytes: it should open on a phone and fit an e-mail.
pub const MAX_PAGE_BYTES: usize = 3 << 20;

const TEMPLATE_NAME: &str = "report.html";
const TEMPLATE: &str = include_str!("report.html");
const STYLE: &str = include_str!("report.css");

/// A report that cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// An example names an image that the report does not have.
    #[error("example {example} names image {image:?}, which the report does not have")]
    UnknownImage {
        /// The example, from 0.
        example: usize,
        /// The name.
        image: String,
    },
    /// An image is of no kind that every browser shows.
    #[error("image {image:?} is neither JPEG nor PNG nor WebP")]
    ImageFormat {
        /// Its name.
        image: String,
    },
    /// An image without an area.
    #[error("image {image:?} is {width} x {height} pixels")]
    ImageSize {
        /// Its name.
        image: String,
        /// Width given.
        width: u32,
        /// Height given.
        height: u32,
    },
    /// The two histograms do not have the same bins.
    #[error(
        "the histogram of right results has {right} bins, that of wrong ones {wrong}, or their ranges differ"
    )]
    Bins {
        /// Bins of the one.
        right: usize,
        /// Bins of the other.
        wrong: usize,
    },
    /// The page is too large; show fewer or smaller images.
    #[error("the page has {actual} bytes, more than the limit of {limit}")]
    TooLarge {
        /// [`MAX_PAGE_BYTES`].
        limit: usize,
        /// Its size.
        actual: usize,
    },
    /// The template failed.
    #[error("the page cannot be rendered: {reason}")]
    Template {
        /// What is wrong.
        reason: String,
    },
}

/// A row of the table of metrics.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    meaning: &'static str,
    baseline: f64,
    thi: f64,
    mean: f64,
    low: f64,
    high: f64,
    /// `better`, `worse` or `unclear`.
    verdict: &'static str,
    control: Option<ControlCell>,
}

#[derive(Serialize)]
struct ControlCell {
    value: f64,
    mean: f64,
    low: f64,
    high: f64,
}

#[derive(Serialize)]
struct Picture<'a> {
    /// Its element in the page.
    id: String,
    uri: String,
    width: u32,
    height: u32,
    alt: &'a str,
}

/// Renders the page.
///
/// # Errors
/// [`ReportError`] where an image is unknown, undecodable by browsers or without area, the histograms disagree or the
/// page would be larger than [`MAX_PAGE_BYTES`].
pub fn render(report: &Report) -> Result<String, ReportError> {
    check(report)?;
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(template_error)?);
    environment.add_filter("decimals", decimals);
    environment.add_filter("signed", signed);
    environment.add_filter("thousands", thousands);
    environment.add_filter("seconds", seconds);
    environment.add_template(TEMPLATE_NAME, TEMPLATE).map_err(template_error)?;

    let pictures = pictures(report)?;
    let endings: Vec<String> = report.examples.iter().map(ending).collect();
    let page = environment
        .get_template(TEMPLATE_NAME)
        .and_then(|template| {
            template.render(context! {
                report => serde(report),
                rows => serde(rows(report)),
                pictures => serde(&pictures),
                line => serde(chart::line(&report.map_by_round)),
                bars => serde(chart::bars(&report.top1_right, &report.top1_wrong, report.settings.xi().into())),
                saved => saved_percent(report),
                total_seconds => report.seconds.iter().map(|stage| stage.seconds).sum::<f64>(),
                endings => endings,
                style => Value::from_safe_string(STYLE.to_owned()),
            })
        })
        .map_err(template_error)?;
    match page.len() {
        actual if actual > MAX_PAGE_BYTES => Err(ReportError::TooLarge { limit: MAX_PAGE_BYTES, actual }),
        _ => Ok(page),
    }
}

fn pictures(report: &Report) -> Result<BTreeMap<&str, Picture<'_>>, ReportError> {
    let mut pictures = BTreeMap::new();
    for (index, (name, image)) in report.images.iter().enumerate() {
        let kind =
            media_type(&image.bytes).ok_or_else(|| ReportError::ImageFormat { image: name.clone() })?;
        let uri = format!("data:{kind};base64,{}", BASE64.encode(&image.bytes));
        let (width, height) = (image.width, image.height);
        pictures
            .insert(name.as_str(), Picture { id: format!("p{index}"), uri, width, height, alt: &image.alt });
    }
    Ok(pictures)
}

pub(crate) fn serde<T: Serialize>(value: T) -> Value {
    Value::from(Serde(value))
}

fn check(report: &Report) -> Result<(), ReportError> {
    let (right, wrong) = (&report.top1_right, &report.top1_wrong);
    if right.counts.len() != wrong.counts.len() || (right.low, right.high) != (wrong.low, wrong.high) {
        return Err(ReportError::Bins { right: right.counts.len(), wrong: wrong.counts.len() });
    }
    for (name, image) in &report.images {
        if image.width == 0 || image.height == 0 {
            let (width, height) = (image.width, image.height);
            return Err(ReportError::ImageSize { image: name.clone(), width, height });
        }
    }
    for (example, shown) in report.examples.iter().enumerate() {
        if let Some(image) = names(shown).find(|name| !report.images.contains_key(*name)) {
            return Err(ReportError::UnknownImage { example, image: image.to_owned() });
        }
    }
    Ok(())
}

/// Every image an example names.
fn names(example: &Example) -> impl Iterator<Item = &str> {
    let ranked = example.before.iter().chain(&example.after).map(|ranked| ranked.image.as_str());
    let asked = example.exchanges.iter().map(|exchange| exchange.image.as_str());
    let anchor = match &example.outcome {
        Outcome::Refined { anchor, .. } | Outcome::RefinementUnusable { anchor, .. } => Some(anchor.as_str()),
        _ => None,
    };
    ranked.chain(asked).chain(anchor)
}

fn rows(report: &Report) -> Vec<Row> {
    Metric::ALL
        .into_iter()
        .map(|metric| {
            let (name, meaning) = match metric {
                Metric::Rank1 => ("Rank-1", "the first result is right"),
                Metric::Rank5 => ("Rank-5", "one of the first five is right"),
                Metric::Rank10 => ("Rank-10", "one of the first ten is right"),
                Metric::Map => ("mAP", "how high all pictures of the person are, on average"),
                Metric::Minp => ("mINP", "how soon the last picture of the person is found"),
            };
            let difference = report.differences.get(metric);
            let verdict = match difference {
                change if change.low > 0.0 => "better",
                change if change.high < 0.0 => "worse",
                _ => "unclear",
            };
            Row {
                name,
                meaning,
                baseline: report.baseline.get(metric),
                thi: report.thi.get(metric),
                mean: difference.mean,
                low: difference.low,
                high: difference.high,
                verdict,
                control: report.control.as_ref().map(|control| {
                    let change = control.differences.get(metric);
                    let value = control.metrics.get(metric);
                    ControlCell { value, mean: change.mean, low: change.low, high: change.high }
                }),
            }
        })
        .collect()
}

/// How an example ended, as a sentence.
fn ending(example: &Example) -> String {
    match &example.outcome {
        Outcome::Refined { round, .. } => {
            format!(
                "Round {round} confirmed a picture; the description was rewritten from it and searched again."
            )
        }
        Outcome::RefinementUnusable { round, .. } => {
            format!(
                "Round {round} confirmed a picture, but the rewritten text was unusable: the ranking stays."
            )
        }
        Outcome::HighRejected => {
            "A close match was rejected. Such a query is asked once only: the ranking stays.".to_owned()
        }
        Outcome::LowAcceptedFirst => {
            "The first picture was accepted although the match is weak. The method leaves such a query alone."
                .to_owned()
        }
        Outcome::Exhausted => "No picture was confirmed: the ranking stays.".to_owned(),
        Outcome::NoCandidates => "There was no picture to look at.".to_owned(),
    }
}

/// Questions that were not asked, in percent of what a round-by-round script asks.
fn saved_percent(report: &Report) -> f64 {
    let (asked, script) = (report.questions.locate, report.questions.locate_round_by_round);
    match script {
        0 => 0.0,
        _ => 100.0 * (1.0 - asked as f64 / script as f64),
    }
}

/// The kind of an image, by its first bytes.
fn media_type(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some("image/png"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

fn decimals(value: f64, places: usize) -> String {
    if value.is_finite() { format!("{value:.places$}") } else { "n/a".to_owned() }
}

/// With its sign and a true minus; what rounds to nothing has none.
fn signed(value: f64, places: usize) -> String {
    if !value.is_finite() {
        return "n/a".to_owned();
    }
    let size = format!("{:.places$}", value.abs());
    match size.parse::<f64>() {
        Ok(0.0) => size,
        _ if value > 0.0 => format!("+{size}"),
        _ => format!("\u{2212}{size}"),
    }
}

fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

fn seconds(value: f64) -> String {
    match value {
        v if !v.is_finite() => "n/a".to_owned(),
        v if v >= 99.95 => format!("{v:.0} s"),
        v if v >= 0.95 => format!("{v:.1} s"),
        v => format!("{:.0} ms", v * 1e3),
    }
}

pub(crate) fn template_error(error: minijinja::Error) -> ReportError {
    ReportError::Template { reason: format!("{error:#}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(signed(4.93, 1), "+4.9");
        assert_eq!(signed(-0.26, 1), "\u{2212}0.3");
        assert_eq!(signed(-0.01, 1), "0.0");
        assert_eq!(decimals(f64::NAN, 1), "n/a");
        assert_eq!([0, 999, 1000, 1234567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.0123, 1.25, 140.2].map(seconds), ["12 ms", "1.2 s", "140 s"]);
    }

    #[test]
    fn image_kinds_are_read_from_the_bytes() {
        assert_eq!(media_type(&[0xff, 0xd8, 0xff, 0xe0]), Some("image/jpeg"));
        assert_eq!(media_type(b"\x89PNG\r\n\x1a\n..."), Some("image/png"));
        assert_eq!(media_type(b"RIFF....WEBPVP8 "), Some("image/webp"));
        assert_eq!(media_type(b"<svg onload=alert(1)>"), None);
        assert_eq!(media_type(b""), None);
    }
}
