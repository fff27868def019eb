//! What a crash left: an exchange that was admitted and never ended gets its end, with what its recording still holds.

use std::collections::BTreeMap;

use crate::domain::digest::Sha256;
use crate::domain::leaf::{Admission, Completion, Event, Leaf, Staged};
use crate::domain::recording::FrameKind;
use crate::domain::time::Timestamp;
use crate::evidence::EvidenceError;
use crate::evidence::files::EvidenceDir;
use crate::evidence::segments;
use crate::protocol::transcript::{Head, RecordingId, Tally, Transcript};

/// How such an exchange ended.
pub const CRASH: &str = "crash";

/// Admissions without a completion, found entry by entry.
#[derive(Default)]
pub struct OpenExchanges(BTreeMap<String, Admission>);

impl OpenExchanges {
    /// Takes the next entry of the log.
    pub fn see(&mut self, entry: &[u8]) {
        match serde_json::from_slice(entry).map(|leaf: Leaf| leaf.event) {
            Ok(Event::Admission(admission)) => {
                self.0.insert(admission.request_id.clone(), admission);
            }
            Ok(Event::Completion(completion)) => {
                self.0.remove(&completion.request_id);
            }
            _ => {}
        }
    }

    /// Gives the closing leaves, with what is left of each recording to its last whole frame. What upstream was sent and
    /// what the mask did is not known any more: those counts are zero.
    pub fn settle(self, dir: &EvidenceDir, now: Timestamp) -> Result<Vec<Staged>, EvidenceError> {
        let id = |a: &Admission| RecordingId::parse(&a.request_id).filter(|_| a.recorded);
        let ids: Vec<RecordingId> = self.0.values().filter_map(id).collect();
        let mut found = segments::transcripts(dir, &ids)?;
        let closed = self.0.values().map(|a| close(a, id(a).and_then(|id| found.remove(&id)), now));
        Ok(closed.collect())
    }
}

fn close(admission: &Admission, recorded: Option<(Transcript, Tally)>, now: Timestamp) -> Staged {
    let (transcript, tally) = recorded.unzip();
    let frames = transcript.as_ref().map(|t| t.frames.as_slice()).unwrap_or_default();
    let head = frames.iter().find(|f| f.kind == FrameKind::ResponseHead);
    let head = head.and_then(|f| serde_json::from_slice::<Head>(&f.payload).ok());
    let (response_sha256, response_bytes) = tally.as_ref().unwrap_or(&Tally::default()).response();
    let completion = Completion {
        request_id: admission.request_id.clone(),
        spiffe_id: admission.spiffe_id.clone(),
        status: head.and_then(|h| h.line.parse().ok()).unwrap_or(0),
        request_bytes: 0,
        request_sha256: Sha256::of(b""),
        response_bytes,
        response_sha256,
        upstream_bytes: 0,
        masked: BTreeMap::new(),
        recording_sha256: tally.as_ref().map(Tally::digest),
        ended: CRASH.to_owned(),
        duration_ms: frames.last().map_or(0, |f| u64::from(f.at_ms)),
    };
    Staged::plain(now, Event::Completion(completion))
}
