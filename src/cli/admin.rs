//! Administration: entries, people, tokens, approvals, stops. Each command is one call of the API.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::cli::context::{self, Failure, print};
use crate::cli::suggest::{self, SuggestArgs};
use crate::net::files;
use crate::protocol::form;

#[derive(Subcommand)]
pub enum JoinTokenCommand {
    /// A token that enrols one identity once; it is printed on standard output
    #[command(
        after_help = "Example: popgate join-token create --spiffe-id spiffe://example.org/ci/solver --ttl 10m > token"
    )]
    Create {
        /// The registered identity
        #[arg(long, value_name = "ID", required_unless_present = "node")]
        spiffe_id: Option<String>,
        /// A name for the host, for its agent
        #[arg(long, value_name = "NAME", conflicts_with = "spiffe_id")]
        node: Option<String>,
        /// How long it is good
        #[arg(long, default_value = "10m")]
        ttl: String,
    },
}

#[derive(Subcommand)]
pub enum EntryCommand {
    /// Register a workload
    #[command(
        after_help = "Example: popgate entry create spiffe://example.org/ci/solver --owner https://idp.example.org#bob --group solvers --operation 'tot.*'"
    )]
    Create(EntryArgs),
    /// All entries
    List,
    /// One entry
    Show { spiffe_id: String },
    /// Remove a workload: its tokens stop at once
    Delete { spiffe_id: String },
    /// Add and replace entries, add people, from a TOML file
    #[command(after_help = "Example: popgate entry import config/entries.toml")]
    Import { file: PathBuf },
    /// All entries as a TOML file that `import` reads
    #[command(after_help = "Example: popgate entry export > entries.toml")]
    Export,
    /// What an import would change; exit code 1 if it would change anything
    #[command(after_help = "Example: popgate entry diff entries.toml")]
    Diff { file: PathBuf },
    /// Which selectors a process of this host has, which processes some selectors match, or which operations a workload needs
    #[command(after_help = "Examples: popgate entry suggest --pid 4711
          popgate entry suggest --recorded spiffe://example.org/ci/solver")]
    Suggest(SuggestArgs),
}

#[derive(Args)]
pub struct EntryArgs {
    /// The identity; with {TYPE:NAME} as a segment, a template
    spiffe_id: String,
    /// The node whose agent serves it, or nodes: an ID with `*` at its end
    #[arg(long, value_name = "NODE-ID")]
    parent: Option<String>,
    /// What attestation must find, all of it, as in unix:uid:1000
    #[arg(long = "selector", value_name = "SELECTOR")]
    selectors: Vec<String>,
    /// What a workload with several identities is told about this one
    #[arg(long)]
    hint: Option<String>,
    /// Check it and say what would be created; with selectors, also which processes of this host it would match
    #[arg(long)]
    dry_run: bool,
    /// Who answers for it: issuer#subject
    #[arg(long)]
    owner: String,
    /// A second person who does
    #[arg(long)]
    sponsor: Option<String>,
    /// A group, for policies
    #[arg(long = "group")]
    groups: Vec<String>,
    /// An operation that tokens may be scoped to; `*` at the end only
    #[arg(long = "operation")]
    operations: Vec<String>,
    /// A workload that may exchange its tokens and act for it
    #[arg(long, value_name = "ID")]
    may_act: Option<String>,
    /// Life of its certificates
    #[arg(long)]
    svid_ttl: Option<String>,
    /// A DNS name that its certificates carry
    #[arg(long = "dns-name")]
    dns_names: Vec<String>,
}

#[derive(Subcommand)]
pub enum PersonCommand {
    /// Register a person and print the one-time token for `login`
    #[command(
        after_help = "Example: popgate person create https://idp.example.org#alice --name alice --group security --role approver"
    )]
    Create {
        /// issuer#subject
        id: String,
        /// One SPIFFE path segment, unique [default: the subject]
        #[arg(long)]
        name: Option<String>,
        /// A group, for approval rules
        #[arg(long = "group")]
        groups: Vec<String>,
        /// viewer, approver, auditor or admin
        #[arg(long = "role")]
        roles: Vec<String>,
    },
    /// All people
    List,
    /// Remove a person: their certificate is refused at once
    Delete { id: String },
}

