//! The key of nonces: one for all replicas.

use std::sync::Arc;

use crate::app::StartError;
use crate::config::{Config, ConfigError};
use crate::net::files;
use crate::protocol::htu::Origin;
use crate::protocol::nonce::NonceKey;
use crate::store::entropy;

/// The key that the configuration names, or one of the data directory's own, made at the first start.
pub fn key(config: &Config, issuer: &str) -> Result<Arc<NonceKey>, StartError> {
    let shared = config.replay.nonce_key_file.as_ref().map(|f| config.base.join(f));
    let file = shared.clone().unwrap_or_else(|| config.data_dir.join("keys/nonce.key"));
    if shared.is_none() && !file.exists() {
        files::write_private(&file, hex::encode(entropy::random::<32>()).as_bytes())?;
    }
    let text = files::read_secret(&file)?;
    let mut bytes = zeroize::Zeroizing::new([0; 32]);
    hex::decode_to_slice(text.trim(), bytes.as_mut_slice()).map_err(|_| {
        let what = "does not hold 32 bytes in hex; `openssl rand -hex 32` makes them";
        ConfigError::Value(format!("{} {what}", file.display()))
    })?;
    Ok(Arc::new(NonceKey::new(&bytes, one_origin(config, issuer))))
}

/// Whether clients know the issuer and a gateway by one origin, to which they give one nonce.
fn one_origin(config: &Config, issuer: &str) -> bool {
    let of = |url: &str| Origin::parse(url).ok().map(|o| o.as_str().to_owned());
    let authority = issuer.splitn(4, '/').take(3).collect::<Vec<_>>().join("/");
    let issuer = of(&authority);
    issuer.is_some() && config.gateway.origins.iter().any(|o| of(o) == issuer)
}
