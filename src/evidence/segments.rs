//! Reads recordings from the segments that they share.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use crate::evidence::EvidenceError;
use crate::evidence::files::EvidenceDir;
use crate::protocol::transcript::{Record, RecordingId, Tally, Transcript, records};

/// The segments of a directory, oldest first.
pub fn list(dir: &EvidenceDir) -> Result<Vec<PathBuf>, EvidenceError> {
    let path = dir.recordings();
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(EvidenceError::io("read", &path)(e)),
    };
    let segment = |path: &PathBuf| path.extension().is_some_and(|e| e == "seg");
    let mut found: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(segment).collect();
    found.sort();
    Ok(found)
}

/// Shows every whole frame, oldest first; one segment is in memory at a time.
fn each(dir: &EvidenceDir, mut see: impl FnMut(&Record<'_>)) -> Result<(), EvidenceError> {
    for path in list(dir)? {
        let bytes = fs::read(&path).map_err(EvidenceError::io("read", &path))?;
        records(&bytes).for_each(|record| see(&record));
    }
    Ok(())
}

/// What every recording comes to.
pub fn tallies(dir: &EvidenceDir) -> Result<HashMap<RecordingId, Tally>, EvidenceError> {
    let mut found: HashMap<RecordingId, Tally> = HashMap::new();
    each(dir, |record| {
        found.entry(record.id).or_default().take(record);
    })?;
    Ok(found)
}

/// Some recordings, to their last whole frame. What is not there is not among them.
pub fn transcripts(
    dir: &EvidenceDir,
    ids: &[RecordingId],
) -> Result<HashMap<RecordingId, (Transcript, Tally)>, EvidenceError> {
    let mut found: HashMap<RecordingId, (Transcript, Tally)> = HashMap::new();
    if ids.is_empty() {
        return Ok(found);
    }
    each(dir, |record| {
        if ids.contains(&record.id) {
            let (transcript, tally) = found.entry(record.id).or_default();
            if tally.take(record) {
                transcript.push(record);
            }
        }
    })?;
    Ok(found)
}
