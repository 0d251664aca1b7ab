use tokio::signal::unix::{SignalKind, signal};

/// Waits for SIGINT or SIGTERM and tells the exit status that stands for it: 130 or 143. For ever where the handlers
/// cannot be installed; the signals then end the process by themselves.
pub(crate) async fn signalled() -> u8 {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => 130,
        _ = terminate.recv() => 143,
    }
}
