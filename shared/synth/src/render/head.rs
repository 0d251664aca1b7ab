//! Head, face, hair, glasses and hat.

use super::canvas::{Canvas, P, blob, oval, polygon, rectangle};
use super::figure::Figure;
use super::palette::{Rgb, contrast, darker, edge, lighter, lightness, mix};
use crate::schema::{Facing, slot};

const BALD: u8 = 0;
const SHORT: u8 = 1;
const CURLY: u8 = 2;
const LONG: u8 = 3;
const PONYTAIL: u8 = 4;
const BUN: u8 = 5;

const CAP: u8 = 1;
const BEANIE: u8 = 2;
const SUN_HAT: u8 = 3;

/// Height of the middle of the head.
const MIDDLE: f32 = 9.4;

fn points(figure: &Figure, list: &[P]) -> Vec<P> {
    list.iter().map(|&(x, y)| figure.at(x, y)).collect()
}

/// Long hair falls behind the shoulders of a person seen from the front.
pub(super) fn hair_behind(canvas: &mut Canvas, figure: &Figure) {
    match figure.value(slot::HAIR_STYLE) {
        LONG => {
            let shape = points(
                figure,
                &[
                    (-6.5, 2.0),
                    (6.5, 2.0),
                    (9.0, 14.0),
                    (9.2, 30.0),
                    (5.0, 31.5),
                    (-5.0, 31.5),
                    (-9.2, 30.0),
                    (-9.0, 14.0),
                ],
            );
            canvas.solid(blob(&shape), figure.hair, (-8.0, 0.0), (8.0, 0.0));
        }
        CURLY => curls(canvas, figure, 0.0),
        _ => {}
    }
}

fn curls(canvas: &mut Canvas, figure: &Figure, shift: f32) {
    for pass in 0..2 {
        for step in 0..11 {
            let angle = std::f32::consts::PI * (0.86 + 1.28 * step as f32 / 10.0);
            let (x, y) = figure.at(shift + 6.2 * angle.cos(), MIDDLE - 0.6 + 7.2 * angle.sin());
            let ball = oval((x, y), 2.9, 2.9);
            if pass == 0 {
                canvas.outline(ball, 0.6, edge(figure.hair));
            } else {
                canvas.fill(
                    ball,
                    if step % 2 == 0 { figure.hair } else { mix(figure.hair, edge(figure.hair), 0.35) },
                );
            }
        }
    }
}

pub(super) fn head(canvas: &mut Canvas, figure: &Figure) {
    let neck = points(figure, &[(-2.4, 14.0), (2.4, 14.0), (2.9, 19.0), (-2.9, 19.0)]);
    if figure.facing != Facing::Side && figure.value(slot::TOP_TYPE) == 2 {
        // The collar of a sweater stands before the neck.
        let short = points(figure, &[(-2.4, 13.0), (2.4, 13.0), (2.4, 15.8), (-2.4, 15.8)]);
        canvas.fill(polygon(&short), darker(figure.skin, 0.15));
    } else if figure.facing == Facing::Side {
        let short = points(figure, &[(-2.6, 13.0), (2.0, 13.0), (2.0, 17.4), (-2.8, 17.4)]);
        canvas.fill(polygon(&short), darker(figure.skin, 0.15));
    } else {
        canvas.fill(polygon(&neck), darker(figure.skin, 0.15));
    }
    match figure.facing {
        Facing::Front => front(canvas, figure),
        Facing::Back => back(canvas, figure),
        Facing::Side => side(canvas, figure),
    }
    hat(canvas, figure);
}

fn skull(canvas: &mut Canvas, figure: &Figure) {
    let shape = points(
        figure,
        &[
            (-5.6, 3.0),
            (0.0, 1.4),
            (5.6, 3.0),
            (6.0, 10.0),
            (4.2, 15.4),
            (0.0, 17.6),
            (-4.2, 15.4),
            (-6.0, 10.0),
        ],
    );
    canvas.solid(blob(&shape), figure.skin, (-5.0, 0.0), (9.0, 0.0));
}

