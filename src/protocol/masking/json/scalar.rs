//! Numbers and the three literals.

/// `true`, `false`, `null` or a number (RFC 8259 section 6).
pub(super) fn is_literal(token: &[u8]) -> bool {
    if matches!(token, b"true" | b"false" | b"null") {
        return true;
    }
    let unsigned = token.strip_prefix(b"-").unwrap_or(token);
    let digits = |t: &[u8]| t.iter().take_while(|b| b.is_ascii_digit()).count();
    let whole = digits(unsigned);
    let mut rest = &unsigned[whole..];
    let leading_zero = whole > 1 && unsigned[0] == b'0';
    if let Some(fraction) = rest.strip_prefix(b".") {
        let n = digits(fraction);
        rest = if n == 0 { b"x" } else { &fraction[n..] };
    }
    if let Some(exponent) = rest.strip_prefix(b"e").or_else(|| rest.strip_prefix(b"E")) {
        let exponent = exponent.strip_prefix(b"+").or_else(|| exponent.strip_prefix(b"-")).unwrap_or(exponent);
        let n = digits(exponent);
        rest = if n == 0 { b"x" } else { &exponent[n..] };
    }
    whole > 0 && !leading_zero && rest.is_empty()
}

pub(super) const fn is_scalar(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'+' | b'.')
}
