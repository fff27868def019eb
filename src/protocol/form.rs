//! `application/x-www-form-urlencoded` with one reading: a parameter that occurs twice is told, not dropped.

use std::collections::BTreeMap;

/// Why a form is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FormError {
    #[error("the form has a malformed percent-encoding, or is not UTF-8")]
    Encoding,
}

/// All values of each parameter, in order.
pub fn parse(body: &[u8]) -> Result<BTreeMap<String, Vec<String>>, FormError> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pair in body.split(|b| *b == b'&').filter(|p| !p.is_empty()) {
        let at = pair.iter().position(|b| *b == b'=').unwrap_or(pair.len());
        let name = decode(&pair[..at])?;
        let value = decode(pair.get(at + 1..).unwrap_or_default())?;
        found.entry(name).or_default().push(value);
    }
    Ok(found)
}

/// Decodes one name or value.
pub fn decode(text: &[u8]) -> Result<String, FormError> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(b) = bytes.next() {
        match b {
            b'+' => out.push(b' '),
            b'%' => {
                let mut digit = || bytes.next().and_then(|b| char::from(*b).to_digit(16)).ok_or(FormError::Encoding);
                let value = digit()? * 16 + digit()?;
                out.push(u8::try_from(value).map_err(|_| FormError::Encoding)?);
            }
            other => out.push(*other),
        }
    }
    String::from_utf8(out).map_err(|_| FormError::Encoding)
}

/// Encodes one name or value.
pub fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
        out
    })
}

/// Writes a form.
pub fn write(pairs: &[(&str, &str)]) -> String {
    pairs.iter().map(|(n, v)| format!("{}={}", encode(n), encode(v))).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_read_back_and_malformed_ones_are_refused() {
        let text = write(&[("a b", "1&2=3"), ("é", "+%")]);
        let read = parse(text.as_bytes()).expect("own form");
        assert_eq!(read["a b"], ["1&2=3"]);
        assert_eq!(read["é"], ["+%"]);
        assert_eq!(parse(b"a=1&a=2").expect("legal")["a"].len(), 2);
        for bad in [&b"a=%zz"[..], b"a=%2", b"a=%ff"] {
            assert_eq!(parse(bad), Err(FormError::Encoding));
        }
    }
}
