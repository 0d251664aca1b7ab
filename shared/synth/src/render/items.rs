//! What is carried: bags, scarves and things in the hand.

use super::canvas::{Canvas, P, blob, oval, polygon, polyline, rectangle};
use super::figure::{BACKPACK, Figure, HANDBAG, SHOULDER_BAG};
use super::palette::{contrast, darker, edge, lighter};
use crate::schema::{Facing, OBJECT_BOOK, OBJECT_CUP, OBJECT_PHONE, OBJECT_SHOPPING, OBJECT_UMBRELLA, slot};

fn points(figure: &Figure, list: &[P]) -> Vec<P> {
    list.iter().map(|&(x, y)| figure.at(x, y)).collect()
}

fn has_backpack(figure: &Figure) -> bool {
    figure.value(slot::BAG) == BACKPACK
}

/// Seen from the front a backpack shows above the shoulders and beside the trunk.
pub(super) fn backpack_behind(canvas: &mut Canvas, figure: &Figure) {
    if !has_backpack(figure) {
        return;
    }
    let w = figure.shoulder + 1.6;
    let shape =
        points(figure, &[(-w + 3.0, 14.6), (w - 3.0, 14.6), (w, 19.0), (w, 45.0), (-w, 45.0), (-w, 19.0)]);
    canvas.solid(polygon(&shape), figure.bag, (-w, 0.0), (w, 0.0));
}

/// Straps of backpacks seen from the front and of shoulder bags.
pub(super) fn straps(canvas: &mut Canvas, figure: &Figure) {
    let dark = edge(figure.bag);
    match (figure.value(slot::BAG), figure.facing) {
        (BACKPACK, Facing::Front) => {
            for s in [-1.0, 1.0] {
                let line = points(
                    figure,
                    &[
                        (s * (figure.shoulder - 4.4), 19.0),
                        (s * (figure.shoulder - 4.0), 28.0),
                        (s * (figure.shoulder - 1.8), 40.0),
                    ],
                );
                canvas.outline(polyline(&line), 3.5, dark);
                canvas.outline(polyline(&line), 2.7, figure.bag);
            }
        }
        (SHOULDER_BAG, Facing::Front | Facing::Back) => {
            let s = if figure.bag_hand == 0 { -1.0 } else { 1.0 };
            let line =
                points(figure, &[(-s * (figure.shoulder - 4.0), 19.2), (s * (figure.hip + 1.0), 47.0)]);
            canvas.outline(polyline(&line), 2.7, dark);
            canvas.outline(polyline(&line), 1.9, figure.bag);
        }
        (SHOULDER_BAG, Facing::Side) => {
            let line = points(figure, &[(2.0, 19.4), (-4.5, 47.0)]);
            canvas.outline(polyline(&line), 2.7, dark);
            canvas.outline(polyline(&line), 1.9, figure.bag);
        }
        _ => {}
    }
}

pub(super) fn backpack_on_back(canvas: &mut Canvas, figure: &Figure) {
    if !has_backpack(figure) {
        return;
    }
    let w = 8.4;
    let shape = points(
        figure,
        &[
            (-w + 2.0, 20.0),
            (w - 2.0, 20.0),
            (w, 23.0),
            (w + 0.4, 43.5),
            (w - 1.0, 45.0),
            (-w + 1.0, 45.0),
            (-w - 0.4, 43.5),
            (-w, 23.0),
        ],
    );
    canvas.solid(polygon(&shape), figure.bag, (-w, 0.0), (w, 0.0));
    let pocket = points(figure, &[(-5.8, 33.0), (5.8, 33.0), (5.8, 42.5), (-5.8, 42.5)]);
    canvas.solid(polygon(&pocket), lighter(figure.bag, 0.1), (-6.0, 0.0), (7.0, 0.0));
    canvas.line(&points(figure, &[(-5.0, 26.0), (5.0, 26.0)]), 0.8, edge(figure.bag));
    canvas.outline(oval(figure.at(0.0, 19.6), 1.8, 1.2), 0.8, edge(figure.bag));
}

