use std::time::Duration;

use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use tokio::time::timeout;

use crate::session::{Session, SessionError};

/// Largest message from etcd: a page of the largest values that it stores by default, 1.5 MiB each, and some more.
pub(crate) const MAX_MESSAGE: usize = 128 << 20;

/// What happens to a range of keys, as one session tells it. Whoever watches reads the keys anew in every session, so that
/// nothing that happened in between, a compaction included, can be missed.
#[derive(Debug)]
pub struct Watching<'a> {
    session: &'a Session,
    what: &'static str,
    stream: WatchStream,
    silence: Duration,
}

impl<'a> Watching<'a> {
    /// Begins to watch the keys from `first` up to `end`, which is not among them, from a revision on, 0 for the present. A
    /// stream that is silent for `silence` is asked for a sign of life. `what` says in errors what it is for.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn begin(
        session: &'a Session,
        what: &'static str,
        (first, end): (&str, Vec<u8>),
        revision: i64,
        silence: Duration,
    ) -> Result<Self, SessionError> {
        let mut client = session.client.watch_client().max_decoding_message_size(MAX_MESSAGE);
        let options = WatchOptions::new()
            .with_range(end)
            .with_start_revision(revision)
            .with_progress_notify()
            .with_fragment();
        let stream = session.answer(what, client.watch(first, Some(options))).await?;
        Ok(Self { session, what, stream, silence })
    }

    /// The next response: the watch has been created, events, or a sign of life.
    ///
    /// # Errors
    /// [`SessionError`] where the stream has ended, is dead, or was cancelled, as for a compaction.
    pub async fn next(&mut self) -> Result<WatchResponse, SessionError> {
        let Self { session, what, stream, silence } = self;
        let message = match timeout(*silence, stream.message()).await {
            Ok(message) => message.map_err(|error| session.error(what, &error.to_string()))?,
            Err(_) => {
                session.answer(what, stream.request_progress()).await?;
                session.answer(what, stream.message()).await?
            }
        };
        let response = message.ok_or_else(|| session.error(what, "etcd ended the watch"))?;
        if !response.canceled() {
            return Ok(response);
        }
        Err(match response.compact_revision() {
            0 => session.error(what, response.cancel_reason()),
            revision => session.error(what, &format!("the history up to revision {revision} was compacted")),
        })
    }
}
