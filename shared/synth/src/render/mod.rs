//! Painting of one image: the place, other people, the person, what stands before her, and the camera.
//!
//! Everything is drawn at twice the size and averaged down, which costs little and makes edges clean.

mod backdrop;
mod camera;
mod canvas;
mod clothes;
mod figure;
mod head;
mod items;
mod palette;
mod pose;

use image::RgbImage;
use rand::Rng;

use self::canvas::{Canvas, oval};
use self::figure::Figure;
use crate::benchmark::View;
use crate::family::Person;
use crate::schema::{Facing, Occluder, slot};

/// Width of an image in pixels.
pub const WIDTH: u32 = 84;
/// Height of an image in pixels.
pub const HEIGHT: u32 = 168;

/// The canvas is this many times as wide and high as the image.
const OVERSAMPLING: u32 = 2;
const CANVAS_WIDTH: u32 = WIDTH * OVERSAMPLING;
const CANVAS_HEIGHT: u32 = HEIGHT * OVERSAMPLING;

/// Height of a person in units, from the top of a hat to the ground.
const FIGURE_HEIGHT: f32 = 105.0;
/// Where an occluder or the lower edge of the picture cuts the legs, in units: below a short skirt, above
/// the foot of someone who walks.
const CUT: f32 = 78.5;

/// Paints a view: [`WIDTH`] x [`HEIGHT`] pixels. The same view gives the same pixels.
#[must_use]
pub fn render(view: &View) -> RgbImage {
    let mut rng = view.pixel_stream();
    let Some(mut canvas) = Canvas::new(CANVAS_WIDTH, CANVAS_HEIGHT) else {
        return RgbImage::new(WIDTH, HEIGHT);
    };
    let (width, height) = (CANVAS_WIDTH as f32, CANVAS_HEIGHT as f32);
    backdrop::backdrop(&mut canvas, &mut rng, view.scene.background);
    bystanders(&mut canvas, &mut rng, view.scene.others);

    let (scale, ground) = if view.scene.occluder == Occluder::Crop {
        let scale = rng.random_range(3.3..3.5);
        (scale, height + (100.0 - CUT - rng.random_range(0.0..4.0)) * scale)
    } else {
        let ground = height * rng.random_range(0.955..0.985);
        let fits = (ground - 3.0) / FIGURE_HEIGHT;
        (fits * rng.random_range(0.9..1.0) * view.person.height.min(1.0), ground)
    };
    let middle = width / 2.0 + rng.random_range(-9.0..9.0);
    let mirrored = rng.random_bool(0.5);
    let mut person = view.person;
    if view.scene.occluder != Occluder::None {
        // The shaft of a boot would tell what stands behind the occluder.
        person.values[slot::SHOES_TYPE] = 0;
    }
    let figure = Figure::new(&mut rng, &person, view.scene.facing, view.scene.action);
    canvas.place((middle, ground - 100.0 * scale), scale, mirrored);
    canvas.tint(oval((0.0, 99.0), 15.0, 2.4), [20, 20, 26], 0.35);
    figure.draw(&mut canvas);
    backdrop::occluder(&mut canvas, &mut rng, view.scene.occluder, ground - (100.0 - CUT) * scale, middle);
    camera::take(&canvas, &mut rng)
}

/// `count` small people, left and right of the middle.
fn bystanders(canvas: &mut Canvas, rng: &mut rand_chacha::ChaCha8Rng, count: u8) {
    let first_left = rng.random_bool(0.5);
    for i in 0..count {
        let left = (i == 0) == first_left;
        let person = Person::draw(rng);
        let facing = [Facing::Front, Facing::Back, Facing::Side][rng.random_range(0..3usize)];
        let action = rng.random_range(0..2);
        let figure = Figure::new(rng, &person, facing, action);
        let scale = rng.random_range(1.15..1.4);
        let x = if left {
            rng.random_range(14.0..24.0)
        } else {
            CANVAS_WIDTH as f32 - rng.random_range(14.0..24.0)
        };
        let ground = CANVAS_HEIGHT as f32 * rng.random_range(0.76..0.84);
        canvas.place((x, ground - 100.0 * scale), scale, rng.random_bool(0.5));
        canvas.tint(oval((0.0, 99.0), 14.0, 2.4), [20, 20, 26], 0.3);
        figure.draw(canvas);
    }
}
