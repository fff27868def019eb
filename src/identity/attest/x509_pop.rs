//! Machines by a certificate that they have already: a signature with its key over the request's CSR.

use std::path::Path;

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::CertificateDer;
use serde_json::Value;

use crate::domain::digest::Sha256;
use crate::domain::refusal::Refusal;
use crate::domain::selector::Selector;
use crate::domain::spiffe_id::TrustDomain;
use crate::identity::attest::{Attested, Attestor, Evidence, refused};
use crate::net::fetch::{FetchError, certificates};
use crate::net::tls;
use crate::protocol::{csr, svid};
use crate::trust::config::X509Trust;

/// Most certificates of a chain that are looked at.
const MAX_CHAIN: usize = 8;

/// Attests by certificates of one CA.
pub struct X509Attestor {
    name: String,
    roots: Vec<Vec<u8>>,
    trust_domain: TrustDomain,
}

impl X509Attestor {
    /// From its configuration.
    pub fn new(trust: &X509Trust, base: &Path, trust_domain: &TrustDomain) -> Result<Self, FetchError> {
        let file = base.join(&trust.ca_file);
        let roots = certificates(&file).map_err(|cause| FetchError { url: file.display().to_string(), cause })?;
        Ok(Self { name: trust.name.clone(), roots, trust_domain: trust_domain.clone() })
    }
}

#[async_trait]
impl Attestor for X509Attestor {
    fn method(&self) -> &'static str {
        "x509_pop"
    }

    async fn attest(&self, evidence: &Evidence<'_>) -> Result<Option<Attested>, Refusal> {
        let decode = |v: &Value| v.as_str().and_then(|t| BASE64_STANDARD.decode(t).ok());
        let chain = evidence.members.get("chain").and_then(Value::as_array).filter(|c| c.len() <= MAX_CHAIN);
        let chain: Option<Vec<Vec<u8>>> = chain.and_then(|list| list.iter().map(decode).collect());
        let chain = chain.filter(|c| !c.is_empty());
        let chain = chain
            .ok_or_else(|| Refusal::new(400, "chain", "chain is a list of base64 DER certificates, leaf first"))?;
        let signature = evidence.members.get("signature").and_then(decode);
        let signature = signature.ok_or_else(|| Refusal::new(400, "signature", "signature is not base64"))?;
        let ders: Vec<CertificateDer<'_>> = chain.iter().map(|d| CertificateDer::from(d.as_slice())).collect();
        match tls::verify_chain(&ders, &self.roots, evidence.now) {
            Ok(()) => {}
            Err(webpki::Error::UnknownIssuer) => return Ok(None),
            Err(error) => return Err(refused(error)),
        }
        let message = csr::possession_message(&self.trust_domain, evidence.csr);
        tls::verify_message(&ders[0], &message, &signature).map_err(refused)?;
        let facts = svid::subject_facts(&chain[0]).ok_or_else(|| refused("its certificate is not read"))?;
        let fingerprint = Sha256::of(&chain[0]).to_string();
        let mut selectors: Vec<_> = facts.iter().map(|f| Selector::found(&self.name, f)).collect();
        selectors.push(Selector::found(&self.name, &format!("sha256:{fingerprint}")));
        Ok(Some(Attested {
            method: format!("x509_pop:{}", self.name),
            evidence: Sha256::of(&chain[0]),
            node_name: format!("x509/{}/{}", self.name, &fingerprint[..32]),
            selectors: selectors.into_iter().flatten().collect(),
            // Its CA is configured for machines.
            may_be_node: true,
            renewable: true,
        }))
    }
}
