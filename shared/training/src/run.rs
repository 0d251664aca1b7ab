use std::{path::Path, time::Instant};

use serde::Serialize;

use crate::TrainingError;

/// What a run tells while it goes; returning `false` asks it to stop.
pub type Watch<'a> = dyn FnMut(&Event) -> bool + 'a;

/// One thing that happened in a run.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// The stage it happened in.
    pub stage: &'static str,
    /// Finished steps of the stage.
    pub step: usize,
    /// All steps of the stage.
    pub steps: usize,
    /// Named figures: losses, accuracies (0 to 1), percentages; empty for a mere sign of life.
    pub figures: Vec<(&'static str, f32)>,
    /// Seconds since the run began.
    pub seconds: f64,
}

/// Refuses a model folder that is not there, before a run takes its time.
pub(crate) fn require_folder(field: &'static str, folder: Option<&Path>) -> Result<(), TrainingError> {
    match folder {
        Some(folder) if !folder.is_dir() => Err(TrainingError::Option {
            field,
            actual: format!("`{}`", folder.display()),
            allowed: "folders of a model that are there",
        }),
        _ => Ok(()),
    }
}

/// The memory of a run: when it began and what it measured.
pub(crate) struct Journal<'a, 'b> {
    began: Instant,
    watch: &'a mut Watch<'b>,
    pub(crate) events: Vec<Event>,
}

impl<'a, 'b> Journal<'a, 'b> {
    pub(crate) fn new(watch: &'a mut Watch<'b>) -> Self {
        Self { began: Instant::now(), watch, events: Vec::new() }
    }

    /// Reports figures and keeps them for the card.
    pub(crate) fn record(
        &mut self,
        stage: &'static str,
        (step, steps): (usize, usize),
        figures: &[(&'static str, f32)],
    ) -> Result<(), TrainingError> {
        let seconds = self.began.elapsed().as_secs_f64();
        let event = Event { stage, step, steps, figures: figures.to_vec(), seconds };
        let go_on = (self.watch)(&event);
        if !figures.is_empty() {
            self.events.push(event);
        }
        if go_on { Ok(()) } else { Err(TrainingError::Stopped { step }) }
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }
}

/// Mean of a figure between two reports.
#[derive(Debug, Default)]
pub(crate) struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    pub(crate) fn add(&mut self, value: f32) {
        self.sum += f64::from(value);
        self.count += 1;
    }

    /// The mean since the last call; 0 when nothing was added.
    pub(crate) fn take(&mut self) -> f32 {
        let mean = self.sum / self.count.max(1) as f64;
        *self = Self::default();
        mean as f32
    }
}
