//! Security events: pushed here (RFC 8935) or fetched (RFC 8936). An event is answered for only once what it asks is done.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::refusal::Refusal;
use crate::domain::revocation::{RevocationKind, RevocationSet};
use crate::domain::time::Timestamp;
use crate::net::files;
use crate::net::listener::Drain;
use crate::protocol::jws::Compact;
use crate::protocol::security_event::{self, Effect, SecurityEvent};
use crate::store::revocations::NewRevocation;
use crate::token::endpoint::TokenPlane;
use crate::trust::TrustError;
use crate::trust::events::Transmitter;
use crate::trust::providers::LONGEST_STATEMENT;

/// Between two fetches that found nothing.
const PAUSE: Duration = Duration::from_secs(5);
/// Between two fetches where there is more, or something to acknowledge.
const SHORT_PAUSE: Duration = Duration::from_millis(200);
/// After a first failure, doubled by each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest of those.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// Events of one fetch.
const BATCH: usize = 100;

/// An error of RFC 8935 section 2.4.
#[derive(Clone, Debug)]
pub struct EventError {
    /// HTTP status.
    pub status: u16,
    /// `err`.
    pub code: &'static str,
    /// `description`.
    pub detail: String,
}

fn fail(code: &'static str, detail: impl Into<String>) -> EventError {
    EventError { status: 400, code, detail: detail.into() }
}

impl From<Refusal> for EventError {
    fn from(refusal: Refusal) -> Self {
        Self { status: refusal.status, code: "invalid_request", detail: refusal.detail }
    }
}

impl TokenPlane {
    /// Takes a pushed event; `bearer` is what the push was authorised by.
    pub async fn pushed(&self, token: &str, bearer: Option<&str>) -> Result<(), EventError> {
        let now = self.stores.clock.now();
        for transmitter in self.transmitters.iter().filter(|t| t.is_named_by(token)) {
            // Before anything of it is looked at: a stranger is told no more than that.
            authorised(transmitter, bearer)?;
            let event = match transmitter.verify(token, &self.issuer, now).await {
                Ok(None) => continue,
                Ok(Some(event)) => event,
                Err(error) => return Err(told(error)),
            };
            return self.apply(&event, now).await.map_err(Into::into);
        }
        match Compact::split(token).and_then(|c| c.payload_object()) {
            Ok(_) => Err(fail("invalid_issuer", "its issuer is none whose events are taken here")),
            Err(error) => Err(fail("invalid_request", format!("it is no security event token: {error}"))),
        }
    }

    /// Does what an event asks for, once.
    async fn apply(&self, event: &SecurityEvent, now: Timestamp) -> Result<(), Refusal> {
        let digest = Sha256::of_parts(&[b"event\0", event.provider.as_bytes(), b"\0", event.jti.as_bytes()]);
        if self.stores.statements.known(digest, now).await? {
            return Ok(());
        }
        let (kinds, by) = (event.kinds.join(", "), format!("event:{}", event.provider));
        if let Some(person) = &event.person {
            let stop = match event.effect {
                Effect::Gone => Some((RevocationKind::Person, None)),
                // New tokens need a new word; the old ones, and the words they rest on, end by themselves.
                Effect::SessionEnds => Some((RevocationKind::Session, Some(now.plus(LONGEST_STATEMENT + self.ttl)))),
                Effect::None => None,
            };
            if let Some((kind, until)) = stop {
                let (value, reason) = (person.clone(), format!("security event: {kinds}"));
                self.stop_once(NewRevocation { kind, value, reason, by: by.clone(), until }).await?;
            }
        }
        // Remembered after it is done: whoever gets no answer sends it again.
        let _ = self.stores.statements.tie(digest, Jkt([0; 32]), now.plus(security_event::REMEMBERED), now).await?;
        metrics::counter!("popgate_security_events_total", "provider" => event.provider.clone()).increment(1);
        tracing::info!(provider = event.provider, kinds, effect = ?event.effect, "security event");
        Ok(())
    }

    /// Makes a stop, unless it is in force and recorded already. One of which only the record failed is made again when it is
    /// asked for again.
    pub(super) async fn stop_once(&self, new: NewRevocation) -> Result<(), Refusal> {
        let end = new.until.unwrap_or(Timestamp::from_unix(Timestamp::MAX_SECONDS));
        let name = (new.kind, new.value.clone());
        let set: Arc<RevocationSet> = self.stores.revocations.watch().borrow().clone();
        // A session's end is about its moment: each is made.
        let standing = new.kind != RevocationKind::Session && set.names_until(new.kind, &new.value, end);
        if standing && !self.half_done(|half| half.contains(&name)) {
            return Ok(());
        }
        let done = self.stopper.stop(new).await;
        self.half_done(|half| if done.is_ok() { half.remove(&name) } else { half.insert(name.clone()) });
        done.map(drop)
    }

