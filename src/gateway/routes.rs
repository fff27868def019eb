//! The checked form of routes, masks and policies: everything that a reload replaces at once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::spiffe_id::SpiffeId;
use crate::gateway::config::{Access, MaskConfig, OneOrMany, OperationConfig, RecordMode, RouteConfig};
use crate::gateway::cors::Cors;
use crate::gateway::grpc_mask::Descriptors;
use crate::gateway::header_rules::HeaderRules;
use crate::gateway::inject::Inject;
use crate::gateway::masks;
use crate::gateway::matching::{Matcher, Wanted};
use crate::gateway::upstream::Upstream;
use crate::gateway::upstream::config::Protocol;
use crate::net::files;
use crate::net::tls::OwnTls;
use crate::protocol::htu::{Htu, Origin};
use crate::protocol::masking::MaskRules;
use crate::protocol::operation::{self, BodyField, Operation, Reads, WebSocket};
use crate::protocol::policy::{PolicyEngine, PolicyError, PolicySource};
use crate::protocol::template::Template;

/// Why the rules cannot be used. The texts name the key and what it may be.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    #[error("route {route:?}: {what}")]
    Route { route: String, what: String },
    #[error("mask {mask:?}: {what}")]
    Mask { mask: String, what: String },
    #[error(
        "routes {0:?} and {1:?} match the same requests, and neither is more specific: tell them apart by path, host, methods or headers"
    )]
    Tie(String, String),
    #[error("two routes are named {0:?}")]
    Duplicate(String),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    File(#[from] files::FileError),
}

/// One route, checked.
pub struct Route {
    /// Name.
    pub name: String,
    /// Which requests it is for.
    pub matcher: Matcher,
    /// Absolute resource URL, the audience of its tokens.
    pub resource: String,
    /// Where it goes.
    pub upstream: Arc<Upstream>,
    /// Pages that may call it.
    pub cors: Option<Cors>,
    /// Descriptors of the gRPC services behind it.
    pub descriptors: Option<Descriptors>,
    /// What is masked.
    pub mask: Option<Arc<MaskRules>>,
    /// Whether exchanges are recorded.
    pub record: RecordMode,
    /// The upstream's own credential.
    pub inject: Option<Inject>,
    /// Headers towards upstream.
    pub request_headers: Arc<HeaderRules>,
    /// Headers towards the client.
    pub response_headers: Arc<HeaderRules>,
    /// What a caller must bring.
    pub access: Access,
    /// Workloads that may ask the token service about tokens of the resource.
    pub introspect: Vec<SpiffeId>,
    /// Whether each proof needs a nonce.
    pub nonce_required: bool,
    /// Whether each proof must sign for the body.
    pub content_digest: bool,
    /// Whether streams end with their token.
    pub ends_with_token: bool,
    /// Operations.
    pub operations: Vec<Operation>,
}

/// Everything that decides about requests; a reload replaces it whole.
pub struct Rules {
    routes: Vec<Route>,
    /// Decides.
    pub policy: Arc<PolicyEngine>,
}

/// What rules are made from.
pub struct RuleSources<'a> {
    /// `[[route]]`.
    pub routes: &'a [RouteConfig],
    /// `[mask.NAME]`.
    pub masks: &'a BTreeMap<String, MaskConfig>,
    /// Policy files.
    pub policies: &'a [PolicySource],
    /// What relative files are relative to.
    pub base: &'a Path,
    /// What the gateway is called; relative resources are relative to the first.
    pub origins: &'a [Origin],
    /// What the gateway shows to upstreams; none: the rules are only checked.
    pub own: Option<&'a OwnTls>,
    /// The rules in force: upstreams that stay the same keep their connections and their standing.
    pub present: Option<&'a Rules>,
}

impl Rules {
    /// Checks everything; the first fault is told.
    pub fn load(sources: &RuleSources<'_>) -> Result<Self, RuleError> {
        let mut masks = BTreeMap::new();
        for (name, config) in sources.masks {
            masks.insert(name.as_str(), masks::checked(name, config, sources.base)?);
        }
        let mut routes = Vec::new();
        for config in sources.routes {
            routes.push(route(config, &masks, sources)?);
        }
        check_ties(&routes)?;
        // Policy is not asked about public routes: one that names their operations is told so.
        let judged = routes.iter().filter(|r| r.access != Access::DangerPublic);
        let operations: Vec<Operation> = judged.flat_map(|r| r.operations.clone()).collect();
        let policy = Arc::new(PolicyEngine::load(sources.policies, &operations)?);
        routes.sort_by_key(|r| std::cmp::Reverse(r.matcher.rank()));
        Ok(Self { routes, policy })
    }

