use std::borrow::Cow;
use std::fmt::Display;
use std::time::Duration;

use thicket_engine::EngineError;
use thicket_proto::v1::ItemError;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// When to ask again where another program that does the work is away.
const BACKEND_PAUSE: Duration = Duration::from_secs(1);

/// The `domain` of every `ErrorInfo` we send.
pub const ERROR_DOMAIN: &str = "thicket";
/// Trailer that tells a gRPC client when to retry, in milliseconds.
pub const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// The reason of a [`Fault`]: upper snake case, stable across versions.
pub type Reason = Cow<'static, str>;

/// Everything that a call can fail with. The one place where failures become gRPC statuses, and back.
///
/// Every status carries `ErrorInfo` with the reason; bad input its field in `BadRequest`, a missing thing
/// `ResourceInfo`, a refusal worth retrying `RetryInfo` and the [`PUSHBACK`] trailer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Fault {
    /// Malformed input: INVALID_ARGUMENT.
    #[error("{field}: {message}")]
    InvalidInput {
        /// Path of the field in the request (`texts[3]`).
        field: Cow<'static, str>,
        /// Why (`TEXT_EMPTY`).
        reason: Reason,
        /// One line with the limit and the actual value.
        message: String,
    },
    /// Well-formed input beyond a limit: OUT_OF_RANGE.
    #[error("{field}: {message}")]
    OutOfRange {
        /// Path of the field in the request.
        field: Cow<'static, str>,
        /// Why (`TOO_MANY_TEXTS`).
        reason: Reason,
        /// One line with the limit and the actual value.
        message: String,
    },
    /// The named thing does not exist: NOT_FOUND, reason `<KIND>_NOT_FOUND`.
    #[error("{kind} `{name}` does not exist")]
    NotFound {
        /// What kind of thing, in lower case (`collection`).
        kind: Cow<'static, str>,
        /// Its name.
        name: String,
    },
    /// The named thing exists: ALREADY_EXISTS, reason `<KIND>_EXISTS`.
    #[error("{kind} `{name}` exists already")]
    AlreadyExists {
        /// What kind of thing, in lower case.
        kind: Cow<'static, str>,
        /// Its name.
        name: String,
    },
    /// The system is not in a state to do this: FAILED_PRECONDITION.
    #[error("{message}")]
    FailedPrecondition {
        /// Why (`MODEL_MISMATCH`).
        reason: Reason,
        /// One line for a person.
        message: String,
    },
    /// A queue or a quota is full; try again after the pause: RESOURCE_EXHAUSTED.
    #[error("{message}")]
    Exhausted {
        /// What is full (`QUEUE_FULL`).
        reason: Reason,
        /// One line with the limit.
        message: String,
        /// How long to wait, to the millisecond; `None` where waiting does not help.
        retry_after: Option<Duration>,
    },
    /// Starting, draining or lost; another replica may answer at once: UNAVAILABLE.
    #[error("{message}")]
    Unavailable {
        /// Why (`DRAINING`).
        reason: Reason,
        /// One line for a person.
        message: String,
        /// How long to wait, to the millisecond.
        retry_after: Duration,
    },
    /// The time budget is spent: DEADLINE_EXCEEDED.
    #[error("the deadline has passed")]
    DeadlineExceeded,
    /// The caller went away: CANCELLED.
    #[error("the call was cancelled")]
    Cancelled,
    /// No valid token: UNAUTHENTICATED.
    #[error("{message}")]
    Unauthenticated {
        /// One line for a person.
        message: String,
    },
    /// The token lacks the right: PERMISSION_DENIED.
    #[error("{message}")]
    PermissionDenied {
        /// One line with the right that is missing.
        message: String,
    },
    /// A bug, a device fault, a NaN: INTERNAL. The cause is in the log under the id, not in the answer.
    #[error("internal error {id}")]
    Internal {
        /// Id of the log line.
        id: String,
    },
    /// What was stored is damaged: DATA_LOSS.
    #[error("{message}")]
    DataLoss {
        /// One line for a person.
        message: String,
    },
}

impl Fault {
    /// Malformed input.
    pub fn invalid(
        field: impl Into<Cow<'static, str>>,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self::InvalidInput { field: field.into(), reason: reason.into(), message: message.into() }
    }

    /// Input beyond a limit.
    pub fn out_of_range(
        field: impl Into<Cow<'static, str>>,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self::OutOfRange { field: field.into(), reason: reason.into(), message: message.into() }
    }

    /// A missing thing; `kind` in lower case.
    pub fn not_found(kind: &'static str, name: impl Into<String>) -> Self {
        Self::NotFound { kind: kind.into(), name: name.into() }
    }

    /// A thing that is there already; `kind` in lower case.
    pub fn already_exists(kind: &'static str, name: impl Into<String>) -> Self {
        Self::AlreadyExists { kind: kind.into(), name: name.into() }
    }

    /// A state in which this cannot be done.
    pub fn failed_precondition(reason: &'static str, message: impl Into<String>) -> Self {
        Self::FailedPrecondition { reason: reason.into(), message: message.into() }
    }

