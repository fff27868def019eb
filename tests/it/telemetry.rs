//! What operators see: traces in a collector, lines of the access log, and metrics whose number nobody outside can raise.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use popgate::protocol::traceparent::TraceParent;

use crate::world::{Service, plain_get};

/// A collector that keeps what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let spans = request.into_inner().resource_spans.into_iter().flat_map(|r| {
            let named = r.resource.iter().flat_map(|r| &r.attributes).any(|a| a.key == "service.name");
            assert!(named, "the service says who it is");
            r.scope_spans
        });
        self.0.lock().expect("no panic").extend(spans.flat_map(|s| s.spans));
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let router = tonic::service::Routes::new(TraceServiceServer::new(collector.clone())).into_axum_router();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (collector, url)
    }

    fn of(&self, trace: [u8; 16]) -> Vec<Span> {
        self.0.lock().expect("no panic").iter().filter(|s| s.trace_id == trace).cloned().collect()
    }
}

fn attribute(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|a| a.key == key).and_then(|a| a.value.clone()).and_then(|v| v.value);
    match found {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(n)) => n.to_string(),
        other => format!("{other:?}"),
    }
}

async fn configured(keys: &str) -> Service {
    Service::start_configured("", &format!("@telemetry{keys}\n")).await
}

const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const UNSAMPLED: &str = "00-aaaa2f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_goes_through_to_upstream_and_its_spans_to_the_collector() {
    let (collector, url) = Collector::start().await;
    let mut service = configured(&format!("otlp_endpoint = \"{url}\"")).await;
    let solver = service.solver().await;
    let run = service.url("gateway", "/v1/runs/r1");
    assert_eq!(solver.get(&run).await.status, 200, "learns the nonce");
    let told = |service: &Service| {
        let seen = service.upstream.seen().pop().expect("one");
        TraceParent::parse(seen.headers["traceparent"].to_str().expect("text")).expect("a traceparent")
    };
    let answer = solver.call("GET", &run, &[("traceparent", GIVEN)], "").await;
    assert_eq!(answer.status, 200);
    let (given, upstream) = (TraceParent::parse(GIVEN).expect("reads"), told(&service));
    assert!(upstream.trace == given.trace && upstream.span != given.span && upstream.sampled, "{upstream:?}");
    assert_eq!(solver.call("GET", &run, &[("traceparent", UNSAMPLED)], "").await.status, 200);
    let unsampled = told(&service);
    assert!(!unsampled.sampled && unsampled.trace == TraceParent::parse(UNSAMPLED).expect("reads").trace);
    assert_eq!(solver.call("GET", &run, &[("traceparent", "malformed")], "").await.status, 200);
    let denied = solver.call("DELETE", &run, &[], "").await;
    assert_eq!(denied.status, 403);
    // What waits goes out at the end.
    service.signal(Signal::SIGTERM);
    service.wait();
    assert_eq!(collector.of(unsampled.trace), [], "the client's word counts");
    let spans = collector.of(given.trace);
    let [server, call] = [2, 3].map(|kind| spans.iter().find(|s| s.kind == kind).expect("a span of its kind"));
    assert_eq!(spans.len(), 2, "{spans:?}");
    assert_eq!(
        (server.parent_span_id.as_slice(), call.parent_span_id.as_slice()),
        (&given.span[..], &server.span_id[..])
    );
    assert_eq!(call.span_id, upstream.span, "upstream continues the call's span");
    for (key, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("popgate.route", "tot"),
        ("popgate.operation", "tot.read"),
        ("popgate.ended", "complete"),
        ("enduser.id", "spiffe://example.org/ci/solver"),
        ("popgate.request_id", answer.header("popgate-request-id")),
    ] {
        assert_eq!(attribute(server, key), value, "{key}");
    }
    let phases: BTreeSet<&str> = server.events.iter().map(|e| e.name.as_str()).collect();
    assert!(["authenticate", "decide", "log", "upstream"].iter().all(|p| phases.contains(p)), "{phases:?}");
    let all = collector.0.lock().expect("no panic").clone();
    assert!(all.iter().any(|s| attribute(s, "http.response.status_code") == "403"), "denials have spans");
    let text = format!("{all:?}");
    for secret in ["eyJ", "DPoP", "/v1/runs/r1"] {
        assert!(!text.contains(secret), "{secret} is in a span");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_holds_nobody_up_and_one_that_is_none_is_refused() {
    let service = configured("otlp_endpoint = \"http://127.0.0.1:1\"").await;
    let solver = service.solver().await;
    assert_eq!(solver.get(&service.url("gateway", "/v1/runs/r1")).await.status, 200);
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("popgate.toml");
    std::fs::write(&path, "[telemetry]\notlp_endpoint = \"collector:4317\"\n").expect("writes");
    let output = crate::world::run(&["serve", "--config", path.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(1), "{}", crate::world::stderr(&output));
    assert!(crate::world::stderr(&output).contains("telemetry.otlp_endpoint"), "{}", crate::world::stderr(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_has_a_line_with_its_times_where_that_is_wanted() {
    for wanted in [true, false] {
        let service = configured(&format!("access_log = {wanted}\nlog_json = true")).await;
        let solver = service.solver().await;
        let answer = solver.get(&service.url("gateway", "/v1/runs/r1?secret=hush")).await;
        assert_eq!(answer.status, 200);
        let dead = solver.get(&service.url("gateway", "/dead/x")).await;
        assert_eq!(dead.status, 502);
        let refused = solver.raw("GET", &service.url("gateway", "/v1/runs/r1"), &[], false).await;
        assert_eq!(refused.status, 401);
        assert!(service.verify().await.status.success(), "all exchanges have ended");
        let log = std::fs::read_to_string(service.base().join("serve.log")).expect("reads");
        let lines: Vec<serde_json::Value> = log
            .lines()
            .filter_map(|l| serde_json::from_str(l).ok())
            .filter(|l: &serde_json::Value| l["target"] == "access")
            .map(|l| l["fields"].clone())
            .collect();
        if !wanted {
            assert!(lines.is_empty(), "{lines:?}");
            continue;
        }
        let of = |id: &str| lines.iter().find(|l| l["request_id"] == id).unwrap_or_else(|| panic!("{id}: {log}"));
        let line = of(answer.header("popgate-request-id"));
        for (name, value) in [
            ("spiffe_id", "spiffe://example.org/ci/solver"),
            ("method", "GET"),
            ("route", "tot"),
            ("operation", "tot.read"),
            ("ended", "complete"),
        ] {
            assert_eq!(line[name], value, "{line}");
        }
        assert_eq!((line["status"].as_u64(), line["response_bytes"].as_u64()), (Some(200), Some(11)), "{line}");
        let ms = |name: &str| line[name].as_f64().unwrap_or_else(|| panic!("{name}: {line}"));
        let parts: f64 =
            ["authenticate_ms", "decide_ms", "hold_ms", "log_ms", "upstream_ms", "stream_ms"].map(ms).iter().sum();
        assert!(ms("authenticate_ms") > 0.0 && ms("log_ms") > 0.0 && ms("upstream_ms") > 0.0, "{line}");
        assert!(parts <= ms("total_ms") + 0.01, "phases are parts of the whole: {line}");
        assert_eq!(of(refused.header("popgate-request-id"))["status"], 401);
        let dead = of(dead.header("popgate-request-id"));
        assert_eq!(
            (&dead["status"], &dead["ended"]),
            (&serde_json::json!(502), &serde_json::json!("upstream")),
            "{dead}"
        );
        assert!(!log.contains("hush") && !log.contains("eyJ"), "neither queries nor tokens are in the log");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_cannot_raise_the_number_of_series() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = |path: &str| service.url("gateway", path);
    let series = async || {
        let (status, text) = plain_get(&format!("{}/metrics", service.addresses["telemetry"])).await;
        assert_eq!(status, 200);
        let lines = text
            .lines()
            .filter(|l| !l.starts_with('#') && !l.is_empty())
            .map(|l| l.rsplit_once(' ').expect("a value").0.to_owned());
        lines.collect::<BTreeSet<String>>()
    };
    let hostile = async |n: usize| {
        for n in 0..n {
            let (path, method) = (format!("/v1/runs/{n}x{n}"), format!("M{n}"));
            let _ = solver.raw("GET", &url(&path), &[], false).await;
            let _ = solver.raw(&method, &url(&path), &[("authorization", "DPoP x"), ("dpop", "y")], false).await;
            let _ = solver.call(&method, &url(&path), &[("x-extra", &format!("v{n}"))], "").await;
            let _ = solver.call("GET", &url(&format!("/raw/none{n}")), &[], "").await;
        }
    };
    assert_eq!(solver.get(&url("/v1/runs/r1")).await.status, 200);
    hostile(2).await;
    let before = series().await;
    hostile(30).await;
    let after = series().await;
    let new: Vec<&String> = after.difference(&before).collect();
    assert!(new.is_empty(), "{new:?}");
    for name in ["popgate_requests_total", "popgate_exchange_seconds_bucket", "popgate_phase_seconds_bucket"] {
        assert!(after.iter().any(|s| s.starts_with(name)), "{name}: {after:?}");
    }
    assert!(after.contains("popgate_open_exchanges"), "{after:?}");
}
