//! The words: how each value is called, and how words become phrases.
//!
//! Captions, answers and descriptions share this vocabulary, so that a small model learns it once.

use std::collections::BTreeSet;

use rand::Rng;
use rand::seq::IndexedRandom;

use crate::caption::SlotClaim;
use crate::schema::{Mask, SLOT_COUNT, SLOTS, slot};

/// A word or short expression and the values it may stand for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Term {
    pub(crate) word: &'static str,
    pub(crate) mask: Mask,
}

const fn term(word: &'static str, mask: Mask) -> Term {
    Term { word, mask }
}

const BLACK: Mask = 1;
const WHITE: Mask = 1 << 1;
const GREY: Mask = 1 << 2;
const RED: Mask = 1 << 3;
const YELLOW: Mask = 1 << 4;
const GREEN: Mask = 1 << 5;
const BLUE: Mask = 1 << 6;
const PURPLE: Mask = 1 << 7;
const BROWN: Mask = 1 << 8;
const DARK: Mask = BLACK | BLUE | BROWN | PURPLE;
const LIGHT: Mask = WHITE | GREY | YELLOW;
const BRIGHT: Mask = RED | YELLOW | GREEN;

const COLOUR: &[Term] = &[
    term("black", BLACK),
    term("white", WHITE),
    term("grey", GREY),
    term("red", RED),
    term("yellow", YELLOW),
    term("green", GREEN),
    term("blue", BLUE),
    term("purple", PURPLE),
    term("brown", BROWN),
    term("gray", GREY),
    term("violet", PURPLE),
    term("dark", DARK),
    term("light", LIGHT),
    term("bright", BRIGHT),
];

const SCARF: &[Term] = &[
    term("no scarf", 1),
    term("black scarf", BLACK << 1),
    term("white scarf", WHITE << 1),
    term("grey scarf", GREY << 1),
    term("red scarf", RED << 1),
    term("yellow scarf", YELLOW << 1),
    term("green scarf", GREEN << 1),
    term("blue scarf", BLUE << 1),
    term("purple scarf", PURPLE << 1),
    term("brown scarf", BROWN << 1),
    term("dark scarf", DARK << 1),
    term("light scarf", LIGHT << 1),
    term("bright scarf", BRIGHT << 1),
    term("scarf", 0x3fe),
];

const TERMS: [&[Term]; SLOT_COUNT] = [
    &[
        term("man", 1),
        term("woman", 2),
        term("guy", 1),
        term("male", 1),
        term("lady", 2),
        term("female", 2),
        term("person", 3),
        term("pedestrian", 3),
    ],
    &[
        term("bald", 1),
        term("short", 2),
        term("curly", 4),
        term("long", 8),
        term("ponytail", 16),
        term("bun", 32),
        term("tied", 48),
    ],
    &[
        term("black", 1),
        term("brown", 2),
        term("blonde", 4),
        term("grey", 8),
        term("red", 16),
        term("blond", 4),
        term("ginger", 16),
        term("dark", 3),
        term("light", 12),
    ],
    &[
        term("t-shirt", 1),
        term("shirt", 2),
        term("sweater", 4),
        term("hoodie", 8),
        term("jacket", 16),
        term("coat", 32),
        term("tee", 1),
        term("jumper", 4),
        term("overcoat", 32),
        term("top", 63),
        term("upper garment", 63),
    ],
    COLOUR,
    &[term("long", 1), term("short", 2)],
    &[
        term("plain", 1),
        term("striped", 2),
        term("checked", 4),
        term("printed", 8),
        term("dotted", 16),
        term("spotted", 16),
        term("patterned", 30),
    ],
    &[
        term("trousers", 1),
        term("shorts", 2),
        term("short skirt", 4),
        term("long skirt", 8),
        term("pants", 1),
        term("skirt", 12),
        term("bottoms", 15),
    ],
    COLOUR,
    &[
        term("sneakers", 1),
        term("boots", 2),
        term("sandals", 4),
        term("trainers", 1),
        term("shoes", 7),
        term("footwear", 7),
    ],
    COLOUR,
    &[
        term("no glasses", 1),
        term("glasses", 2),
        term("sunglasses", 4),
        term("shades", 4),
        term("eyewear", 6),
    ],
    SCARF,
    &[
        term("nothing", 1),
        term("phone", 2),
        term("umbrella", 4),
        term("shopping bag", 8),
        term("cup", 16),
        term("book", 32),
        term("mobile", 2),
        term("drink", 16),
        term("something", 62),
        term("small object", 50),
    ],
    &[
        term("no bag", 1),
        term("backpack", 2),
        term("shoulder bag", 4),
        term("handbag", 8),
        term("rucksack", 2),
        term("purse", 8),
        term("bag", 14),
    ],
    COLOUR,
    &[term("no hat", 1), term("cap", 2), term("beanie", 4), term("sun hat", 8), term("hat", 14)],
    COLOUR,
    &[
        term("no belt", 1),
        term("black belt", 2),
        term("white belt", 4),
        term("brown belt", 8),
        term("dark belt", 10),
        term("belt", 14),
    ],
    &[
        term("standing", 1),
        term("walking", 2),
        term("running", 4),
        term("waiting", 1),
        term("strolling", 2),
        term("jogging", 4),
        term("moving", 6),
    ],
    &[
        term("on a street", 1),
        term("in a park", 2),
        term("in a shop", 4),
        term("at a station", 8),
        term("on a square", 16),
        term("by a brick wall", 32),
        term("near a road", 1),
        term("in a store", 4),
        term("on a platform", 8),
        term("on a plaza", 16),
        term("outside", 59),
    ],
    &[term("nobody else", 1), term("one other person", 2), term("two other people", 4), term("others", 6)],
];

