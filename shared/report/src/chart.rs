//! Geometry of the page's charts, in the units of their SVG view boxes. The template draws them.

use serde::Serialize;
use thicket_evaluation::Histogram;

/// Size of a chart.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
/// The plot's edges within it.
const LEFT: f64 = 56.0;
const RIGHT: f64 = 624.0;
const TOP: f64 = 36.0;
const BOTTOM: f64 = 250.0;
/// Ticks that an axis should have, about.
const TICKS: f64 = 5.0;
/// Rounds that can be labelled beside each other.
const MOST_LABELS: usize = 7;

/// A mark on an axis.
#[derive(Debug, Serialize, PartialEq)]
pub(crate) struct Tick {
    pub(crate) at: f64,
    pub(crate) label: String,
}

/// The frame both charts share.
#[derive(Debug, Serialize)]
pub(crate) struct Frame {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
}

impl Frame {
    fn new(x_ticks: Vec<Tick>, y_ticks: Vec<Tick>) -> Self {
        Self {
            width: WIDTH,
            height: HEIGHT,
            left: LEFT,
            right: RIGHT,
            top: TOP,
            bottom: BOTTOM,
            x_ticks,
            y_ticks,
        }
    }
}

/// A line over the rounds.
#[derive(Debug, Serialize)]
pub(crate) struct LineChart {
    frame: Frame,
    /// `x,y` pairs for `polyline`.
    path: String,
    points: Vec<Point>,
    /// Height of the first point, for a line of comparison.
    start: f64,
}

#[derive(Debug, Serialize)]
struct Point {
    x: f64,
    y: f64,
    /// The value, where there is room for it.
    label: Option<String>,
}

/// Bars of two groups, side by side in each bin.
#[derive(Debug, Serialize)]
pub(crate) struct BarChart {
    frame: Frame,
    right: Vec<Bar>,
    wrong: Vec<Bar>,
    /// Where xi is, if it is inside.
    xi: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Bar {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    label: String,
}

/// Linear map from values to one axis of the view box.
struct Scale {
    from: (f64, f64),
    to: (f64, f64),
}

impl Scale {
    fn at(&self, value: f64) -> f64 {
        let share = (value - self.from.0) / (self.from.1 - self.from.0);
        tenth(self.to.0 + share * (self.to.1 - self.to.0))
    }
}

/// mAP after each round. Values that are not finite are left out.
pub(crate) fn line(values: &[f64]) -> LineChart {
    let values: Vec<(usize, f64)> =
        values.iter().copied().enumerate().filter(|(_, value)| value.is_finite()).collect();
    let low = values.iter().map(|(_, value)| *value).fold(f64::INFINITY, f64::min);
    let high = values.iter().map(|(_, value)| *value).fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = if values.is_empty() { (0.0, 1.0) } else { (low, high) };
    // Room for a flat line, and for the labels above and below the points.
    let room = ((high - low) * 0.2).max(0.25);
    let marks = nice_marks(low - room, high + room);
    let y = Scale { from: ends(&marks), to: (BOTTOM, TOP) };
    let last = values.last().map_or(1, |(round, _)| (*round).max(1));
    let x = Scale { from: (0.0, last as f64), to: (LEFT + 30.0, RIGHT - 30.0) };

    // Many rounds: every n-th is labelled, and by its number alone.
    let every = values.len().div_ceil(MOST_LABELS).max(1);
    let labelled = |round: usize| round.is_multiple_of(every);
    let round_name = |round: usize| match (round, every) {
        (0, _) => "without".to_owned(),
        (_, 1) => format!("round {round}"),
        _ => round.to_string(),
    };
    let points: Vec<Point> = values
        .iter()
        .map(|&(round, value)| {
            let label = labelled(round).then(|| format!("{value:.1}"));
            Point { x: x.at(round as f64), y: y.at(value), label }
        })
        .collect();
    let x_ticks = values
        .iter()
        .filter(|(round, _)| labelled(*round))
        .map(|&(round, _)| Tick { at: x.at(round as f64), label: round_name(round) });
    LineChart {
        path: points.iter().map(|point| format!("{},{}", point.x, point.y)).collect::<Vec<_>>().join(" "),
        start: points.first().map_or(BOTTOM, |point| point.y),
        frame: Frame::new(x_ticks.collect(), ticks(&marks, &y)),
        points,
    }
}

/// Two histograms with the same bins, and xi on their axis.
pub(crate) fn bars(right: &Histogram, wrong: &Histogram, xi: f64) -> BarChart {
    let bins = right.counts.len().max(1) as f64;
    let most = right.counts.iter().chain(&wrong.counts).copied().max().unwrap_or(0).max(1);
    let marks = nice_marks(0.0, most as f64);
    let y = Scale { from: ends(&marks), to: (BOTTOM, TOP) };
    let x = Scale { from: (right.low, right.high), to: (LEFT, RIGHT) };
    let slot = (RIGHT - LEFT) / bins;
    let width = slot * 0.42;
    let group = |histogram: &Histogram, offset: f64, name: &str| -> Vec<Bar> {
        let bar = |(bin, count): (usize, &usize)| {
            let low = right.low + (right.high - right.low) * bin as f64 / bins;
            let high = right.low + (right.high - right.low) * (bin + 1) as f64 / bins;
            let top = y.at(*count as f64);
            Bar {
                x: tenth(LEFT + slot * bin as f64 + offset),
                y: top,
                width: tenth(width),
                height: tenth(BOTTOM - top),
                label: format!("{count} {name}, similarity {low:.3} to {high:.3}"),
            }
        };
        let filled = histogram.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(bar).collect()
    };
    let x_marks: Vec<f64> = nice_marks(right.low, right.high)
        .into_iter()
        .filter(|mark| (right.low..=right.high).contains(mark))
        .collect();
    BarChart {
        right: group(right, slot * 0.08, "right"),
        wrong: group(wrong, slot * 0.5, "wrong"),
        xi: (right.low..=right.high).contains(&xi).then(|| x.at(xi)),
        frame: Frame::new(ticks(&x_marks, &x), ticks(&marks, &y)),
    }
}

/// Round numbers in equal steps that enclose `low` to `high`.
fn nice_marks(low: f64, high: f64) -> Vec<f64> {
    let span = high - low;
    if !span.is_finite() || span <= 0.0 {
        return vec![0.0, 1.0];
    }
    let raw = span / TICKS;
    let magnitude = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .map(|factor| factor * magnitude)
        .into_iter()
        .find(|step| *step >= raw * 0.999)
        .unwrap_or(magnitude * 10.0);
    let first = (low / step + 1e-9).floor() as i64;
    let last = (high / step - 1e-9).ceil() as i64;
    (first..=last.max(first + 1)).map(|index| index as f64 * step).collect()
}

fn ends(marks: &[f64]) -> (f64, f64) {
    match marks {
        [first, .., last] => (*first, *last),
        _ => (0.0, 1.0),
    }
}

fn ticks(marks: &[f64], scale: &Scale) -> Vec<Tick> {
    let step = marks.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min);
    let decimals = (0..=4).find(|decimals| is_whole(step * 10f64.powi(*decimals))).unwrap_or(2) as usize;
    marks.iter().map(|mark| Tick { at: scale.at(*mark), label: format!("{mark:.decimals$}") }).collect()
}

