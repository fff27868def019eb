//! Proves a log offline: the tree first, then the chain issuance → token → proof → decision → approval → bytes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;

use serde::Serialize;

use crate::domain::approval::ApprovalState;
use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::leaf::{
    Admission, ApprovalChange, Completion, Event, Issuance, JwtIssuance, Mint, Opened, PublicAdmission,
};
use crate::domain::time::Timestamp;
use crate::evidence::EvidenceError;
use crate::evidence::reader::{LogReader, ReadEntry};
use crate::evidence::segments;
use crate::evidence::settle::CRASH;
use crate::protocol::checkpoint::{Checkpoint, Vkey};
use crate::protocol::dpop;
use crate::protocol::merkle::{Frontier, leaf_hash};
use crate::protocol::tile::{WIDTH, hash_path, width_at};
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

/// What a verification showed.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The log's name.
    pub origin: String,
    /// Entries under the checkpoint.
    pub leaves: u64,
    /// Root over them.
    pub root: Sha256,
    /// Whether the log's key was given from outside.
    pub anchored: bool,
    /// Size of the auditor's own checkpoint, if one was given.
    pub kept_size: Option<u64>,
    /// What the chain proved.
    pub links: Links,
    /// Entries that are durable and not under the checkpoint.
    pub staged: u64,
    /// Exchanges of public routes, whose callers nobody proved, by route.
    pub public: BTreeMap<String, u64>,
    /// Exchanges without an end or a whole recording: the service was stopped hard, or its disk was full.
    pub incomplete: u64,
}

/// Why the evidence does not hold.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    #[error("the checkpoint: {0}")]
    Checkpoint(#[from] crate::protocol::checkpoint::CheckpointError),
    #[error("entry {index} or a neighbour in its tile was changed: its hash is not the tile's")]
    EntryChanged { index: u64 },
    #[error("the entries do not lead to the checkpoint's root: the log was changed")]
    Root,
    #[error("tile {0} was changed: it does not hold the entries' hashes")]
    TileChanged(String),
    #[error("the tail is cut: the kept checkpoint counts {kept} entries and the log has {have}")]
    TailCut { kept: u64, have: u64 },
    #[error("a split view: the kept checkpoint has another root over the first {0} entries")]
    SplitView(u64),
    #[error("entry {index}: {what}")]
    Chain { index: u64, what: String },
}

/// What a verification starts from.
pub struct Anchors<'a> {
    /// The log's key, known from elsewhere.
    pub vkey: Option<&'a Vkey>,
    /// The auditor's own earlier checkpoint note.
    pub kept: Option<&'a str>,
}

/// Verifies a whole log.
pub fn verify(reader: &LogReader, anchors: &Anchors<'_>) -> Result<Report, VerifyError> {
    let path = reader.dir().vkey();
    let own = fs::read_to_string(&path).map_err(EvidenceError::io("read", &path));
    let vkey = match anchors.vkey {
        Some(vkey) => vkey.clone(),
        None => Vkey::parse(&own?)?,
    };
    let checkpoint = Checkpoint::verify(&reader.checkpoint_note()?, &vkey)?;
    let kept = anchors.kept.map(|note| Checkpoint::verify(note, &vkey)).transpose()?;
    if let Some(kept) = kept.as_ref().filter(|k| k.size > checkpoint.size) {
        return Err(VerifyError::TailCut { kept: kept.size, have: checkpoint.size });
    }
    check_tree(reader, &checkpoint, kept.as_ref())?;
    let entries: Vec<ReadEntry> = reader.entries(0)?.into_iter().filter(|e| e.index < checkpoint.size).collect();
    let trust_domain = checkpoint.origin.split('/').next().unwrap_or_default().to_owned();
    let recordings = segments::tallies(reader.dir())?;
    let mut chain = Chain { trust_domain, recordings, ..Chain::default() };
    entries.iter().try_for_each(|e| chain.entry(e))?;
    Ok(Report {
        origin: checkpoint.origin,
        leaves: checkpoint.size,
        root: checkpoint.root,
        anchored: anchors.vkey.is_some(),
        kept_size: kept.map(|k| k.size),
        links: chain.links,
        staged: reader.staged(checkpoint.size).len() as u64,
        public: chain.public,
        incomplete: chain.open.len() as u64 + chain.incomplete,
    })
}

