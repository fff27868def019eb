//! Makes the `:authority` of a client's header blocks acceptable, in place (RFC 7541).
//!
//! gRPC's C core, and with it Python, sends the percent-encoded path of a Unix socket as `:authority`. HTTP/2 servers
//! refuse that with PROTOCOL_ERROR before anybody can look at it. Nothing on a Unix socket depends on the authority, so
//! its `%` and `/` are overwritten by `-` and `.`: the same lengths, in plain text and in Huffman's code (six bits each),
//! so that neither the frames nor the dynamic table change.

/// RFC 7541 appendix A: the index of `:authority` in the static table.
const AUTHORITY: u64 = 1;

/// How many symbols of RFC 7541 appendix B have codes of a length; codes of one length are consecutive, the shorter first.
const CODES_OF_LENGTH: [u32; 31] =
    [0, 0, 0, 0, 0, 10, 26, 32, 6, 0, 5, 3, 2, 6, 2, 3, 0, 0, 0, 3, 8, 13, 26, 29, 12, 4, 15, 19, 29, 0, 4];

/// Huffman codes of the characters to replace and of what replaces them.
const PERCENT: u32 = 0b01_0101;
const DASH: u32 = 0b01_0110;
const SLASH: u32 = 0b01_1000;
const DOT: u32 = 0b01_0111;

/// Overwrites the offending characters of `:authority` in a whole header block. A block that is malformed is left from the
/// fault on: the HTTP/2 library refuses it.
pub fn mend_authority(block: &mut [u8]) {
    let mut at = 0;
    while at < block.len() {
        let Some(next) = mend_field(block, at) else { return };
        at = next;
    }
}

/// One field representation (section 6); gives where the next begins.
fn mend_field(block: &mut [u8], at: usize) -> Option<usize> {
    let first = *block.get(at)?;
    match first {
        // Indexed, and a change of the table's size: one integer.
        0x80.. => integer(block, at, 7).map(|(_, next)| next),
        0x20..=0x3f => integer(block, at, 5).map(|(_, next)| next),
        // Literals, with and without indexing.
        0x40..=0x7f => mend_literal(block, at, 6),
        _ => mend_literal(block, at, 4),
    }
}

fn mend_literal(block: &mut [u8], at: usize, prefix: u32) -> Option<usize> {
    let (index, mut next) = integer(block, at, prefix)?;
    let mut is_authority = index == AUTHORITY;
    if index == 0 {
        let name = text(block, next)?;
        is_authority = !name.huffman && block.get(name.from..name.to)? == b":authority";
        next = name.to;
    }
    let value = text(block, next)?;
    if is_authority {
        let bytes = block.get_mut(value.from..value.to)?;
        if value.huffman { mend_huffman(bytes) } else { mend_plain(bytes) }
    }
    Some(value.to)
}

struct Text {
    huffman: bool,
    from: usize,
    to: usize,
}

/// A string literal (section 5.2).
fn text(block: &[u8], at: usize) -> Option<Text> {
    let huffman = block.get(at)? & 0x80 != 0;
    let (length, from) = integer(block, at, 7)?;
    let to = from.checked_add(usize::try_from(length).ok()?)?;
    (to <= block.len()).then_some(Text { huffman, from, to })
}

/// An integer with an `n`-bit prefix (section 5.1) and where it ends.
fn integer(block: &[u8], at: usize, n: u32) -> Option<(u64, usize)> {
    let most = (1_u64 << n) - 1;
    let mut value = u64::from(*block.get(at)?) & most;
    if value < most {
        return Some((value, at + 1));
    }
    for (i, byte) in block.get(at + 1..)?.iter().enumerate().take(5) {
        value += u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, at + 2 + i));
        }
    }
    None
}

fn mend_plain(bytes: &mut [u8]) {
    for byte in bytes {
        *byte = match *byte {
            b'%' => b'-',
            b'/' => b'.',
            other => other,
        };
    }
}