fn front(canvas: &mut Canvas, figure: &Figure) {
    for s in [-1.0, 1.0] {
        canvas.fill(oval(figure.at(s * 5.5, 10.2), 1.2, 1.8), darker(figure.skin, 0.1));
    }
    skull(canvas, figure);
    if !figure.woman {
        let beard = points(
            figure,
            &[(-5.2, 11.0), (-3.0, 13.2), (3.0, 13.2), (5.2, 11.0), (4.0, 15.6), (0.0, 17.6), (-4.0, 15.6)],
        );
        canvas.tint(blob(&beard), darker(mix(figure.hair, figure.skin, 0.35), 0.25), 0.6);
    }
    let ink = [34, 24, 22];
    for s in [-1.0, 1.0] {
        canvas.fill(oval(figure.at(s * 2.3, 9.6), 0.95, 0.8), [250, 250, 250]);
        canvas.fill(oval(figure.at(s * 2.3, 9.6), 0.6, 0.75), ink);
        canvas.line(
            &[figure.at(s * 1.3, 7.9), figure.at(s * 3.4, 7.7)],
            if figure.woman { 0.45 } else { 0.8 },
            darker(figure.hair, 0.3),
        );
    }
    canvas.line(&[figure.at(0.0, 10.0), figure.at(0.5, 12.0)], 0.5, darker(figure.skin, 0.3));
    let lips = if figure.woman { [196, 44, 62] } else { darker(figure.skin, 0.45) };
    canvas.line(&[figure.at(-1.4, 14.0), figure.at(1.4, 14.0)], if figure.woman { 1.1 } else { 0.7 }, lips);
    hair_front(canvas, figure);
    glasses_front(canvas, figure);
}

fn hair_cap(canvas: &mut Canvas, figure: &Figure, low: f32) {
    let shape = points(
        figure,
        &[
            (-6.3, low),
            (-6.6, 3.2),
            (-3.0, 0.4),
            (3.0, 0.4),
            (6.6, 3.2),
            (6.3, low),
            (4.9, low),
            (4.9, 6.4),
            (2.0, 5.2),
            (-2.0, 5.8),
            (-4.9, 6.6),
            (-4.9, low),
        ],
    );
    canvas.solid(polygon(&shape), figure.hair, (-5.0, 0.0), (7.0, 0.0));
}

fn hair_front(canvas: &mut Canvas, figure: &Figure) {
    match figure.value(slot::HAIR_STYLE) {
        BALD => canvas.tint(oval(figure.at(-1.6, 4.4), 1.8, 1.1), [255, 255, 255], 0.55),
        SHORT => hair_cap(canvas, figure, 9.6),
        CURLY => {
            for step in 0..6 {
                let x = -4.6 + 1.84 * step as f32;
                canvas.fill(
                    oval(figure.at(x, 4.2 - 0.5 * (2.5 - (step as f32 - 2.5).abs())), 1.9, 1.9),
                    figure.hair,
                );
            }
        }
        LONG => {
            hair_cap(canvas, figure, 9.6);
            for s in [-1.0, 1.0] {
                let lock = points(
                    figure,
                    &[
                        (s * 4.9, 5.0),
                        (s * 6.4, 4.0),
                        (s * 8.6, 17.0),
                        (s * 8.8, 30.0),
                        (s * 5.2, 31.0),
                        (s * 4.8, 17.0),
                    ],
                );
                canvas.solid(blob(&lock), figure.hair, (s * 4.0, 0.0), (s * 9.0, 0.0));
            }
        }
        PONYTAIL => {
            hair_cap(canvas, figure, 8.4);
            let tail = points(
                figure,
                &[(-5.4, 7.0), (-8.4, 9.0), (-9.4, 20.0), (-7.6, 30.0), (-5.8, 20.0), (-5.8, 12.0)],
            );
            canvas.solid(blob(&tail), figure.hair, (-9.0, 0.0), (-5.0, 0.0));
            canvas.fill(oval(figure.at(-6.7, 9.2), 1.5, 1.2), [236, 96, 130]);
        }
        BUN => {
            hair_cap(canvas, figure, 8.4);
            canvas.solid(oval(figure.at(0.0, -0.6), 3.5, 3.0), figure.hair, (-3.0, 0.0), (4.0, 0.0));
            canvas.line(&[figure.at(-2.2, 1.6), figure.at(2.2, 1.6)], 0.7, edge(figure.hair));
        }
        _ => {}
    }
}

