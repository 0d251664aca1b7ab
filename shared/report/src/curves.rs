//! Curves over two logarithmic axes, as an SVG file of their own.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior, context};
use serde::Serialize;

use crate::ReportError;
use crate::chart::Tick;
use crate::page::{serde, template_error};

/// Ends in `.xml`, so that what goes in is escaped.
const TEMPLATE_NAME: &str = "curves.xml";
const TEMPLATE: &str = include_str!("curves.svg");

const PANEL_WIDTH: f64 = 460.0;
const PANEL_HEIGHT: f64 = 350.0;
/// Above the panels, for the title.
const HEAD: f64 = 44.0;
/// A line of the legend.
const LEGEND_LINE: f64 = 22.0;
const LEGEND_COLUMNS: usize = 4;
const FRAME: Frame = Frame { left: 58.0, right: 440.0, top: 30.0, bottom: 300.0 };
/// Marks of an axis that can be read side by side.
const MOST_MARKS: usize = 12;
/// Told apart by people who see few colours, and by their dashes where they repeat.
const COLOURS: [&str; 7] = ["#2456c9", "#b4472e", "#137a3c", "#7b3fa0", "#a06800", "#0e7c8a", "#586174"];
const DASHES: [&str; 3] = ["none", "6 3", "2 3"];

/// One curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// What it is called in the legend; the curves of all panels share one, in the order of the first panel.
    pub name: String,
    /// Its points from left to right. Those that are not above 0 are left out.
    pub points: Vec<(f64, f64)>,
}

/// Curves over the same axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// What the curves show, with the unit.
    pub title: String,
    /// What they are drawn over, with the unit.
    pub x_label: String,
    /// The curves.
    pub curves: Vec<Curve>,
}

/// The plot's edges within a panel.
#[derive(Debug, Clone, Copy, Serialize)]
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

#[derive(Debug, Serialize)]
struct Drawn {
    x: f64,
    y: f64,
    title: String,
    x_label: String,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
    lines: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    colour: &'static str,
    dashes: &'static str,
    path: String,
    points: Vec<Point>,
}

#[derive(Debug, Serialize)]
struct Point {
    x: f64,
    y: f64,
    label: String,
}

#[derive(Debug, Serialize)]
struct Entry {
    x: f64,
    y: f64,
    name: String,
    colour: &'static str,
    dashes: &'static str,
}

/// Draws panels side by side with one legend below.
///
/// # Errors
/// [`ReportError::Template`] where the drawing cannot be written.
pub fn curves(title: &str, panels: &[Panel]) -> Result<String, ReportError> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(template_error)?);
    environment.add_template(TEMPLATE_NAME, TEMPLATE).map_err(template_error)?;

    let drawn: Vec<Drawn> = panels.iter().enumerate().map(|(place, panel)| draw(place, panel)).collect();
    let legend: Vec<Entry> = panels.first().map_or_else(Vec::new, |panel| {
        panel.curves.iter().enumerate().map(|(place, curve)| entry(place, &curve.name)).collect()
    });
    let lines = legend.len().div_ceil(LEGEND_COLUMNS) as f64;
    let svg = environment
        .get_template(TEMPLATE_NAME)
        .and_then(|template| {
            template.render(context! {
                title,
                width => PANEL_WIDTH * panels.len().max(1) as f64,
                height => HEAD + PANEL_HEIGHT + lines * LEGEND_LINE + 12.0,
                frame => serde(FRAME),
                panels => serde(drawn),
                legend => serde(legend),
            })
        })
        .map_err(template_error)?;
    Ok(svg)
}

fn draw(place: usize, panel: &Panel) -> Drawn {
    let points = || panel.curves.iter().flat_map(|curve| seen(&curve.points));
    let y = Axis::new(&points().map(|(_, y)| y).collect::<Vec<_>>(), (FRAME.bottom, FRAME.top));
    let mut marks: Vec<f64> = points().map(|(x, _)| x).collect();
    marks.sort_by(f64::total_cmp);
    marks.dedup();
    let edges = (FRAME.left + 10.0, FRAME.right - 10.0);
    let (x, x_ticks) = match marks[..] {
        // Few values are marks themselves, from edge to edge.
        [from, .., to] if marks.len() <= MOST_MARKS => (Axis { from, to, edges }, marks),
        _ => {
            let axis = Axis::new(&marks, edges);
            let ticks = axis.marks();
            (axis, ticks)
        }
    };
    let lines = panel.curves.iter().enumerate().map(|(place, curve)| {
        let points: Vec<Point> = seen(&curve.points)
            .map(|(at, value)| Point {
                x: x.at(at),
                y: y.at(value),
                label: format!("{}: {} at {}", curve.name, short(value), short(at)),
            })
            .collect();
        Line {
            colour: COLOURS[place % COLOURS.len()],
            dashes: DASHES[place / COLOURS.len() % DASHES.len()],
            path: points.iter().map(|point| format!("{},{}", point.x, point.y)).collect::<Vec<_>>().join(" "),
            points,
        }
    });
    Drawn {
        x: place as f64 * PANEL_WIDTH,
        y: HEAD,
        title: panel.title.clone(),
        x_label: panel.x_label.clone(),
        x_ticks: x_ticks.into_iter().map(|mark| x.tick(mark)).collect(),
        y_ticks: y.marks().into_iter().map(|mark| y.tick(mark)).collect(),
        lines: lines.collect(),
    }
}

