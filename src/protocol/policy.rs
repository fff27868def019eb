//! Intent → Cedar → Verdict. Default deny, `forbid` wins, and an evaluation error denies by name.

mod memo;
pub mod mint;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::LazyLock;

use cedar_policy::{
    ActionConstraint, Authorizer, Context, Decision as CedarDecision, Effect, Entities, Entity, EntityId,
    EntityTypeName, EntityUid, Policy, PolicyId, PolicySet, Request, RestrictedExpression, Schema, ValidationMode,
    Validator,
};

use crate::domain::digest::Sha256;
use crate::domain::intent::{Intent, Principal};
use crate::domain::verdict::{ApprovalRule, Decision, Verdict};
use crate::protocol::operation::{FieldType, Operation, Reads};
use crate::protocol::policy::memo::Memo;

/// Why a policy set is refused at load.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("{file}: {what}")]
    Parse { file: String, what: String },
    #[error("{file}: a policy has no @id, so no decision could name it")]
    NoId { file: String },
    #[error("two policies have the @id {0:?}")]
    DuplicateId(String),
    #[error(
        "policy {id:?}: @approval is {value:?}, but has the form \"1 of GROUP\" (one approver; more are not offered yet)"
    )]
    Approval { id: String, value: String },
    #[error("the schema made from the routes is refused: {0}")]
    Schema(String),
    #[error("the policies do not fit the routes: {0}")]
    Validation(String),
}

/// One policy file: its name, for messages, and its text.
pub struct PolicySource {
    /// File name.
    pub name: String,
    /// Cedar.
    pub text: String,
}

#[derive(Clone, Debug)]
struct Obligation {
    approval: Option<ApprovalRule>,
    fix: Option<String>,
}

/// The policies that can concern an action.
struct Slice {
    policies: PolicySet,
    /// Whether any of them asks for the time, so that the same question may have another answer later.
    timed: bool,
}

/// A validated policy set, indexed by action so that a request sees a handful.
pub struct PolicyEngine {
    by_action: HashMap<String, Slice>,
    any_action: Slice,
    memo: Memo,
    whole: PolicySet,
    obligations: HashMap<PolicyId, Obligation>,
    schema: Schema,
    schema_text: String,
    version: String,
}

impl PolicyEngine {
    /// Parses, validates strictly against the schema made from `operations`, and indexes.
    pub fn load(sources: &[PolicySource], operations: &[Operation]) -> Result<Self, PolicyError> {
        if operations.iter().any(|o| o.name == mint::ACTION) {
            return Err(PolicyError::Schema(format!(
                "{} is no name for an operation: it stands for minting",
                mint::ACTION
            )));
        }
        let schema_text = schema(operations);
        let (schema, _) = Schema::from_cedarschema_str(&schema_text).map_err(|e| PolicyError::Schema(e.to_string()))?;
        let mut whole = PolicySet::new();
        for source in sources {
            add_file(&mut whole, source)?;
        }
        let result = Validator::new(schema.clone()).validate(&whole, ValidationMode::Strict);
        if !result.validation_passed() {
            let errors: Vec<String> = result.validation_errors().map(ToString::to_string).collect();
            return Err(PolicyError::Validation(errors.join("; ")));
        }
        let obligations = whole.policies().map(|p| Ok((p.id().clone(), obligation(p)?))).collect::<Result<_, _>>()?;
        let names = operations.iter().map(|o| o.name.as_str()).chain([mint::ACTION]);
        let by_action = names.map(|name| (name.to_owned(), slice(&whole, Some(name)))).collect();
        let any_action = slice(&whole, None);
        let version = version(sources, &schema_text);
        Ok(Self { by_action, any_action, memo: Memo::default(), whole, obligations, schema, schema_text, version })
    }

    /// Digest of policies and schema.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The generated schema, in Cedar's own notation.
    pub fn schema_text(&self) -> &str {
        &self.schema_text
    }

    /// Decides one intent with the policies that can concern its action.
    pub fn decide(&self, intent: &Intent) -> Verdict {
        let slice = self.by_action.get(&intent.operation).unwrap_or(&self.any_action);
        let decide = || self.decide_with(&slice.policies, intent);
        if slice.timed { decide() } else { self.memo.of(intent, decide) }
    }

