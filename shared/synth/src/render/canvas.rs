//! Drawing on a pixmap in the units of whatever is being drawn.

use tiny_skia::{
    Color, FillRule, GradientStop, LineCap, LineJoin, LinearGradient, Mask, Paint, Path, PathBuilder, Pixmap,
    Point, Rect, Shader, SpreadMode, Stroke, Transform,
};

use super::palette::{Rgb, darker, edge, lighter};

/// A point in the current units.
pub(super) type P = (f32, f32);

/// A pixmap and the transform from the current units to its pixels.
#[derive(Debug)]
pub(super) struct Canvas {
    pub(super) pixmap: Pixmap,
    at: Transform,
}

fn paint(colour: Rgb, alpha: f32) -> Paint<'static> {
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color_rgba8(colour[0], colour[1], colour[2], (alpha * 255.0) as u8);
    paint
}

fn stroke(width: f32) -> Stroke {
    Stroke { width, line_cap: LineCap::Round, line_join: LineJoin::Round, ..Stroke::default() }
}

/// A closed polygon.
pub(super) fn polygon(points: &[P]) -> Option<Path> {
    let mut builder = PathBuilder::new();
    let (first, rest) = points.split_first()?;
    builder.move_to(first.0, first.1);
    for point in rest {
        builder.line_to(point.0, point.1);
    }
    builder.close();
    builder.finish()
}

/// A closed curve that is drawn towards `points` and passes between them.
pub(super) fn blob(points: &[P]) -> Option<Path> {
    let middle = |a: P, b: P| ((a.0 + b.0) / 2.0, (a.1 + b.1) / 2.0);
    let (first, last) = (*points.first()?, *points.last()?);
    let start = middle(last, first);
    let mut builder = PathBuilder::new();
    builder.move_to(start.0, start.1);
    for (at, &point) in points.iter().enumerate() {
        let end = middle(point, points[(at + 1) % points.len()]);
        builder.quad_to(point.0, point.1, end.0, end.1);
    }
    builder.close();
    builder.finish()
}

/// An open line through `points`.
pub(super) fn polyline(points: &[P]) -> Option<Path> {
    let mut builder = PathBuilder::new();
    let (first, rest) = points.split_first()?;
    builder.move_to(first.0, first.1);
    for point in rest {
        builder.line_to(point.0, point.1);
    }
    builder.finish()
}

/// A limb: two circles and all between them.
pub(super) fn capsule(from: P, to: P, from_radius: f32, to_radius: f32) -> Option<Path> {
    const STEPS: usize = 7;
    let angle = (to.1 - from.1).atan2(to.0 - from.0);
    let mut points = Vec::with_capacity(2 * STEPS + 2);
    for (centre, radius, turn) in [(to, to_radius, -0.5), (from, from_radius, 0.5)] {
        for step in 0..=STEPS {
            let a = angle + std::f32::consts::PI * (turn + step as f32 / STEPS as f32);
            points.push((centre.0 + radius * a.cos(), centre.1 + radius * a.sin()));
        }
    }
    polygon(&points)
}

pub(super) fn oval(centre: P, rx: f32, ry: f32) -> Option<Path> {
    PathBuilder::from_oval(Rect::from_ltrb(centre.0 - rx, centre.1 - ry, centre.0 + rx, centre.1 + ry)?)
}

pub(super) fn rectangle(left: f32, top: f32, right: f32, bottom: f32) -> Option<Path> {
    Some(PathBuilder::from_rect(Rect::from_ltrb(left, top, right, bottom)?))
}

impl Canvas {
    /// A black canvas of `width` x `height` pixels; `None` for a size of 0.
    pub(super) fn new(width: u32, height: u32) -> Option<Self> {
        Some(Self { pixmap: Pixmap::new(width, height)?, at: Transform::identity() })
    }

    /// What is drawn from now on has its origin at `origin` (in pixels) and a unit of `scale` pixels; a
    /// mirrored thing looks left instead of right.
    pub(super) fn place(&mut self, origin: P, scale: f32, mirrored: bool) {
        let horizontal = if mirrored { -scale } else { scale };
        self.at = Transform::from_row(horizontal, 0.0, 0.0, scale, origin.0, origin.1);
    }

