//! The numbered cases, and the property that proves the rest: any chunking gives the same bytes.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::{
    BoxedStrategy, Just, ProptestConfig, Strategy as _, TestCaseError, any, prop_assert, prop_assert_eq, prop_oneof,
    proptest,
};

use super::*;
use crate::protocol::masking::path::FieldPath;

const CARD: &str = "4111111111111111";
const SPACED: &str = "4111 1111 1111 1111";
const EMAIL: &str = "ada.lovelace@example.org";
const KEY: &str = "sk-abcdefghijklmnop1234567890";
const JSON: &str = "application/json";
const SSE: &str = "text/event-stream";

fn rules() -> Arc<MaskRules> {
    Arc::new(MaskRules::detecting(&[EntityKind::Email, EntityKind::Card, EntityKind::Secret]))
}

fn with_field(path: &str, action: FieldAction) -> Arc<MaskRules> {
    let mut rules = MaskRules::clone(&rules());
    rules.fields.push(FieldRule { path: FieldPath::parse(path).expect("path"), action });
    Arc::new(rules)
}

fn whole(rules: &Arc<MaskRules>, kind: &str, body: &str) -> String {
    String::from_utf8(mask_whole(rules, kind, body.as_bytes()).expect("readable")).expect("UTF-8")
}

fn chunked(rules: &Arc<MaskRules>, kind: &str, body: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut masker = Masker::for_content_type(rules, kind).expect("readable");
    let mut out = Vec::new();
    let mut from = 0;
    for cut in cuts {
        masker.push(&body[from..*cut], &mut out).expect("passes");
        from = *cut;
    }
    masker.push(&body[from..], &mut out).expect("passes");
    masker.finish(&mut out).expect("passes");
    out
}

/// Every split in two and one byte a chunk give what the whole gives; no window of the secret is ever released.
fn assert_any_chunking(kind: &str, body: &str, want: &str) {
    let rules = rules();
    assert_eq!(whole(&rules, kind, body), want);
    for cut in 0..=body.len() {
        let got = chunked(&rules, kind, body.as_bytes(), &[cut]);
        assert_eq!(String::from_utf8_lossy(&got), want, "cut at {cut}");
    }
    let every: Vec<usize> = (1..body.len()).collect();
    assert_eq!(String::from_utf8_lossy(&chunked(&rules, kind, body.as_bytes(), &every)), want, "byte by byte");
}

