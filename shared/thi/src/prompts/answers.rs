/// True where a generated answer contains "yes" in any case, the decision rule of the authors' code. Everything else,
/// an empty answer included, is not a Yes.
pub fn is_yes(text: &str) -> bool {
    text.to_lowercase().contains("yes")
}

/// True where a rewritten query can be searched with: it has at least one letter or digit. A query whose rewriting
/// fails this stays unrefined.
pub fn usable_refinement(text: &str) -> bool {
    text.chars().any(char::is_alphanumeric)
}

/// The items of an answer that was asked for one item a line: trimmed, without a leading list mark (`-`, `*`, `3.`,
/// `3)`), blank lines left out. For the answers to the decompose and rewrite prompts.
pub fn lines(text: &str) -> Vec<String> {
    text.lines().map(without_list_mark).filter(|line| usable_refinement(line)).map(str::to_owned).collect()
}

fn without_list_mark(line: &str) -> &str {
    let line = line.trim();
    if let Some(rest) = line.strip_prefix(['-', '*', '•']) {
        return rest.trim_start();
    }
    let after_digits = line.trim_start_matches(|c: char| c.is_ascii_digit());
    match after_digits.strip_prefix(['.', ')']) {
        Some(rest) if after_digits.len() < line.len() && rest.starts_with(' ') => rest.trim_start(),
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yes_is_found_anywhere_in_any_case() {
        for text in ["Yes", "YES.", "I think yes, it does", "yesterday"] {
            assert!(is_yes(text), "{text}");
        }
        for text in ["", "No", "y e s", "oui"] {
            assert!(!is_yes(text), "{text}");
        }
    }

    #[test]
    fn a_refinement_without_a_letter_or_digit_is_unusable() {
        for text in ["", " \n\t", "...", "🙂", "。"] {
            assert!(!usable_refinement(text), "{text:?}");
        }
        for text in ["a", "7", "红", "رجل"] {
            assert!(usable_refinement(text), "{text:?}");
        }
    }

    #[test]
    fn list_marks_and_blank_lines_are_dropped() {
        let text = "1. The coat is red.\n\n- 2.5 m tall\n* x\n12) y\n3.5 hours\n---";
        assert_eq!(lines(text), ["The coat is red.", "2.5 m tall", "x", "y", "3.5 hours"]);
    }
}
