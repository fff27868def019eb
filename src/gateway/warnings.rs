//! What of a configuration is sound and most likely not meant.

use crate::gateway::config::Access;
use crate::gateway::routes::{Route, Rules};
use crate::protocol::operation::{CALL, MESSAGE, Operation, Reads};

impl Rules {
    /// Public routes, and operations that can never match: a policy on them decides nothing.
    pub fn warnings(&self) -> Vec<String> {
        self.routes().iter().flat_map(of_route).collect()
    }
}

fn of_route(route: &Route) -> Vec<String> {
    let mut found = Vec::new();
    if route.access == Access::DangerPublic {
        let names: Vec<&str> = route.operations.iter().map(|o| o.name.as_str()).collect();
        found.push(format!(
            "route {:?} is public: anybody may call {}, without proof, policy or approval, and fill the log and the disk; limit their rate in front of it",
            route.name,
            names.join(", ")
        ));
    }
    for (at, operation) in route.operations.iter().enumerate() {
        if let Some(why) = never(route, &route.operations[..at], operation) {
            found.push(format!("route {:?}: operation {:?} never matches, for {why}", route.name, operation.name));
        }
    }
    found
}

/// Why no request comes to an operation.
fn never(route: &Route, before: &[Operation], operation: &Operation) -> Option<String> {
    if !route.matcher.path.meets(&operation.path) {
        return Some("no path of its match is one of the route's match.path; give both the same beginning".into());
    }
    // What is part of an exchange comes in a request of another method.
    let part = [MESSAGE, CALL].contains(&operation.method.as_str());
    if !part && !route.matcher.takes(&operation.method) {
        return Some(format!("{} is not among the route's match.methods", operation.method));
    }
    let covers = |o: &&Operation| {
        o.method == operation.method && o.path.covers(&operation.path) && o.select.is_empty() && o.reads != Reads::Grpc
    };
    let first = before.iter().find(covers)?;
    Some(format!("{:?} stands before it and has all its requests; put it first", first.name))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::gateway::config::RouteConfig;
    use crate::gateway::routes::RuleSources;
    use crate::protocol::htu::Origin;

    fn warnings(of_match: &str, operations: &[(&str, &str)]) -> Vec<String> {
        let mut text = format!(
            "name = \"r\"\nmatch = {{ {of_match} }}\nresource = \"/v1\"\nupstream = {{ url = \"http://127.0.0.1:1\" }}\n"
        );
        for (name, matcher) in operations {
            text += &format!("[[operation]]\nname = \"{name}\"\nmatch = \"{matcher}\"\nobject = \"/it\"\n");
        }
        let route: RouteConfig = toml::from_str(&text).expect("a route");
        let origins = [Origin::parse("https://127.0.0.1:8443").expect("an origin")];
        let rules = Rules::load(&RuleSources {
            routes: &[route],
            masks: &std::collections::BTreeMap::new(),
            policies: &[],
            origins: &origins,
            base: Path::new("."),
            own: None,
            present: None,
        });
        rules.expect("sound").warnings()
    }

    #[test]
    fn operations_that_no_request_comes_to_are_told() {
        let path = "path = \"/v1/**\"";
        assert_eq!(warnings(path, &[("a", "GET /v1/runs"), ("b", "POST /v1/**"), ("c", "GET /{v}/x")]), [""; 0]);
        for (of_match, operations, why) in [
            (path, &[("a", "GET /v2/runs")][..], "\"a\" never matches, for no path of its match"),
            ("path = \"/v1/runs\"", &[("a", "GET /v1/runs/{run}")], "no path of its match"),
            ("path = \"/v1/**\", methods = [\"GET\"]", &[("a", "POST /v1/x")], "POST is not among"),
            (path, &[("a", "GET /v1/**"), ("b", "GET /v1/x")], "\"a\" stands before it"),
        ] {
            let told = warnings(of_match, operations);
            assert!(told.len() == 1 && told[0].contains(why), "{of_match}: {told:?}");
        }
    }
}
