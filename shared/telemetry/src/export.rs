use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};

use crate::{TelemetryError, instruments, resource};

const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Builds the provider that exports spans to an OTLP/gRPC collector in batches.
pub(crate) fn tracer_provider(endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let inner = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|error| TelemetryError::Endpoint {
            endpoint: endpoint.to_owned(),
            reason: error.to_string(),
        })?;
    let exporter = Counted { inner, warned: AtomicBool::new(false) };
    Ok(SdkTracerProvider::builder().with_resource(resource()).with_batch_exporter(exporter).build())
}

/// An exporter whose failures are seen: the first one since the last success is logged, all are counted.
#[derive(Debug)]
struct Counted {
    inner: opentelemetry_otlp::SpanExporter,
    warned: AtomicBool,
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.inner.export(batch).await;
        match &result {
            Ok(()) => self.warned.store(false, Ordering::Relaxed),
            Err(error) => {
                instruments().export_failures.add(1, &[]);
                if !self.warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "spans are not exported; failures are counted from here on");
                }
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
