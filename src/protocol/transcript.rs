//! Recording frames: what crossed the gateway, with times and checksums. Credentials have no frame.
//!
//! Recordings share segments: each frame carries the id of its recording and its place in it, so that a recording is what
//! its frames are, whatever lies between them. A damaged frame ends its own recording and no other.

use serde::{Deserialize, Serialize};

use crate::domain::digest::{Hasher, Sha256};
use crate::domain::recording::FrameKind;

/// First bytes of every segment.
const MAGIC: &[u8] = b"popgate-recordings-2\n";
const HEADER: usize = MARK + 16 + 4 + 1 + 4 + 4;
const MARK: usize = 12;
/// Longest payload of one frame; longer chunks are cut.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Start line and headers of one direction.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// `POST https://gw/v1/runs` or `201`.
    pub line: String,
    /// Names and values in order, without credentials.
    pub headers: Vec<(String, String)>,
}

/// The name of a recording: a request id, which is 32 hex digits of our own making.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RecordingId([u8; 16]);

impl RecordingId {
    /// Reads a request id.
    pub fn parse(request_id: &str) -> Option<Self> {
        let mut id = [0; 16];
        hex::decode_to_slice(request_id, &mut id).ok()?;
        Some(Self(id))
    }
}

/// First bytes of every frame of a segment, by which the next one is found behind a damaged one. Drawn at random and known
/// to no client: what a body holds is never taken for a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mark(pub [u8; MARK]);

impl Mark {
    /// What a segment with this mark begins with.
    pub fn head(self) -> Vec<u8> {
        [MAGIC, &self.0].concat()
    }

    /// A segment's mark: in its head, and again in its first frame, if one of them is damaged.
    fn of(segment: &[u8]) -> Option<Self> {
        let at = |from: usize| segment.get(from..from + MARK)?.try_into().ok().map(Self);
        let (first, second) = (at(MAGIC.len())?, at(MAGIC.len() + MARK));
        let frames = |mark: Self| from_mark(segment, mark).count();
        match second {
            Some(second) if second != first && frames(second) > frames(first) => Some(second),
            _ => Some(first),
        }
    }
}

/// One frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// What it holds.
    pub kind: FrameKind,
    /// Milliseconds since the exchange began.
    pub at_ms: u32,
    /// The bytes.
    pub payload: Vec<u8>,
}

/// One frame where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Whose it is.
    pub id: RecordingId,
    /// Its place among the frames of its recording, from 0.
    pub place: u32,
    /// What it holds.
    pub kind: FrameKind,
    /// Milliseconds since the exchange began.
    pub at_ms: u32,
    /// The bytes that crossed.
    pub payload: &'a [u8],
    /// All of it, as the recording's digest has it.
    pub bytes: &'a [u8],
}

/// Encodes one frame: mark, id, place, kind, time, length, payload, CRC-32 over all of it.
pub fn encode(mark: Mark, id: RecordingId, place: u32, kind: FrameKind, at_ms: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + payload.len() + 4);
    out.extend(mark.0);
    out.extend(id.0);
    out.extend(place.to_be_bytes());
    out.push(kind as u8);
    out.extend(at_ms.to_be_bytes());
    out.extend(u32::try_from(payload.len()).expect("payloads are cut to MAX_PAYLOAD").to_be_bytes());
    out.extend(payload);
    let checksum = crc32fast::hash(&out);
    out.extend(checksum.to_be_bytes());
    out
}

/// The whole frames of a segment, in order.
pub fn records(segment: &[u8]) -> impl Iterator<Item = Record<'_>> {
    Mark::of(segment).into_iter().flat_map(move |mark| from_mark(segment, mark))
}

fn from_mark(segment: &[u8], mark: Mark) -> impl Iterator<Item = Record<'_>> {
    let mut rest = segment.get(MAGIC.len() + MARK..).unwrap_or_default();
    let finder = memchr::memmem::Finder::new(&mark.0).into_owned();
    std::iter::from_fn(move || {
        loop {
            rest = &rest[finder.find(rest)?..];
            if let Some(record) = record(rest) {
                rest = &rest[record.bytes.len()..];
                return Some(record);
            }
            rest = &rest[1..];
        }
    })
}

fn record(bytes: &[u8]) -> Option<Record<'_>> {
    let header = bytes.get(..HEADER)?;
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let length = usize::try_from(word(MARK + 25)).ok().filter(|l| *l <= MAX_PAYLOAD)?;
    let end = HEADER + length;
    let checksum = bytes.get(end..end + 4)?;
    if crc32fast::hash(&bytes[..end]).to_be_bytes() != checksum {
        return None;
    }
    let id = RecordingId(header[MARK..MARK + 16].try_into().ok()?);
    let (place, kind, at_ms) = (word(MARK + 16), FrameKind::from_byte(header[MARK + 20])?, word(MARK + 21));
    Some(Record { id, place, kind, at_ms, payload: &bytes[HEADER..end], bytes: &bytes[..end + 4] })
}

/// What a recording's frames come to, taken one by one. Behind a gap nothing counts: it would read as if nothing had been
/// there.
#[derive(Default)]
pub struct Tally {
    digest: Hasher,
    response: Hasher,
    response_bytes: u64,
    request_bytes: u64,
    next: u32,
    broken: bool,
}

