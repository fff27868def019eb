//! Templates of SPIFFE IDs: `spiffe://example.org/ci/{github:repository}` stands for one ID a repository.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::domain::people::Entry;
use crate::domain::selector::Selector;
use crate::domain::spiffe_id::{SpiffeId, SpiffeIdError};

/// A registration entry for many workloads: each that attests with its selectors gets an entry of its own.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct EntryTemplate {
    /// The ID with its fields.
    pub spiffe_id: IdTemplate,
    /// What each entry gets; its own SPIFFE ID is a placeholder.
    pub prototype: Entry,
}

/// A SPIFFE ID of which some segments are fields.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IdTemplate(String);

/// Why a template, or a value for it, is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IdTemplateError {
    #[error("a field is a whole segment, {{TYPE:NAME}}, as in spiffe://example.org/ci/{{github:repository}}")]
    Field,
    #[error("{{{0}}} has no value: attestation found no selector {0}:…")]
    Missing(String),
    #[error("{{{0}}} has more than one value")]
    Ambiguous(String),
    #[error("the value of {{{0}}} has a slash, which only the last segment takes")]
    Slash(String),
    #[error("with its values it is no SPIFFE ID: {0}")]
    Id(#[from] SpiffeIdError),
}

impl IdTemplate {
    /// Whether a text has fields.
    pub fn is_template(text: &str) -> bool {
        text.contains(['{', '}'])
    }

    /// Reads a template; what stands around its fields must make a SPIFFE ID.
    pub fn parse(text: &str) -> Result<Self, IdTemplateError> {
        let template = Self(text.to_owned());
        let sample: Vec<&str> = text.split('/').map(|s| if field(s).is_some() { "x" } else { s }).collect();
        if !text.split('/').any(|s| field(s).is_some()) || sample.iter().any(|s| s.contains(['{', '}'])) {
            return Err(IdTemplateError::Field);
        }
        sample.join("/").parse::<SpiffeId>()?;
        Ok(template)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The ID that it makes of what attestation found.
    pub fn expand(&self, found: &BTreeSet<Selector>) -> Result<SpiffeId, IdTemplateError> {
        let segments: Vec<&str> = self.0.split('/').collect();
        let mut made = Vec::new();
        for (i, segment) in segments.iter().enumerate() {
            let Some(name) = field(segment) else {
                made.push(*segment);
                continue;
            };
            let mut values = found.iter().filter_map(|s| s.value_of(name));
            let value = values.next().ok_or_else(|| IdTemplateError::Missing(name.into()))?;
            if values.next().is_some() {
                return Err(IdTemplateError::Ambiguous(name.into()));
            }
            // Two values with slashes side by side could make the ID of another pair.
            if value.contains('/') && i + 1 != segments.len() {
                return Err(IdTemplateError::Slash(name.into()));
            }
            made.push(value);
        }
        Ok(made.join("/").parse()?)
    }
}

fn field(segment: &str) -> Option<&str> {
    let name = segment.strip_prefix('{')?.strip_suffix('}')?;
    let sound = name.contains(':') && !name.contains(['{', '}']) && name.split(':').all(|p| !p.is_empty());
    sound.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(texts: &[&str]) -> BTreeSet<Selector> {
        texts.iter().map(|t| t.parse().expect("a selector")).collect()
    }

    #[test]
    fn a4_a_template_takes_its_fields_from_selectors() {
        let template = IdTemplate::parse("spiffe://example.org/ci/{github:environment}/{github:repository}");
        let template = template.expect("a template");
        let id = template.expand(&found(&["github:environment:prod", "github:repository:acme/site"])).expect("expands");
        assert_eq!(id.as_str(), "spiffe://example.org/ci/prod/acme/site");
        let refused = |texts: &[&str]| template.expand(&found(texts)).expect_err("refused");
        assert!(matches!(refused(&["github:repository:a"]), IdTemplateError::Missing(_)));
        assert!(matches!(refused(&["github:environment:a/b", "github:repository:a"]), IdTemplateError::Slash(_)));
        assert!(matches!(refused(&["github:environment:a b", "github:repository:a"]), IdTemplateError::Id(_)));
        assert!(matches!(refused(&["github:environment:a", "github:repository:../popgate"]), IdTemplateError::Id(_)));
        let twice = ["github:environment:a", "github:environment:b", "github:repository:a"];
        assert!(matches!(refused(&twice), IdTemplateError::Ambiguous(_)));
    }

    #[test]
    fn a4_a_field_is_a_whole_segment_of_the_path() {
        for bad in [
            "spiffe://example.org/ci/x",
            "spiffe://example.org/ci/x{github:repository}",
            "spiffe://example.org/ci/{repository}",
            "spiffe://example.org/ci/{github:repository",
            "spiffe://example.org/ci//{github:repository}",
            "ci/{github:repository}",
        ] {
            assert!(IdTemplate::parse(bad).is_err(), "{bad}");
        }
    }
}
