//! The SPIFFE Workload API: each call attests its caller anew and answers from the agent's memory.

use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use serde_json::Value;
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status};

use crate::agent::callers::Attestation;
use crate::agent::keeper::Keeper;
use crate::agent::server::ServerError;
use crate::agent::state::{AgentEntry, HeldSvid, Snapshot, Update};
use crate::domain::digest::Sha256;
use crate::domain::selector::Selector;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::net::listener::{Drain, Peer};
use crate::net::workload_api::spiffe_workload_api_server::SpiffeWorkloadApi;
use crate::net::workload_api::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, SECURITY_HEADER,
    ValidateJwtsvidRequest, ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse, WitsvidRequest,
    WitsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};
use crate::protocol::bundle::TrustBundle;
use crate::protocol::jwt_svid;

/// JWT-SVIDs that are remembered until half their life.
const MAX_JWTS: usize = 10_000;
/// How long a first certificate is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// A stream looks at the time this often: what ends without a change must not be shown on.
const TICK: Duration = Duration::from_secs(30);

/// Whose JWT-SVID for which audiences, under which bundle: a key may have been revoked since.
type JwtKey = (SpiffeId, Vec<String>, u64);
type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
pub struct WorkloadApi {
    keeper: Arc<Keeper>,
    attestation: Arc<Attestation>,
    jwts: Mutex<HashMap<JwtKey, (String, Timestamp)>>,
    drain: Drain,
}

/// A caller and what it is.
struct Caller {
    peer: Arc<Peer>,
    found: BTreeSet<Selector>,
}

fn no_identity() -> Status {
    // These very words: a client of the standard knows them.
    Status::permission_denied("no identity issued")
}

impl WorkloadApi {
    /// A service over the agent's memory.
    pub fn new(keeper: Arc<Keeper>, drain: Drain) -> Self {
        let attestation = Arc::new(Attestation::new(keeper.clone()));
        Self { keeper, attestation, jwts: Mutex::default(), drain }
    }