impl Tally {
    /// Takes the next frame; whether it counts.
    pub fn take(&mut self, record: &Record<'_>) -> bool {
        self.broken |= record.place != self.next;
        if self.broken {
            return false;
        }
        self.next += 1;
        self.digest.update(record.bytes);
        if record.kind == FrameKind::ResponseBody {
            self.response.update(record.payload);
            self.response_bytes += record.payload.len() as u64;
        }
        if record.kind == FrameKind::RequestBody {
            self.request_bytes += record.payload.len() as u64;
        }
        true
    }

    /// The digest of its frames.
    pub fn digest(&self) -> Sha256 {
        self.digest.so_far()
    }

    /// Length of the request's body, as it was recorded.
    pub const fn request_bytes(&self) -> u64 {
        self.request_bytes
    }

    /// Digest and length of the response's body.
    pub fn response(&self) -> (Sha256, u64) {
        (self.response.so_far(), self.response_bytes)
    }
}

/// A recording read to its last whole frame.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Transcript {
    /// The whole frames.
    pub frames: Vec<Frame>,
}

impl Transcript {
    /// Adds a frame that counts.
    pub fn push(&mut self, record: &Record<'_>) {
        self.frames.push(Frame { kind: record.kind, at_ms: record.at_ms, payload: record.payload.to_vec() });
    }

    /// Whether its last frame says how it ended.
    pub fn has_ended(&self) -> bool {
        self.frames.last().is_some_and(|f| f.kind == FrameKind::End)
    }

    /// All payloads of one kind, joined.
    pub fn joined(&self, kind: FrameKind) -> Vec<u8> {
        self.frames.iter().filter(|f| f.kind == kind).flat_map(|f| f.payload.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Mark = Mark(*b"twelve bytes");
    const ONE: RecordingId = RecordingId([1; 16]);
    const TWO: RecordingId = RecordingId([2; 16]);

    /// Two recordings of three frames each, interleaved.
    fn segment() -> Vec<u8> {
        let mut bytes = KEY.head();
        for (place, kind, payload) in
            [(0, FrameKind::RequestHead, "{}"), (1, FrameKind::ResponseBody, "hello"), (2, FrameKind::End, "complete")]
        {
            for id in [ONE, TWO] {
                bytes.extend(encode(KEY, id, place, kind, place, payload.as_bytes()));
            }
        }
        bytes
    }

    fn counted(segment: &[u8], id: RecordingId) -> (Transcript, Tally) {
        let (mut transcript, mut tally) = (Transcript::default(), Tally::default());
        for record in records(segment).filter(|r| r.id == id) {
            if tally.take(&record) {
                transcript.push(&record);
            }
        }
        (transcript, tally)
    }

    #[test]
    fn each_recording_is_its_own_frames_and_no_others() {
        let (one, tally) = counted(&segment(), ONE);
        assert_eq!((one.frames.len(), one.joined(FrameKind::ResponseBody)), (3, b"hello".to_vec()));
        assert_eq!(tally.response(), (Sha256::of(b"hello"), 5));
        assert_ne!(tally.digest(), counted(&segment(), TWO).1.digest(), "the id is under the digest");
        assert_eq!(records(b"something else").count(), 0);
    }

    #[test]
    fn cut_at_every_offset_only_whole_frames_are_read() {
        let bytes = segment();
        for cut in 0..bytes.len() {
            let read: Vec<Record<'_>> = records(&bytes[..cut]).collect();
            assert!(
                read.len() < 6
                    && read.iter().all(|r| r.bytes == encode(KEY, r.id, r.place, r.kind, r.at_ms, r.payload))
            );
        }
    }

    #[test]
    fn a_flipped_bit_breaks_one_recording_and_no_other() {
        let bytes = segment();
        let whole = [ONE, TWO].map(|id| counted(&bytes, id).1.digest());
        for at in KEY.head().len()..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            let now = [ONE, TWO].map(|id| counted(&flipped, id).1.digest());
            assert_eq!(now.iter().zip(&whole).filter(|(a, b)| a != b).count(), 1, "offset {at}");
        }
    }

    #[test]
    fn a_damaged_head_costs_nothing() {
        let bytes = segment();
        for at in 0..KEY.head().len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert_eq!(records(&flipped).count(), 6, "offset {at}");
        }
    }

    #[test]
    fn a_body_that_looks_like_frames_holds_none() {
        let forged = encode(Mark([7; 12]), ONE, 1, FrameKind::End, 9, b"complete");
        let mut bytes = KEY.head();
        let real = encode(KEY, ONE, 0, FrameKind::ResponseBody, 1, &forged.repeat(9));
        bytes.extend(&real[..real.len() - 5]);
        assert_eq!(records(&bytes).count(), 0, "a torn frame is not looked into");
    }

    #[test]
    fn what_is_removed_or_added_counts() {
        let bytes = segment();
        let first = records(&bytes).next().expect("one").bytes.len();
        let head = KEY.head().len();
        let without = [&bytes[..head], &bytes[head + first..]].concat();
        assert_eq!(counted(&without, ONE).0.frames, [], "nothing counts behind a gap");
        let more = [&bytes[..], &encode(KEY, ONE, 3, FrameKind::ResponseBody, 9, b"more")].concat();
        assert_ne!(counted(&more, ONE).1.digest(), counted(&bytes, ONE).1.digest());
    }
}