    /// A full queue.
    pub fn exhausted(reason: &'static str, message: impl Into<String>, retry_after: Duration) -> Self {
        Self::Exhausted { reason: reason.into(), message: message.into(), retry_after: Some(retry_after) }
    }

    /// A role that cannot answer now.
    pub fn unavailable(reason: &'static str, message: impl Into<String>, retry_after: Duration) -> Self {
        Self::Unavailable { reason: reason.into(), message: message.into(), retry_after }
    }

    /// A failure of our own: logs the cause under a new id, which is all that the caller sees.
    pub fn internal(cause: impl Display) -> Self {
        let id = uuid::Uuid::now_v7().simple().to_string();
        tracing::error!(id, %cause, "internal error");
        Self::Internal { id }
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        match self {
            Self::InvalidInput { .. } => Code::InvalidArgument,
            Self::OutOfRange { .. } => Code::OutOfRange,
            Self::NotFound { .. } => Code::NotFound,
            Self::AlreadyExists { .. } => Code::AlreadyExists,
            Self::FailedPrecondition { .. } => Code::FailedPrecondition,
            Self::Exhausted { .. } => Code::ResourceExhausted,
            Self::Unavailable { .. } => Code::Unavailable,
            Self::DeadlineExceeded => Code::DeadlineExceeded,
            Self::Cancelled => Code::Cancelled,
            Self::Unauthenticated { .. } => Code::Unauthenticated,
            Self::PermissionDenied { .. } => Code::PermissionDenied,
            Self::Internal { .. } => Code::Internal,
            Self::DataLoss { .. } => Code::DataLoss,
        }
    }

    /// The reason in `ErrorInfo`.
    pub fn reason(&self) -> Reason {
        match self {
            Self::InvalidInput { reason, .. }
            | Self::OutOfRange { reason, .. }
            | Self::FailedPrecondition { reason, .. }
            | Self::Exhausted { reason, .. }
            | Self::Unavailable { reason, .. } => reason.clone(),
            Self::NotFound { kind, .. } => format!("{}_NOT_FOUND", upper(kind)).into(),
            Self::AlreadyExists { kind, .. } => format!("{}_EXISTS", upper(kind)).into(),
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED".into(),
            Self::Cancelled => "CANCELLED".into(),
            Self::Unauthenticated { .. } => "UNAUTHENTICATED".into(),
            Self::PermissionDenied { .. } => "PERMISSION_DENIED".into(),
            Self::Internal { .. } => "INTERNAL".into(),
            Self::DataLoss { .. } => "DATA_LOSS".into(),
        }
    }

    /// The status with all its details.
    pub fn into_status(self) -> Status {
        let mut details = ErrorDetails::new();
        let mut facts = std::collections::HashMap::new();
        let mut pushback = None;
        match &self {
            Self::InvalidInput { field, message, .. } | Self::OutOfRange { field, message, .. } => {
                details.add_bad_request_violation(field.as_ref(), message);
            }
            Self::NotFound { kind, name } | Self::AlreadyExists { kind, name } => {
                details.set_resource_info(kind.as_ref(), name, "", self.to_string());
            }
            Self::Exhausted { retry_after, .. } => {
                details.set_retry_info(*retry_after);
                pushback = Some(*retry_after);
            }
            Self::Unavailable { retry_after, .. } => {
                details.set_retry_info(Some(*retry_after));
                pushback = Some(Some(*retry_after));
            }
            Self::Internal { id } => {
                facts.insert("log_id".to_owned(), id.clone());
            }
            _ => {}
        }
        details.set_error_info(self.reason(), ERROR_DOMAIN, facts);
        let mut metadata = MetadataMap::new();
        if let Some(pause) = pushback {
            let text = pause.map_or("-1".to_owned(), |pause| pause.as_millis().to_string());
            if let Ok(value) = text.parse() {
                metadata.insert(PUSHBACK, value);
            }
        }
        Status::with_error_details_and_metadata(self.code(), self.to_string(), details, metadata)
    }

