//! Who administers: a local user through the socket, or a person by certificate.

use crate::domain::key::Jkt;
use crate::domain::people::{Person, Role};
use crate::domain::refusal::Refusal;
use crate::domain::revocation::Subject;
use crate::domain::spiffe_id::SpiffeId;
use crate::net::listener::Peer;
use crate::protocol::svid::X509Svid;
use crate::store::Stores;

/// An authenticated administrator.
pub enum Actor {
    /// `local:<uid>`: root or the service's own user. Administers, and cannot approve.
    Local(u32),
    /// A person, by this certificate.
    Person {
        /// Who.
        person: Person,
        /// Serial of the certificate.
        serial: String,
        /// Name in the certificate.
        spiffe_id: SpiffeId,
        /// Its key.
        jkt: Jkt,
    },
}

impl Actor {
    /// Reads the peer of a connection.
    pub fn of(stores: &Stores, peer: &Peer) -> Result<Self, Refusal> {
        if let Some(uid) = peer.uid {
            return Ok(Self::Local(uid));
        }
        let refuse = |detail: &str| Refusal::new(401, "certificate", detail);
        let leaf = peer
            .leaf
            .as_ref()
            .ok_or_else(|| refuse("administration needs a person's certificate: `popgate login` makes one"))?;
        let svid = X509Svid::parse(leaf).map_err(|e| refuse(&e.to_string()))?;
        if stores.clock.now() >= svid.not_after {
            return Err(refuse("the certificate of this connection has ended: `popgate login` makes another"));
        }
        let name = svid
            .spiffe_id
            .person_name()
            .ok_or_else(|| refuse("only persons administer; this is a workload's certificate"))?;
        let person = stores.people.by_name(name).ok_or_else(|| refuse("this person is not registered any more"))?;
        let jkt = svid.key.jkt();
        let actor = Self::Person { person, serial: svid.serial, spiffe_id: svid.spiffe_id, jkt };
        actor.stands(stores)?;
        Ok(actor)
    }

    /// Refuses a person who, or whose certificate, has been stopped.
    pub fn stands(&self, stores: &Stores) -> Result<(), Refusal> {
        let Self::Person { person, serial, spiffe_id, jkt } = self else { return Ok(()) };
        let subject = Subject {
            person: Some(person.id.clone()),
            groups: person.groups.clone(),
            serial: Some(serial.clone()),
            jkt: Some(*jkt),
            ..Subject::of(spiffe_id)
        };
        match stores.revocations.watch().borrow().stops(&subject, stores.clock.now()) {
            Some(kind) => Err(Refusal::new(401, "certificate", "this person or certificate is revoked").because(kind)),
            None => Ok(()),
        }
    }

    /// Refuses an actor without a role; a local user has every role but approver.
    pub fn need(&self, role: Role) -> Result<(), Refusal> {
        match self {
            Self::Local(_) if role != Role::Approver => Ok(()),
            Self::Local(_) => Err(Refusal::new(
                403,
                "role",
                "the administration socket cannot approve: use a person's certificate (--identity DIR --server URL)",
            )),
            Self::Person { person, .. } if person.has(role) => Ok(()),
            Self::Person { person, .. } => {
                Err(Refusal::new(403, "role", format!("{} does not hold the role {role}", person.name)))
            }
        }
    }

    /// How the log names them: a person by their SPIFFE ID.
    pub fn name(&self) -> String {
        match self {
            Self::Local(uid) => format!("local:{uid}"),
            Self::Person { spiffe_id, .. } => spiffe_id.to_string(),
        }
    }
}
