//! Client authentication: `tls_client_auth` by URI SAN (RFC 8705 section 2.1.2).

use std::collections::BTreeMap;

use crate::domain::people::Entry;
use crate::domain::refusal::{OauthError, Refusal};
use crate::domain::revocation::Subject;
use crate::domain::spiffe_id::TrustDomain;
use crate::net::listener::Peer;
use crate::protocol::svid::X509Svid;
use crate::store::Stores;

/// A workload that its certificate has authenticated.
pub struct Client {
    /// Its certificate.
    pub svid: X509Svid,
    /// Its registration.
    pub entry: Entry,
}

/// Parameters of the form, each occurring once.
pub type Form = BTreeMap<String, String>;

fn invalid_client(detail: impl Into<String>) -> Refusal {
    Refusal { error: Some(OauthError::InvalidClient), ..Refusal::new(401, "client", detail) }
}

fn invalid_request(detail: &str) -> Refusal {
    Refusal::new(400, "request", detail).with_error(OauthError::InvalidRequest)
}

/// Authenticates the client of a token request.
pub fn authenticate(stores: &Stores, peer: &Peer, form: &Form, other_method: bool) -> Result<Client, Refusal> {
    let other = ["client_assertion", "client_assertion_type", "client_secret"].iter().any(|p| form.contains_key(*p));
    if peer.leaf.is_some() && (other || other_method) {
        return Err(invalid_request("more than one method of client authentication (RFC 6749 section 2.3)"));
    }
    let leaf = peer.leaf.as_ref().ok_or_else(|| invalid_client("the connection has no client certificate"))?;
    let svid = X509Svid::parse(leaf).map_err(|e| invalid_client(e.to_string()))?;
    let client_id =
        form.get("client_id").ok_or_else(|| invalid_request("client_id is missing; it is the workload's SPIFFE ID"))?;
    if client_id != svid.spiffe_id.as_str() {
        return Err(invalid_client("client_id is not the URI SAN of the certificate"));
    }
    if svid.spiffe_id.is_reserved() {
        return Err(invalid_client("a person's, a node's or a server's certificate gets no access token"));
    }
    let now = stores.clock.now();
    if now >= svid.not_after {
        return Err(invalid_client("the certificate of this connection has ended"));
    }
    let entry = stores.entries.get(&svid.spiffe_id).filter(|e| e.expires_at.is_none_or(|end| end > now));
    let entry = entry.ok_or_else(|| invalid_client("the workload is not registered any more"))?;
    let subject = Subject { serial: Some(svid.serial.clone()), jkt: Some(svid.key.jkt()), ..Subject::workload(&entry) };
    if let Some(kind) = stores.revocations.watch().borrow().stops(&subject, now) {
        return Err(invalid_client("the workload is revoked").because(kind));
    }
    Ok(Client { svid, entry })
}

impl Client {
    /// A certificate of our own trust domain counts only if the ledger has it: what a stolen CA key signed was issued to
    /// nobody. What came through a node that is stopped is stopped with it.
    pub async fn check_issued(&self, stores: &Stores, own: &TrustDomain) -> Result<(), Refusal> {
        if !self.svid.spiffe_id.is_member_of(own) {
            return Ok(());
        }
        let row = stores.issued.by_serial(&self.svid.serial).await?.filter(|r| r.spiffe_id == self.svid.spiffe_id);
        let row = row.ok_or_else(|| invalid_client("the certificate was not issued here"))?;
        let subject = Subject { node: row.lineage.node, ..Subject::workload(&self.entry) };
        match stores.revocations.watch().borrow().stops(&subject, stores.clock.now()) {
            Some(kind) => Err(invalid_client("the workload is revoked").because(kind)),
            None => Ok(()),
        }
    }
}
