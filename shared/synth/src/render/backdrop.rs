//! Places, and what stands before the feet. Coordinates are pixels of the large canvas.

use rand::Rng;

use super::canvas::{Canvas, oval, polygon, rectangle};
use super::palette::{Rgb, darker, lighter, mix};
use crate::schema::Occluder;

const W: f32 = super::CANVAS_WIDTH as f32;
const H: f32 = super::CANVAS_HEIGHT as f32;

fn vary(rng: &mut impl Rng, colour: Rgb, by: i16) -> Rgb {
    let shift = rng.random_range(-by..=by);
    colour.map(|level| (i16::from(level) + shift).clamp(0, 255) as u8)
}

/// Paints the place with slot value `kind`; returns nothing that the person depends on.
pub(super) fn backdrop(canvas: &mut Canvas, rng: &mut impl Rng, kind: u8) {
    canvas.place_pixels();
    match kind {
        0 => street(canvas, rng),
        1 => park(canvas, rng),
        2 => shop(canvas, rng),
        3 => station(canvas, rng),
        4 => square(canvas, rng),
        _ => wall(canvas, rng),
    }
}

fn street(canvas: &mut Canvas, rng: &mut impl Rng) {
    let horizon = H * rng.random_range(0.5..0.6);
    canvas.fill(rectangle(0.0, 0.0, W, horizon), vary(rng, [176, 200, 222], 10));
    let mut x = rng.random_range(-40.0..0.0);
    while x < W {
        let (width, height) = (rng.random_range(44.0..76.0), rng.random_range(90.0..165.0));
        let face = vary(rng, [158, 146, 138], 24);
        canvas.fill(rectangle(x, horizon - height, x + width, horizon), face);
        let mut y = horizon - height + 10.0;
        while y < horizon - 22.0 {
            let mut window = x + 7.0;
            while window + 9.0 < x + width {
                canvas.fill(rectangle(window, y, window + 9.0, y + 13.0), darker(face, 0.42));
                window += 17.0;
            }
            y += 24.0;
        }
        x += width;
    }
    // Asphalt with a kerb and a dashed line.
    canvas.fill(rectangle(0.0, horizon, W, H), vary(rng, [94, 96, 100], 8));
    canvas.fill(rectangle(0.0, horizon, W, horizon + 14.0), [168, 166, 160]);
    canvas.fill(rectangle(0.0, horizon + 14.0, W, horizon + 18.0), [210, 208, 202]);
    let line = horizon + (H - horizon) * 0.5;
    let start = rng.random_range(-30.0..0.0);
    for i in 0..6 {
        let left = start + 48.0 * i as f32;
        canvas.fill(
            polygon(&[
                (left, line),
                (left + 28.0, line),
                (left + 25.0, line + 6.0),
                (left - 4.0, line + 6.0),
            ]),
            [236, 234, 226],
        );
    }
}

fn park(canvas: &mut Canvas, rng: &mut impl Rng) {
    let horizon = H * rng.random_range(0.46..0.56);
    canvas.fill(rectangle(0.0, 0.0, W, horizon), vary(rng, [186, 214, 234], 10));
    for _ in 0..9 {
        let (x, r) = (rng.random_range(-10.0..W + 10.0), rng.random_range(18.0..34.0));
        canvas.fill(oval((x, horizon - 6.0), r, r * 0.9), vary(rng, [104, 148, 96], 14));
    }
    canvas.fill(rectangle(0.0, horizon, W, H), vary(rng, [142, 182, 106], 10));
    for _ in 0..2 {
        let left = rng.random_bool(0.5);
        let x = if left { rng.random_range(-6.0..34.0) } else { rng.random_range(W - 34.0..W + 6.0) };
        let base = horizon + rng.random_range(6.0..40.0);
        canvas.fill(rectangle(x - 5.0, base - 90.0, x + 5.0, base), [112, 88, 66]);
        for _ in 0..7 {
            let (dx, dy) = (rng.random_range(-22.0..22.0), rng.random_range(-36.0..14.0));
            canvas.fill(oval((x + dx, base - 104.0 + dy), 20.0, 18.0), vary(rng, [78, 128, 74], 14));
        }
    }
    let bend = rng.random_range(-20.0..20.0);
    let path = [(W * 0.42 + bend, horizon), (W * 0.54 + bend, horizon), (W * 0.96, H), (W * 0.04, H)];
    canvas.fill(polygon(&path), vary(rng, [206, 192, 164], 8));
}

