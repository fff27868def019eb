//! The one exit: challenges are written here, and refusals logged.

use http::{HeaderName, HeaderValue, Response, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Body as _;

use crate::domain::leaf::{Denial, Event, Leaf, Staged};
use crate::domain::proof::Role;
use crate::domain::refusal::{OauthError, Refusal};
use crate::gateway::authenticate::{Caller, Unproved};
use crate::gateway::read::Incoming;
use crate::gateway::serve::Gateway;
use crate::net::body::AnyBody;
use crate::net::problem;
use crate::protocol::jwk::Algorithm;
use crate::store::entropy;

impl Gateway {
    /// Answers a request that was refused before its proof held.
    pub async fn refuse(&self, request_id: &str, path: &str, unproved: Unproved) -> Response<AnyBody> {
        let refusal = &unproved.refusal;
        tracing::info!(
            request_id,
            status = refusal.status,
            kind = refusal.kind,
            detail = refusal.detail,
            cause = refusal.cause,
            "refused"
        );
        metrics::counter!("popgate_requests_refused_total", "kind" => refusal.kind).increment(1);
        self.stores.evidence.note(Staged::plain(
            self.stores.clock.now(),
            Event::Refusal {
                request_id: request_id.to_owned(),
                plane: "gateway".into(),
                status: refusal.status,
                check: refusal.error.map_or_else(|| refusal.kind.to_owned(), |e| e.to_string()),
                claimed: unproved.claimed,
                proof_sha256: unproved.proof_sha256,
            },
        ));
        self.write(refusal, request_id, path).await
    }

    /// Answers a proved request that is not carried out.
    pub async fn deny(
        &self,
        request: &Incoming,
        caller: &Caller,
        operation: Option<&str>,
        refusal: &Refusal,
    ) -> Response<AnyBody> {
        self.note_denial(request, caller, operation, refusal);
        self.write(refusal, &request.id, request.path.as_str()).await
    }

    /// Logs that a proved request, or a part of one, is not carried out.
    pub fn note_denial(&self, request: &Incoming, caller: &Caller, operation: Option<&str>, refusal: &Refusal) {
        tracing::info!(request_id = request.id, spiffe_id = %caller.token.claims.client_id, operation, status = refusal.status, kind = refusal.kind, detail = refusal.detail, cause = refusal.cause, "denied");
        metrics::counter!("popgate_requests_denied_total", "kind" => refusal.kind).increment(1);
        let proof = entropy::seal(caller.proof.expose());
        let target = entropy::seal(request.target());
        let policy = refusal.policy.as_ref();
        let event = Event::Denial(Denial {
            request_id: request.id.clone(),
            spiffe_id: caller.token.claims.client_id.clone(),
            jkt: caller.jkt(),
            token_sha256: caller.token_sha256,
            proof: proof.commitment(),
            method: request.method().to_string(),
            target: target.commitment(),
            operation: operation.map(ToOwned::to_owned),
            status: refusal.status,
            reason: refusal.kind.into(),
            rules: policy.map(|p| p.rule.clone()).into_iter().collect(),
            policy_version: policy.map(|p| p.policy_version.clone()).unwrap_or_default(),
        });
        let openings = [("proof".to_owned(), proof), ("target".to_owned(), target)].into();
        self.stores.evidence.note(Staged { leaf: Leaf { time: self.stores.clock.now(), event }, openings });
    }

    /// RFC 9449 §7.1 and §9, RFC 9728 §5.1. Without credentials the challenge carries no error code.
    async fn write(&self, refusal: &Refusal, request_id: &str, path: &str) -> Response<AnyBody> {
        let mut response = problem::response(refusal, request_id);
        let challenged = refusal.status == 401 || refusal.error == Some(OauthError::InsufficientScope);
        if challenged {
            let mut challenge = String::from("DPoP ");
            if let Some(error) = refusal.error {
                challenge.push_str(&format!("error=\"{error}\", error_description=\"{}\", ", quoted(&refusal.detail)));
            }
            challenge.push_str(&format!(
                "algs=\"{}\", resource_metadata=\"{}\"",
                Algorithm::NAMES.join(" "),
                self.metadata_url(path)
            ));
            response.headers_mut().extend(HeaderValue::from_str(&challenge).map(|v| (header::WWW_AUTHENTICATE, v)));
        }
        // Who asks for an approval may be about to begin what can be sent once alone, and so gets a nonce in any case.
        let wants = refusal.error == Some(OauthError::UseDpopNonce) || path.starts_with("/.popgate/approvals/");
        if wants && let Ok(epoch) = self.stores.replay.epoch().await {
            let nonce = self.nonces.make(Role::Gateway, &epoch, self.stores.clock.now(), &entropy::random());
            response
                .headers_mut()
                .extend(HeaderValue::from_str(&nonce).map(|v| (HeaderName::from_static("dpop-nonce"), v)));
        }
        response
    }
}

/// RFC 6750 §3: printable ASCII without quote and backslash.
fn quoted(text: &str) -> String {
    let text = text.replace('§', "section ");
    text.chars().filter(|c| (c.is_ascii_graphic() || *c == ' ') && *c != '"' && *c != '\\').collect()
}

/// What answers HEAD: the head of what GET would get, and no body (RFC 9110 section 9.3.2).
pub fn headless(mut response: Response<AnyBody>) -> Response<AnyBody> {
    // What upstream answers has its own end, however long that is.
    let Some(length) = response.body().size_hint().exact().filter(|_| !response.body().is_end_stream()) else {
        return response;
    };
    response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(length.into());
    *response.body_mut() = Empty::new().map_err(|never| match never {}).boxed_unsync();
    response
}

/// Every response carries the key to its evidence.
pub fn stamp(mut response: Response<AnyBody>, request_id: &str) -> Response<AnyBody> {
    response
        .headers_mut()
        .extend(HeaderValue::from_str(request_id).map(|v| (HeaderName::from_static("popgate-request-id"), v)));
    response
}
