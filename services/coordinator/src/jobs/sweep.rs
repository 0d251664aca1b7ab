//! Deleting what nobody will ask for.

use std::time::Duration;

use thicket_jobstore::StoreError;
use thicket_runtime::{Fault, MAX_DEADLINE};

use super::Jobs;
use super::fault::of_store;
use super::record::Body;

/// How often it is looked for.
pub(super) const EVERY: Duration = Duration::from_secs(3_600);
/// A folder that was written to so recently may be that of a job whose queries are still arriving: no call takes longer than
/// [`MAX_DEADLINE`], and clocks may differ.
const LEFT_AFTER: Duration = MAX_DEADLINE.saturating_add(Duration::from_secs(3_600));
/// What was found before an image was forgotten has been written by then.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(7 * 24 * 3_600);

impl Jobs {
    /// Deletes the objects of jobs that did not come about, as where a coordinator was lost while it took in their queries,
    /// and notes that have done their work.
    pub(super) async fn sweep(&self) {
        let swept = async {
            for folder in self.objects.untouched(LEFT_AFTER).await? {
                if self.is_left(&folder).await? {
                    tracing::info!(folder, "deleting objects of a job that did not come about");
                    self.objects.remove(&folder).await?;
                }
            }
            self.objects.sweep_notes(FORGOTTEN_AFTER).await
        };
        if let Err(fault) = swept.await {
            tracing::warn!(%fault, "objects that no job refers to are not swept, it is tried again in an hour");
        }
    }

    /// Whether no job refers to a folder.
    async fn is_left(&self, folder: &str) -> Result<bool, Fault> {
        // A folder that nobody can tell whose it is stays.
        let Some(job) = self.objects.owner(folder).await? else { return Ok(false) };
        match self.store.job(&job).await {
            // Another job of the same id has a folder of its own.
            Ok(stored) => Ok(Body::of(&stored).is_ok_and(|body| body.folder != folder)),
            Err(StoreError::NotFound { .. }) => Ok(true),
            // Its record may be mended.
            Err(StoreError::Damaged { .. }) => Ok(false),
            Err(error) => Err(of_store(error)),
        }
    }
}
