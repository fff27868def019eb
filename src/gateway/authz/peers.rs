//! The edges whose word counts.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::net::listener::Peer;

/// The edges that are believed, by address.
#[derive(Clone, Debug)]
pub struct Peers(Arc<[IpNet]>);

impl Peers {
    /// Addresses and networks as `192.0.2.1` and `192.0.2.0/24`; the text says which is neither.
    pub fn parse(texts: &[String]) -> Result<Self, String> {
        let one = |text: &String| {
            let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            network.map_err(|_| format!("authz.peers: {text:?} is neither an address nor a network like 192.0.2.0/24"))
        };
        Ok(Self(texts.iter().map(one).collect::<Result<_, _>>()?))
    }

    /// Whether a connection comes from one of them.
    pub fn has(&self, peer: &Peer) -> bool {
        peer.address.is_some_and(|a| self.0.iter().any(|network| network.contains(&a.ip().to_canonical())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_networks_are_read_and_nothing_else() {
        let peers = Peers::parse(&["127.0.0.1".into(), "10.1.0.0/16".into(), "fd00::/8".into()]).expect("reads");
        for (address, known) in [
            ("127.0.0.1:9", true),
            ("[::ffff:127.0.0.1]:9", true),
            ("127.0.0.2:9", false),
            ("10.1.255.3:9", true),
            ("10.2.0.1:9", false),
            ("[fd12::1]:9", true),
            ("[::1]:9", false),
        ] {
            let peer = Peer::new(Some(address.parse().expect("an address")), None, None);
            assert_eq!(peers.has(&peer), known, "{address}");
        }
        assert!(!peers.has(&Peer::new(None, None, None)), "who has no address is nobody");
        for bad in ["", "edge.example", "10.0.0.0/33", "10.0.0"] {
            assert!(Peers::parse(&[bad.into()]).is_err(), "{bad:?}");
        }
    }
}
