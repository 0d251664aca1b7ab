//! Texts that were decoded by the wrong table, brought back through their bytes.

use std::{borrow::Cow, sync::LazyLock};

use regex::bytes::{Captures, Regex};

use super::{
    badness::is_bad,
    characters::{CONTINUATION, CONTINUATION_STRICT, FIRST_OF_2, FIRST_OF_3, FIRST_OF_4, holds},
    encodings::{Kind, TABLES, Table, WINDOWS_1252},
};

/// What a Windows encoding writes for a lost character.
const SUBSTITUTE: char = '\u{1a}';

/// UTF-8 sequences in which byte A0 has become a space.
static ALTERED: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"[\xc2\xc3\xc5\xce\xd0\xd9] |[\xe2\xe3] [\x80-\x84\x86-\x9f\xa1-\xbf]|[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf] |\xf0 [\x80-\xbf][\x80-\xbf]|\xf0[\x80-\xbf] [\x80-\xbf]|\xf0[\x80-\xbf][\x80-\xbf] ",
    )
});

/// UTF-8 sequences of which a byte is lost.
static LOSSY: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"[\xc2-\xdf]\x1a|[\xc2-\xc3]\?|\xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]|\xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]|[\xe0-\xef][\x1a?][\x1a\x80-\xbf]|[\xe0-\xef][\x1a\x80-\xbf][\x1a?]|[\xf0-\xf4][\x1a?][\x1a\x80-\xbf][\x1a\x80-\xbf]|[\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]|[\xf0-\xf4][\x1a\x80-\xbf][\x1a\x80-\xbf][\x1a?]|\x1a",
    )
});

fn pattern(text: &str) -> Regex {
    Regex::new(&format!("(?-u){text}")).expect("a constant pattern")
}

/// Decodes again, as often as that makes something better of the text.
pub(super) fn fix_encoding(text: &str) -> String {
    let mut text = text.to_owned();
    loop {
        match fixed_once(&text) {
            Some(fixed) if fixed != text => text = fixed,
            _ => return text,
        }
    }
}

/// The control characters 80 to 9f as Windows reads them.
pub(super) fn without_c1_controls(text: &str) -> Cow<'_, str> {
    if !text.contains(is_c1_control) {
        return Cow::Borrowed(text);
    }
    let windows = |character: char| match is_c1_control(character) {
        true => WINDOWS_1252[character as usize - 0x80],
        false => character,
    };
    Cow::Owned(text.chars().map(windows).collect())
}

fn is_c1_control(character: char) -> bool {
    matches!(character, '\u{80}'..='\u{9f}')
}

/// One step towards the right text; `None` where none is seen.
fn fixed_once(text: &str) -> Option<String> {
    if text.is_ascii() || !is_bad(text) {
        return None;
    }
    if let Some(decoded) = TABLES.iter().find_map(|table| decoded_again(text, table)) {
        return Some(decoded);
    }
    let inconsistent = decode_runs(text);
    if inconsistent != text {
        return Some(inconsistent);
    }
    if let Some(windows) = latin_as_windows(text)
        && windows != text
    {
        return Some(windows);
    }
    match without_c1_controls(text) {
        Cow::Owned(fixed) => Some(fixed),
        Cow::Borrowed(_) => None,
    }
}

/// The text as UTF-8, if its characters are those of one encoding and their bytes make sense.
fn decoded_again(text: &str, table: &Table) -> Option<String> {
    let mut bytes = encoded(text, table)?;
    if table.kind != Kind::Macintosh && ALTERED.is_match(&bytes) {
        bytes = restore_byte_a0(&bytes);
    }
    if table.kind == Kind::Windows {
        bytes = LOSSY.replace_all(&bytes, "\u{fffd}".as_bytes()).into_owned();
    }
    if bytes.contains(&0xed) || bytes.contains(&0xc0) {
        return decoded_variant(&bytes);
    }
    String::from_utf8(bytes).ok()
}

/// The bytes that `table` would have decoded to the text.
fn encoded(text: &str, table: &Table) -> Option<Vec<u8>> {
    let byte = |character: char| match character {
        SUBSTITUTE if table.kind == Kind::Windows => None,
        '\u{fffd}' if table.kind == Kind::Windows => Some(SUBSTITUTE as u8),
        '\0'..='\x7f' => Some(character as u8),
        _ => table.upper.iter().position(|&upper| upper == character).map(|at| at as u8 + 0x80),
    };
    text.chars().map(byte).collect()
}

/// Puts byte A0 back where a space would be a part of a sequence.
fn restore_byte_a0(bytes: &[u8]) -> Vec<u8> {
    let bytes = restore_a_grave(bytes);
    let restored = |found: &Captures<'_>| -> Vec<u8> {
        found[0].iter().map(|&byte| if byte == b' ' { 0xa0 } else { byte }).collect()
    };
    ALTERED.replace_all(&bytes, restored).into_owned()
}

