use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use thicket_telemetry::{Side, propagate, record_rpc};
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower::Service;

use crate::body::{CallBody, Cut, End};
use crate::call::Deadline;
use crate::server::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};
use crate::{Fault, methods};

/// How long a connection attempt may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a peer cannot be called at all.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The target is not `http://host:port`.
    #[error("peer address `{target}` is not valid: {reason}")]
    Target {
        /// The target as given.
        target: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The token cannot be sent in a header.
    #[error("the peer token is not printable text")]
    Token,
}

/// A connection to another role, for the generated clients:
/// `GalleryServiceClient::new(peer).max_decoding_message_size(MAX_MESSAGE_BYTES)`.
///
/// It connects when first used and again when the connection is lost. Each call carries the token, the trace and, if made
/// with [`crate::Call::request`] or [`crate::request_by`], the rest of the time budget; when that is spent it ends with
/// DEADLINE_EXCEEDED, in the middle of a stream too. A peer that cannot be reached is UNAVAILABLE.
#[derive(Debug, Clone)]
pub struct Peer {
    channel: Channel,
    token: Option<HeaderValue>,
    target: Arc<(String, u16)>,
}

impl Peer {
    /// A peer at `http://host:port`, called with a bearer token if it wants one. Opens no connection yet; must be called
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// [`PeerError`] for a malformed target or token.
    pub fn lazy(target: &str, token: Option<&str>) -> Result<Self, PeerError> {
        let invalid =
            |reason: &str| PeerError::Target { target: target.to_owned(), reason: reason.to_owned() };
        let endpoint =
            Endpoint::from_shared(target.to_owned()).map_err(|error| invalid(&error.to_string()))?;
        let uri = endpoint.uri();
        if uri.scheme_str() != Some("http") {
            return Err(invalid("write it as http://host:port"));
        }
        let address = uri.host().ok_or_else(|| invalid("it names no host"))?.to_owned();
        let port = uri.port_u16().unwrap_or(80);
        let token = token
            .map(|token| {
                let mut value =
                    HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| PeerError::Token)?;
                value.set_sensitive(true);
                Ok(value)
            })
            .transpose()?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(false)
            .connect_lazy();
        Ok(Self { channel, token, target: Arc::new((address, port)) })
    }
}

impl Service<Request<Body>> for Peer {
    type Response = Response<Body>;
    type Error = tonic::transport::Error;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, tonic::transport::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let method = methods::label(request.uri().path());
        let deadline = request.extensions().get::<Deadline>().copied();
        propagate::inject(request.headers_mut());
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        let started = Instant::now();
        let target = self.target.clone();
        let end = End::new(move |code| {
            let side = Side::Client { address: &target.0, port: target.1 };
            record_rpc(side, method, code, started.elapsed().as_secs_f64());
        });
        let answer = self.channel.call(request);
        Box::pin(async move {
            let mut cut: Cut = Box::pin(async move {
                match deadline {
                    Some(deadline) => deadline.passed().await,
                    None => std::future::pending().await,
                }
                Fault::DeadlineExceeded
            });
            let fault = tokio::select! {
                answer = answer => match answer {
                    Ok(response) => return Ok(CallBody::wrap(response, Some(cut), end)),
                    // tonic runs a timer of its own, which may be the first to fire.
                    Err(_) if deadline.is_some_and(|deadline| deadline.remaining().is_none()) => {
                        Fault::DeadlineExceeded
                    }
                    Err(error) => unreachable_peer(&error),
                },
                fault = &mut cut => fault,
            };
            Ok(CallBody::wrap(fault.into_status().into_http(), None, end))
        })
    }
}

fn unreachable_peer(error: &tonic::transport::Error) -> Fault {
    let mut message = format!("peer cannot be reached: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        message += &format!(": {inner}");
        cause = inner.source();
    }
    Fault::unavailable("PEER_UNREACHABLE", message, Duration::ZERO)
}
