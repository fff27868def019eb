//! The authorities of a trust domain and what may become of each: prepared, active, old, tainted, revoked.
//!
//! A prepared authority is in the bundle before anything is signed with it, and an old one stays there until everything
//! that it signed has ended: so whoever verifies has it, whenever they last looked.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use crate::domain::time::Timestamp;

/// What an authority signs.
#[derive(
    Clone,
    Copy,
    Debug,
    Eq,
    Hash,
    PartialEq,
    Serialize,
    Deserialize,
    strum::EnumString,
    strum::Display,
    strum::VariantNames,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum AuthorityKind {
    /// Issuing CAs.
    Root,
    /// X.509-SVIDs.
    Issuing,
    /// JWT-SVIDs.
    JwtSvid,
    /// X.509-SVIDs of a server that issues below ours, with a key of its own.
    Downstream,
}

/// Where an authority is in its life.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize, strum::Display)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum AuthorityState {
    /// Its certificate is asked for at an upstream CA.
    Requested,
    /// Known to everybody, signing nothing yet.
    Prepared,
    /// Signs.
    Active,
    /// Signs no more; what it signed lives.
    Old,
    /// Old, and what it signed is to be replaced at once.
    Tainted,
    /// Trusted no more.
    Revoked,
}

/// DER in a JSON document.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Der(String);

impl Der {
    /// From bytes.
    pub fn new(der: &[u8]) -> Self {
        Self(BASE64_STANDARD.encode(der))
    }

    /// The bytes.
    pub fn bytes(&self) -> Vec<u8> {
        BASE64_STANDARD.decode(&self.0).unwrap_or_default()
    }
}

/// One authority.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// SHA-256 of its key's SPKI, hex.
    pub id: String,
    /// What it signs.
    pub kind: AuthorityKind,
    /// Where it is.
    pub state: AuthorityState,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its end.
    pub not_after: Timestamp,
    /// Until when something that it signed may live.
    pub signed_until: Timestamp,
    /// When it stopped signing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired_at: Option<Timestamp>,
    /// Its certificate, then those that lead to a root; none for a JWT-SVID key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<Der>,
    /// The root it leads to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Certificates of the same key by older roots, for who knows only those: root and certificate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bridges: Vec<(String, Der)>,
}

impl Record {
    /// Whether it is trusted at `now`.
    pub fn is_trusted(&self, now: Timestamp) -> bool {
        use AuthorityState::{Active, Old, Prepared, Tainted};
        matches!(self.state, Prepared | Active | Old | Tainted) && now < self.not_after
    }

    /// The moment at which so many sixths of its life have passed.
    fn after_sixths(&self, sixths: u32) -> Timestamp {
        self.created_at.plus(self.not_after.since(self.created_at) / 6 * sixths)
    }
}

/// Why a change of an authority is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum StateError {
    #[error("a {0} authority is prepared already ({1}): activate it, or revoke it")]
    PreparedAlready(AuthorityKind, String),
    #[error("no {0} authority is prepared: `popgate ca prepare {0}` makes one")]
    NonePrepared(AuthorityKind),
    #[error("there is no authority {0}; `popgate ca status` lists them")]
    Unknown(String),
    #[error("authority {0} is {1}: activate another one first, and then taint or revoke this")]
    InUse(String, AuthorityState),
    #[error("authority {0} is {1} already")]
    Already(String, AuthorityState),
}

/// All authorities.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Authorities {
    /// Grows with each change of the bundle.
    pub sequence: u64,
    /// In the order in which they were made.
    pub records: Vec<Record>,
}

impl Authorities {
    /// The one in a state.
    pub fn find(&self, kind: AuthorityKind, state: AuthorityState) -> Option<&Record> {
        self.records.iter().find(|r| r.kind == kind && r.state == state)
    }

    /// By identifier, or by its first characters where only one begins so.
    pub fn by_id(&self, id: &str) -> Result<&Record, StateError> {
        let mut fitting = self.records.iter().filter(|r| id.len() >= 8 && r.id.starts_with(id));
        match (fitting.next(), fitting.next()) {
            (Some(one), None) => Ok(one),
            _ => Err(StateError::Unknown(id.to_owned())),
        }
    }

