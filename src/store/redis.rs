//! The replay guard that replicas share: one `SET NX PX` for each claim, pipelined with a read of a sentinel.
//!
//! The sentinel names the epoch. A flush, a restart without data or a failover to an empty replica loses it, and then
//! nothing judged before counts: see [`Spend::Broken`]. No decision rests on a pushed message.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};

use crate::domain::proof::{Epoch, ProofId};
use crate::domain::spiffe_id::TrustDomain;
use crate::domain::time::Timestamp;
use crate::store::replay::{ReplayGuard, Spend};
use crate::store::{Unavailable, entropy};

const PART: &str = "the replay store (redis)";
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// Why Redis cannot be the replay store.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    #[error("the Redis URL is malformed: {0}")]
    Url(String),
    #[error("Redis does not answer: {0}; check that it runs and that the URL and password are right")]
    Connect(String),
    #[error(
        "Redis evicts keys when memory is short (maxmemory-policy {0}), which would make spent proofs good again; set it to noeviction"
    )]
    Evicts(String),
}

/// The guard over Redis.
pub struct RedisReplayGuard {
    connection: ConnectionManager,
    prefix: String,
    known: Mutex<Option<Epoch>>,
}

impl RedisReplayGuard {
    /// Connects, refuses an evicting server, and joins or begins the epoch.
    pub async fn connect(url: &str, trust_domain: &TrustDomain) -> Result<Self, RedisError> {
        let client = redis::Client::open(url).map_err(|e| RedisError::Url(e.to_string()))?;
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_connection_timeout(Some(ANSWER_WITHIN))
            .set_response_timeout(Some(ANSWER_WITHIN));
        let connect = |e: redis::RedisError| RedisError::Connect(e.to_string());
        let mut connection = ConnectionManager::new_with_config(client, config).await.map_err(connect)?;
        let info: String = redis::cmd("INFO").arg("memory").query_async(&mut connection).await.map_err(connect)?;
        let policy = info.lines().find_map(|l| l.strip_prefix("maxmemory_policy:")).unwrap_or("unknown").trim();
        if policy != "noeviction" {
            return Err(RedisError::Evicts(policy.to_owned()));
        }
        // The hash tag keeps sentinel and claims in one slot, so that one pipeline serves them in a cluster too.
        let guard = Self { connection, prefix: format!("{{popgate:{trust_domain}}}"), known: Mutex::new(None) };
        guard.join().await.map_err(|e| RedisError::Connect(e.cause))?;
        Ok(guard)
    }

    fn sentinel(&self) -> String {
        format!("{}:epoch", self.prefix)
    }

    fn known(&self) -> Option<Epoch> {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the sentinel, or plants one: the first replica to do so names the epoch, by Redis's own clock.
    async fn join(&self) -> Result<Epoch, Unavailable> {
        let away = |e: redis::RedisError| Unavailable::new(PART, e);
        let mut connection = self.connection.clone();
        let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(&mut connection).await.map_err(away)?;
        let since = Timestamp::from_millis(seconds * 1000 + micros / 1000);
        let proposed = format!("{}:{}", hex::encode(entropy::random::<8>()), since.millis());
        let (_, held): (Option<String>, String) = redis::pipe()
            .cmd("SET")
            .arg(self.sentinel())
            .arg(&proposed)
            .arg("NX")
            .cmd("GET")
            .arg(self.sentinel())
            .query_async(&mut connection)
            .await
            .map_err(away)?;
        let epoch = parse(&held).ok_or_else(|| Unavailable::new(PART, "the epoch key holds something else"))?;
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(epoch);
        Ok(epoch)
    }
}

fn parse(sentinel: &str) -> Option<Epoch> {
    let (id, since) = sentinel.split_once(':')?;
    let mut bytes = [0; 8];
    hex::decode_to_slice(id, &mut bytes).ok()?;
    Some(Epoch { id: bytes, since: Timestamp::from_millis(since.parse().ok()?) })
}

#[async_trait]
impl ReplayGuard for RedisReplayGuard {
    async fn epoch(&self) -> Result<Epoch, Unavailable> {
        match self.known() {
            Some(epoch) => Ok(epoch),
            None => self.join().await,
        }
    }

    async fn spend(&self, id: &ProofId, until: Timestamp, judged: &Epoch) -> Result<Spend, Unavailable> {
        let mut connection = self.connection.clone();
        // PXAT counts by Redis's clock; a minute more keeps a claim alive where that clock runs ahead.
        let expires = until.plus(Duration::from_mins(1)).millis();
        let (claimed, sentinel): (Option<String>, Option<String>) = redis::pipe()
            .cmd("SET")
            .arg(format!("{}:p:{}", self.prefix, id.digest))
            .arg(1)
            .arg("NX")
            .arg("PXAT")
            .arg(expires)
            .cmd("GET")
            .arg(self.sentinel())
            .query_async(&mut connection)
            .await
            .map_err(|e| Unavailable::new(PART, e))?;
        let unbroken = sentinel.as_deref().and_then(parse).is_some_and(|held| held.id == judged.id);
        if !unbroken {
            self.join().await?;
            return Ok(Spend::Broken);
        }
        Ok(if claimed.is_some() { Spend::First } else { Spend::Replay })
    }

    async fn ping(&self) -> Result<(), Unavailable> {
        let mut connection = self.connection.clone();
        let pong: Result<String, _> = redis::cmd("PING").query_async(&mut connection).await;
        pong.map(drop).map_err(|e| Unavailable::new(PART, e))
    }

    fn name(&self) -> &'static str {
        "redis"
    }
}
