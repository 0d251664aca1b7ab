//! A text about a person, and what each of its phrases asserts.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::schema::{Appearance, Mask};

/// What a phrase says about one slot: the value is one of `mask`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotClaim {
    /// Index into [`SLOTS`](crate::SLOTS).
    pub slot: usize,
    /// The values the phrase allows; never empty and never all of them.
    pub mask: Mask,
}

/// One phrase of a text and what it asserts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Bytes of the phrase in the text.
    pub span: Range<usize>,
    /// What it says, at least one slot.
    pub slots: Vec<SlotClaim>,
}

impl Claim {
    /// Whether the phrase is true of an image: `Some(false)` when a visible slot contradicts it, `None` when
    /// nothing contradicts it but a slot it speaks of cannot be seen, `Some(true)` otherwise.
    #[must_use]
    pub fn fits(&self, appearance: &Appearance) -> Option<bool> {
        let mut verdict = Some(true);
        for claim in &self.slots {
            match appearance.seen(claim.slot) {
                Some(value) if claim.mask >> value & 1 == 0 => return Some(false),
                Some(_) => {}
                None => verdict = None,
            }
        }
        verdict
    }
}

/// A text with the claims of its phrases, in text order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caption {
    /// English, ASCII, one or more sentences.
    pub text: String,
    /// What the phrases assert; spans do not overlap.
    pub claims: Vec<Claim>,
}

impl Caption {
    /// The words of a claim of this caption.
    #[must_use]
    pub fn phrase(&self, claim: &Claim) -> &str {
        self.text.get(claim.span.clone()).unwrap_or_default()
    }

    /// The values the caption allows for slot `index`, or `None` when it does not speak of it.
    #[must_use]
    pub fn allows(&self, index: usize) -> Option<Mask> {
        let mut said = self.claims.iter().flat_map(|claim| &claim.slots).filter(|claim| claim.slot == index);
        said.next().map(|claim| claim.mask)
    }

    /// True when no claim is contradicted by the image.
    #[must_use]
    pub fn fits(&self, appearance: &Appearance) -> bool {
        self.claims.iter().all(|claim| claim.fits(appearance) != Some(false))
    }
}

/// A text under construction. It capitalises the first letter of each sentence.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    text: String,
    claims: Vec<Claim>,
}

impl Draft {
    /// Appends words that assert nothing.
    pub(crate) fn say(&mut self, words: &str) {
        let starts = self.text.is_empty() || self.text.ends_with(". ");
        let mut chars = words.chars();
        match chars.next() {
            Some(first) if starts => {
                self.text.extend(first.to_uppercase());
                self.text.push_str(chars.as_str());
            }
            _ => self.text.push_str(words),
        }
    }

    /// Appends a phrase and what it asserts; a phrase without slots asserts nothing.
    pub(crate) fn claim(&mut self, phrase: &str, slots: &[SlotClaim]) {
        let start = self.text.len();
        self.say(phrase);
        if !slots.is_empty() {
            self.claims.push(Claim { span: start..self.text.len(), slots: slots.to_vec() });
        }
    }

    /// Ends the sentence; the next word starts a new one.
    pub(crate) fn stop(&mut self) {
        self.text.push_str(". ");
    }

    pub(crate) fn finish(mut self) -> Caption {
        self.text.truncate(self.text.trim_end().len());
        Caption { text: self.text, claims: self.claims }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(value: u8, visible: u32) -> Appearance {
        let mut values = [0; crate::SLOT_COUNT];
        values[4] = value;
        Appearance { values, visible }
    }

    #[test]
    fn a_claim_about_a_hidden_slot_neither_fits_nor_fails() {
        let claim = Claim { span: 0..3, slots: vec![SlotClaim { slot: 4, mask: 0b1010 }] };
        assert_eq!(claim.fits(&seen(3, 1 << 4)), Some(true));
        assert_eq!(claim.fits(&seen(2, 1 << 4)), Some(false));
        assert_eq!(claim.fits(&seen(2, 0)), None);
    }

    #[test]
    fn a_contradiction_outweighs_a_hidden_slot() {
        let slots = vec![SlotClaim { slot: 9, mask: 1 }, SlotClaim { slot: 4, mask: 1 }];
        let claim = Claim { span: 0..3, slots };
        assert_eq!(claim.fits(&seen(2, 1 << 4)), Some(false));
    }
}
