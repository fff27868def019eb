//! Reads recordings from the segments that they share.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use crate::domain::recording::FrameKind;
use crate::domain::time::Timestamp;
use crate::evidence::EvidenceError;
use crate::evidence::files::EvidenceDir;
use crate::net::files::sync_dir;
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

/// One recording, to its last whole frame; none if nothing of it is there.
pub fn transcript(dir: &EvidenceDir, id: RecordingId) -> Result<Option<Transcript>, EvidenceError> {
    let (mut found, mut tally) = (None, Tally::default());
    each(dir, |record| {
        if record.id == id && tally.take(record) {
            found.get_or_insert_with(Transcript::default).push(record);
        }
    })?;
    Ok(found)
}

/// What is left of a recording that nobody ended.
#[derive(Default)]
pub struct Ending {
    /// What its frames come to.
    pub tally: Tally,
    /// The answer's head, as it was recorded.
    pub head: Vec<u8>,
    /// When its last frame came, in milliseconds from its beginning.
    pub at_ms: u32,
}

/// Clocks of files and of the log may differ by this.
const SLACK: Duration = Duration::from_hours(1);

/// What is left of some recordings, the oldest of which began at `since`. The segments that were read are synced: an entry
/// will rest on them.
pub fn ends(
    dir: &EvidenceDir,
    ids: &BTreeSet<RecordingId>,
    since: Timestamp,
) -> Result<HashMap<RecordingId, Ending>, EvidenceError> {
    let mut found: HashMap<RecordingId, Ending> = HashMap::new();
    if ids.is_empty() {
        return Ok(found);
    }
    let oldest = UNIX_EPOCH + Duration::from_secs(since.unix()).saturating_sub(SLACK);
    let recent = |path: &PathBuf| fs::metadata(path).and_then(|m| m.modified()).is_ok_and(|at| at >= oldest);
    for path in list(dir)?.into_iter().filter(recent) {
        let bytes = fs::read(&path).map_err(EvidenceError::io("read", &path))?;
        for record in records(&bytes).filter(|r| ids.contains(&r.id)) {
            let ending = found.entry(record.id).or_default();
            if ending.tally.take(&record) {
                ending.at_ms = record.at_ms;
                if record.kind == FrameKind::ResponseHead {
                    ending.head = record.payload.to_vec();
                }
            }
        }
        fs::File::open(&path).and_then(|file| file.sync_all()).map_err(EvidenceError::io("sync", &path))?;
    }
    sync_dir(&dir.recordings()).map_err(EvidenceError::io("sync", &dir.recordings()))?;
    Ok(found)
}
