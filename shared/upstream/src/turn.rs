use tokio::sync::watch;

/// Lets a call that is made ahead of its turn know that somebody waits for its answer now. Clones are of one turn.
#[derive(Debug, Clone)]
pub struct Turn(watch::Sender<bool>);

impl Default for Turn {
    /// One that has not come.
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Turn {
    /// It is the call's turn, from here on.
    pub fn come(&self) {
        self.0.send_replace(true);
    }

    /// Whether it is the call's turn.
    pub fn has_come(&self) -> bool {
        *self.0.borrow()
    }

    pub(crate) async fn arrives(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.subscribe().wait_for(|has_come| *has_come).await;
    }
}
