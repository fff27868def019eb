//! The demo's world: its data directory, its child processes, and its hands on them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};

use crate::cli::Global;
use crate::cli::context::say;
use crate::cli::demo::{DemoArgs, Explained, StepError};
use crate::client::admin::Admin;
use crate::client::enrol;
use crate::client::identity::Identity;
use crate::domain::secret::JoinToken;
use crate::evidence::files::EvidenceDir;
use crate::evidence::reader::{LogReader, ReadEntry};

const READY_WITHIN: Duration = Duration::from_secs(30);
const ANSWER_WITHIN: Duration = Duration::from_mins(1);

/// The files of `config/`, compiled in.
const FILES: [(&str, &str); 5] = [
    ("popgate.toml", include_str!("../../../config/popgate.toml")),
    ("routes/tot.toml", include_str!("../../../config/routes/tot.toml")),
    ("masks/pii.toml", include_str!("../../../config/masks/pii.toml")),
    ("policies/tot.cedar", include_str!("../../../config/policies/tot.cedar")),
    ("entries.toml", include_str!("../../../config/entries.toml")),
];

/// A child process whose end is tied to ours by its standard input.
struct Running {
    child: Child,
}

impl Running {
    async fn stop(mut self) {
        drop(self.child.stdin.take());
        if tokio::time::timeout(Duration::from_secs(15), self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// A workload process and the socket to it.
pub struct Workload {
    running: Running,
    lines: Lines<BufReader<OwnedReadHalf>>,
    orders: OwnedWriteHalf,
}

impl Workload {
    /// Gives an order and waits for its answer.
    pub async fn ask(&mut self, order: &Value) -> Result<Value, StepError> {
        self.orders.write_all(format!("{order}\n").as_bytes()).await?;
        let line = tokio::time::timeout(ANSWER_WITHIN, self.lines.next_line())
            .await
            .map_err(|_| format!("the workload did not answer {}", order["op"]))??;
        let answer: Value = serde_json::from_str(&line.ok_or_else(|| "the workload process ended".to_owned())?)?;
        match answer.get("failed") {
            None => Ok(answer),
            Some(why) => {
                Err(format!("the workload could not {}: {}", order["op"], why.as_str().unwrap_or_default()).into())
            }
        }
    }
}

/// The body of an answer.
pub fn body(answer: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(answer["body"].as_str().unwrap_or_default()).unwrap_or_default()
}

/// The JSON body of an answer.
pub fn json_body(answer: &Value) -> Value {
    serde_json::from_slice(&body(answer)).unwrap_or(Value::Null)
}

/// Everything the steps share.
pub struct World {
    /// Data directory.
    pub data: PathBuf,
    /// Holds a temporary data directory until the end.
    _temporary: Option<tempfile::TempDir>,
    binary: PathBuf,
    config: PathBuf,
    log_level: String,
    service: Option<Running>,
    engine: Option<Running>,
    /// Where the service listens.
    pub addresses: Value,
    /// Where the engine listens.
    pub engine_url: String,
    /// Administration through the socket.
    pub admin: Admin,
    /// `ci/solver`.
    pub solver: Option<Workload>,
    /// `ai/planner`.
    pub planner: Option<Workload>,
    /// What later steps need of earlier ones.
    pub memory: Value,
}

fn start_error(what: String) -> StepError {
    Explained {
        what,
        why: "a process of the demo did not come up".into(),
        next: "if a port is busy, stop the process that has it or run with --free-ports".into(),
    }
    .into()
}

impl World {
    /// Writes the configuration and starts engine and service.
    pub async fn start(global: &Global, args: &DemoArgs) -> Result<Self, StepError> {
        let (data, temporary) = if let Some(dir) = &global.data_dir {
            (std::path::absolute(dir)?, None)
        } else {
            let dir = tempfile::Builder::new().prefix("popgate-demo-").tempdir()?;
            if args.exit { (dir.path().to_owned(), Some(dir)) } else { (dir.keep(), None) }
        };
        let unusable = |what: String, why: &str| Explained {
            what,
            why: why.into(),
            next: "give --data-dir an empty directory that this user may write, or leave it out".into(),
        };
        crate::net::files::private_dir(&data)
            .map_err(|e| unusable(e.to_string(), "the demo keeps keys, ledger and evidence there"))?;
        if data.join("ledger.db").exists() {
            let what = format!("{} holds the data of another run", data.display());
            return Err(unusable(what, "the demo registers, enrols and offboards from the beginning").into());
        }
        let config = write_config(global, args, &data)?;
        let mut world = Self {
            admin: Admin::socket(&data),
            data,
            _temporary: temporary,
            binary: std::env::current_exe()?,
            config,
            log_level: global.log_level.clone().unwrap_or_else(|| "info".into()),
            service: None,
            engine: None,
            addresses: Value::Null,
            engine_url: String::new(),
            solver: None,
            planner: None,
            memory: json!({}),
        };
        world.start_engine(args.free_ports).await?;
        world.start_service().await?;
        world.solver = Some(world.start_workload("solver").await?);
        world.planner = Some(world.start_workload("planner").await?);
        Ok(world)
    }

    fn command(&self, log: &str) -> Result<Command, StepError> {
        let mut command = Command::new(&self.binary);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.data.join(log))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
        for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("POPGATE_")) {
            command.env_remove(name);
        }
        Ok(command)
    }

    /// Starts a child and reads its `ready` line.
    async fn ready(&self, mut command: Command, what: &str, log: &str) -> Result<(Running, Value), StepError> {
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| start_error(format!("{what} has no output")))?;
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(READY_WITHIN, lines.next_line()).await;
        let line = line.map_err(|_| start_error(format!("{what} did not say that it is ready")))??;
        // Its standard output is read to the end, so that it never blocks on it.
        tokio::spawn(async move { while lines.next_line().await.is_ok_and(|l| l.is_some()) {} });
        let Some(line) = line else {
            let told = std::fs::read_to_string(self.data.join(log)).unwrap_or_default();
            let why = told.lines().rev().find(|l| l.starts_with("popgate:")).unwrap_or("it ended at once").to_owned();
            return Err(start_error(why.trim_start_matches("popgate: ").to_owned()));
        };
        let ready: Value = serde_json::from_str(&line)?;
        Ok((Running { child }, ready["ready"].clone()))
    }

