//! JWT-SVIDs (spiffe/spiffe, standards/JWT-SVID.md).

use serde_json::{Map, Value, json};

use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::protocol::bundle::TrustBundle;
use crate::protocol::jws::{self, Compact, SigningKey};
use crate::protocol::jwt::{self, JwtError, JwtKey};

/// How far ahead the clock of an issuer may run, in seconds.
const EARLY: u64 = 10;

/// What a JWT-SVID says once it holds.
#[derive(Clone, Debug)]
pub struct JwtSvid {
    /// Whose it is.
    pub spiffe_id: SpiffeId,
    /// Its end.
    pub expires_at: Timestamp,
    /// All its claims.
    pub claims: Map<String, Value>,
}

/// Makes a JWT-SVID. The header has what the standard names and no more: some verifiers refuse the rest (section 2).
pub fn issue(
    id: &SpiffeId,
    audiences: &[String],
    jti: &str,
    (from, until): (Timestamp, Timestamp),
    kid: &str,
    key: &SigningKey,
) -> String {
    let header = json!({"alg": "ES256", "kid": kid, "typ": "JWT"});
    let claims = json!({"sub": id, "aud": audiences, "exp": until.unix(), "iat": from.unix(), "jti": jti});
    jws::sign(&header, &claims, key)
}

