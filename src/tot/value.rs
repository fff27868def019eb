//! Values states: `exact` looks to the end; `heuristic` says sure, likely or impossible and is exact for two numbers only.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::tot::number::{OPERATIONS, Rational};
use crate::tot::propose::{State, propose};

/// The goal of the game.
pub const GOAL: i64 = 24;

/// Which valuer a run uses.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Valuer {
    /// Looks to the end.
    Exact,
    /// Judges as a person would at a glance.
    #[default]
    Heuristic,
}

/// Scores of the paper: sure 20, likely 1 and more, impossible 0.001.
pub const SURE: f64 = 20.0;
/// See [`SURE`].
pub const IMPOSSIBLE: f64 = 0.001;

/// Values states and remembers what it has seen.
#[derive(Default)]
pub struct Judge {
    solvable: HashMap<Vec<Rational>, bool>,
}

impl Judge {
    /// The value of a state.
    pub fn value(&mut self, valuer: Valuer, state: &State) -> f64 {
        let numbers = state.key();
        match (valuer, numbers.as_slice()) {
            (_, [one]) => {
                if one.is(GOAL) {
                    SURE
                } else {
                    IMPOSSIBLE
                }
            }
            (_, [a, b]) => {
                if reaches(*a, *b) {
                    SURE
                } else {
                    IMPOSSIBLE
                }
            }
            (Valuer::Exact, _) => {
                if self.is_solvable(state) {
                    SURE
                } else {
                    IMPOSSIBLE
                }
            }
            (Valuer::Heuristic, _) => glance(&numbers),
        }
    }

    fn is_solvable(&mut self, state: &State) -> bool {
        let key = state.key();
        if let [a, b] = key.as_slice() {
            return reaches(*a, *b);
        }
        if let Some(known) = self.solvable.get(&key) {
            return *known;
        }
        let found = propose(state).iter().any(|t| self.is_solvable(&t.state));
        self.solvable.insert(key, found);
        found
    }
}

fn reaches(a: Rational, b: Rational) -> bool {
    let one_way = |a: Rational, b: Rational| OPERATIONS.iter().any(|o| a.apply(*o, b).is_some_and(|v| v.is(GOAL)));
    one_way(a, b) || one_way(b, a)
}

/// At a glance, three numbers look likely if they are whole, positive and small, divide the goal, or come near it
/// when added or multiplied.
fn glance(numbers: &[Rational]) -> f64 {
    let mut score: f64 = 1.0;
    for n in numbers {
        let divides = n.is_whole()
            && *n > Rational::whole(0)
            && Rational::whole(GOAL).apply('/', *n).is_some_and(Rational::is_whole);
        score += match (n.is_whole(), *n > Rational::whole(0), divides) {
            (_, _, true) => 1.0,
            (true, true, false) => 0.5,
            (true, false, _) => -0.5,
            (false, ..) => -0.75,
        };
    }
    let near = |v: Option<Rational>| v.is_some_and(|v| v.is(GOAL));
    let sum = numbers.iter().try_fold(Rational::whole(0), |a, n| a.apply('+', *n));
    let product = numbers.iter().try_fold(Rational::whole(1), |a, n| a.apply('*', *n));
    if near(sum) || near(product) {
        score += 4.0;
    }
    score.max(IMPOSSIBLE)
}
