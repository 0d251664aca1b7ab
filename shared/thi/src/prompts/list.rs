use std::fmt::Write;

/// A list of strings the way Python prints it (`repr`), which is what the aggregation prompt shows: elements in
/// single quotes, or in double quotes where an element has a single quote and no double quote; backslashes, line
/// breaks and characters that Python calls unprintable are escaped; other characters stay as they are.
pub fn python_list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| python_string(item)).collect();
    format!("[{}]", items.join(", "))
}

fn python_string(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push(quote);
    for character in text.chars() {
        match character {
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c == quote => quoted.extend(['\\', c]),
            c if is_printable(c) => quoted.push(c),
            c => push_escape(&mut quoted, c),
        }
    }
    quoted.push(quote);
    quoted
}

fn push_escape(quoted: &mut String, character: char) {
    let code = u32::from(character);
    let written = match code {
        0..=0xff => write!(quoted, "\\x{code:02x}"),
        0x100..=0xffff => write!(quoted, "\\u{code:04x}"),
        _ => write!(quoted, "\\U{code:08x}"),
    };
    debug_assert!(written.is_ok(), "writing to a string cannot fail");
}

/// Python's `str.isprintable`: not of the Unicode categories Other and Separator, but for the space. The standard
/// library's debug escapes use the same rule. They also escape a combining mark at the very beginning of a string,
/// hence the letter before the character.
fn is_printable(character: char) -> bool {
    let text: String = ['a', character].iter().collect();
    matches!(character, '\'' | '"') || text.escape_debug().count() == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> String {
        python_list(&[text.to_owned()])
    }

    #[test]
    fn lists_have_single_quotes_and_commas() {
        assert_eq!(python_list(&[]), "[]");
        assert_eq!(python_list(&["a".into(), String::new(), "b c".into()]), "['a', '', 'b c']");
    }

    #[test]
    fn quotes_are_chosen_like_python_does() {
        assert_eq!(one("it's"), r#"["it's"]"#);
        assert_eq!(one(r#"a "b""#), r#"['a "b"']"#);
        assert_eq!(one(r#"it's "b""#), r#"['it\'s "b"']"#);
    }

    #[test]
    fn escapes_are_chosen_like_python_does() {
        assert_eq!(one("a\\b\n\r\t"), r"['a\\b\n\r\t']");
        assert_eq!(one("\0\u{1b}\u{7f}\u{85}\u{a0}\u{ad}"), r"['\x00\x1b\x7f\x85\xa0\xad']");
        assert_eq!(one("\u{200b}\u{2028}\u{3000}\u{e000}\u{feff}"), r"['\u200b\u2028\u3000\ue000\ufeff']");
        assert_eq!(one("\u{e0001}\u{10ffff}"), r"['\U000e0001\U0010ffff']");
    }

    #[test]
    fn printable_characters_of_any_script_stay() {
        for text in ["é ü ß", "红色外套", "رجل", "🙂", "e\u{301}", "\u{301}"] {
            assert_eq!(one(text), format!("['{text}']"));
        }
    }
}
