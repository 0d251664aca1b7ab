use serde::{Deserialize, Serialize};

/// Most candidates an interaction may look at.
pub const MAX_ROUNDS: usize = 100;
/// Candidates looked at when nothing else is said, the paper's K.
pub const DEFAULT_ROUNDS: usize = 5;
/// Similarity threshold when nothing else is said, the paper's value for CUHK-PEDES, RSTPReid and UFine6926.
pub const DEFAULT_XI: f32 = 0.5;
/// Weight of the original query when nothing else is said, the paper's value for every data set.
pub const DEFAULT_LAMBDA: f32 = 0.8;
/// Threshold on p(Yes) when nothing else is said: the more probable word wins.
pub const DEFAULT_YES_THRESHOLD: f64 = 0.5;

/// How an interaction runs. A value of this type is valid: it can only be made by [`Settings::new`] or from data
/// that passes it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawSettings", into = "RawSettings")]
pub struct Settings {
    rounds: usize,
    xi: f32,
    lambda: f32,
    yes_threshold: f64,
}

/// A setting outside its range.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum SettingsError {
    /// Zero rounds or more than [`MAX_ROUNDS`].
    #[error("rounds must be 1 to {limit}, not {actual}")]
    Rounds {
        /// [`MAX_ROUNDS`].
        limit: usize,
        /// What was given.
        actual: usize,
    },
    /// xi is NaN or infinite.
    #[error("xi must be a finite number, not {actual}")]
    Xi {
        /// What was given.
        actual: f32,
    },
    /// A share that is NaN or outside 0 to 1.
    #[error("{field} must be 0 to 1, not {actual}")]
    Share {
        /// `lambda` or `yes_threshold`.
        field: &'static str,
        /// What was given.
        actual: f64,
    },
}

impl SettingsError {
    /// The offending field, by the name it has on the wire and on the command line.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Rounds { .. } => "rounds",
            Self::Xi { .. } => "xi",
            Self::Share { field, .. } => field,
        }
    }
}

impl Settings {
    /// Checks and takes the four settings.
    ///
    /// - `rounds`: candidates looked at, at most one a round, 1 to [`MAX_ROUNDS`]; the paper's K.
    /// - `xi`: similarity threshold, finite. A query whose best candidate is *above* it is refined in round 1 only,
    ///   any other in the later rounds only.
    /// - `lambda`: weight of the original query in the final score, 0 to 1.
    /// - `yes_threshold`: an answer is Yes when p(Yes) is *above* it, 0 to 1.
    ///
    /// # Errors
    /// [`SettingsError`] for the first value outside its range; NaN is always outside.
    pub fn new(rounds: usize, xi: f32, lambda: f32, yes_threshold: f64) -> Result<Self, SettingsError> {
        if !(1..=MAX_ROUNDS).contains(&rounds) {
            return Err(SettingsError::Rounds { limit: MAX_ROUNDS, actual: rounds });
        }
        if !xi.is_finite() {
            return Err(SettingsError::Xi { actual: xi });
        }
        if !(0.0..=1.0).contains(&lambda) {
            return Err(SettingsError::Share { field: "lambda", actual: lambda.into() });
        }
        if !(0.0..=1.0).contains(&yes_threshold) {
            return Err(SettingsError::Share { field: "yes_threshold", actual: yes_threshold });
        }
        Ok(Self { rounds, xi, lambda, yes_threshold })
    }

    /// Candidates looked at, 1 to [`MAX_ROUNDS`].
    pub fn rounds(&self) -> usize {
        self.rounds
    }

    /// Similarity threshold, finite.
    pub fn xi(&self) -> f32 {
        self.xi
    }

    /// Weight of the original query in the final score, 0 to 1.
    pub fn lambda(&self) -> f32 {
        self.lambda
    }

    /// Threshold on p(Yes), 0 to 1.
    pub fn yes_threshold(&self) -> f64 {
        self.yes_threshold
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rounds: DEFAULT_ROUNDS,
            xi: DEFAULT_XI,
            lambda: DEFAULT_LAMBDA,
            yes_threshold: DEFAULT_YES_THRESHOLD,
        }
    }
}

/// What is written and read; an absent field takes its default.
#[derive(Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawSettings {
    rounds: usize,
    xi: f32,
    lambda: f32,
    yes_threshold: f64,
}

impl Default for RawSettings {
    fn default() -> Self {
        Settings::default().into()
    }
}

impl From<Settings> for RawSettings {
    fn from(settings: Settings) -> Self {
        let Settings { rounds, xi, lambda, yes_threshold } = settings;
        Self { rounds, xi, lambda, yes_threshold }
    }
}

impl TryFrom<RawSettings> for Settings {
    type Error = SettingsError;

    fn try_from(raw: RawSettings) -> Result<Self, SettingsError> {
        Self::new(raw.rounds, raw.xi, raw.lambda, raw.yes_threshold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_every_range_are_accepted() {
        assert!(Settings::new(1, -1.0, 0.0, 0.0).is_ok());
        assert!(Settings::new(MAX_ROUNDS, 1.0, 1.0, 1.0).is_ok());
    }

    #[test]
    fn a_value_outside_its_range_names_its_field() {
        let field = |settings: Result<Settings, SettingsError>| settings.unwrap_err().field();
        assert_eq!(field(Settings::new(0, 0.5, 0.8, 0.5)), "rounds");
        assert_eq!(field(Settings::new(MAX_ROUNDS + 1, 0.5, 0.8, 0.5)), "rounds");
        assert_eq!(field(Settings::new(5, f32::INFINITY, 0.8, 0.5)), "xi");
        assert_eq!(field(Settings::new(5, 0.5, 1.001, 0.5)), "lambda");
        assert_eq!(field(Settings::new(5, 0.5, -0.1, 0.5)), "lambda");
        assert_eq!(field(Settings::new(5, 0.5, 0.8, 1.5)), "yes_threshold");
    }

    #[test]
    fn nan_is_refused_everywhere() {
        assert!(matches!(Settings::new(5, f32::NAN, 0.8, 0.5), Err(SettingsError::Xi { .. })));
        assert!(matches!(Settings::new(5, 0.5, f32::NAN, 0.5), Err(SettingsError::Share { .. })));
        assert!(matches!(Settings::new(5, 0.5, 0.8, f64::NAN), Err(SettingsError::Share { .. })));
    }

    #[test]
    fn settings_read_from_data_are_validated_too() {
        assert!(toml::from_str::<Settings>("rounds = 0").is_err());
        let read: Settings = toml::from_str("rounds = 3").unwrap();
        assert_eq!(read, Settings::new(3, DEFAULT_XI, DEFAULT_LAMBDA, DEFAULT_YES_THRESHOLD).unwrap());
    }
}
