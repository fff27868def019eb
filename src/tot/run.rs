//! One run: its search, its tree for people, its events.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::tot::evaluate;
use crate::tot::events::EventLog;
use crate::tot::model::{Model, ModelError, Spent};
use crate::tot::number::Rational;
use crate::tot::propose::{State, Thought, propose};
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
    /// The deepest that is searched.
    steps: usize,
    proposer: Proposer,
    value: RunValuer,
    /// What a model is given to repeat itself by.
    seed: Option<u64>,
    start: bool,
}

impl Default for Params {
    fn default() -> Self {
        let (proposer, value) = (Proposer::Exhaustive, RunValuer::Heuristic);
        Self { b: 5, steps: 3, proposer, value, seed: None, start: true }
    }
}

/// Questions to a model that are open at once.
const AT_ONCE: usize = 4;

/// Who thinks of what follows.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Proposer {
    /// Everything that does.
    Exhaustive,
    /// What the engine's model says, as far as it holds.
    Model,
}

/// Who says what a thought is worth.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RunValuer {
    Exact,
    Heuristic,
    /// The engine's model, in three samples.
    Model,
}

/// A model with the words that it is asked in.
#[derive(Clone)]
pub struct Asked {
    /// The model.
    pub model: Arc<Model>,
    /// For what follows from a state.
    pub propose: String,
    /// For what a state is worth.
    pub value: String,
}

/// Why a run cannot do what is asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RunError {
    #[error("{0}")]
    Input(String),
    #[error("there is no node {0}")]
    NoNode(String),
    #[error(transparent)]
    Model(#[from] ModelError),
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
    proposer: Proposer,
    valuer: RunValuer,
    seed: Option<u64>,
    /// None where neither is a model.
    asked: Option<Asked>,
    spent: Spent,
    /// One step at a time: a model takes its time, and the run is shown meanwhile.
    stepping: tokio::sync::Mutex<()>,
    state: Mutex<Progress>,
    /// What it tells.
    pub events: Arc<EventLog>,
}

