//! `ca`: the rotation of authorities. `bundle`: bundles of other trust domains.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use http::Method;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::cli::admin::{call, query, show};
use crate::cli::context::{self, Failure};
use crate::net::files;

/// What an authority signs.
#[derive(Clone, Copy, ValueEnum)]
pub enum Kind {
    /// Issuing CAs
    Root,
    /// X.509-SVIDs
    Issuing,
    /// JWT-SVIDs
    JwtSvid,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Issuing => "issuing",
            Self::JwtSvid => "jwt-svid",
        }
    }
}

#[derive(Subcommand)]
pub enum CaCommand {
    /// All authorities and where each is in its life
    Status,
    /// Make an authority that signs once it is activated; it is in the bundle at once
    #[command(after_help = "Example: popgate ca prepare issuing")]
    Prepare { kind: Kind },
    /// Let the prepared authority sign; the active one becomes old
    Activate { kind: Kind },
    /// Have everything that an old authority signed replaced at once
    #[command(after_help = "Example: popgate ca taint 3f9ac2d1   # the first characters of its id are enough")]
    Taint { id: String },
    /// Trust an authority no more: what it signed is refused
    Revoke { id: String },
    /// The certificate request for an upstream CA, PEM (identity.upstream = true)
    Csr,
    /// Take the upstream CA's answer: a chain in PEM, the issuing CA first, the root last
    Install { file: PathBuf },
}

pub async fn ca(global: &Global, command: CaCommand) -> Result<(), Failure> {
    let act = async |body: Value| show(global, Method::POST, "/v1/authorities", Some(body)).await;
    match command {
        CaCommand::Status => show(global, Method::GET, "/v1/authorities", None).await,
        CaCommand::Prepare { kind } => act(json!({"action": "prepare", "kind": kind.name()})).await,
        CaCommand::Activate { kind } => act(json!({"action": "activate", "kind": kind.name()})).await,
        CaCommand::Taint { id } => act(json!({"action": "taint", "id": id})).await,
        CaCommand::Revoke { id } => act(json!({"action": "revoke", "id": id})).await,
        CaCommand::Csr => {
            let document = call(global, Method::POST, "/v1/authorities", Some(json!({"action": "csr"}))).await?;
            context::out(document["csr"].as_str().unwrap_or_default());
            Ok(())
        }
        CaCommand::Install { file } => act(json!({"action": "install", "chain": files::read(&file)?})).await,
    }
}

#[derive(Subcommand)]
pub enum BundleCommand {
    /// Known bundles of other trust domains
    List,
    /// One bundle as a JWK Set: this trust domain's or another's
    Show { trust_domain: String },
    /// Take the bundle of another trust domain from a file
    #[command(after_help = "Example: popgate bundle set partner.example partner-bundle.json")]
    Set { trust_domain: String, file: PathBuf },
    /// Forget a bundle: certificates of that trust domain are refused from now on
    Delete { trust_domain: String },
}

pub async fn bundle(global: &Global, command: BundleCommand) -> Result<(), Failure> {
    match command {
        BundleCommand::List => show(global, Method::GET, "/v1/bundles", None).await,
        BundleCommand::Show { trust_domain } => {
            let document = call(global, Method::GET, &query("/v1/bundles", &trust_domain), None).await?;
            // Always JSON: it is a document of a standard.
            context::out(&format!("{}\n", document.get("bundle").unwrap_or(&document)));
            Ok(())
        }
        BundleCommand::Set { trust_domain, file } => {
            let bundle: Value = serde_json::from_str(&files::read(&file)?)
                .map_err(|e| Failure::failed(format!("{}: {e}", file.display())))?;
            show(global, Method::POST, "/v1/bundles", Some(json!({"trust_domain": trust_domain, "bundle": bundle})))
                .await
        }
        BundleCommand::Delete { trust_domain } => {
            show(global, Method::DELETE, &query("/v1/bundles", &trust_domain), None).await
        }
    }
}
