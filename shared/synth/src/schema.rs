//! What can be true of one image: the slots, their values, and which of them can be seen.

use serde::{Deserialize, Serialize};

/// A set of values of one slot: bit `v` stands for value `v`.
pub type Mask = u16;

/// Colours of clothes, bags and hats, in value order.
pub const COLOURS: [&str; 9] =
    ["black", "white", "grey", "red", "yellow", "green", "blue", "purple", "brown"];

/// Colours of hair, in value order.
pub const HAIR_COLOURS: [&str; 5] = ["black", "brown", "blonde", "grey", "red"];

/// Number of slots.
pub const SLOT_COUNT: usize = 22;

/// The first `IDENTITY_SLOTS` slots belong to a person; the others belong to a view.
pub const IDENTITY_SLOTS: usize = 19;

/// Indices into [`SLOTS`].
pub mod slot {
    /// Man or woman.
    pub const GENDER: usize = 0;
    /// How the hair is worn.
    pub const HAIR_STYLE: usize = 1;
    /// Colour of the hair; not applicable to a bald head.
    pub const HAIR_COLOUR: usize = 2;
    /// Kind of upper garment.
    pub const TOP_TYPE: usize = 3;
    /// Colour of the upper garment.
    pub const TOP_COLOUR: usize = 4;
    /// Sleeve length.
    pub const SLEEVES: usize = 5;
    /// Pattern of the upper garment.
    pub const PATTERN: usize = 6;
    /// Kind of lower garment.
    pub const BOTTOM_TYPE: usize = 7;
    /// Colour of the lower garment.
    pub const BOTTOM_COLOUR: usize = 8;
    /// Kind of shoes.
    pub const SHOES_TYPE: usize = 9;
    /// Colour of the shoes.
    pub const SHOES_COLOUR: usize = 10;
    /// Glasses.
    pub const GLASSES: usize = 11;
    /// Scarf: none or its colour.
    pub const SCARF: usize = 12;
    /// Object in the hand.
    pub const OBJECT: usize = 13;
    /// Kind of bag.
    pub const BAG: usize = 14;
    /// Colour of the bag; not applicable without one.
    pub const BAG_COLOUR: usize = 15;
    /// Kind of hat.
    pub const HAT: usize = 16;
    /// Colour of the hat; not applicable without one.
    pub const HAT_COLOUR: usize = 17;
    /// Belt: none or its colour.
    pub const BELT: usize = 18;
    /// What the person is doing.
    pub const ACTION: usize = 19;
    /// Where the person is.
    pub const BACKGROUND: usize = 20;
    /// Other people in the picture.
    pub const OTHERS: usize = 21;
}

/// One categorical attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// Snake-case name, unique.
    pub name: &'static str,
    /// Names of the values; a value is an index into this list.
    pub values: &'static [&'static str],
    /// Which of the fifteen attribute questions asks for it, counted from 0.
    pub question: usize,
    /// The value that means "there is none", if the slot has one.
    pub absent: Option<u8>,
    /// The slot and the value under which this one is not applicable, e.g. the colour of no bag.
    pub needs: Option<(usize, u8)>,
}

impl Slot {
    /// The set of all values.
    #[must_use]
    pub const fn all(&self) -> Mask {
        ((1u32 << self.values.len()) - 1) as Mask
    }
}

