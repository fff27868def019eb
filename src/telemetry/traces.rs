//! Traces, exported to an OpenTelemetry collector.

use opentelemetry::KeyValue;
use opentelemetry::global::{self, BoxedTracer};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};

/// Why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
#[error(
    "telemetry.otlp_endpoint {endpoint:?}: {cause}; it is the URL of a collector's OTLP over gRPC, as http://127.0.0.1:4317"
)]
pub struct TracesError {
    endpoint: String,
    cause: String,
}

/// Begins to export what the tracer makes. A collector that is away holds up nobody: spans wait in a bounded queue and are
/// dropped beyond it. The provider is shut down at the end, so that what waits still goes out.
pub fn start_traces(
    endpoint: &str,
    sample: f64,
    trust_domain: &str,
) -> Result<(BoxedTracer, SdkTracerProvider), TracesError> {
    let bad = |cause: String| TracesError { endpoint: endpoint.to_owned(), cause };
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
    let exporter = exporter.map_err(|e| bad(e.to_string()))?;
    let resource = Resource::builder()
        .with_service_name("popgate")
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.namespace", trust_domain.to_owned()),
        ])
        .build();
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(sample)));
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(sampler)
        .with_resource(resource)
        .build();
    global::set_tracer_provider(provider.clone());
    Ok((global::tracer("popgate"), provider))
}