fn check_tree(reader: &LogReader, checkpoint: &Checkpoint, kept: Option<&Checkpoint>) -> Result<(), VerifyError> {
    let mut frontier = Frontier::default();
    let mut tiles: BTreeMap<(u32, u64), Vec<u8>> = BTreeMap::new();
    let mut split = false;
    for bundle in 0..checkpoint.size.div_ceil(WIDTH) {
        for entry in reader.bundle(bundle, checkpoint.size)? {
            frontier.push(leaf_hash(&entry), |level, index, hash| {
                if level % 8 == 0 {
                    tiles.entry((level / 8, index / WIDTH)).or_default().extend(hash.0);
                }
            });
            split |= kept.is_some_and(|k| k.size == frontier.size() && k.root != frontier.root());
        }
        check_leaf_tile(reader, checkpoint, bundle, &tiles)?;
    }
    if frontier.root() != checkpoint.root {
        return Err(VerifyError::Root);
    }
    if let Some(kept) = kept.filter(|_| split) {
        return Err(VerifyError::SplitView(kept.size));
    }
    for ((level, index), want) in &tiles {
        let name = hash_path(*level, *index, want.len() as u64 / 32);
        let (_, have) = reader.tile(&hash_path(*level, *index, WIDTH), &name)?;
        if have.get(..want.len()) != Some(want) {
            return Err(VerifyError::TileChanged(name));
        }
    }
    Ok(())
}

/// Finds the first entry whose hash is not the one in its tile, so that a change is named by its place.
fn check_leaf_tile(
    reader: &LogReader,
    checkpoint: &Checkpoint,
    bundle: u64,
    tiles: &BTreeMap<(u32, u64), Vec<u8>>,
) -> Result<(), VerifyError> {
    let name = hash_path(0, bundle, width_at(bundle, checkpoint.size));
    let Ok((_, have)) = reader.tile(&hash_path(0, bundle, WIDTH), &name) else { return Ok(()) };
    let want = tiles.get(&(0, bundle)).map(Vec::as_slice).unwrap_or_default();
    let differs = have.chunks(32).zip(want.chunks(32)).position(|(a, b)| a != b);
    match differs {
        Some(offset) => Err(VerifyError::EntryChanged { index: bundle * WIDTH + offset as u64 }),
        None => Ok(()),
    }
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
struct Chain {
    /// Of the log: what is minted for others rests on their own logs.
    trust_domain: String,
    issued: HashMap<String, Issuance>,
    jwts: HashMap<Sha256, JwtIssuance>,
    minted: HashMap<Sha256, Mint>,
    approved: HashMap<String, Sha256>,
    decided: HashMap<String, ApprovalState>,
    consumed: HashSet<String>,
    proofs: HashSet<Sha256>,
    open: HashMap<String, Opened>,
    /// What lies in the segments.
    recordings: HashMap<RecordingId, Tally>,
    links: Links,
    public: BTreeMap<String, u64>,
    incomplete: u64,
}

impl Chain {
    fn entry(&mut self, entry: &ReadEntry) -> Result<(), VerifyError> {
        let fail = |what: String| VerifyError::Chain { index: entry.index, what };
        check_openings(entry).map_err(fail)?;
        match &entry.leaf.event {
            Event::Issuance(issuance) => {
                self.issued.insert(issuance.serial.clone(), issuance.clone());
                Ok(())
            }
            Event::JwtIssuance(issuance) => {
                self.jwts.insert(issuance.token_sha256, issuance.clone());
                Ok(())
            }
            Event::Mint(mint) => self.mint(mint, entry).map_err(fail),
            Event::Admission(admission) => self.admission(admission, entry).map_err(fail),
            Event::PublicAdmission(admission) => self.public(admission, &entry.leaf.event).map_err(fail),
            Event::ApprovalChanged(change) => self.approval(change).map_err(fail),
            Event::Completion(completion) => self.completion(completion).map_err(fail),
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
        self.proof(entry, admission.jkt, &admission.method, Some(admission.token_sha256), target)?;
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
        self.opened(&entry.leaf.event)
    }

    /// Of a public route there is nobody to prove; that it was admitted and how it ended is held like any other.
    fn public(&mut self, admission: &PublicAdmission, event: &Event) -> Result<(), String> {
        if admission.policy_version.is_empty() {
            return Err("admitted without a policy version".into());
        }
        *self.public.entry(admission.route.clone()).or_default() += 1;
        self.opened(event)
    }

    fn opened(&mut self, event: &Event) -> Result<(), String> {
        let Some(opened) = event.opens() else { return Ok(()) };
        match self.open.insert(opened.request_id.clone(), opened) {
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
    ) -> Result<(), String> {
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
        Ok(())
    }

    fn completion(&mut self, completion: &Completion) -> Result<(), String> {
        let admission = self
            .open
            .remove(&completion.request_id)
            .ok_or("an exchange ended that was never admitted, or ended twice")?;
        self.incomplete += u64::from(completion.ended == CRASH);
        if admission.spiffe_id != completion.spiffe_id {
            return Err("an exchange ended as another workload's".into());
        }
        let Some(digest) = completion.recording_sha256 else {
            return match (admission.recorded, completion.ended.as_str()) {
                (true, "complete") => Err("a complete exchange has no digest of its recording".into()),
                (true, CRASH) | (false, _) => Ok(()),
                (true, _) => {
                    self.incomplete += 1;
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
        if recording.response() != (completion.response_sha256, completion.response_bytes) {
            return Err(format!("the recording of {} holds another response", completion.request_id));
        }
        self.links.bytes += 1;
        Ok(())
    }
}