const fn plain(name: &'static str, values: &'static [&'static str], question: usize) -> Slot {
    Slot { name, values, question, absent: None, needs: None }
}

const fn optional(name: &'static str, values: &'static [&'static str], question: usize) -> Slot {
    Slot { name, values, question, absent: Some(0), needs: None }
}

const fn colour_of(name: &'static str, question: usize, parent: usize) -> Slot {
    Slot { name, values: &COLOURS, question, absent: None, needs: Some((parent, 0)) }
}

/// Every slot, in the order of [`Appearance::values`].
pub const SLOTS: [Slot; SLOT_COUNT] = [
    plain("gender", &["man", "woman"], 0),
    plain("hair_style", &["bald", "short", "curly", "long", "ponytail", "bun"], 1),
    Slot { name: "hair_colour", values: &HAIR_COLOURS, question: 1, absent: None, needs: Some((1, 0)) },
    plain("top_type", &["t-shirt", "shirt", "sweater", "hoodie", "jacket", "coat"], 2),
    plain("top_colour", &COLOURS, 2),
    plain("sleeves", &["long", "short"], 2),
    plain("pattern", &["plain", "striped", "checked", "printed", "dotted"], 4),
    plain("bottom_type", &["trousers", "shorts", "short skirt", "long skirt"], 3),
    plain("bottom_colour", &COLOURS, 3),
    plain("shoes_type", &["sneakers", "boots", "sandals"], 5),
    plain("shoes_colour", &COLOURS, 5),
    optional("glasses", &["none", "glasses", "sunglasses"], 6),
    optional(
        "scarf",
        &["none", "black", "white", "grey", "red", "yellow", "green", "blue", "purple", "brown"],
        7,
    ),
    optional("object", &["none", "phone", "umbrella", "shopping bag", "cup", "book"], 8),
    optional("bag", &["none", "backpack", "shoulder bag", "handbag"], 9),
    colour_of("bag_colour", 9, slot::BAG),
    optional("hat", &["none", "cap", "beanie", "sun hat"], 10),
    colour_of("hat_colour", 10, slot::HAT),
    optional("belt", &["none", "black", "white", "brown"], 11),
    plain("action", &["standing", "walking", "running"], 12),
    plain("background", &["street", "park", "shop", "station", "square", "brick wall"], 13),
    optional("others", &["nobody", "one person", "two people"], 14),
];

/// True when `index` means something for a person or image with these `values`: the colour of a bag does
/// only if there is a bag.
pub(crate) fn applicable(values: &[u8], index: usize) -> bool {
    SLOTS[index].needs.is_none_or(|(parent, none)| values[parent] != none)
}

/// In how many slots two lists of values differ.
///
/// A slot that does not apply to one of the two (the colour of a missing bag) is not counted, so that a bag
/// more or less is one difference. Only the slots that both lists have are compared.
#[must_use]
pub fn differences(a: &[u8], b: &[u8]) -> usize {
    (0..a.len().min(b.len()))
        .filter(|&index| a[index] != b[index] && applicable(a, index) && applicable(b, index))
        .count()
}

/// What is true of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Appearance {
    /// The value of each slot of [`SLOTS`]; 0 for a slot that is not applicable.
    pub values: [u8; SLOT_COUNT],
    /// Bit `s` is set when a viewer of the image can tell slot `s`.
    pub visible: u32,
}

impl Appearance {
    /// True when a viewer can tell slot `index`.
    #[must_use]
    pub const fn is_visible(&self, index: usize) -> bool {
        self.visible >> index & 1 == 1
    }

    /// The value of slot `index` if a viewer can tell it.
    #[must_use]
    pub fn seen(&self, index: usize) -> Option<u8> {
        self.is_visible(index).then(|| self.values[index])
    }

    /// The name of the value of slot `index` if a viewer can tell it.
    #[must_use]
    pub fn seen_name(&self, index: usize) -> Option<&'static str> {
        self.seen(index).map(|value| SLOTS[index].values[usize::from(value)])
    }
}

/// Which side of a person the camera sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Facing {
    /// The face is towards the camera.
    Front,
    /// The back is towards the camera: glasses and small things in the hand cannot be told.
    Back,
    /// Seen from the side.
    Side,
}

/// What stands between the camera and the feet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Occluder {
    /// Nothing: the feet are in the picture.
    None,
    /// The lower edge of the picture cuts the shins.
    Crop,
    /// A hedge.
    Hedge,
    /// A parked car.
    Car,
    /// A row of bollards with a beam.
    Barrier,
}

/// The circumstances of one picture of a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Scene {
    /// Which side is seen.
    pub facing: Facing,
    /// What hides the feet.
    pub occluder: Occluder,
    /// Value of the slot `action`.
    pub action: u8,
    /// Value of the slot `background`.
    pub background: u8,
    /// Value of the slot `others`.
    pub others: u8,
}

impl Scene {
    /// What a picture of a person with these identity `values` shows under these circumstances.
    #[must_use]
    pub fn appearance(&self, values: &[u8; IDENTITY_SLOTS]) -> Appearance {
        let mut all = [0; SLOT_COUNT];
        all[..IDENTITY_SLOTS].copy_from_slice(values);
        all[slot::ACTION] = self.action;
        all[slot::BACKGROUND] = self.background;
        all[slot::OTHERS] = self.others;
        let mut visible = 0;
        for index in 0..SLOT_COUNT {
            if applicable(&all, index) && self.shows(&all, index) {
                visible |= 1 << index;
            } else if !applicable(&all, index) {
                all[index] = 0;
            }
        }
        Appearance { values: all, visible }
    }

