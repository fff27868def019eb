//! A host with a running agent.

use std::path::{Path, PathBuf};

use http::Method;
use serde_json::json;
use tempfile::TempDir;

use crate::world::process::Running;
use crate::world::{Service, popgate};

/// A running agent.
pub struct Host {
    pub dir: TempDir,
    pub node: String,
    process: Running,
}

/// The selector of this test's own process.
pub fn own_user() -> String {
    format!("unix:uid:{}", nix::unistd::Uid::effective())
}

impl Host {
    /// An agent on a node of this name, by join token.
    pub async fn start(service: &Service, name: &str) -> Self {
        let token = service.admin(Method::POST, "/v1/join-tokens", Some(json!({"node": name}))).await.expect("a token");
        let dir = tempfile::Builder::new().prefix("pga-").tempdir().expect("tempdir");
        std::fs::write(dir.path().join("token"), token["join_token"].as_str().expect("text")).expect("writes");
        let file = dir.path().join("token");
        Self::start_in(service, dir, &["--join-token-file", file.to_str().expect("UTF-8")]).expect("starts")
    }

    /// An agent with these arguments; what it said if it does not start.
    pub fn start_in(service: &Service, dir: TempDir, args: &[&str]) -> Result<Self, String> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.path().join("log")).expect("log");
        let mut command = popgate();
        command.args(["agent", "--json", "--server", &service.addresses["identity"], "--data-dir"]);
        command.arg(dir.path().join("data")).arg("--socket").arg(dir.path().join("s"));
        command.args(["--telemetry", "127.0.0.1:0"]).args(args).stderr(log);
        let (process, ready) = Running::start(&mut command, |_| {});
        if let Some(node) = ready["ready"]["node"].as_str() {
            return Ok(Self { node: node.to_owned(), dir, process });
        }
        Err(std::fs::read_to_string(dir.path().join("log")).unwrap_or_default())
    }

    /// Ends the agent and starts it again with these arguments on the same directory.
    pub fn restart(mut self, service: &Service, args: &[&str]) -> Result<Self, String> {
        self.process.child.kill().expect("kills");
        self.process.child.wait().expect("waits");
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().expect("tempdir"));
        Self::start_in(service, dir, args)
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// The value of `SPIFFE_ENDPOINT_SOCKET`.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.child.id()).expect("a pid")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Registers a workload of a node.
pub async fn register(service: &Service, id: &str, parent: &str, selectors: &[&str]) {
    let entry = json!({
        "spiffe_id": id, "owner": "https://idp.example.org#bob", "parent": parent, "selectors": selectors, "groups": ["solvers"],
        "operations": ["tot.*", "raw.*"],
    });
    service.admin(Method::POST, "/v1/entries", Some(entry)).await.expect("registers");
}