fn shop(canvas: &mut Canvas, rng: &mut impl Rng) {
    let floor = H * rng.random_range(0.66..0.74);
    canvas.fill(rectangle(0.0, 0.0, W, floor), vary(rng, [224, 216, 204], 8));
    for i in 0..3 {
        let x = 8.0 + 58.0 * i as f32;
        canvas.fill(rectangle(x, 6.0, x + 36.0, 12.0), [254, 252, 240]);
    }
    let goods: [Rgb; 6] = [
        [206, 112, 104],
        [112, 150, 196],
        [222, 198, 112],
        [134, 176, 128],
        [178, 134, 180],
        [222, 160, 106],
    ];
    let mut y = 34.0;
    while y < floor - 16.0 {
        let mut x = rng.random_range(-6.0..4.0);
        while x < W {
            let (width, height) = (rng.random_range(8.0..18.0), rng.random_range(15.0..26.0));
            canvas.fill(
                rectangle(x, y + 28.0 - height, x + width, y + 28.0),
                lighter(goods[rng.random_range(0..6usize)], 0.12),
            );
            x += width + 2.0;
        }
        canvas.fill(rectangle(0.0, y + 28.0, W, y + 33.0), [132, 108, 88]);
        y += 38.0;
    }
    canvas.fill(rectangle(0.0, floor, W, H), vary(rng, [208, 206, 200], 6));
    tiles(canvas, floor, [176, 174, 168]);
}

/// Lines of a paved floor that run to a point on the horizon.
fn tiles(canvas: &mut Canvas, top: f32, colour: Rgb) {
    for i in -6..=6 {
        let x = W / 2.0 + 16.0 * i as f32;
        canvas.line(&[(x, top), (W / 2.0 + 62.0 * i as f32, H)], 1.4, colour);
    }
    let mut y = top;
    let mut step = 5.0;
    while y < H {
        canvas.line(&[(0.0, y), (W, y)], 1.4, colour);
        y += step;
        step *= 1.45;
    }
}

fn station(canvas: &mut Canvas, rng: &mut impl Rng) {
    let edge = H * rng.random_range(0.62..0.68);
    canvas.fill(rectangle(0.0, 0.0, W, edge), vary(rng, [112, 118, 128], 8));
    canvas.fill(rectangle(0.0, 0.0, W, 26.0), [70, 74, 82]);
    let train: Rgb = vary(rng, [196, 204, 212], 8);
    let top = rng.random_range(48.0..62.0);
    canvas.fill(rectangle(0.0, top, W, edge - 8.0), train);
    let band: Rgb = if rng.random_bool(0.5) { [92, 128, 176] } else { [176, 96, 92] };
    canvas.fill(rectangle(0.0, edge - 46.0, W, edge - 32.0), band);
    let mut x = rng.random_range(-40.0..-6.0);
    while x < W {
        canvas.fill(rectangle(x, top + 18.0, x + 34.0, top + 62.0), [64, 76, 92]);
        canvas.fill(rectangle(x + 42.0, top + 10.0, x + 62.0, edge - 12.0), mix(train, [60, 60, 70], 0.3));
        canvas.fill(rectangle(x + 46.0, top + 18.0, x + 58.0, top + 62.0), [64, 76, 92]);
        x += 70.0;
    }
    canvas.fill(rectangle(0.0, edge - 8.0, W, edge), [44, 44, 48]);
    canvas.fill(rectangle(0.0, edge, W, H), vary(rng, [172, 170, 168], 8));
    canvas.fill(rectangle(0.0, edge + 7.0, W, edge + 17.0), [236, 206, 84]);
}

