//! P8, P9, P12: one proof, one request, over restarts and replicas.

use std::sync::Arc;

use http::Method;

use crate::asking::Asking;
use crate::world::{Answer, Client, HandMade, SOLVER, Service, key_of, registrations};

async fn send(client: &Client, url: &str, authorization: &str, proof: &str) -> Answer {
    client.raw("GET", url, &[("authorization", authorization), ("dpop", proof)], false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proof_from_the_future_that_was_spent_before_a_crash_is_not_good_after_it() {
    let mut service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs/r1");
    let nonce = crate::proofs::learn_nonce(&service, &solver, &url).await;
    let token = solver.token(&url).await;
    let authorization = format!("DPoP {}", token.expose());
    let ahead = |nonce: Option<&str>| {
        let mut proof = HandMade::new(key_of(solver.session.identity()), "GET", &url, Some(&token));
        proof.payload["iat"] = (proof.payload["iat"].as_u64().expect("a number") + 9).into();
        if let Some(nonce) = nonce {
            proof.payload["nonce"] = nonce.into();
        }
        proof.sign()
    };
    let with_nonce = ahead(Some(&nonce));
    assert_eq!(send(&solver, &url, &authorization, &with_nonce).await.status, 200);
    let without = ahead(None);
    let passed = service.upstream.count();
    service.crash_and_restart();
    for (name, proof) in [("with a nonce of the old epoch", &with_nonce), ("without a nonce", &without)] {
        let answer = send(&solver, &url, &authorization, proof).await;
        assert_eq!((answer.status, answer.error()), (401, "use_dpop_nonce"), "{name}");
        assert_eq!(answer.headers.get_all("dpop-nonce").iter().count(), 1, "{name}");
    }
    assert_eq!(service.upstream.count(), passed);
    assert_eq!(solver.get(&url).await.status, 200, "an honest client needs one retry and no waiting");
}

/// Needs the Redis that `./test` starts.
fn redis_config(dir: &std::path::Path, url: &str) -> String {
    let file = dir.join("redis-url");
    std::fs::write(&file, url).expect("writes");
    format!(
        "trust_domain = \"example.org\"\n[replay]\nstore = \"redis\"\nredis_url_file = {:?}\n",
        file.display().to_string()
    )
    .replace("trust_domain = \"example.org\"\n", "")
}

/// A private Redis, killed when dropped.
struct Redis {
    child: std::process::Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Redis {
    fn start() -> Option<Self> {
        // Only where `./test` has said that a Redis can be had.
        crate::world::provided("POPGATE_TEST_REDIS_URL", "replay with a Redis that goes away")?;
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("bound").port();
        let dir = tempfile::tempdir().expect("tempdir");
        let mut redis = Self { child: Self::spawn(port, dir.path()), port, dir };
        redis.until_up();
        Some(redis)
    }

    fn spawn(port: u16, dir: &std::path::Path) -> std::process::Child {
        let port = port.to_string();
        let args = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        std::process::Command::new("redis-server")
            .args(args)
            .arg("--dir")
            .arg(dir)
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("redis-server runs")
    }

    fn until_up(&mut self) {
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            std::thread::yield_now();
        }
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn start_again(&mut self) {
        self.child = Self::spawn(self.port, self.dir.path());
        self.until_up();
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_away_closes_the_gate_and_a_flush_or_restart_lets_no_spent_proof_pass() {
    let Some(mut redis) = Redis::start() else { return };
    let extra = redis_config(redis.dir.path(), &redis.url());
    let service = Service::start_with(&extra).await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs/r1");
    assert_eq!(solver.get(&url).await.status, 200);
    let token = solver.token(&url).await;
    let authorization = format!("DPoP {}", token.expose());
    for (name, breaking) in [("flushed", true), ("restarted without its data", false)] {
        let proof = solver.session.prove("GET", &url, Some(&token));
        let first = send(&solver, &url, &authorization, &proof).await;
        let spent = if first.status == 401 { solver.session.prove("GET", &url, Some(&token)) } else { proof };
        if first.status == 401 {
            assert_eq!(send(&solver, &url, &authorization, &spent).await.status, 200, "{name}");
        }
        let passed = service.upstream.count();
        if breaking {
            let client = redis::Client::open(redis.url()).expect("url");
            let mut connection = client.get_multiplexed_async_connection().await.expect("connects");
            let _: () = redis::cmd("FLUSHALL").query_async(&mut connection).await.expect("flushes");
        } else {
            redis.stop();
            let away = send(&solver, &url, &authorization, &solver.session.prove("GET", &url, Some(&token))).await;
            assert_eq!((away.status, away.header("retry-after")), (503, "1"), "closed, not open");
            assert_eq!(crate::world::plain_get(&format!("{}/readyz", service.addresses["telemetry"])).await.0, 503);
            let target = solver.session.target(&url).await.expect("known");
            assert_eq!(
                solver.session.mint(&target, None).await.err().and_then(|e| e.status()),
                Some(503),
                "nothing is minted either"
            );
            redis.start_again();
            while send(&solver, &url, &authorization, &spent).await.status == 503 {
                tokio::task::yield_now().await;
            }
        }
        let again = send(&solver, &url, &authorization, &spent).await;
        assert_eq!((again.status, again.error()), (401, "use_dpop_nonce"), "{name}");
        assert_eq!(service.upstream.count(), passed, "{name}");
        assert_eq!(solver.get(&url).await.status, 200, "{name}: honest clients go on");
    }
    let status = service.admin(Method::GET, "/v1/status", None).await.expect("status");
    assert_eq!(status["replay_store"], "redis");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicting_redis_is_refused_at_start() {
    let Some(redis) = Redis::start() else { return };
    let client = redis::Client::open(redis.url()).expect("url");
    let mut connection = client.get_multiplexed_async_connection().await.expect("connects");
    let _: () = redis::cmd("CONFIG")
        .arg("SET")
        .arg("maxmemory-policy")
        .arg("allkeys-lru")
        .query_async(&mut connection)
        .await
        .expect("sets");
    let dir = tempfile::tempdir().expect("tempdir");
    let config = dir.path().join("popgate.toml");
    let listen: String = ["identity", "token", "gateway", "console", "telemetry"]
        .map(|s| format!("[{s}]\nlisten = \"127.0.0.1:0\"\n"))
        .concat();
    std::fs::write(&config, format!("{}{listen}", redis_config(dir.path(), &redis.url()))).expect("writes");
    let output = crate::world::run(&["serve", "--config", config.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(crate::world::stderr(&output).contains("noeviction"), "{}", crate::world::stderr(&output));
}

/// Three processes, one Redis, one nonce key: of twenty copies of one token request exactly one is answered with a token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_p9_of_twenty_copies_over_three_replicas_one_passes_and_a_nonce_of_one_is_good_on_all() {
    let Some(redis) = Redis::start() else { return };
    let dir = tempfile::tempdir().expect("tempdir");
    let key = dir.path().join("nonce.key");
    std::fs::write(&key, "5a".repeat(32)).expect("writes");
    let extra = format!(
        "{}replicas = 3\nnonce_key_file = {:?}\n",
        redis_config(dir.path(), &redis.url()),
        key.display().to_string()
    );
    let issuer = "https://token.example.org";
    let mut first = Service::start_domain("example.org", &extra, &format!("@tokenissuer = \"{issuer}\"\n"), &[]).await;
    first.admin(Method::POST, "/v1/import", Some(registrations())).await.expect("imports");
    let identity = first.enrol(SOLVER).await;
    first.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(first.wait(), Some(0));
    let replicas: Arc<Vec<Service>> = Arc::new((0..3).map(|_| first.replica()).collect());
    let ask = |nonce: Option<&str>| {
        let mut proof = HandMade::new(key_of(&identity), "POST", &format!("{issuer}/token"), None);
        if let Some(nonce) = nonce {
            proof.payload["nonce"] = nonce.into();
        }
        let mut ask = Asking::new(&replicas[0], SOLVER);
        ask.unset("resource");
        ask.proofs = 0;
        ask.headers.push(("dpop", proof.sign()));
        ask
    };
    let challenged = ask(None).once(&replicas[0], &identity, None).await;
    assert_eq!(challenged.error(), "use_dpop_nonce", "{}", challenged.text);
    let nonce = challenged.headers["dpop-nonce"].to_str().expect("text").to_owned();
    let copy = Arc::new(ask(Some(&nonce)));
    let racers: Vec<_> = (0..20)
        .map(|i| {
            let (replicas, copy, identity) = (replicas.clone(), copy.clone(), identity.clone());
            tokio::spawn(async move { copy.once(&replicas[i % 3], &identity, None).await })
        })
        .collect();
    let mut passed = 0;
    for racer in racers {
        let told = racer.await.expect("ends");
        match told.status {
            200 => passed += 1,
            _ => assert_eq!((told.status, told.error()), (400, "invalid_dpop_proof"), "{}", told.text),
        }
    }
    assert_eq!(passed, 1);
    for replica in replicas.iter() {
        assert_eq!(ask(Some(&nonce)).once(replica, &identity, None).await.status, 200, "a nonce of another replica");
    }
}
