//! Other people's OAuth clients and identity providers against ours, unmodified: the table of `docs/integrations/oauth.md` is
//! what these runs say.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use http::Method;
use serde_json::{Value, json};

use crate::documented::{self, Page};
use crate::interop::{Row, row, rows, script};
use crate::web::WebCa;
use crate::world::process::bounded;
use crate::world::{HandMade, SOLVER, Service, key_of, provided, registrations, stderr, stdout};

const SERVER: &str = "spiffe://example.org/ci/narrow";
const SAML_ENTITY: &str = "https://saml.example.org/idp";

/// npm oidc-provider, at which people sign in.
struct Idp {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    issuer: String,
    version: String,
    ca: String,
}

impl Idp {
    fn start(node: &str, dir: &Path) -> Self {
        let ca = WebCa::new("IdP CA");
        let (der, key) = ca.leaf("localhost", &["localhost"]);
        let file = |name: &str, text: &str| {
            std::fs::write(dir.join(name), text).expect("writes");
            dir.join(name)
        };
        let (certificate, key) = (file("idp.pem", &popgate::net::files::pem(&der)), file("idp.key", &key));
        let mut command = Command::new("node");
        command.arg(script("oidc_idp.mjs")).arg(node).args([certificate, key, file("idp-ca.pem", &ca.pem)]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("node runs");
        let (input, output) = (child.stdin.take().expect("piped"), BufReader::new(child.stdout.take().expect("piped")));
        let mut idp = Self { child, input, output, issuer: String::new(), version: String::new(), ca: ca.pem };
        let told = idp.read();
        idp.issuer = told["issuer"].as_str().expect("an issuer").to_owned();
        idp.version = told["version"].as_str().expect("a version").to_owned();
        idp
    }

    /// The next line that is JSON: it prints notices, too.
    fn read(&mut self) -> Value {
        loop {
            let mut line = String::new();
            assert_ne!(self.output.read_line(&mut line).expect("reads"), 0, "the provider ended");
            if let Ok(value @ Value::Object(_)) = serde_json::from_str(&line) {
                return value;
            }
        }
    }

    /// Has a person sign in.
    fn sign_in(&mut self, name: &str) -> String {
        writeln!(self.input, "{name}").expect("writes");
        self.read()["id_token"].as_str().expect("an ID token").to_owned()
    }
}

impl Drop for Idp {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A service that believes both providers.
async fn service(idp: &Idp) -> Service {
    let extra = format!(
        r#"
[[trust.oidc]]
name = "corp"
issuer = "{}"
keys = {{ ca_file = "idp-ca.pem" }}
grants = "people"
grant_audience = "popgate"
[[trust.oidc.map]]
each = "groups"
prefix = "corp:"
[[trust.saml]]
name = "staff"
entity_id = "{SAML_ENTITY}"
certificates_file = "saml.pem"
[[trust.saml.map]]
claims = {{ department = "eng" }}
groups = ["engineers"]
"#,
        idp.issuer
    );
    let files = [("idp-ca.pem", idp.ca.as_str()), ("saml.pem", "")];
    let service = Service::start_domain("example.org", &extra, "", &files).await;
    service.admin(Method::POST, "/v1/import", Some(registrations())).await.expect("imports");
    service
}

/// Runs a client to its end.
fn client(mut command: Command) -> Vec<Row> {
    let output = command.output().expect("runs");
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    rows(stdout(&output).lines().map(ToOwned::to_owned))
}

/// curl, with proofs made by hand.
async fn curl(service: &Service, dir: &Path) -> Vec<Row> {
    let identity = service.enrol(SOLVER).await;
    let own = dir.join("curl");
    identity.save(&own).expect("saves");
    let run = |args: &[&str]| {
        let file = |name: &str| own.join(name).to_str().expect("UTF-8").to_owned();
        let output = bounded("curl")
            .args([
                "-sS",
                "--cacert",
                &file("bundle.pem"),
                "--cert",
                &file("svid.pem"),
                "--key",
                &file("key.pem"),
                "-D",
            ])
            .arg(own.join("headers"))
            .args(args)
            .output()
            .expect("curl runs");
        assert!(output.status.success(), "{}", stderr(&output));
        let headers = std::fs::read_to_string(own.join("headers")).expect("reads");
        let mut pairs = headers.lines().filter_map(|l| l.split_once(": "));
        let nonce = pairs.find(|(n, _)| n.eq_ignore_ascii_case("dpop-nonce")).map(|(_, v)| v.trim().to_owned());
        (stdout(&output), headers, nonce)
    };
    let url = service.url("token", "/token");
    let mut nonce = None;
    let mut token = Value::Null;
    for _ in 0..2 {
        let mut proof = HandMade::new(key_of(&identity), "POST", &url, None);
        if let Some(nonce) = &nonce {
            proof.payload["nonce"] = Value::from(String::clone(nonce));
        }
        let proof = format!("DPoP: {}", proof.sign());
        let form = [
            format!("client_id={SOLVER}"),
            format!("resource={}", service.url("gateway", "/v1")),
            "grant_type=client_credentials".to_owned(),
        ];
        let form: Vec<&str> = form.iter().flat_map(|f| ["--data-urlencode", f.as_str()]).collect();
        let (body, _, asked) = run(&[&["-H", &proof], form.as_slice(), &[url.as_str()]].concat());
        token = serde_json::from_str(&body).expect("JSON");
        nonce = asked.or(nonce);
    }
    let done = |call: &str, good: bool| row("curl", "Debian's", call, if good { "ok" } else { "unexpected answer" });
    let access = token["access_token"].as_str().unwrap_or_default().to_owned();
    let api = service.url("gateway", "/v1/runs/r1");
    let access_token = popgate::domain::secret::AccessToken::new(access.clone());
    let mut status = String::new();
    let mut nonce = None;
    for _ in 0..2 {
        let mut proof = HandMade::new(key_of(&identity), "GET", &api, Some(&access_token));
        if let Some(nonce) = &nonce {
            proof.payload["nonce"] = Value::from(String::clone(nonce));
        }
        let (proof, authorization) = (format!("DPoP: {}", proof.sign()), format!("Authorization: DPoP {access}"));
        let (_, headers, asked) = run(&["-H", &proof, "-H", &authorization, &api]);
        status = headers.split_whitespace().nth(1).unwrap_or_default().to_owned();
        nonce = asked;
        if nonce.is_none() {
            break;
        }
    }
    vec![
        done("client credentials by certificate, with a hand-made proof", token["token_type"] == "DPoP"),
        done("proved request to the gateway, with a hand-made proof", status == "200"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unmodified_oauth_clients_and_identity_providers_work_and_the_documented_table_says_what_they_did() {
    let Some(python) = provided("POPGATE_TEST_PYTHON", "clients in Python and Node, and a certificate linter") else {
        return;
    };
    let node = provided("POPGATE_TEST_NODE_MODULES", "the Node clients").expect("`./test` provides both");
    let dir = tempfile::tempdir().expect("tempdir");
    let mut idp = Idp::start(&node, dir.path());
    let service = service(&idp).await;
    let issuer = &service.addresses["token"];
    let saml = bounded(&python)
        .arg(script("saml_idp.py"))
        .args([SAML_ENTITY, issuer, &format!("{issuer}/token"), "jane"])
        .output()
        .expect("runs");
    let saml: Value = serde_json::from_str(&stdout(&saml)).unwrap_or_else(|_| panic!("{}", stderr(&saml)));
    let saml_version = saml["version"].as_str().expect("a version").to_owned();
    // The provider's certificates are read anew when they change.
    std::fs::write(service.base().join("saml.pem"), saml["certificate"].as_str().expect("PEM")).expect("writes");
    let mut table = vec![row("client", "version", "call", "result")];
    let dirs = [(SOLVER, "client"), (SERVER, "server")];
    for (id, name) in dirs {
        service.enrol(id).await.save(&dir.path().join(name)).expect("saves");
    }
    let at = |name: &str| dir.path().join(name);
    let id_tokens: Vec<String> = (0..3).map(|_| idp.sign_in("jane")).collect();
    let world = json!({
        "issuer": service.addresses["token"], "client_id": SOLVER, "server_id": SERVER, "client_dir": at("client"),
        "server_dir": at("server"), "resource": service.url("gateway", "/v1"), "api": service.url("gateway", "/v1/runs/r1"),
        "idp": idp.issuer, "id_tokens": id_tokens, "saml": saml, "saml_entity": SAML_ENTITY,
    });
    std::fs::write(at("world.json"), world.to_string()).expect("writes");
    let mut js = bounded("node");
    js.arg(script("oauth_clients.mjs")).arg(&node).arg(at("world.json"));
    table.extend(client(js));
    let mut py = bounded(&python);
    // It looks for the metadata outside of its session.
    py.arg(script("oauth_client.py")).arg(at("world.json")).env("REQUESTS_CA_BUNDLE", at("client").join("bundle.pem"));
    table.extend(client(py));
    table.extend(curl(&service, dir.path()).await);
    let failed: Vec<&Row> = table.iter().skip(1).filter(|r| r[3] != "ok").collect();
    assert!(
        failed.is_empty(),
        "{failed:#?}\n{}",
        std::fs::read_to_string(service.base().join("serve.log")).expect("log")
    );
    assert!(table.len() > 25, "every script ran to its end: {table:?}");
    // The providers' part was in those calls.
    table.push(row("npm oidc-provider", &idp.version, "ID tokens of its code flow as grants", "ok"));
    table.push(row("PyPI pysaml2", &saml_version, "assertions as grants", "ok"));
    let verified = service.verify().await;
    assert!(verified.status.success(), "{}", stderr(&verified));
    documented::compare(Page::Oauth, &table);
}
