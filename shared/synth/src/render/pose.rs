//! Where the joints are. A person is 100 units high: the crown near 2, the chin at 16, the shoulders at 21,
//! the hips at 52, the knees at 73, the ankles at 94 and the ground at 100; x is 0 in the middle.

use rand::Rng;

use super::canvas::P;
use crate::schema::{ACTION_RUNNING as RUNNING, ACTION_WALKING as WALKING, Facing};

/// What an arm does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    Free,
    /// Something hangs from the hand.
    Down,
    /// Something is held up beside the body.
    Up,
}

/// Joints. Index 0 is the left limb on the canvas (or the far one, seen from the side), 1 the right (near) one.
#[derive(Debug, Clone)]
pub(super) struct Pose {
    pub(super) shoulders: [P; 2],
    pub(super) elbows: [P; 2],
    pub(super) hands: [P; 2],
    pub(super) hips: [P; 2],
    pub(super) knees: [P; 2],
    pub(super) ankles: [P; 2],
    /// How far the shoulders are before the hips.
    pub(super) lean: f32,
    /// Seen from the side: how much each foot points down, 0 flat to 1.
    pub(super) tip: [f32; 2],
}

fn jitter(rng: &mut impl Rng, by: f32) -> f32 {
    rng.random_range(-by..by)
}

pub(super) fn pose(rng: &mut impl Rng, facing: Facing, action: u8, shoulder: f32, holds: [Hold; 2]) -> Pose {
    if facing == Facing::Side {
        return side(rng, action, holds);
    }
    let mut pose = frontal(rng, action, shoulder, holds);
    for (i, sign) in [-1.0, 1.0].into_iter().enumerate() {
        // From behind the trunk hides what is held up before it.
        if facing == Facing::Back && holds[i] == Hold::Up {
            pose.elbows[i] = (sign * (shoulder + 1.6), 37.5);
            pose.hands[i] = (sign * (shoulder - 7.0), 33.0);
        }
    }
    pose
}

fn frontal(rng: &mut impl Rng, action: u8, shoulder: f32, holds: [Hold; 2]) -> Pose {
    let lead = rng.random_range(0..2usize);
    let sign = [-1.0f32, 1.0];
    let mut pose = Pose {
        shoulders: sign.map(|s| (s * (shoulder - 2.0), 22.8)),
        elbows: sign.map(|s| (s * (shoulder + 1.2), 37.0)),
        hands: sign.map(|s| (s * (shoulder + 1.0), 50.5)),
        hips: sign.map(|s| (s * 4.2, 52.0)),
        knees: sign.map(|s| (s * 4.5, 73.0)),
        ankles: sign.map(|s| (s * 4.6, 94.0)),
        lean: jitter(rng, 0.6),
        tip: [0.0; 2],
    };
    let stride = 1.0 + jitter(rng, 0.15);
    for i in 0..2 {
        let s = sign[i];
        match (action, i == lead) {
            (WALKING, true) => {
                pose.knees[i] = (s * 4.6, 72.0);
                pose.ankles[i] = (s * 3.2, 94.5);
                pose.hands[i] = (s * (shoulder + 2.6), 48.5);
            }
            (WALKING, false) => {
                pose.knees[i] = (s * 4.0, 71.0);
                pose.ankles[i] = (s * 3.6, 94.0 - 7.5 * stride);
                pose.hands[i] = (s * (shoulder - 0.8), 47.5);
            }
            (RUNNING, true) => {
                pose.knees[i] = (s * 5.2, 72.5);
                pose.ankles[i] = (s * 3.4, 94.5);
                pose.elbows[i] = (s * (shoulder + 4.0), 34.5);
                pose.hands[i] = (s * (shoulder + 0.5), 26.0);
            }
            (RUNNING, false) => {
                pose.knees[i] = (s * 7.4, 63.5);
                pose.ankles[i] = (s * 6.0, 63.5 + 12.5 * stride);
                pose.elbows[i] = (s * (shoulder + 4.6), 35.5);
                pose.hands[i] = (s * (shoulder + 2.0), 45.5);
            }
            _ => {
                let spread = jitter(rng, 0.8);
                pose.ankles[i].0 += s * spread;
                pose.hands[i].0 += jitter(rng, 0.8);
            }
        }
        match holds[i] {
            Hold::Free => {}
            Hold::Down => {
                pose.elbows[i] = (s * (shoulder + 2.0), 37.0);
                pose.hands[i] = (s * (shoulder + 3.0), 50.0);
            }
            Hold::Up => {
                pose.elbows[i] = (s * (shoulder + 2.4), 37.5);
                pose.hands[i] = (s * (shoulder + 3.6), 29.5);
            }
        }
    }
    pose
}

fn side(rng: &mut impl Rng, action: u8, holds: [Hold; 2]) -> Pose {
    let lead = rng.random_range(0..2usize);
    let trail = 1 - lead;
    let mut pose = Pose {
        shoulders: [(0.5, 23.0), (-0.4, 23.0)],
        elbows: [(0.6, 37.0), (-1.8, 37.0)],
        hands: [(3.0, 50.0), (0.8, 50.5)],
        hips: [(0.6, 52.0), (-0.4, 52.0)],
        knees: [(1.4, 73.0), (0.0, 73.0)],
        ankles: [(1.2, 94.0), (-0.9, 94.0)],
        lean: jitter(rng, 0.6),
        tip: [0.0; 2],
    };
    let stride = 1.0 + jitter(rng, 0.15);
    if action == WALKING {
        pose.knees[lead] = (6.5 * stride, 72.0);
        pose.ankles[lead] = (10.5 * stride, 93.0);
        pose.knees[trail] = (-3.0 * stride, 72.5);
        pose.ankles[trail] = (-11.0 * stride, 91.5);
        pose.tip[trail] = 0.6;
        pose.elbows[lead] = (-5.0, 36.0);
        pose.hands[lead] = (-6.5, 49.0);
        pose.elbows[trail] = (3.5, 36.5);
        pose.hands[trail] = (9.0, 47.0);
        pose.lean = 1.0;
    } else if action == RUNNING {
        pose.knees[lead] = (12.0 * stride, 65.0);
        pose.ankles[lead] = (9.5 * stride, 83.5);
        pose.knees[trail] = (-3.5 * stride, 73.0);
        pose.ankles[trail] = (-17.0 * stride, 82.0);
        pose.tip = [0.2; 2];
        pose.tip[trail] = 1.0;
        pose.elbows[lead] = (-7.5, 34.0);
        pose.hands[lead] = (-2.0, 44.0);
        pose.elbows[trail] = (6.5, 34.0);
        pose.hands[trail] = (13.5, 26.0);
        pose.lean = 4.0;
    }
    for (i, hold) in holds.into_iter().enumerate() {
        match hold {
            Hold::Free => {}
            Hold::Down => {
                // What the far hand carries is seen before the body, what the near hand carries on it.
                let other = holds[1 - i] == Hold::Down;
                (pose.elbows[i], pose.hands[i]) = match (i, other) {
                    (0, _) => ((5.5, 36.5), (11.5, 47.0)),
                    (_, true) => ((-3.0, 37.0), (-2.5, 50.0)),
                    (_, false) => ((1.8, 37.0), (5.5, 50.0)),
                };
            }
            Hold::Up => {
                pose.elbows[i] = (2.5, 37.0);
                pose.hands[i] = (12.0, 32.0);
            }
        }
    }
    pose
}