/// Hair that hangs over the back of a person seen from behind.
pub(super) fn hair_over_back(canvas: &mut Canvas, figure: &Figure) {
    match figure.value(slot::HAIR_STYLE) {
        LONG => {
            let shape = points(
                figure,
                &[
                    (-6.4, 8.0),
                    (6.4, 8.0),
                    (8.4, 18.0),
                    (7.8, 31.0),
                    (3.0, 32.5),
                    (-3.0, 32.5),
                    (-7.8, 31.0),
                    (-8.4, 18.0),
                ],
            );
            canvas.solid(blob(&shape), figure.hair, (-7.0, 0.0), (9.0, 0.0));
            for x in [-3.0, 0.4, 3.4] {
                canvas.line(&[figure.at(x * 0.6, 12.0), figure.at(x, 29.0)], 0.5, edge(figure.hair));
            }
        }
        PONYTAIL => {
            let shape = points(
                figure,
                &[
                    (-1.6, 8.0),
                    (1.6, 8.0),
                    (3.4, 18.0),
                    (2.0, 31.0),
                    (-0.4, 33.5),
                    (-2.4, 30.0),
                    (-3.4, 18.0),
                ],
            );
            canvas.solid(blob(&shape), figure.hair, (-3.0, 0.0), (4.0, 0.0));
            canvas.fill(oval(figure.at(0.0, 9.4), 2.2, 1.3), [236, 96, 130]);
        }
        _ => {}
    }
    if matches!(figure.value(slot::HAIR_STYLE), LONG | PONYTAIL) {
        hat(canvas, figure);
    }
}

fn back(canvas: &mut Canvas, figure: &Figure) {
    for s in [-1.0, 1.0] {
        canvas.fill(oval(figure.at(s * 5.6, 10.2), 1.2, 1.8), darker(figure.skin, 0.1));
    }
    let style = figure.value(slot::HAIR_STYLE);
    if style == CURLY {
        curls(canvas, figure, 0.0);
    }
    skull(canvas, figure);
    if style == BALD {
        canvas.tint(oval(figure.at(-1.6, 4.8), 2.0, 1.2), [255, 255, 255], 0.5);
        canvas.line(&[figure.at(-3.0, 15.0), figure.at(3.0, 15.0)], 0.5, darker(figure.skin, 0.25));
        return;
    }
    let low = if matches!(style, SHORT | CURLY) { 13.6 } else { 14.8 };
    let shape = points(
        figure,
        &[
            (-5.8, 2.6),
            (0.0, 0.0),
            (5.8, 2.6),
            (6.6, 10.0),
            (4.4, low),
            (0.0, low + 1.4),
            (-4.4, low),
            (-6.6, 10.0),
        ],
    );
    canvas.solid(blob(&shape), figure.hair, (-5.0, 0.0), (8.0, 0.0));
    if style == BUN {
        canvas.solid(oval(figure.at(0.0, 1.2), 3.7, 3.3), figure.hair, (-3.0, 0.0), (4.0, 0.0));
        canvas.outline(oval(figure.at(0.0, 1.2), 2.0, 1.7), 0.6, edge(figure.hair));
    }
    if style == CURLY {
        for (x, y) in [(-3.4, 5.0), (0.2, 3.6), (3.4, 5.4), (-2.2, 9.0), (2.2, 9.4), (0.0, 12.6)] {
            canvas.outline(oval(figure.at(x, y), 1.7, 1.6), 0.5, edge(figure.hair));
        }
    }
}