struct Progress {
    search: Search,
    version: u64,
    done: bool,
    /// What ended it before its end.
    failed: Option<String>,
    /// What the model has said of states.
    values: HashMap<Vec<Rational>, f64>,
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
    pub fn new(id: String, form: RunForm, asked: Option<Asked>) -> Result<Self, RunError> {
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
        let Params { b, steps, proposer, value: valuer, seed, start } = form.params;
        if !(1..=3).contains(&steps) {
            return bad("params.steps is from 1 to 3: each takes one number away");
        }
        let modelled = proposer == Proposer::Model || valuer == RunValuer::Model;
        if modelled && asked.is_none() {
            return bad("this engine has no model: start it with --model-url and --model");
        }
        // What a model does not value itself, at the end of each line, is plain.
        let own = if valuer == RunValuer::Exact { Valuer::Exact } else { Valuer::Heuristic };
        let search = Search::within(&form.input, b, steps, own);
        Ok(Self {
            id,
            input: form.input,
            context: form.context,
            started: start,
            proposer,
            valuer,
            seed,
            asked: asked.filter(|_| modelled),
            spent: Spent::default(),
            stepping: tokio::sync::Mutex::default(),
            state: Mutex::new(Progress { search, version: 1, done: false, failed: None, values: HashMap::new() }),
            events: Arc::default(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One step of the search and its events; true once it is over.
    pub async fn step(&self) -> bool {
        let _one = self.stepping.lock().await;
        if self.lock().done {
            return true;
        }
        match self.think().await {
            Ok(new) => self.tell(&new),
            Err(error) => {
                let mut progress = self.lock();
                progress.done = true;
                progress.failed = Some(error.to_string());
                self.events.push("error", &json!({"detail": error.to_string()}));
                self.events.push("done", &json!({"version": progress.version}));
                self.events.end();
            }
        }
        self.lock().done
    }

    /// The new nodes of one step.
    async fn think(&self) -> Result<Vec<usize>, ModelError> {
        if self.asked.is_none() {
            return Ok(self.lock().search.step());
        }
        let frontier = self.lock().search.frontier();
        let proposing =
            frontier.into_iter().map(|(parent, state)| async move { Ok((parent, self.thoughts(&state).await?)) });
        let proposed: Vec<(usize, Vec<Thought>)> = stream::iter(proposing).buffered(AT_ONCE).try_collect().await?;
        let mut seen = HashSet::new();
        let each = proposed.into_iter().flat_map(|(parent, thoughts)| thoughts.into_iter().map(move |t| (parent, t)));
        let new: Vec<(usize, Thought)> = each.filter(|(_, t)| seen.insert(t.state.key())).collect();
        let valuing = new.into_iter().map(|(parent, thought)| async move {
            let value = self.worth(&thought.state).await?;
            Ok((parent, thought, value))
        });
        let valued = stream::iter(valuing).buffered(AT_ONCE).try_collect().await?;
        Ok(self.lock().search.adopt(valued))
    }

    async fn thoughts(&self, state: &State) -> Result<Vec<Thought>, ModelError> {
        match (&self.asked, self.proposer) {
            (Some(asked), Proposer::Model) => asked.model.propose(&asked.propose, state, self.seed, &self.spent).await,
            _ => Ok(propose(state)),
        }
    }

    /// What a state is worth. One number needs no opinion, and no opinion is asked for twice.
    async fn worth(&self, state: &State) -> Result<f64, ModelError> {
        let asked = self.asked.as_ref().filter(|_| self.valuer == RunValuer::Model && state.terms.len() > 1);
        let Some(asked) = asked else { return Ok(self.lock().search.judge(state)) };
        if let Some(known) = self.lock().values.get(&state.key()) {
            return Ok(*known);
        }
        let value = asked.model.value(&asked.value, state, self.seed, &self.spent).await?;
        self.lock().values.insert(state.key(), value);
        Ok(value)
    }

    fn tell(&self, new: &[usize]) {
        let mut progress = self.lock();
        progress.version += 1;
        for n in new {
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
        let status = match (&progress.failed, progress.done) {
            (Some(_), _) => "failed",
            (None, true) => "done",
            (None, false) => "running",
        };
        let mut view = json!({
            "id": self.id,
            "task": "game_of_24",
            "input": self.input,
            "status": status,
            "version": progress.version,
            "nodes": progress.search.nodes.len(),
            "context": self.context,
        });
        if let Some(detail) = &progress.failed {
            view["detail"] = detail.as_str().into();
        }
        if let Some(asked) = &self.asked {
            view["model"] = asked.model.view(&self.spent);
        }
        view
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
    pub async fn expand(&self, node: &str) -> Result<Value, RunError> {
        let (at, state) = {
            let progress = self.lock();
            let at = progress.find(node)?;
            (at, progress.search.nodes[at].state.clone())
        };
        let mut valued = Vec::new();
        for thought in self.thoughts(&state).await? {
            let value = self.worth(&thought.state).await?;
            valued.push((thought, value));
        }
        let mut progress = self.lock();
        let new: Vec<usize> =
            valued.into_iter().map(|(thought, value)| progress.search.add(at, thought, value)).collect();
        progress.version += 1;
        for n in &new {
            let thought = &progress.search.nodes[*n];
            self.events.push("thought", &json!({"node": name(*n), "parent": node, "depth": thought.depth, "text": thought.text, "note": self.note()}));
        }
        let nodes: Vec<Value> = new.iter().map(|n| progress.shown(*n)).collect();
        Ok(json!({"id": self.id, "node": node, "version": progress.version, "nodes": nodes}))
    }

    /// Values nodes anew.
    pub async fn evaluate(&self, nodes: &[String]) -> Result<Value, RunError> {
        let mut values = Vec::new();
        for node in nodes {
            let (at, state) = {
                let progress = self.lock();
                let at = progress.find(node)?;
                (at, progress.search.nodes[at].state.clone())
            };
            let value = self.worth(&state).await?;
            self.lock().search.nodes[at].value = value;
            self.events.push("value", &json!({"node": node, "value": value}));
            values.push(json!({"node": node, "value": value}));
        }
        Ok(json!({"id": self.id, "version": self.lock().version, "values": values}))
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
