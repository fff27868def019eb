//! What the engine offers as tools: to the MCP facade, and at `…/tools/{name}`.

use serde_json::{Map, Value, json};

use crate::tot::evaluate;
use crate::tot::propose::{State, propose};
use crate::tot::search;
use crate::tot::value::{Judge, Valuer};

/// Why a tool does not do its work.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ToolError {
    #[error("there is no tool {0}; there are: solve, propose, value, check")]
    Unknown(String),
    #[error("{0}")]
    Arguments(String),
}

/// The tools, as MCP lists them.
pub fn list() -> Value {
    let numbers = json!({"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 13}, "minItems": 1, "maxItems": 4});
    let with_numbers = json!({"type": "object", "properties": {"input": numbers}, "required": ["input"]});
    json!([
        {"name": "solve", "description": "Solves one Game of 24 by breadth-first search", "inputSchema": with_numbers},
        {"name": "propose", "description": "The thoughts that follow from the numbers that are left", "inputSchema": with_numbers},
        {"name": "value", "description": "How likely the numbers that are left reach 24", "inputSchema": with_numbers},
        {
            "name": "check",
            "description": "Whether an expression uses the numbers once each and comes to 24",
            "inputSchema": {
                "type": "object",
                "properties": {"input": numbers, "expression": {"type": "string"}},
                "required": ["input", "expression"],
            },
        },
    ])
}

/// Calls a tool.
pub fn call(name: &str, arguments: &Map<String, Value>) -> Result<Value, ToolError> {
    if !["solve", "propose", "value", "check"].contains(&name) {
        return Err(ToolError::Unknown(name.to_owned()));
    }
    let numbers = numbers(arguments)?;
    Ok(match name {
        "solve" => {
            if numbers.len() != 4 {
                return Err(ToolError::Arguments("input is four whole numbers from 1 to 13".into()));
            }
            json!({"expression": search::solve(&numbers, 5, Valuer::Heuristic)})
        }
        "propose" => {
            let thoughts: Vec<String> = propose(&State::start(&numbers)).into_iter().map(|t| t.text).collect();
            json!({"thoughts": thoughts})
        }
        "value" => json!({"value": Judge::default().value(Valuer::Heuristic, &State::start(&numbers))}),
        _ => {
            let expression = arguments.get("expression").and_then(Value::as_str);
            let expression = expression.ok_or_else(|| ToolError::Arguments("expression is a string".into()))?;
            match evaluate::check(expression, &numbers) {
                Ok(()) => json!({"right": true}),
                Err(error) => json!({"right": false, "why": error.to_string()}),
            }
        }
    })
}

fn numbers(arguments: &Map<String, Value>) -> Result<Vec<i64>, ToolError> {
    let wrong = || ToolError::Arguments("input is one to four whole numbers from 1 to 13".into());
    let items = arguments.get("input").and_then(Value::as_array).ok_or_else(wrong)?;
    let numbers: Option<Vec<i64>> = items.iter().map(Value::as_i64).collect();
    numbers.filter(|n| (1..=4).contains(&n.len()) && n.iter().all(|n| (1..=13).contains(n))).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(name: &str, arguments: Value) -> Result<Value, ToolError> {
        call(name, arguments.as_object().expect("an object"))
    }

    #[test]
    fn tools_do_what_they_say_and_refuse_what_they_cannot() {
        let solved = called("solve", json!({"input": [4, 4, 10, 1]})).expect("solvable");
        let expression = solved["expression"].as_str().expect("an expression").to_owned();
        assert_eq!(
            called("check", json!({"input": [4, 4, 10, 1], "expression": expression})),
            Ok(json!({"right": true}))
        );
        assert_eq!(called("check", json!({"input": [1], "expression": "1"})).expect("read")["right"], false);
        assert!(called("propose", json!({"input": [4, 6]})).expect("thoughts")["thoughts"][0].is_string());
        assert_eq!(called("value", json!({"input": [4, 6]})), Ok(json!({"value": 20.0})));
        assert_eq!(called("solve", json!({"input": [1, 1, 1, 1]})), Ok(json!({"expression": null})));
        for (name, arguments) in [
            ("drop", json!({"input": [1]})),
            ("solve", json!({"input": [1, 2]})),
            ("value", json!({"input": [0]})),
            ("value", json!({"input": []})),
            ("value", json!({"input": "1"})),
            ("check", json!({"input": [1]})),
            ("propose", json!({})),
        ] {
            assert!(called(name, arguments.clone()).is_err(), "{name} {arguments}");
        }
    }
}