/// Verifies a JWT-SVID for a receiver (sections 3 and 4): `bundle_of` gives the bundle of its own trust domain, if that is
/// trusted at all.
pub fn verify<'a>(
    text: &str,
    audience: &str,
    bundle_of: impl FnOnce(&SpiffeId) -> Option<&'a TrustBundle>,
    now: Timestamp,
) -> Result<JwtSvid, JwtError> {
    if text.len() > jwt::MAX_JWT {
        return Err(JwtError::TooLong);
    }
    // Read before it is verified, to know whose keys decide.
    let claimed = Compact::split(text)?.payload_object()?;
    let subject = |claims: &Map<String, Value>| claims.get("sub")?.as_str()?.parse::<SpiffeId>().ok();
    let claimed = subject(&claimed).ok_or(JwtError::Subject)?;
    let bundle = bundle_of(&claimed).ok_or(JwtError::UnknownKey)?;
    let keys: Vec<JwtKey> = bundle.jwt_keys.iter().filter_map(|k| JwtKey::from_jwk(&k.jwk_with_kid()).ok()).collect();
    let claims = jwt::verify(text, &keys)?;
    let spiffe_id = subject(&claims).ok_or(JwtError::Subject)?;
    let expires_at = jwt::check_time(&claims, now, 0, EARLY)?;
    if audience.is_empty() || !jwt::has_audience(&claims, audience) {
        return Err(JwtError::Audience);
    }
    Ok(JwtSvid { spiffe_id, expires_at, claims })
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;

    use super::*;
    use crate::domain::spiffe_id::TrustDomain;
    use crate::protocol::bundle::JwtAuthority;
    use crate::protocol::jwk::PublicKey;

    const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

    fn key() -> SigningKey {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("makes");
        let public = PublicKey::es256(pair.public_key().as_ref()).expect("a point");
        SigningKey::new(public, move |m| pair.sign(&SystemRandom::new(), m).expect("signs").as_ref().to_vec())
    }

    fn bundle(key: &SigningKey) -> TrustBundle {
        let domain = TrustDomain::parse("example.org").expect("legal");
        let jwt_keys = vec![JwtAuthority { kid: "k1".into(), jwk: key.public().to_jwk() }];
        TrustBundle { jwt_keys, ..TrustBundle::empty(domain) }
    }

    fn check(text: &str, bundle: &TrustBundle, now: Timestamp) -> Result<JwtSvid, JwtError> {
        verify(text, "me", |id| id.is_member_of(&bundle.trust_domain).then_some(bundle), now)
    }

    #[test]
    fn b3_what_is_issued_verifies_for_its_audience_until_its_end() {
        let (key, id) = (key(), "spiffe://example.org/a".parse().expect("legal"));
        let until = NOW.plus(std::time::Duration::from_mins(5));
        let text = issue(&id, &["you".into(), "me".into()], "j1", (NOW, until), "k1", &key);
        let svid = check(&text, &bundle(&key), NOW).expect("holds");
        assert_eq!((svid.spiffe_id, svid.expires_at), (id, until));
        assert_eq!(check(&text, &bundle(&key), until).err(), Some(JwtError::Expired));
        assert_eq!(
            check(&text, &bundle(&super::tests::key()), NOW).err(),
            Some(JwtError::Jws(jws::JwsError::Signature))
        );
        let header = Compact::split(&text).expect("cut").header_object().expect("reads");
        assert_eq!(header.keys().collect::<Vec<_>>(), ["alg", "kid", "typ"]);
    }

    #[test]
    fn b3_each_fault_is_refused_by_name() {
        use jws::JwsError;
        let key = key();
        let good_header = json!({"alg": "ES256", "kid": "k1", "typ": "JWT"});
        let good = json!({"sub": "spiffe://example.org/a", "aud": "me", "exp": NOW.unix() + 60});
        let with = |base: &Value, name: &str, value: Value| {
            let mut changed = base.clone();
            changed[name] = value;
            changed
        };
        let header = |name: &str, value: Value| (with(&good_header, name, value), good.clone());
        let claim = |name: &str, value: Value| (good_header.clone(), with(&good, name, value));
        let rows = [
            (header("alg", "none".into()), JwtError::Algorithm),
            (header("alg", "HS256".into()), JwtError::Algorithm),
            (header("alg", "EdDSA".into()), JwtError::Algorithm),
            (header("alg", "ES384".into()), JwtError::UnknownKey),
            (header("alg", "RS256".into()), JwtError::UnknownKey),
            (header("kid", "k2".into()), JwtError::UnknownKey),
            (header("kid", 1.into()), JwtError::UnknownKey),
            (header("typ", "at+jwt".into()), JwtError::Type),
            (header("crit", json!(["x"])), JwtError::Jws(JwsError::Critical)),
            (claim("sub", "spiffe://example.org".into()), JwtError::Subject),
            (claim("sub", Value::Null), JwtError::Subject),
            (claim("sub", "spiffe://other.org/a".into()), JwtError::UnknownKey),
            (claim("aud", "you".into()), JwtError::Audience),
            (claim("aud", json!(["me", 1])), JwtError::Audience),
            (claim("aud", json!([])), JwtError::Audience),
            (claim("exp", Value::Null), JwtError::NoEnd),
            (claim("exp", "1900000000".into()), JwtError::NoEnd),
            (claim("exp", NOW.unix().into()), JwtError::Expired),
            (claim("nbf", (NOW.unix() + 60).into()), JwtError::Early),
            (claim("iat", (NOW.unix() + 60).into()), JwtError::Early),
        ];
        for ((header, claims), error) in &rows {
            let text = jws::sign(header, claims, &key);
            assert_eq!(check(&text, &bundle(&key), NOW).err(), Some(*error), "{header} {claims}");
        }
        let text = jws::sign(&good_header, &good, &key);
        assert!(check(&text, &bundle(&key), NOW).is_ok(), "the base has no fault");
        let ours = bundle(&key);
        assert_eq!(verify(&text, "", |_| Some(&ours), NOW).err(), Some(JwtError::Audience));
        let (head, _) = text.rsplit_once('.').expect("dots");
        let forged = format!("{head}.{}", B64.encode([0; 64]));
        assert_eq!(check(&forged, &bundle(&key), NOW).err(), Some(JwtError::Jws(JwsError::Signature)));
        assert_eq!(check(&"a".repeat(17 * 1024), &bundle(&key), NOW).err(), Some(JwtError::TooLong));
        assert_eq!(check("a.b", &bundle(&key), NOW).err(), Some(JwtError::Jws(JwsError::Form)));
    }
}
