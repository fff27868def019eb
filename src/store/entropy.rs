//! Random bytes from the cryptographic library's generator.

use crate::domain::digest::Opening;

/// `N` fresh random bytes.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random generator works, or nothing here can");
    bytes
}

/// 128 random bits in hex: identifiers that cannot be guessed.
pub fn random_id() -> String {
    hex::encode(random::<16>())
}

/// A commitment to `value` under a fresh salt.
pub fn seal(value: impl Into<String>) -> Opening {
    Opening::new(random(), value)
}
