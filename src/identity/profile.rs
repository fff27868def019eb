//! Certificate profiles, read from `certs/profiles.toml` at build time.

use std::time::Duration;

use serde::Deserialize;

use crate::domain::time::Span;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Profiles {
    root: CaProfile,
    issuing: CaProfile,
    downstream: CaProfile,
    server: Life,
    node: Life,
    workload: Bounds,
    person: Life,
    all: Common,
}

/// A CA's profile.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaProfile {
    /// Common name, before the trust domain.
    pub common_name: String,
    /// Life.
    pub life: Span,
    /// How many CAs may follow it.
    pub path_length: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Life {
    life: Span,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bounds {
    least: Span,
    most: Span,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Common {
    backdated: Span,
}

fn profiles() -> &'static Profiles {
    static PROFILES: std::sync::OnceLock<Profiles> = std::sync::OnceLock::new();
    PROFILES.get_or_init(|| {
        toml::from_str(include_str!("../../certs/profiles.toml")).expect("certs/profiles.toml is tested")
    })
}

/// The root's profile.
pub fn root() -> CaProfile {
    profiles().root.clone()
}

/// The issuing CA's profile.
pub fn issuing() -> CaProfile {
    profiles().issuing.clone()
}

/// The profile of a CA that another server of the trust domain issues with.
pub fn downstream() -> CaProfile {
    profiles().downstream.clone()
}

/// How often to look at a bundle again, in seconds: often enough to see an authority while it is prepared, of which a third
/// of a life is left then.
pub fn refresh_hint(life: Duration) -> u64 {
    (life / 30).as_secs().clamp(1, 300)
}

/// Life of a node's certificate.
pub fn node_life() -> Duration {
    profiles().node.life.0
}

/// Life of a server certificate.
pub fn server_life() -> Duration {
    profiles().server.life.0
}

/// Life of a person's certificate.
pub fn person_life() -> Duration {
    profiles().person.life.0
}

/// Least and most life of a workload's certificate.
pub fn workload_bounds() -> (Duration, Duration) {
    (profiles().workload.least.0, profiles().workload.most.0)
}

/// How far back `notBefore` lies.
pub fn backdated() -> Duration {
    profiles().all.backdated.0
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_profiles_are_readable_and_in_order() {
        let (least, most) = super::workload_bounds();
        assert_eq!(super::downstream().common_name, crate::protocol::svid::DOWNSTREAM);
        assert!(least < most && most < super::issuing().life.0 && super::issuing().life.0 < super::root().life.0);
    }
}
