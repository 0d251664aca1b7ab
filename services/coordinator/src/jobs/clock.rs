use std::time::{SystemTime, UNIX_EPOCH};

/// Now, milliseconds since 1970-01-01 UTC. Deadlines of jobs are told by every coordinator's own clock.
pub(super) fn now_unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
