//! Trunk, arms and legs, and what is worn on them.

use tiny_skia::Path;

use super::canvas::{Canvas, P, capsule, oval, polygon, rectangle};
use super::figure::Figure;
use super::palette::{Rgb, contrast, darker, edge, lighter, lightness};
use crate::schema::{Facing, slot};

const SHIRT: u8 = 1;
const SWEATER: u8 = 2;
const HOODIE: u8 = 3;
const JACKET: u8 = 4;
const COAT: u8 = 5;

const STRIPED: u8 = 1;
const CHECKED: u8 = 2;
const PRINTED: u8 = 3;
const DOTTED: u8 = 4;

const SHORTS: u8 = 1;
const SHORT_SKIRT: u8 = 2;
const LONG_SKIRT: u8 = 3;

const BOOTS: u8 = 1;
const SANDALS: u8 = 2;

/// Height of the hem of the upper garment.
fn hem(figure: &Figure) -> f32 {
    match figure.value(slot::TOP_TYPE) {
        COAT => 68.0,
        SHIRT => 56.0,
        HOODIE => 55.5,
        _ => 54.0,
    }
}

fn trunk(figure: &Figure) -> Vec<P> {
    let bottom = hem(figure);
    let coat = figure.value(slot::TOP_TYPE) == COAT;
    if figure.facing == Facing::Side {
        let chest = if figure.woman { 7.0 } else { 5.8 };
        let flare = if coat { 7.6 } else { 5.8 };
        return vec![
            figure.at(-2.6, 18.0),
            figure.at(-5.0, 21.5),
            figure.at(-5.9, 30.0),
            figure.at(-4.8, 41.0),
            figure.at(-flare, bottom),
            figure.at(flare, bottom),
            figure.at(if figure.woman { 4.4 } else { 5.2 }, 41.0),
            figure.at(chest, 29.0),
            figure.at(4.8, 21.5),
            figure.at(2.6, 18.0),
        ];
    }
    let (s, w) = (figure.shoulder, figure.waist);
    let h = figure.hip + if coat { 3.2 } else { 0.6 };
    let right = [(3.2, 17.8), (s - 2.0, 19.6), (s, 22.6), (s - 1.6, 30.0), (w, 41.0), (h, bottom)];
    let mut points: Vec<P> = right.iter().map(|&(x, y)| figure.at(x, y)).collect();
    points.extend(right.iter().rev().map(|&(x, y)| figure.at(-x, y)));
    points
}

/// Stripes, checks or dots of the upper garment inside `shapes`.
fn pattern(canvas: &mut Canvas, figure: &Figure, shapes: &[Option<Path>], left: f32, right: f32) {
    let ink = contrast(figure.top);
    let across = |y: f32| [(left, y), (right, y)];
    let mut rows = vec![];
    match figure.value(slot::PATTERN) {
        STRIPED => {
            for i in 0..9 {
                rows.push((across(22.5 + 5.6 * i as f32), 2.5));
            }
            canvas.inside(shapes, &rows, &[], ink, 1.0);
        }
        CHECKED => {
            for i in 0..9 {
                rows.push((across(21.0 + 5.8 * i as f32), 1.5));
            }
            let mut x = (left / 5.0).floor() * 5.0 + 2.5;
            while x < right {
                rows.push(([(x, 15.0), (x, 72.0)], 1.5));
                x += 5.0;
            }
            canvas.inside(shapes, &rows, &[], ink, 0.85);
        }
        DOTTED => {
            let mut dots = vec![];
            for row in 0..12 {
                let y = 20.5 + 4.4 * row as f32;
                let mut x = (left / 5.0).floor() * 5.0 + if row % 2 == 0 { 0.0 } else { 2.5 };
                while x < right {
                    dots.push(((x, y), 1.15, 1.15));
                    x += 5.0;
                }
            }
            canvas.inside(shapes, &[], &dots, ink, 1.0);
        }
        _ => {}
    }
}

