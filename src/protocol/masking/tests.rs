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
    Arc::new(MaskRules::detecting(&[
        EntityKind::Email,
        EntityKind::Card,
        EntityKind::Secret,
        EntityKind::Ssn,
        EntityKind::Iban,
    ]))
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
    // What real streams carry behind the delta is there, too: it must not be walked over together with it.
    format!(
        "data: {{\"choices\":[{{\"index\":{index},\"delta\":{{\"content\":\"{content}\"}},\"logprobs\":null,\"finish_reason\":null}}]}}\n\n"
    )
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
fn case_28_what_begins_as_coded_bytes_do_is_blocked_however_it_comes() {
    let rules = rules();
    for body in [&b"\x1f\x8b\x08\0"[..], b"\x28\xb5\x2f\xfd"] {
        for kind in ["text/plain", "application/json", "text/event-stream"] {
            assert_eq!(mask_whole(&rules, kind, body), Err(Blocked::Coding), "{kind} {body:?}");
            let mut masker = Masker::for_content_type(&rules, kind).expect("a type that masks read");
            let mut out = Vec::new();
            assert_eq!(masker.push(&body[..3], &mut out), Ok(()));
            assert_eq!(masker.push(&body[3..], &mut out), Err(Blocked::Coding));
            assert!(out.is_empty());
        }
    }
    for short in [&b""[..], b"{", b"\xc3"] {
        assert_eq!(mask_whole(&rules, "text/plain", short), Ok(short.to_vec()), "{short:?}");
    }
}

#[test]
fn case_12_13_digits_of_other_scripts_are_digits() {
    let wide: String = CARD.chars().map(|c| char::from_u32(u32::from(c) - 0x30 + 0xFF10).expect("a digit")).collect();
    let arabic: String = CARD.chars().map(|c| char::from_u32(u32::from(c) - 0x30 + 0x0660).expect("a digit")).collect();
    for digits in [wide, arabic] {
        assert_any_chunking(JSON, &format!("{{\"é\":\"x {digits} ü\"}}"), "{\"é\":\"x [redacted:card] ü\"}");
        assert_any_chunking("text/plain", &format!("ü {digits}."), "ü [redacted:card].");
        assert_any_chunking(SSE, &format!("data: {digits}\n\n"), "data: [redacted:card]\n\n");
    }
    assert_any_chunking("text/plain", "ada＠example．org!", "[redacted:email]!");
}

