use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use parking_lot::Mutex;
use tonic::Request;

use crate::Fault;
use crate::auth::{Caller, Right};
use crate::role::DEFAULT_UNARY_DEADLINE;

/// Longest deadline that is honoured; a longer one is cut to it.
pub const MAX_DEADLINE: Duration = Duration::from_secs(24 * 3600);
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// The moment at which a call's time budget is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// A deadline `budget` from now, at most [`MAX_DEADLINE`].
    pub fn after(budget: Duration) -> Self {
        Self(Instant::now() + budget.min(MAX_DEADLINE))
    }

    /// What is left; `None` when it has passed.
    pub fn remaining(self) -> Option<Duration> {
        self.0.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// The moment itself.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// Waits until it has passed.
    pub async fn passed(self) {
        tokio::time::sleep_until(self.0.into()).await;
    }

    /// Reads `grpc-timeout`; without a valid one the budget is `default`.
    pub(crate) fn from_headers(headers: &HeaderMap, default: Duration) -> Self {
        let asked = headers.get(GRPC_TIMEOUT).and_then(|value| value.to_str().ok()).and_then(parse_timeout);
        Self::after(asked.unwrap_or(default))
    }
}

/// Reads the wire form of a timeout: at most 8 digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(count * 3600),
        'M' => Duration::from_secs(count * 60),
        'S' => Duration::from_secs(count),
        'm' => Duration::from_millis(count),
        'u' => Duration::from_micros(count),
        'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// What a handler required of its caller, for the audit log.
#[derive(Debug, Clone, Default)]
pub(crate) struct Required {
    pub(crate) right: Option<Right>,
    pub(crate) collection: Option<String>,
}

/// The call that a handler serves: who calls, until when. Every handler starts with
/// `Call::of(&request).require(right, collection)?`.
#[derive(Debug, Clone)]
pub struct Call {
    caller: Arc<Caller>,
    deadline: Deadline,
    required: Arc<Mutex<Required>>,
}

impl Call {
    pub(crate) fn new(caller: Arc<Caller>, deadline: Deadline) -> Self {
        Self { caller, deadline, required: Arc::default() }
    }

    /// The call of a request. A request that did not come through [`crate::Server`] has no rights at all.
    pub fn of<T>(request: &Request<T>) -> Self {
        request
            .extensions()
            .get::<Self>()
            .cloned()
            .unwrap_or_else(|| Self::new(Arc::new(Caller::nobody()), Deadline::after(DEFAULT_UNARY_DEADLINE)))
    }

    /// Who calls.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Until when an answer is wanted.
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Demands a right, on a collection where one is named, and notes both for the audit log.
    ///
    /// # Errors
    /// [`Fault::PermissionDenied`].
    pub fn require(&self, right: Right, collection: Option<&str>) -> Result<(), Fault> {
        *self.required.lock() = Required { right: Some(right), collection: collection.map(str::to_owned) };
        if self.caller.may(right, collection) {
            return Ok(());
        }
        let place = collection.map(|name| format!(" on collection `{name}`")).unwrap_or_default();
        Err(Fault::PermissionDenied { message: format!("this needs the right to {right}{place}") })
    }

    /// A request to a peer on behalf of this call: it inherits what is left of the time budget.
    pub fn request<T>(&self, message: T) -> Request<T> {
        request_by(message, self.deadline)
    }

    pub(crate) fn required(&self) -> Required {
        self.required.lock().clone()
    }
}

/// A request to a peer that must be answered by `deadline`.
pub fn request_by<T>(message: T, deadline: Deadline) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline.remaining().unwrap_or(Duration::from_nanos(1)));
    request.extensions_mut().insert(deadline);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_wire_spells_them() {
        assert_eq!(parse_timeout("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parse_timeout("3M"), Some(Duration::from_secs(180)));
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("7u"), Some(Duration::from_micros(7)));
        for text in ["", "S", "5", "5x", "123456789S", "-1S", "+1S", "1 S", "1é"] {
            assert_eq!(parse_timeout(text), None, "{text}");
        }
    }

    #[test]
    fn an_absurd_timeout_is_cut() {
        let mut headers = HeaderMap::new();
        headers.insert(GRPC_TIMEOUT, "99999999H".parse().expect("a header"));
        let deadline = Deadline::from_headers(&headers, Duration::from_secs(1));
        assert!(deadline.remaining().expect("in the future") <= MAX_DEADLINE);
    }

    #[test]
    fn a_call_that_bypassed_the_server_may_do_nothing() {
        let call = Call::of(&Request::new(()));
        assert!(matches!(call.require(Right::Read, None), Err(Fault::PermissionDenied { .. })));
    }
}
