use opentelemetry::KeyValue;
use thicket_telemetry::{instruments, names};
use tokio::sync::watch;

/// Whether discovery is in touch with its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// It is.
    Up {
        /// The endpoint of etcd in use; empty for a static list.
        endpoint: String,
    },
    /// It is not: what is known is the last that was known.
    Down {
        /// Why, in one line.
        reason: String,
    },
}

impl Link {
    /// Whether this is [`Link::Up`].
    pub fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }
}

/// Publishes a [`Link`]: in a channel, in the gauge, and with one log line at each change.
///
/// A failure alone is no change: with several endpoints the others are tried first.
#[derive(Debug)]
pub(crate) struct Connectivity {
    part: &'static str,
    link: watch::Sender<Link>,
    /// Failures in a row that are borne before the link is down.
    borne: usize,
    failures: usize,
}

impl Connectivity {
    pub(crate) fn new(part: &'static str, borne: usize) -> (Self, watch::Receiver<Link>) {
        let (link, receiver) = watch::channel(Link::Down { reason: "not connected yet".to_owned() });
        let connectivity = Self { part, link, borne, failures: 0 };
        connectivity.record(false);
        (connectivity, receiver)
    }

    pub(crate) fn up(&mut self, endpoint: &str) {
        self.failures = 0;
        let now = Link::Up { endpoint: endpoint.to_owned() };
        let was_up = self.link.borrow().is_up();
        self.link.send_if_modified(|link| std::mem::replace(link, now.clone()) != now);
        if !was_up {
            tracing::info!(part = self.part, endpoint, "discovery is connected");
            self.record(true);
        }
    }

    pub(crate) fn failed(&mut self, reason: &str) {
        self.failures += 1;
        let first = self.failures == self.borne + 1;
        if first {
            tracing::warn!(
                part = self.part,
                reason,
                "discovery is not connected, going on with what was known last"
            );
            self.record(false);
        } else {
            tracing::debug!(part = self.part, reason, failures = self.failures, "discovery failed");
        }
        if self.failures > self.borne {
            let now = Link::Down { reason: reason.to_owned() };
            self.link.send_if_modified(|link| std::mem::replace(link, now.clone()) != now);
        }
    }

    fn record(&self, up: bool) {
        instruments().discovery_connected.record(up.into(), &[KeyValue::new(names::PART, self.part)]);
    }
}

impl Drop for Connectivity {
    fn drop(&mut self) {
        self.record(false);
        self.link.send_replace(Link::Down { reason: "discovery has stopped".to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_of_each_endpoint_is_borne() {
        let (mut connectivity, link) = Connectivity::new("members", 3);
        connectivity.up("a");
        for _ in 0..3 {
            connectivity.failed("refused");
            assert!(link.borrow().is_up());
        }
        connectivity.failed("refused");
        assert_eq!(*link.borrow(), Link::Down { reason: "refused".to_owned() });
        connectivity.up("b");
        assert_eq!(*link.borrow(), Link::Up { endpoint: "b".to_owned() });
    }

    #[test]
    fn the_link_is_down_once_its_thread_is_gone() {
        let (mut connectivity, link) = Connectivity::new("members", 1);
        connectivity.up("a");
        drop(connectivity);
        assert!(!link.borrow().is_up());
    }
}
