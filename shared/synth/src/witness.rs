//! Captions as different people would give them: short or long, exact or vague, sometimes wrong.

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde::{Deserialize, Serialize};

use crate::caption::{Caption, Draft};
use crate::lexicon::{Chosen, Group, Phrase, Wording, choose, phrase};
use crate::schema::{Appearance, IDENTITY_SLOTS, SLOT_COUNT, SLOTS, slot};

/// The words of the sentence frames, for the vocabulary.
pub(crate) const FRAME_WORDS: &[&str] = &[
    "this there is a an with and wearing wears dressed in has on carries carrying holds holding he she the",
    "hair head bottoms shoes sleeved sleeves near",
];

/// The manner of a witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// Few details, often as a list.
    Brief,
    /// Some details in whole sentences.
    Ordinary,
    /// Most details.
    Detailed,
    /// Many words that fit more than one value, such as "dark".
    Vague,
    /// Often wrong about a detail.
    ErrorProne,
}

/// How a witness describes what an image shows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Witness {
    /// The manner; it decides between a list and sentences.
    pub style: Style,
    /// Least and greatest share of the visible attributes that are named, both in `0..=1`.
    pub coverage: (f32, f32),
    /// Probability in `0..=1` that a correct mention uses a vague word, where the slot has one.
    pub vagueness: f32,
    /// Probability in `0..=1` that a mention states a wrong value. The gender is never wrong.
    pub error_rate: f32,
    /// How likely something missing ("no hat") is named, relative to something that is there, in `0..=1`.
    pub absence: f32,
    /// Probability in `0..=1` that each of action, background and other people is named.
    pub scene: f32,
}

/// Rate of wrong details of every witness who is not error-prone.
const USUAL_ERRORS: f32 = 0.045;

impl Witness {
    /// The usual witness of a style. In the mix of [`Witness::draw`] about 30 % of the mentions are vague and
    /// 6 % are wrong.
    #[must_use]
    pub const fn new(style: Style) -> Self {
        let (coverage, vagueness, error_rate, absence) = match style {
            Style::Brief => ((0.35, 0.5), 0.42, USUAL_ERRORS, 0.0),
            Style::Ordinary => ((0.45, 0.65), 0.42, USUAL_ERRORS, 0.1),
            Style::Detailed => ((0.65, 0.8), 0.36, USUAL_ERRORS, 0.3),
            Style::Vague => ((0.4, 0.6), 0.8, USUAL_ERRORS, 0.1),
            Style::ErrorProne => ((0.45, 0.7), 0.42, 0.18, 0.15),
        };
        Self { style, coverage, vagueness, error_rate, absence, scene: 0.15 }
    }

    /// The same witness with another rate of wrong details.
    #[must_use]
    pub const fn with_error_rate(mut self, error_rate: f32) -> Self {
        self.error_rate = error_rate;
        self
    }

    /// A witness at random: 20 % brief, 35 % ordinary, 20 % detailed, 13 % vague, 12 % error-prone.
    pub fn draw(rng: &mut impl Rng) -> Self {
        Self::new(match rng.random_range(0..100) {
            0..20 => Style::Brief,
            20..55 => Style::Ordinary,
            55..75 => Style::Detailed,
            75..88 => Style::Vague,
            _ => Style::ErrorProne,
        })
    }
}

fn chance(rng: &mut impl Rng, probability: f32) -> bool {
    rng.random_bool(f64::from(probability).clamp(0.0, 1.0))
}

/// The words a witness chooses for the slots he speaks of.
fn choose_words(rng: &mut impl Rng, appearance: &Appearance, witness: &Witness) -> Chosen {
    let (low, high) = witness.coverage;
    let coverage = low + (high - low).max(0.0) * rng.random::<f32>();
    let mut spoken = [false; SLOT_COUNT];
    for (index, slot) in SLOTS.iter().enumerate() {
        let Some(value) = appearance.seen(index) else { continue };
        let probability = match slot.absent {
            _ if index == slot::GENDER => 1.0,
            _ if index >= IDENTITY_SLOTS => witness.scene,
            Some(none) if none == value => coverage * witness.absence,
            _ => coverage,
        };
        spoken[index] = chance(rng, probability);
    }
    // A colour is always the colour of something.
    for (index, slot) in SLOTS.iter().enumerate() {
        if let (true, Some((parent, _))) = (spoken[index], slot.needs)
            && slot.question != SLOTS[slot::HAIR_STYLE].question
        {
            spoken[parent] = true;
        }
    }
    let mut chosen: Chosen = [None; SLOT_COUNT];
    for index in 0..SLOT_COUNT {
        if !spoken[index] {
            continue;
        }
        let truth = appearance.values[index];
        let wrong = index != slot::GENDER && chance(rng, witness.error_rate);
        let count = SLOTS[index].values.len() as u8;
        chosen[index] = Some(if wrong {
            let value = (truth + rng.random_range(1..count)) % count;
            choose(rng, index, value, false)
        } else {
            let vague = chance(rng, witness.vagueness) && (index != slot::GENDER || rng.random_bool(0.4));
            choose(rng, index, truth, vague)
        });
    }
    // Who says by mistake that there is no bag says nothing of its colour.
    for (index, slot) in SLOTS.iter().enumerate() {
        if let Some((parent, none)) = slot.needs
            && chosen[parent].is_some_and(|term| term.mask == 1 << none)
        {
            chosen[index] = None;
        }
    }
    chosen
}

