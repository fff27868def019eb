//! What a crash left: an exchange that was admitted and never ended gets its end, with what its recording still holds.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::digest::Sha256;
use crate::domain::leaf::{Completion, Event, Leaf, Opened, Staged};
use crate::domain::time::Timestamp;
use crate::evidence::EvidenceError;
use crate::evidence::files::EvidenceDir;
use crate::evidence::segments::{self, Ending};
use crate::protocol::transcript::{Head, RecordingId};

/// How such an exchange ended.
pub const CRASH: &str = "crash";

/// Admissions without a completion, found entry by entry.
#[derive(Default)]
pub struct OpenExchanges(BTreeMap<String, (Opened, Timestamp)>);

impl OpenExchanges {
    /// Takes the next entry of the log.
    pub fn see(&mut self, entry: &[u8]) {
        let Ok(leaf) = serde_json::from_slice::<Leaf>(entry) else { return };
        if let Some(opened) = leaf.event.opens() {
            self.0.insert(opened.request_id.clone(), (opened, leaf.time));
        } else if let Event::Completion(completion) = leaf.event {
            self.0.remove(&completion.request_id);
        }
    }

    /// Gives the closing leaves, with what is left of each recording to its last whole frame. What upstream was sent and
    /// what the mask did is not known any more: those counts are zero.
    pub fn settle(self, dir: &EvidenceDir, now: Timestamp) -> Result<Vec<Staged>, EvidenceError> {
        let id = |a: &Opened| RecordingId::parse(&a.request_id).filter(|_| a.recorded);
        let ids: BTreeSet<RecordingId> = self.0.values().filter_map(|(a, _)| id(a)).collect();
        let since = self.0.values().map(|(_, time)| *time).min().unwrap_or(now);
        let mut found = segments::ends(dir, &ids, since)?;
        let closed = self.0.values().map(|(a, _)| close(a, id(a).and_then(|id| found.remove(&id)), now));
        Ok(closed.collect())
    }
}

fn close(opened: &Opened, recorded: Option<Ending>, now: Timestamp) -> Staged {
    let recorded_sha256 = recorded.as_ref().map(|r| r.tally.digest());
    let Ending { tally, head, at_ms } = recorded.unwrap_or_default();
    let head = serde_json::from_slice::<Head>(&head).ok();
    let (response_sha256, response_bytes) = tally.response();
    let completion = Completion {
        request_id: opened.request_id.clone(),
        spiffe_id: opened.spiffe_id.clone(),
        status: head.and_then(|h| h.line.parse().ok()).unwrap_or(0),
        request_bytes: 0,
        request_sha256: Sha256::of(b""),
        response_bytes,
        response_sha256,
        upstream_bytes: 0,
        masked: BTreeMap::new(),
        recording_sha256: recorded_sha256,
        ended: CRASH.to_owned(),
        duration_ms: u64::from(at_ms),
    };
    Staged::plain(now, Event::Completion(completion))
}
