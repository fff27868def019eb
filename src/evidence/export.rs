//! Exports the log for other people's tools.

use serde_json::Value;

use crate::evidence::EvidenceError;
use crate::evidence::reader::LogReader;
use crate::protocol::ocsf;

/// OCSF JSON objects of all entries from `from` on.
pub fn ocsf(reader: &LogReader, from: u64) -> Result<Vec<Value>, EvidenceError> {
    let origin = reader.checkpoint().map(|c| c.origin).unwrap_or_default();
    let trust_domain = origin.split('/').next().unwrap_or_default().to_owned();
    let entries = reader.entries(from)?;
    Ok(entries.iter().map(|e| ocsf::line(&e.leaf, e.index, &origin, &trust_domain)).collect())
}
