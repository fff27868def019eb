//! Strict JSON (RFC 8259): no duplicate member names, no byte order mark, nothing after the value.
//!
//! A body or claim set with two readings is refused, since the next reader may pick the other one.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Why a text is not strict JSON.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{what} at line {line} column {column}")]
pub struct JsonError {
    /// What is wrong, without the input's own text.
    pub what: &'static str,
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
}

/// Parses one strict JSON value.
pub fn parse(bytes: &[u8]) -> Result<Value, JsonError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict.deserialize(&mut deserializer).map_err(|e| describe(&e))?;
    deserializer.end().map_err(|e| describe(&e))?;
    Ok(value)
}

/// Parses one strict JSON object.
pub fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, JsonError> {
    match parse(bytes)? {
        Value::Object(map) => Ok(map),
        _ => Err(JsonError { what: "not an object", line: 1, column: 1 }),
    }
}

fn describe(error: &serde_json::Error) -> JsonError {
    let text = error.to_string();
    let what = if text.starts_with(DUPLICATE) {
        DUPLICATE
    } else if text.starts_with("recursion limit") {
        "nested too deeply"
    } else if text.starts_with("trailing") {
        "something follows the value"
    } else {
        "not JSON"
    };
    JsonError { what, line: error.line(), column: error.column() }
}

const DUPLICATE: &str = "a member name occurs twice";

struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("not a number"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(Self)?;
            if members.insert(name, value).is_some() {
                return Err(de::Error::custom(DUPLICATE));
            }
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unstrict_text_is_refused_by_name() {
        let deep = "[".repeat(200);
        let rows: &[(&[u8], &str)] = &[
            (br#"{"a":1,"a":2}"#, DUPLICATE),
            (br#"{"a":1,"\u0061":2}"#, DUPLICATE),
            (br#"[{"x":{"a":1,"a":1}}]"#, DUPLICATE),
            (b"{} {}", "something follows the value"),
            (b"\xef\xbb\xbf{}", "not JSON"),
            (b"{\"a\":\"\xff\"}", "not JSON"),
            (b"{'a':1}", "not JSON"),
            (b"NaN", "not JSON"),
            (b"", "not JSON"),
            (deep.as_bytes(), "nested too deeply"),
        ];
        for (text, want) in rows {
            assert_eq!(parse(text).expect_err("refused").what, *want, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn strict_json_reads_as_serde_json_does() {
        let text = br#"{"a":[1,-2,3.5,true,null,"x\ny"],"b":{"c":{}}}"#;
        assert_eq!(parse(text).expect("strict"), serde_json::from_slice::<Value>(text).expect("json"));
    }
}