    /// The security header (SPIFFE Workload Endpoint section 4), then attestation.
    async fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let mut values = request.metadata().get_all(SECURITY_HEADER).iter();
        if values.next().is_none_or(|v| v.as_bytes() != b"true") || values.next().is_some() {
            return Err(Status::invalid_argument("security header missing from request: workload.spiffe.io: true"));
        }
        let peer = request.extensions().get::<Arc<Peer>>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("the caller's connection is not known"))?;
        let found = self.attestation.of(&peer).await?;
        Ok(Caller { peer, found })
    }

    /// The present generation, with at least one identity for the caller.
    fn present(&self, caller: &Caller) -> Result<Arc<Snapshot>, Status> {
        let snapshot = self.keeper.watch().borrow().clone();
        entitled(&snapshot, &caller.found)?;
        Ok(snapshot)
    }

    /// The first message at once and one on each change of it, always the full state.
    async fn stream<T>(
        &self,
        caller: Caller,
        answer: impl Fn(&Snapshot, &BTreeSet<Selector>, Timestamp) -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<Messages<T>>, Status>
    where
        T: prost::Message + Send + 'static,
    {
        let keeper = self.keeper.clone();
        let mut present = keeper.watch();
        // The first answer decides the call's own status. A certificate that is on its way is waited for a little.
        let patience = tokio::time::Instant::now() + PATIENCE;
        let first = loop {
            let snapshot = present.borrow_and_update().clone();
            match answer(&snapshot, &caller.found, keeper.now()) {
                Err(status) if status.code() == Code::Unavailable => {
                    if !matches!(tokio::time::timeout_at(patience, present.changed()).await, Ok(Ok(()))) {
                        return Err(status);
                    }
                }
                done => break done?,
            }
        };
        let told = digest(&first);
        let streaming = Streaming {
            keeper,
            attestation: self.attestation.clone(),
            caller,
            answer,
            present,
            told,
            first: Some(first),
            drain: self.drain.clone(),
            _open: Open::new(),
        };
        let messages = futures_util::stream::unfold(Some(streaming), |streaming| async move {
            let mut streaming = streaming?;
            match streaming.next().await {
                Ok(message) => Some((Ok(message), Some(streaming))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn jwt(&self, id: &SpiffeId, audiences: &[String], bundle: u64) -> Result<String, Status> {
        let (now, key) = (self.keeper.now(), (id.clone(), audiences.to_vec(), bundle));
        let jwts = || self.jwts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((token, until)) = jwts().get(&key)
            && now < *until
        {
            return Ok(token.clone());
        }
        let (token, end) = self.keeper.server().jwt(id, audiences).await.map_err(|error| match error {
            ServerError::Refused { status: 400, why } => Status::invalid_argument(why),
            ServerError::Refused { status: 403, why } => Status::permission_denied(why),
            // That is the agent's own trouble.
            ServerError::Away(why) | ServerError::Refused { why, .. } => Status::unavailable(why),
        })?;
        let mut kept = jwts();
        if kept.len() >= MAX_JWTS {
            kept.retain(|_, (_, until)| now < *until);
        }
        if kept.len() < MAX_JWTS {
            // Until half its life: whoever gets it has the other half.
            kept.insert(key, (token.clone(), now.plus(end.since(now) / 2)));
        }
        Ok(token)
    }
}

/// A stream of messages.
struct Streaming<T, F> {
    keeper: Arc<Keeper>,
    attestation: Arc<Attestation>,
    caller: Caller,
    answer: F,
    present: watch::Receiver<Arc<Snapshot>>,
    told: Sha256,
    first: Option<T>,
    drain: Drain,
    _open: Open,
}

impl<T, F> Streaming<T, F>
where
    T: prost::Message,
    F: Fn(&Snapshot, &BTreeSet<Selector>, Timestamp) -> Result<T, Status>,
{
    /// The next message that says something new. A stream never just ends: that some clients never come back from.
    async fn next(&mut self) -> Result<T, Status> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        loop {
            tokio::select! {
                changed = self.present.changed() => if changed.is_err() {
                    return Err(Status::unavailable("the agent ends"));
                },
                () = tokio::time::sleep(TICK) => {}
                () = self.drain.begun() => return Err(Status::unavailable("the agent ends")),
            }
            // It may be another program by now, or nobody.
            self.caller.found = self.attestation.of(&self.caller.peer).await?;
            let snapshot = self.present.borrow_and_update().clone();
            let message = match (self.answer)(&snapshot, &self.caller.found, self.keeper.now()) {
                // It is entitled, and its next certificate is on its way: what it has serves on till then.
                Err(status) if status.code() == Code::Unavailable => continue,
                answered => answered?,
            };
            let digest = digest(&message);
            if digest != self.told {
                self.told = digest;
                return Ok(message);
            }
        }
    }
}

/// Counts an open stream.
struct Open;

impl Open {
    fn new() -> Self {
        metrics::gauge!("popgate_agent_streams").increment(1);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!("popgate_agent_streams").decrement(1);
    }
}

fn digest(message: &impl prost::Message) -> Sha256 {
    Sha256::of(&message.encode_to_vec())
}

/// The server's last word, if an entry of it fits the caller.
fn entitled<'a>(snapshot: &'a Snapshot, found: &BTreeSet<Selector>) -> Result<&'a Update, Status> {
    let update =
        snapshot.update.as_ref().ok_or_else(|| Status::unavailable("the agent has not heard from its server yet"))?;
    if snapshot.matching(found).is_empty() { Err(no_identity()) } else { Ok(update) }
}

fn x509_svids(snapshot: &Snapshot, found: &BTreeSet<Selector>, now: Timestamp) -> Result<X509svidResponse, Status> {
    let update = entitled(snapshot, found)?;
    let identities = snapshot.identities(found, now);
    if identities.is_empty() {
        // It is entitled, and its certificate is on its way.
        return Err(Status::unavailable("no valid certificate is at hand yet"));
    }
    let bundle = Bytes::from(update.bundle.concatenated());
    let hints = unique_hints(&identities);
    let shown = |((entry, held), hint): (&(&AgentEntry, &Arc<HeldSvid>), String)| X509svid {
        spiffe_id: entry.spiffe_id.to_string(),
        x509_svid: held.chain.clone(),
        x509_svid_key: Bytes::copy_from_slice(held.key.pkcs8()),
        bundle: bundle.clone(),
        hint,
    };
    Ok(X509svidResponse {
        svids: identities.iter().zip(hints).map(shown).collect(),
        crl: update.crl.clone(),
        federated_bundles: federated(update).collect(),
    })
}

/// A hint stands once in an answer (Workload API section 5.2.1): later entries with the same one lose it.
fn unique_hints(identities: &[(&AgentEntry, &Arc<HeldSvid>)]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let hint = |e: &AgentEntry| e.hint.clone().filter(|h| seen.insert(h.clone())).unwrap_or_default();
    identities.iter().map(|(e, _)| *e).map(hint).collect()
}

/// Foreign bundles with a certificate: an empty one breaks some clients.
fn federated(update: &Update) -> impl Iterator<Item = (String, Bytes)> {
    let shown = |(domain, bundle): (&crate::domain::spiffe_id::TrustDomain, &TrustBundle)| {
        (!bundle.roots.is_empty()).then(|| (domain.id(), Bytes::from(bundle.concatenated())))
    };
    update.federated.iter().filter_map(shown)
}

fn x509_bundles(snapshot: &Snapshot, found: &BTreeSet<Selector>, _: Timestamp) -> Result<X509BundlesResponse, Status> {
    let update = entitled(snapshot, found)?;
    let own = (update.bundle.trust_domain.id(), Bytes::from(update.bundle.concatenated()));
    Ok(X509BundlesResponse {
        crl: update.crl.clone(),
        bundles: std::iter::once(own).chain(federated(update)).collect(),
    })
}

fn jwt_bundles(snapshot: &Snapshot, found: &BTreeSet<Selector>, _: Timestamp) -> Result<JwtBundlesResponse, Status> {
    let update = entitled(snapshot, found)?;
    let shown = |b: &TrustBundle| (b.trust_domain.id(), Bytes::from(b.jwt_jwks().to_string()));
    let all = std::iter::once(&update.bundle).chain(update.federated.values());
    Ok(JwtBundlesResponse { bundles: all.map(shown).collect() })
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Messages<X509svidResponse>;
    type FetchX509BundlesStream = Messages<X509BundlesResponse>;
    type FetchJWTBundlesStream = Messages<JwtBundlesResponse>;
    type FetchWITSVIDStream = Messages<WitsvidResponse>;
    type FetchWITBundlesStream = Messages<WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.stream(self.caller(&request).await?, x509_svids).await
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.stream(self.caller(&request).await?, x509_bundles).await
    }

    async fn fetch_jwtsvid(&self, request: Request<JwtsvidRequest>) -> Result<Response<JwtsvidResponse>, Status> {
        let caller = self.caller(&request).await?;
        let JwtsvidRequest { audience, spiffe_id } = request.into_inner();
        if audience.is_empty() || audience.iter().any(String::is_empty) {
            return Err(Status::invalid_argument("audience must be specified"));
        }
        let wanted = (!spiffe_id.is_empty()).then(|| spiffe_id.parse::<SpiffeId>());
        let wanted = wanted.transpose().map_err(|e| Status::invalid_argument(format!("spiffe_id: {e}")))?;
        let snapshot = self.present(&caller)?;
        let mut entries = snapshot.matching(&caller.found);
        entries.retain(|e| wanted.as_ref().is_none_or(|id| e.spiffe_id == *id));
        if entries.is_empty() {
            return Err(no_identity());
        }
        let sequence = entitled(&snapshot, &caller.found)?.bundle.sequence;
        let (mut svids, mut seen) = (Vec::new(), BTreeSet::new());
        for entry in entries {
            let svid = self.jwt(&entry.spiffe_id, &audience, sequence).await?;
            let hint = entry.hint.clone().filter(|h| seen.insert(h.clone())).unwrap_or_default();
            svids.push(Jwtsvid { spiffe_id: entry.spiffe_id.to_string(), svid, hint });
        }
        Ok(Response::new(JwtsvidResponse { svids }))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.stream(self.caller(&request).await?, jwt_bundles).await
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let caller = self.caller(&request).await?;
        let ValidateJwtsvidRequest { audience, svid } = request.into_inner();
        if audience.is_empty() || svid.is_empty() {
            return Err(Status::invalid_argument("audience and svid must be specified"));
        }
        let snapshot = self.present(&caller)?;
        let update = entitled(&snapshot, &caller.found)?;
        let bundle_of = |id: &SpiffeId| {
            let domain = id.trust_domain();
            if domain == update.bundle.trust_domain { Some(&update.bundle) } else { update.federated.get(&domain) }
        };
        let verified = jwt_svid::verify(&svid, &audience, bundle_of, self.keeper.now());
        let verified = verified.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let claims = verified.claims.into_iter().map(|(name, value)| (name, claim(value))).collect();
        Ok(Response::new(ValidateJwtsvidResponse {
            spiffe_id: verified.spiffe_id.to_string(),
            claims: Some(prost_types::Struct { fields: claims }),
        }))
    }

    async fn fetch_witsvid(&self, _: Request<WitsvidRequest>) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(wit())
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(wit())
    }
}