    /// The trusted ones of a kind.
    pub fn trusted(&self, kind: AuthorityKind, now: Timestamp) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |r| r.kind == kind && r.is_trusted(now))
    }

    /// Adds a new authority.
    pub fn add(&mut self, record: Record) -> Result<(), StateError> {
        if let Some(there) = self.waiting(record.kind) {
            return Err(StateError::PreparedAlready(record.kind, there.id.clone()));
        }
        self.sequence += 1;
        self.records.push(record);
        Ok(())
    }

    /// The one that is to become active.
    pub fn waiting(&self, kind: AuthorityKind) -> Option<&Record> {
        use AuthorityState::{Prepared, Requested};
        self.find(kind, Prepared).or_else(|| self.find(kind, Requested))
    }

    /// The prepared one becomes active, the active one old.
    pub fn activate(&mut self, kind: AuthorityKind, now: Timestamp) -> Result<(), StateError> {
        if self.find(kind, AuthorityState::Prepared).is_none() {
            return Err(StateError::NonePrepared(kind));
        }
        for record in self.records.iter_mut().filter(|r| r.kind == kind) {
            match record.state {
                AuthorityState::Active => {
                    record.state = AuthorityState::Old;
                    record.retired_at = Some(now);
                }
                AuthorityState::Prepared => record.state = AuthorityState::Active,
                _ => {}
            }
        }
        self.sequence += 1;
        Ok(())
    }

    /// What an old one signed is to be replaced at once.
    pub fn taint(&mut self, id: &str) -> Result<(), StateError> {
        self.end(id, AuthorityState::Tainted)
    }

    /// An authority is trusted no more; with a root go the authorities under it.
    pub fn revoke(&mut self, id: &str) -> Result<(), StateError> {
        self.end(id, AuthorityState::Revoked)?;
        let root = self.by_id(id)?.id.clone();
        let mut under = vec![root.clone()];
        while let Some(parent) = under.pop() {
            for record in self.records.iter_mut().filter(|r| r.root.as_ref() == Some(&parent)) {
                record.state = AuthorityState::Revoked;
                under.push(record.id.clone());
            }
        }
        for record in &mut self.records {
            record.bridges.retain(|(bridged, _)| *bridged != root);
        }
        Ok(())
    }

    fn end(&mut self, id: &str, to: AuthorityState) -> Result<(), StateError> {
        use AuthorityState::{Active, Old, Prepared, Requested, Revoked, Tainted};
        let found = self.by_id(id)?;
        let (id, state) = (found.id.clone(), found.state);
        // The root of the active issuing CA is as active as that is.
        let signs = |r: &Record| r.state == Active && r.kind == AuthorityKind::Issuing;
        let carries = self.records.iter().any(|r| signs(r) && r.root.as_ref() == Some(&id));
        let downstream = found.kind == AuthorityKind::Downstream;
        match (state, to) {
            (Active, Revoked) if downstream => {}
            (_, Revoked) if carries => return Err(StateError::InUse(id, Active)),
            (Active, _) | (Prepared | Requested, Tainted) => return Err(StateError::InUse(id, state)),
            (Tainted, Tainted) | (Revoked, _) => return Err(StateError::Already(id, state)),
            (Old | Tainted | Prepared | Requested, _) => {}
        }
        for record in self.records.iter_mut().filter(|r| r.id == id) {
            record.state = to;
        }
        self.sequence += 1;
        Ok(())
    }

    /// With an upstream CA, the root of the active issuing CA is the active one, and others are old.
    pub fn follow_upstream(&mut self, now: Timestamp) {
        let active = self.find(AuthorityKind::Issuing, AuthorityState::Active).and_then(|r| r.root.clone());
        for record in self.records.iter_mut().filter(|r| r.kind == AuthorityKind::Root) {
            if Some(&record.id) == active.as_ref() {
                record.state = AuthorityState::Active;
                record.retired_at = None;
            } else if record.state == AuthorityState::Active {
                record.state = AuthorityState::Old;
                record.retired_at = Some(now);
            }
        }
    }

    /// Forgets what has ended, and gives the identifiers: their keys are destroyed. A revoked authority is remembered to
    /// the end of its certificate, for the revocation lists.
    pub fn forget(&mut self, now: Timestamp) -> Vec<String> {
        let over = |r: &Record| match r.state {
            AuthorityState::Old | AuthorityState::Tainted => now >= r.signed_until || now >= r.not_after,
            AuthorityState::Revoked | AuthorityState::Prepared => now >= r.not_after,
            AuthorityState::Active => r.kind == AuthorityKind::Downstream && now >= r.not_after,
            AuthorityState::Requested => false,
        };
        let gone: Vec<String> = self.records.iter().filter(|r| over(r)).map(|r| r.id.clone()).collect();
        if !gone.is_empty() {
            self.records.retain(|r| !gone.contains(&r.id));
            self.sequence += 1;
        }
        gone
    }

    /// Whether the timer should prepare one: none is, and half the life of the active one has passed.
    pub fn prepare_due(&self, kind: AuthorityKind, now: Timestamp) -> bool {
        let active = self.find(kind, AuthorityState::Active);
        self.waiting(kind).is_none() && active.is_none_or(|a| now >= a.after_sixths(3))
    }

    /// Whether the timer should activate the prepared one: five sixths of the life of the active one have passed.
    pub fn activate_due(&self, kind: AuthorityKind, now: Timestamp) -> bool {
        let active = self.find(kind, AuthorityState::Active);
        self.find(kind, AuthorityState::Prepared).is_some() && active.is_none_or(|a| now >= a.after_sixths(5))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(id: u64, now: u64) -> Record {
        Record {
            id: format!("{id:064x}"),
            kind: AuthorityKind::JwtSvid,
            state: AuthorityState::Prepared,
            created_at: Timestamp::from_unix(now),
            not_after: Timestamp::from_unix(now + 60),
            signed_until: Timestamp::from_unix(now + 60),
            retired_at: None,
            chain: Vec::new(),
            root: None,
            bridges: Vec::new(),
        }
    }

    const KIND: AuthorityKind = AuthorityKind::JwtSvid;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix(seconds)
    }

    #[test]
    fn l1_the_next_one_is_prepared_at_half_a_life_and_active_at_five_sixths() {
        let mut all = Authorities::default();
        assert!(all.prepare_due(KIND, at(100)), "there is none");
        all.add(record(1, 100)).expect("adds");
        assert!(all.activate_due(KIND, at(100)), "nothing else signs");
        all.activate(KIND, at(100)).expect("activates");
        assert!(!all.prepare_due(KIND, at(129)) && all.prepare_due(KIND, at(130)));
        all.add(record(2, 130)).expect("adds");
        assert!(!all.prepare_due(KIND, at(149)), "one is prepared");
        assert!(!all.activate_due(KIND, at(149)) && all.activate_due(KIND, at(150)));
        all.activate(KIND, at(150)).expect("activates");
        assert_eq!(all.trusted(KIND, at(151)).count(), 2, "what the old one signed lives");
        assert!(all.forget(at(159)).is_empty());
        assert_eq!(all.forget(at(160)), [record(1, 0).id]);
    }

    #[test]
    fn each_change_has_its_order() {
        let mut all = Authorities::default();
        assert_eq!(all.activate(KIND, at(0)), Err(StateError::NonePrepared(KIND)));
        all.add(record(1, 0)).expect("adds");
        assert!(matches!(all.add(record(2, 0)), Err(StateError::PreparedAlready(..))));
        let (one, two) = (record(1, 0).id, record(2, 0).id);
        assert!(matches!(all.taint(&one), Err(StateError::InUse(_, AuthorityState::Prepared))));
        all.activate(KIND, at(0)).expect("activates");
        assert!(matches!(all.taint(&one), Err(StateError::InUse(_, AuthorityState::Active))));
        assert!(matches!(all.revoke(&one), Err(StateError::InUse(..))));
        assert!(matches!(all.revoke(&two), Err(StateError::Unknown(_))));
        all.add(record(2, 0)).expect("adds");
        all.activate(KIND, at(0)).expect("activates");
        all.taint(&one).expect("taints");
        assert!(matches!(all.taint(&one), Err(StateError::Already(..))));
        assert_eq!(all.trusted(KIND, at(1)).count(), 2, "a tainted one is trusted until it is revoked");
        all.revoke(&one).expect("revokes");
        assert_eq!(all.trusted(KIND, at(1)).count(), 1);
        assert!(matches!(all.revoke(&one), Err(StateError::Already(..))));
    }

    proptest! {
        /// Whatever is asked in whatever order: at most one signs, at most one waits, the active one is never taken away,
        /// and each change of the bundle is a new sequence.
        #[test]
        fn no_order_of_changes_leaves_a_domain_without_its_authority(steps in proptest::collection::vec((0_u8..4, 1_u64..6), 1..40)) {
            let mut all = Authorities::default();
            all.add(record(0, 0)).expect("adds");
            all.activate(KIND, at(0)).expect("activates");
            for (n, (step, id)) in (100_u64..).zip(steps) {
                let (before, sequence) = (all.trusted(KIND, at(1)).count(), all.sequence);
                let name = all.records[usize::try_from(id).expect("small") % all.records.len()].id.clone();
                let done = match step {
                    0 => all.add(record(n, 0)),
                    1 => all.activate(KIND, at(0)),
                    2 => all.taint(&name),
                    _ => all.revoke(&name),
                };
                prop_assert_eq!(all.sequence, sequence + u64::from(done.is_ok()));
                let count = |state| all.records.iter().filter(|r| r.state == state).count();
                prop_assert_eq!(count(AuthorityState::Active), 1);
                prop_assert!(count(AuthorityState::Prepared) <= 1);
                prop_assert!(all.trusted(KIND, at(1)).count() + 1 >= before);
            }
        }
    }
}
