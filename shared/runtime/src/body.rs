use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

use crate::Fault;

const GRPC_STATUS: &str = "grpc-status";

/// Resolves when the call must end early, with the reason.
pub(crate) type Cut = Pin<Box<dyn Future<Output = Fault> + Send>>;

/// Runs once, when a call is over, with its code: [`Code::Cancelled`] where the caller went away.
pub(crate) struct End {
    code: Code,
    then: Option<Box<dyn FnOnce(Code) + Send>>,
}

impl End {
    pub(crate) fn new(then: impl FnOnce(Code) + Send + 'static) -> Self {
        Self { code: Code::Cancelled, then: Some(Box::new(then)) }
    }

    pub(crate) fn set(&mut self, code: Code) {
        self.code = code;
    }

    /// Notes the code where the headers or trailers have one.
    pub(crate) fn observe(&mut self, headers: &HeaderMap) {
        if let Some(value) = headers.get(GRPC_STATUS) {
            self.code = Code::from_bytes(value.as_bytes());
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(then) = self.then.take() {
            then(self.code);
        }
    }
}

/// A response body that ends when the call is cut, and tells its [`End`] how it went.
pub(crate) struct CallBody {
    inner: Body,
    cut: Option<Cut>,
    end: End,
    done: bool,
}

impl CallBody {
    /// Wraps a response.
    pub(crate) fn wrap(
        response: http::Response<Body>,
        cut: Option<Cut>,
        mut end: End,
    ) -> http::Response<Body> {
        end.observe(response.headers());
        response.map(|inner| Body::new(Self { inner, cut, end, done: false }))
    }
}

impl http_body::Body for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.done {
            return Poll::Ready(None);
        }
        if let Some(cut) = &mut this.cut
            && let Poll::Ready(fault) = cut.as_mut().poll(cx)
        {
            this.done = true;
            // Dropping the stream now is what stops the handler's work.
            this.inner = Body::empty();
            let status = fault.into_status();
            this.end.set(status.code());
            let mut trailers = HeaderMap::new();
            return Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
        let frame = std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.end.observe(trailers);
                }
            }
            Some(Err(status)) => this.end.set(status.code()),
            None => this.done = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.done || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // A cut body is shorter than it promised: promise nothing.
        SizeHint::default()
    }
}
