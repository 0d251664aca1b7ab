//! The canonical description of an image, alone and merged with what a witness said.

use crate::answers::seen_words;
use crate::caption::{Caption, Draft};
use crate::lexicon::{Chosen, Group, Phrase, Wording, canonical, phrase};
use crate::schema::{Appearance, SLOT_COUNT, SLOTS, slot};

const WORN: [Group; 7] =
    [Group::Top, Group::Bottom, Group::Shoes, Group::Glasses, Group::Scarf, Group::Hat, Group::Belt];

fn claim(draft: &mut Draft, before: &str, found: Option<&Phrase>) -> bool {
    if let Some(found) = found {
        draft.say(before);
        draft.claim(&found.text, &found.slots);
    }
    found.is_some()
}

fn compose(chosen: &Chosen) -> Caption {
    let make = |group| phrase(group, chosen, Wording::Canonical, true);
    let mut draft = Draft::default();
    let who = make(Group::Who);
    let pronoun = match chosen[slot::GENDER].map(|term| term.mask) {
        Some(1) => "he ",
        Some(2) => "she ",
        _ => "the person ",
    };
    if !claim(&mut draft, "", who.as_ref()) {
        draft.say("a person");
    }
    claim(&mut draft, " with ", make(Group::Hair).as_ref());
    let worn: Vec<Phrase> = WORN.into_iter().filter_map(make).collect();
    for (position, found) in worn.iter().enumerate() {
        let before = match position {
            0 => " wears ",
            _ if position + 1 == worn.len() => " and ",
            _ => ", ",
        };
        claim(&mut draft, before, Some(found));
    }
    draft.stop();
    let (bag, object) = (make(Group::Bag), make(Group::Object));
    if bag.is_some() || object.is_some() {
        draft.say(pronoun);
        let carries = claim(&mut draft, "carries ", bag.as_ref());
        claim(&mut draft, if carries { " and holds " } else { "holds " }, object.as_ref());
        draft.stop();
    }
    let scene = [(Group::Action, ""), (Group::Place, ""), (Group::Others, "with ")];
    let scene: Vec<(Phrase, &str)> =
        scene.into_iter().filter_map(|(group, before)| Some((make(group)?, before))).collect();
    for (position, (found, before)) in scene.iter().enumerate() {
        if position == 0 {
            draft.say(pronoun);
            draft.say("is ");
        } else {
            draft.say(" ");
        }
        claim(&mut draft, before, Some(found));
    }
    if !scene.is_empty() {
        draft.stop();
    }
    draft.finish()
}

/// The canonical description of an image: every visible slot by its usual name, always in the same order.
/// At most 62 words.
#[must_use]
pub fn describe(appearance: &Appearance) -> Caption {
    compose(&seen_words(appearance))
}

/// What a witness and a picture of the same person say together: the canonical description of the picture,
/// in which a slot that the picture hides is filled from the caption. Where the two disagree the picture is
/// right.
#[must_use]
pub fn merge(caption: &Caption, appearance: &Appearance) -> String {
    let mut chosen = seen_words(appearance);
    for (index, word) in chosen.iter_mut().enumerate().filter(|(_, word)| word.is_none()) {
        *word = caption.allows(index).and_then(|mask| canonical(index, mask));
    }
    // The colour of a bag that the picture shows to be missing.
    for index in 0..SLOT_COUNT {
        if let Some((parent, none)) = SLOTS[index].needs
            && chosen[parent].is_some_and(|term| term.mask == 1 << none)
        {
            chosen[index] = None;
        }
    }
    compose(&chosen).text
}
