//! The one place where the gallery's errors become faults of the runtime, hence gRPC statuses.

use std::time::Duration;

use thicket_imaging::ImagingError;
use thicket_runtime::Fault;

use crate::error::{GalleryError, count_storage_fault};

/// Pause that a full queue asks for.
const QUEUE_PAUSE: Duration = Duration::from_millis(100);
/// Pause that is asked for while another program that keeps the collections or the images is away.
const BACKEND_PAUSE: Duration = Duration::from_secs(1);

/// Pause before a replica that is behind is asked again.
const BEHIND_PAUSE: Duration = Duration::from_millis(250);

impl From<GalleryError> for Fault {
    fn from(error: GalleryError) -> Self {
        let message = error.to_string();
        match error {
            GalleryError::Invalid { field, reason, message } => Self::invalid(field, reason, message),
            GalleryError::UnknownCollection { name } => Self::not_found("collection", name),
            GalleryError::UnknownItem { id, .. } => Self::not_found("item", id),
            GalleryError::UnknownImage { image, .. } => Self::not_found("image", image),
            GalleryError::CollectionExists { name } => Self::already_exists("collection", name),
            GalleryError::ModelMismatch { .. } => Self::failed_precondition("MODEL_MISMATCH", message),
            GalleryError::DiskFull { .. } => {
                Self::Exhausted { reason: "DISK_FULL".into(), message, retry_after: None }
            }
            GalleryError::QueueFull { .. } => Self::exhausted("QUEUE_FULL", message, QUEUE_PAUSE),
            GalleryError::AnswerTooLarge { .. } => Self::out_of_range("top", "ANSWER_TOO_LARGE", message),
            GalleryError::DataLoss { .. } => {
                tracing::error!(error = message, "stored data is lost");
                count_storage_fault("image_lost");
                Self::DataLoss { message }
            }
            GalleryError::Unavailable { .. } => {
                Self::unavailable("BACKEND_UNAVAILABLE", message, BACKEND_PAUSE)
            }
            GalleryError::Busy { .. } => Self::exhausted("BACKEND_BUSY", message, BACKEND_PAUSE),
            GalleryError::TimedOut => Self::DeadlineExceeded,
            GalleryError::ReadReplica { .. } => Self::failed_precondition("READ_REPLICA", message),
            GalleryError::OtherFormat { .. } => Self::failed_precondition("STORE_FORMAT", message),
            GalleryError::Behind { .. } => Self::unavailable("REPLICA_BEHIND", message, BEHIND_PAUSE),
            GalleryError::StoreReopened => Self::unavailable("STORE_REOPENED", message, QUEUE_PAUSE),
            GalleryError::Stopping => Self::unavailable("DRAINING", message, Duration::ZERO),
            GalleryError::Internal { .. } => Self::internal(message),
        }
    }
}

/// Refuses an image with a reason that callers can tell apart.
pub(crate) fn bad_image(error: &ImagingError) -> GalleryError {
    let reason = match error {
        ImagingError::Empty => "IMAGE_EMPTY",
        ImagingError::EncodedSize { .. }
        | ImagingError::Dimensions { .. }
        | ImagingError::DecodedSize { .. } => "IMAGE_TOO_LARGE",
        ImagingError::Format { .. } => "IMAGE_FORMAT_UNKNOWN",
        ImagingError::Animated { .. } => "IMAGE_ANIMATED",
        ImagingError::ZeroArea { .. } => "IMAGE_WITHOUT_AREA",
        _ => "IMAGE_UNDECODABLE",
    };
    GalleryError::invalid("image", reason, error.to_string())
}
