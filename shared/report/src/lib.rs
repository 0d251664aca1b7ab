//! `report.html`: one self-contained page that shows a newcomer what the interaction did and what it was worth.
//!
//! [`render`] turns a [`Report`] into HTML with its style, charts and images inside: no script, no network, readable on
//! a phone, in print and with a screen reader. [`curves()`] draws a plot as an SVG file of its own. Everything that comes
//! from a data set or a model is escaped.

mod chart;
mod curves;
mod page;
mod report;

pub use curves::{Curve, Panel, curves};
pub use page::{MAX_PAGE_BYTES, ReportError, render};
pub use report::{Control, Example, Exchange, Fact, Image, Questions, Ranked, Report, Stage};
