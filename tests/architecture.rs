//! The dependency rule of ARCHITECTURE.md, read from the sources: each `crate::` path must be allowed where it stands.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A room of the house and the rooms its files may name. A room may always name itself.
const ALLOWED: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("protocol", &["domain"]),
    ("store", &["domain"]),
    ("net", &["domain"]),
    ("agent", PLANE),
    ("identity", PLANE),
    ("token", PLANE),
    ("gateway", PLANE),
    ("evidence", PLANE),
    ("console", PLANE),
    ("client", PLANE),
    ("tot", PLANE),
    ("trust", &["net", "protocol", "domain"]),
    ("telemetry", &["domain"]),
    ("config", EVERYTHING_BELOW_APP),
    ("app", EVERYTHING_BELOW_APP),
    (
        "cli",
        &[
            "app",
            "config",
            "agent",
            "identity",
            "token",
            "gateway",
            "evidence",
            "console",
            "client",
            "tot",
            "trust",
            "store",
            "net",
            "protocol",
            "domain",
            "telemetry",
        ],
    ),
    ("lib", &[]),
    ("main", &["cli"]),
];
const PLANE: &[&str] = &["trust", "store", "net", "protocol", "domain", "telemetry"];
const EVERYTHING_BELOW_APP: &[&str] = &[
    "config",
    "agent",
    "identity",
    "token",
    "gateway",
    "evidence",
    "console",
    "client",
    "tot",
    "trust",
    "store",
    "net",
    "protocol",
    "domain",
    "telemetry",
];
/// Words that a pure module has no business with.
const IMPURE: &[&str] = &[
    "tokio::",
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "std::env",
    "SystemTime",
    "Instant",
    "rand::",
    "hyper::",
    "sqlx::",
];

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("src is there") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

fn room(path: &Path) -> String {
    let relative = path.strip_prefix("src").expect("below src");
    let first = relative.components().next().expect("a file").as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The code of a file: comments and tests are free to say more.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).expect("readable");
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn rooms_named(code: &str) -> BTreeSet<String> {
    let name = |rest: &str| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    code.split("crate::").skip(1).map(name).collect()
}

#[test]
fn imports_point_down() {
    let mut breaches = Vec::new();
    for path in sources(Path::new("src")) {
        let here = room(&path);
        let (_, allowed) = ALLOWED
            .iter()
            .find(|(r, _)| *r == here)
            .unwrap_or_else(|| panic!("{} is in no known room", path.display()));
        for named in rooms_named(&code(&path)) {
            if named != here && !allowed.contains(&named.as_str()) {
                breaches.push(format!("{} names crate::{named}", path.display()));
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn there_is_no_way_around_the_rule() {
    for path in sources(Path::new("src")) {
        let code = code(&path);
        for around in ["use crate::{", "super::super", "pub use crate::"] {
            assert!(!code.contains(around), "{} has `{around}`", path.display());
        }
    }
}

#[test]
fn domain_and_protocol_are_pure() {
    for path in sources(Path::new("src")).into_iter().filter(|p| ["domain", "protocol"].contains(&room(p).as_str())) {
        let code = code(&path);
        for word in IMPURE {
            // As a word of its own: SAML has an `IssueInstant`.
            let whole = |(at, _): (usize, &str)| !code[..at].ends_with(char::is_alphanumeric);
            assert!(!code.match_indices(word).any(whole), "{} has `{word}`", path.display());
        }
    }
}

#[test]
fn files_stay_walkable() {
    // Test files are tables; the limit is for what runs.
    let walked = |path: &PathBuf| path.file_name().is_some_and(|n| n != "tests.rs" && n != "contract.rs");
    for path in sources(Path::new("src")).into_iter().filter(walked) {
        let lines = code(&path).lines().count();
        assert!(lines <= 400, "{} has {lines} lines", path.display());
    }
}

/// The rule itself can fail: a file that names a forbidden room is found.
#[test]
fn a_breach_would_be_found() {
    let named = rooms_named("use crate::token::mint;\nlet x = crate::domain::key::Jkt([0; 32]);");
    assert_eq!(named, BTreeSet::from(["domain".to_owned(), "token".to_owned()]));
}

/// What a line of `docs/requirements.md` names as its test must be one.
#[test]
fn requirements_name_tests_that_exist() {
    let text = std::fs::read_to_string("docs/requirements.md").expect("reads");
    let mut text_of_all = String::new();
    for dir in ["src", "tests"] {
        for file in sources(Path::new(dir)) {
            text_of_all += &std::fs::read_to_string(file).expect("reads");
        }
    }
    let mut named = 0;
    for span in text.split('`').skip(1).step_by(2).flat_map(expand) {
        let Some((module, name)) = span.rsplit_once("::") else { continue };
        if !module.starts_with("it::") && !module.ends_with("tests") && !module.ends_with("contract") {
            continue;
        }
        named += 1;
        assert!(text_of_all.contains(&format!("fn {name}(")), "no test is called {span}");
    }
    assert!(named > 200, "the reader of the table finds its names: {named}");
}

/// `a::{b, c}` as `a::b` and `a::c`.
fn expand(span: &str) -> Vec<String> {
    match span.split_once('{').and_then(|(base, rest)| Some((base, rest.strip_suffix('}')?))) {
        Some((base, names)) => names.split(',').map(|n| format!("{base}{}", n.trim())).collect(),
        None => vec![span.to_owned()],
    }
}
