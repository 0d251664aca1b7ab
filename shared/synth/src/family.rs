//! Families of look-alikes: people who differ in few attributes.

use std::collections::BTreeSet;

use rand::Rng;
use rand::distr::weighted::WeightedIndex;
use rand::prelude::Distribution;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::schema::{IDENTITY_SLOTS, applicable, differences, slot};

/// A person: the attributes that every picture of her shares, and what no caption speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Person {
    /// Values of the first [`IDENTITY_SLOTS`] slots; 0 for a slot that is not applicable.
    pub values: [u8; IDENTITY_SLOTS],
    /// Breadth of the body, 1 is average, 0.94 to 1.07: a broad woman is still narrower than a slight man.
    pub build: f32,
    /// Height, 1 is average, 0.94 to 1.05.
    pub height: f32,
    /// Skin tone, 0 (light) to 1 (dark).
    pub skin: f32,
    /// Shift of every colour of the clothes, in levels of 255.
    pub shade: [i8; 3],
}

/// Look-alike people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Family {
    /// The members.
    pub people: Vec<Person>,
    /// Least number of slots in which two members differ: 2, or 1 in a near family.
    pub least: usize,
    /// Greatest number of slots in which two members differ.
    pub most: usize,
}

/// Share of families in which some members differ in one slot only.
const NEAR_SHARE: f64 = 0.1;
/// Two members differ in at most this many slots.
const MOST_DIFFERENCES: usize = 4;
/// Tries for one member before the family is drawn anew.
const TRIES: usize = 100;

/// How often a slot is among those that tell the members of a family apart.
const VARIED: [f32; IDENTITY_SLOTS] =
    [0.4, 0.9, 0.8, 1.0, 1.2, 0.6, 0.9, 0.9, 1.2, 0.5, 0.7, 0.7, 0.9, 0.6, 1.0, 0.8, 0.9, 0.8, 0.5];

/// Relative frequency of the values of a slot.
fn weights(index: usize) -> &'static [u32] {
    match index {
        slot::HAIR_STYLE => &[12, 26, 14, 22, 14, 12],
        slot::HAIR_COLOUR => &[28, 24, 20, 14, 14],
        slot::TOP_TYPE => &[22, 17, 15, 15, 17, 14],
        slot::SLEEVES => &[55, 45],
        slot::PATTERN => &[40, 18, 15, 14, 13],
        slot::BOTTOM_TYPE => &[46, 20, 18, 16],
        slot::SHOES_TYPE => &[45, 30, 25],
        slot::GLASSES => &[50, 25, 25],
        slot::SCARF => &[56, 5, 5, 4, 6, 5, 5, 5, 5, 4],
        slot::OBJECT => &[40, 12, 12, 12, 12, 12],
        slot::BAG => &[31, 25, 22, 22],
        slot::HAT => &[46, 20, 18, 16],
        slot::BELT => &[55, 15, 15, 15],
        slot::GENDER => &[1, 1],
        _ => &[1; 9],
    }
}

fn draw_value(rng: &mut ChaCha8Rng, index: usize) -> u8 {
    let total: u32 = weights(index).iter().sum();
    let mut left = rng.random_range(0..total);
    let mut value = 0;
    for &weight in weights(index) {
        if left < weight {
            break;
        }
        left -= weight;
        value += 1;
    }
    value
}

/// People that the sample does not have, because they would look like a mistake of the renderer or because
/// two attributes would hide each other.
fn plausible(values: &[u8; IDENTITY_SLOTS]) -> bool {
    let [man, bald, bun] =
        [values[slot::GENDER] == 0, values[slot::HAIR_STYLE] == 0, values[slot::HAIR_STYLE] == 5];
    let long_sleeves = values[slot::SLEEVES] == 0;
    let coat = values[slot::TOP_TYPE] == 5;
    let skirt = values[slot::BOTTOM_TYPE] >= 2;
    // T-shirts and shirts come with both lengths, everything warmer with long sleeves.
    (long_sleeves || values[slot::TOP_TYPE] <= 1)
        && !(coat && values[slot::BOTTOM_TYPE] == 1)
        && !(man && (skirt || bun))
        && (man || !bald)
        && !(bun && values[slot::HAT] != 0)
}

fn cleared(mut values: [u8; IDENTITY_SLOTS]) -> [u8; IDENTITY_SLOTS] {
    for index in 0..IDENTITY_SLOTS {
        if !applicable(&values, index) {
            values[index] = 0;
        }
    }
    values
}

fn draw_values(rng: &mut ChaCha8Rng) -> [u8; IDENTITY_SLOTS] {
    // Drawn once, so that what is implausible for one gender does not make it rare.
    let gender = draw_value(rng, slot::GENDER);
    loop {
        let mut values = [0; IDENTITY_SLOTS];
        for (index, value) in values.iter_mut().enumerate() {
            *value = if index == slot::GENDER { gender } else { draw_value(rng, index) };
        }
        if plausible(&values) {
            return cleared(values);
        }
    }
}