fn entry(place: usize, name: &str) -> Entry {
    Entry {
        x: 24.0 + (place % LEGEND_COLUMNS) as f64 * 220.0,
        y: HEAD + PANEL_HEIGHT + (place / LEGEND_COLUMNS) as f64 * LEGEND_LINE + 12.0,
        name: name.to_owned(),
        colour: COLOURS[place % COLOURS.len()],
        dashes: DASHES[place / COLOURS.len() % DASHES.len()],
    }
}

/// What has a place on logarithmic axes.
fn seen(points: &[(f64, f64)]) -> impl Iterator<Item = (f64, f64)> {
    points.iter().copied().filter(|(x, y)| *x > 0.0 && *y > 0.0 && x.is_finite() && y.is_finite())
}

/// A logarithmic axis that begins and ends at a mark.
struct Axis {
    from: f64,
    to: f64,
    edges: (f64, f64),
}

impl Axis {
    fn new(values: &[f64], edges: (f64, f64)) -> Self {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(0.0, f64::max);
        if low > high {
            return Self { from: 1.0, to: 10.0, edges };
        }
        let all = round_numbers(low / 10.0, high * 10.0);
        let from = all.iter().copied().filter(|mark| *mark <= low * 1.000_001).fold(low / 10.0, f64::max);
        let to = all.iter().copied().filter(|mark| *mark >= high * 0.999_999).fold(high * 10.0, f64::min);
        Self { from, to: if to > from { to } else { from * 10.0 }, edges }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value / self.from).ln() / (self.to / self.from).ln();
        let place = self.edges.0 + share * (self.edges.1 - self.edges.0);
        (place * 10.0).round() / 10.0
    }

    fn marks(&self) -> Vec<f64> {
        let all = round_numbers(self.from, self.to);
        if all.len() <= MOST_MARKS { all } else { all.into_iter().filter(|mark| is_power(*mark)).collect() }
    }

    fn tick(&self, mark: f64) -> Tick {
        Tick { at: self.at(mark), label: short(mark) }
    }
}

/// 1, 2 and 5 times the powers of ten in a range.
fn round_numbers(low: f64, high: f64) -> Vec<f64> {
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let numbers = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)));
    numbers.filter(|number| *number >= low * 0.999_999 && *number <= high * 1.000_001).collect()
}

fn is_power(mark: f64) -> bool {
    (mark.log10() - mark.log10().round()).abs() < 1e-6
}

/// Three digits with the letter of their thousands.
fn short(value: f64) -> String {
    let (scaled, letter) = match value {
        v if v >= 1e9 => (v / 1e9, "G"),
        v if v >= 1e6 => (v / 1e6, "M"),
        v if v >= 1e4 => (v / 1e3, "k"),
        v => (v, ""),
    };
    let decimals = match scaled {
        s if s >= 99.95 => 0,
        s if s >= 9.995 => 1,
        s if s >= 0.9995 => 2,
        _ => 3,
    };
    let text = format!("{scaled:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{letter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(points: &[(f64, f64)]) -> Panel {
        let curve = |name: &str| Curve { name: name.into(), points: points.to_vec() };
        Panel { title: "a <b>".into(), x_label: "x".into(), curves: vec![curve("one"), curve("two & three")] }
    }

    #[test]
    fn every_point_lies_in_its_panel_and_a_larger_value_lies_higher() {
        let drawn = draw(0, &panel(&[(1.0, 0.07), (8.0, 3.0), (512.0, 900.0)]));
        for point in drawn.lines.iter().flat_map(|line| &line.points) {
            assert!((FRAME.left..=FRAME.right).contains(&point.x), "{point:?}");
            assert!((FRAME.top..=FRAME.bottom).contains(&point.y), "{point:?}");
        }
        let heights: Vec<f64> = drawn.lines[0].points.iter().map(|point| point.y).collect();
        assert!(heights.is_sorted_by(|a, b| a > b), "{heights:?}");
        assert_eq!(
            drawn.x_ticks.iter().map(|tick| tick.label.as_str()).collect::<Vec<_>>(),
            ["1", "8", "512"]
        );
    }

    #[test]
    fn what_has_no_logarithm_is_left_out_and_nothing_to_draw_is_drawn() {
        let drawn = draw(0, &panel(&[(0.0, 1.0), (1.0, f64::NAN), (2.0, 2.0)]));
        assert_eq!(drawn.lines[0].points.len(), 1);
        for points in [&[(2.0, 2.0)][..], &[]] {
            let svg = curves("nothing", &[panel(points)]).unwrap();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        assert!(curves("no panel", &[]).is_ok());
    }

    #[test]
    fn names_are_escaped() {
        let svg = curves("<script>", &[panel(&[(1.0, 1.0)])]).unwrap();
        assert!(svg.contains("&lt;script&gt;") && svg.contains("two &amp; three"), "{svg}");
        assert!(!svg.contains("a <b>"));
    }

    #[test]
    fn marks_are_round_and_few_and_written_short() {
        let axis = Axis::new(&[0.3, 40.0], (0.0, 1.0));
        let labels: Vec<String> = axis.marks().into_iter().map(short).collect();
        assert_eq!(labels, ["0.2", "0.5", "1", "2", "5", "10", "20", "50"]);
        assert!(Axis::new(&[1e3, 1e9], (0.0, 1.0)).marks().len() <= MOST_MARKS);
        assert_eq!([1e9, 2.5e6, 12_000.0, 1_000.0, 0.07].map(short), ["1G", "2.5M", "12k", "1000", "0.07"]);
    }
}
