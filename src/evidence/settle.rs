//! What a crash left: an exchange that was admitted and never ended gets its end, with what its recording still holds.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};

use crate::domain::digest::{Hasher, Sha256};
use crate::domain::leaf::{Admission, Completion, Event, Leaf, Staged};
use crate::domain::recording::FrameKind;
use crate::domain::time::Timestamp;
use crate::evidence::EvidenceError;
use crate::evidence::files::EvidenceDir;
use crate::protocol::transcript::{Head, Transcript, decode};

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

    /// Cuts each recording to its last whole frame and gives the closing leaves. What upstream was sent and what the
    /// mask did is not known any more: those counts are zero.
    pub fn settle(self, dir: &EvidenceDir, now: Timestamp) -> Result<Vec<Staged>, EvidenceError> {
        self.0.into_values().map(|admission| close(&admission, dir, now)).collect()
    }
}

fn close(admission: &Admission, dir: &EvidenceDir, now: Timestamp) -> Result<Staged, EvidenceError> {
    let recorded = if admission.recorded { cut(dir, &admission.request_id)? } else { None };
    let (transcript, digest) = recorded.unzip();
    let frames = transcript.as_ref().map(|t| t.frames.as_slice()).unwrap_or_default();
    let head = frames.iter().find(|f| f.kind == FrameKind::ResponseHead);
    let head = head.and_then(|f| serde_json::from_slice::<Head>(&f.payload).ok());
    let mut response = Hasher::default();
    let body = transcript.as_ref().map(|t| t.joined(FrameKind::ResponseBody)).unwrap_or_default();
    response.update(&body);
    let completion = Completion {
        request_id: admission.request_id.clone(),
        spiffe_id: admission.spiffe_id.clone(),
        status: head.and_then(|h| h.line.parse().ok()).unwrap_or(0),
        request_bytes: 0,
        request_sha256: Sha256::of(b""),
        response_bytes: body.len() as u64,
        response_sha256: response.so_far(),
        upstream_bytes: 0,
        masked: BTreeMap::new(),
        recording_sha256: digest,
        ended: CRASH.to_owned(),
        duration_ms: frames.last().map_or(0, |f| u64::from(f.at_ms)),
    };
    Ok(Staged::plain(now, Event::Completion(completion)))
}

/// The recording up to its last whole frame; none if the crash came before it was on disk.
fn cut(dir: &EvidenceDir, request_id: &str) -> Result<Option<(Transcript, Sha256)>, EvidenceError> {
    let Some(path) = dir.recording(request_id) else { return Ok(None) };
    let Some((transcript, bytes)) = fs::read(&path).ok().and_then(|bytes| Some((decode(&bytes)?, bytes))) else {
        return Ok(None);
    };
    let io = |doing| EvidenceError::io(doing, &path);
    let file = OpenOptions::new().write(true).open(&path).map_err(io("open"))?;
    file.set_len(transcript.whole as u64).map_err(io("cut"))?;
    file.sync_all().map_err(io("sync"))?;
    let digest = Sha256::of(&bytes[..transcript.whole]);
    Ok(Some((transcript, digest)))
}
