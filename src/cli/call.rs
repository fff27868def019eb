//! `call`: like curl, with certificate, token, proof, nonce and approval taken care of.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::Value;

use crate::cli::Global;
use crate::cli::agent::ProofArgs;
use crate::cli::context::{self, Failure};
use crate::client::session::{Call, Session};
use crate::net::body::read;
use crate::net::inbound::Inbound;

const MAX_PROBLEM: usize = 1 << 20;
const POLL: Duration = Duration::from_secs(2);

#[derive(Args)]
pub struct CallArgs {
    /// Method [default: GET, or POST with -d]
    #[arg(short = 'X', long, value_name = "METHOD")]
    request: Option<String>,
    /// A header, as in 'Name: value'
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// Body; @FILE reads a file, @- standard input. JSON unless -H says otherwise
    #[arg(short = 'd', long, value_name = "BODY")]
    data: Option<String>,
    /// Status line and headers on standard output, too
    #[arg(short = 'i', long)]
    include: bool,
    /// Exit 1 for a status of 400 and more
    #[arg(long)]
    fail: bool,
    /// Do not wait for an approval
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    proof: ProofArgs,
    /// Which identity, where several are to be had
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<String>,
    /// URL behind the gateway
    url: String,
}

pub async fn run(global: &Global, args: CallArgs) -> Result<(), Failure> {
    // What is wrong with the command is told before a one-time token is spent on it.
    let mut call = build(&args)?;
    let wanted = super::enrol::wanted(args.spiffe_id.as_deref())?;
    let identity = Arc::new(context::identity(global, &args.proof, wanted).await?);
    let session = Session::new(identity)?;
    let mut response = session.call(&call).await?;
    if let Some(location) = awaiting(&response).filter(|_| !args.no_wait) {
        let id = location.rsplit('/').next().unwrap_or_default().to_owned();
        await_approval(global, &session, &args.url, &location).await?;
        call.headers
            .insert("popgate-approval", HeaderValue::from_str(&id).map_err(|e| Failure::failed(e.to_string()))?);
        response = session.call(&call).await?;
    }
    show(&args, response).await
}

fn build(args: &CallArgs) -> Result<Call<'_>, Failure> {
    let default = if args.data.is_some() { "POST" } else { "GET" };
    let method = args.request.as_deref().unwrap_or(default);
    let method =
        Method::from_bytes(method.as_bytes()).map_err(|_| Failure::usage(format!("{method:?} is not a method")))?;
    let mut headers = HeaderMap::new();
    for line in &args.headers {
        let parsed = line
            .split_once(':')
            .and_then(|(n, v)| Some((n.trim().parse::<HeaderName>().ok()?, HeaderValue::from_str(v.trim()).ok()?)));
        let (name, value) =
            parsed.ok_or_else(|| Failure::usage(format!("{line:?} is not a header: write 'Name: value'")))?;
        if [header::AUTHORIZATION.as_str(), "dpop"].contains(&name.as_str()) {
            return Err(Failure::usage(format!("{name} is what `call` makes itself: leave it out")));
        }
        headers.append(name, value);
    }
    let body = match args.data.as_deref() {
        None => Bytes::new(),
        Some("@-") => Bytes::from(std::io::read_to_string(std::io::stdin())?),
        Some(text) => match text.strip_prefix('@') {
            Some(file) => std::fs::read(file).map_err(|e| Failure::failed(format!("cannot read {file}: {e}")))?.into(),
            None => text.to_owned().into(),
        },
    };
    if args.data.is_some() && !headers.contains_key(header::CONTENT_TYPE) {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    if !args.no_wait && !headers.contains_key("prefer") {
        headers.insert("prefer", HeaderValue::from_static("wait=5"));
    }
    Ok(Call::new(method, &args.url, headers, body))
}

/// Where to ask about an approval, if the answer is that one is needed.
fn awaiting(response: &Response<Inbound>) -> Option<String> {
    let held = matches!(response.status(), StatusCode::ACCEPTED | StatusCode::FORBIDDEN);
    let location = response.headers().get(header::LOCATION)?.to_str().ok()?;
    (held && location.starts_with("/.popgate/approvals/")).then(|| location.to_owned())
}

async fn await_approval(global: &Global, session: &Session, url: &str, location: &str) -> Result<(), Failure> {
    let origin: http::Uri = url.parse()?;
    let origin =
        format!("{}://{}", origin.scheme_str().unwrap_or("https"), origin.authority().map_or("", |a| a.as_str()));
    let target = session.target(url).await?;
    let address = format!("{origin}{location}");
    loop {
        let token = session.token(&target).await?;
        let call = Call::new(Method::GET, &address, HeaderMap::new(), Bytes::new());
        let mut response = session.once(&call, &target, &token).await?;
        if response.headers().contains_key("dpop-nonce") {
            response = session.once(&call, &target, &token).await?;
        }
        let document: Value = serde_json::from_slice(&read(response.into_body(), MAX_PROBLEM).await?)?;
        match document["state"].as_str().unwrap_or_default() {
            "approved" => return Ok(()),
            "pending" => {
                let until = document["expires_at"].as_str().unwrap_or_default();
                context::say(
                    global,
                    &format!(
                        "waiting for approval {} until {until}; approve with: popgate approval approve {}",
                        document["id"],
                        document["id"].as_str().unwrap_or_default()
                    ),
                );
            }
            state => return Err(Failure::failed(format!("the request was not approved: it is {state}"))),
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn show(args: &CallArgs, response: Response<Inbound>) -> Result<(), Failure> {
    let status = response.status();
    if args.include {
        let mut head = format!("{:?} {status}\n", response.version());
        for (name, value) in response.headers() {
            head.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
        }
        context::out(&format!("{head}\n"));
    }
    let hint = Session::explain(&response);
    let mut body = response.into_body();
    let mut last = b'\n';
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| {
            Failure::failed(format!("the response broke off: {e}; it was cut by the gateway or upstream"))
        })?;
        if let Ok(chunk) = frame.into_data() {
            context::out_bytes(&chunk);
            last = chunk.last().copied().unwrap_or(last);
        }
    }
    if last != b'\n' && std::io::stdout().is_terminal() {
        context::out("\n");
    }
    if let Some(hint) = hint {
        eprintln!("popgate: {}", context::harmless(&hint));
    }
    if args.fail && status.as_u16() >= 400 {
        return Err(Failure::failed(format!("the answer was {status}")));
    }
    Ok(())
}
