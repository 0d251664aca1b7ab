use std::collections::BTreeMap;

use serde::Serialize;
use thicket_evaluation::{Differences, Histogram, Metrics};
use thicket_thi::{Answer, Outcome, Settings};

/// Everything the page shows.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Heading of the page.
    pub title: String,
    /// What the data are, in a sentence or two: where they come from, whether the people are real.
    pub data: String,
    /// The command that makes this page again.
    pub command: String,
    /// Queries run.
    pub queries: usize,
    /// Images searched.
    pub gallery: usize,
    /// Different people in the gallery.
    pub identities: usize,
    /// How the interaction ran.
    pub settings: Settings,
    /// Results without the interaction.
    pub baseline: Metrics,
    /// Results with it.
    pub thi: Metrics,
    /// With minus without, with 95 % intervals.
    pub differences: Differences,
    /// The same with every answer given to another query, if that was run.
    pub control: Option<Control>,
    /// What the answer model was asked.
    pub questions: Questions,
    /// How queries ended: a short description and the number of queries.
    pub outcomes: Vec<Fact>,
    /// Where the time went, in the order it is shown.
    pub seconds: Vec<Stage>,
    /// mAP in percent: element 0 before any round, element r after round r.
    pub map_by_round: Vec<f64>,
    /// Best similarity of queries whose first result is right.
    pub top1_right: Histogram,
    /// The same for queries whose first result is wrong, in the same bins.
    pub top1_wrong: Histogram,
    /// Queries shown in full.
    pub examples: Vec<Example>,
    /// Images of the examples, by a name of the caller's choice. Each is put into the page once.
    pub images: BTreeMap<String, Image>,
    /// Models, versions, seeds, machine: whatever somebody needs to judge or repeat the run.
    pub facts: Vec<Fact>,
}

/// A control run that must not show the gain.
#[derive(Debug, Clone, Serialize)]
pub struct Control {
    /// What was changed, in a sentence.
    pub description: String,
    /// Its results.
    pub metrics: Metrics,
    /// Its difference to the baseline.
    pub differences: Differences,
}

/// What the answer model was asked in the whole run.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Questions {
    /// "Is this the person?" questions asked.
    pub locate: usize,
    /// What a script that asks every open query in every round would have asked.
    pub locate_round_by_round: usize,
    /// Images described; an image is described once, however many queries confirm it.
    pub describe: usize,
    /// Queries rewritten.
    pub aggregate: usize,
    /// Answers that could not be read: they count as No, or leave the query as it was.
    pub unusable: usize,
}

/// A label and what it says.
#[derive(Debug, Clone, Serialize)]
pub struct Fact {
    /// The label.
    pub name: String,
    /// What it says.
    pub value: String,
}

/// A part of the run.
#[derive(Debug, Clone, Serialize)]
pub struct Stage {
    /// What was done.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
}

/// An encoded image.
#[derive(Debug, Clone, Serialize)]
pub struct Image {
    /// JPEG, PNG or WebP as it is on disk.
    #[serde(skip)]
    pub bytes: Vec<u8>,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// What somebody who cannot see it should know, such as "person 17, view 2".
    pub alt: String,
}

/// One query, shown in full.
#[derive(Debug, Clone, Serialize)]
pub struct Example {
    /// Why it is shown, in a few words, such as "found in round 3".
    pub heading: String,
    /// The description that was searched for.
    pub query: String,
    /// The dialogue, round 1 first.
    pub exchanges: Vec<Exchange>,
    /// How it ended; the anchor is a key of [`Report::images`].
    pub outcome: Outcome<String>,
    /// What the model said about the confirmed image, a sentence each.
    pub attributes: Vec<String>,
    /// The rewritten query.
    pub refined: Option<String>,
    /// First results before the interaction.
    pub before: Vec<Ranked>,
    /// First results after it.
    pub after: Vec<Ranked>,
    /// Place (from 1) of the first right image before the interaction.
    pub first_match_before: usize,
    /// The same after it.
    pub first_match_after: usize,
}

/// One round of a dialogue.
#[derive(Debug, Clone, Serialize)]
pub struct Exchange {
    /// Round, from 1.
    pub round: usize,
    /// Key of the image the question was about.
    pub image: String,
    /// True where the image shows the person searched for.
    pub right: bool,
    /// The question, as the model got it or shortened for a reader.
    pub question: String,
    /// What was decided.
    pub answer: Answer,
    /// Probability of Yes, 0 to 1.
    pub p_yes: f64,
}

/// A search result.
#[derive(Debug, Clone, Serialize)]
pub struct Ranked {
    /// Key of the image.
    pub image: String,
    /// True where the image shows the person searched for.
    pub right: bool,
    /// Its score.
    pub score: f32,
}
