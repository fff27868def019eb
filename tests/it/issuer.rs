//! A token issuer of the tests' own: keys, tokens, discovery document.

use josekit::jwk::Jwk;
use josekit::jws::{self, ES256, JwsHeader, JwsSigner, RS256};
use serde_json::{Value, json};

use crate::web::Web;

/// A key of a token issuer.
pub struct IssuerKey {
    pub jwk: Jwk,
    signer: Box<dyn JwsSigner>,
}

impl IssuerKey {
    pub fn rsa(kid: &str) -> Self {
        let mut jwk = Jwk::generate_rsa_key(2048).expect("makes");
        jwk.set_key_id(kid);
        let mut signer = RS256.signer_from_jwk(&jwk).expect("signs");
        signer.set_key_id(kid);
        Self { jwk, signer: Box::new(signer) }
    }

    pub fn ec(kid: &str) -> Self {
        let mut jwk = Jwk::generate_ec_key(josekit::jwk::alg::ec::EcCurve::P256).expect("makes");
        jwk.set_key_id(kid);
        let signer = ES256.signer_from_jwk(&jwk).expect("signs");
        Self { jwk, signer: Box::new(signer) }
    }

    pub fn token(&self, claims: &Value) -> String {
        self.typed("JWT", claims)
    }

    /// A token of another type.
    pub fn typed(&self, typ: &str, claims: &Value) -> String {
        let mut header = JwsHeader::new();
        header.set_token_type(typ);
        header.set_key_id(self.jwk.key_id().expect("named"));
        // As bytes: claims that a library would refuse to write are wanted, too.
        jws::serialize_compact(claims.to_string().as_bytes(), &header, &*self.signer).expect("signs")
    }

    pub fn set(&self) -> String {
        let mut public = self.jwk.to_public_key().expect("public");
        public.set_key_id(self.jwk.key_id().expect("named"));
        json!({"keys": [public]}).to_string()
    }
}

/// A web server that publishes a key as an OpenID provider does.
pub async fn issuer(key: &IssuerKey) -> Web {
    let web = Web::start(&[]).await;
    let discovery = json!({"issuer": web.url, "jwks_uri": format!("{}/keys", web.url)}).to_string();
    web.serve(&[("/.well-known/openid-configuration", discovery), ("/keys", key.set())]);
    web
}