fn mend_huffman(bytes: &mut [u8]) {
    let bits = bytes.len() * 8;
    let mut at = 0;
    while let Some(length) = code_length(bytes, at, bits) {
        if length == 6 {
            match read_bits(bytes, at, 6) {
                PERCENT => write_bits(bytes, at, 6, DASH),
                SLASH => write_bits(bytes, at, 6, DOT),
                _ => {}
            }
        }
        at += length;
    }
}

/// How long the code at a bit is: the code is canonical, so counts by length are all that it takes. None at the padding.
fn code_length(bytes: &[u8], at: usize, bits: usize) -> Option<usize> {
    let (mut first, mut code) = (0_u32, 0_u32);
    for (length, count) in CODES_OF_LENGTH.iter().enumerate().skip(1) {
        let bit = at + length - 1;
        if bit >= bits {
            return None;
        }
        code = code << 1 | read_bits(bytes, bit, 1);
        first <<= 1;
        if code < first + count {
            return Some(length);
        }
        first += count;
    }
    None
}

fn read_bits(bytes: &[u8], at: usize, n: usize) -> u32 {
    (at..at + n).fold(0, |value, bit| value << 1 | u32::from(bytes[bit / 8] >> (7 - bit % 8) & 1))
}

fn write_bits(bytes: &mut [u8], at: usize, n: usize, value: u32) {
    for i in 0..n {
        let (bit, mask) = (at + i, 1_u8 << (7 - (at + i) % 8));
        if value >> (n - 1 - i) & 1 == 1 {
            bytes[bit / 8] |= mask;
        } else {
            bytes[bit / 8] &= !mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 7541 C.4.1: `:authority: www.example.com`, Huffman coded, among three indexed fields.
    const EXAMPLE: &str = "828684418cf1e3c2e5f23a6ba0ab90f4ff";

    fn literal(index: &[u8], value: &[u8]) -> Vec<u8> {
        [index, &[u8::try_from(value.len()).expect("short")], value].concat()
    }

    #[test]
    fn w3_a_plain_authority_loses_what_http2_refuses_and_keeps_its_length() {
        for index in [vec![0x41], vec![0x01], vec![0x11], [&[0x40, 10][..], b":authority"].concat()] {
            let mut block = [&[0x82][..], &literal(&index, b"tmp%2Fa/b.sock"), &literal(&[0x44], b"/Svc/M")].concat();
            mend_authority(&mut block);
            let want = [&[0x82][..], &literal(&index, b"tmp-2Fa.b.sock"), &literal(&[0x44], b"/Svc/M")].concat();
            assert_eq!(block, want, "the path keeps its slashes");
        }
    }

    #[test]
    fn w3_a_huffman_coded_authority_is_mended_in_place() {
        let mut clean = hex::decode(EXAMPLE).expect("hex");
        let before = clean.clone();
        mend_authority(&mut clean);
        assert_eq!(clean, before, "nothing to mend");
        // `/a%` is 011000 00011 010101 and seven bits of padding.
        let mut block = vec![0x41, 0x83, 0b0110_0000, 0b0110_1010, 0b1111_1111];
        mend_authority(&mut block);
        // `.a-` is 010111 00011 010110
        assert_eq!(block, [0x41, 0x83, 0b0101_1100, 0b0110_1011, 0b0111_1111]);
    }

    #[test]
    fn w3_the_code_is_whole() {
        let used: f64 = CODES_OF_LENGTH.iter().zip(0_i32..).map(|(n, l)| f64::from(*n) * 2_f64.powi(-l)).sum();
        assert!((used - 1.0).abs() < 1e-9, "{used}");
        assert_eq!(CODES_OF_LENGTH.iter().sum::<u32>(), 257);
    }

    proptest! {
        #[test]
        fn w3_no_block_panics_or_changes_its_length(block in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut mended = block.clone();
            mend_authority(&mut mended);
            prop_assert_eq!(mended.len(), block.len());
            let once = mended.clone();
            mend_authority(&mut mended);
            prop_assert_eq!(mended, once, "mending twice is mending once");
        }
    }
}