    /// The most specific route of a request.
    pub fn route(&self, wanted: &Wanted<'_>) -> Option<&Route> {
        self.routes.iter().find(|r| r.matcher.matches(wanted))
    }

    /// Begins what goes on beside the requests: names are resolved, health is checked.
    pub fn start(&self, present: Option<&Self>) {
        for route in &self.routes {
            let kept = present.is_some_and(|p| p.routes.iter().any(|r| Arc::ptr_eq(&r.upstream, &route.upstream)));
            if !kept {
                route.upstream.start();
            }
        }
    }

    /// All routes.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }
}

fn check_ties(routes: &[Route]) -> Result<(), RuleError> {
    for (i, a) in routes.iter().enumerate() {
        for b in &routes[i + 1..] {
            if a.name == b.name {
                return Err(RuleError::Duplicate(a.name.clone()));
            }
            if a.matcher.ties_with(&b.matcher) {
                return Err(RuleError::Tie(a.name.clone(), b.name.clone()));
            }
        }
    }
    Ok(())
}

fn route(
    config: &RouteConfig,
    masks: &BTreeMap<&str, Arc<MaskRules>>,
    sources: &RuleSources<'_>,
) -> Result<Route, RuleError> {
    let bad = |what: String| RuleError::Route { route: config.name.clone(), what };
    let matcher = Matcher::new(&config.matcher, sources.origins).map_err(bad)?;
    let mask = match &config.mask {
        None => None,
        Some(name) => Some(masks.get(name.as_str()).cloned().ok_or_else(|| {
            let known: Vec<&str> = masks.keys().copied().collect();
            bad(format!("mask {name:?} is not defined; there are: {}", known.join(", ")))
        })?),
    };
    let resource = match config.resource.strip_prefix('/') {
        Some(_) => format!("{}{}", sources.origins.first().map_or("", Origin::as_str), config.resource),
        None => config.resource.clone(),
    };
    Htu::parse(&resource).map_err(|e| bad(format!("resource: {e}")))?;
    let upstream =
        Upstream::new(&config.upstream, sources.base, sources.own).map_err(|e| bad(format!("upstream: {e}")))?;
    let present = sources.present.into_iter().flat_map(Rules::routes).map(|r| &r.upstream);
    let upstream = present.into_iter().find(|u| u.is_same(&upstream)).cloned().unwrap_or_else(|| Arc::new(upstream));
    let cors = config.cors.as_ref().map(|c| Cors::new(c).map_err(|e| bad(format!("cors: {e}")))).transpose()?;
    let descriptors = config.descriptors.as_ref().map(|file| Descriptors::read(&sources.base.join(file)));
    let descriptors = descriptors.transpose().map_err(|e| bad(format!("descriptors: {e}")))?;
    let inject = config.inject.as_ref().map(|i| Inject::new(i, sources.base).map_err(bad)).transpose()?;
    let operations = operations(config).map_err(bad)?;
    if config.upstream.protocol == Protocol::Http2 && operations.iter().any(|o| o.websocket != WebSocket::Off) {
        return Err(bad("a WebSocket goes upstream over HTTP/1.1: upstream.protocol must be auto or http1".into()));
    }
    check_public(config, &operations).map_err(bad)?;
    let rules = |key: &str, config| HeaderRules::new(config).map(Arc::new).map_err(|e| bad(format!("{key}: {e}")));
    let request_headers = rules("request_headers", &config.request_headers)?;
    let response_headers = rules("response_headers", &config.response_headers)?;
    let introspect = config
        .introspect
        .iter()
        .map(|id| id.parse().map_err(|e| bad(format!("introspect {id:?}: {e}"))))
        .collect::<Result<_, _>>()?;
    Ok(Route {
        name: config.name.clone(),
        matcher,
        resource,
        upstream,
        cors,
        descriptors,
        mask,
        record: config.record,
        inject,
        request_headers,
        response_headers,
        access: config.access,
        introspect,
        nonce_required: config.nonce_required,
        content_digest: config.content_digest,
        ends_with_token: config.ends_with_token,
        operations,
    })
}

