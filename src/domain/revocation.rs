//! What has been stopped, and whether it stops a given subject.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::domain::approval::Approval;
use crate::domain::key::Jkt;
use crate::domain::people::{Entry, Person};
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;

/// What a revocation names.
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
pub enum RevocationKind {
    /// A workload, with all its certificates, keys and tokens.
    SpiffeId,
    /// A person, and every workload that names them as owner.
    Person,
    /// One certificate.
    Serial,
    /// One key.
    Jkt,
    /// One token.
    Jti,
    /// Every workload in a group.
    Group,
    /// A node: its agent, and what was issued through it.
    Node,
    /// A registration entry or a template, with what it led to.
    Entry,
    /// What was minted on a person's statement; their own workloads go on.
    Session,
}

/// One revocation as the ledger keeps it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Revocation {
    /// Ledger number: revocations are ordered by it.
    pub id: i64,
    /// What kind of subject it names.
    pub kind: RevocationKind,
    /// The subject.
    pub value: String,
    /// Why, in the words of who did it.
    pub reason: String,
    /// Who did it.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// When it ends by itself; none: never.
    pub until: Option<Timestamp>,
}

/// Everything about a caller that a revocation can name.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The workload or person.
    pub spiffe_id: SpiffeId,
    /// Owner of the workload, or the person's own id.
    pub person: Option<String>,
    /// Groups of the entry.
    pub groups: Vec<String>,
    /// Its certificate, hex.
    pub serial: Option<String>,
    /// Its key.
    pub jkt: Option<Jkt>,
    /// Its token's identifier.
    pub jti: Option<String>,
    /// The node whose agent asks for it.
    pub node: Option<SpiffeId>,
    /// The template of its entry.
    pub template: Option<String>,
    /// The people and workloads on whose behalf it acts, and the people who answer for those workloads.
    pub on_behalf: Vec<String>,
    /// When whoever it acts for was last spoken of; none: it is not known.
    pub since: Option<Timestamp>,
}

impl Subject {
    /// An identity of which nothing else is known.
    pub fn of(spiffe_id: &SpiffeId) -> Self {
        Self {
            spiffe_id: spiffe_id.clone(),
            person: None,
            groups: Vec::new(),
            serial: None,
            jkt: None,
            jti: None,
            node: None,
            template: None,
            on_behalf: Vec::new(),
            since: None,
        }
    }

    /// The same acting for others, with all that a stop of theirs can name; none if one of them is a workload that is not
    /// registered.
    pub fn acting_for(
        mut self,
        parties: Vec<String>,
        since: Timestamp,
        entry_of: impl Fn(&SpiffeId) -> Option<Entry>,
    ) -> Option<Self> {
        for workload in parties.iter().filter(|p| p.starts_with("spiffe://")) {
            let entry = entry_of(&workload.parse().ok()?)?;
            self.on_behalf.push(entry.owner);
            self.on_behalf.extend(entry.template);
            self.groups.extend(entry.groups);
        }
        self.on_behalf.extend(parties);
        self.since = Some(since);
        Some(self)
    }

    /// A registered workload.
    pub fn workload(entry: &Entry) -> Self {
        Self {
            person: Some(entry.owner.clone()),
            groups: entry.groups.clone(),
            template: entry.template.clone(),
            ..Self::of(&entry.spiffe_id)
        }
    }

    /// A certificate of which nothing else is known.
    pub fn certificate(spiffe_id: &SpiffeId, serial: &str) -> Self {
        Self { serial: Some(serial.to_owned()), ..Self::of(spiffe_id) }
    }

    /// The person who decided an approval, as a revocation can name them.
    pub fn approver(approval: &Approval, person: &Person) -> Self {
        let serial = approval.proved_by.as_deref().and_then(|p| p.strip_prefix("certificate:"));
        Self {
            person: Some(person.id.clone()),
            groups: person.groups.clone(),
            serial: serial.map(ToOwned::to_owned),
            ..Self::of(&person.spiffe_id(&approval.requester.trust_domain()))
        }
    }
}