#[test]
fn case_14_what_has_no_width_hides_nothing_and_stays_elsewhere() {
    for hidden in ["\u{200b}", "\u{ad}", "\u{feff}", "\u{2060}"] {
        let split = format!("4111{hidden}1111{hidden}11111111");
        assert_any_chunking("text/plain", &format!("pay {split} now"), "pay [redacted:card] now");
        assert_any_chunking("text/plain", &format!("a{hidden}da@exam{hidden}ple.org"), "[redacted:email]");
    }
    assert_any_chunking(JSON, r#"{"a":"4111\u200b111111111111"}"#, r#"{"a":"[redacted:card]"}"#);
    let family = "👩\u{200d}👩\u{200d}👧 and a so\u{ad}ft hy\u{ad}phen\u{200b}";
    assert_any_chunking("text/plain", family, family);
    assert_any_chunking(JSON, &format!("[\"{family}\",\"\u{200b}\"]"), &format!("[\"{family}\",\"\u{200b}\"]"));
    let joined = delta(0, "👩\u{200d}") + &delta(0, "\u{200d}") + &delta(0, "👧.");
    let masked = whole(&rules(), SSE, &joined);
    let content =
        |events: &str| events.split("content\":\"").skip(1).filter_map(|e| e.split('"').next()).collect::<String>();
    assert_eq!(content(&masked), content(&joined));
}

#[test]
fn case_15_other_separators_separate() {
    for between in ["\u{a0}", "–", "\u{2011}", "\u{202f}"] {
        let split = ["4111", "1111", "1111", "1111"].join(between);
        assert_any_chunking("text/plain", &format!("{split} x"), "[redacted:card] x");
    }
    assert_any_chunking("text/plain", "123–45–6789", "[redacted:ssn]");
}

#[test]
fn case_17_a_card_in_scientific_notation_is_masked_by_its_path_and_missed_by_detectors() {
    let body = r#"{"card":4.111111111111111e15}"#;
    assert_any_chunking(JSON, body, body);
    let by_path = whole(&with_field("$.card", FieldAction::Redact), JSON, body);
    assert_eq!(by_path, r#"{"card":"[redacted:field]"}"#);
}

#[test]
fn case_19_every_one_of_several_members_of_one_name_is_masked() {
    let body = format!(r#"{{"a":"{EMAIL}","a":"{CARD}","b":1,"a":{{"x":"{EMAIL}"}}}}"#);
    assert_any_chunking(
        JSON,
        &body,
        r#"{"a":"[redacted:email]","a":"[redacted:card]","b":1,"a":{"x":"[redacted:email]"}}"#,
    );
    let by_path = whole(&with_field("$.a", FieldAction::Redact), JSON, &body);
    assert_eq!(by_path, r#"{"a":"[redacted:field]","a":"[redacted:field]","b":1,"a":"[redacted:field]"}"#);
}

#[test]
fn case_21_json_in_a_json_string_is_masked_and_stays_json() {
    let inner = format!(r#"{{\"to\":\"{EMAIL}\",\"card\":{CARD},\"list\":[{CARD},\"a \\\" {CARD}\"]}}"#);
    let want = r#"{\"to\":\"[redacted:email]\",\"card\":\"[redacted:card]\",\"list\":[\"[redacted:card]\",\"a \\\" [redacted:card]\"]}"#;
    assert_any_chunking(JSON, &format!(r#"{{"arguments":"{inner}"}}"#), &format!(r#"{{"arguments":"{want}"}}"#));
    let document: serde_json::Value =
        serde_json::from_str(&whole(&rules(), JSON, &format!(r#"{{"arguments":"{inner}"}}"#))).expect("JSON");
    serde_json::from_str::<serde_json::Value>(document["arguments"].as_str().expect("text")).expect("JSON inside");
    let fragment = |text: &str| {
        format!(
            "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"tool_calls\":[{{\"index\":0,\"function\":{{\"arguments\":\"{text}\"}}}}]}}}}]}}\n\n"
        )
    };
    let body = fragment(r#"{\"card\":41111111"#) + &fragment("11111111}");
    let want = fragment(r#"{\"card\":"#) + &fragment(r#"\"[redacted:card]\"}"#);
    assert_any_chunking(SSE, &body, &want);
}

fn utf16(text: &str, big: bool, mark: bool) -> Vec<u8> {
    let units = mark.then_some(0xFEFF).into_iter().chain(text.encode_utf16());
    units.flat_map(|u| if big { u.to_be_bytes() } else { u.to_le_bytes() }).collect()
}

#[test]
fn case_30_utf_16_is_read_and_written_with_and_without_its_mark() {
    let (body, want) = (format!(r#"{{"é":"{EMAIL} 😀"}}"#), r#"{"é":"[redacted:email] 😀"}"#);
    for (big, mark, kind) in [
        (true, true, "application/json; charset=utf-16"),
        (false, true, "application/json; charset=utf-16"),
        (true, false, "application/json; charset=utf-16be"),
        (false, false, "application/json; charset=utf-16le"),
        (true, false, "application/json"),
        (false, false, "application/json"),
        (false, true, "text/plain"),
    ] {
        let (sent, wanted) = (utf16(&body, big, mark), utf16(want, big, mark));
        assert_eq!(mask_whole(&rules(), kind, &sent).as_ref(), Ok(&wanted), "{kind} {big} {mark}");
        for cut in 0..sent.len() {
            assert_eq!(chunked(&rules(), kind, &sent, &[cut]), wanted, "{kind} cut at {cut}");
        }
    }
    let ids = with_field("$.id", FieldAction::Drop);
    let faults = [utf16("{]", false, false), vec![0, 0xdc]].concat();
    assert_eq!(mask_whole(&ids, JSON, &faults), Err(Blocked::Malformed), "the first fault counts");
    for bad in [&utf16("{}", true, true)[..5], &[0xfe, 0xff, 0xd8, 0, 0, b'a']] {
        assert_eq!(mask_whole(&rules(), JSON, bad), Err(Blocked::Charset), "{bad:?}");
    }
}

#[test]
fn case_31_other_bytes_near_a_match_stay_as_they_are() {
    let latin: Vec<u8> = [&b"Gr\xfc\xdfe an "[..], EMAIL.as_bytes(), b" \xe9"].concat();
    let want: Vec<u8> = [&b"Gr\xfc\xdfe an [redacted:email] \xe9"[..]].concat();
    for kind in ["text/plain; charset=iso-8859-1", "text/plain; charset=windows-1252", "text/plain"] {
        for cut in 0..latin.len() {
            assert_eq!(chunked(&rules(), kind, &latin, &[cut]), want, "{kind} cut at {cut}");
        }
    }
    let spaced: Vec<u8> = CARD.as_bytes().chunks(4).collect::<Vec<_>>().join(&b"\xa0"[..]);
    let masked = mask_whole(&rules(), "text/plain; charset=latin1", &spaced);
    assert_eq!(masked.as_deref(), Ok(&b"[redacted:card]"[..]), "its no-break space is one");
    let broken = [&b"\xf0\x9f"[..], EMAIL.as_bytes(), b"\xc3"].concat();
    assert_eq!(mask_whole(&rules(), "text/plain", &broken), Ok(b"\xf0\x9f[redacted:email]\xc3".to_vec()));
}

#[test]
fn case_37_base64_is_scanned_where_a_rule_says_so_one_level_deep() {
    use base64::Engine as _;
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
    let rules = with_field("$.data", FieldAction::Base64);
    let (secret, clean) = (format!("{{\"to\":\"{EMAIL}\"}} "), r#"{"to":"[redacted:email]"} "#);
    let wrap = |data: &str| format!(r#"{{"data":"{data}","n":1}}"#);
    for (data, want) in [
        (BASE64_STANDARD.encode(&secret), BASE64_STANDARD.encode(clean)),
        (BASE64_URL_SAFE_NO_PAD.encode(&secret), BASE64_URL_SAFE_NO_PAD.encode(clean)),
        (
            format!("data:application/json;base64,{}", BASE64_STANDARD.encode(&secret)),
            format!("data:application/json;base64,{}", BASE64_STANDARD.encode(clean)),
        ),
    ] {
        assert_eq!(whole(&rules, JSON, &wrap(&data)), wrap(&want));
    }
    for bad in ["not base64 at all", "data:image/png;base64,iVBORw0KGgo=", "data:,plain"] {
        assert!(mask_whole(&rules, JSON, wrap(bad).as_bytes()).is_err(), "{bad}");
    }
    assert_eq!(whole(&rules, JSON, &format!(r#"{{"data":["{EMAIL}"]}}"#)), r#"{"data":["[redacted:email]"]}"#);
    let within = BASE64_STANDARD.encode(BASE64_STANDARD.encode(EMAIL));
    assert_eq!(whole(&rules, JSON, &wrap(&within)), wrap(&within), "a second level is not looked for");
}

#[test]
fn a_byte_order_mark_before_json_is_none_of_its_own() {
    assert_any_chunking(JSON, &format!("\u{feff}{{\"a\":\"{EMAIL}\"}}"), "\u{feff}{\"a\":\"[redacted:email]\"}");
    let dropped = whole(&with_field("$.a", FieldAction::Drop), JSON, "\u{feff}{\"a\":1,\"b\":2}");
    assert_eq!(dropped, "\u{feff}{\"b\":2}");
}

#[test]
fn account_and_security_numbers_are_found_in_their_forms_alone() {
    for (text, want) in [
        ("DE89370400440532013000", "[redacted:iban]"),
        ("to GB82 WEST 1234 5698 7654 32, please", "to [redacted:iban], please"),
        ("NO93 8601 1117 947", "[redacted:iban]"),
        ("DE89370400440532013001", "DE89370400440532013001"),
        ("XX89370400440532013000", "XX89370400440532013000"),
        ("ADE89370400440532013000", "ADE89370400440532013000"),
        ("DE893704004405320130001", "DE893704004405320130001"),
        ("SSN 123-45-6789.", "SSN [redacted:ssn]."),
        ("123 45 6789", "[redacted:ssn]"),
        ("123-45 6789", "123-45 6789"),
        ("000-45-6789 666-45-6789 900-45-6789", "000-45-6789 666-45-6789 900-45-6789"),
        ("123-00-6789 123-45-0000 1123-45-6789 123-45-67890", "123-00-6789 123-45-0000 1123-45-6789 123-45-67890"),
        ("2024-01-2345 555-1234", "2024-01-2345 555-1234"),
    ] {
        assert_any_chunking("text/plain", text, want);
    }
}

fn with(kinds: &[EntityKind], change: impl FnOnce(&mut MaskRules)) -> Arc<MaskRules> {
    let mut rules = MaskRules::detecting(kinds);
    change(&mut rules);
    Arc::new(rules)
}

/// Like [`assert_any_chunking`], for other rules.
fn assert_any_cut(rules: &Arc<MaskRules>, kind: &str, body: &str, want: &str) {
    assert_eq!(whole(rules, kind, body), want);
    for cut in 0..=body.len() {
        assert_eq!(String::from_utf8_lossy(&chunked(rules, kind, body.as_bytes(), &[cut])), want, "cut at {cut}");
    }
    let every: Vec<usize> = (1..body.len()).collect();
    assert_eq!(String::from_utf8_lossy(&chunked(rules, kind, body.as_bytes(), &every)), want, "byte by byte");
}

#[test]
fn what_nothing_cheap_finds_is_found_where_it_is_asked_for() {
    let all = with(&[EntityKind::Phone, EntityKind::Ip, EntityKind::Base58], |rules| {
        rules.custom.push(custom::Custom::pattern("staff", "E-[0-9]{4}").expect("a pattern"));
        rules.custom.push(custom::Custom::list("name", &["Ada Lovelace".into()]).expect("a name"));
    });
    for (text, want) in [
        ("call +49 (30) 901820, ok", "call [redacted:phone], ok"),
        ("+1-202-555-0143", "[redacted:phone]"),
        ("1+12345678 and +123", "1+12345678 and +123"),
        ("at 192.168.0.1, or 2001:db8::1.", "at [redacted:ip], or [redacted:ip]."),
        ("version 1.2.3 at 12:30:45", "version 1.2.3 at 12:30:45"),
        ("1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2 x", "[redacted:base58] x"),
        ("ADA lovelace has E-1234, not E-12345.", "[redacted:name] has [redacted:staff], not E-12345."),
    ] {
        assert_any_cut(&all, "text/plain", text, want);
    }
}

#[test]
fn tokens_are_the_same_for_the_same_value_and_for_one_key() {
    let token = |key: &str| {
        with(&[EntityKind::Card, EntityKind::Email, EntityKind::Secret], |rules| {
            rules.strategy = Strategy::Token;
            rules.key = key.as_bytes().to_vec();
        })
    };
    let (one, other) = (token("one"), token("other"));
    let spelt = whole(&one, "text/plain", &format!("{CARD} {SPACED} {EMAIL} Ada.Lovelace@Example.ORG {KEY}"));
    let words: Vec<&str> = spelt.split(' ').collect();
    assert_eq!((words[0], words[2]), (words[1], words[3]), "{spelt}");
    assert!(words[0].starts_with("[card:") && words[0].len() == "[card:]".len() + 16, "{spelt}");
    assert!(words[4].starts_with("[secret:"), "{spelt}");
    assert_ne!(whole(&other, "text/plain", CARD), words[0]);
    assert_any_cut(&one, "text/plain", &format!("a {KEY} b"), &format!("a {} b", words[4]));
    let fields = with(&[], |rules| {
        rules.key = b"one".to_vec();
        rules.fields.push(FieldRule { path: FieldPath::parse("$..id").expect("a path"), action: FieldAction::Token });
    });
    let masked = whole(&fields, JSON, r#"{"id":"a","b":{"id":"a","c":[{"id":17}]},"id":null}"#);
    let document: serde_json::Value = serde_json::from_str(&masked).expect("JSON");
    assert!(document["b"]["id"].as_str().expect("text").starts_with("[field:"), "{masked}");
    assert_ne!(document["b"]["id"], document["b"]["c"][0]["id"]);
    assert!(masked.ends_with("\"id\":null}"), "{masked}");
}

#[test]
fn a_token_of_the_same_form_keeps_the_form_and_nothing_else() {
    let rules = with(&[EntityKind::Card, EntityKind::Email, EntityKind::Ssn], |rules| {
        rules.strategy = Strategy::Format;
        rules.key = b"key".to_vec();
    });
    for value in [CARD, SPACED, EMAIL, "123-45-6789"] {
        let made = whole(&rules, "text/plain", value);
        let form = |text: &str| -> Vec<char> {
            let class = |c: char| match c {
                '0'..='9' => '9',
                'a'..='z' => 'a',
                'A'..='Z' => 'A',
                other => other,
            };
            text.chars().map(class).collect()
        };
        assert_eq!(form(&made), form(value));
        assert_ne!(made, value);
        assert_eq!(made, whole(&rules, "text/plain", value));
    }
}

#[test]
fn parts_of_a_multipart_body_are_masked_as_what_they_are() {
    let kind = "multipart/form-data; boundary=\"xx\"";
    let body = format!(
        "--xx\r\nContent-Disposition: form-data; name=\"a\"; filename=\"{EMAIL}\"\r\nContent-Type: application/json\r\n\r\n{{\"card\":{CARD}}}\r\n--xx\r\n\r\nto {EMAIL}\r\n--xx--\r\n"
    );
    let want = "--xx\r\nContent-Disposition: form-data; name=\"a\"; filename=\"[redacted:email]\"\r\nContent-Type: application/json\r\n\r\n{\"card\":\"[redacted:card]\"}\r\n--xx\r\n\r\nto [redacted:email]\r\n--xx--\r\n";
    assert_any_chunking(kind, &body, want);
    for bad in [
        "--xx\r\nContent-Transfer-Encoding: base64\r\n\r\nYQ==\r\n--xx--",
        "--xx\r\nContent-Type: application/octet-stream\r\n\r\na\r\n--xx--",
        "--xx\r\nContent-Length: 1\r\n\r\na\r\n--xx--",
        "--xxy\r\n\r\na\r\n--xx--",
        "--xx\r\nno header at all",
    ] {
        assert!(mask_whole(&rules(), kind, bad.as_bytes()).is_err(), "{bad}");
    }
    let fields = with_field("$.a", FieldAction::Drop);
    assert_eq!(mask_whole(&fields, kind, b"{\"a\":1}\r\n--xx--"), Err(Blocked::Malformed), "before the first part");
    assert_eq!(
        Masker::for_content_type(&rules(), "multipart/byteranges; boundary=x").err(),
        Some(Blocked::ContentType)
    );
}

#[test]
fn what_reads_as_nothing_behind_a_value_stays_however_it_comes() {
    assert_any_chunking(JSON, &format!("[\"{KEY}\\u200b\"]"), "[\"[redacted:secret]\\u200b\"]");
    assert_any_chunking("text/plain", &format!("{KEY}\u{200b}"), "[redacted:secret]\u{200b}");
    let fields = with(&[EntityKind::Card], |rules| {
        rules.key = b"one".to_vec();
        rules.fields.push(FieldRule { path: FieldPath::parse("$.id").expect("a path"), action: FieldAction::Token });
    });
    let body = "{\"id\":\"abc\u{200b}\"}";
    assert_any_cut(&fields, JSON, body, &whole(&fields, JSON, body));
    let token = |id: &str| whole(&fields, JSON, &format!("{{\"id\":{id}}}"));
    assert_ne!(token("4111111111111111"), token("5555555555554444"), "the value counts, and not its mask");
    let alone = delta(0, "hi. ") + &delta(0, "\u{fe0f}") + "data: [DONE]\n\n";
    assert_any_chunking(SSE, &alone, &alone);
    let endless = "\u{200b}".repeat(100_000);
    assert_eq!(mask_whole(&rules(), "text/plain", format!("a{endless}b").as_bytes()), Err(Blocked::TooLong), "whole");
    let mut masker = Masker::for_content_type(&rules(), "text/plain").expect("readable");
    let mut out = Vec::new();
    let pushed = endless.as_bytes().chunks(999).try_for_each(|chunk| masker.push(chunk, &mut out));
    assert_eq!(pushed, Err(Blocked::TooLong), "no more is held than may be");
}

#[test]
fn a_choice_that_ends_ends_no_other() {
    let end =
        |n: usize| format!("data: {{\"choices\":[{{\"index\":{n},\"delta\":{{}},\"finish_reason\":\"stop\"}}]}}\n\n");
    let body = delta(1, "4111 1111") + &end(0) + &delta(1, " 1111 1111") + &end(1);
    let want = delta(1, "") + &end(0) + &delta(1, "[redacted:card]") + &end(1);
    assert_any_chunking(SSE, &body, &want);
    let lone = format!("{}{}", delta(1, "41111111"), delta(1, "11111111 \\ud83d"));
    assert_eq!(mask_whole(&rules(), SSE, lone.as_bytes()), Err(Blocked::Malformed));
}

#[test]
fn a_replacement_that_waits_for_its_values_end_is_written_at_the_end_of_a_stream_too() {
    let token = with(&[EntityKind::Secret], |rules| {
        rules.strategy = Strategy::Token;
        rules.key = b"one".to_vec();
    });
    let body = delta(0, &format!("key {KEY}")) + "data: [DONE]\n\n";
    let masked = whole(&token, SSE, &body);
    assert!(masked.contains("key [secret:"), "{masked}");
    assert_any_cut(&token, SSE, &body, &masked);
    let twice = delta(0, "key sk-abcdefghijklmnop") + &delta(0, "1234567890") + &delta(0, " end");
    assert_any_cut(&token, SSE, &twice, &whole(&token, SSE, &twice));
}

#[test]
fn multipart_is_read_the_same_however_it_comes() {
    let kind = "multipart/mixed; boundary=xx";
    for body in [
        "hello\r\n--xx\r\n\r\na\r\n--xx--",
        "\r\n--xx\r\n\r\na\r\n--xx--",
        "--xx\r\nA: b\r\n\r\n--xx\r\n\r\nb\r\n--xx--\r\n",
    ] {
        assert_any_chunking(kind, body, body);
    }
    let hidden = "--xx\r\nA: b\r\n\r\n--xx\r\nContent-Transfer-Encoding : base64\r\n\r\nYQ==\r\n--xx--";
    assert_eq!(mask_whole(&rules(), kind, hidden.as_bytes()), Err(Blocked::Coding), "a part without a body hides none");
}

#[test]
fn white_space_before_json_under_another_name_stays() {
    let fields = with(&[EntityKind::Email], |rules| {
        rules.fields.push(FieldRule { path: FieldPath::parse("$.a").expect("a path"), action: FieldAction::Drop });
        rules.custom.push(custom::Custom::pattern("staff", "E-[0-9]{4}").expect("a pattern"));
    });
    assert_any_cut(&fields, "text/plain", " \n {\"a\":1,\"b\":2}", " \n {\"b\":2}");
    let ip = with(&[EntityKind::Ip], |_| {});
    let long = "ABCD:ABCD:ABCD:ABCD:ABCD:ABCD:192.168.158.190.x";
    assert_any_cut(&ip, "text/plain", long, long);
    let wide = r#"{"arguments":"{\"a\":\"5＂\",\"to\":\"x 4111111111111111\"}"}"#;
    assert_any_chunking(JSON, wide, r#"{"arguments":"{\"a\":\"5＂\",\"to\":\"x [redacted:card]\"}"}"#);
}

#[test]
fn a_type_that_is_allowed_passes_unread() {
    let rules = with(&[EntityKind::Email], |rules| rules.allow.push("application/octet-stream".into()));
    assert_eq!(whole(&rules, "application/octet-stream", EMAIL), EMAIL);
    assert!(Masker::for_content_type(&rules, "application/pdf").is_err());
}

#[test]
fn case_04_a_card_over_two_delta_events() {
    let body = delta(0, "card 4111 1111") + &delta(0, " 1111 1111 ok") + "data: [DONE]\n\n";
    let want = delta(0, "card ") + &delta(0, "[redacted:card] ok") + "data: [DONE]\n\n";
    assert_any_chunking(SSE, &body, &want);
}

#[test]
fn a_string_that_goes_on_is_never_walked_over_whatever_stands_around_it() {
    for (before, after) in [
        ("", ""),
        (r#""id":"chatcmpl-abcdefghijklmnopqrstuvw","#, r#","usage":{"prompt_tokens":17,"completion_tokens":3}"#),
        ("", r#","model":"a name that is long enough to be walked over at once""#),
    ] {
        for (name, rest) in [("content", ""), ("content", r#","role":"assistant of some length""#), ("Content", "")] {
            let event = |text: &str| {
                format!(
                    "data: {{{before}\"choices\":[{{\"index\":0,\"delta\":{{\"{name}\" :  \"{text}\"{rest}}}}}]{after}}}\n\n"
                )
            };
            let body = ": begun\n\n".to_owned() + &event("card 4111 1111") + &event(" 1111 1111 ok") + &event(" end. ");
            let want = ": begun\n\n".to_owned() + &event("card ") + &event("[redacted:card] ok") + &event(" end. ");
            assert_any_chunking(SSE, &body, &want);
        }
    }
}

#[test]
fn a_chats_end_passes_rules_on_fields_and_what_was_held_goes_before_it() {
    let rules = with_field("$.context.customer.name", FieldAction::Drop);
    let body = delta(0, "all done") + "data: [DONE]\n\n";
    assert_any_cut(&rules, SSE, &body, &body);
    for other in ["$.choices[*].delta.refusal", "$.choices[*].delta.reasoning_content", "$.choices[*].text"] {
        let name = other.rsplit('.').next().expect("a name");
        let event = |text: &str| match name {
            "text" => format!("data: {{\"choices\":[{{\"index\":0,\"text\":\"{text}\"}}]}}\n\n"),
            _ => delta(0, text).replace("content", name),
        };
        assert_any_chunking(
            SSE,
            &(event("card 4111 1111") + &event(" 1111 1111 ok. ")),
            &(event("card ") + &event("[redacted:card] ok. ")),
        );
    }
}

#[test]
fn a_line_that_is_no_data_is_a_text_of_its_own() {
    // Read on into the next line, the first would be no card, and the second no match of the pattern.
    let card = ": begun\n\n: 4111111111111111\n1: x\n\n";
    assert_any_chunking(SSE, card, ": begun\n\n: [redacted:card]\n1: x\n\n");
    let custom = with(&[], |rules| {
        rules.custom.push(custom::Custom::pattern("id", "ID[0-9]{6}\\s?[a-z]?").expect("a pattern"));
    });
    let body = ": begun\n\n: ID123456\nevent: x\n\n";
    assert_any_cut(&custom, SSE, body, ": begun\n\n: [redacted:id]\nevent: x\n\n");
}

#[test]
fn what_is_not_clear_costs_no_more_the_longer_it_is() {
    // Each would take minutes if a walk began anew at every byte.
    let wide = " ".repeat(1 << 20);
    for (kind, body) in [
        (JSON, format!("[{wide}]")),
        (JSON, format!("{{\"a\"{wide}:1,{}\"\\u0041\":2}}", &wide[..60_000])),
        (JSON, format!("[\"{}\\u0041\"]", "x".repeat(1 << 20))),
        (SSE, ":\r\n\r\n".repeat(200_000)),
        (SSE, ": a\n\n".to_owned() + &"id: 1\r\n\r\n".repeat(100_000)),
        (SSE, ": a\n\n".to_owned() + &"id: 1\n".repeat(4000) + "\n"),
    ] {
        let masked = mask_whole(&rules(), kind, body.as_bytes()).expect("passes");
        assert_eq!(masked.len(), body.len(), "{}", &body[..20]);
    }
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
        ("text/plain; charset=shift_jis", Blocked::Charset),
        ("application/json;charset=\"utf-7\"", Blocked::Charset),
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
        Just("４１１１".to_owned()),
        Just("\u{200b}".to_owned()),
        Just("\u{a0}".to_owned()),
        Just("DE89 3704 0044 0532 0130 00".to_owned()),
        Just("123-45-6789".to_owned()),
        Just("{\\\"n\\\":4111111111111111}".to_owned()),
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

/// Mostly clean, and long enough that the masks walk over it.
fn long_value(depth: u32) -> BoxedStrategy<String> {
    let string = prop_oneof![
        6 => "[a-z ]{0,40}",
        2 => Just(r#"two\nlines, a \"quote\" and a \\ slash\/"#.to_owned()),
        1 => Just("4111\\n1111\\n1111\\n1111".to_owned()),
        1 => Just("Grüße, 漢字".to_owned()),
        1 => sensitive(),
    ];
    let scalar =
        prop_oneof![Just("true"), Just("null"), Just("-1.5e3"), Just("4111111111111111"), Just("07"), Just("17")];
    let leaf = prop_oneof![4 => string.prop_map(|s| format!("\"{s}\"")), 2 => scalar.prop_map(str::to_owned)].boxed();
    if depth == 0 {
        return leaf;
    }
    let name = prop_oneof![
        Just("a"),
        Just("b"),
        Just("Secret"),
        Just("content"),
        Just("choices"),
        Just("n\\u0061"),
        Just("é")
    ];
    let space = || prop_oneof![4 => Just(""), 1 => Just(" "), 1 => Just("\n")];
    let member = (name, space(), long_value(depth - 1)).prop_map(|(n, s, v)| format!("\"{n}\":{s}{v}"));
    let object = (vec(member, 0..6), space()).prop_map(|(m, s)| format!("{{{s}{}{s}}}", m.join(&format!(",{s}"))));
    let array =
        (vec(long_value(depth - 1), 0..5), space()).prop_map(|(m, s)| format!("[{}{s}]", m.join(&format!("{s},"))));
    prop_oneof![2 => leaf, 4 => object, 2 => array].boxed()
}

fn outcome(rules: &Arc<MaskRules>, kind: &str, body: &[u8], size: usize) -> (Vec<u8>, Result<Counts, Blocked>) {
    let mut masker = Masker::for_content_type(rules, kind).expect("readable");
    let mut out = Vec::new();
    let pushed = body.chunks(size).try_for_each(|chunk| masker.push(chunk, &mut out));
    let ended = pushed.and_then(|()| masker.finish(&mut out)).map(|()| masker.counts());
    (out, ended)
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
    fn what_is_walked_over_at_once_is_what_is_read_byte_by_byte(
        values in vec(long_value(3), 1..5),
        size in 32_usize..700,
        field in prop_oneof![Just(""), Just("$.a.b"), Just("$..secret"), Just("$.a[*]")],
        action in prop_oneof![Just(FieldAction::Redact), Just(FieldAction::Drop), Just(FieldAction::Token)],
    ) {
        let rules = if field.is_empty() { rules() } else { with_field(field, action) };
        let events: String = values.iter().map(|v| format!("id: 7\ndata: {}\n\n", v.replace('\n', " "))).collect();
        let deltas: String = values
            .iter()
            .map(|v| v.replace(['\n', '"'], " ").replace('\\', "/"))
            .map(|text| delta(0, &text) + "data: {\"choices\":[{\"index\":1,\"delta\":{\"role\":\"a role of some length\"}}]}\n\n")
            .collect();
        for (kind, body) in [(JSON, values.join("\n")), (SSE, format!(": begun\n\n{events}")), (SSE, deltas)] {
            let (want, ended) = outcome(&rules, kind, body.as_bytes(), 7);
            for size in [size, body.len()] {
                let (got, end) = outcome(&rules, kind, body.as_bytes(), size);
                prop_assert_eq!(&end, &ended, "{} in pieces of {}: {}", kind, size, body);
                // How much of a body goes out before a fault in it is the pieces' affair.
                let fits = if end.is_ok() { got == want } else { want.starts_with(&got) || got.starts_with(&want) };
                prop_assert!(fits, "{} in pieces of {}: {}", kind, size, String::from_utf8_lossy(&got));
            }
        }
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
