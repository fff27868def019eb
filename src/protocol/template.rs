//! Path templates: literal segments, `{name}` for one segment, `**` at the end for zero or more.

use std::collections::BTreeMap;

/// Why a template is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TemplateError {
    #[error("a path template begins with a slash")]
    NoSlash,
    #[error("`**` stands only as the last segment")]
    Rest,
    #[error("a parameter is a whole segment, `{{name}}`, of letters, digits and `_`, and occurs once")]
    Parameter,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Segment {
    Literal(String),
    Parameter(String),
    Rest,
}

/// A parsed template.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Template {
    segments: Vec<Segment>,
}

impl Template {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let body = text.strip_prefix('/').ok_or(TemplateError::NoSlash)?;
        let segments: Vec<Segment> = body.split('/').map(segment).collect::<Result<_, _>>()?;
        let rest = segments.iter().position(|s| *s == Segment::Rest);
        if rest.is_some_and(|at| at + 1 != segments.len()) {
            return Err(TemplateError::Rest);
        }
        let template = Self { segments };
        let mut names: Vec<_> = template.parameters().collect();
        names.sort_unstable();
        names.dedup();
        if names.len() != template.parameters().count() {
            return Err(TemplateError::Parameter);
        }
        Ok(template)
    }

    /// The names of its parameters, in order.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|s| match s {
            Segment::Parameter(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// The parameters' values if `path` fits.
    pub fn matches(&self, path: &str) -> Option<BTreeMap<String, String>> {
        let mut found = BTreeMap::new();
        let mut parts = path.strip_prefix('/')?.split('/');
        for segment in &self.segments {
            match segment {
                Segment::Rest => return Some(found),
                Segment::Literal(text) => (parts.next()? == text).then_some(())?,
                Segment::Parameter(name) => {
                    let value = parts.next().filter(|v| !v.is_empty())?;
                    found.insert(name.clone(), value.to_owned());
                }
            }
        }
        parts.next().is_none().then_some(found)
    }

    /// Whether each path that `other` matches is matched by this one, too.
    pub fn covers(&self, other: &Self) -> bool {
        let mut theirs = other.segments.iter();
        for ours in &self.segments {
            match (ours, theirs.next()) {
                (Segment::Rest, _) => return true,
                (Segment::Parameter(_), Some(Segment::Parameter(_) | Segment::Literal(_))) => {}
                (Segment::Literal(a), Some(Segment::Literal(b))) if a == b => {}
                _ => return false,
            }
        }
        theirs.next().is_none()
    }

    /// Whether some path is matched by both.
    pub fn meets(&self, other: &Self) -> bool {
        let (mut ours, mut theirs) = (self.segments.iter(), other.segments.iter());
        loop {
            match (ours.next(), theirs.next()) {
                (Some(Segment::Rest), _) | (_, Some(Segment::Rest)) | (None, None) => return true,
                (Some(Segment::Literal(a)), Some(Segment::Literal(b))) if a != b => return false,
                // A parameter is never empty.
                (Some(Segment::Literal(text)), Some(Segment::Parameter(_)))
                | (Some(Segment::Parameter(_)), Some(Segment::Literal(text)))
                    if text.is_empty() =>
                {
                    return false;
                }
                (Some(_), Some(_)) => {}
                _ => return false,
            }
        }
    }

    /// Whether two templates match the same paths, whatever their parameters are called.
    pub fn same_paths(&self, other: &Self) -> bool {
        let alike =
            |(a, b): (&Segment, &Segment)| a == b || matches!((a, b), (Segment::Parameter(_), Segment::Parameter(_)));
        self.segments.len() == other.segments.len() && self.segments.iter().zip(&other.segments).all(alike)
    }

    /// How specific it is: literal segments first, then length. Equal values at one path are a tie.
    pub fn rank(&self) -> (usize, usize, bool) {
        let literals = self.segments.iter().filter(|s| matches!(s, Segment::Literal(_))).count();
        let open = self.segments.last() == Some(&Segment::Rest);
        (literals, self.segments.len() - usize::from(open), !open)
    }

    /// Fills parameters in; a name without a value stays as written, which configuration checks exclude.
    pub fn fill(&self, values: &BTreeMap<String, String>) -> String {
        let mut out = String::new();
        for segment in &self.segments {
            out.push('/');
            match segment {
                Segment::Literal(text) => out.push_str(text),
                Segment::Parameter(name) => out.push_str(values.get(name).map_or("", String::as_str)),
                Segment::Rest => out.push_str("**"),
            }
        }
        out
    }
}

