//! Plays a recording back.

use crate::domain::recording::FrameKind;
use crate::evidence::EvidenceError;
use crate::evidence::files::EvidenceDir;
use crate::evidence::segments;
use crate::protocol::transcript::{RecordingId, Transcript};

/// Reads one recording to its last whole frame.
pub fn read(dir: &EvidenceDir, request_id: &str) -> Result<Transcript, EvidenceError> {
    let missing = || EvidenceError::NotFound(format!("there is no recording of request {request_id}"));
    let id = RecordingId::parse(request_id).ok_or_else(missing)?;
    segments::transcript(dir, id)?.ok_or_else(missing)
}

/// The response body as the client saw it.
pub fn response_body(transcript: &Transcript) -> Vec<u8> {
    transcript.joined(FrameKind::ResponseBody)
}