    /// Decides with the whole set: what [`Self::decide`] must equal.
    pub fn decide_unindexed(&self, intent: &Intent) -> Verdict {
        self.decide_with(&self.whole, intent)
    }

    fn decide_with(&self, policies: &PolicySet, intent: &Intent) -> Verdict {
        self.judge(policies, self.question(intent))
    }

    fn judge(&self, policies: &PolicySet, question: Result<(Request, Entities), String>) -> Verdict {
        let (request, entities) = match question {
            Ok(question) => question,
            Err(reason) => return self.denied(reason),
        };
        let response = Authorizer::new().is_authorized(&request, policies, &entities);
        let errors: Vec<String> = response.diagnostics().errors().map(ToString::to_string).collect();
        if !errors.is_empty() {
            return self.denied(format!("a policy could not be evaluated: {}", errors.join("; ")));
        }
        let mut deciding: Vec<&PolicyId> = response.diagnostics().reason().collect();
        deciding.sort();
        let rules = deciding.iter().map(ToString::to_string).collect::<Vec<_>>();
        let obligations: Vec<&Obligation> = deciding.iter().filter_map(|id| self.obligations.get(*id)).collect();
        let fix = obligations.iter().find_map(|o| o.fix.clone());
        let base = Verdict { decision: Decision::Deny, rules, policy_version: self.version.clone(), fix, reason: None };
        match response.decision() {
            CedarDecision::Deny if base.rules.is_empty() => {
                Verdict { reason: Some("no policy permits it".into()), ..base }
            }
            CedarDecision::Deny => base,
            CedarDecision::Allow => approvals(base, &obligations),
        }
    }

    fn denied(&self, reason: String) -> Verdict {
        Verdict {
            decision: Decision::Deny,
            rules: Vec::new(),
            policy_version: self.version.clone(),
            fix: None,
            reason: Some(reason),
        }
    }

    fn question(&self, intent: &Intent) -> Result<(Request, Entities), String> {
        let principal = uid("Workload", intent.principal.spiffe_id.as_str());
        let action = uid("Action", &intent.operation);
        let route = uid("Route", &intent.route);
        let objects = object_chain(&intent.route, &intent.object);
        let resource = uid("Object", objects.first().ok_or("the object is empty")?);
        let pairs = intent.context.iter().map(|(name, value)| Ok((name.clone(), expression(value)?)));
        let context = Context::from_pairs(pairs.collect::<Result<Vec<_>, String>>()?)
            .map_err(|e| format!("the context cannot be built: {e}"))?;
        let request = Request::new(principal.clone(), action, resource, context, Some(&self.schema))
            .map_err(|e| format!("the request does not fit the schema: {e}"))?;
        let mut entities = vec![workload(principal, &intent.principal)?, Entity::with_uid(route.clone())];
        entities.push(Entity::with_uid(uid("Person", &intent.principal.owner)));
        let groups: HashSet<&String> = intent.principal.groups.iter().collect();
        entities.extend(groups.into_iter().map(|g| Entity::with_uid(uid("Group", g))));
        for (i, object) in objects.iter().enumerate() {
            let parent = objects.get(i + 1).map_or_else(|| route.clone(), |p| uid("Object", p));
            entities.push(Entity::new_no_attrs(uid("Object", object), HashSet::from([parent])));
        }
        let entities = Entities::from_entities(entities, None).map_err(|e| e.to_string())?;
        Ok((request, entities))
    }
}

/// A context value. Built directly: Cedar's reading of JSON tries each of its escapes on every value.
fn expression(value: &serde_json::Value) -> Result<RestrictedExpression, String> {
    use serde_json::Value;
    Ok(match value {
        Value::Bool(b) => RestrictedExpression::new_bool(*b),
        Value::String(text) => RestrictedExpression::new_string(text.clone()),
        Value::Number(n) => {
            RestrictedExpression::new_long(n.as_i64().ok_or_else(|| format!("{n} is no 64-bit whole number"))?)
        }
        Value::Array(items) => {
            RestrictedExpression::new_set(items.iter().map(expression).collect::<Result<Vec<_>, _>>()?)
        }
        Value::Object(members) => {
            let fields = members.iter().map(|(name, v)| Ok((name.clone(), expression(v)?)));
            RestrictedExpression::new_record(fields.collect::<Result<Vec<_>, String>>()?).map_err(|e| e.to_string())?
        }
        Value::Null => return Err("null has no counterpart in policies".into()),
    })
}

