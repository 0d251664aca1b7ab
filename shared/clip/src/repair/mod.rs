//! Repair of damaged texts with the results of ftfy 6.3 in Python, which the published models' tokeniser calls first.

mod badness;
mod characters;
mod encoding;
mod encodings;

use std::{borrow::Cow, sync::LazyLock};

use regex::{Captures, Regex};
use unicode_normalization::UnicodeNormalization;

use crate::html;

/// Longest line that is looked at as a whole, in characters.
const LONGEST_SEGMENT: usize = 1_000_000;
/// Most times that a line is repaired. ftfy goes on until nothing changes, which takes quadratic time where references are
/// nested (`&amp;amp;amp;...`); no text of any use is nested so deeply.
const MOST_ROUNDS: usize = 64;

static REFERENCE: LazyLock<Regex> = LazyLock::new(|| pattern("&#?[0-9A-Za-z]{1,24};"));
/// Sequences that colour a terminal.
static TERMINAL: LazyLock<Regex> = LazyLock::new(|| pattern(r"\x1b\[[\d;]*[a-zA-Z]"));

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a constant pattern")
}

/// Undoes wrong decodings and resolves HTML references; straightens quotes, ligatures, wide characters and line breaks;
/// removes controls; composes what can be composed.
pub(crate) fn fix_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // From the first line with a tag on, references are left to whoever reads the tags.
    let mut has_tags = false;
    for segment in segments(text) {
        has_tags |= segment.contains('<');
        out.push_str(&fix_segment(segment, !has_tags));
    }
    out
}

/// Lines with their ends, cut where they are very long.
fn segments(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').flat_map(|line| {
        let mut rest = line;
        std::iter::from_fn(move || {
            let end = rest.char_indices().nth(LONGEST_SEGMENT).map_or(rest.len(), |(end, _)| end);
            let (segment, after) = rest.split_at(end);
            rest = after;
            (!segment.is_empty()).then_some(segment)
        })
    })
}

/// Repeats all steps until none of them changes anything, or [`MOST_ROUNDS`] are done.
fn fix_segment(segment: &str, unescapes: bool) -> String {
    let mut text = segment.to_owned();
    for _ in 0..MOST_ROUNDS {
        let unescaped = if unescapes { unescape(&text) } else { Cow::Borrowed(text.as_str()) };
        let decoded = encoding::fix_encoding(&unescaped);
        let decoded = encoding::without_c1_controls(&decoded);
        let spelled = respelled(&decoded);
        let broken = spelled.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}', '\u{85}'], "\n");
        let visible = TERMINAL.replace_all(&broken, "").replace(is_control, "");
        let fixed: String = visible.nfc().collect();
        if fixed == text {
            break;
        }
        text = fixed;
    }
    text
}

/// References with a semicolon at their end, those in capitals included.
fn unescape(text: &str) -> Cow<'_, str> {
    REFERENCE.replace_all(text, |found: &Captures<'_>| {
        let reference = &found[0];
        let resolved = match reference.strip_prefix("&#") {
            Some(_) => Some(html::unescape(reference)).filter(|resolved| !resolved.contains(';')),
            None => html::named_reference(&reference[1..reference.len() - 1]),
        };
        resolved.unwrap_or_else(|| reference.to_owned())
    })
}

/// Ligatures taken apart, wide and narrow characters at their usual width, quotes straight.
fn respelled(text: &str) -> String {
    let mut wide = String::with_capacity(text.len());
    for character in text.chars() {
        match ligature(character) {
            Some(letters) => wide.push_str(letters),
            None => wide.push(character),
        }
    }
    let mut out = String::with_capacity(wide.len());
    for character in wide.chars() {
        match character {
            '\u{3000}' => out.push(' '),
            '\u{ff01}'..='\u{ffef}' => out.extend(std::iter::once(character).nfkc().map(straight)),
            _ => out.push(straight(character)),
        }
    }
    out
}

fn straight(character: char) -> char {
    match character {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => '\'',
        '\u{201c}'..='\u{201f}' => '"',
        _ => character,
    }
}

fn ligature(character: char) -> Option<&'static str> {
    Some(match character {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        'ŉ' => "ʼn",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        _ => return None,
    })
}

/// Controls that stand for nothing in a text.
fn is_control(character: char) -> bool {
    matches!(
        character,
        '\0'..='\u{8}'
            | '\u{b}'
            | '\u{e}'..='\u{1f}'
            | '\u{7f}'
            | '\u{206a}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffc}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_damage_is_repaired() {
        for (damaged, expected) in [
            ("âœ” No problems", "✔ No problems"),
            ("Broken text&hellip; it&#x2019;s ﬂubberiﬁc!", "Broken text… it's flubberific!"),
            ("ＬＯＵＤ　ＮＯＩＳＥＳ", "LOUD NOISES"),
            ("\u{1b}[36;44mred\u{1b}[0m\u{feff}", "red"),
            ("P&EACUTE;REZ", "PÉREZ"),
            ("&amp;amp;", "&"),
            ("a\r\nb\u{2028}c", "a\nb\nc"),
            ("e\u{301}", "é"),
            ("\u{ffe3}", " \u{304}"),
        ] {
            assert_eq!(fix_text(damaged), expected, "{damaged:?}");
        }
    }

    #[test]
    fn references_are_resolved_to_a_depth_of_64_and_left_as_they_are_beyond() {
        let nested = |depth| format!("&{}lt;", "amp;".repeat(depth));
        assert_eq!(fix_text(&nested(MOST_ROUNDS - 1)), "<");
        assert_eq!(fix_text(&nested(MOST_ROUNDS + 5)), nested(5));
        assert_eq!(fix_text(&"&semi".repeat(MOST_ROUNDS + 2)), "&semi".repeat(MOST_ROUNDS + 2));
        assert_eq!(fix_text(&format!("{};", "&semi".repeat(MOST_ROUNDS + 2))), "&semi&semi;");
    }

    #[test]
    fn references_are_left_alone_from_the_first_tag_on() {
        assert_eq!(fix_text("&eacute;\n<b>&eacute;\n&eacute;"), "é\n<b>&eacute;\n&eacute;");
    }
}
