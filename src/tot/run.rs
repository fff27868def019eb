//! One run: its search, its tree for people, its events.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::tot::evaluate;
use crate::tot::events::EventLog;
use crate::tot::search::Search;
use crate::tot::value::Valuer;

/// What `POST /v1/runs` asks.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunForm {
    task: String,
    input: Vec<i64>,
    #[serde(default)]
    params: Params,
    /// Free text and people: whatever the caller wants to go into the thoughts.
    #[serde(default)]
    context: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Params {
    b: usize,
    value: Valuer,
    start: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { b: 5, value: Valuer::Heuristic, start: true }
    }
}

/// Why a run cannot do what is asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RunError {
    #[error("{0}")]
    Input(String),
    #[error("there is no node {0}")]
    NoNode(String),
    #[error("the run has version {have}, and the request is for version {want}; read it again")]
    Version { have: u64, want: u64 },
}

/// One run.
pub struct Run {
    /// Its name.
    pub id: String,
    input: Vec<i64>,
    context: Map<String, Value>,
    /// Whether it began by itself.
    pub started: bool,
    state: Mutex<Progress>,
    /// What it tells.
    pub events: Arc<EventLog>,
}

struct Progress {
    search: Search,
    version: u64,
    done: bool,
}

impl Progress {
    /// The number of a node.
    fn find(&self, node: &str) -> Result<usize, RunError> {
        let at = node.strip_prefix('n').and_then(|n| n.parse().ok()).filter(|n| *n < self.search.nodes.len());
        at.ok_or_else(|| RunError::NoNode(node.to_owned()))
    }

    /// A node, for the run's caller.
    fn shown(&self, at: usize) -> Value {
        let n = &self.search.nodes[at];
        json!({"node": name(at), "parent": n.parent.map(name), "depth": n.depth, "text": n.text, "left": n.state.text(), "value": n.value, "kept": n.kept, "pruned": n.pruned})
    }
}

impl Run {
    /// Checks the form and makes a run that has not begun.
    pub fn new(id: String, form: RunForm) -> Result<Self, RunError> {
        let bad = |what: &str| Err(RunError::Input(what.to_owned()));
        if form.task != "game_of_24" {
            return bad("task is not one of: game_of_24");
        }
        if form.input.len() != 4 || form.input.iter().any(|n| !(1..=13).contains(n)) {
            return bad("input is four whole numbers from 1 to 13");
        }
        if !(1..=200).contains(&form.params.b) {
            return bad("params.b is from 1 to 200");
        }
        let search = Search::new(&form.input, form.params.b, form.params.value);
        Ok(Self {
            id,
            input: form.input,
            context: form.context,
            started: form.params.start,
            state: Mutex::new(Progress { search, version: 1, done: false }),
            events: Arc::default(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One step of the search and its events; true once it is over.
    pub fn step(&self) -> bool {
        let mut progress = self.lock();
        if progress.done {
            return true;
        }
        let new = progress.search.step();
        progress.version += 1;
        for n in &new {
            let node = &progress.search.nodes[*n];
            if node.kept {
                self.events.push("thought", &json!({"node": name(*n), "parent": node.parent.map(name), "depth": node.depth, "text": node.text, "note": self.note()}));
                self.events.push("value", &json!({"node": name(*n), "value": node.value}));
            }
        }
        if progress.search.is_over() {
            progress.done = true;
            match progress.search.solution() {
                Some(expression) => self.events.push("solution", &json!({"expression": expression})),
                None => self.events.push("error", &json!({"detail": "the beam holds no solution; try a wider one"})),
            }
            self.events.push("done", &json!({"version": progress.version}));
            self.events.end();
        }
        progress.done
    }

    /// What a model would repeat of its context while thinking.
    fn note(&self) -> String {
        fn walk(value: &Value, words: &mut Vec<String>) {
            match value {
                Value::String(s) => words.push(s.clone()),
                Value::Object(members) => members.values().for_each(|v| walk(v, words)),
                Value::Array(items) => items.iter().for_each(|v| walk(v, words)),
                _ => {}
            }
        }
        let mut words = Vec::new();
        self.context.values().for_each(|v| walk(v, &mut words));
        if words.is_empty() { String::new() } else { format!("on behalf of {}", words.join(", ")) }
    }

    /// The run, for its caller.
    pub fn view(&self) -> Value {
        let progress = self.lock();
        json!({
            "id": self.id,
            "task": "game_of_24",
            "input": self.input,
            "status": if progress.done { "done" } else { "running" },
            "version": progress.version,
            "nodes": progress.search.nodes.len(),
            "context": self.context,
        })
    }

    /// The tree down to a depth.
    pub fn tree(&self, depth: usize) -> Value {
        let progress = self.lock();
        let nodes: Vec<Value> = progress
            .search
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, n)| n.depth <= depth)
            .map(|(i, _)| progress.shown(i))
            .collect();
        json!({"id": self.id, "version": progress.version, "nodes": nodes})
    }

    /// Prunes the subtree at a node.
    pub fn prune(&self, node: &str, if_version: u64) -> Result<Value, RunError> {
        let mut progress = self.lock();
        if progress.version != if_version {
            return Err(RunError::Version { have: progress.version, want: if_version });
        }
        let at = progress.find(node)?;
        let gone = progress.search.prune(at);
        progress.version += 1;
        self.events.push("prune", &json!({"node": node, "pruned": gone.len()}));
        Ok(json!({"id": self.id, "node": node, "pruned": gone.len(), "version": progress.version}))
    }

    /// Expands one node now, whatever the beam keeps.
    pub fn expand(&self, node: &str) -> Result<Value, RunError> {
        let mut progress = self.lock();
        let at = progress.find(node)?;
        let new = progress.search.expand(at);
        progress.version += 1;
        for n in &new {
            let thought = &progress.search.nodes[*n];
            self.events.push("thought", &json!({"node": name(*n), "parent": node, "depth": thought.depth, "text": thought.text, "note": self.note()}));
        }
        let nodes: Vec<Value> = new.iter().map(|n| progress.shown(*n)).collect();
        Ok(json!({"id": self.id, "node": node, "version": progress.version, "nodes": nodes}))
    }

    /// Values nodes anew.
    pub fn evaluate(&self, nodes: &[String]) -> Result<Value, RunError> {
        let mut progress = self.lock();
        let mut values = Vec::new();
        for node in nodes {
            let at = progress.find(node)?;
            let value = progress.search.value(at);
            self.events.push("value", &json!({"node": node, "value": value}));
            values.push(json!({"node": node, "value": value}));
        }
        Ok(json!({"id": self.id, "version": progress.version, "values": values}))
    }

    /// The solution, checked once more from its text.
    pub fn solution(&self) -> Option<Value> {
        let expression = self.lock().search.solution()?;
        evaluate::check(&expression, &self.input).ok()?;
        Some(
            json!({"id": self.id, "input": self.input, "expression": expression, "value": 24, "checked_by": "evaluate"}),
        )
    }
}

fn name(n: usize) -> String {
    format!("n{n}")
}
