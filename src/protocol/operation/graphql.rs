//! GraphQL over HTTP, as policy sees a request: the operation's kind and name, and the fields at its top.

use std::collections::BTreeSet;

use apollo_parser::Parser;
use apollo_parser::cst::{CstNode as _, Definition, Document, OperationDefinition, Selection, SelectionSet};
use serde_json::{Map, Value};

use crate::protocol::operation::{BodyError, Seen, member};

/// Deepest nesting that is read.
const DEPTH: usize = 64;
/// Most tokens of a document.
const TOKENS: usize = 20_000;

fn shape(why: impl Into<String>) -> BodyError {
    BodyError::Shape { what: "GraphQL request", why: why.into() }
}

/// Reads `context.graphql`: `kind`, `name`, empty where the operation has none, and `fields`.
pub(super) fn read(body: &Value, seen: &Seen<'_>) -> Result<Map<String, Value>, BodyError> {
    if !seen.query.is_empty() {
        return Err(shape("its URL has a query, and some servers read the operation there first"));
    }
    let query = member(body, "query")?.and_then(Value::as_str);
    let query = query.ok_or_else(|| shape("it has no query; persisted queries are not read"))?;
    let wanted = match member(body, "operationName")? {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) => Some(name.as_str()),
        Some(_) => return Err(shape("operationName is no string")),
    };
    let tree = Parser::new(query).recursion_limit(DEPTH).token_limit(TOKENS).parse();
    if let Some(error) = tree.errors().next() {
        return Err(shape(error.message()));
    }
    let document = tree.document();
    let operation = operation(&document, wanted)?;
    let mut fields = BTreeSet::new();
    let mut within = BTreeSet::new();
    if let Some(selections) = operation.selection_set() {
        top_fields(&document, &selections, &mut within, &mut fields)?;
    }
    let kind = match operation.operation_type() {
        Some(kind) if kind.mutation_token().is_some() => "mutation",
        Some(kind) if kind.subscription_token().is_some() => "subscription",
        _ => "query",
    };
    Ok(Map::from_iter([
        ("kind".to_owned(), kind.into()),
        ("name".to_owned(), name_of(&operation).unwrap_or_default().into()),
        ("fields".to_owned(), fields.into_iter().collect::<Vec<_>>().into()),
    ]))
}

fn name_of(operation: &OperationDefinition) -> Option<String> {
    Some(operation.name()?.text().to_string())
}

/// The one operation that is carried out (GraphQL section 6.1).
fn operation(document: &Document, wanted: Option<&str>) -> Result<OperationDefinition, BodyError> {
    let mut operations = Vec::new();
    for definition in document.definitions() {
        match definition {
            Definition::OperationDefinition(operation) => operations.push(operation),
            Definition::FragmentDefinition(_) => {}
            _ => return Err(shape("it holds a definition that is not executable")),
        }
    }
    let mut fitting = operations.iter().filter(|o| wanted.is_none_or(|w| name_of(o).as_deref() == Some(w)));
    match (fitting.next(), fitting.next()) {
        (Some(one), None) => Ok(one.clone()),
        (None, _) => Err(shape("it has no operation of that name")),
        _ => Err(shape("it has several operations, and operationName names no single one")),
    }
}

/// The fields that a selection set comes to, through fragments.
fn top_fields(
    document: &Document,
    selections: &SelectionSet,
    within: &mut BTreeSet<String>,
    fields: &mut BTreeSet<String>,
) -> Result<(), BodyError> {
    for selection in selections.selections() {
        match selection {
            Selection::Field(field) => {
                fields.insert(field.name().map(|n| n.text().to_string()).unwrap_or_default());
            }
            Selection::InlineFragment(fragment) => {
                if let Some(inner) = fragment.selection_set() {
                    top_fields(document, &inner, within, fields)?;
                }
            }
            Selection::FragmentSpread(spread) => {
                let name = spread.fragment_name().map(|n| n.syntax().text().to_string()).unwrap_or_default();
                let name = name.trim().to_owned();
                if !within.insert(name.clone()) {
                    continue;
                }
                let inner = fragment(document, &name).ok_or_else(|| shape(format!("it has no fragment {name}")))?;
                top_fields(document, &inner, within, fields)?;
            }
        }
    }
    Ok(())
}

fn fragment(document: &Document, name: &str) -> Option<SelectionSet> {
    document.definitions().find_map(|definition| match definition {
        Definition::FragmentDefinition(f)
            if f.fragment_name().is_some_and(|n| n.syntax().text().to_string().trim() == name) =>
        {
            f.selection_set()
        }
        _ => None,
    })
}
