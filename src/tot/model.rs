//! A language model as proposer and valuer, over an OpenAI-compatible API (`POST {base}/chat/completions`).
//!
//! What it says is not believed: a thought counts only if its arithmetic holds on numbers that are there, and a solution is
//! checked as any other.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::net::body::{AnyBody, ReadError, full, read};
use crate::net::fetch::{any_client, innermost, web_roots};
use crate::net::files;
use crate::tot::propose::{State, Thought, read_thought};
use crate::tot::value::{IMPOSSIBLE, SURE};

const MAX_ANSWER: usize = 1 << 20;
/// Tries of one question, the first among them.
const TRIES: u32 = 3;
/// The longest that a server's `Retry-After` is heeded.
const MAX_WAIT: u64 = 10;
/// A model's verdict of "likely", as the paper counts it.
const LIKELY: f64 = 1.0;
/// Samples of a value, whose verdicts are added.
const SAMPLES: u32 = 3;
const MAX_TOKENS: u32 = 400;

/// What is asked to propose, unless the prompt `propose` says otherwise; `{input}` is what is left.
pub const PROPOSE: &str = "You play the Game of 24.\nNumbers: {input}\nGive possible next steps, one a line, each as\na op b = c (left: the numbers that are left then)\nwith + - * / on two of the numbers. Give no other text.";
/// What is asked to value, unless the prompt `value` says otherwise.
pub const VALUE: &str = "Can these numbers reach 24 with + - * /, each used once?\nNumbers: {input}\nThink in one line, then answer on a line of its own with one word: sure, likely or impossible.";

/// Where a model is, and what it may cost.
#[derive(Clone, Debug)]
pub struct ModelConfig<'a> {
    /// URL before `/chat/completions`.
    pub base: &'a str,
    /// Its name there.
    pub model: &'a str,
    /// File with the key.
    pub key_file: Option<&'a Path>,
    /// Certificates that the server's leads to; none: the system's.
    pub ca_file: Option<&'a Path>,
    /// How long one answer may take.
    pub timeout: Duration,
    /// Tokens that one run may use.
    pub budget: u64,
}

/// Why a model could not be asked, or its answer not be used. Carries neither key nor prompt.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ModelError {
    #[error("the model {0} does not answer: {1}")]
    Unreachable(String, String),
    #[error("the model {0} answered {1}")]
    Status(String, StatusCode),
    #[error("the model {0} gave no chat completion: {1}")]
    Answer(String, String),
    #[error(
        "the run has used {used} of its {budget} tokens; start the engine with a larger --model-budget, or take a narrower beam"
    )]
    Budget { used: u64, budget: u64 },
}

/// What a run has used.
#[derive(Debug, Default)]
pub struct Spent(AtomicU64);

impl Spent {
    /// Tokens so far.
    pub fn tokens(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A question: what differs from one to the next.
struct Ask<'a> {
    prompt: String,
    samples: u32,
    seed: Option<u64>,
    spent: &'a Spent,
}

/// A model that can be asked.
pub struct Model {
    client: Client<HttpsConnector<HttpConnector>, AnyBody>,
    url: String,
    name: String,
    key: Option<HeaderValue>,
    timeout: Duration,
    budget: u64,
}

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    total_tokens: u64,
}

impl Model {
    /// Checks the configuration; the text names what is wrong.
    pub fn new(config: &ModelConfig<'_>) -> Result<Self, String> {
        let url = format!("{}/chat/completions", config.base.trim_end_matches('/'));
        let parsed: http::Uri = url.parse().map_err(|e| format!("--model-url {:?}: {e}", config.base))?;
        let plain = parsed.scheme_str() == Some("http");
        if !plain && parsed.scheme_str() != Some("https") {
            return Err(format!("--model-url {:?} is no http:// or https:// URL", config.base));
        }
        let local = matches!(parsed.host(), Some("127.0.0.1" | "localhost" | "[::1]"));
        if plain && config.key_file.is_some() && !local {
            return Err("--model-key-file goes over https:// alone, or to this host".into());
        }
        let key = config.key_file.map(|file| {
            let key = files::read_secret(file).map_err(|e| format!("--model-key-file: {e}"))?;
            let value = HeaderValue::from_str(&format!("Bearer {}", key.as_str()));
            let mut value = value.map_err(|_| "--model-key-file holds bytes that no header can carry".to_owned())?;
            value.set_sensitive(true);
            Ok::<_, String>(value)
        });
        let client = any_client(web_roots(config.ca_file).map_err(|e| format!("--model-ca-file: {e}"))?);
        let name = config.model.to_owned();
        Ok(Self { client, url, name, key: key.transpose()?, timeout: config.timeout, budget: config.budget })
    }

    /// What a run has used, for its view.
    pub fn view(&self, spent: &Spent) -> Value {
        json!({"name": self.name, "tokens": spent.tokens(), "budget": self.budget})
    }

    /// Thoughts that the model proposes and that hold; one for each state.
    pub async fn propose(
        &self,
        prompt: &str,
        state: &State,
        seed: Option<u64>,
        spent: &Spent,
    ) -> Result<Vec<Thought>, ModelError> {
        let prompt = prompt.replace("{input}", &state.text());
        let texts = self.ask(&Ask { prompt, samples: 1, seed, spent }).await?;
        let mut seen = std::collections::HashSet::new();
        let lines = texts.iter().flat_map(|text| text.lines());
        Ok(lines.filter_map(|line| read_thought(state, line)).filter(|t| seen.insert(t.state.key())).collect())
    }