    async fn start_engine(&mut self, free_ports: bool) -> Result<(), StepError> {
        let listen = if free_ports { "127.0.0.1:0" } else { "127.0.0.1:8024" };
        let mut command = self.command("tot.log")?;
        command.args(["tot", "serve", "--json", "--with-parent", "--listen", listen, "--trust-domain", "example.org"]);
        command.arg("--txn-jwks").arg(self.data.join("txn-jwks.json")).arg("--record").arg(self.record_file());
        let (engine, ready) = self.ready(command, "the engine", "tot.log").await?;
        self.engine = Some(engine);
        self.engine_url = ready["engine"].as_str().unwrap_or_default().to_owned();
        let routes = self.config.with_file_name("routes").join("tot.toml");
        let text = std::fs::read_to_string(&routes)?;
        std::fs::write(&routes, text.replace("http://127.0.0.1:8024", &self.engine_url))?;
        Ok(())
    }

    /// Starts the service and waits until it is ready.
    pub async fn start_service(&mut self) -> Result<(), StepError> {
        let mut command = self.command("serve.log")?;
        command
            .args(["serve", "--json", "--with-parent", "--log-level", &self.log_level, "--config"])
            .arg(&self.config);
        let (service, ready) = self.ready(command, "the service", "serve.log").await?;
        self.service = Some(service);
        self.addresses = ready;
        Ok(())
    }

    /// Stops the service as an operator would; true if it is gone.
    pub async fn stop_service(&mut self) -> bool {
        if let Some(service) = self.service.take() {
            service.stop().await;
        }
        UnixStream::connect(self.data.join("admin.sock")).await.is_err()
    }