fn side(canvas: &mut Canvas, figure: &Figure) {
    let style = figure.value(slot::HAIR_STYLE);
    if style == CURLY {
        curls(canvas, figure, -0.8);
    }
    // Tails hang behind the head.
    match style {
        LONG => {
            let shape = points(
                figure,
                &[
                    (-3.0, 2.0),
                    (2.0, 6.0),
                    (-0.6, 16.0),
                    (-1.8, 30.0),
                    (-7.4, 31.0),
                    (-8.6, 16.0),
                    (-7.0, 5.0),
                ],
            );
            canvas.solid(blob(&shape), figure.hair, (-8.0, 0.0), (2.0, 0.0));
        }
        PONYTAIL => {
            let shape = points(
                figure,
                &[
                    (-4.6, 5.0),
                    (-8.6, 5.4),
                    (-11.2, 14.0),
                    (-10.4, 26.0),
                    (-8.6, 28.0),
                    (-8.0, 16.0),
                    (-5.4, 9.0),
                ],
            );
            canvas.solid(blob(&shape), figure.hair, (-11.0, 0.0), (-5.0, 0.0));
            canvas.fill(oval(figure.at(-6.3, 6.6), 1.3, 1.6), [236, 96, 130]);
        }
        BUN => canvas.solid(oval(figure.at(-6.6, 3.6), 3.3, 3.1), figure.hair, (-10.0, 0.0), (-4.0, 0.0)),
        _ => {}
    }
    let face = points(
        figure,
        &[
            (-5.4, 3.0),
            (0.0, 1.4),
            (5.2, 3.2),
            (5.4, 8.4),
            (7.0, 11.6),
            (5.2, 13.0),
            (4.6, 17.0),
            (0.6, 17.4),
            (-3.8, 14.8),
            (-6.2, 9.6),
        ],
    );
    canvas.solid(blob(&face), figure.skin, (-5.0, 0.0), (9.0, 0.0));
    if !figure.woman {
        let beard =
            points(figure, &[(-1.6, 12.0), (3.0, 13.4), (5.4, 13.6), (4.6, 17.2), (0.6, 17.4), (-2.6, 14.6)]);
        canvas.tint(blob(&beard), darker(mix(figure.hair, figure.skin, 0.35), 0.25), 0.6);
    }
    canvas.fill(oval(figure.at(3.6, 9.4), 0.75, 0.85), [34, 24, 22]);
    canvas.line(
        &[figure.at(2.6, 7.6), figure.at(4.6, 7.7)],
        if figure.woman { 0.45 } else { 0.8 },
        darker(figure.hair, 0.3),
    );
    let lips = if figure.woman { [196, 44, 62] } else { darker(figure.skin, 0.45) };
    canvas.line(&[figure.at(3.6, 14.1), figure.at(5.0, 13.9)], if figure.woman { 1.1 } else { 0.7 }, lips);
    if style != BALD {
        let low = if style == SHORT { 12.4 } else { 11.6 };
        let cap = points(
            figure,
            &[
                (5.2, 4.8),
                (4.4, 1.2),
                (-1.0, -0.6),
                (-6.4, 2.0),
                (-7.2, 9.0),
                (-5.0, low + 1.6),
                (-2.2, low),
                (-1.6, 8.4),
                (1.2, 6.6),
            ],
        );
        canvas.solid(blob(&cap), figure.hair, (-7.0, 0.0), (5.0, 0.0));
    } else {
        canvas.tint(oval(figure.at(-1.0, 4.0), 2.0, 1.1), [255, 255, 255], 0.5);
    }
    canvas.fill(oval(figure.at(-1.2, 10.2), 1.2, 1.8), darker(figure.skin, 0.12));
    glasses_side(canvas, figure);
}

fn frame_colours(figure: &Figure) -> Option<(Rgb, Rgb, f32)> {
    match figure.value(slot::GLASSES) {
        0 => None,
        1 => Some(([24, 24, 30], [224, 240, 252], 0.45)),
        _ => Some(([10, 10, 12], [14, 14, 18], 1.0)),
    }
}

fn glasses_front(canvas: &mut Canvas, figure: &Figure) {
    let Some((frame, lens, alpha)) = frame_colours(figure) else { return };
    canvas.line(&[figure.at(-5.6, 9.0), figure.at(5.6, 9.0)], 0.8, frame);
    for s in [-1.0, 1.0] {
        let (rx, ry) = if alpha < 1.0 { (2.2, 2.1) } else { (2.5, 2.1) };
        let shape = oval(figure.at(s * 2.65, 9.7), rx, ry);
        canvas.tint(shape.clone(), lens, alpha);
        canvas.outline(shape, 0.95, frame);
        if alpha < 1.0 {
            canvas.fill(oval(figure.at(s * 2.4, 9.7), 0.6, 0.75), [34, 24, 22]);
        } else {
            canvas.line(
                &[figure.at(s * 2.65 - 1.0, 9.0), figure.at(s * 2.65 - 0.2, 8.6)],
                0.5,
                [150, 160, 175],
            );
        }
    }
}

