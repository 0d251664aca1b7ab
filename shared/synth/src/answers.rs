//! The fifteen attribute answers of an image, as text and back.

use crate::lexicon::{Chosen, Group, Wording, phrase, terms};
use crate::schema::{Appearance, SLOT_COUNT, SLOTS};

/// Number of attribute questions: gender, hair, upper clothing, lower clothing, pattern, shoes, glasses,
/// scarf, object in hand, bag, hat, belt, action, background, other people.
pub const QUESTION_COUNT: usize = 15;

/// What an answer text says: the value of each slot, `None` where it says nothing.
pub type Reading = [Option<u8>; SLOT_COUNT];

/// The words of answers that are no term of a slot, for the vocabulary.
pub(crate) const FRAME_WORDS: &[&str] = &[
    "not visible face hands glasses shoes hair top bag hat in hand clothes nothing background action pattern",
];

const NOT_VISIBLE: &str = "not visible";

/// The canonical word of each slot that a viewer can tell.
pub(crate) fn seen_words(appearance: &Appearance) -> Chosen {
    let mut chosen: Chosen = [None; SLOT_COUNT];
    for (index, word) in chosen.iter_mut().enumerate() {
        *word = appearance.seen(index).map(|value| &terms(index)[usize::from(value)]);
    }
    chosen
}

/// What is asked for, when it cannot be seen.
const SUBJECTS: [&str; QUESTION_COUNT] = [
    "person",
    "hair",
    "top",
    "bottoms",
    "pattern",
    "shoes",
    "glasses",
    "scarf",
    "hands",
    "bag",
    "hat",
    "belt",
    "action",
    "background",
    "others",
];

const GROUPS: [Group; QUESTION_COUNT] = [
    Group::Who,
    Group::Hair,
    Group::Top,
    Group::Bottom,
    Group::Top,
    Group::Shoes,
    Group::Glasses,
    Group::Scarf,
    Group::Object,
    Group::Bag,
    Group::Hat,
    Group::Belt,
    Group::Action,
    Group::Place,
    Group::Others,
];

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// The answers to the fifteen attribute questions about an image, without number or final stop, e.g.
/// "A woman", "Long black hair", "Red jacket with long sleeves", "Shoes not visible".
#[must_use]
pub fn answers(appearance: &Appearance) -> [String; QUESTION_COUNT] {
    let seen = seen_words(appearance);
    std::array::from_fn(|question| {
        let mut asked: Chosen = [None; SLOT_COUNT];
        for index in 0..SLOT_COUNT {
            if SLOTS[index].question == question {
                asked[index] = seen[index];
            }
        }
        let article = GROUPS[question] == Group::Who;
        let text = match phrase(GROUPS[question], &asked, Wording::Canonical, article) {
            Some(found) if found.group == Group::Object => format!("{} in hand", found.text),
            Some(found) => found.text,
            None => format!("{} {NOT_VISIBLE}", SUBJECTS[question]),
        };
        capitalised(&text)
    })
}

/// The answers as the model writes them: lines `1. A woman.` to `15. ...`, separated by a line feed.
#[must_use]
pub fn numbered(answers: &[String; QUESTION_COUNT]) -> String {
    let lines: Vec<String> =
        answers.iter().enumerate().map(|(at, answer)| format!("{}. {answer}.", at + 1)).collect();
    lines.join("\n")
}

/// Lower-case words of a text; a hyphen belongs to a word.
fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric() && c != '-')
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

/// Reads the answer to one question (counted from 0, without its number) as pairs of slot and value.
///
/// Of several words that fit, the longest wins. What is vague, unknown or "not visible" gives nothing.
#[must_use]
pub fn read_answer(question: usize, text: &str) -> Vec<(usize, u8)> {
    if text.to_lowercase().contains(NOT_VISIBLE) {
        return Vec::new();
    }
    let said = words(text);
    let mut read: Reading = [None; SLOT_COUNT];
    for index in (0..SLOT_COUNT).filter(|&index| SLOTS[index].question == question) {
        let mut best = 0;
        for term in terms(index).iter().filter(|term| term.mask.count_ones() == 1) {
            let term_words = words(term.word);
            let found = said.windows(term_words.len()).any(|window| window == term_words);
            if found && term_words.len() > best {
                best = term_words.len();
                read[index] = Some(term.mask.trailing_zeros() as u8);
            }
        }
    }
    // Where there is no bag there is no colour of it, whatever the text says.
    for index in 0..SLOT_COUNT {
        if SLOTS[index].needs.is_some_and(|(parent, none)| read[parent] == Some(none)) {
            read[index] = None;
        }
    }
    read.iter().enumerate().filter_map(|(index, value)| Some((index, (*value)?))).collect()
}

/// Reads numbered answers back into slots. Lines without a number from 1 to 15 are skipped; of two lines
/// with the same number the later wins slot by slot.
#[must_use]
pub fn parse_answers(text: &str) -> Reading {
    let mut reading = [None; SLOT_COUNT];
    for line in text.lines() {
        let Some((number, answer)) = line.trim().split_once('.') else { continue };
        let Ok(number) = number.parse::<usize>() else { continue };
        if !(1..=QUESTION_COUNT).contains(&number) {
            continue;
        }
        for (index, value) in read_answer(number - 1, answer) {
            reading[index] = Some(value);
        }
    }
    reading
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::slot;

    #[test]
    fn every_slot_belongs_to_the_phrase_of_its_question() {
        for (index, slot) in SLOTS.iter().enumerate() {
            assert!(GROUPS[slot.question].slots().contains(&index), "{}", slot.name);
        }
    }

    #[test]
    fn an_answer_is_read_by_its_longest_word() {
        assert_eq!(read_answer(3, "Blue long skirt"), [(slot::BOTTOM_TYPE, 3), (slot::BOTTOM_COLOUR, 6)]);
        assert_eq!(read_answer(8, "A shopping bag in hand."), [(slot::OBJECT, 3)]);
        assert_eq!(read_answer(9, "No bag"), [(slot::BAG, 0)]);
    }

    #[test]
    fn garbage_and_vague_answers_say_nothing() {
        assert_eq!(read_answer(5, "Shoes not visible"), []);
        assert_eq!(read_answer(5, "dark shoes"), []);
        assert_eq!(parse_answers("yes\n\n99. A man.\n: . \n1 A man"), [None; SLOT_COUNT]);
    }
}