pub(super) fn torso(canvas: &mut Canvas, figure: &Figure) {
    let points = trunk(figure);
    let width = if figure.facing == Facing::Side { 6.0 } else { figure.shoulder };
    let shape = polygon(&points);
    canvas.solid(shape.clone(), figure.top, (-width, 0.0), (width, 0.0));
    pattern(canvas, figure, std::slice::from_ref(&shape), -16.0, 16.0);
    match figure.facing {
        Facing::Front => front_details(canvas, figure),
        Facing::Back => back_details(canvas, figure),
        Facing::Side => side_details(canvas, figure),
    }
    if figure.value(slot::PATTERN) == PRINTED {
        emblem(canvas, figure);
    }
}

/// A large print: a coloured disc on a square, on chest and back.
fn emblem(canvas: &mut Canvas, figure: &Figure) {
    let ink = contrast(figure.top);
    let half = if figure.facing == Facing::Side { 3.4 } else { 4.8 };
    let x = if figure.facing == Facing::Side { 2.0 } else { 0.0 };
    let (cx, cy) = figure.at(x, 33.5);
    canvas.fill(rectangle(cx - half, cy - 4.8, cx + half, cy + 4.8), ink);
    let disc = if lightness(ink) > 120.0 { [214, 60, 40] } else { [250, 200, 60] };
    canvas.fill(oval((cx, cy), half * 0.6, 2.9), disc);
}

fn neckline(canvas: &mut Canvas, figure: &Figure, depth: f32) {
    canvas.fill(oval(figure.at(0.0, 18.2), 3.4, depth), figure.skin);
}

fn hem_band(canvas: &mut Canvas, figure: &Figure, height: f32) {
    let bottom = hem(figure);
    let width = if figure.facing == Facing::Side { 5.8 } else { figure.hip + 0.6 };
    let band = polygon(&[
        figure.at(-width, bottom - height),
        figure.at(width, bottom - height),
        figure.at(width, bottom),
        figure.at(-width, bottom),
    ]);
    canvas.fill(band, edge(figure.top));
}