/// A part of a sentence about the person.
enum Clause {
    Hair(Phrase),
    Wear(Vec<Phrase>),
    Lack(Vec<Phrase>),
    Carry(Phrase),
    Hold(Phrase),
    Scene(Vec<Phrase>),
}

fn say_list(draft: &mut Draft, phrases: &[Phrase]) {
    for (position, phrase) in phrases.iter().enumerate() {
        if position > 0 {
            draft.say(if position + 1 == phrases.len() { " and " } else { ", " });
        }
        draft.claim(&phrase.text, &phrase.slots);
    }
}

/// What stands before a scene that begins with other people.
fn beside(phrases: &[Phrase]) -> &'static str {
    match phrases.first() {
        Some(phrase) if phrase.group == Group::Others => {
            if phrase.absent {
                "with "
            } else {
                "near "
            }
        }
        _ => "",
    }
}

impl Clause {
    /// The clause after a participle or preposition: "wearing a red coat".
    fn say_loose(&self, draft: &mut Draft, rng: &mut impl Rng) {
        let mut pick = |words: &[&'static str]| words.choose(rng).copied().unwrap_or("with ");
        match self {
            Self::Hair(_) | Self::Lack(_) => draft.say("with "),
            Self::Wear(_) => draft.say(pick(&["wearing ", "in ", "dressed in "])),
            Self::Carry(_) => draft.say(pick(&["carrying ", "with "])),
            Self::Hold(_) => draft.say("holding "),
            Self::Scene(phrases) => {
                draft.say(beside(phrases));
            }
        }
        self.say_phrases(draft);
    }

    /// The clause after a subject: "wears a red coat".
    fn say_finite(&self, draft: &mut Draft, rng: &mut impl Rng) {
        let mut pick = |words: &[&'static str]| words.choose(rng).copied().unwrap_or("has ");
        match self {
            Self::Hair(_) | Self::Lack(_) => draft.say("has "),
            Self::Wear(_) => draft.say(pick(&["wears ", "is wearing ", "is dressed in ", "has on "])),
            Self::Carry(_) => draft.say(pick(&["carries ", "has ", "is carrying "])),
            Self::Hold(_) => draft.say(pick(&["holds ", "is holding "])),
            Self::Scene(phrases) => {
                draft.say("is ");
                draft.say(beside(phrases));
            }
        }
        self.say_phrases(draft);
    }

    fn say_phrases(&self, draft: &mut Draft) {
        match self {
            Self::Hair(phrase) | Self::Carry(phrase) | Self::Hold(phrase) => {
                draft.claim(&phrase.text, &phrase.slots);
            }
            Self::Wear(phrases) | Self::Lack(phrases) => say_list(draft, phrases),
            Self::Scene(phrases) => {
                for (position, phrase) in phrases.iter().enumerate() {
                    if position > 0 {
                        draft.say(if phrase.group == Group::Others { " with " } else { " " });
                    }
                    draft.claim(&phrase.text, &phrase.slots);
                }
            }
        }
    }
}

/// Every phrase of the chosen words but the subject, in the order people usually speak.
fn phrases(rng: &mut impl Rng, chosen: &Chosen) -> Vec<Phrase> {
    const ORDER: [Group; 13] = [
        Group::Hair,
        Group::Top,
        Group::Bottom,
        Group::Shoes,
        Group::Glasses,
        Group::Scarf,
        Group::Hat,
        Group::Belt,
        Group::Bag,
        Group::Object,
        Group::Action,
        Group::Place,
        Group::Others,
    ];
    let mut made = Vec::with_capacity(ORDER.len());
    for group in ORDER {
        let wording = if rng.random_bool(0.3) { Wording::Turned } else { Wording::Canonical };
        made.extend(phrase(group, chosen, wording, true));
    }
    made
}

fn clauses(rng: &mut impl Rng, phrases: Vec<Phrase>) -> Vec<Clause> {
    let (mut hair, mut carry, mut hold) = (None, None, None);
    let (mut wear, mut lack, mut scene) = (Vec::new(), Vec::new(), Vec::new());
    for phrase in phrases {
        match phrase.group {
            Group::Action | Group::Place | Group::Others => scene.push(phrase),
            Group::Object => hold = Some(phrase),
            _ if phrase.absent => lack.push(phrase),
            Group::Hair => hair = Some(phrase),
            Group::Bag => carry = Some(phrase),
            _ => wear.push(phrase),
        }
    }
    if rng.random_bool(0.4) {
        wear.shuffle(rng);
    }
    let mut made: Vec<Clause> = Vec::new();
    made.extend(hair.map(Clause::Hair));
    if !wear.is_empty() {
        let at = made.len();
        // Half of the witnesses speak of the clothes before the hair.
        made.insert(if rng.random_bool(0.5) { 0 } else { at }, Clause::Wear(wear));
    }
    made.extend(carry.map(Clause::Carry));
    made.extend(hold.map(Clause::Hold));
    if !lack.is_empty() {
        made.push(Clause::Lack(lack));
    }
    if rng.random_bool(0.2) {
        made.shuffle(rng);
    }
    if !scene.is_empty() {
        made.push(Clause::Scene(scene));
    }
    made
}

/// Describes what `appearance` shows, in the manner of `witness`. Only visible slots are spoken of.
pub fn write_caption(rng: &mut impl Rng, appearance: &Appearance, witness: &Witness) -> Caption {
    let chosen = choose_words(rng, appearance, witness);
    let who = phrase(Group::Who, &chosen, Wording::Canonical, true).unwrap_or_else(|| Phrase {
        group: Group::Who,
        text: "a person".to_owned(),
        slots: Vec::new(),
        absent: false,
    });
    let pronoun = match chosen[slot::GENDER].map(|term| term.mask) {
        Some(1) => "he ",
        Some(2) => "she ",
        _ => "the person ",
    };
    let phrases = phrases(rng, &chosen);
    let list_probability = if witness.style == Style::Brief { 0.6 } else { 0.1 };
    let mut draft = Draft::default();
    if chance(rng, list_probability) {
        draft.claim(&who.text, &who.slots);
        for phrase in &phrases {
            draft.say(", ");
            draft.claim(&phrase.text, &phrase.slots);
        }
        draft.stop();
        return draft.finish();
    }
    let clauses = clauses(rng, phrases);
    let mut rest = clauses.as_slice();
    // The opening: one of four frames, as far as there is something to say.
    match (rng.random_range(0..4), clauses.as_slice()) {
        (0, [first @ Clause::Wear(_), second, tail @ ..]) => {
            draft.say("wearing ");
            first.say_phrases(&mut draft);
            draft.say(", ");
            draft.claim(&who.text, &who.slots);
            draft.say(" ");
            second.say_finite(&mut draft, rng);
            rest = tail;
        }
        (1, [first, tail @ ..]) => {
            draft.claim(&who.text, &who.slots);
            draft.say(" ");
            first.say_finite(&mut draft, rng);
            rest = tail;
        }
        (frame, [first, tail @ ..]) => {
            if frame == 2 {
                draft.say("there is ");
            }
            draft.claim(&who.text, &who.slots);
            draft.say(" ");
            first.say_loose(&mut draft, rng);
            rest = tail;
            while let [next, tail @ ..] = rest
                && rng.random_bool(0.5)
            {
                draft.say(", ");
                next.say_loose(&mut draft, rng);
                rest = tail;
            }
        }
        (_, []) => {
            draft.say("there is ");
            draft.claim(&who.text, &who.slots);
        }
    }
    draft.stop();
    while let [first, tail @ ..] = rest {
        draft.say(pronoun);
        first.say_finite(&mut draft, rng);
        rest = tail;
        if let [second, tail @ ..] = rest
            && rng.random_bool(0.6)
        {
            draft.say(" and ");
            second.say_finite(&mut draft, rng);
            rest = tail;
        }
        draft.stop();
    }
    draft.finish()
}
