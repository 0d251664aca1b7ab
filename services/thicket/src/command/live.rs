//! The rounds of a search as they happen.

use indicatif::ProgressBar;
use thicket_proto::v1::search_person_response::Event;
use thicket_proto::v1::{Answer, Hit};

use crate::client::printable;
use crate::{Failure, console};

/// Shows the events of one search: on a terminal with a line that tells what is being waited for, elsewhere as plain
/// lines, with `--json` not at all.
#[derive(Debug)]
pub(super) struct LiveView {
    /// `None` where nothing is shown.
    waiting: Option<ProgressBar>,
}

impl LiveView {
    pub(super) fn new(silent: bool) -> Self {
        let view = Self { waiting: (!silent).then(console::waiting) };
        view.wait_for("ranking the gallery".to_owned());
        view
    }

    /// Shows an event. The final ranking is the caller's to print.
    ///
    /// # Errors
    /// [`Failure`] where stdout cannot be written.
    pub(super) fn show(&mut self, event: &Event) -> Result<(), Failure> {
        match event {
            Event::CandidatesFound(found) => {
                let xi = found.settings.as_ref().and_then(|settings| settings.xi).unwrap_or_default();
                let best = found.hits.first().map_or(0.0, |hit| hit.score);
                let asks = found.settings.as_ref().is_some_and(|settings| !settings.disabled);
                match (found.hits.is_empty(), asks, found.high_similarity) {
                    (true, _, _) => Ok(()),
                    (_, false, _) => self.line(&format!("first ranking: best similarity {best:.3}")),
                    (_, _, true) => self.line(&format!(
                        "first ranking: best similarity {best:.3}, above xi {xi:.3}: only round 1 can refine"
                    )),
                    (_, _, false) => self.line(&format!(
                        "first ranking: best similarity {best:.3}, not above xi {xi:.3}: only later rounds can refine"
                    )),
                }
            }
            Event::QuestionAsked(asked) => {
                let candidate = asked.candidate.as_ref().map_or(String::new(), id);
                self.wait_for(format!("round {}: is {candidate} the person?", asked.round));
                Ok(())
            }
            Event::QuestionAnswered(answered) => {
                let candidate = printable(&answered.candidate_id);
                let answer = match answered.answer() {
                    Answer::Yes => "Yes",
                    Answer::No => "No",
                    Answer::Unusable | Answer::Unspecified => "no usable answer, counts as No",
                };
                self.wait_for("deciding".to_owned());
                self.line(&format!(
                    "round {}: is {candidate} the person? {answer}, p(Yes) {:.3}",
                    answered.round, answered.p_yes
                ))
            }
            Event::AnchorDescribed(described) => {
                self.wait_for("rewriting the query".to_owned());
                let answers: Vec<String> = described
                    .answers
                    .iter()
                    .filter(|answer| !answer.is_empty())
                    .map(|answer| printable(answer))
                    .collect();
                let source = if described.cached { " (remembered)" } else { "" };
                self.line(&format!(
                    "{} shows{source}: {}",
                    printable(&described.anchor_id),
                    answers.join(" ")
                ))
            }
            Event::QueryRefined(refined) => {
                self.wait_for("ranking again".to_owned());
                self.line(&format!("rewritten query: {}", printable(&refined.text)))
            }
            Event::Finished(_) => Ok(()),
        }
    }

    /// Takes the waiting line off the screen.
    pub(super) fn close(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.finish_and_clear();
        }
    }

    fn wait_for(&self, what: String) {
        if let Some(waiting) = &self.waiting {
            waiting.set_message(what);
        }
    }

    fn line(&self, text: &str) -> Result<(), Failure> {
        match &self.waiting {
            Some(waiting) => waiting.suspend(|| console::print(text)),
            None => Ok(()),
        }
    }
}

fn id(hit: &Hit) -> String {
    hit.item.as_ref().map(|item| printable(&item.id)).unwrap_or_default()
}
