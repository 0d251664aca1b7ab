use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use opentelemetry::KeyValue;
use parking_lot::Mutex;
use thicket_telemetry::{Side, code_name, instruments, names, propagate, record_rpc};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::transport::server::TcpConnectInfo;
use tower::{Layer, Service};
use tracing::Instrument;

use crate::audit::{AuditLog, Record};
use crate::auth::{Authenticator, Right};
use crate::body::{CallBody, Cut, End};
use crate::call::{Call, Deadline};
use crate::health::{Health, State};
use crate::{Fault, methods};

/// When a caller should come back to a role that is loading its model.
const STARTING_PAUSE: Duration = Duration::from_secs(1);

/// How often calls that come too late are logged.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// What the calls of one server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) health: Health,
    pub(crate) auth: Authenticator,
    pub(crate) audit: Option<AuditLog>,
    pub(crate) unary_deadline: Duration,
    pub(crate) stream_deadline: Duration,
    /// Calls that the drain waits for.
    pub(crate) in_flight: watch::Sender<usize>,
    /// When a call that came too late was logged last.
    pub(crate) told_expired: Mutex<Option<Instant>>,
}

impl Shared {
    /// Refuses a call that nobody waits for any more before anything is done for it.
    fn in_time(&self, deadline: Deadline, method: &'static str) -> Result<(), Fault> {
        if deadline.remaining().is_some() {
            return Ok(());
        }
        instruments().admission_rejected.add(1, &[KeyValue::new(names::REASON, "DEADLINE_EXCEEDED")]);
        let mut told = self.told_expired.lock();
        if told.is_none_or(|at| at.elapsed() > TOLD_EVERY) {
            *told = Some(Instant::now());
            tracing::warn!(method, "a call came after its deadline; told at most once a minute");
        }
        Err(Fault::DeadlineExceeded)
    }

    fn admit(&self) -> Result<(), Fault> {
        match self.health.snapshot().state {
            State::Starting => {
                Err(Fault::unavailable("STARTING", "this replica is still starting", STARTING_PAUSE))
            }
            State::Serving | State::Draining => Ok(()),
            State::Closing | State::Closed => Err(draining()),
        }
    }

    /// Resolves when the deadline passes or the drain gives up.
    fn cut(&self, deadline: Deadline) -> Cut {
        let mut state = self.health.subscribe();
        Box::pin(async move {
            tokio::select! {
                () = deadline.passed() => Fault::DeadlineExceeded,
                _ = state.wait_for(|now| now.state == State::Closed) => draining(),
            }
        })
    }

    /// Resolves when new calls are refused: long-lived health watches must not hold the drain up.
    fn cut_at_closing(&self) -> Cut {
        let mut state = self.health.subscribe();
        Box::pin(async move {
            let _ = state.wait_for(|now| matches!(now.state, State::Closing | State::Closed)).await;
            draining()
        })
    }
}

fn draining() -> Fault {
    Fault::unavailable("DRAINING", "this replica is stopping", Duration::ZERO)
}

/// Everything that happens around a handler: admission, authentication, deadline, trace, metrics, audit.
#[derive(Debug, Clone)]
pub(crate) struct CallLayer(pub(crate) Arc<Shared>);

impl<S> Layer<S> for CallLayer {
    type Service = CallService<S>;