/// The revocations in force, ready to be asked.
#[derive(Clone, Debug, Default)]
pub struct RevocationSet {
    /// The ledger's head when the set was read.
    pub head: i64,
    stopped: HashMap<(RevocationKind, String), Stop>,
}

/// When a stop was made and when it ends by itself.
#[derive(Clone, Copy, Debug)]
struct Stop {
    at: Timestamp,
    until: Option<Timestamp>,
}

impl RevocationSet {
    /// Builds the set from the rows in force.
    pub fn new(head: i64, rows: &[Revocation]) -> Self {
        let mut stopped: HashMap<_, Stop> = HashMap::new();
        for row in rows {
            let new = Stop { at: row.at, until: row.until };
            let stop = stopped.entry((row.kind, row.value.clone())).or_insert(new);
            stop.at = stop.at.max(row.at);
            stop.until = match (stop.until, row.until) {
                (Some(a), Some(b)) => Some(a.max(b)),
                _ => None,
            };
        }
        Self { head, stopped }
    }

    /// The kind of revocation that stops the subject at `now`, if any.
    pub fn stops(&self, subject: &Subject, now: Timestamp) -> Option<RevocationKind> {
        if self.stopped.is_empty() {
            return None;
        }
        let mut named = vec![(RevocationKind::SpiffeId, subject.spiffe_id.to_string())];
        named.extend(subject.person.iter().map(|p| (RevocationKind::Person, p.clone())));
        named.extend(subject.serial.iter().map(|s| (RevocationKind::Serial, s.clone())));
        named.extend(subject.jkt.iter().map(|j| (RevocationKind::Jkt, j.to_string())));
        named.extend(subject.jti.iter().map(|j| (RevocationKind::Jti, j.clone())));
        // A node is stopped with what asks through it; an entry by its own ID or by its template's.
        let node = subject.node.as_ref().or_else(|| subject.spiffe_id.node_name().map(|_| &subject.spiffe_id));
        named.extend(node.map(|n| (RevocationKind::Node, n.to_string())));
        named.push((RevocationKind::Entry, subject.spiffe_id.to_string()));
        named.extend(subject.template.iter().map(|t| (RevocationKind::Entry, t.clone())));
        named.extend(subject.groups.iter().map(|g| (RevocationKind::Group, g.clone())));
        for party in &subject.on_behalf {
            use RevocationKind::{Entry, Person, Session, SpiffeId};
            let kinds = if party.starts_with("spiffe://") { [SpiffeId, Entry] } else { [Person, Session] };
            named.extend(kinds.map(|kind| (kind, party.clone())));
        }
        named.into_iter().find(|key| self.in_force(key, subject.since, now)).map(|(kind, _)| kind)
    }

    /// Whether a stop names exactly this and holds until `end` at least.
    pub fn names_until(&self, kind: RevocationKind, value: &str, end: Timestamp) -> bool {
        self.stopped.get(&(kind, value.to_owned())).is_some_and(|s| s.until.is_none_or(|until| until >= end))
    }