/// The slots that may tell the members of the family of `base` apart, drawn without repetition.
fn draw_varied(rng: &mut ChaCha8Rng, base: &[u8; IDENTITY_SLOTS], count: usize) -> Vec<usize> {
    let mut left = VARIED;
    for (index, weight) in left.iter_mut().enumerate() {
        if !applicable(base, index) {
            *weight = 0.0;
        }
    }
    let mut varied = Vec::with_capacity(count);
    while varied.len() < count {
        let Ok(distribution) = WeightedIndex::new(left) else { break };
        let index = distribution.sample(rng);
        left[index] = 0.0;
        varied.push(index);
    }
    varied
}

impl Family {
    /// Draws `size` people, none of whom has the values of anyone in `taken`, and adds them to `taken`.
    pub(crate) fn draw(
        rng: &mut ChaCha8Rng,
        size: usize,
        taken: &mut BTreeSet<[u8; IDENTITY_SLOTS]>,
    ) -> Self {
        let near = size > 1 && rng.random_bool(NEAR_SHARE);
        let least = if near { 1 } else { 2 };
        loop {
            let base = draw_values(rng);
            // Large families need more room than four slots give.
            let varied = draw_varied(rng, &base, if size <= 6 { MOST_DIFFERENCES + 1 } else { 7 });
            let Some(members) = draw_members(rng, base, &varied, size, least, taken) else { continue };
            let closest = pairs(&members).min();
            if near && closest != Some(1) {
                continue;
            }
            taken.extend(&members);
            let people = members.into_iter().map(|values| Person::with(rng, values)).collect();
            return Self { people, least, most: MOST_DIFFERENCES };
        }
    }
}

fn pairs(members: &[[u8; IDENTITY_SLOTS]]) -> impl Iterator<Item = usize> {
    members.iter().enumerate().flat_map(|(at, a)| members[..at].iter().map(move |b| differences(a, b)))
}

fn draw_members(
    rng: &mut ChaCha8Rng,
    base: [u8; IDENTITY_SLOTS],
    varied: &[usize],
    size: usize,
    least: usize,
    taken: &BTreeSet<[u8; IDENTITY_SLOTS]>,
) -> Option<Vec<[u8; IDENTITY_SLOTS]>> {
    let allowed = least..=MOST_DIFFERENCES;
    let mut members: Vec<[u8; IDENTITY_SLOTS]> = vec![];
    let mut tries = 0;
    while members.len() < size {
        tries += 1;
        if tries > TRIES * size {
            return None;
        }
        let mut values = base;
        for &index in varied {
            if rng.random_bool(0.6) {
                values[index] = draw_value(rng, index);
            }
        }
        // A bag that appears needs a colour.
        for index in 0..IDENTITY_SLOTS {
            if applicable(&values, index) && !applicable(&base, index) {
                values[index] = draw_value(rng, index);
            }
        }
        let values = cleared(values);
        if plausible(&values)
            && !taken.contains(&values)
            && members.iter().all(|other| allowed.contains(&differences(&values, other)))
        {
            members.push(values);
        }
    }
    Some(members)
}

impl Person {
    fn with(rng: &mut ChaCha8Rng, values: [u8; IDENTITY_SLOTS]) -> Self {
        Self {
            values,
            build: rng.random_range(0.94..1.07),
            height: rng.random_range(0.94..1.05),
            skin: rng.random(),
            shade: std::array::from_fn(|_| rng.random_range(-9..=9)),
        }
    }

    /// Someone at random, for the background.
    pub(crate) fn draw(rng: &mut ChaCha8Rng) -> Self {
        let values = draw_values(rng);
        Self::with(rng, values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::SLOTS;
    use rand::SeedableRng;

    fn families(count: usize) -> Vec<Family> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut taken = BTreeSet::new();
        (0..count).map(|_| Family::draw(&mut rng, 4, &mut taken)).collect()
    }

    #[test]
    fn members_differ_in_the_stated_number_of_slots() {
        for family in families(200) {
            let members: Vec<_> = family.people.iter().map(|person| person.values).collect();
            for distance in pairs(&members) {
                assert!((family.least..=family.most).contains(&distance), "{distance} {family:?}");
            }
        }
    }

    #[test]
    fn a_few_families_have_members_that_differ_in_one_slot() {
        let near = families(400).iter().filter(|family| family.least == 1).count();
        assert!((20..=60).contains(&near), "{near} of 400");
    }

    #[test]
    fn both_genders_are_about_as_frequent() {
        let women = families(400).iter().flat_map(|f| &f.people).filter(|p| p.values[0] == 1).count();
        assert!((650..=950).contains(&women), "{women} of 1600");
    }

    #[test]
    fn large_families_keep_the_limit() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let family = Family::draw(&mut rng, 8, &mut BTreeSet::new());
        let members: Vec<_> = family.people.iter().map(|person| person.values).collect();
        assert_eq!(members.len(), 8);
        assert!(pairs(&members).all(|distance| (family.least..=family.most).contains(&distance)));
    }

    #[test]
    fn nobody_is_drawn_twice() {
        let families = families(300);
        let everyone: BTreeSet<_> = families.iter().flat_map(|f| &f.people).map(|p| p.values).collect();
        assert_eq!(everyone.len(), 1200);
    }

    #[test]
    fn weights_cover_every_value() {
        for (index, slot) in SLOTS.iter().enumerate().take(IDENTITY_SLOTS) {
            assert_eq!(weights(index).len(), slot.values.len(), "{}", slot.name);
        }
    }
}
