//! Plays a recording back.

use std::fs;

use crate::domain::recording::FrameKind;
use crate::evidence::EvidenceError;
use crate::evidence::files::EvidenceDir;
use crate::protocol::transcript::{Transcript, decode};

/// Reads one recording to its last whole frame.
pub fn read(dir: &EvidenceDir, request_id: &str) -> Result<Transcript, EvidenceError> {
    let missing = || EvidenceError::NotFound(format!("there is no recording of request {request_id}"));
    let path = dir.recording(request_id).ok_or_else(missing)?;
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(missing()),
        Err(e) => return Err(EvidenceError::io("read", &path)(e)),
    };
    decode(&bytes).ok_or_else(|| EvidenceError::Damaged { path, what: "it does not begin as a recording".into() })
}

/// The response body as the client saw it.
pub fn response_body(transcript: &Transcript) -> Vec<u8> {
    transcript.joined(FrameKind::ResponseBody)
}