    async fn start_workload(&self, name: &str) -> Result<Workload, StepError> {
        // Unix socket paths are short, data directories need not be.
        let dir = tempfile::Builder::new().prefix("pg-").tempdir()?;
        let socket = dir.path().join("s");
        let mut command = self.command(&format!("{name}.log"))?;
        command.arg("demo-workload").arg("--socket").arg(&socket);
        let child = command.spawn()?;
        let connect = async {
            loop {
                match UnixStream::connect(&socket).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        let stream = tokio::time::timeout(READY_WITHIN, connect)
            .await
            .map_err(|_| start_error(format!("the workload {name} did not come up")))?;
        let (input, orders) = stream.into_split();
        Ok(Workload { running: Running { child }, lines: BufReader::new(input).lines(), orders })
    }

    /// Where the gateway answers.
    pub fn gateway(&self, path: &str) -> String {
        format!("{}{path}", self.addresses["gateway"].as_str().unwrap_or_default())
    }

    /// An order to the CI job.
    pub async fn solver(&mut self, order: Value) -> Result<Value, StepError> {
        self.solver.as_mut().ok_or_else(|| "the CI job is gone".to_owned())?.ask(&order).await
    }

    /// An order to the agent.
    pub async fn planner(&mut self, order: Value) -> Result<Value, StepError> {
        self.planner.as_mut().ok_or_else(|| "the agent is gone".to_owned())?.ask(&order).await
    }

    /// A call of the administration API.
    pub async fn administer(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, StepError> {
        Ok(self.admin.call(method, path, body).await?)
    }

    /// A one-time join token for a registered identity.
    pub async fn join_token(&self, spiffe_id: &str) -> Result<String, StepError> {
        let answer = self.administer(Method::POST, "/v1/join-tokens", Some(&json!({"spiffe_id": spiffe_id}))).await?;
        Ok(answer["join_token"].as_str().unwrap_or_default().to_owned())
    }

    /// Enrols an identity in this process.
    pub async fn enrol(&self, spiffe_id: &str) -> Result<Arc<Identity>, StepError> {
        let token = JoinToken::parse(&self.join_token(spiffe_id).await?)?;
        Ok(Arc::new(enrol::join(self.addresses["identity"].as_str().unwrap_or_default(), &token).await?))
    }

    /// The engine's own record.
    pub fn record_file(&self) -> PathBuf {
        self.data.join("tot-record.jsonl")
    }

    /// The engine's record, line by line.
    pub fn record(&self) -> Result<Vec<Value>, StepError> {
        let text = std::fs::read_to_string(self.record_file())?;
        Ok(text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect())
    }

    /// How many requests the engine has seen, of one method and with this in their target.
    pub fn upstream_requests(&self, method: &str, part: &str) -> Result<u64, StepError> {
        let fits = |line: &&Value| {
            let request = &line["request"];
            (method.is_empty() || request["method"] == method)
                && request["target"].as_str().is_some_and(|t| t.contains(part))
        };
        Ok(self.record()?.iter().filter(fits).count() as u64)
    }

    /// A reader over the evidence, with everything durable under a checkpoint.
    pub async fn evidence(&self) -> Result<LogReader, StepError> {
        self.administer(Method::POST, "/v1/evidence/publish", None).await?;
        Ok(self.evidence_files())
    }

    /// Keeps the present checkpoint under a name in the data directory, as an auditor would elsewhere.
    pub async fn keep_checkpoint(&self, name: &str) -> Result<PathBuf, StepError> {
        let path = self.data.join(name);
        std::fs::write(&path, self.evidence().await?.checkpoint_note()?)?;
        Ok(path)
    }

    /// A reader over the evidence as it lies.
    pub fn evidence_files(&self) -> LogReader {
        LogReader::new(EvidenceDir::of_data_dir(&self.data))
    }

    /// The entry of a request that fits; an exchange's end is logged a moment after its last byte.
    pub async fn entry(&self, request_id: &str, event: &str) -> Result<ReadEntry, StepError> {
        for _ in 0..100 {
            let found = self.evidence().await?.entries(0)?.into_iter().find(|e| {
                serde_json::to_value(&e.leaf).is_ok_and(|v| v["request_id"] == request_id && v["event"] == event)
            });
            match found {
                Some(entry) => return Ok(entry),
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        Err(format!("the log has no {event} of request {request_id}").into())
    }

    /// Runs a command of our own binary: exit code, standard output, standard error.
    pub async fn run(&self, args: &[&str]) -> Result<(i32, Vec<u8>, String), StepError> {
        let mut command = Command::new(&self.binary);
        command.args(args).arg("--data-dir").arg(&self.data).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(ANSWER_WITHIN, command.output())
            .await
            .map_err(|_| format!("{} did not end", args.join(" ")))??;
        Ok((output.status.code().unwrap_or(-1), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// Ends everything.
    pub async fn stop(mut self) {
        for workload in [self.solver.take(), self.planner.take()].into_iter().flatten() {
            drop(workload.orders);
            workload.running.stop().await;
        }
        for process in [self.service.take(), self.engine.take()].into_iter().flatten() {
            process.stop().await;
        }
    }

    /// Starts the service again, enrols a visitor and alice on disk, and tells what to try.
    pub async fn stay(mut self, global: &Global) -> Result<(), StepError> {
        self.start_service().await?;
        let visitor = json!({"spiffe_id": "spiffe://example.org/ai/visitor", "owner": "https://idp.example.org#carol", "groups": ["solvers"], "operations": ["tot.*", "prompt.*"]});
        let known = self.administer(Method::GET, "/v1/entries", None).await?;
        if !known.to_string().contains("/ai/visitor") {
            self.administer(Method::POST, "/v1/entries", Some(&visitor)).await?;
        }
        for (name, id) in
            [("visitor", "spiffe://example.org/ai/visitor"), ("alice", "spiffe://example.org/popgate/person/alice")]
        {
            self.enrol(id).await?.save(&self.data.join("identity").join(name))?;
        }
        say(global, &self.invitation());
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = term.recv() => {}
        }
        self.stop().await;
        Ok(())
    }

    fn invitation(&self) -> String {
        let popgate = self.binary.display();
        let data = self.data.display();
        let visitor = self.data.join("identity/visitor");
        let alice = self.data.join("identity/alice");
        let (visitor, alice) = (visitor.display(), alice.display());
        let address = |name: &str| self.addresses[name].as_str().unwrap_or_default().to_owned();
        format!(
            "\nAll of it is still running; Ctrl-C ends it. Data: {data}\n\
             Open: {telemetry}/metrics   {telemetry}/readyz   {token}/.well-known/oauth-authorization-server (trust {data}/ca.pem)\n\
             Try, in another terminal:\n\
             {popgate} call --identity {visitor} -d '{{\"task\":\"game_of_24\",\"input\":[3,3,8,8]}}' {gateway}/v1/runs\n\
             {popgate} approval list --data-dir {data}\n\
             {popgate} approval approve ID --identity {alice}\n\
             {popgate} revoke spiffe-id spiffe://example.org/ai/visitor --reason 'trying it' --data-dir {data}\n\
             {popgate} audit tail --data-dir {data}\n\
             {popgate} audit verify --data-dir {data}",
            telemetry = address("telemetry"),
            token = address("token"),
            gateway = address("gateway"),
        )
    }
}

/// Copies the compiled-in configuration, or the given one's folder, into the data directory.
fn write_config(global: &Global, args: &DemoArgs, data: &Path) -> Result<PathBuf, StepError> {
    let dir = data.join("config");
    let given = global.config.as_ref().map(|file| file.parent().map(Path::to_owned).unwrap_or_default());
    for (name, text) in FILES {
        let path = dir.join(name);
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        let text = match &given {
            Some(base) if base.join(name).exists() => std::fs::read_to_string(base.join(name))?,
            _ => text.to_owned(),
        };
        std::fs::write(path, text)?;
    }
    let main = dir.join("popgate.toml");
    let mut text = std::fs::read_to_string(&main)?
        .replace("data_dir     = \"popgate-data\"", &format!("data_dir     = {:?}", data.display().to_string()));
    if args.free_ports {
        for port in ["8441", "8442", "8443", "8444", "9464"] {
            text = text.replace(&format!("\"127.0.0.1:{port}\""), "\"127.0.0.1:0\"");
        }
    }
    if let Some(file) = &args.redis_url_file {
        let file = std::path::absolute(file)?;
        text = text.replace(
            "store = \"memory\"",
            &format!("store = \"redis\"\nredis_url_file = {:?}", file.display().to_string()),
        );
    }
    std::fs::write(&main, text)?;
    Ok(main)
}