#[derive(Subcommand)]
pub enum ApprovalCommand {
    /// Requests that wait
    List {
        /// Ended ones, too
        #[arg(long)]
        all: bool,
    },
    /// One request, exactly as it is bound
    Show { id: String },
    /// Let exactly this request through, once
    #[command(
        after_help = "Example: popgate approval approve ID --identity alice --reason 'checked with the run owner'"
    )]
    Approve {
        /// The id that `approval list` shows
        id: String,
        /// Why
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Refuse it, for good
    Deny {
        /// The id that `approval list` shows
        id: String,
        /// Why
        #[arg(long, default_value = "")]
        reason: String,
    },
}

#[derive(Args)]
pub struct RevokeArgs {
    /// spiffe-id, entry, node, person, serial, jkt, jti or group
    kind: String,
    /// The subject
    value: String,
    /// Why; others will read it in the log
    #[arg(long)]
    reason: String,
    /// When it ends by itself, as in 2030-01-31T12:00:00Z
    #[arg(long)]
    until: Option<String>,
}

#[derive(Subcommand)]
pub enum RevocationCommand {
    /// Stops in force
    List,
    /// Lift a stop
    Lift { id: i64 },
}

#[derive(Args)]
pub struct OffboardArgs {
    /// issuer#subject
    person: String,
    /// Why
    #[arg(long)]
    reason: Option<String>,
}

pub async fn call(global: &Global, method: Method, path: &str, body: Option<Value>) -> Result<Value, Failure> {
    Ok(context::admin(global)?.call(method, path, body.as_ref()).await?)
}

pub async fn show(global: &Global, method: Method, path: &str, body: Option<Value>) -> Result<(), Failure> {
    print(global, &call(global, method, path, body).await?);
    Ok(())
}

pub fn query(path: &str, id: &str) -> String {
    format!("{path}?{}", form::write(&[("id", id)]))
}

/// Prints the token alone, so that it can go into a file; the rest is told on standard error.
fn print_token(global: &Global, document: &Value, what: &str) {
    if global.json {
        print(global, document);
        return;
    }
    let text = |name: &str| document[name].as_str().unwrap_or_default();
    context::say(global, &format!("{what} for {}, good once, until {}", text("spiffe_id"), text("expires_at")));
    context::out(&format!("{}\n", text("join_token")));
}

pub async fn join_token(global: &Global, command: JoinTokenCommand) -> Result<(), Failure> {
    let JoinTokenCommand::Create { spiffe_id, node, ttl } = command;
    let body = json!({"spiffe_id": spiffe_id, "node": node, "ttl": ttl});
    let document = call(global, Method::POST, "/v1/join-tokens", Some(body)).await?;
    print_token(global, &document, "join token");
    Ok(())
}

pub async fn entry(global: &Global, command: EntryCommand) -> Result<(), Failure> {
    match command {
        EntryCommand::List => show(global, Method::GET, "/v1/entries", None).await,
        EntryCommand::Show { spiffe_id } => show(global, Method::GET, &query("/v1/entries", &spiffe_id), None).await,
        EntryCommand::Delete { spiffe_id } => {
            show(global, Method::DELETE, &query("/v1/entries", &spiffe_id), None).await
        }
        EntryCommand::Import { file } => {
            show(global, Method::POST, "/v1/import", Some(serde_json::to_value(table(&file)?)?)).await
        }
        EntryCommand::Export => {
            let document = call(global, Method::GET, "/v1/entries/export", None).await?;
            if global.json {
                print(global, &document);
            } else {
                context::out(&toml::to_string(&document)?);
            }
            Ok(())
        }
        EntryCommand::Diff { file } => {
            let document =
                call(global, Method::POST, "/v1/entries/diff", Some(serde_json::to_value(table(&file)?)?)).await?;
            print(global, &document);
            let some = |name: &str| document[name].as_array().is_some_and(|list| !list.is_empty());
            if some("added") || some("changed") { Err(Failure { text: String::new(), code: 1 }) } else { Ok(()) }
        }
        EntryCommand::Suggest(args) => suggest::run(global, &args),
        EntryCommand::Create(args) => create(global, args).await,
    }
}

fn table(file: &std::path::Path) -> Result<toml::Table, Failure> {
    files::read(file)?.parse().map_err(|e| Failure::failed(format!("{}: {e}", file.display())))
}

