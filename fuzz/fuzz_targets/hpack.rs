//! Hostile header blocks: mending an authority changes no length, nothing but two characters, and only once.

#![no_main]

use libfuzzer_sys::fuzz_target;
use popgate::protocol::hpack::mend_authority;

/// The target must reach the mending paths, or its assertions say nothing.
fn init() {
    for seed in [&include_bytes!("../seeds/hpack/plain")[..], include_bytes!("../seeds/hpack/huffman")] {
        let mut block = seed.to_vec();
        mend_authority(&mut block);
        assert_ne!(block, seed, "the seed has something to mend");
    }
}

fuzz_target!(init: init(), |block: &[u8]| {
    let mut mended = block.to_vec();
    mend_authority(&mut mended);
    assert_eq!(mended.len(), block.len());
    let mut again = mended.clone();
    mend_authority(&mut again);
    assert_eq!(again, mended, "mending twice is mending once");
});
