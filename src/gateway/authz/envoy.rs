//! Envoy's ext_authz over gRPC (`envoy.service.auth.v3.Authorization`).

use std::sync::Arc;

use axum::Router;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body_util::BodyExt as _;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};

use crate::domain::refusal::Refusal;
use crate::gateway::authz::Told;
use crate::gateway::serve::Gateway;
use crate::net::body::AnyBody;
use crate::net::ext_authz::authorization_server::{Authorization, AuthorizationServer};
use crate::net::ext_authz::check_response::HttpResponse;
use crate::net::ext_authz::header_value_option::HeaderAppendAction;
use crate::net::ext_authz::{
    CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue as Value, HeaderValueOption, HttpStatus,
    OkHttpResponse,
};

/// The client's credential stays at the edge.
const REMOVED: [&str; 3] = ["authorization", "dpop", "popgate-approval"];

struct Service(Arc<Gateway>);

/// The gRPC service as routes.
pub fn routes(gateway: Arc<Gateway>) -> Router {
    Routes::new(AuthorizationServer::new(Service(gateway))).into_axum_router()
}

#[tonic::async_trait]
impl Authorization for Service {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let judged = self.0.for_edge(told(request.into_inner())).await;
        Ok(Response::new(match judged {
            Ok(headers) => response(
                Code::Ok,
                HttpResponse::OkResponse(OkHttpResponse {
                    headers: options(&headers),
                    headers_to_remove: REMOVED.map(ToOwned::to_owned).to_vec(),
                }),
            ),
            Err(refused) => response(Code::PermissionDenied, HttpResponse::DeniedResponse(denied(refused).await)),
        }))
    }
}

fn told(request: CheckRequest) -> Result<Told, Refusal> {
    let attributes = request.attributes.unwrap_or_default();
    let route = attributes.context_extensions.get("route").cloned();
    let http = attributes.request.and_then(|r| r.http);
    let http = http.ok_or_else(|| Refusal::new(400, "edge", "the edge says nothing of an HTTP request"))?;
    let unreadable = || Refusal::new(400, "header", "a header's name or value is malformed");
    let mut headers = HeaderMap::new();
    // Pseudo-headers are told apart, too.
    for (name, value) in http.headers.iter().filter(|(name, _)| !name.starts_with(':')) {
        let name: HeaderName = name.parse().map_err(|_| unreadable())?;
        let value = HeaderValue::from_str(value).map_err(|_| unreadable())?;
        if headers.insert(name, value).is_some() {
            return Err(unreadable());
        }
    }
    headers.insert(header::HOST, HeaderValue::from_str(&http.host).map_err(|_| unreadable())?);
    Told::new(&http.method, &http.path, headers, route)
}

fn response(code: Code, answer: HttpResponse) -> CheckResponse {
    let status = crate::net::ext_authz::Status { code: code.into(), message: String::new() };
    CheckResponse { status: Some(status), http_response: Some(answer) }
}

fn options(headers: &HeaderMap) -> Vec<HeaderValueOption> {
    let option = |(name, value): (&HeaderName, &HeaderValue)| {
        let value = Value { key: name.as_str().to_owned(), value: value.to_str().ok()?.to_owned() };
        let append_action = HeaderAppendAction::OverwriteIfExistsOrAdd.into();
        Some(HeaderValueOption { header: Some(value), append_action })
    };
    headers.iter().filter_map(option).collect()
}

async fn denied(refused: http::Response<AnyBody>) -> DeniedHttpResponse {
    let (head, body) = refused.into_parts();
    let body = body.collect().await.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned()).unwrap_or_default();
    let mut headers = head.headers;
    headers.remove(header::CONTENT_LENGTH);
    DeniedHttpResponse {
        status: Some(HttpStatus { code: head.status.as_u16().into() }),
        headers: options(&headers),
        body,
    }
}