fn workload(name: EntityUid, principal: &Principal) -> Result<Entity, String> {
    let groups = principal.groups.iter().map(|g| uid("Group", g)).collect();
    let owner = RestrictedExpression::new_entity_uid(uid("Person", &principal.owner));
    Entity::new(name, HashMap::from([("owner".to_owned(), owner)]), groups).map_err(|e| e.to_string())
}

/// `tot/runs/r1/nodes/n7` and its ancestors, nearest first: each pair of segments is one level.
fn object_chain(route: &str, object: &str) -> Vec<String> {
    let segments: Vec<&str> = object.split('/').filter(|s| !s.is_empty()).collect();
    let mut chain = Vec::new();
    let mut end = segments.len();
    while end > 0 {
        chain.push(format!("{route}/{}", segments[..end].join("/")));
        end = end.saturating_sub(2);
    }
    if chain.is_empty() {
        chain.push(route.to_owned());
    }
    chain
}

/// The names of types, read once: reading one costs as much as deciding.
static TYPES: LazyLock<HashMap<&'static str, EntityTypeName>> = LazyLock::new(|| {
    let names = ["Action", "Audience", "Group", "Object", "Person", "Route", "Workload"];
    names.into_iter().map(|name| (name, name.parse().expect("a type name"))).collect()
});

fn uid(kind: &str, id: &str) -> EntityUid {
    let kind = TYPES.get(kind).expect("the type names are constants of this module");
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

fn approvals(base: Verdict, obligations: &[&Obligation]) -> Verdict {
    let mut rules: Vec<&ApprovalRule> = obligations.iter().filter_map(|o| o.approval.as_ref()).collect();
    rules.sort_by(|a, b| (b.needed, &a.group).cmp(&(a.needed, &b.group)));
    match rules.as_slice() {
        [] => Verdict { decision: Decision::Allow, ..base },
        [first, rest @ ..] if rest.iter().all(|r| r.group == first.group) => {
            Verdict { decision: Decision::AllowWithApproval((*first).clone()), ..base }
        }
        _ => Verdict { reason: Some("the permits ask for approval by different groups".into()), ..base },
    }
}

fn add_file(whole: &mut PolicySet, source: &PolicySource) -> Result<(), PolicyError> {
    let parse = |what: String| PolicyError::Parse { file: source.name.clone(), what };
    let parsed: PolicySet = source.text.parse().map_err(|e: cedar_policy::ParseErrors| parse(e.to_string()))?;
    for policy in parsed.policies() {
        let id = policy.annotation("id").ok_or_else(|| PolicyError::NoId { file: source.name.clone() })?.to_owned();
        let named = policy.new_id(PolicyId::new(&id));
        whole.add(named).map_err(|_| PolicyError::DuplicateId(id))?;
    }
    Ok(())
}

fn obligation(policy: &Policy) -> Result<Obligation, PolicyError> {
    let approval = match policy.annotation("approval") {
        None => None,
        Some(value) => Some(
            approval_rule(value)
                .ok_or_else(|| PolicyError::Approval { id: policy.id().to_string(), value: value.to_owned() })?,
        ),
    };
    Ok(Obligation { approval, fix: policy.annotation("fix").map(ToOwned::to_owned) })
}

/// Reads `1 of security`.
fn approval_rule(text: &str) -> Option<ApprovalRule> {
    let (needed, group) = text.split_once(" of ")?;
    (needed == "1" && !group.is_empty()).then(|| ApprovalRule { needed: 1, group: group.to_owned() })
}

fn slice(whole: &PolicySet, action: Option<&str>) -> Slice {
    let mut policies = PolicySet::new();
    let mut timed = false;
    for policy in whole.policies() {
        if concerns(policy, action) {
            timed |= asks_for_time(policy);
            policies.add(policy.clone()).expect("ids of the whole set are distinct");
        }
    }
    Slice { policies, timed }
}

/// Whether the time may count, read from the form without escapes: a policy that merely says the word is taken to ask, too.
fn asks_for_time(policy: &Policy) -> bool {
    policy.to_json().map_or(true, |json| json.to_string().contains(memo::TIME))
}

fn concerns(policy: &Policy, action: Option<&str>) -> bool {
    let named = |uids: &[EntityUid]| action.is_some_and(|a| uids.iter().any(|u| u.id().unescaped() == a));
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(one) => named(&[one]),
        ActionConstraint::In(many) => named(&many),
    }
}

