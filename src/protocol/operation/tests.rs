//! What each kind of body comes to, and that one with two readings comes to nothing.

use serde_json::json;

use super::calls::{CallGate, Held, ToolCall};
use super::*;

fn body_fields(of: &[BodyField], body: &[u8]) -> Result<Map<String, Value>, BodyError> {
    fields(of, &parse(body)?)
}

fn field(kind: FieldType, optional: bool) -> Vec<BodyField> {
    vec![BodyField { name: "v".into(), pointer: "/a/v".into(), kind, optional }]
}

#[test]
fn a_declared_field_must_be_there_and_of_its_type() {
    let read = |kind, optional, body: &str| body_fields(&field(kind, optional), body.as_bytes());
    assert_eq!(read(FieldType::Long, false, r#"{"a":{"v":3}}"#).expect("fits")["v"], 3);
    assert!(matches!(read(FieldType::Long, false, r#"{"a":{}}"#), Err(BodyError::Absent { .. })));
    assert!(read(FieldType::Long, true, r#"{"a":{}}"#).expect("optional").is_empty());
    for (kind, value) in [
        (FieldType::Long, "1.5"),
        (FieldType::Long, "\"1\""),
        (FieldType::Long, "9223372036854775808"),
        (FieldType::String, "1"),
        (FieldType::Bool, "0"),
        (FieldType::Strings, "[1]"),
        (FieldType::Strings, "\"a\""),
    ] {
        let body = format!(r#"{{"a":{{"v":{value}}}}}"#);
        assert!(matches!(read(kind, true, &body), Err(BodyError::WrongType { .. })), "{body}");
    }
    assert!(matches!(read(FieldType::Long, true, r#"{"a":{"v":1,"v":2}}"#), Err(BodyError::Json(_))));
}

#[test]
fn a_body_with_two_readings_is_refused() {
    let read = |body: &str| body_fields(&field(FieldType::Long, true), body.as_bytes());
    for body in [r#"{"A":{"v":1}}"#, r#"{"a":{"v":1},"A":{"v":2}}"#, r#"{"a":{"V":1}}"#, r#"{"a":{"v":1,"V":2}}"#] {
        assert!(matches!(read(body), Err(BodyError::CaseVariant { .. })), "{body}");
    }
    let long_s = body_fields(
        &[BodyField { name: "s".into(), pointer: "/risk".into(), kind: FieldType::Long, optional: true }],
        "{\"risk\":1,\"ri\u{17f}\u{212a}\":0}".as_bytes(),
    );
    assert!(matches!(long_s, Err(BodyError::CaseVariant { .. })), "letters that only look other");
    for body in [r#"[{"a":{"v":1}}]"#, "1", "null", r#""a""#] {
        assert_eq!(read(body), Err(BodyError::NotObject), "{body}");
    }
    assert_eq!(read(r#"{"b":{"V":1},"a":{"v":7}}"#).expect("one reading")["v"], 7);
}

fn template(text: &str) -> Template {
    Template::parse(text).expect("a template")
}

fn reading(reads: Reads) -> Operation {
    Operation { reads, ..Operation::new("op", "POST", template("/x"), template("/x")) }
}

fn read_with(operation: Operation, headers: &[(&str, &str)], body: &str) -> Result<Map<String, Value>, BodyError> {
    let operations = [operation];
    let owned: Vec<(String, String)> = headers.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
    let seen = Seen {
        method: "POST",
        path: "/x",
        query: "",
        body: Some(body.as_bytes()),
        header: &|name| Ok(owned.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone())),
        headers_named: &|prefix| owned.iter().map(|(n, _)| n.clone()).filter(|n| n.starts_with(prefix)).collect(),
    };
    classify(&operations, &seen).map(|m| m.expect("fits").context)
}

fn plain<'a>(method: &'a str, path: &'a str, body: Option<&'a [u8]>) -> Seen<'a> {
    Seen { method, path, query: "", body, header: &|_| Ok(None), headers_named: &|_| Vec::new() }
}

#[test]
fn a_chat_tells_model_and_tools() {
    let read = |body: Value| read_with(reading(Reads::Chat), &[], &body.to_string()).map(|c| c["chat"].clone());
    let tools = json!([
        {"type": "function", "function": {"name": "look_up"}},
        {"type": "custom", "custom": {"name": "shell"}},
        {"type": "web_search"},
    ]);
    let called = json!([{"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [{"type": "function", "id": "1", "function": {"name": "look_up", "arguments": "{}"}}]}]);
    let chat = read(json!({"model": "m", "messages": called, "tools": tools, "stream": true})).expect("a chat");
    assert_eq!(
        chat,
        json!({"model": "m", "stream": true, "tools": ["look_up", "shell", "web_search"], "called": ["look_up"]})
    );
    let old = json!({"model": "m", "messages": [], "functions": [{"name": "f"}], "tools": null});
    assert_eq!(read(old).expect("a chat")["tools"], json!(["f"]));
    for bad in [
        json!({"messages": []}),
        json!({"model": "m"}),
        json!({"model": 1, "messages": []}),
        json!({"model": "m", "messages": [], "stream": "yes"}),
        json!({"model": "m", "messages": [], "tools": {}}),
        json!({"model": "m", "messages": [], "tools": [{"function": {"name": "x"}}]}),
        json!({"model": "m", "messages": [], "tools": [{"type": "function", "function": {}}]}),
        json!({"model": "m", "messages": [], "tools": [{"type": "function"}]}),
    ] {
        assert!(matches!(read(bad.clone()), Err(BodyError::Shape { .. })), "{bad}");
    }
    for two in [
        json!({"model": "m", "Model": "n", "messages": []}),
        json!({"model": "m", "messages": [], "TOOLS": []}),
        json!({"model": "m", "messages": [], "tools": [{"type": "function", "Function": {"name": "b"}, "function": {"name": "a"}}]}),
    ] {
        assert!(matches!(read(two.clone()), Err(BodyError::CaseVariant { .. })), "{two}");
    }
}

fn mcp(headers: &[(&str, &str)], body: &Value) -> Result<Value, BodyError> {
    read_with(reading(Reads::Mcp), headers, &body.to_string()).map(|c| c["mcp"].clone())
}

#[test]
fn mcp_tells_method_and_name_in_both_revisions() {
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "expand", "arguments": {"n": 7, "to": "x"}}});
    let old = mcp(&[("mcp-protocol-version", "2025-11-25")], &call).expect("2025-11-25 needs no more headers");
    assert_eq!(old, json!({"method": "tools/call", "name": "expand", "version": "2025-11-25", "notification": false}));
    let mut new = call.clone();
    new["params"]["_meta"] = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28"});
    let good = [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "tools/call"), ("mcp-name", "expand")];
    assert_eq!(mcp(&good, &new).expect("2026-07-28")["version"], "2026-07-28");
    let coded = [good[0], good[1], ("mcp-name", "=?base64?ZXhwYW5k?="), ("mcp-param-n", "7")];
    assert!(mcp(&coded, &new).is_ok(), "base64, and a parameter that is an argument");
    let listed = json!({"jsonrpc": "2.0", "id": "a", "method": "tools/list"});
    assert_eq!(mcp(&[], &listed).expect("no name")["name"], "");
    let uri = json!({"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": {"uri": "file:///a"}});
    assert_eq!(mcp(&[], &uri).expect("a URI")["name"], "file:///a");
    let told = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    assert_eq!(mcp(&[], &told).expect("a notification")["notification"], true);
    let answer = json!({"jsonrpc": "2.0", "id": 3, "result": {}});
    assert_eq!(mcp(&[], &answer).expect("a response")["method"], "");
}

#[test]
fn mcp_headers_that_say_something_else_are_refused() {
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "expand", "arguments": {"n": 7}, "_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}}});
    let (version, method, name) =
        (("mcp-protocol-version", "2026-07-28"), ("mcp-method", "tools/call"), ("mcp-name", "expand"));
    for headers in [
        vec![method, name],
        vec![("mcp-protocol-version", "2025-11-25"), method, name],
        vec![version, name],
        vec![version, method],
        vec![version, ("mcp-method", "tools/list"), name],
        vec![version, method, ("mcp-name", "Expand")],
        vec![version, method, name, ("mcp-param-n", "8")],
        vec![version, method, name, ("mcp-param-n", "=?base64?OA==?=")],
    ] {
        assert!(matches!(mcp(&headers, &call), Err(BodyError::HeaderMismatch { .. })), "{headers:?}");
    }
    let bad = [version, method, ("mcp-name", "=?base64?%%?=")];
    assert!(matches!(mcp(&bad, &call), Err(BodyError::Header { .. })));
    let mut old = call.clone();
    old["params"].as_object_mut().expect("an object").remove("_meta");
    assert!(mcp(&[("mcp-name", "other")], &old).is_err(), "an old client's header must agree, too");
}

#[test]
fn what_is_no_single_message_of_mcp_is_refused() {
    for bad in [
        json!({"id": 1, "method": "ping"}),
        json!({"jsonrpc": "1.0", "id": 1, "method": "ping"}),
        json!({"jsonrpc": "2.0", "id": 1}),
        json!({"jsonrpc": "2.0", "id": 1, "method": "ping", "result": {}}),
        json!({"jsonrpc": "2.0", "id": 1.5, "method": "ping"}),
        json!({"jsonrpc": "2.0", "id": null, "method": "ping"}),
        json!({"jsonrpc": "2.0", "id": 1, "method": ""}),
        json!({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": []}),
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {}}),
        json!({"jsonrpc": "2.0", "result": {}}),
    ] {
        assert!(matches!(mcp(&[], &bad), Err(BodyError::Shape { .. })), "{bad}");
    }
    let batch = json!([{"jsonrpc": "2.0", "id": 1, "method": "ping"}]);
    assert_eq!(mcp(&[], &batch), Err(BodyError::NotObject));
    let two = r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}"#;
    assert!(matches!(read_with(reading(Reads::Mcp), &[], two), Err(BodyError::Json(_))));
    let case = json!({"jsonrpc": "2.0", "id": 1, "method": "ping", "Method": "tools/call"});
    assert!(matches!(mcp(&[], &case), Err(BodyError::CaseVariant { .. })));
}

#[test]
fn graphql_tells_kind_name_and_top_fields() {
    let read = |body: Value| read_with(reading(Reads::Graphql), &[], &body.to_string()).map(|c| c["graphql"].clone());
    let told = |query: &str, name: Value| read(json!({"query": query, "operationName": name}));
    assert_eq!(
        told("{ me { id } other: you }", Value::Null).expect("shorthand"),
        json!({"kind": "query", "name": "", "fields": ["me", "you"]})
    );
    let two = "query A { a } mutation B { drop: wipe(all: true) { ok } ...More ... on Mutation { c } } fragment More on Mutation { d ...More }";
    assert_eq!(
        told(two, json!("B")).expect("by its name"),
        json!({"kind": "mutation", "name": "B", "fields": ["c", "d", "wipe"]})
    );
    assert_eq!(told("subscription S { s }", Value::Null).expect("one")["kind"], "subscription");
    for (query, name) in [
        (two, Value::Null),
        (two, json!("C")),
        (two, json!(1)),
        ("{ a ", Value::Null),
        ("{ ...Gone }", Value::Null),
        ("type T { a: Int }", Value::Null),
        ("", Value::Null),
    ] {
        assert!(matches!(told(query, name.clone()), Err(BodyError::Shape { .. })), "{query} {name}");
    }
    assert!(matches!(read(json!({"extensions": {"persistedQuery": {}}})), Err(BodyError::Shape { .. })));
    let deep = format!("{}a{}", "{a".repeat(100_000), "}".repeat(100_000));
    assert!(matches!(told(&deep, Value::Null), Err(BodyError::Shape { .. })));
    assert!(matches!(read(json!({"query": "{a}", "Query": "{b}"})), Err(BodyError::CaseVariant { .. })));
}

#[test]
fn an_operation_that_the_url_may_name_as_well_is_refused() {
    let operations = [reading(Reads::Graphql)];
    let seen = Seen { query: "query=mutation{wipe}", ..plain("POST", "/x", Some(b"{\"query\":\"{me}\"}")) };
    assert!(matches!(classify(&operations, &seen), Err(BodyError::Shape { .. })));
}

#[test]
fn the_body_is_held_for_what_stands_behind_an_operation_of_grpc() {
    let grpc =
        Operation { reads: Reads::Grpc, ..Operation::new("rpc", "POST", template("/{s}/{m}"), template("/rpc")) };
    let json = Operation {
        body: field(FieldType::Long, true),
        ..Operation::new("op", "POST", template("/{s}/{m}"), template("/op"))
    };
    assert!(needs_body(&[grpc, json], "POST", "/a/b"));
}

#[test]
fn a_selection_finds_the_operation_and_parameters_name_its_object() {
    let narrow = Operation {
        select: [("/method".to_owned(), vec!["tools/call".to_owned()])].into(),
        params: [("tool".to_owned(), "/params/name".to_owned())].into(),
        ..Operation::new("call", "POST", template("/mcp"), template("/tools/{tool}"))
    };
    let wide = Operation::new("any", "POST", template("/mcp"), template("/mcp"));
    let operations = [narrow, wide];
    assert!(needs_body(&operations, "POST", "/mcp"));
    assert!(!needs_body(&operations[1..], "POST", "/mcp"));
    assert!(!needs_body(&operations, "POST", "/other"));
    let find = |body: &str| {
        let found = classify(&operations, &plain("POST", "/mcp", Some(body.as_bytes())));
        found.map(|m| m.map(|m| (m.operation.name.clone(), m.object)))
    };
    let named = |name: &str, object: &str| Ok(Some((name.to_owned(), object.to_owned())));
    assert_eq!(find(r#"{"method":"tools/call","params":{"name":"expand"}}"#), named("call", "/tools/expand"));
    assert_eq!(find(r#"{"method":"tools/list"}"#), named("any", "/mcp"));
    assert!(matches!(find(r#"{"method":"tools/list","METHOD":"tools/call"}"#), Err(BodyError::CaseVariant { .. })));
    for name in ["a/b", "", "..", "a\\u0000b"] {
        let body = format!(r#"{{"method":"tools/call","params":{{"name":"{name}"}}}}"#);
        assert!(matches!(find(&body), Err(BodyError::Name { .. })), "{body}");
    }
    assert!(matches!(find(r#"{"method":"tools/call","params":{}}"#), Err(BodyError::Absent { .. })));
    assert!(matches!(find(r#"{"method":"tools/call","params":{"name":7}}"#), Err(BodyError::WrongType { .. })));
}

#[test]
fn grpc_is_known_by_its_type_and_names_service_and_method() {
    let operation = Operation {
        reads: Reads::Grpc,
        ..Operation::new("rpc", "POST", template("/{s}/{m}"), template("/{service}/{method}"))
    };
    let operations = [operation];
    let find = |path: &'static str, kind: &'static str| {
        let seen =
            Seen { header: &|name| Ok((name == "content-type").then(|| kind.to_owned())), ..plain("POST", path, None) };
        classify(&operations, &seen).expect("reads nothing").map(|m| m.object)
    };
    assert_eq!(find("/a.B/C", "application/grpc").as_deref(), Some("/a.B/C"));
    assert_eq!(find("/a.B/C", "application/grpc+proto; x=1").as_deref(), Some("/a.B/C"));
    assert_eq!(find("/a.B/C", "application/json"), None);
    assert_eq!(find("/a.B/C", "application/grpcweb"), None);
}

fn chunk(delta: &Value, finish: Option<&str>) -> String {
    format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}))
}

/// What passes of a stream cut anywhere, and the calls that were judged.
fn gated(kind: &str, body: &str, cut: usize, allow: bool) -> (Result<String, Held<()>>, Vec<ToolCall>) {
    let mut gate = CallGate::for_content_type(kind).expect("a type with calls");
    let (mut out, mut calls) = (Vec::new(), Vec::new());
    let mut judge = |call: &ToolCall| {
        calls.push(call.clone());
        if allow { Ok(()) } else { Err(()) }
    };
    let (first, second) = body.as_bytes().split_at(cut.min(body.len()));
    let passed = gate
        .push(first, &mut out, &mut judge)
        .and_then(|()| gate.push(second, &mut out, &mut judge))
        .and_then(|()| gate.finish(&mut out, &mut judge));
    let released = String::from_utf8(out).expect("text");
    if passed.is_err() {
        assert!(!released.contains("tool_calls"), "nothing of a refused call passes: {released}");
    }
    (passed.map(|()| released), calls)
}

#[test]
fn fragments_of_a_call_are_joined_before_it_is_judged_and_nothing_of_it_passes_before() {
    let fragment = |name: Option<&str>, arguments: &str| json!({"tool_calls": [{"index": 0, "function": {"name": name, "arguments": arguments}}]});
    for end in ["\n", "\r\n", "\r"] {
        let body = [
            chunk(&json!({"content": "hm"}), None),
            chunk(&fragment(Some("wipe"), "{\"al"), None),
            chunk(&fragment(None, "l\":true}"), None),
            chunk(&json!({}), Some("tool_calls")),
            "data: [DONE]\n\n".to_owned(),
        ]
        .concat()
        .replace('\n', end);
        for cut in 0..body.len() {
            let (passed, calls) = gated("text/event-stream", &body, cut, true);
            assert_eq!(passed.as_deref(), Ok(body.as_str()), "cut at {cut}");
            assert_eq!(calls, [ToolCall { name: "wipe".into(), arguments: "{\"all\":true}".into() }]);
            let (refused, _) = gated("text/event-stream", &body, cut, false);
            assert_eq!(refused, Err(Held::Refused(())));
        }
    }
}

#[test]
fn a_call_that_no_end_is_told_of_is_judged_at_the_streams_end() {
    let body = chunk(&json!({"tool_calls": [{"index": 3, "custom": {"name": "sh", "input": "ls"}}]}), None);
    let (passed, calls) = gated("text/event-stream", &body, 5, true);
    assert_eq!(passed, Ok(body.clone()));
    assert_eq!(calls[0], ToolCall { name: "sh".into(), arguments: "ls".into() });
    assert_eq!(gated("text/event-stream", &body, 5, false).0, Err(Held::Refused(())));
    let old = chunk(&json!({"function_call": {"name": "f", "arguments": "{}"}}), Some("function_call"));
    assert_eq!(gated("text/event-stream", &old, 0, true).1[0].name, "f");
}

#[test]
fn a_whole_answer_is_judged_call_by_call_and_one_that_cannot_be_read_does_not_pass() {
    let answer = json!({"choices": [{"message": {"tool_calls": [
        {"type": "function", "function": {"name": "a", "arguments": "{}"}},
        {"type": "function", "function": {"name": "b", "arguments": "{}"}},
    ]}}, {"message": {"function_call": {"name": "c", "arguments": "{}"}}}]})
    .to_string();
    let (passed, calls) = gated("application/json", &answer, 9, true);
    assert_eq!(passed, Ok(answer.clone()));
    assert_eq!(calls.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(gated("application/json", &answer, 9, false).0, Err(Held::Refused(())));
    for bad in ["{", r#"{"choices":[],"choices":[{"message":{"function_call":{"name":"x"}}}]}"#] {
        assert_eq!(gated("application/json", bad, 0, true).0, Err(Held::Unreadable), "{bad}");
    }
    assert_eq!(gated("text/event-stream", "data: {\n\n", 0, true).0, Err(Held::Unreadable));
    let endless = format!("data: {}", "x".repeat(1 << 20));
    assert_eq!(gated("text/event-stream", &endless, 0, true).0, Err(Held::TooLong));
    assert!(CallGate::for_content_type("text/plain").is_none());
}
