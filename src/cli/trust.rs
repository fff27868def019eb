//! `trust`: whom the configuration trusts, and what a token or an assertion would come to.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::cli::context::{self, Failure, print};
use crate::config::Config;
use crate::domain::time::{Clock as _, Timestamp};
use crate::identity::attest::{self, Evidence};
use crate::net::files;
use crate::store::clock::SystemClock;
use crate::trust::providers::{Explained, Providers, Receiver};

#[derive(Subcommand)]
pub enum TrustCommand {
    /// Whom attestation and the token endpoint trust, from the configuration
    List,
    /// What a token of a platform would be attested as, or what a statement would come to as a grant; nothing is issued
    #[command(after_help = "Examples: popgate trust test --token-file job-token
          popgate trust test --grant --token-file id-token
          popgate trust test --grant --method saml --token-file assertion")]
    Test {
        /// oidc or kubernetes; with --grant oidc or saml
        #[arg(long, default_value = "oidc")]
        method: String,
        /// As a grant at the token endpoint, not for attestation
        #[arg(long)]
        grant: bool,
        /// The token issuer's URL, where the configuration does not name it
        #[arg(long, value_name = "URL", requires = "grant")]
        token_service: Option<String>,
        /// File with the token, or the assertion in base64url; - for standard input
        #[arg(long, value_name = "FILE")]
        token_file: PathBuf,
    },
}

pub async fn run(global: &Global, command: TrustCommand) -> Result<(), Failure> {
    let config = context::config(global)?;
    match command {
        TrustCommand::List => print(global, &json!(config.trust)),
        TrustCommand::Test { method, grant, token_service, token_file } => {
            let token = files::read_secret(&token_file)?;
            let now = SystemClock.now();
            if grant {
                return granted(global, &config, &method, token_service, token.trim(), now).await;
            }
            let attested = attested(&config, &method, token.trim(), now).await?;
            print(global, &attested);
        }
    }
    Ok(())
}

async fn attested(config: &Config, method: &str, token: &str, now: Timestamp) -> Result<Value, Failure> {
    let domain = config.trust_domain()?;
    let attestors = attest::attestors(&config.trust, &config.base, &domain)?;
    let mut members = serde_json::Map::new();
    members.insert("token".into(), token.into());
    let audience = domain.id();
    let evidence = Evidence { members: &members, audience: &audience, csr: &[], now };
    let attested = attest::attest(&attestors, method, &evidence).await.map_err(|refusal| {
        let why = refusal.cause.as_deref().unwrap_or("no cause");
        Failure::failed(format!("{}: {why}", refusal.detail))
    })?;
    Ok(json!({"method": attested.method, "selectors": attested.selectors, "node": attested.node_name}))
}

/// What a statement comes to, rule by rule; a failure if it would be refused.
async fn granted(
    global: &Global,
    config: &Config,
    method: &str,
    token_service: Option<String>,
    token: &str,
    now: Timestamp,
) -> Result<(), Failure> {
    let providers = Providers::new(&config.trust, &config.base)?;
    let issuer = token_service.or_else(|| config.token.issuer.clone());
    let issuer = issuer.unwrap_or_else(|| format!("https://{}", config.token.listen));
    let endpoint = format!("{}/token", issuer.trim_end_matches('/'));
    let receiver = Receiver { issuer: issuer.trim_end_matches('/'), endpoint: &endpoint };
    let explained = match method {
        "oidc" => providers.explain_oidc(token, receiver, now).await,
        "saml" => providers.explain_saml(token, receiver, now),
        _ => return Err(Failure::usage(format!("--method {method:?} makes no grants: oidc and saml do"))),
    };
    let explained = explained.map_err(|e| Failure::failed(e.to_string()))?;
    print(global, &told(&explained));
    explained.believed(now).map(drop).map_err(|e| Failure::failed(format!("refused: {e}")))
}

fn told(explained: &Explained) -> Value {
    let mut document = json!({"provider": explained.provider, "states": explained.facts, "rules": explained.tried});
    if let Some(statement) = &explained.statement {
        let kind = if statement.person().is_some() { "person" } else { "job" };
        document[kind] = statement.subject.clone().into();
        document["groups"] = json!(statement.groups);
        document["until"] = statement.until.rfc3339().into();
    }
    document
}