#[test]
fn case_01_02_03_a_card_in_json_whole_split_and_byte_by_byte() {
    let body = format!(r#"{{"a":1,"card":"pay {CARD} now","b":[true,null,-1.5e3]}}"#);
    assert_any_chunking(JSON, &body, r#"{"a":1,"card":"pay [redacted:card] now","b":[true,null,-1.5e3]}"#);
}

fn delta(index: usize, content: &str) -> String {
    format!("data: {{\"choices\":[{{\"index\":{index},\"delta\":{{\"content\":\"{content}\"}}}}]}}\n\n")
}

#[test]
fn other_shapes_of_deltas_are_joined_where_a_mask_names_them() {
    for (path, before, after) in [
        ("$.delta", r#"{"type":"response.output_text.delta","delta":""#, r#""}"#),
        ("$.delta.text", r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":""#, r#""}}"#),
    ] {
        let mut named = MaskRules::clone(&rules());
        named.delta = vec![FieldPath::parse(path).expect("a path")];
        let events: String = "to ada@example.org, ".chars().map(|c| format!("data: {before}{c}{after}\n\n")).collect();
        let masked = mask_whole(&Arc::new(named), "text/event-stream", events.as_bytes()).expect("readable");
        let text = String::from_utf8(masked).expect("UTF-8");
        let joined: String = text.split(before).skip(1).filter_map(|e| e.split(after).next()).collect();
        assert_eq!(joined, "to [redacted:email], ", "{path}");
    }
}

#[test]
fn what_begins_as_no_text_does_is_blocked_however_it_comes() {
    let rules = rules();
    for (body, blocked) in [
        (&b"\xff\xfea\0d\0a\0"[..], Blocked::Charset),
        (b"\xfe\xff\0a\0d", Blocked::Charset),
        (b"\0<\0x", Blocked::Charset),
        (b"<\0x\0", Blocked::Charset),
        (b"\x1f\x8b\x08\0", Blocked::Coding),
        (b"\x28\xb5\x2f\xfd", Blocked::Coding),
    ] {
        for kind in ["text/plain", "application/json", "text/event-stream"] {
            assert_eq!(mask_whole(&rules, kind, body), Err(blocked), "{kind} {body:?}");
            let mut masker = Masker::for_content_type(&rules, kind).expect("a type that masks read");
            let mut out = Vec::new();
            assert_eq!(masker.push(&body[..1], &mut out), Ok(()));
            assert_eq!(masker.push(&body[1..], &mut out), Err(blocked));
            assert!(out.is_empty());
        }
    }
    for short in [&b""[..], b"{", b"\xc3"] {
        assert_eq!(mask_whole(&rules, "text/plain", short), Ok(short.to_vec()), "{short:?}");
    }
}

#[test]
fn case_04_a_card_over_two_delta_events() {
    let body = delta(0, "card 4111 1111") + &delta(0, " 1111 1111 ok") + "data: [DONE]\n\n";
    let want = delta(0, "card ") + &delta(0, "[redacted:card] ok") + "data: [DONE]\n\n";
    assert_any_chunking(SSE, &body, &want);
}

#[test]
fn case_05_over_three_events_with_choices_interleaved() {
    let body = delta(0, "4111")
        + &delta(1, "to ada@")
        + &delta(0, "11111111")
        + &delta(1, "example")
        + &delta(0, "1111.")
        + &delta(1, ".org!");
    let want = delta(0, "")
        + &delta(1, "to ")
        + &delta(0, "")
        + &delta(1, "")
        + &delta(0, "[redacted:card].")
        + &delta(1, "[redacted:email]!");
    assert_any_chunking(SSE, &body, &want);
}

#[test]
fn case_06_multi_line_data() {
    let body = format!("data: {{\"a\":\ndata: \"{EMAIL}\",\ndata:\"b\":2}}\n\n");
    assert_any_chunking(SSE, &body, "data: {\"a\":\ndata: \"[redacted:email]\",\ndata:\"b\":2}\n\n");
    let text = "data: card 4111 1111\ndata: 1111 1111 end\n\n";
    assert_any_chunking(SSE, text, "data: card [redacted:card] end\n\n");
}

#[test]
fn case_07_line_ends_crlf_cr_and_mixed() {
    for end in ["\r\n", "\r", "\n"] {
        let body = format!("data: {CARD}{end}{end}data: x{end}{end}");
        assert_any_chunking(SSE, &body, &format!("data: [redacted:card]{end}{end}data: x{end}{end}"));
    }
    assert_any_chunking(SSE, "data: a\r\ndata: b\rdata: c\n\r\n", "data: a\r\ndata: b\rdata: c\n\r\n");
}

#[test]
fn case_08_other_fields_and_comments_stay() {
    let body = ": ping\n\nevent: thought\nid: 7\nretry: 100\ndata: {\"n\":\"4 1 8 7\"}\n\nunknown line\n\n";
    assert_any_chunking(SSE, body, body);
}

#[test]
fn case_09_a_byte_order_mark_before_the_first_event() {
    let body = format!("\u{feff}data: {EMAIL}\n\n");
    assert_any_chunking(SSE, &body, "\u{feff}data: [redacted:email]\n\n");
}

#[test]
fn case_10_escaped_digits_are_read_as_digits() {
    assert_any_chunking(JSON, r#"{"a":"\u0034111111111111111"}"#, r#"{"a":"[redacted:card]"}"#);
}

#[test]
fn case_11_an_escape_before_the_value_changes_nothing() {
    let body = format!(r#"{{"a":"\ud83d\ude00 \/ {EMAIL}"}}"#);
    assert_any_chunking(JSON, &body, r#"{"a":"\ud83d\ude00 \/ [redacted:email]"}"#);
}

#[test]
fn a_broken_escape_hides_neither_a_quote_nor_a_digit() {
    let body = r#"{"x":"\ud83d\",","ssn":"1","y":"\ud83d\u0034111111111111111","z":"\ud83d"}"#;
    let want = r#"{"x":"\ud83d\",","ssn":"1","y":"\ud83d[redacted:card]","z":"\ud83d"}"#;
    assert_any_chunking(JSON, body, want);
    let dropped = whole(&with_field("$.ssn", FieldAction::Drop), JSON, r#"{"x":"\ud83d\",","ssn":"123","y":2}"#);
    assert_eq!(dropped, r#"{"x":"\ud83d\",","y":2}"#);
}

#[test]
fn what_is_called_json_and_is_not_is_scanned_as_text() {
    for (body, want) in [
        (format!("user {EMAIL} paid"), "user [redacted:email] paid".to_owned()),
        (format!("{{\"e\":1}} not found {EMAIL}"), "{\"e\":1} not found [redacted:email]".into()),
        (SPACED.to_owned(), "[redacted:card]".into()),
        (format!("[{{\"k\":\"5\"}},{{{CARD}:2}}]"), "[{\"k\":\"5\"},{[redacted:card]:2}]".into()),
    ] {
        assert_any_chunking(JSON, &body, &want);
    }
    assert_any_chunking(SSE, &format!("data: [INFO] {EMAIL} paid\n\n"), "data: [INFO] [redacted:email] paid\n\n");
}

#[test]
fn grammar_errors_with_field_rules_are_blocked() {
    let rules = with_field("$.name", FieldAction::Drop);
    for body in [
        r#"{"a":1 "name":"Alice"}"#,
        r#"{"a" 1}"#,
        r#"{"a":1,}"#,
        "[1 2]",
        r#"1 {"name":"x"}"#,
        "{]",
        r#"{"a"::1}"#,
        "tru",
    ] {
        assert_eq!(mask_whole(&rules, JSON, body.as_bytes()), Err(Blocked::Malformed), "{body}");
    }
    assert_eq!(whole(&rules, "text/plain", r#" {"name":"Alice","b":1}"#), r#" {"b":1}"#);
    assert_eq!(whole(&rules, "text/json", r#"{"name":"Alice"}"#), "{}");
    assert_eq!(whole(&rules, JSON, " true "), " true ");
}

#[test]
fn an_address_before_a_sentences_end_is_found() {
    for tail in [".I am", ".2", ". Next", "...", "-"] {
        assert_any_chunking("text/plain", &format!("{EMAIL}{tail}"), &format!("[redacted:email]{tail}"));
    }
}

#[test]
fn a_member_name_is_read_with_its_escapes_and_has_a_limit() {
    assert_any_chunking(JSON, r#"{"\u0034111111111111111":1}"#, r#"{"[redacted:card]":1}"#);
    let endless = format!("{{\"{}", "\\u0041".repeat(100_000));
    assert_eq!(mask_whole(&rules(), JSON, endless.as_bytes()), Err(Blocked::TooLong));
}

#[test]
fn a_secret_that_ends_a_stream_keeps_its_marker_and_a_finished_choice_holds_nothing_back() {
    let body = delta(0, "key sk-abcdefghij") + &delta(0, "klmnop1234567890");
    assert_any_chunking(SSE, &body, &(delta(0, "key ") + &delta(0, "[redacted:secret]")));
    let mut masker = Masker::for_content_type(&rules(), SSE).expect("readable");
    let mut out = Vec::new();
    let events = delta(0, "hello") + "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    masker.push(events.as_bytes(), &mut out).expect("passes");
    assert_eq!(String::from_utf8_lossy(&out), events);
}

#[test]
fn case_16_a_card_as_a_number_becomes_a_string() {
    assert_any_chunking(JSON, &format!(r"[{CARD},12]"), r#"["[redacted:card]",12]"#);
}

#[test]
fn case_18_a_value_in_an_object_key() {
    assert_any_chunking(JSON, &format!(r#"{{"{EMAIL}":1}}"#), r#"{"[redacted:email]":1}"#);
}

#[test]
fn case_20_field_names_in_other_case_or_escaped() {
    let rules = with_field("$.context.customer.name", FieldAction::Redact);
    for name in ["name", "NAME", "n\\u0061me"] {
        let body = format!(r#"{{"context":{{"customer":{{"{name}":{{"first":"Ada"}},"id":7}}}}}}"#);
        let got = whole(&rules, JSON, &body);
        assert_eq!(got, format!(r#"{{"context":{{"customer":{{"{name}":"[redacted:field]","id":7}}}}}}"#));
    }
}

#[test]
fn dropped_fields_take_their_commas_with_them() {
    let rules = with_field("$..x", FieldAction::Drop);
    for (body, want) in [
        (r#"{"x":1}"#, "{}"),
        (r#"{"x":1,"a":2}"#, r#"{"a":2}"#),
        (r#"{"a":2,"x":1}"#, r#"{"a":2}"#),
        (r#"{"a":1,"x":{"x":[1,{"y":2}]},"b":3}"#, r#"{"a":1,"b":3}"#),
        (r#"{"x":"a","x":"b","c":"d"}"#, r#"{"c":"d"}"#),
        (r#"[{"x":1},{"x":2,"y":"z"}]"#, r#"[{},{"y":"z"}]"#),
    ] {
        let got = whole(&rules, JSON, body);
        assert_eq!(got, want, "{body}");
        serde_json::from_str::<serde_json::Value>(&got).expect("still JSON");
    }
}

#[test]
fn an_arrays_item_is_redacted_or_nulled() {
    assert_eq!(whole(&with_field("$.a[1]", FieldAction::Drop), JSON, r#"{"a":[1,{"b":2},3]}"#), r#"{"a":[1,null,3]}"#);
    assert_eq!(
        whole(&with_field("$.a[*]", FieldAction::Redact), JSON, r#"{"a":[1,"b"]}"#),
        r#"{"a":["[redacted:field]","[redacted:field]"]}"#
    );
}

#[test]
fn case_22_depth_beyond_the_limit_is_blocked() {
    let deep = "[".repeat(10_000);
    assert_eq!(mask_whole(&rules(), JSON, deep.as_bytes()), Err(Blocked::Depth));
}

#[test]
fn case_23_truncated_json_never_leaks_its_tail() {
    assert_any_chunking(JSON, &format!(r#"{{"a":"{CARD}"#), r#"{"a":"[redacted:card]"#);
    assert_any_chunking(JSON, &format!(r#"{{"{EMAIL}"#), r#"{"[redacted:email]"#);
}

#[test]
fn case_24_ndjson_without_its_last_newline() {
    let body = format!("{{\"a\":\"{EMAIL}\"}}\n{{\"b\":\"{KEY}\"}}");
    assert_any_chunking("application/x-ndjson", &body, "{\"a\":\"[redacted:email]\"}\n{\"b\":\"[redacted:secret]\"}");
}

#[test]
fn case_40_what_only_looks_like_one_stays_byte_for_byte() {
    let body = r#"{"luhn":"4111111111111112","uuid":"550e8400-e29b-41d4-a716-446655440000","at":1700000000123,"ns":"1700000000123456789","puzzle":"4 11 1 11","more":"10 10 4 4 13 9 9 4 1 1 1 8 6 6 6 6","sum":"(10 * 10 - 4) / 4 = 24","ask":"task-12345678901234567890","handle":"@ada","at_end":"a@b"}"#;
    assert_any_chunking(JSON, body, body);
}

#[test]
fn text_is_scanned_as_one_string() {
    let body = format!("to {EMAIL}, card {SPACED}; key {KEY}.\nbye");
    assert_any_chunking(
        "text/plain; charset=utf-8",
        &body,
        "to [redacted:email], card [redacted:card]; key [redacted:secret]\nbye",
    );
}

#[test]
fn a_private_key_goes_as_a_block() {
    let pem = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIAbc/+=\n-----END EC PRIVATE KEY-----";
    assert_any_chunking("text/plain", &format!("a {pem} b"), "a [redacted:secret] b");
    let public = "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n";
    assert_any_chunking("text/plain", public, public);
}

#[test]
fn a_secret_longer_than_any_buffer_stays_hidden() {
    let body = format!("sk-{} end", "a".repeat(20_000));
    assert_eq!(whole(&rules(), "text/plain", &body), "[redacted:secret] end");
}

#[test]
fn strategies_keep_the_last_or_block() {
    let mut keep = MaskRules::clone(&rules());
    keep.strategy = Strategy::KeepLast(4);
    assert_eq!(whole(&Arc::new(keep.clone()), "text/plain", &format!("{CARD}.")), "****1111.");
    keep.strategy = Strategy::Block;
    assert_eq!(mask_whole(&Arc::new(keep), "text/plain", CARD.as_bytes()), Err(Blocked::Forbidden));
}

#[test]
fn an_injected_credential_is_masked_by_its_exact_value() {
    let mut rules = MaskRules::detecting(&[]);
    rules.exact.push(b"hunter2hunter2".to_vec());
    assert_eq!(
        whole(&Arc::new(rules), "text/plain", "got hunter2hunter2 and hunter2"),
        "got [redacted:credential] and hunter2"
    );
}

#[test]
fn what_the_mask_cannot_read_is_blocked() {
    for (kind, want) in [
        ("application/octet-stream", Blocked::ContentType),
        ("application/grpc", Blocked::ContentType),
        ("", Blocked::ContentType),
        ("text/plain; charset=utf-16", Blocked::Charset),
        ("application/json;charset=\"latin1\"", Blocked::Charset),
    ] {
        assert_eq!(Masker::for_content_type(&rules(), kind).err(), Some(want), "{kind}");
    }
}

#[test]
fn malformed_json_is_scanned_as_text_unless_fields_have_rules() {
    let body = format!("{{\"a\":1}} oops <{EMAIL}>");
    assert_any_chunking(JSON, &body, "{\"a\":1} oops <[redacted:email]>");
    assert_eq!(mask_whole(&with_field("$.a", FieldAction::Drop), JSON, b"{]"), Err(Blocked::Malformed));
}

fn sensitive() -> BoxedStrategy<String> {
    prop_oneof![
        Just(CARD.to_owned()),
        Just(SPACED.to_owned()),
        Just(EMAIL.to_owned()),
        Just(KEY.to_owned()),
        Just("-----BEGIN PRIVATE KEY-----\\nMIIE\\n-----END PRIVATE KEY-----".to_owned()),
        "[a-zA-Z0-9@. :,_+-]{0,12}",
        Just("\\u0034111".to_owned()),
        Just("\\ud83d\\ude00".to_owned()),
        Just("é".to_owned()),
    ]
    .boxed()
}

fn text() -> BoxedStrategy<String> {
    vec(sensitive(), 0..6).prop_map(|parts| parts.concat()).boxed()
}

fn document() -> BoxedStrategy<String> {
    let member = (text(), text()).prop_map(|(k, v)| format!("\"{k}\": \"{v}\""));
    let object = vec(member, 0..4).prop_map(|m| format!("{{{}}}", m.join(","))).boxed();
    prop_oneof![object.clone(), vec(object, 0..3).prop_map(|o| format!("[{}]", o.join(" , ")))].boxed()
}

fn events() -> BoxedStrategy<String> {
    let end = prop_oneof![Just("\n"), Just("\r\n"), Just("\r")];
    let event = prop_oneof![
        document().prop_map(|d| format!("data: {d}")),
        text().prop_map(|t| format!("data: {}", t.replace(['\n', '\r'], " "))),
        (0_usize..3, text()).prop_map(|(i, t)| delta(i, &t).trim_end().to_owned()),
        Just(": comment".to_owned()),
    ];
    vec((event, end), 0..6)
        .prop_map(|events| events.into_iter().map(|(e, end)| format!("{e}{end}{end}")).collect())
        .boxed()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_chunking_of_text_gives_the_same_bytes(body in text(), cuts in vec(0_usize..200, 0..6)) {
        same_for_all_chunkings("text/plain", &body, cuts)?;
    }

    #[test]
    fn any_chunking_of_json_gives_the_same_bytes(body in document(), cuts in vec(0_usize..200, 0..6)) {
        same_for_all_chunkings(JSON, &body, cuts)?;
    }

    #[test]
    fn any_chunking_of_events_gives_the_same_bytes(body in events(), cuts in vec(0_usize..400, 0..9)) {
        same_for_all_chunkings(SSE, &body, cuts)?;
    }

    #[test]
    fn no_window_of_a_value_is_in_any_released_prefix(words in vec(sensitive(), 1..6), step in 1_usize..40) {
        let body = format!("{{\"a\": \" {} \"}}", words.join(" "));
        for (kind, body) in [(JSON, body.clone()), (SSE, format!("data: {body}\n\n")), ("text/plain", body)] {
            let mut masker = Masker::for_content_type(&rules(), kind).expect("readable");
            let mut out = Vec::new();
            for chunk in body.as_bytes().chunks(step) {
                masker.push(chunk, &mut out).expect("passes");
                let released = String::from_utf8_lossy(&out);
                for (value, windows) in [(EMAIL, ["lovela", "xample"]), (KEY, ["abcdef", "567890"]), (CARD, ["411111", "111111"])] {
                    let mentioned = words.iter().any(|w| w == value);
                    prop_assert!(!mentioned || windows.iter().all(|w| !released.contains(w)), "{} released {}", kind, released);
                }
            }
        }
    }

    #[test]
    fn any_chunking_of_any_bytes_gives_the_same_bytes(body in vec(any::<u8>(), 0..120), cut in 0_usize..120) {
        let rules = rules();
        for kind in [JSON, SSE, "text/plain"] {
            let cut = cut.min(body.len());
            if let Ok(want) = mask_whole(&rules, kind, &body) {
                prop_assert_eq!(chunked(&rules, kind, &body, &[cut]), want);
            }
        }
    }
}

fn same_for_all_chunkings(kind: &str, body: &str, mut cuts: Vec<usize>) -> Result<(), TestCaseError> {
    let rules = rules();
    cuts.iter_mut().for_each(|c| *c = (*c).min(body.len()));
    cuts.sort_unstable();
    let want = mask_whole(&rules, kind, body.as_bytes()).expect("readable");
    prop_assert_eq!(chunked(&rules, kind, body.as_bytes(), &cuts), want.clone());
    Ok(())
}
