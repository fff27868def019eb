//! The chain of a log: issuance → token → proof → decision → approval → bytes, each entry against all before it.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use crate::domain::approval::ApprovalState;
use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::leaf::{
    Admission, ApprovalChange, Completion, Event, Issuance, JwtIssuance, Mint, Opened, PublicAdmission,
};
use crate::domain::time::Timestamp;
use crate::evidence::reader::ReadEntry;
use crate::evidence::settle::CRASH;
use crate::protocol::dpop::{self, SignedBody};
use crate::protocol::transcript::{RecordingId, Tally};

/// How many links of each kind were proved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Links {
    /// Tokens whose key has an issuance before them.
    pub issuance: u64,
    /// Admissions whose token has a mint before them.
    pub token: u64,
    /// Proofs whose signature, key, method, target and token hash hold.
    pub proof: u64,
    /// Admissions that name rule and policy version.
    pub decision: u64,
    /// Consumed approvals that a person gave before, for exactly that request.
    pub approval: u64,
    /// Exchanges whose recording has the logged digests.
    pub bytes: u64,
}

/// Each commitment has its opening beside the log, and nothing else lies there: a changed, a missing and an added value
/// are all found.
fn check_openings(entry: &ReadEntry) -> Result<(), String> {
    let commitments = entry.leaf.event.commitments();
    for (name, commitment) in &commitments {
        match entry.openings.get(*name) {
            None => return Err(format!("the opening of {name} is missing, and nothing says that it was erased")),
            Some(opening) if opening.commitment() != *commitment => {
                return Err(format!("the opening of {name} was changed"));
            }
            Some(_) => {}
        }
    }
    match entry.openings.keys().find(|k| !commitments.iter().any(|(n, _)| n == k)) {
        Some(name) => Err(format!("there is an opening of {name}, which the entry does not commit to")),
        None => Ok(()),
    }
}

/// What has been seen so far, entry by entry.
#[derive(Default)]
pub(super) struct Chain {
    /// Of the log: what is minted for others rests on their own logs.
    trust_domain: String,
    issued: HashMap<String, Issuance>,
    jwts: HashMap<Sha256, JwtIssuance>,
    minted: HashMap<Sha256, Mint>,
    approved: HashMap<String, Sha256>,
    decided: HashMap<String, ApprovalState>,
    consumed: HashSet<String>,
    proofs: HashSet<Sha256>,
    /// Exchanges without an end so far, and what their proofs say of their bodies.
    open: HashMap<String, (Opened, SignedBody)>,
    /// What lies in the segments.
    recordings: HashMap<RecordingId, Tally>,
    /// What was proved so far.
    pub links: Links,
    /// Exchanges of public routes, by route.
    pub public: BTreeMap<String, u64>,
    /// Bodies that a proof signs for.
    pub signed_bodies: u64,
    /// Bodies of which a part went out, or another.
    pub signed_otherwise: u64,
    /// Exchanges that ended without their recording.
    cut: u64,
}

impl Chain {
    /// The chain of a log of this trust domain, whose recordings come to this.
    pub fn of(trust_domain: String, recordings: HashMap<RecordingId, Tally>) -> Self {
        Self { trust_domain, recordings, ..Self::default() }
    }

    /// Exchanges without an end or a whole recording.
    pub fn incomplete(&self) -> u64 {
        self.open.len() as u64 + self.cut
    }

    /// Holds the next entry against all before it.
    pub fn entry(&mut self, entry: &ReadEntry) -> Result<(), String> {
        check_openings(entry)?;
        match &entry.leaf.event {
            Event::Issuance(issuance) => {
                self.issued.insert(issuance.serial.clone(), issuance.clone());
                Ok(())
            }
            Event::JwtIssuance(issuance) => {
                self.jwts.insert(issuance.token_sha256, issuance.clone());
                Ok(())
            }
            Event::Mint(mint) => self.mint(mint, entry),
            Event::Admission(admission) => self.admission(admission, entry),
            Event::PublicAdmission(admission) => self.public(admission, &entry.leaf.event),
            Event::ApprovalChanged(change) => self.approval(change),
            Event::Completion(completion) => self.completion(completion),
            _ => Ok(()),
        }
    }

