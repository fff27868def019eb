//! ECDSA-Sig-Value (RFC 3279 section 2.2.3), as X.509 has it, and r‖s, as JOSE and hardware have it.

/// r‖s of 32 bytes each from DER.
pub fn to_fixed(der: &[u8]) -> Option<Vec<u8>> {
    let (rest, sequence) = x509_parser::der_parser::der::parse_der_sequence(der).ok()?;
    let items = sequence.as_sequence().ok()?;
    let [r, s] = items.as_slice() else { return None };
    let mut fixed = Vec::with_capacity(64);
    for integer in [r, s] {
        let bytes = integer.as_slice().ok()?;
        let significant = &bytes[bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len())..];
        let padding = 32_usize.checked_sub(significant.len())?;
        fixed.resize(fixed.len() + padding, 0);
        fixed.extend(significant);
    }
    rest.is_empty().then_some(fixed)
}

/// DER from r‖s of 32 bytes each; none for another length.
pub fn from_fixed(fixed: &[u8]) -> Option<Vec<u8>> {
    let (r, s) = fixed.split_at_checked(32).filter(|(_, s)| s.len() == 32)?;
    let body: Vec<u8> = [r, s].iter().flat_map(|i| integer(i)).collect();
    // At most 2 × 35 bytes: one length byte.
    Some([&[0x30, u8::try_from(body.len()).ok()?][..], &body].concat())
}

/// A positive INTEGER, shortest form.
fn integer(bytes: &[u8]) -> Vec<u8> {
    let significant = &bytes[bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len() - 1)..];
    let pad = usize::from(significant[0] & 0x80 != 0);
    let mut out = vec![2, u8::try_from(significant.len() + pad).expect("at most 33")];
    out.resize(2 + pad, 0);
    out.extend(significant);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_two_forms_are_of_one_signature(mut fixed in proptest::collection::vec(any::<u8>(), 64), zeros in 0_usize..32) {
            fixed[..zeros].fill(0);
            let der = super::from_fixed(&fixed).expect("64 bytes");
            prop_assert_eq!(super::to_fixed(&der), Some(fixed));
        }

        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = super::to_fixed(&bytes);
            prop_assert_eq!(super::from_fixed(&bytes).is_some(), bytes.len() == 64);
        }
    }
}
