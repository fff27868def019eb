//! What bounds an exchange from its admission to its last byte: a stop, a time, the end of the service.

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::domain::refusal::Refusal;
use crate::domain::revocation::Subject;
use crate::domain::time::Timestamp;
use crate::store::Stores;

/// Why an exchange was ended before upstream ended it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Cut {
    /// Its caller was stopped.
    Revoked,
    /// Its time is over.
    Expired,
    /// The mask cannot read on, or forbids what it read.
    Masked,
    /// A part of it is not allowed.
    Denied,
    /// It cannot be recorded.
    Unrecorded,
    /// Upstream broke off.
    Upstream,
    /// Upstream was silent too long.
    Silent,
    /// The client went.
    ClientGone,
    /// The service goes.
    Drained,
}

/// What bounds an exchange.
pub struct Bounds {
    /// Whom it is for; a stop of any part of it ends the exchange. None: anybody, of a public route.
    pub subject: Option<Subject>,
    /// When it ends at the latest.
    pub until: Timestamp,
    /// Ends every exchange: the service goes.
    pub ending: CancellationToken,
}

impl Bounds {
    /// Returns when the exchange must end, and why.
    pub async fn over(&self, stores: &Stores) -> Cut {
        let mut revoked = stores.revocations.watch();
        let end = Instant::now() + self.until.since(stores.clock.now());
        loop {
            let now = stores.clock.now();
            let stops = revoked.borrow_and_update().clone();
            if self.subject.as_ref().is_some_and(|subject| stops.stops(subject, now).is_some()) {
                return Cut::Revoked;
            }
            tokio::select! {
                biased;
                changed = revoked.changed() => if changed.is_err() { return Cut::Drained },
                () = tokio::time::sleep_until(end) => return Cut::Expired,
                () = self.ending.cancelled() => return Cut::Drained,
            }
        }
    }
}

impl Cut {
    /// What a client reads whose request upstream has and has not answered. Never a text or code that asks it to send
    /// the request again: upstream may have acted.
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Revoked => Refusal::new(
                403,
                "revoked",
                "the workload or its token was revoked while upstream worked; it may have acted",
            ),
            Self::Expired => {
                Refusal::new(504, "cut", "the exchange's time ended while upstream worked; it may have acted")
            }
            _ => Refusal::new(503, "cut", "the gateway ended the exchange while upstream worked; it may have acted"),
        }
    }
}