fn front_details(canvas: &mut Canvas, figure: &Figure) {
    let seam = edge(figure.top);
    let bottom = hem(figure);
    match figure.value(slot::TOP_TYPE) {
        SHIRT => {
            canvas.line(&[figure.at(0.0, 20.0), figure.at(0.0, bottom)], 0.8, seam);
            for i in 0..5 {
                canvas.fill(oval(figure.at(0.0, 25.0 + 6.0 * i as f32), 0.8, 0.8), contrast(figure.top));
            }
            neckline(canvas, figure, 2.2);
            for s in [-1.0, 1.0] {
                let collar = [figure.at(0.0, 21.4), figure.at(s * 4.4, 17.2), figure.at(s * 4.6, 22.4)];
                canvas.solid(polygon(&collar), lighter(figure.top, 0.25), (-5.0, 0.0), (5.0, 0.0));
            }
        }
        SWEATER => {
            hem_band(canvas, figure, 2.6);
            let collar =
                [figure.at(-3.6, 15.6), figure.at(3.6, 15.6), figure.at(4.4, 20.0), figure.at(-4.4, 20.0)];
            canvas.solid(polygon(&collar), figure.top, (-4.0, 0.0), (4.0, 0.0));
        }
        HOODIE => {
            hem_band(canvas, figure, 2.0);
            let pocket =
                [figure.at(-3.2, 42.5), figure.at(3.2, 42.5), figure.at(6.2, 51.0), figure.at(-6.2, 51.0)];
            canvas.outline(polygon(&pocket), 0.9, seam);
            hood(canvas, figure);
            neckline(canvas, figure, 1.8);
            for s in [-1.0, 1.0] {
                canvas.line(&[figure.at(s * 1.8, 20.5), figure.at(s * 2.0, 28.0)], 0.9, contrast(figure.top));
            }
        }
        JACKET => {
            // Open over a light or dark shirt, with lapels.
            let under = if lightness(figure.top) > 170.0 { [92, 96, 104] } else { [236, 234, 228] };
            let strip = [
                figure.at(-2.2, 18.0),
                figure.at(2.2, 18.0),
                figure.at(3.0, bottom),
                figure.at(-3.0, bottom),
            ];
            canvas.solid(polygon(&strip), under, (-3.0, 0.0), (3.0, 0.0));
            neckline(canvas, figure, 1.8);
            hem_band(canvas, figure, 2.2);
            canvas.fill(
                polygon(&[
                    figure.at(-2.9, bottom - 2.6),
                    figure.at(2.9, bottom - 2.6),
                    figure.at(2.9, bottom + 0.4),
                    figure.at(-2.9, bottom + 0.4),
                ]),
                under,
            );
            for s in [-1.0, 1.0] {
                let lapel = [figure.at(s * 2.0, 17.4), figure.at(s * 5.6, 18.8), figure.at(s * 2.6, 29.0)];
                canvas.solid(polygon(&lapel), darker(figure.top, 0.12), (-5.0, 0.0), (5.0, 0.0));
            }
        }
        COAT => {
            canvas.line(&[figure.at(0.0, 30.0), figure.at(0.0, bottom)], 1.0, seam);
            let v = [figure.at(-3.0, 17.6), figure.at(3.0, 17.6), figure.at(0.0, 31.0)];
            canvas.fill(
                polygon(&v),
                if lightness(figure.top) > 120.0 { [60, 60, 66] } else { [222, 220, 214] },
            );
            neckline(canvas, figure, 1.6);
            for s in [-1.0, 1.0] {
                let lapel = [
                    figure.at(s * 2.6, 17.2),
                    figure.at(s * 6.8, 20.0),
                    figure.at(s * 5.4, 25.0),
                    figure.at(0.0, 32.0),
                ];
                canvas.solid(polygon(&lapel), lighter(figure.top, 0.08), (-6.0, 0.0), (6.0, 0.0));
                for i in 0..3 {
                    canvas.fill(
                        oval(figure.at(s * 2.8, 36.0 + 6.5 * i as f32), 1.0, 1.0),
                        contrast(figure.top),
                    );
                }
            }
        }
        _ => neckline(canvas, figure, 3.6),
    }
}

fn hood(canvas: &mut Canvas, figure: &Figure) {
    canvas.solid(
        oval(figure.at(0.0, 19.2), 6.6, 3.6),
        darker(figure.top, 0.12),
        figure.at(-6.0, 0.0),
        figure.at(6.0, 0.0),
    );
}

fn back_details(canvas: &mut Canvas, figure: &Figure) {
    let seam = edge(figure.top);
    let bottom = hem(figure);
    let collar = |canvas: &mut Canvas, colour: Rgb, top: f32, wide: f32| {
        let shape =
            [figure.at(-3.4, top), figure.at(3.4, top), figure.at(wide, 20.6), figure.at(-wide, 20.6)];
        canvas.solid(polygon(&shape), colour, (-4.0, 0.0), (4.0, 0.0));
    };
    match figure.value(slot::TOP_TYPE) {
        SHIRT => {
            collar(canvas, lighter(figure.top, 0.25), 16.8, 4.6);
            let s = figure.shoulder - 1.5;
            canvas.line(&[figure.at(-s, 26.5), figure.at(s, 26.5)], 0.8, seam);
        }
        SWEATER => {
            hem_band(canvas, figure, 2.6);
            collar(canvas, figure.top, 15.6, 4.2);
        }
        HOODIE => {
            hem_band(canvas, figure, 2.0);
            let shape = [
                figure.at(-6.4, 18.4),
                figure.at(6.4, 18.4),
                figure.at(4.6, 26.0),
                figure.at(0.0, 29.5),
                figure.at(-4.6, 26.0),
            ];
            canvas.solid(polygon(&shape), darker(figure.top, 0.14), (-6.0, 0.0), (6.0, 0.0));
        }
        JACKET => {
            hem_band(canvas, figure, 2.4);
            collar(canvas, darker(figure.top, 0.15), 16.6, 5.6);
            for s in [-1.0, 1.0] {
                let x = s * (figure.waist - 3.2);
                canvas.line(&[figure.at(x, 24.0), figure.at(x, bottom - 2.0)], 0.7, seam);
            }
        }
        COAT => {
            collar(canvas, lighter(figure.top, 0.08), 16.4, 6.4);
            canvas.line(&[figure.at(0.0, 21.0), figure.at(0.0, bottom)], 0.9, seam);
        }
        _ => neckline(canvas, figure, 1.8),
    }
}