fn is_whole(value: f64) -> bool {
    (value - value.round()).abs() < 1e-6
}

/// A tenth of a unit is finer than any screen and keeps the page small.
fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_and_enclose_the_values() {
        assert_eq!(nice_marks(0.0, 10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        for (low, high) in [(48.3, 51.9), (0.0, 1.0), (0.001, 0.0013), (-3.0, 7.0), (0.0, 137.0)] {
            let marks = nice_marks(low, high);
            assert!(
                marks[0] <= low + 1e-9 && marks[marks.len() - 1] >= high - 1e-9,
                "{low} {high} {marks:?}"
            );
            assert!((3..=9).contains(&marks.len()), "{marks:?}");
        }
    }

    #[test]
    fn tick_labels_have_the_decimals_their_step_needs() {
        let scale = Scale { from: (0.0, 1.0), to: (0.0, 100.0) };
        let labels =
            |marks: &[f64]| ticks(marks, &scale).into_iter().map(|tick| tick.label).collect::<Vec<_>>();
        assert_eq!(labels(&[0.0, 0.25, 0.5]), ["0.00", "0.25", "0.50"]);
        assert_eq!(labels(&[0.0, 20.0]), ["0", "20"]);
    }

    #[test]
    fn every_point_of_the_line_is_inside_the_plot_and_a_higher_value_is_higher() {
        let chart = line(&[50.0, 51.5, 51.0]);
        for point in &chart.points {
            assert!((LEFT..=RIGHT).contains(&point.x) && (TOP..=BOTTOM).contains(&point.y), "{point:?}");
        }
        assert!(chart.points[1].y < chart.points[2].y && chart.points[2].y < chart.points[0].y);
    }

    #[test]
    fn many_rounds_are_labelled_sparsely() {
        let chart = line(&[50.0; 101]);
        assert_eq!(chart.points.len(), 101);
        let labels: Vec<_> = chart.frame.x_ticks.iter().map(|tick| tick.label.as_str()).collect();
        assert_eq!(labels, ["without", "15", "30", "45", "60", "75", "90"]);
        assert_eq!(chart.points.iter().filter(|point| point.label.is_some()).count(), 7);
    }

    #[test]
    fn a_flat_line_a_single_point_and_no_point_are_drawn() {
        for values in [&[50.0, 50.0][..], &[50.0], &[], &[f64::NAN, 1.0]] {
            let chart = line(values);
            assert!(chart.points.iter().all(|point| point.x.is_finite() && point.y.is_finite()), "{chart:?}");
        }
    }

    #[test]
    fn bars_are_as_high_as_their_counts() {
        let histogram = |counts: &[usize]| Histogram { low: 0.0, high: 1.0, counts: counts.to_vec() };
        let chart = bars(&histogram(&[10, 0]), &histogram(&[5, 2]), 0.5);
        assert_eq!(chart.right.len(), 1);
        assert_eq!(chart.right[0].height, BOTTOM - TOP);
        assert_eq!(chart.wrong[0].height, (BOTTOM - TOP) / 2.0);
        assert_eq!(chart.xi, Some((LEFT + RIGHT) / 2.0));
        assert_eq!(bars(&histogram(&[]), &histogram(&[]), 7.0).xi, None);
    }
}