fn glasses_side(canvas: &mut Canvas, figure: &Figure) {
    let Some((frame, lens, alpha)) = frame_colours(figure) else { return };
    canvas.line(&[figure.at(-1.4, 9.2), figure.at(3.0, 9.0)], 0.9, frame);
    let shape = oval(figure.at(4.3, 9.6), 1.7, 2.2);
    canvas.tint(shape.clone(), lens, alpha);
    canvas.outline(shape, 0.95, frame);
}

fn hat(canvas: &mut Canvas, figure: &Figure) {
    let colour = figure.hat;
    let seam = edge(colour);
    let dome = |canvas: &mut Canvas, low: f32, high: f32| {
        let shape = points(
            figure,
            &[(-6.7, low), (-6.6, high + 3.4), (-3.4, high), (3.4, high), (6.6, high + 3.4), (6.7, low)],
        );
        canvas.solid(polygon(&shape), colour, (-6.0, 0.0), (7.0, 0.0));
    };
    match figure.value(slot::HAT) {
        CAP => {
            dome(canvas, 6.0, -0.8);
            canvas.line(&[figure.at(0.0, -0.8), figure.at(0.0, 5.0)], 0.5, seam);
            match figure.facing {
                Facing::Front => {
                    let visor = points(
                        figure,
                        &[(-6.2, 5.4), (0.0, 3.8), (6.2, 5.4), (6.6, 7.6), (0.0, 6.6), (-6.6, 7.6)],
                    );
                    canvas.solid(polygon(&visor), darker(colour, 0.25), (-6.0, 0.0), (6.0, 0.0));
                }
                Facing::Back => canvas.fill(oval(figure.at(0.0, 5.6), 2.4, 1.6), figure.hair_or_skin()),
                Facing::Side => {
                    let visor =
                        points(figure, &[(3.0, 4.6), (6.4, 4.4), (12.2, 6.2), (12.0, 7.4), (5.0, 6.9)]);
                    canvas.solid(polygon(&visor), darker(colour, 0.25), (3.0, 0.0), (12.0, 0.0));
                }
            }
        }
        BEANIE => {
            dome(canvas, 5.4, -2.2);
            let band = points(figure, &[(-7.0, 3.4), (7.0, 3.4), (7.0, 6.8), (-7.0, 6.8)]);
            canvas.solid(
                polygon(&band),
                lighter(colour, if lightness(colour) > 200.0 { 0.0 } else { 0.22 }),
                (-7.0, 0.0),
                (7.0, 0.0),
            );
            for i in 0..6 {
                let x = -5.0 + 2.0 * i as f32;
                canvas.line(&[figure.at(x, 4.0), figure.at(x, 6.2)], 0.4, seam);
            }
            canvas.solid(oval(figure.at(0.0, -2.8), 2.3, 2.0), lighter(colour, 0.2), (-2.0, 0.0), (3.0, 0.0));
        }
        SUN_HAT => {
            let (reach, low) = (12.4, 5.2);
            canvas.solid(oval(figure.at(0.0, low), reach, 2.2), colour, (-9.0, 0.0), (12.0, 0.0));
            let shape = points(
                figure,
                &[(-6.2, low), (-5.2, -0.6), (-2.6, -2.2), (2.6, -2.2), (5.2, -0.6), (6.2, low)],
            );
            canvas.solid(polygon(&shape), colour, (-6.0, 0.0), (7.0, 0.0));
            let (left, right) = (figure.at(-6.0, 0.0).0, figure.at(6.0, 0.0).0);
            canvas.fill(rectangle(left, 2.4, right, 4.6), contrast(colour));
        }
        _ => {}
    }
}

impl Figure {
    fn hair_or_skin(&self) -> Rgb {
        if self.value(slot::HAIR_STYLE) == BALD { self.skin } else { self.hair }
    }
}
