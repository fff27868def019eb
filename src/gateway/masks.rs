//! `[mask.NAME]`, checked.

use std::path::Path;
use std::sync::Arc;

use strum::VariantNames as _;

use crate::gateway::config::{MaskConfig, MaskFieldConfig};
use crate::gateway::routes::RuleError;
use crate::net::files;
use crate::protocol::masking::custom::Custom;
use crate::protocol::masking::path::FieldPath;
use crate::protocol::masking::{EntityKind, FieldAction, FieldRule, MaskRules, Strategy};

/// Longest end that `keep-last` shows.
const MOST_KEPT: usize = 8;
/// Shortest key of tokens, in bytes.
const SHORTEST_KEY: usize = 16;

/// Checks one mask; the text names the key and what it may be.
pub fn checked(name: &str, config: &MaskConfig, base: &Path) -> Result<Arc<MaskRules>, RuleError> {
    read(config, base).map(Arc::new).map_err(|what| RuleError::Mask { mask: name.to_owned(), what })
}

fn read(config: &MaskConfig, base: &Path) -> Result<MaskRules, String> {
    let strategy = match config.strategy.as_str() {
        "redact" => Strategy::Redact,
        "keep-last" => Strategy::KeepLast(config.keep.min(MOST_KEPT)),
        "token" => Strategy::Token,
        "format" => Strategy::Format,
        "block" => Strategy::Block,
        other => return Err(format!("strategy {other:?} is not one of: redact, keep-last, token, format, block")),
    };
    let path = |text: &str| FieldPath::parse(text).map_err(|e| e.to_string());
    let fields = config.fields.iter().map(|f| field(f).map_err(|e| format!("field {}: {e}", f.path)));
    let fields = fields.collect::<Result<Vec<_>, _>>()?;
    let keyed =
        matches!(strategy, Strategy::Token | Strategy::Format) || fields.iter().any(|f| f.action == FieldAction::Token);
    let delta: Vec<&str> = match &config.delta {
        Some(paths) => paths.iter().map(String::as_str).collect(),
        None => MaskRules::OPENAI_DELTA.to_vec(),
    };
    let mut custom = Vec::new();
    for (name, pattern) in &config.patterns {
        custom.push(Custom::pattern(name, pattern).map_err(|e| format!("patterns.{name}: {e}"))?);
    }
    if !config.names.is_empty() {
        custom.push(Custom::list("name", &config.names).map_err(|e| format!("names: {e}"))?);
    }
    Ok(MaskRules {
        detectors: config.detectors.iter().map(|d| detector(d)).collect::<Result<_, _>>()?,
        strategy,
        fields,
        delta: delta.into_iter().map(path).collect::<Result<_, _>>()?,
        exact: Vec::new(),
        custom,
        key: key(config, keyed, base)?,
        headers: config.headers.iter().map(|h| h.to_ascii_lowercase()).collect(),
        allow: config.allow.iter().map(|t| t.to_ascii_lowercase()).collect(),
        requests: config.mask_request,
    })
}

fn detector(name: &str) -> Result<EntityKind, String> {
    let kind = name.parse::<EntityKind>().ok().filter(|k| *k != EntityKind::Credential);
    kind.ok_or_else(|| {
        let offered = EntityKind::VARIANTS.iter().filter(|v| **v != "credential").copied().collect::<Vec<_>>();
        format!("detector {name:?} is not one of: {}", offered.join(", "))
    })
}

fn field(config: &MaskFieldConfig) -> Result<FieldRule, String> {
    let action = match config.strategy.as_str() {
        "redact" => FieldAction::Redact,
        "token" => FieldAction::Token,
        "base64" => FieldAction::Base64,
        "drop" => FieldAction::Drop,
        "block" => FieldAction::Block,
        other => return Err(format!("strategy {other:?} is not one of: redact, token, base64, drop, block")),
    };
    Ok(FieldRule { path: FieldPath::parse(&config.path).map_err(|e| e.to_string())?, action })
}

fn key(config: &MaskConfig, keyed: bool, base: &Path) -> Result<Vec<u8>, String> {
    let Some(file) = &config.key_file else {
        return if keyed {
            Err("tokens need key_file, a file of its own with random text: without a key anybody could try values against them".into())
        } else {
            Ok(Vec::new())
        };
    };
    let key = files::read_secret(&base.join(file)).map_err(|e| format!("key_file: {e}"))?;
    if key.len() < SHORTEST_KEY {
        return Err(format!("key_file: {} holds fewer than {SHORTEST_KEY} bytes", file.display()));
    }
    Ok(key.as_bytes().to_vec())
}