fn wit() -> Status {
    Status::unimplemented("the WIT-SVID profile is not stable yet and not served here")
}

/// A claim as a protobuf value.
fn claim(value: Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(b) => Kind::BoolValue(b),
        Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(items) => {
            Kind::ListValue(prost_types::ListValue { values: items.into_iter().map(claim).collect() })
        }
        Value::Object(members) => {
            let fields = members.into_iter().map(|(name, value)| (name, claim(value))).collect();
            Kind::StructValue(prost_types::Struct { fields })
        }
    };
    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::keys::P256Key;
    use crate::protocol::svid::X509Svid;

    /// A leaf of the public test chains; only its place in an answer matters here.
    fn held(key: &Arc<P256Key>) -> Arc<HeldSvid> {
        let pem = include_str!("../../certs/chains/good.pem");
        let der = crate::net::fetch::pem_certificates(pem).expect("PEM").remove(0);
        let svid = X509Svid::parse(&der).expect("a leaf");
        let renew_after = svid.not_after;
        Arc::new(HeldSvid {
            svid,
            chain: Bytes::from(der),
            key: key.clone(),
            issuer: String::new(),
            renew_after,
            version: String::new(),
        })
    }

    #[test]
    fn w2_a_hint_stands_once_in_an_answer() {
        let entry = |path: &str, hint: Option<&str>| AgentEntry {
            spiffe_id: format!("spiffe://example.org/{path}").parse().expect("legal"),
            selectors: Vec::new(),
            hint: hint.map(Into::into),
            version: String::new(),
        };
        let key = Arc::new(P256Key::generate());
        let entries =
            [entry("a", Some("internal")), entry("b", None), entry("c", Some("internal")), entry("d", Some("x"))];
        let svid = held(&key);
        let identities: Vec<(&AgentEntry, &Arc<HeldSvid>)> = entries.iter().map(|e| (e, &svid)).collect();
        assert_eq!(unique_hints(&identities), ["internal", "", "", "x"]);
    }

    #[test]
    fn w1_claims_keep_their_kinds() {
        use prost_types::value::Kind;
        let value = claim(serde_json::json!({"aud": ["a"], "exp": 5, "ok": true, "none": null, "sub": "s"}));
        let Some(Kind::StructValue(object)) = value.kind else { panic!("an object") };
        let kind = |name: &str| object.fields[name].kind.clone().expect("a kind");
        assert_eq!(kind("exp"), Kind::NumberValue(5.0));
        assert_eq!(kind("ok"), Kind::BoolValue(true));
        assert_eq!(kind("sub"), Kind::StringValue("s".into()));
        assert_eq!(kind("none"), Kind::NullValue(0));
        assert!(matches!(kind("aud"), Kind::ListValue(list) if list.values.len() == 1));
    }
}
