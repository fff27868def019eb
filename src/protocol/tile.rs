//! Tile paths and entry bundles (c2sp.org/tlog-tiles).

/// Hashes in a full tile, and entries in a full bundle.
pub const WIDTH: u64 = 256;
/// Longest entry: its length is a big-endian uint16.
pub const MAX_ENTRY: usize = 65_535;

/// The path of a hash tile; `width` below 256 makes it partial.
pub fn hash_path(level: u32, index: u64, width: u64) -> String {
    format!("tile/{level}/{}", indexed(index, width))
}

/// The path of an entry bundle.
pub fn entries_path(index: u64, width: u64) -> String {
    format!("tile/entries/{}", indexed(index, width))
}

/// `x001/x234/067`, with `.p/W` behind it if partial.
fn indexed(index: u64, width: u64) -> String {
    let mut text = format!("{:03}", index % 1000);
    let mut rest = index / 1000;
    while rest > 0 {
        text = format!("x{:03}/{text}", rest % 1000);
        rest /= 1000;
    }
    if width < WIDTH { format!("{text}.p/{width}") } else { text }
}

/// How many entries the bundle at `index` has in a tree of `size`.
pub fn width_at(index: u64, size: u64) -> u64 {
    size.saturating_sub(index * WIDTH).min(WIDTH)
}

/// Appends one entry to a bundle.
pub fn push_entry(bundle: &mut Vec<u8>, entry: &[u8]) {
    let length = u16::try_from(entry.len()).expect("entries are held to MAX_ENTRY when they are staged");
    bundle.extend(length.to_be_bytes());
    bundle.extend(entry);
}

/// Cuts a bundle into its entries; none if its lengths do not add up.
pub fn split_entries(mut bundle: &[u8]) -> Option<Vec<&[u8]>> {
    let mut entries = Vec::new();
    while !bundle.is_empty() {
        let (length, rest) = bundle.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (entry, rest) = rest.split_at_checked(length)?;
        entries.push(entry);
        bundle = rest;
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        assert_eq!(hash_path(0, 1_234_067, 256), "tile/0/x001/x234/067");
        assert_eq!(hash_path(1, 0, 7), "tile/1/000.p/7");
        assert_eq!(entries_path(5, 256), "tile/entries/005");
    }

    #[test]
    fn bundles_split_as_joined_and_a_torn_one_does_not() {
        let mut bundle = Vec::new();
        let entries: [&[u8]; 3] = [b"a", b"", b"ccc"];
        entries.iter().for_each(|e| push_entry(&mut bundle, e));
        assert_eq!(split_entries(&bundle), Some(entries.to_vec()));
        assert_eq!(split_entries(&bundle[..bundle.len() - 1]), None);
    }
}
