//! What agents ask for: their entries and bundles as they change, certificates and JWT-SVIDs for their workloads.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::domain::digest::Sha256;
use crate::domain::leaf::{Event, JwtIssuance, Staged};
use crate::domain::people::{Entry, Seconds};
use crate::domain::refusal::Refusal;
use crate::domain::revocation::Subject;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::identity::authority::{Authority, AuthorityError};
use crate::identity::enrol::{Enrolment, Issued};
use crate::identity::issue::{Order, Proof, proved_key};
use crate::identity::profile;
use crate::identity::revocation_lists::RevocationLists;
use crate::protocol::jwt_svid;
use crate::protocol::svid::X509Svid;
use crate::store::{Stores, entropy};

/// How often a quiet stream says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Changes that come together are told together.
const GATHER: Duration = Duration::from_millis(20);
/// Life of a JWT-SVID whose entry names none.
const JWT_TTL: Duration = Duration::from_mins(5);
const MAX_AUDIENCES: usize = 16;

/// An agent whose certificate has been verified and which still stands.
pub struct AgentCaller {
    /// Its node.
    pub node: SpiffeId,
    subject: Subject,
    not_after: Timestamp,
}

impl Enrolment {
    /// The agent behind a certificate.
    pub fn agent(&self, svid: &X509Svid) -> Result<AgentCaller, Refusal> {
        let node = svid.spiffe_id.clone();
        if node.node_name().is_none() {
            return Err(Refusal::new(403, "node", "this is for agents: the certificate is not a node's"));
        }
        let subject = Subject { serial: Some(svid.serial.clone()), jkt: Some(svid.key.jkt()), ..Subject::of(&node) };
        let caller = AgentCaller { node, subject, not_after: svid.not_after };
        self.agent_stands(&caller)?;
        Ok(caller)
    }

    /// Refuses an agent whose node was evicted, or that was stopped.
    pub(super) fn agent_stands(&self, caller: &AgentCaller) -> Result<(), Refusal> {
        if self.stores.clock.now() >= caller.not_after {
            return Err(Refusal::new(401, "certificate", "the node's certificate has ended"));
        }
        if self.stores.nodes.get(&caller.node).is_none() {
            return Err(Refusal::new(403, "node", "this node is evicted: its agent must attest again"));
        }
        self.check_not_stopped(&caller.subject, self.stores.clock.now())
    }

    /// Certificates for workloads of an agent, each order for itself.
    pub async fn issue_through(
        &self,
        caller: &AgentCaller,
        orders: &[(SpiffeId, Vec<u8>)],
    ) -> Vec<Result<Issued, Refusal>> {
        let all = orders.iter().map(|(id, csr)| self.issue_one_through(caller, id, csr));
        // Together, so that they share the log's and the ledger's syncs.
        futures_util::future::join_all(all).await
    }

    async fn issue_one_through(&self, caller: &AgentCaller, id: &SpiffeId, csr: &[u8]) -> Result<Issued, Refusal> {
        self.agent_stands(caller)?;
        let now = self.stores.clock.now();
        let key = proved_key(csr)?;
        let (grant, _) = self.grant_through(&caller.node, id, now)?;
        // Whether the key is another's, the ledger says when the certificate is kept: an agent's key was made for this.
        let evidence = Sha256::of(csr);
        let proof = Proof { method: "agent".into(), evidence, lineage: None, renewable: false };
        self.issue(Order { id: id.clone(), key, grant, proof, renewed: None }, now).await
    }

    /// A CA certificate for a server that issues in this trust domain: the workload's entry must allow it.
    pub async fn issue_downstream(&self, svid: &X509Svid, csr: &[u8]) -> Result<Vec<Vec<u8>>, Refusal> {
        let now = self.stores.clock.now();
        let grant = self.grant(&svid.spiffe_id, now)?;
        let subject = Subject { serial: Some(svid.serial.clone()), jkt: Some(svid.key.jkt()), ..grant.subject };
        self.check_not_stopped(&subject, now)?;
        if !self.stores.entries.get(&svid.spiffe_id).is_some_and(|e| e.downstream) {
            return Err(Refusal::new(403, "downstream", "the registration entry does not allow a CA certificate"));
        }
        let key = proved_key(csr)?;
        let life = profile::downstream().life.0;
        let refused = |e: AuthorityError| Refusal::new(403, "downstream", e.to_string());
        let chain = self.authority.issue_ca(&key, life, now).map_err(refused)?;
        let kept = self.authority.keep_downstream(&chain[0], now);
        let kept = kept.map_err(|e| Refusal::unavailable("the certificate authority", e))?;
        let event = Event::Authority {
            role: format!("downstream of {}", svid.spiffe_id),
            key_id: kept.id,
            certificate_sha256: kept.certificate_sha256,
            not_after: Some(kept.not_after),
            state: Some("active".into()),
        };
        self.stores.evidence.append(Staged::plain(now, event)).await?;
        Ok(chain)
    }

    /// A JWT-SVID for a workload of an agent.
    pub async fn jwt_through(
        &self,
        caller: &AgentCaller,
        id: &SpiffeId,
        audiences: &[String],
    ) -> Result<(String, Timestamp), Refusal> {
        self.agent_stands(caller)?;
        let now = self.stores.clock.now();
        let (_, entry) = self.grant_through(&caller.node, id, now)?;
        self.jwt(&entry, audiences, Some(&caller.node), now).await
    }

