//! Character references of HTML, resolved as browsers and Python's `html.unescape` do.

use html_escape::NAMED_ENTITIES;

/// Names that are also read without a closing semicolon.
const WITHOUT_SEMICOLON: [&str; 106] = [
    "AElig", "AMP", "Aacute", "Acirc", "Agrave", "Aring", "Atilde", "Auml", "COPY", "Ccedil", "ETH",
    "Eacute", "Ecirc", "Egrave", "Euml", "GT", "Iacute", "Icirc", "Igrave", "Iuml", "LT", "Ntilde", "Oacute",
    "Ocirc", "Ograve", "Oslash", "Otilde", "Ouml", "QUOT", "REG", "THORN", "Uacute", "Ucirc", "Ugrave",
    "Uuml", "Yacute", "aacute", "acirc", "acute", "aelig", "agrave", "amp", "aring", "atilde", "auml",
    "brvbar", "ccedil", "cedil", "cent", "copy", "curren", "deg", "divide", "eacute", "ecirc", "egrave",
    "eth", "euml", "frac12", "frac14", "frac34", "gt", "iacute", "icirc", "iexcl", "igrave", "iquest",
    "iuml", "laquo", "lt", "macr", "micro", "middot", "nbsp", "not", "ntilde", "oacute", "ocirc", "ograve",
    "ordf", "ordm", "oslash", "otilde", "ouml", "para", "plusmn", "pound", "quot", "raquo", "reg", "sect",
    "shy", "sup1", "sup2", "sup3", "szlig", "thorn", "times", "uacute", "ucirc", "ugrave", "uml", "uuml",
    "yacute", "yen", "yuml",
];

/// What numbers 0x80 to 0x9f stand for: they are read as Windows-1252.
const WINDOWS_1252: [char; 32] = [
    '\u{20ac}', '\u{81}', '\u{201a}', '\u{192}', '\u{201e}', '\u{2026}', '\u{2020}', '\u{2021}', '\u{2c6}',
    '\u{2030}', '\u{160}', '\u{2039}', '\u{152}', '\u{8d}', '\u{17d}', '\u{8f}', '\u{90}', '\u{2018}',
    '\u{2019}', '\u{201c}', '\u{201d}', '\u{2022}', '\u{2013}', '\u{2014}', '\u{2dc}', '\u{2122}', '\u{161}',
    '\u{203a}', '\u{153}', '\u{9d}', '\u{17e}', '\u{178}',
];