/// The word "à": the first half of a sequence and a space that is one, unless a word follows in which the accented
/// letter is the first, as in Portuguese.
fn restore_a_grave(bytes: &[u8]) -> Vec<u8> {
    const NOT_BEFORE: [&[u8]; 5] = [b" ", b"quele", b"quela", b"quilo", b"s "];
    let mut out = Vec::with_capacity(bytes.len() + 8);
    let mut rest = bytes;
    while let Some((&first, after)) = rest.split_first() {
        out.push(first);
        rest = after;
        if first == 0xc3
            && let Some(next) = after.strip_prefix(b" ")
            && !NOT_BEFORE.iter().any(|word| next.starts_with(word))
        {
            out.extend([0xa0, b' ']);
            rest = next;
        }
    }
    out
}

/// UTF-8 in which characters beyond FFFF are two surrogates, and 0 is two bytes.
fn decoded_variant(bytes: &[u8]) -> Option<String> {
    let mut out = String::with_capacity(bytes.len());
    let mut plain = 0;
    let mut at = 0;
    while at < bytes.len() {
        let (character, length) = match &bytes[at..] {
            [0xc0, 0x80, ..] => ('\0', 2),
            &[0xed, b @ 0xa0..=0xaf, c @ 0x80..=0xbf, 0xed, e @ 0xb0..=0xbf, f @ 0x80..=0xbf, ..] => {
                let bits = |byte: u8, mask: u8, shift: u32| u32::from(byte & mask) << shift;
                let number = bits(b, 0x0f, 16) + bits(c, 0x3f, 10) + bits(e, 0x0f, 6) + bits(f, 0x3f, 0);
                (char::from_u32(number + 0x1_0000)?, 6)
            }
            _ => {
                at += 1;
                continue;
            }
        };
        out.push_str(std::str::from_utf8(&bytes[plain..at]).ok()?);
        out.push(character);
        at += length;
        plain = at;
    }
    out.push_str(std::str::from_utf8(&bytes[plain..]).ok()?);
    Some(out)
}

/// Latin-1 that was Windows-1252.
fn latin_as_windows(text: &str) -> Option<String> {
    let character = |character: char| match character {
        '\0'..='\x7f' => Some(character),
        '\u{80}'..='\u{ff}' => {
            let windows = WINDOWS_1252[character as usize - 0x80];
            // Where both tables agree on a control character, Windows has left its byte open.
            (!is_c1_control(windows)).then_some(windows)
        }
        _ => None,
    };
    text.chars().map(character).collect()
}

/// Decodes what looks like UTF-8 inside a text of another encoding.
fn decode_runs(text: &str) -> String {
    let characters: Vec<(usize, char)> = text.char_indices().collect();
    let byte_at = |index: usize| characters.get(index).map_or(text.len(), |&(at, _)| at);
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    let mut index = 0;
    while index < characters.len() {
        let starts = index == 0 || !holds(CONTINUATION_STRICT, characters[index - 1].1);
        let end = if starts { end_of_run(&characters, index) } else { index };
        if end == index {
            index += 1;
            continue;
        }
        let run = &text[byte_at(index)..byte_at(end)];
        if run.len() < text.len() && is_bad(run) {
            out.push_str(&text[copied..byte_at(index)]);
            out.push_str(&fix_encoding(run));
            copied = byte_at(end);
        }
        index = end;
    }
    out.push_str(&text[copied..]);
    out
}

/// Where the sequences that begin at `start` end; `start` itself where none does.
fn end_of_run(characters: &[(usize, char)], start: usize) -> usize {
    let mut end = start;
    while let Some(&(_, first)) = characters.get(end) {
        let length = match first {
            _ if holds(FIRST_OF_2, first) => 2,
            _ if holds(FIRST_OF_3, first) => 3,
            _ if holds(FIRST_OF_4, first) => 4,
            _ => break,
        };
        let continues = |&(_, character): &(usize, char)| holds(CONTINUATION, character);
        match characters.get(end + 1..end + length) {
            Some(rest) if rest.iter().all(continues) => end += length,
            _ => break,
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_the_wrong_encoding_is_decoded_again() {
        assert_eq!(fix_encoding("schÃ¶n"), "schön");
        assert_eq!(fix_encoding("ÃƒÂ©tÃƒÂ©"), "été");
        assert_eq!(fix_encoding("voilÃ le travail"), "voilà le travail");
        assert_eq!(fix_encoding("â€œ like this â€\u{fffd}"), "\u{201c} like this \u{fffd}");
        // The dash is in no encoding that the rest could have come through.
        assert_eq!(fix_encoding("√Ñ – so"), "√Ñ – so");
        assert_eq!(fix_encoding("schön"), "schön");
    }

    #[test]
    fn surrogates_and_long_zeros_are_decoded_and_other_damage_is_not() {
        assert_eq!(decoded_variant(b"a\xed\xa0\xbd\xed\xb8\x80b\xc0\x80").as_deref(), Some("a\u{1f600}b\0"));
        assert_eq!(decoded_variant(b"\xed\xa0\xbd"), None);
        assert_eq!(decoded_variant(b"\xc0"), None);
    }
}
