//! Proposes thoughts: every a∘b of the numbers that are left, one for each sorted state.

use std::collections::BTreeMap;

use crate::tot::number::{OPERATIONS, Rational};

/// A number with the expression that made it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Term {
    /// Its value.
    pub value: Rational,
    /// How it came about.
    pub expression: String,
}

/// The numbers that are left, sorted by value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct State {
    /// The numbers.
    pub terms: Vec<Term>,
}

/// One step from a state to the next.
#[derive(Clone, Debug)]
pub struct Thought {
    /// `10 - 4 = 6 (left: 4 4 6)`.
    pub text: String,
    /// What is left after it.
    pub state: State,
}

impl State {
    /// The start of a puzzle.
    pub fn start(input: &[i64]) -> Self {
        let term = |n: &i64| Term { value: Rational::whole(*n), expression: n.to_string() };
        Self::sorted(input.iter().map(term).collect())
    }

    fn sorted(mut terms: Vec<Term>) -> Self {
        terms.sort_by(|a, b| a.value.cmp(&b.value).then_with(|| a.expression.cmp(&b.expression)));
        Self { terms }
    }

    /// The values alone: two states with equal keys are the same thought.
    pub fn key(&self) -> Vec<Rational> {
        self.terms.iter().map(|t| t.value).collect()
    }

    /// The numbers, for people.
    pub fn text(&self) -> String {
        self.terms.iter().map(|t| t.value.to_string()).collect::<Vec<_>>().join(" ")
    }
}

/// Every distinct state one step on, in the order of the sorted states' texts.
pub fn propose(state: &State) -> Vec<Thought> {
    let mut found: BTreeMap<Vec<Rational>, Thought> = BTreeMap::new();
    for i in 0..state.terms.len() {
        for j in (0..state.terms.len()).filter(|j| *j != i) {
            for operation in OPERATIONS {
                if let Some(thought) = combine(state, i, j, operation) {
                    found.entry(thought.state.key()).or_insert(thought);
                }
            }
        }
    }
    found.into_values().collect()
}

/// Reads a thought as `4 + 8 = 12`, whatever stands behind; none if its numbers are not there or its result is false.
pub fn read_thought(state: &State, line: &str) -> Option<Thought> {
    let (made, rest) = line.split_once('=')?;
    let words: Vec<&str> = made.split_whitespace().collect();
    let [before @ .., a, operation, b] = &words[..] else { return None };
    let is_mark = |word: &&str| matches!(*word, "-" | "*" | "\u{2022}") || word.ends_with(['.', ')', ':']);
    let (a, operation, b) = (number(a)?, self::operation(operation)?, number(b)?);
    let result = number(rest.split_whitespace().next()?)?;
    if before.len() > 1 || !before.iter().all(is_mark) || a.apply(operation, b) != Some(result) {
        return None;
    }
    let at = |wanted: Rational, not: Option<usize>| {
        (0..state.terms.len()).find(|i| Some(*i) != not && state.terms[*i].value == wanted)
    };
    let i = at(a, None)?;
    let j = at(b, Some(i))?;
    // Of two that commute, one form is a thought.
    let (i, j) = if matches!(operation, '+' | '*') { (i.min(j), i.max(j)) } else { (i, j) };
    combine(state, i, j, operation)
}

fn operation(word: &str) -> Option<char> {
    match word {
        "+" => Some('+'),
        "-" | "\u{2212}" => Some('-'),
        "*" | "x" | "\u{d7}" => Some('*'),
        "/" | "\u{f7}" => Some('/'),
        _ => None,
    }
}

/// `7`, `-7`, `7/2`, in parentheses or not.
fn number(word: &str) -> Option<Rational> {
    let word = word.trim_matches(['(', ')', ',', '.']);
    let (numerator, denominator) = word.split_once('/').unwrap_or((word, "1"));
    let small = |text: &str| text.parse::<i64>().ok().filter(|n| n.abs() <= 1_000_000);
    Rational::whole(small(numerator)?).apply('/', Rational::whole(small(denominator)?))
}

fn combine(state: &State, i: usize, j: usize, operation: char) -> Option<Thought> {
    // a+b and b+a are one thought.
    if i > j && matches!(operation, '+' | '*') {
        return None;
    }
    let (a, b) = (&state.terms[i], &state.terms[j]);
    let value = a.value.apply(operation, b.value)?;
    let made = Term { value, expression: format!("({} {operation} {})", a.expression, b.expression) };
    let mut terms: Vec<Term> =
        state.terms.iter().enumerate().filter(|(n, _)| *n != i && *n != j).map(|(_, t)| t.clone()).collect();
    terms.push(made);
    let next = State::sorted(terms);
    let text = format!("{} {operation} {} = {value} (left: {})", a.value, b.value, next.text());
    Some(Thought { text, state: next })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_proposed_thought_reads_back_and_no_false_one_does() {
        let mut states = vec![State::start(&[4, 4, 10, 1]), State::start(&[3, 3, 8, 8])];
        while let Some(state) = states.pop() {
            for thought in propose(&state) {
                let read = read_thought(&state, &format!("- {}", thought.text)).expect(&thought.text);
                assert_eq!((read.state.key(), read.text), (thought.state.key(), thought.text));
                if thought.state.terms.len() > 2 {
                    states.push(thought.state);
                }
            }
        }
        let state = State::start(&[4, 4, 10, 1]);
        for good in ["10 - 4 = 6", "2. 10 \u{2212} 4 = 6 (left: 1 4 6)", "4 x 10 = 40", "1 / 4 = 1/4 (left: 1/4 4 10)"]
        {
            assert!(read_thought(&state, good).is_some(), "{good}");
        }
        for bad in [
            "",
            "10 - 4",
            "10 - 4 = 7",
            "10 + 10 = 20",
            "5 + 4 = 9",
            "10 / 0 = 1",
            "10 - 4 - 1 = 5",
            "10 ^ 4 = 6",
            "9223372036854775807 + 1 = 0",
            "10 - 4 = six",
        ] {
            assert!(read_thought(&state, bad).is_none(), "{bad}");
        }
    }
}