    /// Back to pixels.
    pub(super) fn place_pixels(&mut self) {
        self.at = Transform::identity();
    }

    pub(super) fn fill(&mut self, path: Option<Path>, colour: Rgb) {
        self.tint(path, colour, 1.0);
    }

    /// Fills with transparency; `alpha` in `0..=1`.
    pub(super) fn tint(&mut self, path: Option<Path>, colour: Rgb, alpha: f32) {
        if let Some(path) = path {
            self.pixmap.fill_path(&path, &paint(colour, alpha), FillRule::Winding, self.at, None);
        }
    }

    pub(super) fn line(&mut self, points: &[P], width: f32, colour: Rgb) {
        self.outline(polyline(points), width, colour);
    }

    pub(super) fn outline(&mut self, path: Option<Path>, width: f32, colour: Rgb) {
        if let Some(path) = path {
            self.pixmap.stroke_path(&path, &paint(colour, 1.0), &stroke(width), self.at, None);
        }
    }

    /// Fills between `from` and `to` from a little lighter to a little darker, with a thin edge.
    pub(super) fn solid(&mut self, path: Option<Path>, colour: Rgb, from: P, to: P) {
        let Some(path) = path else { return };
        self.pixmap.stroke_path(&path, &paint(edge(colour), 1.0), &stroke(0.7), self.at, None);
        self.shade(&path, colour, from, to);
    }

    fn shade(&mut self, path: &Path, colour: Rgb, from: P, to: P) {
        let stop = |position, [r, g, b]: Rgb| GradientStop::new(position, Color::from_rgba8(r, g, b, 255));
        let stops =
            vec![stop(0.0, lighter(colour, 0.07)), stop(0.55, colour), stop(1.0, darker(colour, 0.2))];
        let shader = LinearGradient::new(
            Point::from_xy(from.0, from.1),
            Point::from_xy(to.0, to.1),
            stops,
            SpreadMode::Pad,
            Transform::identity(),
        );
        let [r, g, b] = colour;
        let shader = shader.unwrap_or(Shader::SolidColor(Color::from_rgba8(r, g, b, 255)));
        let paint = Paint { shader, anti_alias: true, ..Paint::default() };
        self.pixmap.fill_path(path, &paint, FillRule::Winding, self.at, None);
    }

    /// A chain of limbs through `joints`, each with its radius, as one body with one edge.
    pub(super) fn limbs(&mut self, joints: &[(P, f32)], colour: Rgb) {
        let bones = |pair: &[(P, f32)]| match pair {
            [(a, ra), (b, rb)] => capsule(*a, *b, *ra, *rb),
            _ => None,
        };
        for pair in joints.windows(2) {
            self.outline(bones(pair), 0.7, edge(colour));
        }
        for pair in joints.windows(2) {
            if let (Some(path), [(a, ra), ..]) = (bones(pair), pair) {
                self.shade(&path, colour, (a.0 - ra, 0.0), (a.0 + ra * 1.6, 0.0));
            }
        }
    }

    /// Draws `strokes` (lines with their width) and `dots` (ovals) in `colour`, only where one of `shapes` is.
    pub(super) fn inside(
        &mut self,
        shapes: &[Option<Path>],
        lines: &[([P; 2], f32)],
        dots: &[(P, f32, f32)],
        colour: Rgb,
        alpha: f32,
    ) {
        let Some(mut mask) = Mask::new(self.pixmap.width(), self.pixmap.height()) else { return };
        for shape in shapes.iter().flatten() {
            mask.fill_path(shape, FillRule::Winding, true, self.at);
        }
        let paint = paint(colour, alpha);
        for (ends, width) in lines {
            if let Some(path) = polyline(ends) {
                self.pixmap.stroke_path(&path, &paint, &stroke(*width), self.at, Some(&mask));
            }
        }
        for &(centre, rx, ry) in dots {
            if let Some(path) = oval(centre, rx, ry) {
                self.pixmap.fill_path(&path, &paint, FillRule::Winding, self.at, Some(&mask));
            }
        }
    }
}
