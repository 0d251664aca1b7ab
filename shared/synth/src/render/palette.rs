//! Colours of things.

/// Red, green and blue levels.
pub(super) type Rgb = [u8; 3];

/// Levels of the nine named colours, in the order of [`COLOURS`](crate::COLOURS): far enough apart to be told
/// under any camera of the sample.
const NAMED: [Rgb; 9] = [
    [26, 26, 30],
    [242, 242, 240],
    [138, 141, 146],
    [206, 30, 38],
    [246, 208, 36],
    [34, 146, 62],
    [34, 78, 196],
    [128, 44, 164],
    [104, 62, 24],
];

const HAIR: [Rgb; 5] = [[22, 18, 18], [98, 58, 28], [232, 200, 112], [168, 168, 172], [196, 78, 22]];

const SKIN: [Rgb; 2] = [[246, 206, 178], [140, 94, 72]];

pub(super) fn named(colour: u8, shade: [i8; 3]) -> Rgb {
    shift(NAMED[usize::from(colour) % NAMED.len()], shade)
}

pub(super) fn hair(colour: u8) -> Rgb {
    HAIR[usize::from(colour) % HAIR.len()]
}

pub(super) fn skin(tone: f32) -> Rgb {
    mix(SKIN[0], SKIN[1], tone)
}

fn shift(colour: Rgb, by: [i8; 3]) -> Rgb {
    std::array::from_fn(|i| colour[i].saturating_add_signed(by[i]))
}

/// `a` with a share `t` in `0..=1` of `b`.
pub(super) fn mix(a: Rgb, b: Rgb, t: f32) -> Rgb {
    std::array::from_fn(|i| (f32::from(a[i]) + (f32::from(b[i]) - f32::from(a[i])) * t).round() as u8)
}

pub(super) fn darker(colour: Rgb, share: f32) -> Rgb {
    mix(colour, [0, 0, 0], share)
}

pub(super) fn lighter(colour: Rgb, share: f32) -> Rgb {
    mix(colour, [255, 255, 255], share)
}

/// Perceived lightness, 0 to 255.
pub(super) fn lightness(colour: Rgb) -> f32 {
    0.3 * f32::from(colour[0]) + 0.59 * f32::from(colour[1]) + 0.11 * f32::from(colour[2])
}

/// A colour that a pattern on `ground` is drawn in.
pub(super) fn contrast(ground: Rgb) -> Rgb {
    if lightness(ground) > 120.0 { [40, 40, 58] } else { [240, 236, 222] }
}

/// The colour of a seam or an edge on `ground`.
pub(super) fn edge(ground: Rgb) -> Rgb {
    if lightness(ground) < 50.0 { lighter(ground, 0.28) } else { darker(ground, 0.38) }
}