    /// A session's end stops what was begun before it; what is said of the person since counts.
    fn in_force(&self, key: &(RevocationKind, String), since: Option<Timestamp>, now: Timestamp) -> bool {
        let concerns = |stop: &Stop| key.0 != RevocationKind::Session || since.is_none_or(|since| since <= stop.at);
        self.stopped.get(key).is_some_and(|s| s.until.is_none_or(|until| now < until) && concerns(s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: RevocationKind, value: &str, until: Option<u64>) -> Revocation {
        Revocation {
            id: 1,
            kind,
            value: value.into(),
            reason: "test".into(),
            by: "local:0".into(),
            at: Timestamp::ZERO,
            until: until.map(Timestamp::from_unix),
        }
    }

    fn subject() -> Subject {
        Subject {
            spiffe_id: "spiffe://example.org/ci/solver".parse().expect("legal"),
            person: Some("https://idp#bob".into()),
            groups: vec!["solvers".into()],
            serial: Some("0a".into()),
            jkt: Some(Jkt([1; 32])),
            jti: Some("t1".into()),
            node: Some("spiffe://example.org/popgate/node/n1".parse().expect("legal")),
            template: Some("spiffe://example.org/ci/{oidc:x}".into()),
            on_behalf: vec!["https://idp#eve".into(), "spiffe://example.org/ai/planner".into()],
            since: Some(Timestamp::from_unix(0)),
        }
    }

    #[test]
    fn each_kind_stops_its_subject_and_no_other() {
        let jkt = Jkt([1; 32]).to_string();
        let rows = [
            (RevocationKind::SpiffeId, "spiffe://example.org/ci/solver"),
            (RevocationKind::Person, "https://idp#bob"),
            (RevocationKind::Serial, "0a"),
            (RevocationKind::Jkt, jkt.as_str()),
            (RevocationKind::Jti, "t1"),
            (RevocationKind::Group, "solvers"),
            (RevocationKind::Node, "spiffe://example.org/popgate/node/n1"),
            (RevocationKind::Entry, "spiffe://example.org/ci/solver"),
            (RevocationKind::Entry, "spiffe://example.org/ci/{oidc:x}"),
            (RevocationKind::Person, "https://idp#eve"),
            (RevocationKind::Session, "https://idp#eve"),
            (RevocationKind::SpiffeId, "spiffe://example.org/ai/planner"),
        ];
        let now = Timestamp::from_unix(10);
        for (kind, value) in rows {
            let set = RevocationSet::new(1, &[row(kind, value, None)]);
            assert_eq!(set.stops(&subject(), now), Some(kind));
            let other = RevocationSet::new(1, &[row(kind, "another", None)]);
            assert_eq!(other.stops(&subject(), now), None);
        }
    }

    #[test]
    fn a_revocation_ends_at_its_until_and_the_longer_one_wins() {
        let by_id = |until| row(RevocationKind::SpiffeId, "spiffe://example.org/ci/solver", until);
        let set = RevocationSet::new(2, &[by_id(Some(10)), by_id(Some(20))]);
        assert!(set.stops(&subject(), Timestamp::from_unix(19)).is_some());
        assert!(set.stops(&subject(), Timestamp::from_unix(20)).is_none());
        let forever = RevocationSet::new(2, &[by_id(None), by_id(Some(20))]);
        assert!(forever.stops(&subject(), Timestamp::from_unix(99)).is_some());
    }

    #[test]
    fn a_sessions_end_stops_what_was_begun_before_it_and_not_what_comes_after() {
        let end =
            Revocation { at: Timestamp::from_unix(50), ..row(RevocationKind::Session, "https://idp#eve", Some(1000)) };
        let set = RevocationSet::new(1, &[end]);
        let begun = |at: Option<u64>| Subject { since: at.map(Timestamp::from_unix), ..subject() };
        let now = Timestamp::from_unix(60);
        assert!(set.stops(&begun(Some(50)), now).is_some());
        assert!(set.stops(&begun(None), now).is_some(), "whoever cannot say when is stopped");
        assert!(set.stops(&begun(Some(51)), now).is_none());
        assert!(set.stops(&begun(Some(10)), Timestamp::from_unix(1000)).is_none(), "it ends");
    }

    #[test]
    fn acting_for_a_workload_is_stopped_with_its_owner_and_needs_its_registration() {
        let planner: SpiffeId = "spiffe://example.org/ai/planner".parse().expect("legal");
        let entry = Entry::new(planner.clone(), "https://idp#pat".into(), crate::domain::people::Seconds(60));
        let parties = || vec![planner.to_string()];
        let acting = Subject::of(&"spiffe://example.org/a".parse().expect("legal"));
        let with = acting.clone().acting_for(parties(), Timestamp::ZERO, |_| Some(entry.clone())).expect("registered");
        let set = RevocationSet::new(1, &[row(RevocationKind::Person, "https://idp#pat", None)]);
        assert_eq!(set.stops(&with, Timestamp::ZERO), Some(RevocationKind::Person));
        assert!(acting.acting_for(parties(), Timestamp::ZERO, |_| None).is_none());
    }
}
