//! `token` and `proof`: for scripts that make their requests themselves.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use crate::cli::Global;
use crate::cli::agent::ProofArgs;
use crate::cli::context::{self, Failure};
use crate::client::session::Session;
use crate::domain::secret::AccessToken;
use crate::net::files;

/// Who asks.
#[derive(Args)]
pub struct WhoArgs {
    #[command(flatten)]
    proof: ProofArgs,
    /// Which identity, where several are to be had
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<String>,
}

impl WhoArgs {
    async fn session(&self, global: &Global) -> Result<Session, Failure> {
        let wanted = super::enrol::wanted(self.spiffe_id.as_deref())?;
        Ok(Session::new(Arc::new(context::identity(global, &self.proof, wanted).await?))?)
    }
}

#[derive(Args)]
pub struct TokenArgs {
    /// URL behind the gateway that the token is for
    #[arg(long, value_name = "URL")]
    resource: String,
    /// Operations, with spaces between them [default: all that the entry allows there]
    #[arg(long, value_name = "NAMES")]
    scope: Option<String>,
    /// File with authorization details, JSON: exact operations, with a number of uses
    #[arg(long, value_name = "FILE")]
    details: Option<PathBuf>,
    /// File with an identity provider's token, on whose word the token is asked for; - for standard input
    #[arg(long, value_name = "FILE")]
    assertion_file: Option<PathBuf>,
    /// The file holds a SAML assertion in base64url
    #[arg(long, requires = "assertion_file")]
    saml: bool,
    #[command(flatten)]
    who: WhoArgs,
}

#[derive(Args)]
pub struct HeaderArgs {
    /// Method of the request
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    method: String,
    /// URL of the request
    #[arg(long, value_name = "URL")]
    url: String,
    /// File with the access token that goes with it; - for standard input
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The nonce that the server gave last
    #[arg(long, value_name = "NONCE")]
    nonce: Option<String>,
    /// The request's body, which the proof then signs for
    #[arg(long, value_name = "FILE")]
    body_file: Option<PathBuf>,
    #[command(flatten)]
    who: WhoArgs,
}

/// Writes an access token; with --json all that the token service answered.
pub async fn token(global: &Global, args: TokenArgs) -> Result<(), Failure> {
    let mut pairs = Vec::new();
    if let Some(scope) = args.scope {
        pairs.push(("scope", scope));
    }
    if let Some(file) = &args.details {
        pairs.push(("authorization_details", files::read(file)?.trim().to_owned()));
    }
    let grant = match &args.assertion_file {
        None => "client_credentials",
        Some(file) => {
            let statement = files::read_secret(file)?.trim().to_owned();
            if statement.is_empty() {
                return Err(Failure::failed(format!("{} is empty: it should hold a statement", file.display())));
            }
            pairs.push(("assertion", statement));
            let bearer =
                ["urn:ietf:params:oauth:grant-type:jwt-bearer", "urn:ietf:params:oauth:grant-type:saml2-bearer"];
            bearer[usize::from(args.saml)]
        }
    };
    let session = args.who.session(global).await?;
    let target = session.target(&args.resource).await?;
    let document = session.ask(&target, grant, &pairs).await?;
    if global.json {
        context::print(global, &document);
    } else {
        context::out(&format!("{}\n", document["access_token"].as_str().unwrap_or_default()));
    }
    Ok(())
}

/// Writes what goes into a `DPoP` header, good for one request.
pub async fn proof(global: &Global, args: HeaderArgs) -> Result<(), Failure> {
    let token = match &args.token_file {
        Some(file) => Some(AccessToken::new(files::read_secret(file)?.trim().to_owned())),
        None => None,
    };
    if let Err(error) = crate::protocol::htu::Htu::parse(&args.url) {
        return Err(Failure::usage(format!("--url {:?}: {error}", args.url)));
    }
    let session = args.who.session(global).await?;
    if let Some(nonce) = args.nonce {
        session.learn_nonce(&args.url, nonce);
    }
    let body = args.body_file.as_deref().map(files::read_bytes).transpose()?;
    let proof = session.prove_body(&args.method, &args.url, token.as_ref(), body.as_deref());
    if global.json {
        context::print(global, &json!({"dpop": proof}));
    } else {
        context::out(&format!("{proof}\n"));
    }
    Ok(())
}
