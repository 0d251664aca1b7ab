use std::time::Duration;

use rand::Rng;
use thicket_dispatch::SettingsError;

/// Times between a least one and no end, exponentially distributed above the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// The least.
    pub least: Duration,
    /// The mean, at least [`Self::least`]; equal to it, all times are equal.
    pub mean: Duration,
}

impl Spread {
    /// Always the same time.
    #[must_use]
    pub const fn fixed(time: Duration) -> Self {
        Self { least: time, mean: time }
    }

    pub(crate) fn draw(&self, rng: &mut impl Rng) -> Duration {
        let above = self.mean.saturating_sub(self.least);
        // 1 - u is above 0, so its logarithm is finite.
        let factor = -(1.0 - rng.random::<f64>()).ln();
        self.least + above.mul_f64(factor)
    }
}

/// How long a replica takes, one question at a time in each of its slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    /// To see an image that it does not hold; on top of the question about it.
    pub image: Spread,
    /// To judge an image that it holds.
    pub locate: Spread,
    /// To describe an image that it holds.
    pub describe: Spread,
    /// To merge a description into a text.
    pub aggregate: Spread,
    /// Images that it holds at a time, those of the latest questions.
    pub images_held: usize,
}

/// Where the candidates of a query come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Candidates {
    /// From a similarity drawn for every image of the gallery: for galleries of up to some thousands.
    Ranked,
    /// Drawn alone, any image being as likely as another: for galleries of any size.
    Drawn {
        /// Share of the queries that are of the high class, 0 to 1.
        high: f64,
    },
}

/// How the roles that rank work: a query is ranked before its interaction and, if it was refined, once more. A query's
/// patience begins after the first ranking and ends before the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranking {
    /// Queries that are ranked at a time, at least 1; the others wait.
    pub slots: usize,
    /// How long it takes to embed a text and to search with it.
    pub takes: Spread,
}

impl Ranking {
    /// It takes no time.
    pub const INSTANT: Self = Self { slots: usize::MAX, takes: Spread::fixed(Duration::ZERO) };
}

/// How messages travel between the coordinator and its replicas.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Network {
    /// Time on the way.
    pub latency: Spread,
    /// Share of the messages that never arrive, 0 to 1.
    pub loss: f64,
}

/// What goes wrong, and when: at random moments of the first [`Self::during`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// Faults begin in this time.
    pub during: Duration,
    /// How long each lasts.
    pub lasting: Spread,
    /// Replicas that crash and start again, half of them without a word to those who wait for them.
    pub crashes: usize,
    /// Replicas that cannot be reached, half of them losing their lease as well.
    pub partitions: usize,
    /// Replicas that become ten times slower.
    pub slow: usize,
    /// Replicas that drain, stop and start again.
    pub drains: usize,
    /// Replicas that answer nothing of what they have and get, and keep their lease.
    pub hangs: usize,
}

impl Faults {
    /// Nothing goes wrong.
    pub const NONE: Self = Self {
        during: Duration::ZERO,
        lasting: Spread::fixed(Duration::ZERO),
        crashes: 0,
        partitions: 0,
        slow: 0,
        drains: 0,
        hangs: 0,
    };
}

/// What is simulated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scenario {
    /// How the interaction runs.
    pub thi: thicket_thi::Settings,
    /// How the dispatcher works.
    pub dispatch: thicket_dispatch::Settings,
    /// Queries that arrive.
    pub queries: usize,
    /// Images in the gallery.
    pub gallery: usize,
    /// Which of them a query is about.
    pub candidates: Candidates,
    /// How they are found.
    pub ranking: Ranking,
    /// Time between two queries.
    pub arrivals: Spread,
    /// Share of the candidates that are confirmed, 0 to 1.
    pub yes: f64,
    /// Questions of a query that are asked at a time, at least 1; with 1 nothing is asked ahead.
    pub at_a_time: usize,
    /// How long a query is waited for; `None` for ever.
    pub patience: Option<Duration>,
    /// Answer replicas, at least 1.
    pub replicas: usize,
    /// Questions that each works on at a time, at least 1.
    pub slots: u32,
    /// How long they take.
    pub service: Service,
    /// After what time without an answer a call counts as failed, above 0.
    pub call_timeout: Duration,
    /// After what time a replica that is gone is known to be gone.
    pub lease: Duration,
    /// How messages travel.
    pub network: Network,
    /// What goes wrong.
    pub faults: Faults,
}

/// A scenario that cannot be simulated.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum ScenarioError {
    /// Something there has to be at least one of.
    #[error("{field}: at least 1, got 0")]
    Zero {
        /// The field.
        field: &'static str,
    },
    /// A share that is NaN or outside 0 to 1.
    #[error("{field}: 0 to 1, got {actual}")]
    Share {
        /// The field.
        field: &'static str,
        /// What was given.
        actual: f64,
    },
    /// The dispatcher's settings.
    #[error("dispatch: {0}")]
    Dispatch(#[from] SettingsError),
}

impl Scenario {
    /// Checks that it can be simulated.
    ///
    /// # Errors
    /// [`ScenarioError`] for the first field that does not work.
    pub fn check(&self) -> Result<(), ScenarioError> {
        self.dispatch.check()?;
        let counts = [
            ("at_a_time", self.at_a_time == 0),
            ("replicas", self.replicas == 0),
            ("slots", self.slots == 0),
            ("ranking.slots", self.ranking.slots == 0),
            ("call_timeout", self.call_timeout.is_zero()),
        ];
        if let Some((field, _)) = counts.into_iter().find(|(_, is_zero)| *is_zero) {
            return Err(ScenarioError::Zero { field });
        }
        let high = match self.candidates {
            Candidates::Ranked => 0.0,
            Candidates::Drawn { high } => high,
        };
        let shares = [("yes", self.yes), ("network.loss", self.network.loss), ("candidates.high", high)];
        match shares.into_iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            Some((field, actual)) => Err(ScenarioError::Share { field, actual }),
            None => Ok(()),
        }
    }
}
