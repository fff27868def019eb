//! L2: every authority rotates every ten seconds under load, and no request is lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method};
use popgate::client::http::PATIENCE;
use popgate::client::session::Call;
use popgate::client::source::{Sessions, SvidSource};
use popgate::client::workload::WorkloadApi;
use popgate::domain::digest::Sha256;
use serde_json::{Value, json};
use spiffe::WorkloadApiClient;

use crate::agent::wait;
use crate::host::{Host, own_user, register};
use crate::world::{Answer, SOLVER, Service};

const WEB: &str = "spiffe://example.org/web";

/// How long: a build of every day turns a few times, `./test` two minutes.
fn duration() -> Duration {
    let seconds = std::env::var("POPGATE_TEST_ROTATION_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(25))
}

#[derive(Default)]
struct Load {
    over: AtomicBool,
    answered: AtomicU64,
    serials: std::sync::Mutex<BTreeSet<String>>,
    lost: std::sync::Mutex<Vec<String>>,
}

impl Load {
    fn lose(&self, what: String) {
        self.lost.lock().expect("no panic").push(what);
    }
}

/// Calls on and on, over whatever identity is the present one.
async fn call(load: Arc<Load>, sessions: Arc<Sessions>, urls: [String; 2]) {
    let began = Instant::now();
    while !load.over.load(Ordering::Relaxed) {
        for url in &urls {
            let session = sessions.session().expect("a session");
            load.serials.lock().expect("no panic").insert(session.identity().svid.serial.clone());
            let call = Call::new(Method::GET, url, HeaderMap::new(), Bytes::new());
            let answer = match session.call(&call).await {
                Ok(response) => Answer::read(response).await,
                Err(error) => {
                    load.lose(format!("{:?} {url} as {}: {error}", began.elapsed(), session.identity().spiffe_id));
                    continue;
                }
            };
            if answer.status == 200 {
                load.answered.fetch_add(1, Ordering::Relaxed);
            } else {
                load.lose(format!("{:?} {url}: {} {}", began.elapsed(), answer.status, answer.text()));
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Gets JWT-SVIDs and has them validated, by the agent and so by its present bundle.
async fn tokens(load: Arc<Load>, client: WorkloadApiClient) {
    let mut n = 0_u64;
    while !load.over.load(Ordering::Relaxed) {
        n += 1;
        let audience = format!("receiver-{n}");
        match client.fetch_jwt_svid([audience.as_str()], None).await {
            Ok(token) => match client.validate_jwt_token(&audience, token.token()).await {
                Ok(_) => drop(load.answered.fetch_add(1, Ordering::Relaxed)),
                Err(error) => load.lose(format!("a JWT-SVID does not hold: {error}")),
            },
            Err(error) => load.lose(format!("no JWT-SVID: {error}")),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_every_authority_rotates_every_ten_seconds_under_load_and_no_request_is_lost() {
    let keys = "danger_short_lives = true\nissuing_life = \"20s\"\njwt_key_life = \"20s\"\n";
    let service = Service::start_with_identity(keys).await;
    let host = Host::start(&service, "build-1").await;
    register(&service, WEB, &host.node, &[&own_user()]).await;
    let entry = json!({"entry": [
        {"spiffe_id": SOLVER, "owner": "https://idp.example.org#bob", "groups": ["solvers"], "operations": ["raw.*", "cert.*"], "svid_ttl": "12s"},
        {"spiffe_id": WEB, "owner": "https://idp.example.org#bob", "groups": ["solvers"], "operations": ["raw.*", "cert.*"], "svid_ttl": "12s",
         "parent": host.node, "selectors": [own_user()]},
    ]});
    service.admin(Method::POST, "/v1/import", Some(entry)).await.expect("imports");
    let client = WorkloadApiClient::connect_to(host.endpoint()).await.expect("connects");
    wait(|| async { client.fetch_x509_svid().await.is_ok() }, "an identity").await;
    let token = service.join_token(SOLVER).await;
    let first = popgate::client::enrol::join(&service.addresses["identity"], &token).await.expect("enrols");
    let renewing = Sessions::new(SvidSource::renewing(first, None), PATIENCE).expect("sessions");
    let agent = WorkloadApi::new(&host.endpoint()).expect("an address");
    let following =
        Sessions::new(SvidSource::following(agent, None).await.expect("follows"), PATIENCE).expect("sessions");
    let load = Arc::new(Load::default());
    let urls = [service.url("gateway", "/raw/x"), service.url("gateway", "/cert/x")];
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(call(load.clone(), Arc::new(renewing), urls.clone()));
    tasks.spawn(call(load.clone(), Arc::new(following), urls));
    tasks.spawn(tokens(load.clone(), client));
    let began = Instant::now();
    let mut seen: [BTreeSet<Sha256>; 3] = Default::default();
    let act = async |action: &str| {
        let body = json!({"action": action, "kind": "root"});
        service.admin(Method::POST, "/v1/authorities", Some(body)).await.expect("acts");
    };
    // The timer turns issuing CAs and JWT-SVID keys; a root, of ten years, is turned by hand.
    let mut turn = tokio::time::interval(Duration::from_secs(5));
    let mut prepared = false;
    while began.elapsed() < duration() {
        turn.tick().await;
        act(if prepared { "activate" } else { "prepare" }).await;
        prepared = !prepared;
        // A join token names the root of its moment, and is good over the next turn.
        let token = service.join_token("spiffe://example.org/ci/narrow").await;
        let all: Value = service.admin(Method::GET, "/v1/authorities", None).await.expect("lists");
        for authority in all.as_array().expect("a list") {
            let kind = ["root", "issuing", "jwt-svid"].iter().position(|k| authority["kind"] == *k).expect("known");
            let id = authority["id"].as_str().expect("text");
            seen[kind].insert(Sha256::from_hex(id).expect("hex"));
        }
        if let Err(error) = popgate::client::enrol::join(&service.addresses["identity"], &token).await {
            load.lose(format!("an enrolment at {:?}: {error}", began.elapsed()));
        }
    }
    load.over.store(true, Ordering::Relaxed);
    while tasks.join_next().await.is_some() {}
    let lost = load.lost.lock().expect("no panic").clone();
    let answered = load.answered.load(Ordering::Relaxed);
    let log = std::fs::read_to_string(service.base().join("serve.log")).unwrap_or_default();
    assert!(
        lost.is_empty(),
        "{} of {answered} lost, first: {:#?}\n{}",
        lost.len(),
        &lost[..lost.len().min(5)],
        tail(&log)
    );
    let turns = usize::try_from(duration().as_secs() / 10).expect("small");
    let counts = seen.map(|ids| ids.len());
    assert!(counts.iter().all(|n| *n >= turns), "roots, issuing CAs and JWT-SVID keys: {counts:?}");
    let serials = load.serials.lock().expect("no panic").len();
    assert!(serials >= 2 * turns, "{serials} certificates");
    let verify = service.verify().await;
    assert!(verify.status.success(), "{}", crate::world::stderr(&verify));
    eprintln!("{answered} requests over {counts:?} authorities and {serials} certificates, none lost");
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> =
        log.lines().filter(|l| l.contains("WARN") || l.contains("ERROR") || l.contains("handshake")).collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
