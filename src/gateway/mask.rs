//! Chooses how a response is masked, or refuses one that the mask cannot read.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;

use crate::domain::refusal::Refusal;
use crate::gateway::bounds::Cut;
use crate::gateway::grpc_mask::GrpcMasker;
use crate::gateway::header_rules::HeaderRules;
use crate::gateway::read::Incoming;
use crate::gateway::record::Exchange;
use crate::gateway::routes::Route;
use crate::net::body::AnyBody;
use crate::net::coding::Decoder;
use crate::protocol::masking::{self, Blocked, Counts, MaskRules, Masker};
use crate::protocol::operation::calls::{CallGate, Held, ToolCall};

/// Decides about a tool call in an answer.
pub type CallJudge = Box<dyn FnMut(&ToolCall) -> Result<(), Refusal> + Send>;

/// How a response body is treated.
#[derive(Default)]
pub struct Treatment {
    /// Its coding is undone first.
    pub decoder: Option<Decoder>,
    /// Tool calls are judged before they pass.
    pub calls: Option<(CallGate, CallJudge)>,
    /// Then it is masked.
    pub mask: BodyMask,
    /// Trailers are masked.
    pub trailers: Option<Arc<MaskRules>>,
    /// Names that go from trailers, too.
    pub rules: Option<Arc<HeaderRules>>,
    /// Trailers that wait for the body's end.
    pub last: Option<HeaderMap>,
}

/// What masks a body.
#[derive(Default)]
pub enum BodyMask {
    /// Nothing: chunks pass by reference.
    #[default]
    None,
    /// Text of any framing.
    Text(Box<Masker>),
    /// Messages of gRPC.
    Grpc(Box<GrpcMasker>),
}

impl Treatment {
    /// Whether the body leaves as it came.
    pub const fn is_plain(&self) -> bool {
        self.decoder.is_none() && matches!(self.mask, BodyMask::None)
    }

    /// What may pass of a chunk.
    pub fn push(&mut self, chunk: Bytes) -> Result<Bytes, Cut> {
        let chunk = match &mut self.decoder {
            Some(decoder) => decoder.push(&chunk).map_err(|_| Cut::Masked)?.into(),
            None => chunk,
        };
        self.read(chunk)
    }

    fn read(&mut self, chunk: Bytes) -> Result<Bytes, Cut> {
        let chunk = match &mut self.calls {
            Some((gate, judge)) => {
                let mut passed = Vec::new();
                gate.push(&chunk, &mut passed, &mut **judge).map_err(refused)?;
                passed.into()
            }
            None => chunk,
        };
        self.masked(chunk)
    }

    fn masked(&mut self, chunk: Bytes) -> Result<Bytes, Cut> {
        let mut out = Vec::with_capacity(chunk.len());
        match &mut self.mask {
            BodyMask::None => return Ok(chunk),
            BodyMask::Text(masker) => masker.push(&chunk, &mut out).map_err(|_| Cut::Masked)?,
            BodyMask::Grpc(masker) => masker.push(&chunk, &mut out).map_err(|_| Cut::Masked)?,
        }
        Ok(out.into())
    }

    /// What is left once the body has ended.
    pub fn finish(&mut self) -> Result<Bytes, Cut> {
        let mut rest = Vec::new();
        if let Some(decoder) = self.decoder.take() {
            let last = decoder.finish().map_err(|_| Cut::Masked)?;
            rest.extend(self.read(last.into())?);
        }
        if let Some((gate, judge)) = &mut self.calls {
            let mut passed = Vec::new();
            gate.finish(&mut passed, &mut **judge).map_err(refused)?;
            rest.extend(self.masked(passed.into())?);
        }
        match &mut self.mask {
            BodyMask::None => {}
            BodyMask::Text(masker) => masker.finish(&mut rest).map_err(|_| Cut::Masked)?,
            BodyMask::Grpc(masker) => masker.finish().map_err(|_| Cut::Masked)?,
        }
        Ok(rest.into())
    }

