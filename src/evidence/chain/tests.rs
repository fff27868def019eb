//! A chain that holds, and what an operator might have written instead.

use super::*;
use crate::domain::digest::Opening;

use crate::domain::leaf::{ConsumedApproval, Leaf};
use crate::domain::secret::AccessToken;
use crate::net::keys::P256Key;
use crate::protocol::jwk::PublicKey;
use crate::protocol::jws::SigningKey;

const WHEN: u64 = 1_790_000_000;
const BODY: &[u8] = b"{\"numbers\":[4,9,10,13]}";
const REQUEST: &str = "0c6f0c6f0c6f0c6f0c6f0c6f0c6f0c6f";

fn signer() -> SigningKey {
    let key = P256Key::generate();
    let public = PublicKey::from_spki(key.spki()).expect("a key");
    SigningKey::new(public, move |message| key.sign(message))
}

fn entry(index: u64, event: Event, openings: &[(&str, &Opening)]) -> ReadEntry {
    let openings = openings.iter().map(|(name, o)| ((*name).to_owned(), (*o).clone())).collect();
    let leaf = Leaf { time: Timestamp::from_unix(WHEN), event };
    ReadEntry { index, bytes: leaf.canonical(), leaf, openings }
}

fn commit(value: &str) -> Opening {
    Opening::new([7; 32], value)
}

/// The entries of one approved request with a body that its proof signs for, not recorded.
struct Story {
    issuance: Issuance,
    mint: Mint,
    mint_proof: Opening,
    approved: ApprovalChange,
    admission: Admission,
    proof: Opening,
    target: Opening,
    completion: Completion,
}

impl Story {
    #[expect(clippy::too_many_lines, reason = "one literal for each entry")]
    fn new(key: &SigningKey) -> Self {
        let jkt = key.public().jkt();
        let id: crate::domain::spiffe_id::SpiffeId = "spiffe://example.org/ci/solver".parse().expect("an id");
        let token = AccessToken::new("a.b.c".into());
        let prove = |method: &str, url: &str, jti: &str, token: Option<&AccessToken>, body: Option<&[u8]>| {
            let now = Timestamp::from_unix(WHEN);
            commit(&dpop::prove(&dpop::Request { method, url, token, nonce: None, jti, now, body }, key))
        };
        let mint_proof = prove("POST", "https://gate/token", "one", None, None);
        let proof = prove("POST", "https://gate/v1/runs?q=1", "two", Some(&token), Some(BODY));
        let (target, object, person) = (commit("/v1/runs?q=1"), commit("/v1/runs"), commit("ann"));
        let request = Sha256::of(b"the bound request");
        let end = Timestamp::from_unix(WHEN + 600);
        Self {
            issuance: Issuance {
                spiffe_id: id.clone(),
                serial: "17".into(),
                jkt,
                not_before: Timestamp::from_unix(WHEN),
                not_after: end,
                issuer_key_id: "k".into(),
                certificate_sha256: Sha256::of(b"c"),
                attestation: "join_token".into(),
                attestation_sha256: Sha256::of(b"t"),
            },
            mint: Mint {
                request_id: "m".into(),
                spiffe_id: id.clone(),
                jkt,
                serial: Some("17".into()),
                jti_sha256: Sha256::of(b"j"),
                token_sha256: token.digest(),
                audience: "https://gate/v1".into(),
                scope: "tot.run".into(),
                expires_at: end,
                proof: mint_proof.commitment(),
                by: None,
                details_sha256: None,
                subject: None,
                policy: None,
            },
            mint_proof,
            approved: ApprovalChange {
                id: "a1".into(),
                state: ApprovalState::Approved,
                request_sha256: request,
                requester: id.clone(),
                jkt,
                rule: "r".into(),
                policy_version: "v".into(),
                person: Some(person.commitment()),
                proved_by: Some("certificate".into()),
            },
            admission: Admission {
                request_id: REQUEST.into(),
                spiffe_id: id.clone(),
                jkt,
                token_sha256: token.digest(),
                proof: proof.commitment(),
                method: "POST".into(),
                target: target.commitment(),
                route: "engine".into(),
                operation: "tot.run".into(),
                object: object.commitment(),
                rules: vec!["r".into()],
                policy_version: "v".into(),
                approval: Some(ConsumedApproval { id: "a1".into(), request_sha256: request }),
                recorded: false,
                used: None,
                body_sha256: Some(Sha256::of(BODY)),
            },
            proof,
            target,
            completion: Completion {
                request_id: REQUEST.into(),
                spiffe_id: Some(id),
                status: 200,
                request_bytes: BODY.len() as u64,
                request_sha256: Sha256::of(BODY),
                response_bytes: 2,
                response_sha256: Sha256::of(b"ok"),
                upstream_bytes: 2,
                masked: BTreeMap::new(),
                recording_sha256: None,
                ended: "complete".into(),
                duration_ms: 3,
            },
        }
    }

    fn entries(self) -> Vec<ReadEntry> {
        let (object, person) = (commit("/v1/runs"), commit("ann"));
        let person: &[(&str, &Opening)] = if self.approved.person.is_some() { &[("person", &person)] } else { &[] };
        vec![
            entry(0, Event::Issuance(self.issuance), &[]),
            entry(1, Event::Mint(self.mint), &[("proof", &self.mint_proof)]),
            entry(2, Event::ApprovalChanged(self.approved), person),
            entry(
                3,
                Event::Admission(self.admission),
                &[("proof", &self.proof), ("target", &self.target), ("object", &object)],
            ),
            entry(4, Event::Completion(self.completion), &[]),
        ]
    }
}