fn segment(text: &str) -> Result<Segment, TemplateError> {
    if text == "**" {
        return Ok(Segment::Rest);
    }
    if let Some(name) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
        let legal = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        return legal.then(|| Segment::Parameter(name.to_owned())).ok_or(TemplateError::Parameter);
    }
    if text.contains(['{', '}', '*']) {
        return Err(TemplateError::Parameter);
    }
    Ok(Segment::Literal(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hit(template: &str, path: &str) -> Option<String> {
        let found = Template::parse(template).expect(template).matches(path)?;
        Some(found.into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(","))
    }

    #[test]
    fn templates_match_whole_segments() {
        assert_eq!(hit("/v1/runs/{run}/nodes/{node}", "/v1/runs/r1/nodes/n7").as_deref(), Some("node=n7,run=r1"));
        assert_eq!(hit("/v1/**", "/v1").as_deref(), Some(""));
        assert_eq!(hit("/v1/**", "/v1/a/b").as_deref(), Some(""));
        for (template, path) in
            [("/v1/**", "/v10"), ("/a/{b}", "/a/"), ("/a/{b}", "/a"), ("/a", "/a/"), ("/a/{b}", "/a/b/c")]
        {
            assert_eq!(hit(template, path), None, "{template} {path}");
        }
    }

    #[test]
    fn a_wider_template_covers_a_narrower_one() {
        let covers =
            |a: &str, b: &str| Template::parse(a).expect("a template").covers(&Template::parse(b).expect("a template"));
        for (wide, narrow) in
            [("/a/**", "/a/b/**"), ("/a/**", "/a"), ("/a/{x}", "/a/b"), ("/{x}/b", "/a/b"), ("/a", "/a")]
        {
            assert!(covers(wide, narrow), "{wide} {narrow}");
        }
        for (wide, narrow) in
            [("/a/b/**", "/a/**"), ("/a/b", "/a/{x}"), ("/a/{x}", "/a/b/c"), ("/a/{x}", "/a/**"), ("/a", "/b")]
        {
            assert!(!covers(wide, narrow), "{wide} {narrow}");
        }
    }

    fn template() -> impl Strategy<Value = String> {
        let segment = prop_oneof![Just("a"), Just("b"), Just(""), Just("{x}"), Just("{y}")];
        let ends = prop_oneof![Just(""), Just("/**")];
        (proptest::collection::vec(segment, 0..4), ends).prop_filter_map("no template", |(segments, end)| {
            let text = format!("/{}{end}", segments.join("/")).replace("//**", "/**");
            Template::parse(&text).is_ok().then_some(text)
        })
    }

    proptest! {
        #[test]
        fn two_meet_where_some_path_is_matched_by_both(one in template(), other in template()) {
            let (a, b) = (Template::parse(&one).expect("a template"), Template::parse(&other).expect("a template"));
            let parts = ["a", "b", ""];
            // Every path of up to five segments of these; a parameter takes any that is not empty.
            let mut paths = vec![String::new()];
            let mut longest = paths.clone();
            for _ in 0..5 {
                longest = longest.iter().flat_map(|p| parts.iter().map(move |s| format!("{p}/{s}"))).collect();
                paths.extend(longest.clone());
            }
            let both = paths.iter().any(|p| a.matches(p).is_some() && b.matches(p).is_some());
            prop_assert_eq!(a.meets(&b), both, "{} {}", one, other);
            prop_assert_eq!(b.meets(&a), both);
        }
    }

    #[test]
    fn malformed_templates_are_refused() {
        for bad in ["v1", "/**/a", "/{}", "/{a}b", "/a*", "/{a}/{a}", "/{a b}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }
}
