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
/// Details that one token may have.
const DETAILS: usize = 16;

/// What is recorded of one operation.
struct Used {
    count: u64,
    last: Timestamp,
    objects: BTreeSet<String>,
}

/// What a workload was let through to do: by route, then by operation.
type Recorded = BTreeMap<String, BTreeMap<String, Used>>;

/// Reads the evidence of a workload and proposes.
pub fn suggest(global: &Global, id: &str) -> Result<(), Failure> {
    let id: SpiffeId = id.parse().map_err(|e| Failure::usage(format!("{id:?}: {e}")))?;
    let recorded = read(global, &id)?;
    let all = || recorded.values().flatten();
    let operations: Vec<&String> = all().map(|(name, _)| name).collect();
    let details: Vec<(&String, Vec<Value>)> = recorded.iter().map(|(route, used)| (route, details(used))).collect();
    if global.json {
        let seen: Vec<Value> = all().map(|(name, seen)| view(name, seen)).collect();
        let details: BTreeMap<&String, Vec<Value>> = details.into_iter().collect();
        context::print(global, &json!({"recorded": seen, "operations": operations, "authorization_details": details}));
        return Ok(());
    }
    context::say(global, "what it was let through to do:");
    for (name, seen) in all() {
        let objects = if seen.objects.len() == 1 { "object" } else { "objects" };
        let (count, many, last) = (seen.count, seen.objects.len(), seen.last.rfc3339());
        context::say(global, &context::harmless(&format!("  {name}  {count} times, {many} {objects}, last {last}")));
    }
    context::say(global, "the operations of its entry, no wider than that:");
    let names: Vec<String> = operations.into_iter().cloned().collect();
    context::out(&format!("operations = {}\n", toml::Value::from(names)));
    for (route, details) in details {
        let text = format!("as authorization details, for tokens of the route {route}:");
        context::say(global, &context::harmless(&text));
        context::out(&format!("{}\n", json!(details)));
    }
    Ok(())
}

fn read(global: &Global, id: &SpiffeId) -> Result<Recorded, Failure> {
    let dir = EvidenceDir::of_data_dir(&context::data_dir(global)?);
    if !dir.vkey().exists() {
        let text = format!("there is no evidence in {}; is --data-dir the service's?", dir.root().display());
        return Err(Failure::failed(text));
    }
    let mut recorded = Recorded::new();
    for entry in LogReader::new(dir).entries(0)? {
        let Event::Admission(admission) = &entry.leaf.event else { continue };
        if admission.spiffe_id != *id {
            continue;
        }
        let object = entry.opened().find(|(name, _)| *name == "object").map(|(_, object)| object.to_owned());
        let fresh = || Used { count: 0, last: entry.leaf.time, objects: BTreeSet::new() };
        let of_route = recorded.entry(admission.route.clone()).or_default();
        let seen = of_route.entry(admission.operation.clone()).or_insert_with(fresh);
        seen.count += 1;
        seen.last = seen.last.max(entry.leaf.time);
        seen.objects.extend(object);
    }
    if recorded.is_empty() {
        return Err(Failure::failed(format!(
            "nothing is recorded that {id} was let through to do: call first, then ask"
        )));
    }
    Ok(recorded)
}

fn view(name: &str, seen: &Used) -> Value {
    let objects: Vec<&String> = seen.objects.iter().take(LISTED).collect();
    json!({"operation": name, "count": seen.count, "last": seen.last.rfc3339(), "objects": objects})
}

/// One detail for each object with what was done to it. Where those are too many for a token, one for each operation, on
/// whatever holds all of its objects.
fn details(used: &BTreeMap<String, Used>) -> Vec<Value> {
    let mut by_object: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
    for (name, seen) in used {
        seen.objects.iter().for_each(|object| by_object.entry(object).or_default().push(name));
    }
    let detail = |actions: Value, object: Option<String>| {
        let mut detail = json!({"type": crate::protocol::authorization_details::TYPE, "actions": actions});
        if let Some(object) = object.filter(|o| o.len() > 1) {
            detail["identifier"] = object.into();
        }
        detail
    };
    if by_object.len() <= DETAILS {
        return by_object.into_iter().map(|(object, names)| detail(json!(names), Some(object.clone()))).collect();
    }
    used.iter().map(|(name, seen)| detail(json!([name]), common(&seen.objects))).collect()
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

    #[test]
    fn t4_each_object_has_its_detail_unless_they_are_too_many_for_a_token() {
        let used = |objects: usize| {
            let objects = (0..objects).map(|n| format!("/runs/r{n}")).collect();
            let seen = Used { count: 1, last: Timestamp::ZERO, objects };
            details(&BTreeMap::from([("tot.read".to_owned(), seen)]))
        };
        assert_eq!(used(2).iter().map(|d| &d["identifier"]).collect::<Vec<_>>(), ["/runs/r0", "/runs/r1"]);
        let many = used(17);
        assert_eq!((many.len(), &many[0]["identifier"]), (1, &json!("/runs")));
    }
}
