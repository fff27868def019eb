//! Content codings (RFC 9110 section 8.4.1), undone piece by piece, so that what is inside can be read.

use std::io::Write;

use brotli_decompressor::DecompressorWriter;
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

/// How much longer a body may become, once it is longer than [`FREE`].
const RATIO: u64 = 200;
/// Length up to which any ratio is fine.
const FREE: u64 = 4 << 20;

/// Why a body is not decoded.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CodingError {
    #[error("it is malformed")]
    Malformed,
    #[error("it becomes more than {RATIO} times as long")]
    Bomb,
}

enum Codec {
    Gzip(MultiGzDecoder<Sink>),
    Brotli(Box<DecompressorWriter<Sink>>),
    Zstd(Box<zstd::stream::write::Decoder<'static, Sink>>),
    /// What is called deflate is zlib's form of it, or, by some, the bare one: its first byte tells.
    Deflate,
    Zlib(ZlibDecoder<Sink>),
    Bare(DeflateDecoder<Sink>),
}

/// Where a decoder writes: as much as it may, and no more.
#[derive(Default)]
struct Sink {
    bytes: Vec<u8>,
    room: u64,
    burst: bool,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let Some(room) = self.room.checked_sub(bytes.len() as u64) else {
            self.burst = true;
            return Err(std::io::Error::other("more than may be"));
        };
        self.room = room;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A body in one coding.
pub struct Decoder {
    codec: Codec,
    read: u64,
    written: u64,
}

impl Decoder {
    /// For one `Content-Encoding`; none for one that is not known.
    pub fn new(coding: &str) -> Option<Self> {
        let codec = match coding.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => Codec::Gzip(MultiGzDecoder::new(Sink::default())),
            "br" => Codec::Brotli(Box::new(DecompressorWriter::new(Sink::default(), 4096))),
            "zstd" => {
                let mut decoder = zstd::stream::write::Decoder::new(Sink::default()).ok()?;
                // RFC 9659: no window above 8 MiB.
                decoder.window_log_max(23).ok()?;
                Codec::Zstd(Box::new(decoder))
            }
            "deflate" => Codec::Deflate,
            _ => return None,
        };
        Some(Self { codec, read: 0, written: 0 })
    }

    /// Takes a chunk and gives what it decodes to.
    pub fn push(&mut self, chunk: &[u8]) -> Result<Vec<u8>, CodingError> {
        let mut all = Vec::new();
        // In small pieces, so that a bomb is noticed before it has gone off.
        for piece in chunk.chunks(4096) {
            if let (Codec::Deflate, Some(first)) = (&self.codec, piece.first()) {
                let zlib = first & 0x0f == 8 && first >> 4 <= 7;
                self.codec = if zlib {
                    Codec::Zlib(ZlibDecoder::new(Sink::default()))
                } else {
                    Codec::Bare(DeflateDecoder::new(Sink::default()))
                };
            }
            self.read += piece.len() as u64;
            // Decoding stops where the limit is, and not a piece later.
            let room = FREE.max(self.read.saturating_mul(RATIO)) - self.written;
            let written = match &mut self.codec {
                Codec::Gzip(d) => through(d, piece, room, MultiGzDecoder::get_mut),
                Codec::Brotli(d) => through(d.as_mut(), piece, room, DecompressorWriter::get_mut),
                Codec::Zstd(d) => through(d.as_mut(), piece, room, |d| d.get_mut()),
                Codec::Zlib(d) => through(d, piece, room, ZlibDecoder::get_mut),
                Codec::Bare(d) => through(d, piece, room, DeflateDecoder::get_mut),
                Codec::Deflate => Ok(Vec::new()),
            };
            let written = written?;
            self.written += written.len() as u64;
            all.extend(written);
        }
        Ok(all)
    }

