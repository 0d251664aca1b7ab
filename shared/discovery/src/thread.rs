use std::sync::mpsc;

use tokio::sync::oneshot;

use crate::DiscoveryError;

/// Work on a thread and a current-thread runtime of its own. It ends at once, wherever it is, when this is dropped.
#[derive(Debug)]
pub struct Thread {
    _stop: oneshot::Sender<()>,
}

impl Thread {
    /// Starts a thread that runs what `work` makes.
    ///
    /// # Errors
    /// [`DiscoveryError::Thread`] where the system gives none.
    pub fn start<F>(
        name: &'static str,
        work: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Self, DiscoveryError>
    where
        F: Future<Output = ()>,
    {
        let (stop, stopped) = oneshot::channel::<()>();
        let (begun, beginning) = mpsc::sync_channel(1);
        let body = move || {
            // Made here, because a runtime must not be dropped where the starter may be: inside another.
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = begun.send(Err(error));
                    return;
                }
            };
            let _ = begun.send(Ok(()));
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = work() => {}
                }
            });
            // A look-up of a name that hangs in the system's resolver must not hold the thread.
            runtime.shutdown_background();
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(body).map_err(DiscoveryError::Thread)?;
        match beginning.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(DiscoveryError::Thread(error)),
            Err(_) => return Err(DiscoveryError::Stopped),
        }
        Ok(Self { _stop: stop })
    }
}
