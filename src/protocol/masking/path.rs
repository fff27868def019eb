//! The part of JSONPath (RFC 9535) that a stream can follow: names without case, indices, `*`, `..`.

/// One step from the root to a value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// A member of an object.
    Name(String),
    /// An item of an array.
    Index(usize),
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Selector {
    Name(String),
    Index(usize),
    Any,
    Descend,
}

/// Why a path is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not a path of names, indices, `*` and `..`, beginning with `$` (RFC 9535)")]
pub struct PathError(String);

/// A parsed path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FieldPath {
    selectors: Vec<Selector>,
}

impl FieldPath {
    /// Reads `$.context.customer.name`, `$.choices[*].delta.content`, `$..email`.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        let refuse = || PathError(text.to_owned());
        let mut rest = text.strip_prefix('$').ok_or_else(refuse)?;
        let mut selectors = Vec::new();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix("..") {
                selectors.push(Selector::Descend);
                rest = after;
                if !rest.starts_with('[') {
                    rest = take_name(rest, &mut selectors).ok_or_else(refuse)?;
                }
            } else if let Some(after) = rest.strip_prefix('.') {
                rest = take_name(after, &mut selectors).ok_or_else(refuse)?;
            } else {
                rest = take_bracket(rest, &mut selectors).ok_or_else(refuse)?;
            }
        }
        let ends = matches!(selectors.last(), Some(Selector::Descend) | None);
        if ends { Err(refuse()) } else { Ok(Self { selectors }) }
    }

    /// Whether it names members by their own name, and no items and no members of any name.
    pub fn ends_with_name(&self) -> bool {
        matches!(self.selectors.last(), Some(Selector::Name(_)))
    }

    /// Whether a member of this name, in ASCII or another script, may be named by the path.
    pub fn may_end_with(&self, name: &[u8]) -> bool {
        match self.selectors.last() {
            Some(Selector::Name(want)) if name.is_ascii() => want.as_bytes().eq_ignore_ascii_case(name),
            _ => true,
        }
    }

    /// Whether the value at `steps` is named by the path.
    pub fn matches(&self, steps: &[Step]) -> bool {
        fits(&self.selectors, steps)
    }
}

fn fits(selectors: &[Selector], steps: &[Step]) -> bool {
    match (selectors.split_first(), steps.split_first()) {
        (None, None) => true,
        (Some((Selector::Descend, rest)), _) => (0..=steps.len()).any(|skip| fits(rest, &steps[skip..])),
        (Some((selector, rest)), Some((step, further))) => selects(selector, step) && fits(rest, further),
        _ => false,
    }
}

fn selects(selector: &Selector, step: &Step) -> bool {
    match (selector, step) {
        (Selector::Any, _) => true,
        (Selector::Name(want), Step::Name(name)) => *want == name.to_lowercase(),
        (Selector::Index(want), Step::Index(index)) => want == index,
        _ => false,
    }
}

fn take_name<'a>(rest: &'a str, selectors: &mut Vec<Selector>) -> Option<&'a str> {
    let end = rest.find(['.', '[']).unwrap_or(rest.len());
    let (name, after) = rest.split_at(end);
    match name {
        "" => return None,
        "*" => selectors.push(Selector::Any),
        plain if plain.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-') => {
            selectors.push(Selector::Name(plain.to_lowercase()));
        }
        _ => return None,
    }
    Some(after)
}

fn take_bracket<'a>(rest: &'a str, selectors: &mut Vec<Selector>) -> Option<&'a str> {
    let inner = rest.strip_prefix('[')?;
    if let Some(quote) = inner.chars().next().filter(|c| *c == '\'' || *c == '"') {
        let (name, after) = inner[1..].split_once(quote)?;
        selectors.push(Selector::Name(name.to_lowercase()));
        return after.strip_prefix(']');
    }
    let (text, after) = inner.split_once(']')?;
    selectors.push(match text {
        "*" => Selector::Any,
        digits => Selector::Index(digits.parse().ok()?),
    });
    Some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(text: &str) -> Vec<Step> {
        text.split('/').map(|s| s.parse().map_or_else(|_| Step::Name(s.into()), Step::Index)).collect()
    }

    #[test]
    fn paths_select_what_rfc_9535_says() {
        for (path, value, want) in [
            ("$.a.b", "a/b", true),
            ("$.a.b", "A/B", true),
            ("$.a.b", "a/b/c", false),
            ("$.a[*].b", "a/3/b", true),
            ("$.a[2]", "a/2", true),
            ("$.a[2]", "a/1", false),
            ("$..email", "x/0/email", true),
            ("$..email", "email", true),
            ("$['odd name']", "odd name", true),
            ("$.*", "a", true),
        ] {
            assert_eq!(FieldPath::parse(path).expect(path).matches(&steps(value)), want, "{path} {value}");
        }
    }

    #[test]
    fn other_selectors_are_refused() {
        for bad in ["a", "$", "$.", "$..", "$[-1]", "$[1:2]", "$[?@.a]", "$.a b", "$[1", "$['a"] {
            assert!(FieldPath::parse(bad).is_err(), "{bad}");
        }
    }
}
