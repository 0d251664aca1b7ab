use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::DEFAULT_STUCK_AFTER;

/// How long a draining role keeps serving, so that load balancers notice first.
pub const DEFAULT_DRAIN_DELAY: Duration = Duration::from_secs(5);
/// How long a draining role waits for calls in flight.
pub const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Deadline of a unary call that names none.
pub const DEFAULT_UNARY_DEADLINE: Duration = Duration::from_secs(30);
/// Deadline of a streaming call that names none.
pub const DEFAULT_STREAM_DEADLINE: Duration = Duration::from_secs(600);

/// A part of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Texts and images to vectors.
    Embedding,
    /// Vectors, images and rankings.
    Gallery,
    /// Questions about images.
    Answer,
    /// The interaction.
    Coordinator,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Embedding, Self::Gallery, Self::Answer, Self::Coordinator];

    /// The role of that lower-case name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Gallery => "gallery",
            Self::Answer => "answer",
            Self::Coordinator => "coordinator",
        }
    }

    /// `service.name` in traces and metrics.
    pub fn service_name(self) -> String {
        format!("thicket-{}", self.name())
    }

    /// Loopback address the API listens on where none is given.
    pub fn default_listen(self) -> SocketAddr {
        loopback(self.port())
    }

    /// Loopback address of the admin listener where none is given: the API's port + 100.
    pub fn default_admin_listen(self) -> SocketAddr {
        loopback(self.port() + 100)
    }

    fn port(self) -> u16 {
        match self {
            Self::Coordinator => 7700,
            Self::Embedding => 7701,
            Self::Gallery => 7702,
            Self::Answer => 7703,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Flags that every role has, for `#[command(flatten)]`.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Server")]
pub struct RoleArgs {
    /// Address of the gRPC API; loopback and the role's own port unless given, port 0 takes a free one
    #[arg(long, env = "THICKET_LISTEN", value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Address of the admin HTTP listener (health, metrics); loopback and the API's default port + 100 unless given
    #[arg(long, env = "THICKET_ADMIN_LISTEN", value_name = "ADDR")]
    pub admin_listen: Option<SocketAddr>,
    /// How long to keep serving after the first signal [default: 5s]
    #[arg(long, env = "THICKET_DRAIN_DELAY", value_name = "TIME", value_parser = parse_duration)]
    pub drain_delay: Option<Duration>,
    /// How long to wait for calls in flight after that [default: 30s]
    #[arg(long, env = "THICKET_DRAIN_TIMEOUT", value_name = "TIME", value_parser = parse_duration)]
    pub drain_timeout: Option<Duration>,
    /// Deadline of a unary call that names none [default: 30s]
    #[arg(long, env = "THICKET_UNARY_DEADLINE", value_name = "TIME", value_parser = parse_duration)]
    pub unary_deadline: Option<Duration>,
    /// Deadline of a streaming call that names none [default: 10m]
    #[arg(long, env = "THICKET_STREAM_DEADLINE", value_name = "TIME", value_parser = parse_duration)]
    pub stream_deadline: Option<Duration>,
    /// How long one step of a model or a store may take before the role says that it is stuck and gets no new work
    /// [default: 2m]
    #[arg(long, env = "THICKET_STUCK_AFTER", value_name = "TIME", value_parser = parse_limit)]
    pub stuck_after: Option<Duration>,
    /// JSON list of the tokens that may call: `[{"name","sha256","rights":["read"],"collections":["lobby"]}]`; without
    /// it the API is open and must listen on loopback
    #[arg(long, env = "THICKET_TOKENS_FILE", value_name = "FILE")]
    pub tokens_file: Option<PathBuf>,
    /// Append a JSON line for every write, admin call and refused call to this file
    #[arg(long, env = "THICKET_AUDIT_LOG", value_name = "FILE")]
    pub audit_log: Option<PathBuf>,
}

impl RoleArgs {
    /// The settings with the role's defaults filled in.
    pub fn config(&self, role: Role) -> RoleConfig {
        RoleConfig {
            listen: self.listen.unwrap_or_else(|| role.default_listen()),
            admin_listen: Some(self.admin_listen.unwrap_or_else(|| role.default_admin_listen())),
            drain_delay: self.drain_delay.unwrap_or(DEFAULT_DRAIN_DELAY),
            drain_timeout: self.drain_timeout.unwrap_or(DEFAULT_DRAIN_TIMEOUT),
            unary_deadline: self.unary_deadline.unwrap_or(DEFAULT_UNARY_DEADLINE),
            stream_deadline: self.stream_deadline.unwrap_or(DEFAULT_STREAM_DEADLINE),
            stuck_after: self.stuck_after.unwrap_or(DEFAULT_STUCK_AFTER),
            tokens_file: self.tokens_file.clone(),
            audit_log: self.audit_log.clone(),
        }
    }
}

/// Settings that every role has.
#[derive(Debug, Clone)]
pub struct RoleConfig {
    /// Address of the gRPC API; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Address of the admin HTTP listener; `None` opens none.
    pub admin_listen: Option<SocketAddr>,
    /// How long to keep serving after the shutdown begins. Default: [`DEFAULT_DRAIN_DELAY`].
    pub drain_delay: Duration,
    /// How long to wait for calls in flight after that. Default: [`DEFAULT_DRAIN_TIMEOUT`].
    pub drain_timeout: Duration,
    /// Deadline of a unary call that names none. Default: [`DEFAULT_UNARY_DEADLINE`].
    pub unary_deadline: Duration,
    /// Deadline of a streaming call that names none. Default: [`DEFAULT_STREAM_DEADLINE`].
    pub stream_deadline: Duration,
    /// How long one step of an engine may take before it counts as stuck. Default: [`DEFAULT_STUCK_AFTER`].
    pub stuck_after: Duration,
    /// The tokens that may call; `None` leaves the API open, which only loopback allows.
    pub tokens_file: Option<PathBuf>,
    /// Where the audit log goes; `None` keeps none.
    pub audit_log: Option<PathBuf>,
}

impl RoleConfig {
    /// Free ports on loopback, no drain delay, open API, no admin listener: a role inside another process or a test.
    pub fn in_process() -> Self {
        Self {
            listen: loopback(0),
            admin_listen: None,
            drain_delay: Duration::ZERO,
            drain_timeout: DEFAULT_DRAIN_TIMEOUT,
            unary_deadline: DEFAULT_UNARY_DEADLINE,
            stream_deadline: DEFAULT_STREAM_DEADLINE,
            stuck_after: DEFAULT_STUCK_AFTER,
            tokens_file: None,
            audit_log: None,
        }
    }
}

/// Reads a time such as `250ms`, `5s`, `10m`, `1h`; a bare number means seconds.
///
/// # Errors
/// A line for a person where it is none of these.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let count: u64 = digits
        .parse()
        .map_err(|_| format!("`{text}` is not a time; write a whole number and ms, s, m or h, as in 30s"))?;
    let milliseconds = match &text[digits.len()..] {
        "ms" => Some(1),
        "" | "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    milliseconds
        .and_then(|unit: u64| count.checked_mul(unit))
        .map(Duration::from_millis)
        .ok_or_else(|| format!("`{text}` is not a time; write a whole number and ms, s, m or h, as in 30s"))
}

/// As [`parse_duration`], without zero.
fn parse_limit(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err(format!("`{text}` leaves no time; write at least 1ms")),
        limit => Ok(limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_unit() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
    }

    #[test]
    fn what_is_not_a_time_is_refused() {
        for text in
            ["", "s", "-1s", "5 s", "1.5s", "5d", "99999999999999999999s", "18446744073709551615h", "5é"]
        {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_limit_of_no_time_is_refused() {
        assert!(parse_limit("0s").is_err());
        assert_eq!(parse_limit("1ms"), Ok(Duration::from_millis(1)));
    }

    #[test]
    fn a_role_is_found_by_its_name() {
        for role in Role::ALL {
            assert_eq!(Role::named(role.name()), Some(role));
        }
        assert_eq!(Role::named("Gallery"), None);
    }

    #[test]
    fn every_role_has_ports_of_its_own() {
        let mut ports: Vec<u16> = Role::ALL
            .iter()
            .flat_map(|role| [role.default_listen().port(), role.default_admin_listen().port()])
            .collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 8);
    }
}