#[test]
fn a_recorded_body_that_the_log_has_not_is_named() {
    use crate::domain::recording::FrameKind;
    use crate::protocol::transcript::{Mark, encode, records};
    let id = RecordingId::parse(REQUEST).expect("an id");
    let frames = [
        encode(Mark([7; 12]), id, 0, FrameKind::RequestBody, 0, BODY),
        encode(Mark([7; 12]), id, 1, FrameKind::ResponseBody, 0, b"ok"),
    ];
    let segment = [&Mark([7; 12]).head()[..], &frames[0], &frames[1]].concat();
    let key = signer();
    for (nothing, holds) in [(false, true), (true, false)] {
        let mut tally = Tally::default();
        records(&segment).for_each(|record| assert!(tally.take(&record)));
        let mut story = Story::new(&key);
        story.admission.recorded = true;
        story.completion.recording_sha256 = Some(tally.digest());
        if nothing {
            (story.completion.request_bytes, story.completion.request_sha256) = (0, Sha256::of(b""));
        }
        let mut chain = Chain::of("example.org".into(), HashMap::from([(id, tally)]));
        let told = story.entries().iter().try_for_each(|e| chain.entry(e));
        assert_eq!(told.is_ok(), holds, "{told:?}");
        assert!(holds || told.is_err_and(|t| t.contains("holds a request's body, and the log has none")));
    }
}

fn read(entries: &[ReadEntry]) -> Result<Chain, String> {
    let mut chain = Chain::of("example.org".into(), HashMap::new());
    entries.iter().try_for_each(|e| chain.entry(e))?;
    Ok(chain)
}

#[test]
fn every_link_of_a_sound_chain_is_proved_once() {
    let chain = read(&Story::new(&signer()).entries()).expect("holds");
    assert_eq!(chain.links, Links { issuance: 1, token: 1, proof: 2, decision: 1, approval: 1, bytes: 0 });
    assert_eq!((chain.signed_bodies, chain.incomplete()), (1, 0));
}

#[test]
fn what_was_never_so_is_named() {
    type Change = fn(&mut Story);
    let cases: [(&str, Change); 18] = [
        ("a certificate that was never issued to it", |s| s.issuance.serial = "18".into()),
        ("a certificate that was never issued to it", |s| {
            s.issuance.spiffe_id = "spiffe://example.org/other".parse().expect("an id");
        }),
        ("a certificate that had ended", |s| s.issuance.not_after = Timestamp::from_unix(WHEN - 1)),
        ("a token that was never minted", |s| s.mint.token_sha256 = Sha256::of(b"another")),
        ("another workload or key, or after its end", |s| s.mint.expires_at = Timestamp::from_unix(WHEN - 1)),
        ("another key, method, target or token", |s| s.admission.method = "GET".into()),
        ("another key, method, target or token", |s| {
            s.target = commit("/v1/other");
            s.admission.target = s.target.commitment();
        }),
        ("the opening of target was changed", |s| s.target = commit("/v1/other")),
        ("another body than the proof signs for", |s| s.admission.body_sha256 = Some(Sha256::of(b"{}"))),
        ("another body went to upstream", |s| s.completion.request_sha256 = Sha256::of(b"{}")),
        ("another body went to upstream", |s| {
            (s.completion.request_bytes, s.completion.request_sha256) = (0, Sha256::of(b"{}"));
        }),
        ("without a deciding rule", |s| s.admission.rules.clear()),
        ("was approved by nobody", |s| s.approved.person = None),
        ("was not given before, for this request", |s| s.approved.request_sha256 = Sha256::of(b"another")),
        ("was not given before, for this request", |s| s.approved.state = ApprovalState::Denied),
        ("never admitted", |s| s.completion.request_id = "0c".into()),
        ("another workload's", |s| s.completion.spiffe_id = None),
        ("no digest of its recording", |s| s.admission.recorded = true),
    ];
    let key = signer();
    for (wanted, change) in cases {
        let mut story = Story::new(&key);
        change(&mut story);
        let told = read(&story.entries()).err().unwrap_or_else(|| panic!("nothing was found: {wanted}"));
        assert!(told.contains(wanted), "{wanted}: {told}");
    }
}

#[test]
fn what_counts_once_counts_once() {
    let key = signer();
    for (again, wanted) in [(3, "one proof was spent twice"), (4, "ended twice"), (1, "one proof was spent twice")] {
        let mut entries = Story::new(&key).entries();
        let copy = Story::new(&key).entries().swap_remove(again);
        // The same signed text: a signature may differ.
        let copy = ReadEntry { openings: entries[again].openings.clone(), leaf: entries[again].leaf.clone(), ..copy };
        entries.push(copy);
        assert!(read(&entries).err().is_some_and(|told| told.contains(wanted)), "entry {again}");
    }
}

#[test]
fn a_body_that_did_not_go_out_is_no_other_body() {
    let mut story = Story::new(&signer());
    (story.completion.request_bytes, story.completion.request_sha256) = (0, Sha256::of(b""));
    story.completion.ended = "upstream".into();
    let chain = read(&story.entries()).expect("holds");
    assert_eq!((chain.signed_bodies, chain.signed_otherwise), (0, 1));
}

#[test]
fn a_body_that_streamed_counts_where_all_of_it_went_out() {
    let key = signer();
    for (went, counts) in [(BODY, (1, 0)), (&BODY[..5], (0, 1))] {
        let mut story = Story::new(&key);
        story.admission.body_sha256 = None;
        (story.completion.request_bytes, story.completion.request_sha256) = (went.len() as u64, Sha256::of(went));
        let chain = read(&story.entries()).expect("holds");
        assert_eq!((chain.signed_bodies, chain.signed_otherwise), counts);
    }
}