/// Names that the crate `html_escape` gives another value, most of them for want of a second character; sorted.
#[rustfmt::skip]
const CORRECTIONS: [(&str, &str); 93] = [
    ("NotEqualTilde", "\u{2242}\u{338}"), ("NotGreaterFullEqual", "\u{2267}\u{338}"),
    ("NotGreaterGreater", "\u{226b}\u{338}"), ("NotGreaterSlantEqual", "\u{2a7e}\u{338}"),
    ("NotHumpDownHump", "\u{224e}\u{338}"), ("NotHumpEqual", "\u{224f}\u{338}"),
    ("NotLeftTriangleBar", "\u{29cf}\u{338}"), ("NotLessLess", "\u{226a}\u{338}"),
    ("NotLessSlantEqual", "\u{2a7d}\u{338}"), ("NotNestedGreaterGreater", "\u{2aa2}\u{338}"),
    ("NotNestedLessLess", "\u{2aa1}\u{338}"), ("NotPrecedesEqual", "\u{2aaf}\u{338}"),
    ("NotRightTriangleBar", "\u{29d0}\u{338}"), ("NotSquareSubset", "\u{228f}\u{338}"),
    ("NotSquareSuperset", "\u{2290}\u{338}"), ("NotSubset", "\u{2282}\u{20d2}"),
    ("NotSucceedsEqual", "\u{2ab0}\u{338}"), ("NotSucceedsTilde", "\u{227f}\u{338}"),
    ("NotSuperset", "\u{2283}\u{20d2}"), ("ThickSpace", "\u{205f}\u{200a}"), ("acE", "\u{223e}\u{333}"),
    ("bne", "\u{3d}\u{20e5}"), ("bnequiv", "\u{2261}\u{20e5}"), ("caps", "\u{2229}\u{fe00}"),
    ("cups", "\u{222a}\u{fe00}"), ("fjlig", "\u{66}\u{6a}"), ("gesl", "\u{22db}\u{fe00}"),
    ("gvertneqq", "\u{2269}\u{fe00}"), ("gvnE", "\u{2269}\u{fe00}"), ("lates", "\u{2aad}\u{fe00}"),
    ("lesg", "\u{22da}\u{fe00}"), ("lvertneqq", "\u{2268}\u{fe00}"), ("lvnE", "\u{2268}\u{fe00}"),
    ("nGg", "\u{22d9}\u{338}"), ("nGt", "\u{226b}\u{20d2}"), ("nGtv", "\u{226b}\u{338}"),
    ("nLl", "\u{22d8}\u{338}"), ("nLt", "\u{226a}\u{20d2}"), ("nLtv", "\u{226a}\u{338}"),
    ("nang", "\u{2220}\u{20d2}"), ("napE", "\u{2a70}\u{338}"), ("napid", "\u{224b}\u{338}"),
    ("nbump", "\u{224e}\u{338}"), ("nbumpe", "\u{224f}\u{338}"), ("ncongdot", "\u{2a6d}\u{338}"),
    ("nedot", "\u{2250}\u{338}"), ("nesim", "\u{2242}\u{338}"), ("ngE", "\u{2267}\u{338}"),
    ("ngeqq", "\u{2267}\u{338}"), ("ngeqslant", "\u{2a7e}\u{338}"), ("nges", "\u{2a7e}\u{338}"),
    ("nlE", "\u{2266}\u{338}"), ("nleqq", "\u{2266}\u{338}"), ("nleqslant", "\u{2a7d}\u{338}"),
    ("nles", "\u{2a7d}\u{338}"), ("notinE", "\u{22f9}\u{338}"), ("notindot", "\u{22f5}\u{338}"),
    ("nparsl", "\u{2afd}\u{20e5}"), ("npart", "\u{2202}\u{338}"), ("npre", "\u{2aaf}\u{338}"),
    ("npreceq", "\u{2aaf}\u{338}"), ("nrarrc", "\u{2933}\u{338}"), ("nrarrw", "\u{219d}\u{338}"),
    ("nsce", "\u{2ab0}\u{338}"), ("nsubE", "\u{2ac5}\u{338}"), ("nsubset", "\u{2282}\u{20d2}"),
    ("nsubseteqq", "\u{2ac5}\u{338}"), ("nsucceq", "\u{2ab0}\u{338}"), ("nsupE", "\u{2ac6}\u{338}"),
    ("nsupset", "\u{2283}\u{20d2}"), ("nsupseteqq", "\u{2ac6}\u{338}"), ("nvap", "\u{224d}\u{20d2}"),
    ("nvge", "\u{2265}\u{20d2}"), ("nvgt", "\u{3e}\u{20d2}"), ("nvle", "\u{2264}\u{20d2}"),
    ("nvlt", "\u{3c}\u{20d2}"), ("nvltrie", "\u{22b4}\u{20d2}"), ("nvrtrie", "\u{22b5}\u{20d2}"),
    ("nvsim", "\u{223c}\u{20d2}"), ("race", "\u{223d}\u{331}"), ("smtes", "\u{2aac}\u{fe00}"),
    ("sqcaps", "\u{2293}\u{fe00}"), ("sqcups", "\u{2294}\u{fe00}"), ("varsubsetneq", "\u{228a}\u{fe00}"),
    ("varsubsetneqq", "\u{2acb}\u{fe00}"), ("varsupsetneq", "\u{228b}\u{fe00}"),
    ("varsupsetneqq", "\u{2acc}\u{fe00}"), ("vnsub", "\u{2282}\u{20d2}"), ("vnsup", "\u{2283}\u{20d2}"),
    ("vsubnE", "\u{2acb}\u{fe00}"), ("vsubne", "\u{228a}\u{fe00}"), ("vsupnE", "\u{2acc}\u{fe00}"),
    ("vsupne", "\u{228b}\u{fe00}"),
];

/// Longest run of characters after `&` that is tried as a name.
const LONGEST_NAME: usize = 32;

