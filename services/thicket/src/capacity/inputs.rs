use std::time::Duration;

use serde::Serialize;
use thicket_simulation::{Candidates, Faults, Network, Ranking, Scenario, Service, Spread};
use thicket_thi::{DEFAULT_LAMBDA, DEFAULT_XI, DEFAULT_YES_THRESHOLD, Settings};

/// Longer than any question waits where a load can be served at all.
const CALL_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Share of the time that the roles which rank may be busy: they are there in such numbers that they hold nothing up.
const RANKING_LOAD: f64 = 0.6;

/// What is known or assumed of a cluster. Times are in milliseconds.
#[derive(Debug, Clone, Serialize, clap::Args)]
pub(crate) struct Inputs {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) replica: AnswerReplica,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) roles: RankingRoles,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) interaction: Asking,
}

/// What one answer replica takes, and how much it does at a time.
#[derive(Debug, Clone, Serialize, clap::Args)]
#[command(next_help_heading = "An answer replica (one GPU)")]
pub(crate) struct AnswerReplica {
    /// Time of an answer replica to see an image that it does not hold, in ms [assumed]
    #[arg(long, value_name = "MS", default_value_t = 100.0)]
    pub(crate) image_ms: f64,
    /// Time to judge an image that it holds, in ms [assumed]
    #[arg(long, value_name = "MS", default_value_t = 60.0)]
    pub(crate) locate_ms: f64,
    /// Time to describe an image that it holds, in ms [assumed]
    #[arg(long, value_name = "MS", default_value_t = 600.0)]
    pub(crate) describe_ms: f64,
    /// Time to merge a description into a text, in ms [assumed]
    #[arg(long, value_name = "MS", default_value_t = 700.0)]
    pub(crate) aggregate_ms: f64,
    /// Questions worked on at a time, each in the times above [assumed]
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) slots: u32,
    /// Images whose keys and values it holds [assumed]
    #[arg(long, value_name = "N", default_value_t = 170)]
    pub(crate) images_held: usize,
}

/// What the roles that rank take, and the network between them all.
#[derive(Debug, Clone, Serialize, clap::Args)]
#[command(next_help_heading = "Embedding and gallery")]
pub(crate) struct RankingRoles {
    /// Time to embed a text, in ms [measured: 2 CPU cores, ViT-B/16]
    #[arg(long, value_name = "MS", default_value_t = 55.0)]
    pub(crate) embed_ms: f64,
    /// Time of an exact search beside the vectors, in ms [measured]
    #[arg(long, value_name = "MS", default_value_t = 0.85)]
    pub(crate) search_ms: f64,
    /// Time of an exact search for each million vectors of a host, in ms [measured: one core, 1,536 values each]
    #[arg(long, value_name = "MS", default_value_t = 500.0)]
    pub(crate) search_ms_per_million: f64,
    /// Vectors of a gallery host; a larger gallery is split over several, which search side by side [assumed]
    #[arg(long, value_name = "N", default_value_t = 2e6)]
    pub(crate) vectors_per_host: f64,
    /// Searches that a gallery host does at a time [measured: its cores]
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) searches_per_host: u32,
    /// Time of a message on the network, in ms [assumed]
    #[arg(long, value_name = "MS", default_value_t = 0.5)]
    pub(crate) network_ms: f64,
}

/// What the queries are like, and how much is asked for each.
#[derive(Debug, Clone, Serialize, clap::Args)]
#[command(next_help_heading = "The interaction")]
pub(crate) struct Asking {
    /// Candidates looked at, one a round, 1 to 100
    #[arg(long, value_name = "K", default_value_t = 5)]
    pub(crate) rounds: usize,
    /// Share of the queries that are of the high class [measured: the sample]
    #[arg(long, value_name = "P", default_value_t = 0.6)]
    pub(crate) high: f64,
    /// Share of the answers that are Yes [measured: the sample]
    #[arg(long, value_name = "P", default_value_t = 0.15)]
    pub(crate) yes: f64,
    /// Later rounds that a query of the low class asks ahead while replicas are idle
    #[arg(long, value_name = "N", default_value_t = thicket_coordinator::DEFAULT_ASK_AHEAD)]
    pub(crate) ask_ahead: usize,
}

