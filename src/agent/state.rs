//! What the agent knows: its entries, their certificates, the bundles. Each generation is whole and never changes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use crate::domain::selector::{Selector, SelectorIndex};
use crate::domain::spiffe_id::{SpiffeId, TrustDomain};
use crate::domain::time::Timestamp;
use crate::net::keys::P256Key;
use crate::protocol::bundle::TrustBundle;
use crate::protocol::svid::{self, X509Svid};

/// One entry of this agent's node.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct AgentEntry {
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// What the workload must be.
    pub selectors: Vec<Selector>,
    /// What the workload is told about it.
    pub hint: Option<String>,
    /// Changes when its certificates must say something else.
    pub version: String,
}

/// A state that the server told.
#[derive(Clone, Debug)]
pub struct Update {
    /// All of this node's entries.
    pub entries: Vec<AgentEntry>,
    /// Our trust domain's bundle.
    pub bundle: TrustBundle,
    /// Those of others.
    pub federated: BTreeMap<TrustDomain, TrustBundle>,
    /// Issuing CAs whose certificates are replaced at once.
    pub tainted: Vec<String>,
    /// Revocation lists, DER.
    pub crl: Vec<Bytes>,
    /// The serials in them, hex.
    pub revoked: HashSet<String>,
}

#[derive(Deserialize)]
struct Wire {
    entries: Vec<AgentEntry>,
    bundle: Value,
    #[serde(default)]
    federated: BTreeMap<String, Value>,
    #[serde(default)]
    tainted: Vec<String>,
    #[serde(default)]
    crl: Vec<String>,
}

impl Update {
    /// Reads a line of the server's stream; none for one that only says that the server lives.
    pub fn parse(line: &[u8], trust_domain: &TrustDomain) -> Result<Option<Self>, String> {
        let value: Value = serde_json::from_slice(line).map_err(|e| e.to_string())?;
        if value.as_object().is_some_and(serde_json::Map::is_empty) {
            return Ok(None);
        }
        let wire: Wire = serde_json::from_value(value).map_err(|e| e.to_string())?;
        let read = |domain: TrustDomain, value: &Value| {
            TrustBundle::parse(domain, value.to_string().as_bytes()).map_err(|e| e.to_string())
        };
        let mut federated = BTreeMap::new();
        for (name, value) in &wire.federated {
            let domain = TrustDomain::parse(name).map_err(|e| e.to_string())?;
            if domain != *trust_domain {
                federated.insert(domain.clone(), read(domain, value)?);
            }
        }
        let crl = wire.crl.iter().map(|text| BASE64_STANDARD.decode(text).map(Bytes::from).map_err(|e| e.to_string()));
        let crl = crl.collect::<Result<Vec<_>, _>>()?;
        Ok(Some(Self {
            entries: wire.entries,
            bundle: read(trust_domain.clone(), &wire.bundle)?,
            federated,
            tainted: wire.tainted,
            revoked: crl.iter().flat_map(|list| svid::revoked_serials(list)).collect(),
            crl,
        }))
    }
}

/// A certificate that the agent holds for a workload, with the key that it made for it.
pub struct HeldSvid {
    /// The leaf, read.
    pub svid: X509Svid,
    /// Leaf first, one after the other.
    pub chain: Bytes,
    /// PKCS#8: the standard has the agent make the key and hand it out.
    pub key: Arc<P256Key>,
    /// The issuing CA: SHA-256 of its SPKI, hex.
    pub issuer: String,
    /// When to replace it.
    pub renew_after: Timestamp,
    /// The version of the entry that it was issued for.
    pub version: String,
}

/// One generation of what the agent knows.
#[derive(Default)]
pub struct Snapshot {
    /// The server's last word; none before the first.
    pub update: Option<Arc<Update>>,
    index: SelectorIndex<usize>,
    /// Certificates by SPIFFE ID.
    pub svids: HashMap<SpiffeId, Arc<HeldSvid>>,
}

impl Snapshot {
    /// A generation; certificates of entries that are gone are dropped.
    pub fn new(update: Arc<Update>, mut svids: HashMap<SpiffeId, Arc<HeldSvid>>) -> Self {
        let mut index = SelectorIndex::default();
        for (i, entry) in update.entries.iter().enumerate() {
            index.insert(i, &entry.selectors);
        }
        svids.retain(|id, _| update.entries.iter().any(|e| e.spiffe_id == *id));
        Self { update: Some(update), index, svids }
    }

    /// The same domain with nobody in it: the server refuses this agent.
    pub fn refused(&self) -> Self {
        let Some(update) = &self.update else { return Self::default() };
        Self::new(Arc::new(Update { entries: Vec::new(), ..Update::clone(update) }), HashMap::new())
    }

    /// Whether an entry asks for the digest of an executable.
    pub fn wants_digest(&self) -> bool {
        let entries = self.update.iter().flat_map(|u| &u.entries);
        entries.flat_map(|e| &e.selectors).any(|s| s.as_str().starts_with("unix:sha256:"))
    }

    /// The entries that fit a workload, by SPIFFE ID: the first is the default identity, so the order is stable.
    pub fn matching(&self, found: &BTreeSet<Selector>) -> Vec<&AgentEntry> {
        let Some(update) = &self.update else { return Vec::new() };
        let mut fitting = self.index.matching(found);
        fitting.sort_unstable();
        fitting.into_iter().filter_map(|i| update.entries.get(i)).collect()
    }

    /// The matching entries with the certificates that may be handed out at `now`.
    pub fn identities(&self, found: &BTreeSet<Selector>, now: Timestamp) -> Vec<(&AgentEntry, &Arc<HeldSvid>)> {
        let revoked = |serial: &String| self.update.as_ref().is_some_and(|u| u.revoked.contains(serial));
        let held = |e: &'_ AgentEntry| self.svids.get(&e.spiffe_id).filter(|s| !revoked(&s.svid.serial));
        let held = |e| Some((e, held(e)?));
        self.matching(found).into_iter().filter_map(held).filter(|(_, s)| now < s.svid.not_after).collect()
    }

    /// Entries whose certificate is to be had or replaced.
    pub fn due(&self, now: Timestamp) -> Vec<AgentEntry> {
        let Some(update) = &self.update else { return Vec::new() };
        let due = |entry: &&AgentEntry| {
            self.svids.get(&entry.spiffe_id).is_none_or(|held| {
                let ended = now >= held.renew_after || update.revoked.contains(&held.svid.serial);
                ended || held.version != entry.version || update.tainted.contains(&held.issuer)
            })
        };
        update.entries.iter().filter(due).cloned().collect()
    }

    /// When the next certificate comes due.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.svids.values().map(|held| held.renew_after).min()
    }
}