    /// Keeps trailers for the end: what is behind the body comes behind it, masked or not.
    pub fn trail(&mut self, sent: &HeaderMap) {
        let mut passing = crate::gateway::headers::trailers(sent);
        if let Some(rules) = &self.rules {
            rules.strip(&mut passing);
        }
        self.last = Some(match &self.trailers {
            Some(rules) => trailers(rules, &passing),
            None => passing,
        });
    }

    /// What has been masked.
    pub fn counts(&self) -> Counts {
        match &self.mask {
            BodyMask::None => Counts::new(),
            BodyMask::Text(masker) => masker.counts(),
            BodyMask::Grpc(masker) => masker.counts().clone(),
        }
    }
}

/// What may pass of a coded body's first piece. It is looked at before anything is answered, so that a body which cannot be
/// read from its first bytes on is refused and not cut.
pub async fn first(
    body: &mut AnyBody,
    treatment: &mut Treatment,
    exchange: &Exchange,
    idle: Duration,
) -> Result<Bytes, Refusal> {
    let broke = |detail: &str| Refusal::new(502, "upstream", format!("the protected service's answer {detail}"));
    let frame = tokio::time::timeout(idle, body.frame()).await.map_err(|_| broke("did not come in time"))?;
    let mut passed = Vec::new();
    match frame {
        None => {}
        Some(Err(_)) => return Err(broke("broke off")),
        Some(Ok(frame)) => match frame.into_data() {
            Ok(chunk) => {
                exchange.upstream_chunk(chunk.len());
                passed.extend(treatment.push(chunk).map_err(|_| held_back())?);
            }
            Err(frame) => treatment.trail(&frame.into_trailers().unwrap_or_default()),
        },
    }
    if body.is_end_stream() {
        passed.extend(treatment.finish().map_err(|_| held_back())?);
        treatment.calls = None;
        exchange.masked_more(treatment.counts());
        treatment.mask = BodyMask::None;
    }
    Ok(passed.into())
}

fn held_back() -> Refusal {
    Refusal::new(
        502,
        "unmaskable",
        "the response is held back: it cannot be read as what its head says, or holds what the mask forbids",
    )
}

fn refused(held: Held<Refusal>) -> Cut {
    match held {
        Held::Refused(_) => Cut::Denied,
        Held::TooLong | Held::Unreadable => Cut::Masked,
    }
}

/// The mask of a route, with the injected credential among its exact values.
pub fn rules(route: &Route, secret: Option<&[u8]>) -> Option<Arc<MaskRules>> {
    with_secret(route.mask.as_ref(), secret)
}

/// A mask with a credential among its exact values.
pub fn with_secret(mask: Option<&Arc<MaskRules>>, secret: Option<&[u8]>) -> Option<Arc<MaskRules>> {
    let Some(secret) = secret else { return mask.cloned() };
    let mut rules = mask.map_or_else(|| MaskRules::detecting(&[]), |rules| MaskRules::clone(rules));
    rules.exact.push(secret.to_vec());
    Some(Arc::new(rules))
}

