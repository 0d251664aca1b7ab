use std::time::{Duration, Instant};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Response};

use crate::client::MAX_MESSAGE_BYTES;
use crate::error::MilvusError;
use crate::proto;
use crate::proto::milvus_service_client::MilvusServiceClient;

/// Attempts at a call that may be made again.
const ATTEMPTS: u32 = 3;
/// Pause before the second attempt; it doubles, and a fifth of it is left to chance.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Whether a call may be made again when nobody knows what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It only reads, or doing it twice is doing it once.
    May,
    /// Twice is not once.
    MayNot,
}

/// An answer that says how it went.
pub(crate) trait Answer {
    fn status(&self) -> Option<&proto::Status>;
}

impl Answer for proto::Status {
    fn status(&self) -> Option<&proto::Status> {
        Some(self)
    }
}

macro_rules! answers {
    ($($answer:ident),+ $(,)?) => {
        $(impl Answer for proto::$answer {
            fn status(&self) -> Option<&proto::Status> {
                self.status.as_ref()
            }
        })+
    };
}

answers!(
    DescribeCollectionResponse,
    ShowCollectionsResponse,
    GetLoadStateResponse,
    MutationResult,
    SearchResults,
    QueryResults,
    FlushResponse,
    ManualCompactionResponse,
    GetCompactionStateResponse,
);

/// The way to one Milvus.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) channel: Channel,
    pub(crate) token: Option<MetadataValue<Ascii>>,
}

impl Line {
    /// Makes a call, again where it may be and Milvus is not available.
    pub(crate) async fn call<Q, R, F>(
        &self,
        operation: &'static str,
        collection: &str,
        repeat: Repeat,
        until: Instant,
        message: Q,
        send: impl Fn(MilvusServiceClient<Channel>, Request<Q>) -> F,
    ) -> Result<R, MilvusError>
    where
        Q: Clone,
        R: Answer,
        F: Future<Output = Result<Response<R>, tonic::Status>>,
    {
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let outcome = self.once(operation, collection, until, message.clone(), &send).await;
            match outcome {
                Err(error)
                    if repeat == Repeat::May
                        && error.is_passing()
                        && attempt < ATTEMPTS
                        && Instant::now() + pause < until =>
                {
                    tracing::debug!(operation, attempt, %error, "asking milvus again");
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.8..1.2))).await;
                    attempt += 1;
                    pause *= 2;
                }
                outcome => return outcome,
            }
        }
    }

    async fn once<Q, R, F>(
        &self,
        operation: &'static str,
        collection: &str,
        until: Instant,
        message: Q,
        send: &impl Fn(MilvusServiceClient<Channel>, Request<Q>) -> F,
    ) -> Result<R, MilvusError>
    where
        R: Answer,
        F: Future<Output = Result<Response<R>, tonic::Status>>,
    {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(MilvusError::TimedOut { operation });
        }
        let mut request = Request::new(message);
        request.set_timeout(left);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        let client = MilvusServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let answer = tokio::time::timeout(left, send(client, request))
            .await
            .map_err(|_| MilvusError::TimedOut { operation })?
            .map_err(|status| MilvusError::of_transport(operation, &status, until))?
            .into_inner();
        MilvusError::of_status(operation, collection, answer.status())?;
        Ok(answer)
    }
}