    fn half_done<T>(&self, with: impl FnOnce(&mut HashSet<(RevocationKind, String)>) -> T) -> T {
        with(&mut self.half_done.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Fetches the events of one transmitter until the drain begins (RFC 8936).
    pub async fn poll(self: Arc<Self>, index: usize, mut drain: Drain) {
        let mut done: Vec<String> = Vec::new();
        let mut failed = Map::new();
        let mut patience = FIRST_PAUSE;
        loop {
            let wait = match self.fetch(index, &mut done, &mut failed).await {
                Ok(more) => {
                    patience = FIRST_PAUSE;
                    // Never at once: who sends the same again whatever it is told would be asked without end.
                    if more || !done.is_empty() || !failed.is_empty() { SHORT_PAUSE } else { PAUSE }
                }
                Err(error) => {
                    let provider = &self.transmitters[index].name;
                    tracing::warn!(provider, error, "security events cannot be fetched");
                    patience = (patience * 2).min(LONGEST_PAUSE);
                    patience
                }
            };
            tokio::select! {
                () = drain.begun() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One request: acknowledges what was done before and does what comes. Gives whether there is more.
    async fn fetch(
        &self,
        index: usize,
        done: &mut Vec<String>,
        failed: &mut Map<String, Value>,
    ) -> Result<bool, String> {
        let transmitter = &self.transmitters[index];
        let Some((url, token_file, fetcher)) = &transmitter.poll else { return Ok(false) };
        let bearer = match token_file {
            Some(file) => files::read_secret(file).map_err(|e| e.to_string())?,
            None => String::new().into(),
        };
        let ask = json!({"maxEvents": BATCH, "returnImmediately": true, "ack": done, "setErrs": failed});
        let answer = fetcher.post(url, bearer.trim(), Bytes::from(ask.to_string())).await.map_err(|e| e.to_string())?;
        // Acknowledged: the transmitter has answered.
        done.clear();
        failed.clear();
        let answer =
            crate::protocol::json::parse_object(&answer).map_err(|e| format!("the answer is not JSON: {e}"))?;
        let sets = answer.get("sets").and_then(Value::as_object).cloned().unwrap_or_default();
        let now = self.stores.clock.now();
        let mut undone = None;
        for (jti, set) in sets {
            let set = set.as_str().unwrap_or_default();
            let outcome = match transmitter.verify(set, &self.issuer, now).await {
                Ok(Some(event)) if event.jti == jti => self.apply(&event, now).await.map_err(EventError::from),
                Ok(Some(_)) => Err(fail("invalid_request", "the name of the event is not its jti")),
                Ok(None) => Err(fail("invalid_issuer", "its issuer is another")),
                Err(TrustError::Away(cause)) => return Err(cause),
                Err(error) => Err(told(error)),
            };
            match outcome {
                Ok(()) => done.push(jti),
                // Ours to do again: it is not acknowledged, so it comes again. The others are done meanwhile.
                Err(error) if error.status >= 500 => undone = Some(error.detail),
                Err(error) => {
                    tracing::warn!(provider = transmitter.name, error = error.detail, "a security event is refused");
                    failed.insert(jti, json!({"err": error.code, "description": error.detail}));
                }
            }
        }
        let more = answer.get("moreAvailable").and_then(Value::as_bool).unwrap_or(false);
        undone.map_or(Ok(more), Err)
    }
}

fn authorised(transmitter: &Transmitter, bearer: Option<&str>) -> Result<(), EventError> {
    let Some(file) = &transmitter.push_token else { return Ok(()) };
    let away = |cause: String| {
        tracing::error!(cause, "the push token of a transmitter cannot be read");
        EventError { status: 503, ..fail("invalid_request", "the receiver cannot check who pushes; send it again") }
    };
    let want = files::read_secret(file).map_err(|e| away(e.to_string()))?;
    // Digests, so that the comparison tells nothing by its time.
    let same = bearer.is_some_and(|given| Sha256::of(given.as_bytes()) == Sha256::of(want.trim().as_bytes()));
    if same {
        return Ok(());
    }
    Err(EventError { status: 401, ..fail("authentication_failed", "the push does not carry this receiver's token") })
}

fn told(error: TrustError) -> EventError {
    match error {
        TrustError::Refused(why) if why.contains("aud ") => fail("invalid_audience", why),
        TrustError::Refused(why) if why.contains("key") || why.contains("signature") => fail("invalid_key", why),
        TrustError::Refused(why) => fail("invalid_request", why),
        TrustError::Away(cause) => {
            tracing::warn!(cause, "the keys of a transmitter cannot be had");
            EventError { status: 503, ..fail("invalid_request", "the transmitter's keys cannot be had; send it again") }
        }
    }
}
