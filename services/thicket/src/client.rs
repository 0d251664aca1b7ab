//! Calling a running cluster.

use thicket_proto::v1::answer_service_client::AnswerServiceClient;
use thicket_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use thicket_proto::v1::gallery_service_client::GalleryServiceClient;
use thicket_proto::v1::job_service_client::JobServiceClient;
use thicket_runtime::{MAX_MESSAGE_BYTES, Peer};
use tonic::{Code, Status};

use crate::Failure;

/// Collection that is meant where none is named.
pub(crate) const DEFAULT_COLLECTION: &str = "default";

/// Calls to the coordinator.
pub(crate) type Coordinator = CoordinatorServiceClient<Peer>;
/// Calls to the gallery.
pub(crate) type Gallery = GalleryServiceClient<Peer>;

/// Calls to the answer service.
pub(crate) type Answer = AnswerServiceClient<Peer>;

/// Calls about jobs to the coordinator.
pub(crate) type Jobs = JobServiceClient<Peer>;

/// A client of the coordinator at `url`; connects when first used.
///
/// # Errors
/// [`Failure::BadInput`] for a malformed address or token.
pub(crate) fn coordinator(url: &str, token: Option<&str>) -> Result<Coordinator, Failure> {
    Ok(CoordinatorServiceClient::new(peer(url, token)?)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

/// A client of the coordinator's jobs at `url`; connects when first used.
///
/// # Errors
/// [`Failure::BadInput`] for a malformed address or token.
pub(crate) fn jobs(url: &str, token: Option<&str>) -> Result<Jobs, Failure> {
    Ok(JobServiceClient::new(peer(url, token)?)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

/// A client of the gallery at `url`; connects when first used.
///
/// # Errors
/// [`Failure::BadInput`] for a malformed address or token.
pub(crate) fn gallery(url: &str, token: Option<&str>) -> Result<Gallery, Failure> {
    Ok(GalleryServiceClient::new(peer(url, token)?)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

/// A client of the answer service at `url`; connects when first used.
///
/// # Errors
/// [`Failure::BadInput`] for a malformed address or token.
pub(crate) fn answer(url: &str, token: Option<&str>) -> Result<Answer, Failure> {
    Ok(AnswerServiceClient::new(peer(url, token)?)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

fn peer(url: &str, token: Option<&str>) -> Result<Peer, Failure> {
    Peer::lazy(url, token).map_err(Failure::bad_input)
}

/// What a refused or failed call means for the exit status, in one line.
pub(crate) fn failure(status: &Status) -> Failure {
    let message = match status.message() {
        "" => format!("{:?}", status.code()),
        message => message.to_owned(),
    };
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unauthenticated
        | Code::PermissionDenied => Failure::bad_input(message),
        Code::Unavailable => {
            Failure::failed(format!("{message} (is the cluster running? `thicket up` starts one)"))
        }
        Code::Unimplemented => {
            Failure::bad_input(format!("{message} (is this the address of the right role?)"))
        }
        _ => Failure::failed(message),
    }
}

/// Text from elsewhere as it may go to a terminal: without control characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_caller_got_wrong_is_status_two_and_the_rest_is_one() {
        assert_eq!(failure(&Status::not_found("collection x")).exit_status(), 2);
        assert_eq!(failure(&Status::unauthenticated("no token")).exit_status(), 2);
        assert_eq!(failure(&Status::unavailable("draining")).exit_status(), 1);
        assert_eq!(failure(&Status::internal("")).to_string(), "Internal");
    }

    #[test]
    fn a_name_cannot_command_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb"), "a\u{fffd}[2Jb");
        assert_eq!(printable("שלום 🙂"), "שלום 🙂");
    }
}