    /// Reads a status as a client got it. A status without our details (from a proxy, or from the transport) becomes the
    /// fault of its code, with the code as its reason; a code outside our set becomes [`Fault::Internal`].
    pub fn from_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let message = status.message().to_owned();
        let reason: Reason = match details.error_info() {
            Some(info) if info.domain == ERROR_DOMAIN => info.reason.clone().into(),
            _ => thicket_telemetry::code_name(status.code()).into(),
        };
        let (field, violation) = details
            .bad_request()
            .and_then(|bad| bad.field_violations.first())
            .map(|violation| (violation.field.clone(), violation.description.clone()))
            .unwrap_or_else(|| (String::new(), message.clone()));
        let (kind, name) = details
            .resource_info()
            .map(|resource| (resource.resource_type.clone(), resource.resource_name.clone()))
            .unwrap_or_else(|| ("resource".to_owned(), message.clone()));
        let retry_after = details.retry_info().and_then(|retry| retry.retry_delay);
        match status.code() {
            Code::InvalidArgument => Self::InvalidInput { field: field.into(), reason, message: violation },
            Code::OutOfRange => Self::OutOfRange { field: field.into(), reason, message: violation },
            Code::NotFound => Self::NotFound { kind: kind.into(), name },
            Code::AlreadyExists => Self::AlreadyExists { kind: kind.into(), name },
            Code::FailedPrecondition => Self::FailedPrecondition { reason, message },
            Code::ResourceExhausted => Self::Exhausted { reason, message, retry_after },
            Code::Unavailable => {
                Self::Unavailable { reason, message, retry_after: retry_after.unwrap_or_default() }
            }
            Code::DeadlineExceeded => Self::DeadlineExceeded,
            Code::Cancelled => Self::Cancelled,
            Code::Unauthenticated => Self::Unauthenticated { message },
            Code::PermissionDenied => Self::PermissionDenied { message },
            Code::DataLoss => Self::DataLoss { message },
            _ => match details.error_info().and_then(|info| info.metadata.get("log_id")) {
                Some(id) => Self::Internal { id: id.clone() },
                None => Self::internal(format_args!("{}: {message}", status.code())),
            },
        }
    }

    /// The fault of one item of a batch or a stream.
    pub fn to_item_error(&self) -> ItemError {
        ItemError { code: self.code() as i32, reason: self.reason().into_owned(), message: self.to_string() }
    }
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        fault.into_status()
    }
}

impl From<EngineError> for Fault {
    /// Bad input keeps its field and reason; anything else is logged.
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::InvalidInput { field, reason } => {
                Self::InvalidInput { field: field.into(), reason: "INVALID_INPUT".into(), message: reason }
            }
            EngineError::Internal { .. } => Self::internal(error),
            EngineError::Unavailable { .. } => {
                Self::unavailable("BACKEND_UNAVAILABLE", error.to_string(), BACKEND_PAUSE)
            }
        }
    }
}

fn upper(kind: &str) -> String {
    kind.replace([' ', '-'], "_").to_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_each() -> Vec<Fault> {
        let pause = Duration::from_millis(1500);
        vec![
            Fault::invalid("texts[3]", "TEXT_EMPTY", "1 word or more, got 0"),
            Fault::out_of_range("texts", "TOO_MANY_TEXTS", "at most 256, got 300"),
            Fault::not_found("collection", "lobby"),
            Fault::already_exists("collection", "lobby"),
            Fault::failed_precondition("MODEL_MISMATCH", "vectors of another model"),
            Fault::exhausted("QUEUE_FULL", "queue holds 8 of 8 requests", pause),
            Fault::Exhausted {
                reason: "DISK_FULL".into(),
                message: "disk is full".into(),
                retry_after: None,
            },
            Fault::unavailable("DRAINING", "this replica is stopping", Duration::ZERO),
            Fault::DeadlineExceeded,
            Fault::Cancelled,
            Fault::Unauthenticated { message: "no bearer token".into() },
            Fault::PermissionDenied { message: "needs `write` on `lobby`".into() },
            Fault::Internal { id: "0af1".into() },
            Fault::DataLoss { message: "segment 3 is damaged".into() },
        ]
    }

    #[test]
    fn every_fault_survives_the_wire() {
        for fault in one_of_each() {
            let response = fault.clone().into_status().into_http::<()>();
            let status = Status::from_header_map(response.headers()).expect("a status");
            assert_eq!(Fault::from_status(&status), fault);
            let info = status.get_details_error_info().expect("every status has an ErrorInfo");
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (&*fault.reason(), ERROR_DOMAIN));
        }
    }

    #[test]
    fn a_missing_collection_names_its_reason_and_resource() {
        let status = Fault::not_found("collection", "lobby").into_status();
        assert_eq!(status.get_details_error_info().expect("info").reason, "COLLECTION_NOT_FOUND");
        assert_eq!(status.get_details_resource_info().expect("resource").resource_name, "lobby");
    }

    #[test]
    fn a_full_queue_says_when_to_come_back_and_a_full_disk_says_never() {
        let busy = Fault::exhausted("QUEUE_FULL", "full", Duration::from_millis(1500)).into_status();
        assert_eq!(busy.metadata().get(PUSHBACK).expect("pushback"), "1500");
        let full = Fault::Exhausted { reason: "DISK_FULL".into(), message: "full".into(), retry_after: None };
        assert_eq!(full.into_status().metadata().get(PUSHBACK).expect("pushback"), "-1");
    }

    #[test]
    fn a_status_of_someone_else_becomes_the_fault_of_its_code() {
        let fault = Fault::from_status(&Status::unavailable("connection refused"));
        assert_eq!(
            fault,
            Fault::Unavailable {
                reason: "UNAVAILABLE".into(),
                message: "connection refused".into(),
                retry_after: Duration::ZERO
            }
        );
    }

    #[test]
    fn an_item_error_carries_code_reason_and_message() {
        let item =
            Fault::invalid("image", "IMAGE_TOO_LARGE", "at most 4096 pixels wide, got 20000").to_item_error();
        assert_eq!((item.code, item.reason.as_str()), (3, "IMAGE_TOO_LARGE"));
        assert_eq!(item.message, "image: at most 4096 pixels wide, got 20000");
    }
}
