//! Recording frames: what crossed the gateway, with times and checksums. Credentials have no frame.

use serde::{Deserialize, Serialize};

use crate::domain::recording::FrameKind;

/// First bytes of every recording.
pub const MAGIC: &[u8] = b"popgate-recording-1\n";
const HEADER: usize = 1 + 4 + 4;
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

/// Encodes one frame: kind, time, length, payload, CRC-32 over all of it.
pub fn encode(kind: FrameKind, at_ms: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + payload.len() + 4);
    out.push(kind as u8);
    out.extend(at_ms.to_be_bytes());
    out.extend(u32::try_from(payload.len()).expect("payloads are cut to MAX_PAYLOAD").to_be_bytes());
    out.extend(payload);
    let checksum = crc32fast::hash(&out);
    out.extend(checksum.to_be_bytes());
    out
}

/// A recording read to its last whole frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Transcript {
    /// The whole frames.
    pub frames: Vec<Frame>,
    /// Bytes up to the end of the last whole frame.
    pub whole: usize,
    /// Whether bytes follow it: the exchange was torn.
    pub torn: bool,
}

/// Reads a recording; none if it does not begin as one.
pub fn decode(bytes: &[u8]) -> Option<Transcript> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let mut frames = Vec::new();
    while let Some((frame, length)) = decode_one(rest) {
        frames.push(frame);
        rest = &rest[length..];
    }
    Some(Transcript { frames, whole: bytes.len() - rest.len(), torn: !rest.is_empty() })
}

fn decode_one(bytes: &[u8]) -> Option<(Frame, usize)> {
    let header = bytes.get(..HEADER)?;
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let length = usize::try_from(word(5)).ok().filter(|l| *l <= MAX_PAYLOAD)?;
    let end = HEADER + length;
    let checksum = bytes.get(end..end + 4)?;
    if crc32fast::hash(&bytes[..end]).to_be_bytes() != checksum {
        return None;
    }
    let frame = Frame { kind: FrameKind::from_byte(header[0])?, at_ms: word(1), payload: bytes[HEADER..end].to_vec() };
    Some((frame, end + 4))
}

impl Transcript {
    /// All payloads of one kind, joined.
    pub fn joined(&self, kind: FrameKind) -> Vec<u8> {
        self.frames.iter().filter(|f| f.kind == kind).flat_map(|f| f.payload.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(encode(FrameKind::RequestHead, 0, b"{}"));
        bytes.extend(encode(FrameKind::ResponseBody, 5, b"hello"));
        bytes.extend(encode(FrameKind::End, 9, b"complete"));
        bytes
    }

    #[test]
    fn cut_at_every_offset_only_whole_frames_are_read() {
        let bytes = sample();
        let whole = decode(&bytes).expect("whole");
        assert_eq!((whole.frames.len(), whole.torn), (3, false));
        for cut in MAGIC.len()..bytes.len() {
            let part = decode(&bytes[..cut]).expect("has its magic");
            assert!(part.frames.len() < 3);
            assert_eq!(part.torn, part.whole != cut);
        }
    }

    #[test]
    fn a_flipped_bit_ends_the_reading_before_its_frame() {
        let bytes = sample();
        for at in MAGIC.len()..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(decode(&flipped).is_none_or(|t| t.frames.len() < 3), "offset {at}");
        }
    }
}