    /// A person decides once, and what is denied, expired or withdrawn is good for nothing.
    fn approval(&mut self, change: &ApprovalChange) -> Result<(), String> {
        match change.state {
            ApprovalState::Approved | ApprovalState::Denied => {
                if change.person.is_none() {
                    return Err(format!("approval {} was {} by nobody", change.id, change.state));
                }
                // The entry comes before the state: where the ledger failed in between, a decision follows that counts
                // instead. Never after a denial, and never once the approval was used.
                let before = self.decided.insert(change.id.clone(), change.state);
                if before == Some(ApprovalState::Denied) && change.state == ApprovalState::Approved {
                    return Err(format!("approval {} was decided twice: it was denied before", change.id));
                }
                if self.consumed.contains(&change.id) {
                    return Err(format!("approval {} was decided after it was used", change.id));
                }
                match change.state {
                    ApprovalState::Approved => self.approved.insert(change.id.clone(), change.request_sha256),
                    _ => self.approved.remove(&change.id),
                };
            }
            ApprovalState::Expired | ApprovalState::Withdrawn => {
                self.approved.remove(&change.id);
            }
            _ => {}
        }
        Ok(())
    }

    fn mint(&mut self, mint: &Mint, entry: &ReadEntry) -> Result<(), String> {
        // A federated workload's certificate is in the log of its own trust domain.
        if mint.spiffe_id.trust_domain().as_str() == self.trust_domain {
            let end = match &mint.serial {
                Some(serial) => {
                    let issuance = self.issued.get(serial).filter(|i| i.spiffe_id == mint.spiffe_id);
                    issuance.map(|i| i.not_after)
                }
                None => self.jwt_end(mint),
            };
            let end = end.ok_or_else(|| {
                format!("a token was minted for {} by a certificate that was never issued to it", mint.spiffe_id)
            })?;
            if end < entry.leaf.time || mint.expires_at > end {
                return Err("a token was minted by, or outlives, a certificate that had ended".into());
            }
            self.links.issuance += 1;
        }
        self.proof(entry, mint.jkt, "POST", None, None)?;
        self.minted.insert(mint.token_sha256, mint.clone());
        Ok(())
    }

    /// The end of the JWT-SVID that authenticated a client.
    fn jwt_end(&self, mint: &Mint) -> Option<Timestamp> {
        let assertion = mint.by.as_ref()?.assertion_sha256?;
        self.jwts.get(&assertion).filter(|j| j.spiffe_id == mint.spiffe_id).map(|j| j.expires_at)
    }

    fn admission(&mut self, admission: &Admission, entry: &ReadEntry) -> Result<(), String> {
        let mint = self.minted.get(&admission.token_sha256).ok_or("admitted with a token that was never minted")?;
        if mint.spiffe_id != admission.spiffe_id || mint.jkt != admission.jkt || mint.expires_at < entry.leaf.time {
            return Err("admitted with a token of another workload or key, or after its end".into());
        }
        self.links.token += 1;
        let target = entry.openings.get("target").map(|o| o.value.clone());
        let signed = self.proof(entry, admission.jkt, &admission.method, Some(admission.token_sha256), target)?;
        if admission.body_sha256.is_some_and(|body| signed != SignedBody::Exactly(body)) {
            return Err("admitted with another body than the proof signs for".into());
        }
        if admission.rules.is_empty() || admission.policy_version.is_empty() {
            return Err("admitted without a deciding rule or policy version".into());
        }
        self.links.decision += 1;
        if let Some(consumed) = &admission.approval {
            if self.approved.get(&consumed.id) != Some(&consumed.request_sha256) {
                return Err(format!("approval {} was not given before, for this request", consumed.id));
            }
            if !self.consumed.insert(consumed.id.clone()) {
                return Err(format!("approval {} was consumed twice", consumed.id));
            }
            self.links.approval += 1;
        }
        self.opened(&entry.leaf.event, signed)
    }

