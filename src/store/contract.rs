//! One suite for every implementation of a trait.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::proof::{Epoch, ProofId, Role};
use crate::domain::time::{Clock, Timestamp};
use crate::store::clock::SystemClock;
use crate::store::replay::{MemoryReplayGuard, ReplayGuard, Spend};

fn id(key: u8, jti: &str) -> ProofId {
    ProofId::new(Role::Gateway, Jkt([key; 32]), jti)
}

fn soon() -> Timestamp {
    SystemClock.now().plus(Duration::from_mins(1))
}

/// What every replay guard promises.
async fn replay_contract(guard: Arc<dyn ReplayGuard>) {
    let epoch = guard.epoch().await.expect("answers");
    let spend = |proof: ProofId| {
        let guard = guard.clone();
        async move { guard.spend(&proof, soon(), &epoch).await.expect("answers") }
    };
    assert_eq!(spend(id(1, "a")).await, Spend::First);
    assert_eq!(spend(id(1, "a")).await, Spend::Replay, "the same proof");
    assert_eq!(spend(id(2, "a")).await, Spend::First, "another key's proof with the same jti");
    assert_eq!(spend(id(1, "b")).await, Spend::First, "another proof of the same key");
    let racing: Vec<_> = (0..64).map(|_| tokio::spawn(spend(id(3, "race")))).collect();
    let mut first = 0;
    for attempt in racing {
        first += u32::from(attempt.await.expect("runs") == Spend::First);
    }
    assert_eq!(first, 1, "of 64 at once exactly one");
    let older = Epoch { id: [0; 8], since: Timestamp::ZERO };
    assert_eq!(
        guard.spend(&id(1, "c"), soon(), &older).await.expect("answers"),
        Spend::Broken,
        "judged in another epoch"
    );
    guard.ping().await.expect("answers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_keeps_the_replay_contract() {
    replay_contract(Arc::new(MemoryReplayGuard::new(Arc::new(SystemClock), 1 << 16))).await;
}

/// Needs the Redis that `./test` starts; `cargo test` alone tells that this group is left to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_keeps_the_replay_contract_and_notices_a_flush() {
    use crate::domain::spiffe_id::TrustDomain;
    use crate::store::redis::RedisReplayGuard;
    let Ok(url) = std::env::var("POPGATE_TEST_REDIS_URL") else {
        use std::io::Write as _;
        // Where no test harness swallows it.
        let _ = writeln!(std::io::stderr(), "left out: the replay contract on Redis; `./test` runs it");
        return;
    };
    let domain = TrustDomain::parse(&format!("t{}.example", crate::store::entropy::random_id())).expect("legal");
    let guard: Arc<dyn ReplayGuard> = Arc::new(RedisReplayGuard::connect(&url, &domain).await.expect("connects"));
    let replica: Arc<dyn ReplayGuard> = Arc::new(RedisReplayGuard::connect(&url, &domain).await.expect("connects"));
    replay_contract(guard.clone()).await;
    let epoch = guard.epoch().await.expect("answers");
    assert_eq!(replica.epoch().await.expect("answers"), epoch, "replicas share the epoch");
    assert_eq!(
        replica.spend(&id(1, "a"), soon(), &epoch).await.expect("answers"),
        Spend::Replay,
        "spent on the other replica"
    );
    let client = redis::Client::open(url).expect("url");
    let mut connection = client.get_multiplexed_async_connection().await.expect("connects");
    let _: () = redis::cmd("DEL")
        .arg(format!("{{popgate:{domain}}}:epoch"))
        .query_async(&mut connection)
        .await
        .expect("deletes");
    assert_eq!(
        guard.spend(&id(1, "after"), soon(), &epoch).await.expect("answers"),
        Spend::Broken,
        "the memory was lost"
    );
    assert_ne!(guard.epoch().await.expect("answers").id, epoch.id, "a new epoch has begun");
}

struct TestClock(std::sync::atomic::AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix(self.0.load(std::sync::atomic::Ordering::SeqCst))
    }
}

#[tokio::test]
async fn memory_refuses_when_full_and_recovers_when_claims_end() {
    let clock = Arc::new(TestClock(1_000_000.into()));
    let guard = MemoryReplayGuard::new(clock.clone(), 64);
    let epoch = guard.epoch().await.expect("answers");
    let until = Timestamp::from_unix(1_000_060);
    let mut refused = 0;
    for n in 0..200_u32 {
        let proof = ProofId { digest: Sha256::of(&n.to_be_bytes()), jkt: Jkt(Sha256::of(&n.to_le_bytes()).0) };
        refused += u32::from(guard.spend(&proof, until, &epoch).await.is_err());
    }
    assert!(refused > 100, "64 places for 200 live claims");
    clock.0.store(1_000_200, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(
        guard.spend(&id(9, "later"), Timestamp::from_unix(1_000_260), &epoch).await.expect("room"),
        Spend::First
    );
}

#[tokio::test]
async fn no_key_holds_more_than_its_share() {
    let guard = MemoryReplayGuard::new(Arc::new(SystemClock), 64 * 10);
    let epoch = guard.epoch().await.expect("answers");
    let mut taken = 0;
    for n in 0..64 {
        taken += u32::from(guard.spend(&id(1, &n.to_string()), soon(), &epoch).await.is_ok());
    }
    assert!(taken <= 10, "{taken}");
    assert_eq!(guard.spend(&id(2, "x"), soon(), &epoch).await.expect("another key has room"), Spend::First);
}

#[tokio::test]
async fn a_clock_that_steps_back_breaks_the_store() {
    let clock = Arc::new(TestClock(1_000_000.into()));
    let guard = MemoryReplayGuard::new(clock.clone(), 1024);
    let epoch = guard.epoch().await.expect("answers");
    clock.0.store(999_000, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(guard.spend(&id(1, "a"), Timestamp::from_unix(999_060), &epoch).await.expect("answers"), Spend::Broken);
}