pub(super) fn backpack_at_side(canvas: &mut Canvas, figure: &Figure) {
    if !has_backpack(figure) {
        return;
    }
    let shape = points(
        figure,
        &[(-4.0, 20.0), (-11.0, 20.5), (-14.2, 26.0), (-14.6, 42.0), (-12.0, 45.0), (-4.0, 45.0)],
    );
    canvas.solid(polygon(&shape), figure.bag, (-14.0, 0.0), (-4.0, 0.0));
    let pocket = points(figure, &[(-14.2, 32.0), (-16.2, 34.0), (-16.2, 41.0), (-14.2, 42.5)]);
    canvas.solid(polygon(&pocket), lighter(figure.bag, 0.1), (-16.0, 0.0), (-14.0, 0.0));
}

/// The near strap of a backpack, the bag at the hip, or the bag in the hand.
pub(super) fn bag(canvas: &mut Canvas, figure: &Figure) {
    let colour = figure.bag;
    match figure.value(slot::BAG) {
        BACKPACK if figure.facing == Facing::Side => {
            let line = points(figure, &[(-4.0, 20.6), (1.6, 19.6), (3.4, 27.0), (0.0, 36.0), (-5.0, 40.0)]);
            canvas.outline(polyline(&line), 3.0, edge(colour));
            canvas.outline(polyline(&line), 2.2, colour);
        }
        SHOULDER_BAG => {
            let x = match figure.facing {
                Facing::Side => -4.5,
                _ if figure.bag_hand == 0 => -figure.hip - 2.4,
                _ => figure.hip + 2.4,
            };
            let shape = points(figure, &[(x - 5.6, 46.0), (x + 5.6, 46.0), (x + 6.2, 57.0), (x - 6.2, 57.0)]);
            canvas.solid(polygon(&shape), colour, (x - 6.0, 0.0), (x + 6.0, 0.0));
            let flap = points(figure, &[(x - 5.6, 46.0), (x + 5.6, 46.0), (x + 5.2, 51.0), (x - 5.2, 51.0)]);
            canvas.solid(polygon(&flap), darker(colour, 0.15), (x - 6.0, 0.0), (x + 6.0, 0.0));
            canvas.fill(oval(figure.at(x, 51.0), 0.9, 0.9), [232, 196, 90]);
        }
        HANDBAG => {
            let (x, y) =
                figure.at(figure.pose.hands[figure.bag_hand].0, figure.pose.hands[figure.bag_hand].1);
            canvas.outline(oval((x, y + 4.0), 3.2, 4.2), 1.1, edge(colour));
            let shape = [(x - 4.6, y + 6.0), (x + 4.6, y + 6.0), (x + 6.2, y + 14.6), (x - 6.2, y + 14.6)];
            canvas.solid(polygon(&shape), colour, (x - 6.0, 0.0), (x + 6.0, 0.0));
            canvas.fill(rectangle(x - 1.0, y + 5.6, x + 1.0, y + 8.0), [232, 196, 90]);
        }
        _ => {}
    }
}

pub(super) fn scarf(canvas: &mut Canvas, figure: &Figure) {
    let Some(colour) = figure.scarf else { return };
    let seam = edge(colour);
    let (x, width) = match figure.facing {
        Facing::Front => (2.6, 4.4),
        Facing::Back => (-3.0, 4.0),
        Facing::Side => (3.4, 3.8),
    };
    let end = points(
        figure,
        &[
            (x - width / 2.0, 19.0),
            (x + width / 2.0, 19.0),
            (x + width / 2.0 + 0.5, 36.0),
            (x - width / 2.0, 36.0),
        ],
    );
    canvas.solid(polygon(&end), colour, (x - 2.0, 0.0), (x + 3.0, 0.0));
    for i in 0..3 {
        let fringe = x - width / 2.0 + 0.8 + i as f32 * (width - 1.2) / 2.0;
        canvas.line(&points(figure, &[(fringe, 36.0), (fringe, 38.2)]), 0.8, seam);
    }
    canvas.line(&points(figure, &[(x - width / 2.0, 33.5), (x + width / 2.0, 33.5)]), 0.9, contrast(colour));
    let half = if figure.facing == Facing::Side { 5.2 } else { 7.0 };
    let ring = points(
        figure,
        &[(-half, 16.0), (0.0, 15.0), (half, 16.0), (half + 0.4, 20.4), (0.0, 23.4), (-half - 0.4, 20.4)],
    );
    canvas.solid(blob(&ring), colour, (-half, 0.0), (half, 0.0));
    canvas.line(&points(figure, &[(-half * 0.7, 18.6), (half * 0.6, 20.0)]), 0.6, seam);
}

