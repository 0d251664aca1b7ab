//! Spans reach an OTLP collector, with the caller's trace id and the role's name.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use thicket_telemetry::{TelemetryArgs, propagate};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let _ = self.0.send(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_span_is_exported_under_its_callers_trace() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("a bound port"));
    let (sender, mut received) = mpsc::unbounded_channel();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(Collector(sender)))
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)),
    );

    let args = TelemetryArgs { otlp_endpoint: Some(endpoint), ..TelemetryArgs::default() };
    let telemetry = thicket_telemetry::init("thicket-test", &args).expect("valid settings");
    let again = thicket_telemetry::init("thicket-other", &TelemetryArgs::default());
    assert!(again.is_ok(), "a second role in the process shares the first one's set-up");

    let mut headers = HeaderMap::new();
    headers.insert(
        "traceparent",
        HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    );
    let mut passed_on = HeaderMap::new();
    let span = tracing::info_span!(target: "thicket_test", "search");
    propagate::adopt_parent(&span, &headers);
    span.in_scope(|| propagate::inject(&mut passed_on));
    drop(span);
    tokio::task::spawn_blocking(move || telemetry.flush()).await.expect("flush does not panic");

    let trace = propagate::trace_id(&passed_on);
    assert_eq!(
        trace.as_deref(),
        Some("4bf92f3577b34da6a3ce929d0e0e4736"),
        "the trace goes on to the next role"
    );
    let batch =
        tokio::time::timeout(Duration::from_secs(10), received.recv()).await.expect("in time").expect("one");
    let resource = &batch.resource_spans[0];
    let exported = &resource.scope_spans[0].spans[0];
    assert_eq!(exported.name, "search");
    assert_eq!(exported.parent_span_id, [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
    let attributes = format!("{:?}", resource.resource);
    assert!(attributes.contains("thicket-test"), "{attributes}");
}
