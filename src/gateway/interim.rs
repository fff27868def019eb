//! Upstream's interim answers on their way to the client (RFC 9110 section 15.2), as early hints are (RFC 8297).

use std::sync::Arc;

use http::{HeaderMap, Request, StatusCode};
use zeroize::Zeroizing;

use crate::gateway::carry::Carry;
use crate::gateway::header_rules::HeaderRules;
use crate::gateway::record::Exchange;
use crate::gateway::{headers, mask};
use crate::net::interim::{Interim, OnInterim};
use crate::protocol::masking::MaskRules;

/// What is done to an interim answer before the client sees it: what is done to a final one.
struct Passing {
    interim: Interim,
    exchange: Exchange,
    masked: bool,
    secret: Option<Zeroizing<Vec<u8>>>,
    mask: Option<Arc<MaskRules>>,
    rules: Arc<HeaderRules>,
}

/// Has what upstream says before its answer passed on, where the client's connection can carry it.
pub fn pass_on<B>(request: &mut Request<B>, carry: &Carry<'_>, exchange: &Exchange) {
    let Some(interim) = carry.request.head.extensions.get::<Interim>() else { return };
    let secret = carry.injected.map(|i| i.secret.clone());
    let passing = Passing {
        interim: interim.clone(),
        exchange: exchange.clone(),
        masked: carry.route.mask.is_some() || secret.is_some(),
        mask: carry.route.mask.clone(),
        secret,
        rules: carry.route.response_headers.clone(),
    };
    OnInterim::new(move |status, headers| passing.pass(status, headers)).attach(request);
}

impl Passing {
    fn pass(&self, status: StatusCode, sent: &HeaderMap) {
        if matches!(status, StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS) {
            // The client's own expectation was answered here, and nobody asked for another protocol.
            return;
        }
        if !self.interim.is_open() {
            return;
        }
        let secret = self.secret.as_deref().map(Vec::as_slice);
        let mut shown = headers::towards_client(sent, self.masked, secret);
        if let Some(rules) = mask::with_secret(self.mask.as_ref(), secret) {
            mask::headers(&rules, &mut shown);
        }
        // What the route sets is the final answer's.
        self.rules.strip(&mut shown);
        self.interim.send(status, &shown, || self.exchange.interim_head(status, &shown).is_ok());
    }
}