    /// The sum of the samples' verdicts, as in the paper.
    pub async fn value(
        &self,
        prompt: &str,
        state: &State,
        seed: Option<u64>,
        spent: &Spent,
    ) -> Result<f64, ModelError> {
        let prompt = prompt.replace("{input}", &state.text());
        let texts = self.ask(&Ask { prompt, samples: SAMPLES, seed, spent }).await?;
        Ok(texts.iter().map(|text| verdict(text)).sum())
    }

    async fn ask(&self, ask: &Ask<'_>) -> Result<Vec<String>, ModelError> {
        let used = ask.spent.tokens();
        if used >= self.budget {
            return Err(ModelError::Budget { used, budget: self.budget });
        }
        let mut question = json!({
            "model": self.name,
            "messages": [{"role": "user", "content": ask.prompt}],
            "n": ask.samples,
            "max_tokens": MAX_TOKENS,
            "temperature": 0.7,
            "stop": ["\n\n\n"],
        });
        if let Some(seed) = ask.seed {
            question["seed"] = seed.into();
        }
        let body = Bytes::from(question.to_string());
        let mut tries = 0;
        let completion = loop {
            tries += 1;
            match self.send(body.clone()).await {
                Ok(completion) => break completion,
                Err(Failed { error, again: Again::No }) => return Err(error),
                Err(Failed { error, .. }) if tries >= TRIES => return Err(error),
                Err(Failed { error, again }) => {
                    tracing::info!(%error, "the model is asked again");
                    let usual = Duration::from_millis(250) * 2_u32.pow(tries - 1);
                    tokio::time::sleep(if let Again::After(wait) = again { wait } else { usual }).await;
                }
            }
        };
        if completion.choices.is_empty() {
            return Err(ModelError::Answer(self.name.clone(), "it has no choices".into()));
        }
        let texts: Vec<String> = completion.choices.into_iter().filter_map(|c| c.message.content).collect();
        // Who does not say what it cost is taken to have cost a token for every four bytes.
        let guessed = || (body.len() + texts.iter().map(String::len).sum::<usize>()) as u64 / 4;
        ask.spent.0.fetch_add(completion.usage.map_or_else(guessed, |u| u.total_tokens), Ordering::Relaxed);
        Ok(texts)
    }

    async fn send(&self, body: Bytes) -> Result<Completion, Failed> {
        let unreachable = |why: String| ModelError::Unreachable(self.name.clone(), why);
        let again = |error| Failed { error, again: Again::Usual };
        let mut request = Request::post(&self.url).header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, key);
        }
        let request =
            request.body(full(body)).map_err(|e| Failed { error: unreachable(e.to_string()), again: Again::No })?;
        let asked = async {
            let response = self.client.request(request).await.map_err(|e| again(unreachable(innermost(&e))))?;
            let (head, body) = response.into_parts();
            if !head.status.is_success() {
                let error = ModelError::Status(self.name.clone(), head.status);
                let wait = head.headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
                let wait = wait.map_or(Again::Usual, |s| Again::After(Duration::from_secs(s.min(MAX_WAIT))));
                let passing = head.status == StatusCode::TOO_MANY_REQUESTS || head.status.is_server_error();
                return Err(Failed { error, again: if passing { wait } else { Again::No } });
            }
            let body = read(body, MAX_ANSWER).await.map_err(|e| match e {
                ReadError::TooLong(_) => {
                    Failed { error: ModelError::Answer(self.name.clone(), e.to_string()), again: Again::No }
                }
                other => again(unreachable(other.to_string())),
            })?;
            serde_json::from_slice(&body)
                .map_err(|e| Failed { error: ModelError::Answer(self.name.clone(), e.to_string()), again: Again::No })
        };
        let late = || again(unreachable(format!("no answer in {} s", self.timeout.as_secs_f64())));
        tokio::time::timeout(self.timeout, asked).await.map_err(|_| late())?
    }
}

/// A try that failed.
struct Failed {
    error: ModelError,
    again: Again,
}

/// Whether another try is worth it.
enum Again {
    No,
    /// After the usual time.
    Usual,
    /// When the server says.
    After(Duration),
}

/// The last word of the answer that is a verdict.
fn verdict(text: &str) -> f64 {
    let mut words = text.split(|c: char| !c.is_ascii_alphabetic()).rev();
    let known = |word: &str| match word.to_ascii_lowercase().as_str() {
        "sure" => Some(SURE),
        "likely" => Some(LIKELY),
        "impossible" => Some(IMPOSSIBLE),
        _ => None,
    };
    words.find_map(known).unwrap_or(IMPOSSIBLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_verdict_counts_and_none_is_no_hope() {
        for (text, value) in [
            ("10 + 14 = 24\nsure", SURE),
            ("It is impossible at first, but\nLikely.", LIKELY),
            ("**impossible**", IMPOSSIBLE),
            ("surely", IMPOSSIBLE),
            ("", IMPOSSIBLE),
        ] {
            assert!((verdict(text) - value).abs() < f64::EPSILON, "{text}");
        }
    }

    #[test]
    fn a_key_goes_over_tls_or_stays_on_this_host() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("key");
        std::fs::write(&file, "sk-test").expect("writes");
        let config = |base, key_file| ModelConfig {
            base,
            model: "m",
            key_file,
            ca_file: None,
            timeout: Duration::from_secs(1),
            budget: 1,
        };
        for (base, key, good) in [
            ("https://api.example/v1", Some(&file), true),
            ("http://127.0.0.1:1/v1/", Some(&file), true),
            ("http://api.example/v1", Some(&file), false),
            ("http://api.example/v1", None, true),
            ("ftp://api.example", None, false),
            ("nowhere", None, false),
        ] {
            assert_eq!(Model::new(&config(base, key.map(std::path::PathBuf::as_path))).is_ok(), good, "{base}");
        }
    }
}