fn side_details(canvas: &mut Canvas, figure: &Figure) {
    let bottom = hem(figure);
    match figure.value(slot::TOP_TYPE) {
        SHIRT => {
            let collar =
                [figure.at(-3.0, 17.2), figure.at(3.6, 17.0), figure.at(5.2, 22.0), figure.at(-2.0, 20.2)];
            canvas.solid(polygon(&collar), lighter(figure.top, 0.25), (-4.0, 0.0), (4.0, 0.0));
            for i in 0..5 {
                canvas.fill(oval(figure.at(4.2, 26.0 + 6.0 * i as f32), 0.8, 0.8), contrast(figure.top));
            }
        }
        SWEATER => {
            hem_band(canvas, figure, 2.6);
            let collar =
                [figure.at(-3.2, 15.4), figure.at(3.2, 15.4), figure.at(3.8, 19.8), figure.at(-3.8, 19.8)];
            canvas.solid(polygon(&collar), figure.top, (-4.0, 0.0), (4.0, 0.0));
        }
        HOODIE => {
            hem_band(canvas, figure, 2.0);
            let shape = [
                figure.at(3.0, 18.0),
                figure.at(-3.5, 16.4),
                figure.at(-8.0, 19.0),
                figure.at(-6.6, 25.0),
                figure.at(0.0, 21.0),
            ];
            canvas.solid(polygon(&shape), darker(figure.top, 0.14), (-8.0, 0.0), (4.0, 0.0));
        }
        JACKET => {
            let under = if lightness(figure.top) > 170.0 { [92, 96, 104] } else { [236, 234, 228] };
            let strip = [
                figure.at(2.4, 18.0),
                figure.at(4.8, 21.5),
                figure.at(5.6, 29.0),
                figure.at(4.6, 41.0),
                figure.at(5.6, bottom),
                figure.at(3.4, bottom),
                figure.at(3.2, 30.0),
            ];
            canvas.solid(polygon(&strip), under, (2.0, 0.0), (6.0, 0.0));
            let back = [
                figure.at(-5.8, bottom - 2.4),
                figure.at(3.4, bottom - 2.4),
                figure.at(3.4, bottom),
                figure.at(-5.8, bottom),
            ];
            canvas.fill(polygon(&back), edge(figure.top));
            let collar =
                [figure.at(-3.4, 16.8), figure.at(3.0, 17.6), figure.at(3.4, 25.0), figure.at(-3.0, 20.0)];
            canvas.solid(polygon(&collar), darker(figure.top, 0.12), (-4.0, 0.0), (4.0, 0.0));
        }
        COAT => {
            let collar =
                [figure.at(-3.6, 16.6), figure.at(3.4, 17.2), figure.at(4.8, 29.0), figure.at(-1.0, 21.0)];
            canvas.solid(polygon(&collar), lighter(figure.top, 0.08), (-4.0, 0.0), (4.0, 0.0));
            for i in 0..3 {
                canvas.fill(oval(figure.at(3.8, 36.0 + 6.5 * i as f32), 1.0, 1.0), contrast(figure.top));
            }
        }
        _ => canvas.fill(oval(figure.at(0.6, 18.0), 3.2, 1.6), figure.skin),
    }
}

