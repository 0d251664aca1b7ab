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
    /// The log has said that the link is down.
    was_down: bool,
}

impl Connectivity {
    pub(crate) fn new(part: &'static str, borne: usize) -> (Self, watch::Receiver<Link>) {
        let (link, receiver) = watch::channel(Link::Down { reason: "not connected yet".to_owned() });
        let connectivity = Self { part, link, borne, failures: 0, was_down: false };
        connectivity.record(false);
        (connectivity, receiver)
    }

    pub(crate) fn up(&mut self, endpoint: &str) {
        self.failures = 0;
        let now = Link::Up { endpoint: endpoint.to_owned() };
        let was_up = self.link.borrow().is_up();
        self.link.send_if_modified(|link| std::mem::replace(link, now.clone()) != now);
        if !was_up {
            // A static list is there from the start; that its names are resolved again is worth a line.
            if !endpoint.is_empty() {
                tracing::info!(part = self.part, endpoint, "discovery is connected");
            } else if self.was_down {
                tracing::info!(part = self.part, "the names of the list are resolved again");
            }
            self.was_down = false;
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
            self.was_down = true;
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

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

    /// Counts the lines of a log.
    struct Lines(Arc<AtomicUsize>);

    impl tracing::Subscriber for Lines {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() <= tracing::Level::INFO
        }

        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }

        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn enter(&self, _: &tracing::span::Id) {}

        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[test]
    fn each_change_is_one_line_of_the_log_however_often_it_is_confirmed() {
        let lines = Arc::new(AtomicUsize::new(0));
        tracing::subscriber::with_default(Lines(lines.clone()), || {
            let (mut connectivity, _link) = Connectivity::new("members", 1);
            let logged = || lines.load(Ordering::Relaxed);
            for count in [2, 4, 6] {
                for _ in 0..5 {
                    connectivity.failed("refused");
                }
                assert_eq!(logged(), count - 1);
                for _ in 0..5 {
                    connectivity.up("a");
                }
                assert_eq!(logged(), count);
            }
        });
    }

    #[test]
    fn the_link_is_down_once_its_thread_is_gone() {
        let (mut connectivity, link) = Connectivity::new("members", 1);
        connectivity.up("a");
        drop(connectivity);
        assert!(!link.borrow().is_up());
    }
}