/// The terms of slot `index`: the canonical name of value `v` at position `v`, then synonyms and vague words.
pub(crate) fn terms(index: usize) -> &'static [Term] {
    TERMS[index]
}

/// The usual word for a set of values of slot `index`, if there is one.
pub(crate) fn canonical(index: usize, mask: Mask) -> Option<&'static Term> {
    terms(index).iter().find(|term| term.mask == mask)
}

/// A word for `value` of slot `index`: exact (its name in three cases of five, else any exact word) or vague
/// (a word that may also mean another value), exact where the slot has no vague word for it.
pub(crate) fn choose(rng: &mut impl Rng, index: usize, value: u8, vague: bool) -> &'static Term {
    let name = &terms(index)[usize::from(value)];
    let has = |term: &&Term| term.mask >> value & 1 == 1;
    if vague {
        let words: Vec<&Term> = terms(index).iter().filter(|t| has(t) && t.mask.count_ones() > 1).collect();
        if let Some(word) = words.choose(rng) {
            return word;
        }
    }
    if rng.random_bool(0.6) {
        return name;
    }
    let words: Vec<&Term> = terms(index).iter().filter(|t| t.mask == name.mask).collect();
    words.choose(rng).copied().unwrap_or(name)
}

/// The word chosen for each slot that is spoken of.
pub(crate) type Chosen = [Option<&'static Term>; SLOT_COUNT];

/// A noun phrase or other unit that is spoken as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    Who,
    Hair,
    Top,
    Bottom,
    Shoes,
    Glasses,
    Scarf,
    Hat,
    Belt,
    Bag,
    Object,
    Action,
    Place,
    Others,
}

impl Group {
    /// The slots whose words make up the phrase.
    pub(crate) const fn slots(self) -> &'static [usize] {
        match self {
            Self::Who => &[slot::GENDER],
            Self::Hair => &[slot::HAIR_STYLE, slot::HAIR_COLOUR],
            Self::Top => &[slot::TOP_TYPE, slot::TOP_COLOUR, slot::SLEEVES, slot::PATTERN],
            Self::Bottom => &[slot::BOTTOM_TYPE, slot::BOTTOM_COLOUR],
            Self::Shoes => &[slot::SHOES_TYPE, slot::SHOES_COLOUR],
            Self::Glasses => &[slot::GLASSES],
            Self::Scarf => &[slot::SCARF],
            Self::Hat => &[slot::HAT, slot::HAT_COLOUR],
            Self::Belt => &[slot::BELT],
            Self::Bag => &[slot::BAG, slot::BAG_COLOUR],
            Self::Object => &[slot::OBJECT],
            Self::Action => &[slot::ACTION],
            Self::Place => &[slot::BACKGROUND],
            Self::Others => &[slot::OTHERS],
        }
    }
}

/// How a phrase is worded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wording {
    /// The one wording of answers and descriptions.
    Canonical,
    /// Another order of the same words.
    Turned,
}

/// A phrase and what it asserts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Phrase {
    pub(crate) group: Group,
    pub(crate) text: String,
    pub(crate) slots: Vec<SlotClaim>,
    /// True for "no hat" and the like.
    pub(crate) absent: bool,
}

fn with_article(words: &str) -> String {
    let article = if words.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {words}")
}

/// Words separated by spaces, missing ones left out.
fn join(words: &[Option<&str>]) -> String {
    words.iter().flatten().copied().collect::<Vec<_>>().join(" ")
}