fn version(sources: &[PolicySource], schema: &str) -> String {
    let mut parts: Vec<&[u8]> = vec![schema.as_bytes()];
    for source in sources {
        parts.push(b"\0");
        parts.push(source.text.as_bytes());
    }
    Sha256::of_parts(&parts).to_string()
}

/// The Cedar schema of a set of operations: operators write no action declarations.
pub fn schema(operations: &[Operation]) -> String {
    let mut text = String::from(
        "entity Group;\nentity Person in [Group];\nentity Workload in [Group] { owner?: Person };\nentity Route;\nentity Object in [Object, Route];\n",
    );
    let mut declared: BTreeMap<&str, String> = BTreeMap::new();
    for operation in operations {
        declared.entry(&operation.name).or_insert_with(|| action(operation));
    }
    declared.values().for_each(|a| text.push_str(a));
    text.push_str(mint::SCHEMA);
    text
}

fn action(operation: &Operation) -> String {
    let params: Vec<String> = operation.parameters().map(|p| format!("{p:?}: String")).collect();
    let fields: Vec<String> = operation
        .body
        .iter()
        .map(|f| {
            let kind = match f.kind {
                FieldType::Long => "Long",
                FieldType::String => "String",
                FieldType::Bool => "Bool",
                FieldType::Strings => "Set<String>",
            };
            format!("{:?}{}: {kind}", f.name, if f.optional { "?" } else { "" })
        })
        .collect();
    let mut body = if fields.is_empty() { String::new() } else { format!(", body: {{ {} }}", fields.join(", ")) };
    body.push_str(match operation.reads {
        Reads::Json | Reads::Grpc => "",
        Reads::Chat => ", chat: { model: String, stream: Bool, tools: Set<String>, called: Set<String> }",
        Reads::Mcp => ", mcp: { method: String, name: String, version: String, notification: Bool }",
        Reads::Graphql => ", graphql: { kind: String, name: String, fields: Set<String> }",
    });
    format!(
        "action {:?} appliesTo {{ principal: [Workload], resource: [Object], context: {{ method: String, time: Long, scope: Set<String>, client_certificate: Bool, subject: String, actors: Set<String>, params: {{ {} }}{body} }} }};\n",
        operation.name,
        params.join(", ")
    )
}

/// Permits without `@approval` whose action also has one with it: both must be satisfied, which surprises some.
pub fn warnings(sources: &[PolicySource]) -> Vec<String> {
    let mut set = PolicySet::new();
    if sources.iter().any(|s| add_file(&mut set, s).is_err()) {
        return Vec::new();
    }
    let permits: Vec<&Policy> = set.policies().filter(|p| p.effect() == Effect::Permit).collect();
    let mut found = Vec::new();
    for asking in permits.iter().filter(|p| p.annotation("approval").is_some()) {
        for plain in permits.iter().filter(|p| p.annotation("approval").is_none()) {
            if overlap(asking, plain) {
                found.push(format!(
                    "{:?} asks for approval and {:?} permits the same action without: where both hold, approval is needed",
                    asking.id().to_string(),
                    plain.id().to_string()
                ));
            }
        }
    }
    found
}

fn overlap(a: &Policy, b: &Policy) -> bool {
    let names = |p: &Policy| match p.action_constraint() {
        ActionConstraint::Any => None,
        ActionConstraint::Eq(one) => Some(vec![one]),
        ActionConstraint::In(many) => Some(many),
    };
    match (names(a), names(b)) {
        (Some(a), Some(b)) => a.iter().any(|x| b.contains(x)),
        _ => true,
    }
}

#[cfg(test)]
mod tests;
