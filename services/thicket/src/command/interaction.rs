use thicket_proto::v1::InteractionSettings;

/// How the interaction of a search runs.
#[derive(Debug, clap::Args)]
pub(crate) struct InteractionArgs {
    /// Candidates looked at, one a round [default: the server's]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    rounds: Option<u32>,
    /// Similarity threshold: above it a query is refined in round 1 only, otherwise in later rounds only [default: the
    /// server's]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    xi: Option<f32>,
    /// Weight of the original text in the final score, 0 to 1 [default: the server's]
    #[arg(long, value_name = "L", allow_negative_numbers = true)]
    lambda: Option<f32>,
    /// Yes means p(Yes) above this, 0 to 1 [default: the server's]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    yes_threshold: Option<f64>,
    /// Loaded adapter of the answer service that answers [default: its model as it was started]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub(crate) adapter: String,
    /// Rank once and ask nothing
    #[arg(long, conflicts_with_all = ["rounds", "xi", "lambda", "yes_threshold"])]
    no_interaction: bool,
}

impl InteractionArgs {
    /// The settings as they are sent.
    pub(crate) fn settings(&self) -> InteractionSettings {
        InteractionSettings {
            rounds: self.rounds,
            xi: self.xi,
            lambda: self.lambda,
            yes_threshold: self.yes_threshold,
            disabled: self.no_interaction,
        }
    }
}