/// An input that no cluster can have.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputsError {
    /// A number out of range.
    #[error("{flag}: {range}, got {actual}")]
    Range {
        /// The flag.
        flag: &'static str,
        /// What is allowed.
        range: &'static str,
        /// What was given.
        actual: f64,
    },
    /// The interaction's settings.
    #[error(transparent)]
    Interaction(#[from] thicket_thi::SettingsError),
}

impl Inputs {
    /// Checks every number.
    pub(crate) fn check(&self) -> Result<(), InputsError> {
        let times = [
            ("--image-ms", self.replica.image_ms),
            ("--locate-ms", self.replica.locate_ms),
            ("--describe-ms", self.replica.describe_ms),
            ("--aggregate-ms", self.replica.aggregate_ms),
            ("--embed-ms", self.roles.embed_ms),
            ("--search-ms", self.roles.search_ms),
            ("--search-ms-per-million", self.roles.search_ms_per_million),
            ("--network-ms", self.roles.network_ms),
        ];
        let is_time = |time: f64| (0.0..=3.6e6).contains(&time);
        let shares = [("--high", self.interaction.high), ("--yes", self.interaction.yes)];
        let is_share = |share: f64| (0.0..=1.0).contains(&share);
        let bad_time = times.into_iter().find(|(_, time)| !is_time(*time));
        let bad_share = shares.into_iter().find(|(_, share)| !is_share(*share));
        if let Some((flag, actual)) = bad_time {
            return Err(InputsError::Range { flag, range: "0 to 3600000", actual });
        }
        if let Some((flag, actual)) = bad_share {
            return Err(InputsError::Range { flag, range: "0 to 1", actual });
        }
        if self.replica.locate_ms == 0.0 {
            return Err(InputsError::Range { flag: "--locate-ms", range: "above 0", actual: 0.0 });
        }
        if !(1.0..=1e12).contains(&self.roles.vectors_per_host) {
            let (flag, actual) = ("--vectors-per-host", self.roles.vectors_per_host);
            return Err(InputsError::Range { flag, range: "1 to 1e12", actual });
        }
        if self.interaction.ask_ahead > thicket_coordinator::MOST_ASK_AHEAD {
            let (flag, actual) = ("--ask-ahead", self.interaction.ask_ahead as f64);
            return Err(InputsError::Range { flag, range: "0 to 16", actual });
        }
        self.thi()?;
        Ok(())
    }

    fn thi(&self) -> Result<Settings, InputsError> {
        Ok(Settings::new(self.interaction.rounds, DEFAULT_XI, DEFAULT_LAMBDA, DEFAULT_YES_THRESHOLD)?)
    }

    /// A cluster with a number of answer replicas under Poisson arrivals of so many queries a second.
    pub(crate) fn scenario(
        &self,
        gallery: usize,
        replicas: usize,
        per_second: f64,
        queries: usize,
    ) -> Result<Scenario, InputsError> {
        let ranking = Spread::fixed(millis(self.roles.embed_ms) + self.search(gallery));
        let busy = per_second * self.rankings() * ranking.mean.as_secs_f64();
        Ok(Scenario {
            thi: self.thi()?,
            // As the coordinator has it.
            dispatch: thicket_upstream::Settings::default().dispatch,
            queries,
            gallery,
            candidates: Candidates::Drawn { high: self.interaction.high },
            ranking: Ranking { slots: (busy / RANKING_LOAD).ceil().max(1.0) as usize, takes: ranking },
            arrivals: Spread { least: Duration::ZERO, mean: Duration::from_secs_f64(1.0 / per_second) },
            yes: self.interaction.yes,
            at_a_time: 1 + self.interaction.ask_ahead,
            patience: None,
            replicas,
            slots: self.replica.slots,
            service: Service {
                image: Spread::fixed(millis(self.replica.image_ms)),
                locate: Spread::fixed(millis(self.replica.locate_ms)),
                describe: Spread::fixed(millis(self.replica.describe_ms)),
                aggregate: Spread::fixed(millis(self.replica.aggregate_ms)),
                images_held: self.replica.images_held,
            },
            call_timeout: CALL_TIMEOUT,
            lease: Duration::from_secs(10),
            network: Network { latency: Spread::fixed(millis(self.roles.network_ms)), loss: 0.0 },
            faults: Faults::NONE,
        })
    }

    /// Hosts that hold one copy of a gallery.
    fn parts(&self, gallery: usize) -> f64 {
        (gallery as f64 / self.roles.vectors_per_host).ceil().max(1.0)
    }

