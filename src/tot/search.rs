//! Breadth-first search with a beam: propose, value, keep the best b, ties in the order of the sorted states.

use crate::tot::evaluate;
use crate::tot::propose::{State, Thought, propose};
use crate::tot::value::{Judge, SURE, Valuer};

/// One node of the tree.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its parent's number; none for the root.
    pub parent: Option<usize>,
    /// How many steps from the root.
    pub depth: usize,
    /// The thought that led here.
    pub text: String,
    /// What is left.
    pub state: State,
    /// Its value.
    pub value: f64,
    /// Whether the beam kept it.
    pub kept: bool,
    /// Whether somebody pruned it.
    pub pruned: bool,
}

/// A search in progress.
pub struct Search {
    /// All nodes, by number; the root is 0.
    pub nodes: Vec<Node>,
    frontier: Vec<usize>,
    input: Vec<i64>,
    beam: usize,
    steps: usize,
    valuer: Valuer,
    judge: Judge,
}

impl Search {
    /// A search that has not begun.
    pub fn new(input: &[i64], beam: usize, valuer: Valuer) -> Self {
        Self::within(input, beam, usize::MAX, valuer)
    }

    /// One that goes so many steps deep at most.
    pub fn within(input: &[i64], beam: usize, steps: usize, valuer: Valuer) -> Self {
        let root = Node {
            parent: None,
            depth: 0,
            text: "start".into(),
            state: State::start(input),
            value: SURE,
            kept: true,
            pruned: false,
        };
        Self {
            nodes: vec![root],
            frontier: vec![0],
            input: input.to_vec(),
            beam,
            steps,
            valuer,
            judge: Judge::default(),
        }
    }

    /// Whether there is nothing left to expand.
    pub fn is_over(&self) -> bool {
        self.frontier.iter().all(|n| self.is_leaf(*n))
    }

    /// The nodes that are expanded next.
    pub fn frontier(&self) -> Vec<(usize, State)> {
        let nodes = self.frontier.iter().filter(|n| !self.nodes[**n].pruned && !self.is_leaf(**n));
        nodes.map(|n| (*n, self.nodes[*n].state.clone())).collect()
    }

    /// Expands the frontier by one step and gives the numbers of the new nodes.
    pub fn step(&mut self) -> Vec<usize> {
        let mut seen = std::collections::HashSet::new();
        let mut valued = Vec::new();
        for (parent, state) in self.frontier() {
            for thought in propose(&state).into_iter().filter(|t| seen.insert(t.state.key())) {
                let value = self.judge.value(self.valuer, &thought.state);
                valued.push((parent, thought, value));
            }
        }
        self.adopt(valued)
    }

    /// Takes what was thought of the whole frontier, each state once, and keeps the best of it.
    pub fn adopt(&mut self, valued: Vec<(usize, Thought, f64)>) -> Vec<usize> {
        let new: Vec<usize> =
            valued.into_iter().map(|(parent, thought, value)| self.add(parent, thought, value)).collect();
        self.keep_best(&new);
        new
    }

    /// A new node, which the beam does not keep.
    pub fn add(&mut self, parent: usize, thought: Thought, value: f64) -> usize {
        let depth = self.nodes[parent].depth + 1;
        let (text, state) = (thought.text, thought.state);
        let pruned = self.nodes[parent].pruned;
        self.nodes.push(Node { parent: Some(parent), depth, text, state, value, kept: false, pruned });
        self.nodes.len() - 1
    }

    /// What our own valuer says of a state.
    pub fn judge(&mut self, state: &State) -> f64 {
        self.judge.value(self.valuer, state)
    }

    fn is_leaf(&self, at: usize) -> bool {
        self.nodes[at].state.terms.len() <= 1 || self.nodes[at].depth >= self.steps
    }

    fn keep_best(&mut self, new: &[usize]) {
        let mut order = new.to_vec();
        let nodes = &self.nodes;
        order.sort_by(|a, b| {
            nodes[*b].value.total_cmp(&nodes[*a].value).then_with(|| nodes[*a].state.key().cmp(&nodes[*b].state.key()))
        });
        order.truncate(self.beam);
        order.iter().for_each(|n| self.nodes[*n].kept = true);
        self.frontier = order;
    }

    /// An answer that the separate evaluator accepts.
    pub fn solution(&self) -> Option<String> {
        let finals = self.nodes.iter().filter(|n| n.kept && !n.pruned && n.state.terms.len() == 1);
        finals.map(|n| n.state.terms[0].expression.clone()).find(|e| evaluate::check(e, &self.input).is_ok())
    }

    /// Prunes the subtree at a node and gives the numbers of all that went.
    pub fn prune(&mut self, at: usize) -> Vec<usize> {
        let mut gone = vec![at];
        for n in at + 1..self.nodes.len() {
            if self.nodes[n].parent.is_some_and(|p| gone.contains(&p)) {
                gone.push(n);
            }
        }
        gone.iter().for_each(|n| self.nodes[*n].pruned = true);
        self.frontier.retain(|n| !gone.contains(n));
        gone
    }
}

/// Searches to the end.
pub fn solve(input: &[i64], beam: usize, valuer: Valuer) -> Option<String> {
    let mut search = Search::new(input, beam, valuer);
    while !search.is_over() {
        search.step();
    }
    search.solution()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn solved(beam: usize, valuer: Valuer) -> (usize, usize) {
        let mut judge = Judge::default();
        let (mut all, mut solved) = (0, 0);
        for a in 1..=13 {
            for b in a..=13 {
                for c in b..=13 {
                    for d in c..=13 {
                        let input = [a, b, c, d];
                        if judge.value(Valuer::Exact, &State::start(&input)) == SURE {
                            all += 1;
                            solved += usize::from(solve(&input, beam, valuer).is_some());
                        }
                    }
                }
            }
        }
        (all, solved)
    }

    #[test]
    fn exact_solves_every_solvable_puzzle_with_a_beam_of_one() {
        assert_eq!(solved(1, Valuer::Exact), (1362, 1362));
    }

    /// The counts of this tie-breaking: `docs/tot.md` holds them beside an independent implementation's.
    #[test]
    fn the_heuristic_solves_as_many_as_documented() {
        let counts = [1, 5, 10, 20, 50].map(|beam| solved(beam, Valuer::Heuristic).1);
        assert_eq!(counts, [860, 1222, 1325, 1357, 1362]);
    }

    #[test]
    fn pruning_takes_the_whole_subtree_and_its_solutions() {
        let mut search = Search::new(&[1, 4, 4, 10], 5, Valuer::Exact);
        while !search.is_over() {
            search.step();
        }
        assert!(search.solution().is_some());
        let gone = search.prune(0);
        assert_eq!(gone.len(), search.nodes.len());
        assert_eq!(search.solution(), None);
    }
}