pub(super) fn belt(canvas: &mut Canvas, figure: &Figure) {
    let Some(colour) = figure.belt else { return };
    let (top, bottom) = (45.2, 49.0);
    let half = |y: f32| {
        if figure.facing == Facing::Side {
            5.5
        } else {
            let coat = if figure.value(slot::TOP_TYPE) == COAT { 0.9 } else { 0.5 };
            figure.waist + (figure.hip - figure.waist) * (y - 41.0) / 13.0 + coat
        }
    };
    let band = [
        figure.at(-half(top), top),
        figure.at(half(top), top),
        figure.at(half(bottom), bottom),
        figure.at(-half(bottom), bottom),
    ];
    canvas.outline(
        polygon(&band),
        1.1,
        if lightness(colour) > 120.0 { [60, 60, 60] } else { [225, 222, 215] },
    );
    canvas.fill(polygon(&band), colour);
    if figure.facing != Facing::Back {
        let (x, y) = figure.at(if figure.facing == Facing::Side { 4.4 } else { 0.0 }, (top + bottom) / 2.0);
        let half_width = if figure.facing == Facing::Side { 1.2 } else { 2.2 };
        canvas.fill(rectangle(x - half_width, y - 2.3, x + half_width, y + 2.3), [232, 186, 60]);
        canvas.fill(rectangle(x - half_width * 0.5, y - 1.1, x + half_width * 0.5, y + 1.1), colour);
    }
}

fn between(a: P, b: P, t: f32) -> P {
    (a.0 + (b.0 - a.0) * t, a.1 + (b.1 - a.1) * t)
}

/// Arm `i` with its sleeve and hand.
pub(super) fn arm(canvas: &mut Canvas, figure: &Figure, i: usize) {
    let lean = |(x, y): P| figure.at(x, y);
    let (shoulder, elbow, hand) =
        (lean(figure.pose.shoulders[i]), lean(figure.pose.elbows[i]), lean(figure.pose.hands[i]));
    let slim = if figure.woman { 0.85 } else { 1.0 };
    let far = figure.facing == Facing::Side && i == 0;
    let shade = |colour: Rgb| if far { darker(colour, 0.18) } else { colour };
    let (skin, cloth) = (shade(figure.skin), shade(figure.top));
    canvas.fill(oval(hand, 2.1 * slim, 2.3 * slim), skin);
    canvas.outline(oval(hand, 2.1 * slim, 2.3 * slim), 0.4, darker(skin, 0.35));
    canvas.fill(oval(hand, 2.1 * slim, 2.3 * slim), skin);
    if figure.value(slot::SLEEVES) == 0 {
        let wrist = between(elbow, hand, 0.86);
        let (a, b, c) = (3.3 * slim, 2.8 * slim, 2.4 * slim);
        canvas.limbs(&[(shoulder, a), (elbow, b), (wrist, c)], cloth);
        pattern_on_sleeve(canvas, figure, &[capsule(shoulder, elbow, a, b), capsule(elbow, wrist, b, c)]);
        if matches!(figure.value(slot::TOP_TYPE), SWEATER | HOODIE | JACKET) {
            let cuff = between(elbow, hand, 0.76);
            canvas.limbs(&[(cuff, c + 0.2), (wrist, c + 0.2)], edge(cloth));
        }
    } else {
        let sleeve = between(shoulder, elbow, 0.62);
        canvas.limbs(&[(shoulder, 2.6 * slim), (elbow, 2.3 * slim), (hand, 1.7 * slim)], skin);
        canvas.limbs(&[(shoulder, 3.3 * slim), (sleeve, 3.5 * slim)], cloth);
        pattern_on_sleeve(canvas, figure, &[capsule(shoulder, sleeve, 3.3 * slim, 3.5 * slim)]);
    }
}

