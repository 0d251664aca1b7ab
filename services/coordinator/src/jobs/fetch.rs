//! Results of jobs, as streams.

use std::sync::Arc;

use thicket_jobs::{Place, State, Unit};
use thicket_jobstore::Stored;
use thicket_proto::v1::{FetchJobFileResponse, FetchJobResultsResponse};
use thicket_runtime::Fault;
use tokio_stream::StreamExt;

use super::clock::now_unix_ms;
use super::fault::of_objects;
use super::record::Body;
use super::{Jobs, rows};
use crate::driven::Outlet;

/// Largest piece of a file in one message, in bytes.
const PIECE: usize = 1 << 20;

/// Refuses what is asked of a job that is not done.
pub(super) fn must_be_done(stored: &Stored) -> Result<(), Fault> {
    if stored.job.finished().is_some() {
        return Ok(());
    }
    let state: State = stored.job.state(now_unix_ms());
    let message = format!("job `{}` is {}, not done", stored.id, state.name());
    Err(Fault::failed_precondition("JOB_UNFINISHED", message))
}

impl Jobs {
    /// Sends the results of every part that is done, in order.
    pub(super) async fn send_results(
        self: Arc<Self>,
        stored: Stored,
        outlet: Outlet<FetchJobResultsResponse>,
    ) -> Result<(), Fault> {
        let folder = Body::of(&stored)?.folder;
        for part in 0..stored.job.plan().parts() {
            if !matches!(stored.job.place(Unit::Part(part)), Place::Done(_)) {
                continue;
            }
            let rows = self.objects.results(&folder, part).await?.ok_or_else(|| Fault::DataLoss {
                message: format!("the results of part {part} of job `{}` are missing", stored.id),
            })?;
            for row in rows {
                outlet.send(rows::response(row)).await?;
            }
        }
        Ok(())
    }

    /// Sends the file of all results.
    pub(super) async fn send_file(
        self: Arc<Self>,
        stored: Stored,
        outlet: Outlet<FetchJobFileResponse>,
    ) -> Result<(), Fault> {
        let folder = Body::of(&stored)?.folder;
        let mut pieces = self.objects.file(&folder).await?;
        while let Some(piece) = pieces.next().await {
            let mut piece = piece.map_err(of_objects)?;
            while !piece.is_empty() {
                let data = piece.split_to(piece.len().min(PIECE));
                outlet.send(FetchJobFileResponse { data }).await?;
            }
        }
        Ok(())
    }
}
