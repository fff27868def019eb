//! `entry suggest --recorded`: the narrowest operations that a workload needs, by what the evidence has of it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::cli::Global;
use crate::cli::context::{self, Failure};
use crate::domain::leaf::Event;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::evidence::files::EvidenceDir;
use crate::evidence::reader::LogReader;

/// Objects that are listed by name.
const LISTED: usize = 20;

/// What is recorded of one operation.
struct Used {
    count: u64,
    last: Timestamp,
    objects: BTreeSet<String>,
}

/// Reads the evidence of a workload and proposes.
pub fn suggest(global: &Global, id: &str) -> Result<(), Failure> {
    let id: SpiffeId = id.parse().map_err(|e| Failure::usage(format!("{id:?}: {e}")))?;
    let dir = EvidenceDir::of_data_dir(&context::data_dir(global)?);
    if !dir.vkey().exists() {
        let text = format!("there is no evidence in {}; is --data-dir the service's?", dir.root().display());
        return Err(Failure::failed(text));
    }
    let mut used: BTreeMap<String, Used> = BTreeMap::new();
    for entry in LogReader::new(dir).entries(0)? {
        let Event::Admission(admission) = &entry.leaf.event else { continue };
        if admission.spiffe_id != id {
            continue;
        }
        let object = entry.opened().find(|(name, _)| *name == "object").map(|(_, object)| object.to_owned());
        let fresh = || Used { count: 0, last: entry.leaf.time, objects: BTreeSet::new() };
        let seen = used.entry(admission.operation.clone()).or_insert_with(fresh);
        seen.count += 1;
        seen.last = seen.last.max(entry.leaf.time);
        seen.objects.extend(object);
    }
    if used.is_empty() {
        return Err(Failure::failed(format!(
            "nothing is recorded that {id} was let through to do: call first, then ask"
        )));
    }
    let operations: Vec<&String> = used.keys().collect();
    let details: Vec<Value> = used.iter().map(|(name, seen)| detail(name, seen)).collect();
    if global.json {
        let recorded: Vec<Value> = used.iter().map(|(name, seen)| view(name, seen)).collect();
        context::print(
            global,
            &json!({"recorded": recorded, "operations": operations, "authorization_details": details}),
        );
        return Ok(());
    }
    context::say(global, "what it was let through to do:");
    for (name, seen) in &used {
        let objects = if seen.objects.len() == 1 { "object" } else { "objects" };
        let line =
            format!("  {name}  {} times, {} {objects}, last {}", seen.count, seen.objects.len(), seen.last.rfc3339());
        context::say(global, &context::harmless(&line));
    }
    context::say(global, "the operations of its entry, no wider than that:");
    context::out(&format!("operations = {}\n", toml::Value::from(operations.into_iter().cloned().collect::<Vec<_>>())));
    context::say(global, "the same as authorization details, for tokens that reach no further than its objects:");
    context::out(&format!("{}\n", json!(details)));
    Ok(())
}

fn view(name: &str, seen: &Used) -> Value {
    let objects: Vec<&String> = seen.objects.iter().take(LISTED).collect();
    json!({"operation": name, "count": seen.count, "last": seen.last.rfc3339(), "objects": objects})
}

fn detail(name: &str, seen: &Used) -> Value {
    let mut detail = json!({"type": crate::protocol::authorization_details::TYPE, "actions": [name]});
    if let Some(inside) = common(&seen.objects) {
        detail["identifier"] = inside.into();
    }
    detail
}

/// The object that all of these are or are inside of; none where that is everything.
fn common(objects: &BTreeSet<String>) -> Option<String> {
    let mut all = objects.iter();
    let mut shared: Vec<&str> = all.next()?.split('/').collect();
    for object in all {
        let same = shared.iter().zip(object.split('/')).take_while(|(a, b)| *a == b).count();
        shared.truncate(same);
    }
    let path = shared.join("/");
    (path.len() > 1).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t4_the_narrowest_object_holds_all_that_was_seen() {
        let of = |objects: &[&str]| common(&objects.iter().map(|o| (*o).to_owned()).collect());
        assert_eq!(of(&["/runs/r1"]).as_deref(), Some("/runs/r1"));
        assert_eq!(of(&["/runs/r1/nodes/n1", "/runs/r1/nodes/n2"]).as_deref(), Some("/runs/r1/nodes"));
        assert_eq!(of(&["/runs/r1", "/runs/r10"]).as_deref(), Some("/runs"), "whole segments");
        assert_eq!(of(&["/runs/r1", "/keys"]), None);
        assert_eq!(of(&[]), None);
    }
}