    fn layer(&self, inner: S) -> CallService<S> {
        CallService { inner, shared: self.0.clone() }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct CallService<S> {
    inner: S,
    shared: Arc<Shared>,
}

type Answer<E> = std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for CallService<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let shared = self.shared.clone();
        let path = request.uri().path();
        if methods::is_infrastructure(path) {
            return Box::pin(async move {
                let cut = shared.cut_at_closing();
                Ok(CallBody::wrap(inner.call(request).await?, Some(cut), End::new(|_| ())))
            });
        }

        // The deadline is fixed before tonic starts its own timer, which answers CANCELLED: ours always comes first.
        let streams = methods::find(path).is_some_and(|method| method.streaming);
        let default = if streams { shared.stream_deadline } else { shared.unary_deadline };
        let deadline = Deadline::from_headers(request.headers(), default);
        let (end, call) = match open(&shared, &request, deadline) {
            Ok(opened) => opened,
            Err(fault) => return Box::pin(async move { Ok(fault.into_status().into_http()) }),
        };
        request.extensions_mut().insert(deadline);
        request.extensions_mut().insert(call);
        let span = end.span.clone();
        let end = end.into_end();
        Box::pin(
            async move {
                let mut cut = shared.cut(deadline);
                let answer = pin!(inner.call(request));
                tokio::select! {
                    biased;
                    answer = uninterrupted(answer) => match answer {
                        Ok(response) => Ok(CallBody::wrap(response?, Some(cut), end)),
                        Err(fault) => Ok(refusal(fault, end)),
                    },
                    fault = &mut cut => Ok(refusal(fault, end)),
                }
            }
            .instrument(span),
        )
    }
}

/// A panic in a handler fails its own call only.
async fn uninterrupted<F: Future>(mut future: std::pin::Pin<&mut F>) -> Result<F::Output, Fault> {
    std::future::poll_fn(move |cx| {
        match std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(Fault::internal("a handler panicked"))),
        }
    })
    .await
}

fn refusal(fault: Fault, end: End) -> Response<Body> {
    CallBody::wrap(fault.into_status().into_http(), None, end)
}

/// Admits and authenticates a call; a refused one is recorded here.
fn open(shared: &Arc<Shared>, request: &Request<Body>, deadline: Deadline) -> Result<(Opened, Call), Fault> {
    let headers = request.headers();
    let method = methods::label(request.uri().path());
    let span = tracing::info_span!(
        "rpc",
        otel.name = method,
        otel.kind = "server",
        rpc.system.name = "grpc",
        rpc.method = method,
        rpc.response.status_code = tracing::field::Empty,
    );
    propagate::adopt_parent(&span, headers);
    let peer = request
        .extensions()
        .get::<TcpConnectInfo>()
        .and_then(TcpConnectInfo::remote_addr)
        .map(|address| address.to_string());
    let opened = Opened {
        shared: shared.clone(),
        method,
        span,
        peer,
        trace_id: propagate::trace_id(headers),
        started: Instant::now(),
        call: None,
    };
    let admitted = shared.admit().and_then(|()| shared.auth.identify(headers));
    match admitted.and_then(|caller| shared.in_time(deadline, method).map(|()| caller)) {
        Ok(caller) => {
            let call = Call::new(caller, deadline);
            Ok((Opened { call: Some(call.clone()), ..opened }, call))
        }
        Err(fault) => {
            opened.finish(fault.code());
            Err(fault)
        }
    }
}

/// A call that has begun, and what its end will say about it.
struct Opened {
    shared: Arc<Shared>,
    method: &'static str,
    span: tracing::Span,
    peer: Option<String>,
    trace_id: Option<String>,
    started: Instant,
    /// None where the caller could not be told.
    call: Option<Call>,
}

impl Opened {
    fn into_end(self) -> End {
        self.shared.in_flight.send_modify(|calls| *calls += 1);
        End::new(move |code| {
            self.finish(code);
            self.shared.in_flight.send_modify(|calls| *calls -= 1);
        })
    }

    fn finish(&self, code: tonic::Code) {
        self.span.record("rpc.response.status_code", code_name(code));
        record_rpc(Side::Server, self.method, code, self.started.elapsed().as_secs_f64());
        let Some(audit) = &self.shared.audit else { return };
        let required = self.call.as_ref().map(Call::required).unwrap_or_default();
        let refused = matches!(code, tonic::Code::Unauthenticated | tonic::Code::PermissionDenied);
        if refused || matches!(required.right, Some(Right::Write | Right::Admin)) {
            audit.write(&Record {
                caller: self.call.as_ref().map_or("unknown", |call| &call.caller().name),
                method: self.method,
                right: required.right.map(|right| right.to_string()),
                collection: required.collection,
                outcome: code_name(code),
                peer: self.peer.clone(),
                trace_id: self.trace_id.clone(),
            });
        }
    }
}