/// Decides by the route's rules and the response's head; `secret` is the injected credential, which must not come back.
pub fn treatment(
    route: &Route,
    request: &Incoming,
    parts: &Parts,
    ended: bool,
    secret: Option<&[u8]>,
) -> Result<Treatment, Refusal> {
    let (status, headers) = (parts.status, &parts.headers);
    if status.is_informational() {
        return Err(Refusal::new(502, "upstream", "the protected service switched protocols, which nobody asked for"));
    }
    // What a length says is not asked: a body may come under one of nothing.
    let bodiless = request.head.method == Method::HEAD
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || ended;
    let Some(rules) = rules(route, secret).filter(|_| !bodiless) else { return Ok(Treatment::default()) };
    let decoder = decoder(headers)?;
    if route.mask.is_some() && headers.get_all(header::CONTENT_TYPE).iter().count() > 1 {
        return Err(unreadable(Blocked::ContentType));
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let partial = status == StatusCode::PARTIAL_CONTENT;
    let mask = match &route.mask {
        None => BodyMask::Text(Box::new(credential_alone(&rules, if partial { "" } else { kind }))),
        Some(_) if partial => return Err(unreadable(Blocked::ContentType)),
        Some(_) => match grpc(route, request, kind, &rules) {
            Some(masker) => BodyMask::Grpc(Box::new(masker)),
            None => BodyMask::Text(Box::new(Masker::for_content_type(&rules, kind).map_err(unreadable)?)),
        },
    };
    Ok(Treatment { decoder, mask, trailers: Some(rules), ..Treatment::default() })
}

/// A masker of gRPC messages, where the route has descriptors of what it answers with.
fn grpc(route: &Route, request: &Incoming, kind: &str, rules: &Arc<MaskRules>) -> Option<GrpcMasker> {
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let fits = essence == "application/grpc" || essence == "application/grpc+proto";
    let message = route.descriptors.as_ref().filter(|_| fits)?.output(request.path.as_str())?;
    Some(GrpcMasker::new(rules.clone(), message))
}

/// Response headers that the mask names are scanned; what it blocks, or what is no text then, goes.
pub fn headers(rules: &Arc<MaskRules>, shown: &mut HeaderMap) {
    // An error of gRPC may be told in the head instead of in trailers.
    let grpc = ["grpc-message", "grpc-status-details-bin"].map(ToOwned::to_owned);
    for name in rules.headers.iter().chain(&grpc) {
        let values: Vec<_> = shown.get_all(name).iter().map(|v| v.as_bytes().to_vec()).collect();
        let Ok(name) = name.parse::<http::HeaderName>() else { continue };
        shown.remove(&name);
        for value in values {
            let masked = masking::mask_text(rules, &value).ok().map(|(masked, _)| masked);
            if let Some(value) = masked.and_then(|m| http::HeaderValue::from_bytes(&m).ok()) {
                shown.append(name.clone(), value);
            }
        }
    }
}

/// Trailers as the client may see them: a value that the mask blocks, or that is no text, goes.
pub fn trailers(rules: &Arc<MaskRules>, trailers: &HeaderMap) -> HeaderMap {
    let mut masked = HeaderMap::new();
    for (name, value) in trailers {
        let text = masking::mask_whole(rules, "text/plain", value.as_bytes()).ok();
        if let Some(value) = text.and_then(|t| http::HeaderValue::from_bytes(&t).ok()) {
            masked.append(name, value);
        }
    }
    masked
}

/// Looks for the injected credential alone: in JSON as its strings read, for they may spell it with escapes; else, events
/// too, in the bytes.
fn credential_alone(rules: &Arc<MaskRules>, kind: &str) -> Masker {
    // Events would be held whole and have a limit, which a route without a mask did not ask for.
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let kind = if essence.eq_ignore_ascii_case("text/event-stream") { "" } else { kind };
    Masker::for_content_type(rules, kind).unwrap_or_else(|_| Masker::bytes(rules.clone()))
}

/// Undoes the one coding of a body. A transfer coding besides the framing, or several codings, are not undone.
fn decoder(headers: &HeaderMap) -> Result<Option<Decoder>, Refusal> {
    let listed = |name| {
        let values = headers.get_all(name).iter().map(|v| v.to_str().unwrap_or("?"));
        values.flat_map(|v| v.split(',')).map(|c| c.trim().to_ascii_lowercase()).collect::<Vec<_>>()
    };
    if listed(header::TRANSFER_ENCODING).iter().any(|c| c != "chunked") {
        return Err(unreadable(Blocked::Coding));
    }
    let codings: Vec<String> = listed(header::CONTENT_ENCODING).into_iter().filter(|c| c != "identity").collect();
    match &codings[..] {
        [] => Ok(None),
        [one] => Decoder::new(one).map(Some).ok_or_else(|| unreadable(Blocked::Coding)),
        _ => Err(unreadable(Blocked::Coding)),
    }
}

/// A body that a rule must mask and cannot be read is refused, never passed.
fn unreadable(why: Blocked) -> Refusal {
    Refusal::new(502, "unmaskable", format!("the response is held back: {why}"))
}