    fn shows(&self, values: &[u8; SLOT_COUNT], index: usize) -> bool {
        match index {
            slot::SHOES_TYPE | slot::SHOES_COLOUR => self.occluder == Occluder::None,
            slot::GLASSES => self.facing != Facing::Back,
            // A backpack or long hair covers collar, hood and seams; a coat is told by its length.
            slot::TOP_TYPE => {
                self.facing != Facing::Back
                    || values[slot::TOP_TYPE] == TOP_COAT
                    || (values[slot::BAG] != BAG_BACKPACK && values[slot::HAIR_STYLE] != HAIR_LONG)
            }
            // A backpack covers a print on the back, and so nobody knows that there is none.
            slot::PATTERN => {
                self.facing != Facing::Back
                    || values[slot::BAG] != BAG_BACKPACK
                    || !matches!(values[slot::PATTERN], PATTERN_PLAIN | PATTERN_PRINTED)
            }
            // From behind only what hangs beside the legs can be seen; an empty hand may hold a phone.
            slot::OBJECT => {
                self.facing != Facing::Back
                    || matches!(values[slot::OBJECT], OBJECT_UMBRELLA | OBJECT_SHOPPING)
            }
            _ => true,
        }
    }
}

const HAIR_LONG: u8 = 3;
const TOP_COAT: u8 = 5;
const PATTERN_PLAIN: u8 = 0;
const PATTERN_PRINTED: u8 = 3;
const BAG_BACKPACK: u8 = 1;

pub(crate) const OBJECT_PHONE: u8 = 1;
pub(crate) const OBJECT_UMBRELLA: u8 = 2;
pub(crate) const OBJECT_SHOPPING: u8 = 3;
pub(crate) const OBJECT_CUP: u8 = 4;
pub(crate) const OBJECT_BOOK: u8 = 5;

pub(crate) const ACTION_WALKING: u8 = 1;
pub(crate) const ACTION_RUNNING: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_indices_name_the_slots_they_stand_for() {
        let named = [
            (slot::HAIR_COLOUR, "hair_colour"),
            (slot::PATTERN, "pattern"),
            (slot::SHOES_COLOUR, "shoes_colour"),
            (slot::BAG_COLOUR, "bag_colour"),
            (slot::BELT, "belt"),
            (slot::OTHERS, "others"),
        ];
        for (index, name) in named {
            assert_eq!(SLOTS[index].name, name);
        }
    }

    #[test]
    fn a_bag_more_or_less_is_one_difference() {
        let without = [0; IDENTITY_SLOTS];
        let mut with = without;
        with[slot::BAG] = 1;
        with[slot::BAG_COLOUR] = 4;
        assert_eq!(differences(&without, &with), 1);
        let mut other = with;
        other[slot::BAG_COLOUR] = 5;
        assert_eq!(differences(&with, &other), 1);
    }

    #[test]
    fn a_back_view_hides_glasses_and_a_phone_but_not_an_umbrella() {
        let scene =
            Scene { facing: Facing::Back, occluder: Occluder::None, action: 0, background: 0, others: 0 };
        let mut values = [1; IDENTITY_SLOTS];
        let seen = scene.appearance(&values);
        assert_eq!(seen.seen(slot::GLASSES), None);
        assert_eq!(seen.seen(slot::OBJECT), None);
        values[slot::OBJECT] = OBJECT_UMBRELLA;
        assert_eq!(scene.appearance(&values).seen(slot::OBJECT), Some(OBJECT_UMBRELLA));
    }

    #[test]
    fn a_backpack_hides_whether_the_back_of_a_plain_garment_is_printed() {
        let mut scene =
            Scene { facing: Facing::Back, occluder: Occluder::None, action: 0, background: 0, others: 0 };
        let mut values = [0; IDENTITY_SLOTS];
        values[slot::BAG] = BAG_BACKPACK;
        assert_eq!(scene.appearance(&values).seen(slot::PATTERN), None);
        assert_eq!(scene.appearance(&values).seen(slot::TOP_TYPE), None);
        scene.facing = Facing::Front;
        assert_eq!(scene.appearance(&values).seen(slot::PATTERN), Some(PATTERN_PLAIN));
    }

    #[test]
    fn the_colour_of_a_missing_bag_cannot_be_told() {
        let scene =
            Scene { facing: Facing::Front, occluder: Occluder::None, action: 0, background: 0, others: 0 };
        let mut values = [1; IDENTITY_SLOTS];
        assert!(scene.appearance(&values).is_visible(slot::BAG_COLOUR));
        values[slot::BAG] = 0;
        assert!(!scene.appearance(&values).is_visible(slot::BAG_COLOUR));
        assert!(scene.appearance(&values).is_visible(slot::BAG));
    }
}
