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
