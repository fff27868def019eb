//! The log in other tools' words.

use std::collections::HashMap;

use serde_json::Value;

use crate::domain::leaf::Event;
use crate::domain::spiffe_id::SpiffeId;
use crate::evidence::EvidenceError;
use crate::evidence::reader::{LogReader, ReadEntry};
use crate::protocol::ocsf;

/// OCSF JSON objects of all entries from `from` on.
pub fn ocsf(reader: &LogReader, from: u64) -> Result<Vec<Value>, EvidenceError> {
    let origin = reader.checkpoint().map(|c| c.origin).unwrap_or_default();
    let trust_domain = origin.split('/').next().unwrap_or_default().to_owned();
    let entries = reader.entries(0)?;
    let certificates = entries.iter().filter_map(|e| match &e.leaf.event {
        Event::Issuance(i) => Some((i.serial.as_str(), &i.spiffe_id)),
        _ => None,
    });
    let certificates: HashMap<&str, &SpiffeId> = certificates.collect();
    let wanted = entries.iter().filter(|e| e.index >= from);
    Ok(wanted
        .map(|e| {
            let by = administrator(e, &trust_domain).or_else(|| approver(e, &certificates));
            ocsf::line(&e.leaf, e.index, &origin, &trust_domain, by)
        })
        .collect())
}

/// Who administered: a person by their SPIFFE ID, a local user by a name of ours.
fn administrator(entry: &ReadEntry, trust_domain: &str) -> Option<String> {
    let by = entry.opened().find_map(|(name, value)| (name == "by").then(|| value.to_owned()))?;
    match by.strip_prefix("local:") {
        Some(uid) => Some(format!("spiffe://{trust_domain}/popgate/local/{uid}")),
        None => Some(by),
    }
}

/// Who decided an approval: whose certificate it was proved by.
fn approver(entry: &ReadEntry, certificates: &HashMap<&str, &SpiffeId>) -> Option<String> {
    let Event::ApprovalChanged(change) = &entry.leaf.event else { return None };
    let serial = change.proved_by.as_deref()?.strip_prefix("certificate:")?;
    certificates.get(serial).map(ToString::to_string)
}