    /// A JWT-SVID for the workload that a certificate authenticates.
    pub async fn jwt_for(&self, svid: &X509Svid, audiences: &[String]) -> Result<(String, Timestamp), Refusal> {
        let now = self.stores.clock.now();
        let entry = self.stores.entries.get(&svid.spiffe_id).filter(|e| !e.has_expired(now));
        let entry = entry.ok_or_else(|| Refusal::new(403, "entry", "JWT-SVIDs are for registered workloads"))?;
        let subject =
            Subject { serial: Some(svid.serial.clone()), jkt: Some(svid.key.jkt()), ..Subject::workload(&entry) };
        self.check_not_stopped(&subject, now)?;
        self.jwt(&entry, audiences, None, now).await
    }

    async fn jwt(
        &self,
        entry: &Entry,
        audiences: &[String],
        node: Option<&SpiffeId>,
        now: Timestamp,
    ) -> Result<(String, Timestamp), Refusal> {
        let sound = |a: &String| !a.is_empty() && a.len() <= 1024 && !a.chars().any(char::is_control);
        if audiences.is_empty() || audiences.len() > MAX_AUDIENCES || !audiences.iter().all(sound) {
            return Err(Refusal::new(400, "audience", "name one to sixteen audiences, each a text"));
        }
        let signer = self.authority.jwt_signer();
        let signer = signer.ok_or_else(|| Refusal::unavailable("the JWT-SVID authority", "none is active"))?;
        let until = now.plus(entry.jwt_svid_ttl.map_or(JWT_TTL, Seconds::duration)).min(signer.not_after);
        let jti = entropy::random_id();
        let token = jwt_svid::issue(&entry.spiffe_id, audiences, &jti, (now, until), &signer.kid, &signer.key);
        let event = Event::JwtIssuance(JwtIssuance {
            spiffe_id: entry.spiffe_id.clone(),
            node: node.cloned(),
            key_id: signer.kid,
            token_sha256: Sha256::of(token.as_bytes()),
            audience_sha256: Sha256::of(audiences.join("\n").as_bytes()),
            expires_at: until,
        });
        self.stores.evidence.append(Staged::plain(now, event)).await?;
        metrics::counter!("popgate_jwt_svids_issued_total").increment(1);
        Ok((token, until))
    }

    /// Tells an agent its state now and after each change, a JSON document a line, until it is stopped or goes.
    pub async fn tell_agent(
        self: Arc<Self>,
        caller: AgentCaller,
        lists: Arc<RevocationLists>,
        lines: mpsc::Sender<Bytes>,
    ) {
        let (mut entries, mut authorities) = (self.stores.entries.changes(), self.authority.changes());
        let (mut bundles, mut revoked) = (self.stores.bundles.changes(), self.stores.revocations.watch());
        let mut told = String::new();
        loop {
            entries.mark_unchanged();
            authorities.mark_unchanged();
            bundles.mark_unchanged();
            revoked.mark_unchanged();
            if let Err(refusal) = self.agent_stands(&caller) {
                tracing::warn!(node = %caller.node, why = refusal.detail, "an agent's stream ends");
                return;
            }
            let state = agent_state(&self.stores, &self.authority, &lists, &caller.node).await;
            let line = state.to_string();
            if line != told {
                if lines.send(Bytes::from(format!("{line}\n"))).await.is_err() {
                    return;
                }
                told = line;
            }
            let changed = async {
                tokio::select! {
                    _ = entries.changed() => {}
                    _ = authorities.changed() => {}
                    _ = bundles.changed() => {}
                    _ = revoked.changed() => {}
                }
            };
            tokio::select! {
                () = changed => tokio::time::sleep(GATHER).await,
                () = lines.closed() => return,
                () = tokio::time::sleep(HEARTBEAT) => if lines.send(Bytes::from_static(b"{}\n")).await.is_err() {
                    return;
                },
            }
        }
    }
}

/// Everything that an agent may know: its own entries and no others.
async fn agent_state(stores: &Stores, authority: &Authority, lists: &RevocationLists, node: &SpiffeId) -> Value {
    let now = stores.clock.now();
    let revoked = stores.revocations.watch().borrow().clone();
    let stands = |e: &Entry| {
        !e.has_expired(now)
            && revoked.stops(&Subject { node: Some(node.clone()), ..Subject::workload(e) }, now).is_none()
    };
    let mut entries = stores.entries.of_node(node);
    entries.retain(stands);
    entries.sort_by(|a, b| a.spiffe_id.cmp(&b.spiffe_id));
    let shown = |e: &Entry| {
        // The registration's digest tells the agent when a certificate no longer says what its entry does.
        let says = json!([e.svid_ttl, e.dns_names]).to_string();
        json!({
            "spiffe_id": e.spiffe_id, "selectors": e.selectors, "hint": e.hint, "version": Sha256::of(says.as_bytes()),
        })
    };
    let federated: serde_json::Map<String, Value> = stores
        .bundles
        .list()
        .into_iter()
        .filter_map(|b| Some((b.trust_domain.to_string(), serde_json::from_str(&b.document).ok()?)))
        .collect();
    json!({
        "entries": entries.iter().map(shown).collect::<Vec<_>>(),
        "bundle": authority.bundle().to_jwks(),
        "federated": federated,
        "tainted": authority.tainted(),
        "crl": lists.current().await.iter().map(|l| BASE64_STANDARD.encode(l)).collect::<Vec<_>>(),
    })
}
