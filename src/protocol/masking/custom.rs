//! Detectors that an operator writes: regular expressions, in linear time, and names from a list.

use regex_automata::meta::Regex;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input};

/// Longest value of such a detector, in bytes of the folded text. What a longer one would match is cut here.
pub const LONGEST: usize = 256;

/// Why a pattern is refused.
#[derive(Debug, thiserror::Error)]
pub enum PatternError {
    #[error("{0}")]
    Syntax(String),
    #[error("it can match nothing at all, and so would match everywhere")]
    Empty,
    #[error(
        "anchors and word boundaries see what a stream has not brought yet: leave them out (whole words are matched by themselves)"
    )]
    LooksAround,
}

/// What such a detector says of a position.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found {
    /// Nothing begins here.
    Nothing,
    /// More bytes would tell.
    Undecided,
    /// A value of this length.
    Value(usize),
}

/// One detector.
#[derive(Clone, Debug)]
pub struct Custom {
    /// What its values are called.
    pub name: String,
    regex: Regex,
}

impl Custom {
    /// A regular expression, of RE2's kind.
    pub fn pattern(name: &str, pattern: &str) -> Result<Self, PatternError> {
        Self::made(name, pattern, false)
    }

    /// Names, whatever their case.
    pub fn list(name: &str, names: &[String]) -> Result<Self, PatternError> {
        let mut names: Vec<String> =
            names.iter().map(|n| n.trim()).filter(|n| !n.is_empty()).map(regex_syntax::escape).collect();
        // The longest of several that begin alike.
        names.sort_by_key(|n| std::cmp::Reverse(n.len()));
        if names.is_empty() {
            return Err(PatternError::Empty);
        }
        Self::made(name, &names.join("|").replace("\\ ", " ").replace(' ', "[ \\-]"), true)
    }

    fn made(name: &str, pattern: &str, any_case: bool) -> Result<Self, PatternError> {
        let syntax_error = |e: String| PatternError::Syntax(e);
        let hir = regex_syntax::ParserBuilder::new()
            .utf8(false)
            .case_insensitive(any_case)
            .build()
            .parse(pattern)
            .map_err(|e| syntax_error(e.to_string()))?;
        if !hir.properties().look_set().is_empty() {
            return Err(PatternError::LooksAround);
        }
        if hir.properties().minimum_len().is_none_or(|n| n == 0) {
            return Err(PatternError::Empty);
        }
        let regex = Regex::builder()
            .syntax(syntax::Config::new().utf8(false).case_insensitive(any_case))
            .configure(Regex::config().nfa_size_limit(Some(1 << 20)).utf8_empty(false))
            .build(pattern)
            .map_err(|e| syntax_error(e.to_string()))?;
        Ok(Self { name: name.to_owned(), regex })
    }

    /// What stands at `i`. Only whole words count, and only the next [`LONGEST`] bytes.
    pub fn at(&self, text: &[u8], i: usize, whole: bool) -> Found {
        if text.len() - i <= LONGEST && !whole {
            return Found::Undecided;
        }
        let window = &text[..text.len().min(i + LONGEST)];
        let found = self.regex.find(Input::new(window).range(i..).anchored(Anchored::Yes));
        let word = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_' || !b.is_ascii());
        let end = found.map(|m| m.end()).filter(|end| !(word(text.get(*end)) && word(text.get(*end - 1))));
        end.map_or(Found::Nothing, |end| Found::Value(end - i))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_are_found_and_more_is_waited_for() {
        let staff = Custom::pattern("staff", "E-[0-9]{3,6}").expect("a pattern");
        assert_eq!(staff.at(b"E-1234 x", 0, true), Found::Value(6));
        assert_eq!(staff.at(b"E-1234x", 0, true), Found::Nothing, "it is part of a longer word");
        assert_eq!(staff.at(b"E-1234 x", 0, false), Found::Undecided);
        assert_eq!(staff.at(&[&b"E-1234"[..], &[b' '; 300]].concat(), 0, false), Found::Value(6));
        let names = Custom::list("name", &["Ada".into(), "Ada Lovelace".into(), "J. Doe".into()]).expect("names");
        assert_eq!(names.at(b"ADA LOVELACE!", 0, true), Found::Value(12));
        assert_eq!(names.at(b"Ada-Lovelace", 0, true), Found::Value(12));
        assert_eq!(names.at(b"Adam", 0, true), Found::Nothing);
        assert_eq!(names.at(b"JX Doe", 0, true), Found::Nothing, "a dot is a dot");
    }

    #[test]
    fn patterns_that_cannot_stream_are_refused() {
        for bad in ["^a", "a$", r"\ba", "a*", "", "(", "a{1000000}"] {
            assert!(Custom::pattern("x", bad).is_err(), "{bad}");
        }
    }
}