    /// The body has ended: what is left of it.
    pub fn finish(self) -> Result<Vec<u8>, CodingError> {
        let rest = match self.codec {
            Codec::Gzip(d) => d.finish().ok(),
            Codec::Zlib(d) => d.finish().ok(),
            Codec::Bare(d) => d.finish().ok(),
            Codec::Deflate => Some(Sink::default()),
            Codec::Brotli(d) => d.into_inner().ok(),
            Codec::Zstd(mut d) => d.flush().is_ok().then(|| d.into_inner()),
        };
        rest.map(|sink| sink.bytes).ok_or(CodingError::Malformed)
    }
}

fn through<W: Write>(
    decoder: &mut W,
    piece: &[u8],
    room: u64,
    inner: impl Fn(&mut W) -> &mut Sink,
) -> Result<Vec<u8>, CodingError> {
    inner(decoder).room = room;
    let done = decoder.write_all(piece).and_then(|()| decoder.flush());
    let sink = inner(decoder);
    match done {
        Ok(()) => Ok(std::mem::take(&mut sink.bytes)),
        Err(_) if sink.burst => Err(CodingError::Bomb),
        Err(_) => Err(CodingError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"to ada@example.org, and again to ada@example.org";

    fn coded(coding: &str, text: &[u8]) -> Vec<u8> {
        use flate2::Compression;
        use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
        let level = Compression::default();
        let write = |w: &mut dyn Write| w.write_all(text).expect("writes");
        match coding {
            "gzip" => {
                let mut encoder = GzEncoder::new(Vec::new(), level);
                write(&mut encoder);
                encoder.finish().expect("ends")
            }
            "deflate" => {
                let mut encoder = ZlibEncoder::new(Vec::new(), level);
                write(&mut encoder);
                encoder.finish().expect("ends")
            }
            "bare" => {
                let mut encoder = DeflateEncoder::new(Vec::new(), level);
                write(&mut encoder);
                encoder.finish().expect("ends")
            }
            _ => zstd::stream::encode_all(text, 3).expect("encodes"),
        }
    }

    fn decoded(coding: &str, body: &[u8], step: usize) -> Result<Vec<u8>, CodingError> {
        let mut decoder = Decoder::new(coding).expect("known");
        let mut all = Vec::new();
        for chunk in body.chunks(step) {
            all.extend(decoder.push(chunk)?);
        }
        all.extend(decoder.finish()?);
        Ok(all)
    }

    #[test]
    fn each_coding_is_undone_however_it_is_cut() {
        for (name, made) in [("gzip", "gzip"), ("deflate", "deflate"), ("deflate", "bare"), ("zstd", "zstd")] {
            let body = coded(made, TEXT);
            for step in [1, 2, 7, 4096] {
                assert_eq!(decoded(name, &body, step).as_deref(), Ok(TEXT), "{made} by {step}");
            }
            let twice = [body.clone(), body.clone()].concat();
            if name == "gzip" || name == "zstd" {
                assert_eq!(decoded(name, &twice, 3), Ok([TEXT, TEXT].concat()), "{name}, two members");
            }
        }
        assert!(Decoder::new("compress").is_none());
    }

    #[test]
    fn what_is_malformed_or_a_bomb_is_refused() {
        for name in ["gzip", "deflate", "br", "zstd"] {
            assert_eq!(decoded(name, b"this is no such thing at all", 5), Err(CodingError::Malformed), "{name}");
        }
        let zeros = vec![0; 64 << 20];
        for name in ["gzip", "zstd"] {
            assert_eq!(decoded(name, &coded(name, &zeros), 4096), Err(CodingError::Bomb), "{name}");
        }
        // 64 MiB and 3 MiB of zeros by Node's zlib, quality 11.
        let brotli = |hex: &str| hex::decode(hex).expect("hex");
        let bomb = brotli(
            "cbffff3ff82700e2b14020f7fe8fffff7ff04f00c4611180eefd1fffffffe09f0088c30200ddfb3ffeffffc13f0110870500baf77ffcffff837f02200e0b0074effff8ffff07ff04401c1600e8defff1ffff0ffe0980382c00d0bdffcbffff3ffc1300715800a07bff07",
        );
        assert_eq!(decoded("br", &bomb, 4096), Err(CodingError::Bomb), "br");
        let small = decoded("br", &brotli("9bffff2ff82700e2b14020f7fe05"), 3).expect("any ratio is fine");
        assert!(small.len() == 3 << 20 && small.iter().all(|b| *b == 0));
        let log = "the same line again and again\n".repeat(100_000);
        assert!(decoded("gzip", &coded("gzip", log.as_bytes()), 999).is_ok(), "three megabytes of a log");
    }
}