fn pattern_on_sleeve(canvas: &mut Canvas, figure: &Figure, shapes: &[Option<Path>]) {
    if matches!(figure.value(slot::PATTERN), STRIPED | CHECKED | DOTTED) {
        pattern(canvas, figure, shapes, -24.0, 24.0);
    }
}

/// Leg `i` with trousers or shorts and its shoe.
pub(super) fn leg(canvas: &mut Canvas, figure: &Figure, i: usize) {
    let (hip, knee, ankle) = (figure.pose.hips[i], figure.pose.knees[i], figure.pose.ankles[i]);
    let far = figure.facing == Facing::Side && i == 0;
    let shade = |colour: Rgb| if far { darker(colour, 0.18) } else { colour };
    let (skin, cloth) = (shade(figure.skin), shade(figure.bottom));
    let slim = if figure.woman { 0.88 } else { 1.0 };
    let bare = [(hip, 4.3 * slim), (knee, 3.2 * slim), (ankle, 2.2 * slim)];
    match figure.value(slot::BOTTOM_TYPE) {
        SHORTS => {
            canvas.limbs(&bare, skin);
            shoe(canvas, figure, i, shade(figure.shoes));
            let end = between(hip, knee, 0.8);
            canvas.limbs(&[(hip, 4.8 * slim), (end, 4.7 * slim)], cloth);
        }
        SHORT_SKIRT | LONG_SKIRT => {
            canvas.limbs(&bare, skin);
            shoe(canvas, figure, i, shade(figure.shoes));
        }
        _ => {
            let boots = figure.value(slot::SHOES_TYPE) == BOOTS;
            if boots {
                canvas.limbs(&[(hip, 4.7 * slim), (knee, 3.8 * slim), (ankle, 3.1 * slim)], cloth);
                shoe(canvas, figure, i, shade(figure.shoes));
            } else {
                shoe(canvas, figure, i, shade(figure.shoes));
                canvas.limbs(&[(hip, 4.7 * slim), (knee, 3.8 * slim), (ankle, 3.1 * slim)], cloth);
            }
        }
    }
}

pub(super) fn skirt_or_seat(canvas: &mut Canvas, figure: &Figure) {
    let side = figure.facing == Facing::Side;
    let half = if side { 5.6 } else { figure.hip };
    let kind = figure.value(slot::BOTTOM_TYPE);
    if matches!(kind, SHORT_SKIRT | LONG_SKIRT) {
        let bottom: f32 = if kind == SHORT_SKIRT { 75.5 } else { 90.0 };
        let reach = |i: usize| {
            between(figure.pose.knees[i], figure.pose.ankles[i], ((bottom - 73.0) / 21.0).clamp(0.0, 1.0)).0
        };
        let left = reach(0).min(reach(1)).max(-12.0) - 4.6;
        let right = reach(0).max(reach(1)).min(12.0) + 4.6;
        let flare = if kind == SHORT_SKIRT { half + 2.6 } else { half + 2.0 };
        let shape = [
            (-half + 0.8, 44.0),
            (half - 0.8, 44.0),
            (half + 0.8, 53.0),
            (right.max(flare), bottom),
            (left.min(-flare), bottom),
            (-half - 0.8, 53.0),
        ];
        canvas.solid(polygon(&shape), figure.bottom, (-half, 0.0), (half + 2.0, 0.0));
        let fold = edge(figure.bottom);
        for (at, to) in [(-0.45, -0.55), (0.05, 0.1), (0.5, 0.6)] {
            canvas.line(&[(half * at, 56.0), (flare * to, bottom - 1.0)], 0.5, fold);
        }
        return;
    }
    let crotch = if side { 55.0 } else { 57.0 };
    let shape = [
        (-half, 44.0),
        (half, 44.0),
        (half + 0.3, 52.0),
        (0.9 * half, crotch),
        (-0.9 * half, crotch),
        (-half - 0.3, 52.0),
    ];
    canvas.fill(polygon(&shape), figure.bottom);
    if !side {
        canvas.line(&[(0.0, 54.0), (0.0, 58.5)], 0.6, edge(figure.bottom));
    }
}