pub(super) fn object(canvas: &mut Canvas, figure: &Figure) {
    let (x, y) = figure.pose.hands[figure.object_hand];
    let (x, y) = figure.at(x, y);
    match figure.value(slot::OBJECT) {
        OBJECT_PHONE => {
            canvas.fill(rectangle(x - 2.4, y - 7.0, x + 2.4, y + 1.2), [16, 16, 20]);
            canvas.fill(rectangle(x - 1.7, y - 6.0, x + 1.7, y), [120, 208, 250]);
            canvas.fill(oval((x + 0.4, y + 0.8), 1.9, 1.4), figure.skin);
        }
        OBJECT_UMBRELLA => {
            let away = if figure.facing == Facing::Side { 0.0 } else { 1.6 };
            canvas.line(&[(x, y - 3.0), (x + away, y + 36.0)], 1.0, [60, 44, 36]);
            let folded = [
                (x - 0.9, y + 4.0),
                (x + 0.9, y + 4.0),
                (x + away + 3.0, y + 14.0),
                (x + away + 0.6, y + 32.0),
                (x + away - 0.6, y + 32.0),
                (x + away - 3.0, y + 14.0),
            ];
            canvas.solid(polygon(&folded), [224, 84, 136], (x - 3.0, 0.0), (x + 4.0, 0.0));
            canvas.line(&[(x, y + 5.0), (x + away, y + 30.0)], 0.6, [252, 214, 226]);
            canvas.outline(
                polyline(&[(x, y - 2.0), (x - 0.4, y - 4.4), (x - 2.8, y - 4.6), (x - 3.2, y - 2.4)]),
                1.3,
                [96, 60, 36],
            );
        }
        OBJECT_SHOPPING => {
            canvas.outline(oval((x, y + 4.0), 2.6, 3.6), 0.8, [120, 90, 60]);
            let bag = [(x - 5.6, y + 6.4), (x + 5.6, y + 6.4), (x + 5.2, y + 21.0), (x - 5.2, y + 21.0)];
            canvas.solid(polygon(&bag), [226, 190, 138], (x - 6.0, 0.0), (x + 6.0, 0.0));
            canvas.fill(oval((x, y + 14.0), 3.0, 3.0), [226, 62, 56]);
            canvas.fill(rectangle(x - 1.4, y + 13.4, x + 1.4, y + 14.8), [250, 244, 232]);
        }
        OBJECT_CUP => {
            let cup = [(x - 2.4, y - 6.2), (x + 2.4, y - 6.2), (x + 1.8, y + 1.6), (x - 1.8, y + 1.6)];
            canvas.solid(polygon(&cup), [250, 250, 248], (x - 2.0, 0.0), (x + 4.0, 0.0));
            canvas.fill(rectangle(x - 2.2, y - 4.0, x + 2.2, y - 0.6), [168, 108, 58]);
            canvas.fill(rectangle(x - 2.8, y - 7.4, x + 2.8, y - 5.9), [64, 44, 36]);
        }
        OBJECT_BOOK => {
            let (l, r) = (x - 5.4, x + 5.4);
            canvas.solid(
                polygon(&[(l, y - 6.8), (r, y - 6.8), (r, y + 1.4), (l, y + 1.4)]),
                [24, 128, 120],
                (l, 0.0),
                (r, 0.0),
            );
            canvas.fill(rectangle(l + 0.9, y - 6.0, x - 0.4, y + 0.6), [252, 250, 240]);
            canvas.fill(rectangle(x + 0.4, y - 6.0, r - 0.9, y + 0.6), [252, 250, 240]);
            for i in 0..3 {
                let row = y - 4.6 + 1.8 * i as f32;
                canvas.line(&[(l + 1.8, row), (x - 1.4, row)], 0.5, [150, 150, 150]);
                canvas.line(&[(x + 1.4, row), (r - 1.8, row)], 0.5, [150, 150, 150]);
            }
        }
        _ => {}
    }
}