/// What only makes sense of somebody who is proved.
fn check_public(config: &RouteConfig, operations: &[Operation]) -> Result<(), String> {
    if config.access != Access::DangerPublic {
        return Ok(());
    }
    let part = |o: &Operation| [operation::MESSAGE, operation::CALL].contains(&o.method.as_str());
    let asks = [
        (config.nonce_required, "nonce_required"),
        (config.content_digest, "content_digest"),
        (config.ends_with_token, "ends_with_token"),
        (!config.introspect.is_empty(), "introspect"),
        (operations.iter().any(|o| o.websocket == WebSocket::Judge), "websocket = \"judge\""),
        (operations.iter().any(part), "an operation of MESSAGE or CALL"),
    ];
    match asks.iter().find(|(asked, _)| *asked) {
        None => Ok(()),
        Some((_, key)) => {
            Err(format!("access = \"danger_public\" proves nobody, so {key} has no meaning here: leave it out"))
        }
    }
}

fn operations(config: &RouteConfig) -> Result<Vec<Operation>, String> {
    if config.operations.is_empty() {
        return Err("it has no [[route.operation]], so every request would be refused: list what may be asked".into());
    }
    let named = |o: &OperationConfig| operation(o).map_err(|e| format!("operation {:?}: {e}", o.name));
    config.operations.iter().map(named).collect()
}

fn operation(config: &OperationConfig) -> Result<Operation, String> {
    let (method, path) = config.matcher.split_once(' ').ok_or("match has the form \"METHOD /path\"")?;
    if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') {
        return Err(format!("match: {method:?} is no method, which are in capitals, as in \"GET /path\""));
    }
    let path = Template::parse(path).map_err(|e| format!("match: {e}"))?;
    let object = Template::parse(&config.object).map_err(|e| format!("object: {e}"))?;
    let body = config
        .body
        .iter()
        .map(|(name, f)| BodyField {
            name: name.clone(),
            pointer: f.pointer.clone(),
            kind: f.kind,
            optional: f.optional,
        })
        .collect();
    let select = config.select.iter().map(|(pointer, values)| match values {
        OneOrMany::One(value) => (pointer.clone(), vec![value.clone()]),
        OneOrMany::Many(values) => (pointer.clone(), values.clone()),
    });
    let operation = Operation {
        body,
        reads: config.reads,
        select: select.collect(),
        params: config.params.clone(),
        websocket: config.websocket,
        ..Operation::new(&config.name, method, path, object)
    };
    check(&operation)?;
    Ok(operation)
}

fn check(operation: &Operation) -> Result<(), String> {
    let object = &operation.object;
    if let Some(unknown) = object.parameters().find(|p| !operation.parameters().any(|q| q == *p)) {
        return Err(format!("object names {{{unknown}}}, which neither match nor params has"));
    }
    if let Some(twice) = operation.params.keys().find(|p| operation.path.parameters().any(|q| q == p.as_str())) {
        return Err(format!("params.{twice} is in match, too"));
    }
    let pointers =
        operation.select.keys().chain(operation.params.values()).chain(operation.body.iter().map(|f| &f.pointer));
    if let Some(bad) = pointers.into_iter().find(|p| !p.starts_with('/')) {
        return Err(format!("{bad:?} is no JSON pointer: it begins with a slash (RFC 6901)"));
    }
    if operation.method.parse::<http::Method>().is_err() || operation.method == "CONNECT" {
        return Err(format!("match: {:?} is no method that passes here; a WebSocket opens with GET", operation.method));
    }
    let part = [operation::MESSAGE, operation::CALL].contains(&operation.method.as_str());
    if operation.websocket != WebSocket::Off && (operation.method != "GET" || operation.reads_body()) {
        return Err("websocket: it opens with GET, and has no body to read".into());
    }
    match operation.reads {
        Reads::Json => Ok(()),
        _ if part => Err("reads: messages and calls are read as JSON".into()),
        Reads::Grpc if operation.reads_body() => Err("reads = \"grpc\": the body is not JSON and has no fields".into()),
        Reads::Grpc | Reads::Chat | Reads::Mcp | Reads::Graphql if operation.method == "POST" => Ok(()),
        _ => Err("reads: such requests come with POST".into()),
    }
}

/// Longest time that a client may ask to be held (RFC 7240).
pub const MAX_HOLD: Duration = Duration::from_secs(25);