fn square(canvas: &mut Canvas, rng: &mut impl Rng) {
    let horizon = H * rng.random_range(0.42..0.5);
    canvas.fill(rectangle(0.0, 0.0, W, horizon), vary(rng, [206, 222, 238], 10));
    // A long hall with columns.
    let face = vary(rng, [220, 206, 180], 8);
    let top = horizon - rng.random_range(64.0..84.0);
    canvas.fill(rectangle(0.0, top, W, horizon), face);
    canvas.fill(polygon(&[(-8.0, top), (W / 2.0, top - 34.0), (W + 8.0, top)]), darker(face, 0.12));
    let mut x = rng.random_range(-14.0..0.0);
    while x < W {
        canvas.fill(rectangle(x, top + 12.0, x + 13.0, horizon), darker(face, 0.42));
        canvas.fill(rectangle(x + 15.0, top + 8.0, x + 23.0, horizon), lighter(face, 0.4));
        x += 28.0;
    }
    canvas.fill(rectangle(0.0, horizon, W, H), vary(rng, [214, 208, 198], 8));
    tiles(canvas, horizon, [180, 174, 164]);
}

fn wall(canvas: &mut Canvas, rng: &mut impl Rng) {
    let floor = H * rng.random_range(0.76..0.82);
    let brick = vary(rng, [168, 104, 84], 10);
    canvas.fill(rectangle(0.0, 0.0, W, floor), mix(brick, [220, 206, 192], 0.6));
    let mut y = 0.0;
    let mut odd = false;
    while y < floor {
        let mut x = if odd { -14.0 } else { 0.0 };
        while x < W {
            let colour = vary(rng, brick, 12);
            canvas.fill(rectangle(x + 1.0, y + 1.0, x + 27.0, (y + 12.0).min(floor)), colour);
            x += 28.0;
        }
        y += 13.0;
        odd = !odd;
    }
    canvas.fill(rectangle(0.0, floor, W, H), vary(rng, [150, 148, 146], 8));
    canvas.fill(rectangle(0.0, floor, W, floor + 5.0), [112, 110, 108]);
}

/// Paints what hides the feet: from `top` down, over the whole width that a stride takes.
pub(super) fn occluder(canvas: &mut Canvas, rng: &mut impl Rng, kind: Occluder, top: f32, middle: f32) {
    canvas.place_pixels();
    match kind {
        Occluder::None | Occluder::Crop => {}
        Occluder::Hedge => {
            canvas.fill(rectangle(0.0, top + 10.0, W, H), [56, 104, 52]);
            for i in 0..40 {
                let x = rng.random_range(-6.0..W + 6.0);
                let y =
                    if i < 16 { top + rng.random_range(4.0..12.0) } else { rng.random_range(top + 10.0..H) };
                canvas.fill(oval((x, y), 9.0, 8.0), vary(rng, [64, 118, 58], 16));
            }
        }
        Occluder::Car => {
            let paint: Rgb = [[176, 182, 190], [96, 108, 128], [152, 84, 78]][rng.random_range(0..3usize)];
            let roof = [
                (-4.0, top + 10.0),
                (middle - 62.0, top),
                (middle + 62.0, top),
                (W + 4.0, top + 10.0),
                (W + 4.0, H),
                (-4.0, H),
            ];
            canvas.fill(polygon(&roof), paint);
            canvas.line(&[(0.0, top + 13.0), (W, top + 13.0)], 2.0, lighter(paint, 0.45));
            canvas.line(&[(0.0, top + 27.0), (W, top + 27.0)], 1.6, darker(paint, 0.4));
            canvas.fill(rectangle(middle + 26.0, top + 18.0, middle + 40.0, top + 22.0), darker(paint, 0.5));
        }
        Occluder::Barrier => {
            for i in 0..4 {
                let x = 10.0 + 50.0 * i as f32 + rng.random_range(-4.0..4.0);
                canvas.fill(rectangle(x, top - 8.0, x + 9.0, H), [74, 76, 82]);
            }
            canvas.fill(rectangle(0.0, top, W, H), [222, 222, 218]);
            for i in 0..5 {
                let x = -10.0 + 44.0 * i as f32;
                canvas
                    .fill(polygon(&[(x, H), (x + 20.0, H), (x + 40.0, top), (x + 20.0, top)]), [214, 72, 58]);
            }
            canvas.line(&[(0.0, top), (W, top)], 2.0, [120, 120, 120]);
        }
    }
}