    /// Of a public route there is nobody to prove; that it was admitted and how it ended is held like any other.
    fn public(&mut self, admission: &PublicAdmission, event: &Event) -> Result<(), String> {
        if admission.policy_version.is_empty() {
            return Err("admitted without a policy version".into());
        }
        *self.public.entry(admission.route.clone()).or_default() += 1;
        self.opened(event, SignedBody::Any)
    }

    fn opened(&mut self, event: &Event, signed: SignedBody) -> Result<(), String> {
        let Some(opened) = event.opens() else { return Ok(()) };
        match self.open.insert(opened.request_id.clone(), (opened, signed)) {
            None => Ok(()),
            Some(_) => Err("one request was admitted twice".into()),
        }
    }

    /// The kept proof is the client's own signature over method, target, time and token.
    fn proof(
        &mut self,
        entry: &ReadEntry,
        jkt: Jkt,
        method: &str,
        token: Option<Sha256>,
        target: Option<String>,
    ) -> Result<SignedBody, String> {
        let opening = entry.openings.get("proof").ok_or("the proof's opening is missing")?;
        let proof = dpop::reread(&opening.value).map_err(|e| format!("the kept proof does not hold: {e}"))?;
        let path = target.as_deref().map(|t| t.split('?').next().unwrap_or_default());
        let fits = proof.jkt == jkt
            && proof.htm == method
            && token.is_none_or(|t| proof.ath.as_deref() == Some(dpop::ath(t).as_str()))
            && path.is_none_or(|p| p == proof.htu.path());
        if !fits {
            return Err("the kept proof is for another key, method, target or token".into());
        }
        // Of one proof there are two signatures: what is signed counts.
        let signed = opening.value.rsplit_once('.').map_or("", |(signed, _)| signed);
        if !self.proofs.insert(Sha256::of(signed.as_bytes())) {
            return Err("one proof was spent twice".into());
        }
        self.links.proof += 1;
        Ok(proof.body)
    }

    fn completion(&mut self, completion: &Completion) -> Result<(), String> {
        let (admission, signed) = self
            .open
            .remove(&completion.request_id)
            .ok_or("an exchange ended that was never admitted, or ended twice")?;
        self.cut += u64::from(completion.ended == CRASH);
        if admission.spiffe_id != completion.spiffe_id {
            return Err("an exchange ended as another workload's".into());
        }
        let nothing = completion.request_bytes == 0 && completion.request_sha256 == Sha256::of(b"");
        match (admission.body_sha256, signed) {
            (_, SignedBody::Exactly(body)) if body == completion.request_sha256 => self.signed_bodies += 1,
            // One that was read whole before goes out whole, or nothing of it does.
            (Some(_), _) if !nothing => return Err("another body went to upstream than the proof signs for".into()),
            (_, SignedBody::Any) => {}
            _ => self.signed_otherwise += 1,
        }
        let Some(digest) = completion.recording_sha256 else {
            return match (admission.recorded, completion.ended.as_str()) {
                (true, "complete") => Err("a complete exchange has no digest of its recording".into()),
                (true, CRASH) | (false, _) => Ok(()),
                (true, _) => {
                    self.cut += 1;
                    Ok(())
                }
            };
        };
        let id = RecordingId::parse(&completion.request_id).ok_or("not a request id")?;
        let recording = self.recordings.remove(&id);
        let recording = recording.ok_or_else(|| format!("the recording of {} is missing", completion.request_id))?;
        if recording.digest() != digest {
            return Err(format!("the recording of {} was changed", completion.request_id));
        }
        if nothing && completion.ended != CRASH && recording.request_bytes() > 0 {
            return Err(format!(
                "the recording of {} holds a request's body, and the log has none",
                completion.request_id
            ));
        }
        if recording.response() != (completion.response_sha256, completion.response_bytes) {
            return Err(format!("the recording of {} holds another response", completion.request_id));
        }
        self.links.bytes += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
