//! Reading the answer to the attribute questions.

/// The sentences of an attribute answer, exactly as the authors' code makes them. A line each:
///
/// 1. a line with a colon anywhere is dropped;
/// 2. a line without `". "` becomes an empty sentence, which stays in the list;
/// 3. otherwise the part between the first and the second `". "` is taken, every `"Yes, "` and `"No, "` is deleted
///    from it, its first character is put in upper case and a full stop is added unless it ends with one.
///
/// The list has as many elements as the answer has lines without a colon, which need not be fifteen.
pub fn sentences(answer: &str) -> Vec<String> {
    answer.split('\n').filter(|line| !line.contains(':')).map(sentence).collect()
}

fn sentence(line: &str) -> String {
    let Some(part) = line.split(". ").nth(1) else { return String::new() };
    let part = part.replace("Yes, ", "").replace("No, ", "");
    let mut characters = part.chars();
    let mut sentence: String = characters.next().into_iter().flat_map(char::to_uppercase).collect();
    sentence.push_str(characters.as_str());
    if !sentence.ends_with('.') {
        sentence.push('.');
    }
    sentence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_numbered_line_becomes_its_first_sentence() {
        assert_eq!(sentences("1. the person is male. He is tall. "), ["The person is male."]);
    }

    #[test]
    fn leading_yes_and_no_are_deleted_in_exact_case() {
        assert_eq!(
            sentences("7. Yes, she wears glasses.\n8. No, no scarf"),
            ["She wears glasses.", "No scarf."]
        );
        assert_eq!(sentences("8. no, a No, b"), ["No, a b."]);
    }

    #[test]
    fn a_line_with_a_colon_is_dropped() {
        assert_eq!(sentences("1. Hair: black\n2. Black hair."), ["Black hair."]);
    }

    #[test]
    fn a_line_without_a_number_and_a_blank_line_become_empty_sentences() {
        assert_eq!(sentences("a man\n\n5.none"), ["", "", ""]);
        assert_eq!(sentences(""), [""]);
    }

    #[test]
    fn a_bare_number_becomes_a_full_stop() {
        assert_eq!(sentences("5. "), ["."]);
    }

    #[test]
    fn an_upper_case_form_of_several_characters_is_kept() {
        assert_eq!(sentences("1. ßtraße"), ["SStraße."]);
    }
}
