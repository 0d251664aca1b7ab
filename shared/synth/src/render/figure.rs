//! A person on the canvas: what is drawn in which order.

use rand::Rng;

use super::canvas::{Canvas, P};
use super::palette::{self, Rgb};
use super::pose::{Hold, Pose, pose};
use super::{clothes, head, items};
use crate::family::Person;
use crate::schema::{Facing, OBJECT_BOOK, OBJECT_CUP, OBJECT_PHONE, slot};

/// Everything the drawing of a person needs to know.
#[derive(Debug)]
pub(super) struct Figure {
    pub(super) values: [u8; crate::IDENTITY_SLOTS],
    pub(super) facing: Facing,
    pub(super) pose: Pose,
    pub(super) woman: bool,
    /// Half widths of shoulders, waist and hips, seen from the front.
    pub(super) shoulder: f32,
    pub(super) waist: f32,
    pub(super) hip: f32,
    pub(super) skin: Rgb,
    pub(super) hair: Rgb,
    pub(super) top: Rgb,
    pub(super) bottom: Rgb,
    pub(super) shoes: Rgb,
    pub(super) bag: Rgb,
    pub(super) hat: Rgb,
    pub(super) scarf: Option<Rgb>,
    pub(super) belt: Option<Rgb>,
    /// Which hand holds the object.
    pub(super) object_hand: usize,
    /// Which hand or hip has the bag.
    pub(super) bag_hand: usize,
}

pub(super) const BACKPACK: u8 = 1;
pub(super) const SHOULDER_BAG: u8 = 2;
pub(super) const HANDBAG: u8 = 3;

impl Figure {
    pub(super) fn new(rng: &mut impl Rng, person: &Person, facing: Facing, action: u8) -> Self {
        let v = |index: usize| person.values[index];
        let woman = v(slot::GENDER) == 1;
        let (shoulder, waist, hip) = if woman { (9.3, 6.4, 8.6) } else { (11.4, 8.8, 8.4) };
        let (shoulder, waist, hip) = (shoulder * person.build, waist * person.build, hip * person.build);
        let named = |colour| palette::named(colour, person.shade);
        // Seen from the side the near hand has the handbag, else the object.
        let object_hand = usize::from(facing != Facing::Side || v(slot::BAG) != HANDBAG);
        let bag_hand = 1 - object_hand;
        let mut holds = [Hold::Free; 2];
        holds[object_hand] = match v(slot::OBJECT) {
            0 => Hold::Free,
            OBJECT_PHONE | OBJECT_CUP | OBJECT_BOOK => Hold::Up,
            _ => Hold::Down,
        };
        if v(slot::BAG) == HANDBAG {
            holds[bag_hand] = Hold::Down;
        }
        Self {
            values: person.values,
            facing,
            pose: pose(rng, facing, action, shoulder, holds),
            woman,
            shoulder,
            waist,
            hip,
            skin: palette::skin(person.skin),
            hair: palette::hair(v(slot::HAIR_COLOUR)),
            top: named(v(slot::TOP_COLOUR)),
            bottom: named(v(slot::BOTTOM_COLOUR)),
            shoes: named(v(slot::SHOES_COLOUR)),
            bag: named(v(slot::BAG_COLOUR)),
            hat: named(v(slot::HAT_COLOUR)),
            scarf: v(slot::SCARF).checked_sub(1).map(named),
            belt: match v(slot::BELT) {
                0 => None,
                1 => Some([18, 18, 20]),
                2 => Some([244, 244, 242]),
                _ => Some([134, 82, 38]),
            },
            object_hand,
            bag_hand,
        }
    }

    /// A point of the trunk or head, moved with the lean of the body.
    pub(super) fn at(&self, x: f32, y: f32) -> P {
        (x + self.pose.lean * ((52.0 - y) / 30.0).clamp(0.0, 1.3), y)
    }

    pub(super) fn value(&self, index: usize) -> u8 {
        self.values[index]
    }

    pub(super) fn draw(&self, canvas: &mut Canvas) {
        match self.facing {
            Facing::Front => {
                items::backpack_behind(canvas, self);
                head::hair_behind(canvas, self);
                self.legs(canvas);
                clothes::torso(canvas, self);
                clothes::belt(canvas, self);
                items::straps(canvas, self);
                head::head(canvas, self);
                items::scarf(canvas, self);
                for arm in 0..2 {
                    clothes::arm(canvas, self, arm);
                }
                items::object(canvas, self);
                items::bag(canvas, self);
            }
            Facing::Back => {
                items::object(canvas, self);
                for arm in 0..2 {
                    clothes::arm(canvas, self, arm);
                }
                self.legs(canvas);
                clothes::torso(canvas, self);
                clothes::belt(canvas, self);
                items::straps(canvas, self);
                head::head(canvas, self);
                items::backpack_on_back(canvas, self);
                head::hair_over_back(canvas, self);
                items::scarf(canvas, self);
                items::bag(canvas, self);
            }
            Facing::Side => {
                if self.object_hand == 0 {
                    items::object(canvas, self);
                }
                clothes::arm(canvas, self, 0);
                self.legs(canvas);
                items::backpack_at_side(canvas, self);
                clothes::torso(canvas, self);
                clothes::belt(canvas, self);
                items::straps(canvas, self);
                head::head(canvas, self);
                items::scarf(canvas, self);
                clothes::arm(canvas, self, 1);
                if self.object_hand == 1 {
                    items::object(canvas, self);
                }
                items::bag(canvas, self);
            }
        }
    }

    fn legs(&self, canvas: &mut Canvas) {
        clothes::leg(canvas, self, 0);
        clothes::leg(canvas, self, 1);
        clothes::skirt_or_seat(canvas, self);
    }
}