/// The phrase for `group` from the `chosen` words; `None` when none of its slots is spoken of.
///
/// `article` is false for an answer ("Red jacket"), true inside a sentence ("a red jacket").
pub(crate) fn phrase(group: Group, chosen: &Chosen, wording: Wording, article: bool) -> Option<Phrase> {
    let slots = group.slots();
    if slots.iter().all(|&index| chosen[index].is_none()) {
        return None;
    }
    let word = |index: usize| chosen[index].map(|term| term.word);
    let turned = wording == Wording::Turned;
    let mut claims: Vec<SlotClaim> = slots
        .iter()
        .filter_map(|&index| chosen[index].map(|term| SlotClaim { slot: index, mask: term.mask }))
        .filter(|claim| claim.mask != SLOTS[claim.slot].all())
        .collect();
    let absent = slots
        .first()
        .and_then(|&index| Some((chosen[index]?.mask, SLOTS[index].absent?)))
        .is_some_and(|(mask, none)| mask == 1 << none);
    let first = slots.first().copied().and_then(word);
    let (text, countable) = match group {
        Group::Who => (first.unwrap_or("person").to_owned(), true),
        Group::Hair => {
            if chosen[slot::HAIR_STYLE].is_none() {
                claims.push(SlotClaim { slot: slot::HAIR_STYLE, mask: SLOTS[slot::HAIR_STYLE].all() & !1 });
            }
            let colour = word(slot::HAIR_COLOUR);
            match word(slot::HAIR_STYLE) {
                Some("bald") => ("bald head".to_owned(), true),
                Some(style @ ("ponytail" | "bun")) if turned => (join(&[colour, Some(style)]), true),
                Some(style @ ("ponytail" | "bun")) => {
                    (format!("{} in a {style}", join(&[colour, Some("hair")])), false)
                }
                style => (join(&[style, colour, Some("hair")]), false),
            }
        }
        Group::Top => {
            let noun = word(slot::TOP_TYPE).unwrap_or("top");
            let body = join(&[word(slot::PATTERN), word(slot::TOP_COLOUR), Some(noun)]);
            let text = match word(slot::SLEEVES) {
                Some(length) if turned => format!("{length} sleeved {body}"),
                Some(length) => format!("{body} with {length} sleeves"),
                None => body,
            };
            (text, true)
        }
        Group::Bottom => {
            let noun = word(slot::BOTTOM_TYPE).unwrap_or("bottoms");
            (join(&[word(slot::BOTTOM_COLOUR), Some(noun)]), noun.ends_with("skirt"))
        }
        Group::Shoes => {
            (join(&[word(slot::SHOES_COLOUR), Some(word(slot::SHOES_TYPE).unwrap_or("shoes"))]), false)
        }
        Group::Hat => (join(&[word(slot::HAT_COLOUR), Some(first.unwrap_or("hat"))]), true),
        Group::Bag => (join(&[word(slot::BAG_COLOUR), Some(first.unwrap_or("bag"))]), true),
        Group::Scarf | Group::Belt => (first?.to_owned(), true),
        Group::Object => (first?.to_owned(), first != Some("something")),
        Group::Glasses | Group::Action | Group::Place | Group::Others => (first?.to_owned(), false),
    };
    let text = if article && countable && !absent { with_article(&text) } else { text };
    Some(Phrase { group, text, slots: claims, absent })
}

/// Every word that captions, answers and descriptions can contain, lower case, sorted.
#[must_use]
pub fn vocabulary() -> Vec<&'static str> {
    let mut words: BTreeSet<&'static str> = BTreeSet::new();
    for terms in TERMS {
        words.extend(terms.iter().flat_map(|term| term.word.split(' ')));
    }
    for text in crate::witness::FRAME_WORDS.iter().chain(crate::answers::FRAME_WORDS) {
        words.extend(text.split(' '));
    }
    words.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_terms_of_a_slot_name_its_values_in_order() {
        for (index, slot) in SLOTS.iter().enumerate() {
            for value in 0..slot.values.len() {
                let mask = terms(index)[value].mask;
                assert_eq!(mask, 1 << value, "{} {value}", slot.name);
            }
            for term in terms(index) {
                assert_eq!(term.mask & !slot.all(), 0, "{} {}", slot.name, term.word);
            }
        }
    }

    #[test]
    fn no_two_terms_of_a_slot_share_a_word() {
        for (index, slot) in SLOTS.iter().enumerate() {
            let words: BTreeSet<&str> = terms(index).iter().map(|term| term.word).collect();
            assert_eq!(words.len(), terms(index).len(), "{}", slot.name);
        }
    }

    #[test]
    fn the_vocabulary_stays_small() {
        assert!(vocabulary().len() < 250, "{}", vocabulary().len());
    }
}