/// The shoe of leg `i`. Shoes are drawn a little large: they must be told apart in a small picture.
fn shoe(canvas: &mut Canvas, figure: &Figure, i: usize, colour: Rgb) {
    let (knee, (x, y)) = (figure.pose.knees[i], figure.pose.ankles[i]);
    let kind = figure.value(slot::SHOES_TYPE);
    let shaft_top = between((x, y), knee, 0.52);
    let sole = if lightness(colour) > 150.0 { [96, 96, 100] } else { [236, 236, 232] };
    if figure.facing == Facing::Side {
        let drop = 4.2 * figure.pose.tip[i];
        let foot = |dx: f32, dy: f32| (x + dx, y + dy + drop * (dx + 2.0) / 8.0);
        let upper = [
            foot(-3.2, -1.4),
            foot(1.6, -1.8),
            foot(4.4, 1.6),
            foot(8.2, 2.4),
            foot(8.6, 5.0),
            foot(-3.4, 5.0),
        ];
        if kind == SANDALS {
            canvas.fill(polygon(&upper), figure.skin);
            canvas.line(&[foot(-3.6, 5.0), foot(8.6, 5.0)], 1.9, colour);
            canvas.line(&[foot(-2.6, -0.6), foot(2.6, 0.6)], 1.7, colour);
            canvas.line(&[foot(3.4, 4.6), foot(5.8, 1.6)], 1.9, colour);
            return;
        }
        if kind == BOOTS {
            canvas.limbs(&[(shaft_top, 3.8), ((x, y + 1.0), 3.4)], colour);
        }
        canvas.solid(polygon(&upper), colour, (x - 3.0, 0.0), (x + 9.0, 0.0));
        if kind == BOOTS {
            canvas.line(&[foot(-3.0, 5.2), foot(-1.2, 5.2)], 1.8, darker(colour, 0.5));
        } else {
            canvas.line(&[foot(-3.2, 4.8), foot(8.4, 4.8)], 1.7, sole);
        }
        return;
    }
    let (rx, ry) = (3.6, 3.5);
    let centre = (x + if x < 0.0 { -0.7 } else { 0.7 }, y + 2.6);
    if kind == SANDALS {
        canvas.fill(oval(centre, rx - 0.4, ry), figure.skin);
        let (l, r) = (centre.0 - rx + 0.5, centre.0 + rx - 0.5);
        canvas.line(&[(l, centre.1 - 2.2), (r, centre.1 - 2.2)], 1.6, colour);
        canvas.line(&[(l, centre.1 + 0.6), (r, centre.1 + 0.6)], 1.8, colour);
        canvas.line(&[(l, centre.1 + 3.3), (r, centre.1 + 3.3)], 1.4, colour);
        return;
    }
    if kind == BOOTS {
        canvas.limbs(&[(shaft_top, 3.9), ((x, y + 1.0), 3.5)], colour);
        canvas.solid(oval(centre, rx, ry), colour, (x - 3.0, 0.0), (x + 4.0, 0.0));
        canvas.line(
            &[(shaft_top.0 - 3.2, shaft_top.1 - 1.4), (shaft_top.0 + 3.2, shaft_top.1 - 1.4)],
            1.3,
            edge(colour),
        );
        return;
    }
    canvas.fill(oval((centre.0, centre.1 + 0.7), rx + 0.3, ry), sole);
    canvas.solid(oval((centre.0, centre.1 - 0.7), rx, ry - 0.2), colour, (x - 3.0, 0.0), (x + 4.0, 0.0));
    if figure.facing == Facing::Front {
        for dy in [-2.2, -0.8] {
            canvas.line(&[(centre.0 - 1.1, centre.1 + dy), (centre.0 + 1.1, centre.1 + dy)], 0.6, sole);
        }
    }
}