    /// Time of one search.
    fn search(&self, gallery: usize) -> Duration {
        let each = gallery as f64 / self.parts(gallery);
        millis(self.roles.search_ms + self.roles.search_ms_per_million * each / 1e6)
    }

    /// Gallery hosts that so many queries a second need.
    pub(crate) fn gallery_hosts(&self, gallery: usize, per_second: f64) -> usize {
        let busy = per_second * self.rankings() * self.search(gallery).as_secs_f64();
        let copies = (busy / RANKING_LOAD / f64::from(self.roles.searches_per_host)).ceil().max(1.0);
        (copies * self.parts(gallery)) as usize
    }

    /// Rankings of a query, on average.
    fn rankings(&self) -> f64 {
        1.0 + self.refined()
    }

    /// Share of the queries that are refined.
    fn refined(&self) -> f64 {
        let no = 1.0 - self.interaction.yes;
        self.interaction.high * self.interaction.yes
            + (1.0 - self.interaction.high) * (no - no.powi(self.interaction.rounds as i32))
    }

    /// Questions *is this the person?* of a query, on average.
    fn locates(&self) -> f64 {
        let low: f64 =
            (0..self.interaction.rounds).map(|round| (1.0 - self.interaction.yes).powi(round as i32)).sum();
        self.interaction.high + (1.0 - self.interaction.high) * low
    }

    /// About how many queries a second a number of replicas answers, if a share of the images has to be seen.
    pub(crate) fn estimate(&self, gallery: usize, replicas: usize) -> f64 {
        let held = (replicas * self.replica.images_held) as f64 / gallery.max(1) as f64;
        self.rate(replicas, 1.0 - held.min(1.0))
    }

    /// No number of replicas answers more: no image ever has to be seen.
    pub(crate) fn at_most(&self, replicas: usize) -> f64 {
        self.rate(replicas, 0.0)
    }

    fn rate(&self, replicas: usize, seen: f64) -> f64 {
        let question = self.replica.locate_ms + seen * self.replica.image_ms;
        let work = self.locates() * question
            + self.refined() * (self.replica.describe_ms + self.replica.aggregate_ms);
        replicas as f64 * f64::from(self.replica.slots) * 1e3 / work
    }
}

fn millis(millis: f64) -> Duration {
    Duration::from_secs_f64(millis / 1e3)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        inputs: Inputs,
    }

    fn inputs(flags: &[&str]) -> Inputs {
        Line::parse_from([&["capacity"], flags].concat()).inputs
    }

    #[test]
    fn the_defaults_ask_and_refine_as_the_sample_was_measured_to() {
        let inputs = inputs(&[]);
        inputs.check().unwrap();
        // 2,529 questions and 304 refined of 1,216 queries.
        assert!((inputs.locates() - 2_529.0 / 1_216.0).abs() < 0.01, "{}", inputs.locates());
        assert!((inputs.refined() - 304.0 / 1_216.0).abs() < 0.01, "{}", inputs.refined());
    }

    #[test]
    fn a_gallery_is_split_over_hosts_that_search_side_by_side() {
        let inputs =
            inputs(&["--search-ms", "1", "--search-ms-per-million", "100", "--vectors-per-host", "1e6"]);
        assert_eq!(inputs.search(1_000_000), Duration::from_millis(101));
        assert_eq!(inputs.search(1_000_000_000), Duration::from_millis(101));
        assert_eq!(inputs.gallery_hosts(1_000_000_000, 1.0), 1_000);
        assert!(inputs.gallery_hosts(1_000, 1e4) > 1);
    }

    #[test]
    fn a_number_out_of_range_names_its_flag() {
        for (flags, wanted) in [
            (["--image-ms", "nan"], "--image-ms: 0 to 3600000, got NaN"),
            (["--yes", "1.5"], "--yes: 0 to 1, got 1.5"),
            (["--locate-ms", "0"], "--locate-ms: above 0, got 0"),
            (["--vectors-per-host", "0.5"], "--vectors-per-host: 1 to 1e12, got 0.5"),
            (["--ask-ahead", "17"], "--ask-ahead: 0 to 16, got 17"),
        ] {
            assert_eq!(inputs(&flags).check().unwrap_err().to_string(), wanted);
        }
        assert!(inputs(&["--rounds", "0"]).check().is_err());
    }
}
