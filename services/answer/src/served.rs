//! The way to a model that another program serves.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use thicket_device::Load;
use thicket_engine::Answerer;
use thicket_openai::{OpenAiAnswerer, Server, ServerError};

/// Pause before a server that is away is asked again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Connects as soon as the server is there, however long that takes, or until the other end of `ended` is gone. A server that
/// is there and refuses is an error at once.
pub(crate) fn load(name: String, server: Server, ended: Receiver<()>) -> Load<dyn Answerer> {
    Box::new(move || {
        let mut pause = FIRST_PAUSE;
        let mut was_away = false;
        loop {
            let error = match OpenAiAnswerer::connect(name.clone(), server.clone()) {
                Ok(answerer) => {
                    if was_away {
                        tracing::info!("the server of the answer model is there");
                    }
                    return Ok(Box::new(answerer) as Box<dyn Answerer>);
                }
                Err(error @ ServerError::Unavailable { .. }) => error,
                Err(error) => return Err(error.to_string()),
            };
            if !std::mem::replace(&mut was_away, true) {
                tracing::warn!(%error, "the server of the answer model is away: not serving until it is there");
            }
            match ended.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => pause = (2 * pause).min(LONGEST_PAUSE),
                Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                    return Err("the role ended before the server was there".to_owned());
                }
            }
        }
    })
}
