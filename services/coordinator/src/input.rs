//! What a caller may send, checked before any work is done.

use thicket_proto::v1::{Filter, InteractionSettings, Priority, SearchPersonRequest};
use thicket_runtime::{Fault, check_text};
use thicket_thi::Settings;

/// Most results.
pub(crate) const MAX_TOP: usize = 100_000;
/// Results where the caller names no number.
pub(crate) const DEFAULT_TOP: usize = 10;

/// A search that can be run.
#[derive(Debug, Clone)]
pub(crate) struct SearchInput {
    pub(crate) collection: String,
    pub(crate) text: String,
    /// Results wanted, 1 to [`MAX_TOP`].
    pub(crate) top: usize,
    pub(crate) settings: Settings,
    /// Rank once, ask nothing.
    pub(crate) disabled: bool,
    pub(crate) priority: Priority,
    /// Adapter that answers; empty for the answer model as it was started.
    pub(crate) adapter: String,
    /// What the items searched must meet; the gallery checks it.
    pub(crate) filter: Option<Filter>,
}

impl SearchInput {
    /// Checks a request; what it leaves unset comes from `defaults`.
    pub(crate) fn parse(request: SearchPersonRequest, defaults: &Settings) -> Result<Self, Fault> {
        collection("collection", &request.collection)?;
        check_text("text", &request.text)?;
        let top = match request.top as usize {
            0 => DEFAULT_TOP,
            top if top <= MAX_TOP => top,
            top => {
                let message = format!("1 to {MAX_TOP}, or 0 for {DEFAULT_TOP}; got {top}");
                return Err(Fault::invalid("top", "TOP_OUT_OF_RANGE", message));
            }
        };
        let asked = request.settings.unwrap_or_default();
        let priority = Priority::try_from(request.priority).map_err(|_| {
            let message = format!("name one of the priorities, got {}", request.priority);
            Fault::invalid("priority", "PRIORITY_UNKNOWN", message)
        })?;
        Ok(Self {
            collection: request.collection,
            text: request.text,
            top,
            settings: settings(&asked, defaults)?,
            disabled: asked.disabled,
            priority,
            adapter: request.adapter,
            filter: request.filter,
        })
    }

    /// The settings in force, as the caller is told them.
    pub(crate) fn settings_in_force(&self) -> InteractionSettings {
        InteractionSettings {
            rounds: u32::try_from(self.settings.rounds()).ok(),
            xi: Some(self.settings.xi()),
            lambda: Some(self.settings.lambda()),
            yes_threshold: Some(self.settings.yes_threshold()),
            disabled: self.disabled,
        }
    }
}

/// A collection must be named; whether it exists is for the gallery to say.
pub(crate) fn collection(field: &'static str, name: &str) -> Result<(), Fault> {
    if name.is_empty() {
        return Err(Fault::invalid(field, "COLLECTION_NAME_MISSING", "name a collection"));
    }
    Ok(())
}

fn settings(asked: &InteractionSettings, defaults: &Settings) -> Result<Settings, Fault> {
    Settings::new(
        asked.rounds.map_or(defaults.rounds(), |rounds| rounds as usize),
        asked.xi.unwrap_or(defaults.xi()),
        asked.lambda.unwrap_or(defaults.lambda()),
        asked.yes_threshold.unwrap_or(defaults.yes_threshold()),
    )
    .map_err(|error| {
        Fault::invalid(format!("settings.{}", error.field()), "SETTING_OUT_OF_RANGE", error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use thicket_runtime::MAX_TEXT_BYTES;

    use super::*;

    fn request() -> SearchPersonRequest {
        SearchPersonRequest { collection: "lobby".into(), text: "a red coat".into(), ..Default::default() }
    }

    fn refused_field(request: SearchPersonRequest) -> String {
        match SearchInput::parse(request, &Settings::default()).unwrap_err() {
            Fault::InvalidInput { field, .. } => field.into_owned(),
            other => panic!("{other:?}"),
        }
    }

    fn with(settings: InteractionSettings) -> SearchPersonRequest {
        SearchPersonRequest { settings: Some(settings), ..request() }
    }

    #[test]
    fn what_is_left_unset_takes_the_defaults() {
        let defaults = Settings::new(3, 0.25, 0.5, 0.75).unwrap();
        let input = SearchInput::parse(request(), &defaults).unwrap();
        assert_eq!((input.top, input.settings, input.disabled), (DEFAULT_TOP, defaults, false));
    }

    #[test]
    fn a_setting_that_is_set_wins_over_its_default() {
        let asked = InteractionSettings { lambda: Some(0.0), xi: Some(-1.0), ..Default::default() };
        let input = SearchInput::parse(with(asked), &Settings::default()).unwrap();
        assert_eq!((input.settings.lambda(), input.settings.xi(), input.settings.rounds()), (0.0, -1.0, 5));
    }

    #[test]
    fn each_bad_setting_is_named() {
        let none = InteractionSettings::default;
        for (asked, field) in [
            (InteractionSettings { rounds: Some(0), ..none() }, "settings.rounds"),
            (InteractionSettings { rounds: Some(101), ..none() }, "settings.rounds"),
            (InteractionSettings { xi: Some(f32::NAN), ..none() }, "settings.xi"),
            (InteractionSettings { xi: Some(f32::NEG_INFINITY), ..none() }, "settings.xi"),
            (InteractionSettings { lambda: Some(1.5), ..none() }, "settings.lambda"),
            (InteractionSettings { lambda: Some(-0.1), ..none() }, "settings.lambda"),
            (InteractionSettings { lambda: Some(f32::NAN), ..none() }, "settings.lambda"),
            (InteractionSettings { yes_threshold: Some(f64::NAN), ..none() }, "settings.yes_threshold"),
        ] {
            assert_eq!(refused_field(with(asked)), field, "{asked:?}");
        }
    }

    #[test]
    fn a_text_of_white_space_is_refused_and_any_script_is_not() {
        for text in ["", "  ", "\t\n\u{3000}\u{a0}"] {
            assert_eq!(refused_field(SearchPersonRequest { text: text.into(), ..request() }), "text");
        }
        for text in ["🧥", "امرأة بمعطف أحمر", "穿红色外套的女人"] {
            let request = SearchPersonRequest { text: text.into(), ..request() };
            assert!(SearchInput::parse(request, &Settings::default()).is_ok(), "{text}");
        }
    }

    #[test]
    fn the_longest_text_is_accepted_and_one_byte_more_is_not() {
        let longest = SearchPersonRequest { text: "a".repeat(MAX_TEXT_BYTES), ..request() };
        assert!(SearchInput::parse(longest, &Settings::default()).is_ok());
        let longer = SearchPersonRequest { text: "a".repeat(MAX_TEXT_BYTES + 1), ..request() };
        assert_eq!(refused_field(longer), "text");
    }

    #[test]
    fn an_unknown_priority_a_missing_collection_and_too_many_results_are_refused() {
        assert_eq!(refused_field(SearchPersonRequest { priority: 9, ..request() }), "priority");
        assert_eq!(
            refused_field(SearchPersonRequest { collection: String::new(), ..request() }),
            "collection"
        );
        assert_eq!(refused_field(SearchPersonRequest { top: 100_001, ..request() }), "top");
    }
}
