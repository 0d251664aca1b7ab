//! Whether a text looks like mojibake, by pairs of characters that no language puts side by side.

use std::sync::LazyLock;

use regex::Regex;

use super::characters::{
    BAD, BOX, COMMON, CURRENCY, END_PUNCTUATION, KAOMOJI, LAW, LOWER_ACCENTED, LOWER_COMMON, NUMERIC,
    START_PUNCTUATION, UPPER_ACCENTED, UPPER_COMMON,
};

static BADNESS: LazyLock<Regex> = LazyLock::new(|| Regex::new(&pattern()).expect("a constant pattern"));

/// True where a text holds a juxtaposition that ftfy takes as a sign of mojibake.
pub(super) fn is_bad(text: &str) -> bool {
    BADNESS.is_match(text)
}

fn class(parts: &[&str]) -> String {
    format!("[{}]", parts.concat())
}

fn pattern() -> String {
    let accented = [LOWER_ACCENTED, UPPER_ACCENTED].concat();
    let signs = [BOX, START_PUNCTUATION, END_PUNCTUATION, CURRENCY, NUMERIC, LAW].concat();
    let arabic = class(&[COMMON, CURRENCY, BAD, NUMERIC, START_PUNCTUATION, "ŸŠ®°µ»"]);
    // Python's idea of white space and of the characters of words.
    let (space, word) = ("[\\s\u{1c}-\u{1f}]", r"[\p{L}\p{N}_]");
    let sequences: Vec<Vec<String>> = vec![
        vec!["[\u{80}-\u{9f}]".to_owned()],
        vec![class(&[BAD, &accented, &signs]), class(&[BAD])],
        vec!["[a-zA-Z]".to_owned(), class(&[LOWER_COMMON, UPPER_COMMON]), class(&[BAD])],
        vec![class(&[BAD]), class(&[&accented, &signs])],
        vec![
            class(&[LOWER_ACCENTED, LOWER_COMMON, BOX, END_PUNCTUATION, CURRENCY, NUMERIC]),
            class(&[UPPER_ACCENTED]),
        ],
        vec![class(&[BOX, END_PUNCTUATION, CURRENCY, NUMERIC]), class(&[LOWER_ACCENTED])],
        vec![class(&[LOWER_ACCENTED, BOX, END_PUNCTUATION]), class(&[CURRENCY])],
        vec![space.to_owned(), class(&[UPPER_ACCENTED]), class(&[CURRENCY])],
        vec![class(&[UPPER_ACCENTED, BOX]), class(&[NUMERIC, LAW])],
        vec![
            class(&[&accented, BOX, CURRENCY, END_PUNCTUATION]),
            class(&[START_PUNCTUATION]),
            class(&[NUMERIC]),
        ],
        vec![
            class(&[&accented, CURRENCY, NUMERIC, BOX, LAW]),
            class(&[END_PUNCTUATION]),
            class(&[START_PUNCTUATION]),
        ],
        vec![class(&[CURRENCY, NUMERIC, BOX]), class(&[START_PUNCTUATION])],
        vec!["[a-z]".to_owned(), class(&[UPPER_ACCENTED]), class(&[START_PUNCTUATION, CURRENCY])],
        vec![class(&[BOX]), class(&[KAOMOJI])],
        vec![class(&[&accented, CURRENCY, NUMERIC, START_PUNCTUATION, END_PUNCTUATION, LAW]), class(&[BOX])],
        vec![class(&[BOX]), class(&[END_PUNCTUATION])],
        vec![class(&[&accented]), class(&[START_PUNCTUATION, END_PUNCTUATION]), word.to_owned()],
        vec!["[Œœ][^A-Za-z]".to_owned()],
        vec![class(&[UPPER_ACCENTED]), "°".to_owned()],
        vec![
            "[ÂÃÎÐ]".to_owned(),
            class(&["€œŠš¢£Ÿž\u{a0}\u{ad}®©°·»", START_PUNCTUATION, END_PUNCTUATION, "–—´"]),
        ],
        vec!["×[²³]".to_owned()],
        vec!["[ØÙ]".to_owned(), arabic.clone(), "[ØÙ]".to_owned(), arabic],
        vec!["à[²µ¹¼½¾]".to_owned()],
        // Of the Macintosh.
        vec!["√[±∂†≠®™´≤≥¥µø]".to_owned()],
        vec!["≈[°¢]".to_owned()],
        vec!["‚Ä[ìîïòôúùû†°¢π]".to_owned()],
        vec!["‚[âó][àä°ê]".to_owned()],
        // Of Cyrillic Windows.
        vec!["вЂ".to_owned()],
        vec![
            "[ВГРС]".to_owned(),
            class(&["\u{80}-\u{9f}", BAD, START_PUNCTUATION, END_PUNCTUATION, CURRENCY, "°µ"]),
            "[ВГРС]".to_owned(),
        ],
        vec!["ГўВЂВ.[A-Za-z ]".to_owned()],
        // A with grave or acute, and byte A0 itself.
        vec!["Ã[\u{a0}¡]".to_owned()],
        vec!["[a-z]".to_owned(), format!("{space}?"), "[ÃÂ] ".to_owned()],
        vec!["^[ÃÂ] ".to_owned()],
        vec![
            class(&["a-z.,?!", END_PUNCTUATION]),
            "Â".to_owned(),
            class(&[" ", START_PUNCTUATION, END_PUNCTUATION]),
        ],
        // Of Greek Windows.
        vec!["β€[™\u{a0}Ά\u{ad}®°]".to_owned()],
        vec![
            "[ΒΓΞΟ]".to_owned(),
            class(&["\u{80}-\u{9f}", BAD, START_PUNCTUATION, END_PUNCTUATION, CURRENCY, "°"]),
            "[ΒΓΞΟ]".to_owned(),
        ],
        // Of Baltic Windows.
        vec!["ā€".to_owned()],
    ];
    sequences.into_iter().map(|parts| parts.concat()).collect::<Vec<_>>().join("|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mojibake_is_told_from_text() {
        for bad in ["schÃ¶n", "â€œ", "Ð¿Ñ€Ð¸", "вЂ™"] {
            assert!(is_bad(bad), "{bad}");
        }
        // The last but one could be damaged; ftfy leaves it, too.
        for good in ["schön", "a plain text", "“quoted”", "привет", "女性", "5 €", "cafГ©", "(╯°□°)╯"]
        {
            assert!(!is_bad(good), "{good}");
        }
    }
}