/// Replaces every character reference.
pub(crate) fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let taken = match after.strip_prefix('#') {
            Some(number) => numeric(number, &mut out).map(|taken| taken + 1),
            None => named(after, &mut out),
        };
        match taken {
            Some(taken) => rest = &after[taken..],
            None => {
                out.push('&');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// Resolves a number behind `&#`; returns the bytes it took.
fn numeric(text: &str, out: &mut String) -> Option<usize> {
    let (radix, digits_at) = if text.starts_with(['x', 'X']) { (16, 1) } else { (10, 0) };
    let digits = &text[digits_at..];
    let length = digits.find(|character: char| !character.is_digit(radix)).unwrap_or(digits.len());
    if length == 0 {
        return None;
    }
    let number = digits[..length]
        .chars()
        .filter_map(|digit| digit.to_digit(radix))
        .fold(0_u32, |number, digit| number.saturating_mul(radix).saturating_add(digit));
    out.extend(character(number));
    let end = digits_at + length;
    Some(end + usize::from(text[end..].starts_with(';')))
}

fn character(number: u32) -> Option<char> {
    match number {
        0 => Some(char::REPLACEMENT_CHARACTER),
        0x80..=0x9f => Some(WINDOWS_1252[number as usize - 0x80]),
        0x01..=0x08 | 0x0b | 0x0e..=0x1f | 0x7f | 0xfdd0..=0xfdef => None,
        _ if number <= 0x10_ffff && number & 0xfffe == 0xfffe => None,
        _ => Some(char::from_u32(number).unwrap_or(char::REPLACEMENT_CHARACTER)),
    }
}

/// Resolves a name behind `&`; returns the bytes it took.
fn named(text: &str, out: &mut String) -> Option<usize> {
    let stops = |character: char| matches!(character, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | '#' | ';');
    let length: usize =
        text.chars().take(LONGEST_NAME).take_while(|&character| !stops(character)).map(char::len_utf8).sum();
    let run = &text[..length];
    if text[length..].starts_with(';')
        && let Some(value) = entity(run)
    {
        out.push_str(value);
        return Some(length + 1);
    }
    // The longest prefix that needs no semicolon; all such names are ASCII.
    (2..=length).rev().filter_map(|end| run.get(..end)).find_map(|prefix| {
        WITHOUT_SEMICOLON.binary_search(&prefix).ok()?;
        out.push_str(entity(prefix)?);
        Some(prefix.len())
    })
}

/// The characters of a name between `&` and `;`. A name in capitals of which HTML knows only the small letters stands
/// for their capitals.
pub(crate) fn named_reference(name: &str) -> Option<String> {
    if let Some(value) = entity(name) {
        return Some(value.to_owned());
    }
    let small = name.to_lowercase();
    let reference = format!("&{name};");
    let is_only_small = small.to_uppercase() == name && unescape(&reference) == reference;
    entity(&small).filter(|_| is_only_small).map(str::to_uppercase)
}

fn entity(name: &str) -> Option<&'static str> {
    if let Ok(index) = CORRECTIONS.binary_search_by(|(known, _)| (*known).cmp(name)) {
        return Some(CORRECTIONS[index].1);
    }
    let index = NAMED_ENTITIES.binary_search_by(|(known, _)| (*known).cmp(name.as_bytes())).ok()?;
    Some(NAMED_ENTITIES[index].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_resolved_with_and_without_a_semicolon() {
        assert_eq!(unescape("a &lt; b &amp; c"), "a < b & c");
        assert_eq!(unescape("&notit; &notin; &copy2024 &amp"), "¬it; ∉ ©2024 &");
        assert_eq!(unescape("&hellip &unknown; && &; &"), "&hellip &unknown; && &; &");
    }

    #[test]
    fn numbers_follow_the_rules_of_html5() {
        assert_eq!(unescape("&#65;&#x42;&#X43 &#128;&#150;"), "ABC €–");
        assert_eq!(unescape("&#0;&#xD800;&#99999999999;"), "\u{fffd}\u{fffd}\u{fffd}");
        assert_eq!(unescape("[&#1;&#x7f;&#xfdd0;&#x1ffff;]"), "[]");
        assert_eq!(unescape("&#; &#x; &#xg;"), "&#; &#x; &#xg;");
    }

    #[test]
    fn the_names_without_a_semicolon_are_sorted_and_known() {
        assert!(WITHOUT_SEMICOLON.is_sorted());
        assert!(CORRECTIONS.is_sorted_by_key(|(name, _)| *name));
        assert_eq!(unescape("&ngeqq;&caps;"), "\u{2267}\u{338}\u{2229}\u{fe00}");
        assert!(WITHOUT_SEMICOLON.iter().all(|name| entity(name).is_some()));
    }
}