async fn create(global: &Global, args: EntryArgs) -> Result<(), Failure> {
    let mut body = json!({
        "spiffe_id": args.spiffe_id, "owner": args.owner, "groups": args.groups, "operations": args.operations,
        "dns_names": args.dns_names, "selectors": args.selectors,
    });
    let optional = [
        ("sponsor", args.sponsor),
        ("svid_ttl", args.svid_ttl),
        ("parent", args.parent.clone()),
        ("hint", args.hint),
        ("may_act", args.may_act),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            body[name] = value.into();
        }
    }
    if !args.dry_run {
        return show(global, Method::POST, "/v1/entries", Some(body)).await;
    }
    let mut document = call(global, Method::POST, "/v1/entries?dry_run=true", Some(body)).await?;
    if args.parent.is_some() {
        document["would_match_here"] = suggest::matching(&args.selectors)?.into();
    }
    print(global, &document);
    Ok(())
}

pub async fn person(global: &Global, command: PersonCommand) -> Result<(), Failure> {
    match command {
        PersonCommand::List => show(global, Method::GET, "/v1/people", None).await,
        PersonCommand::Delete { id } => show(global, Method::DELETE, &query("/v1/people", &id), None).await,
        PersonCommand::Create { id, name, groups, roles } => {
            let mut body = json!({"id": id, "groups": groups, "roles": roles});
            if let Some(name) = name {
                body["name"] = name.into();
            }
            let document = call(global, Method::POST, "/v1/people", Some(body)).await?;
            print_token(global, &document, "login token");
            Ok(())
        }
    }
}

pub async fn approval(global: &Global, command: ApprovalCommand) -> Result<(), Failure> {
    let decide = async |id: &str, approve: bool, reason: String| {
        show(global, Method::POST, &format!("/v1/approvals/{id}"), Some(json!({"approve": approve, "reason": reason})))
            .await
    };
    match command {
        ApprovalCommand::List { all } => show(global, Method::GET, &format!("/v1/approvals?all={all}"), None).await,
        ApprovalCommand::Show { id } => show(global, Method::GET, &format!("/v1/approvals/{id}"), None).await,
        ApprovalCommand::Approve { id, reason } => decide(&id, true, reason).await,
        ApprovalCommand::Deny { id, reason } => decide(&id, false, reason).await,
    }
}

pub async fn revoke(global: &Global, args: RevokeArgs) -> Result<(), Failure> {
    let mut body = json!({"kind": args.kind, "value": args.value, "reason": args.reason});
    if let Some(until) = args.until {
        body["until"] = until.into();
    }
    show(global, Method::POST, "/v1/revocations", Some(body)).await
}

pub async fn revocation(global: &Global, command: RevocationCommand) -> Result<(), Failure> {
    match command {
        RevocationCommand::List => show(global, Method::GET, "/v1/revocations", None).await,
        RevocationCommand::Lift { id } => show(global, Method::POST, &format!("/v1/revocations/{id}/lift"), None).await,
    }
}

pub async fn offboard(global: &Global, args: OffboardArgs) -> Result<(), Failure> {
    let mut body = json!({"person": args.person});
    if let Some(reason) = args.reason {
        body["reason"] = reason.into();
    }
    show(global, Method::POST, "/v1/offboard", Some(body)).await
}

pub async fn status(global: &Global) -> Result<(), Failure> {
    show(global, Method::GET, "/v1/status", None).await
}

/// Asks `/readyz` of the configured telemetry listener.
pub async fn health(global: &Global) -> Result<(), Failure> {
    let config = context::config(global)?;
    let address = config.telemetry.listen;
    let away = |e: String| {
        Failure::failed(format!(
            "http://{address}/readyz does not answer: {e}; is `popgate serve` running with this configuration?"
        ))
    };
    let stream = tokio::net::TcpStream::connect(address).await.map_err(|e| away(e.to_string()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
        .await
        .map_err(|e| away(e.to_string()))?;
    tokio::spawn(connection);
    let request =
        http::Request::builder().uri("/readyz").header("host", address.to_string()).body(crate::net::body::full(""))?;
    let response = sender.send_request(request).await.map_err(|e| away(e.to_string()))?;
    let ready = response.status().is_success();
    let text = crate::net::body::read(response.into_body(), 4096).await?;
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    context::say(global, &text);
    if ready { Ok(()) } else { Err(Failure { text: String::new(), code: 1 }) }
}
