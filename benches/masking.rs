//! What masking costs on one core: text, JSON and server-sent events, clean and with values in them, beside a plain copy of
//! the same bytes in the same run. `POPGATE_BENCH_MIB` sets how much of each.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use popgate::protocol::masking::{EntityKind, MaskRules, Masker};

/// What a proxy passes at once.
const CHUNK: usize = 16 * 1024;
const CLEAN: &str =
    "The proposer expands every state of the frontier, and the valuer says how likely each of them is. ";
const DIRTY: &str =
    "Write to ada.lovelace@example.org about card 4111 1111 1111 1111, or use sk-abcdefghijklmnop1234. ";

fn main() {
    let check = std::env::args().any(|a| a == "--test");
    let mib =
        std::env::var("POPGATE_BENCH_MIB").ok().and_then(|n| n.parse().ok()).unwrap_or(if check { 1 } else { 64 });
    let rules = Arc::new(MaskRules::detecting(&[
        EntityKind::Email,
        EntityKind::Card,
        EntityKind::Ssn,
        EntityKind::Iban,
        EntityKind::Secret,
    ]));
    let repeat = |piece: &str| piece.repeat((mib << 20) / piece.len() + 1);
    let json = |text: &str| {
        let one =
            serde_json::json!({"node": "n17", "parent": "n3", "depth": 2, "text": text, "value": 20.0, "kept": true});
        format!("{one}\n")
    };
    let delta = |text: &str| {
        format!("data: {}\n\n", serde_json::json!({"choices": [{"index": 0, "delta": {"content": text}}]}))
    };
    let event = |text: &str| {
        format!(
            "event: thought\nid: 7\n{}",
            json(text).lines().map(|l| format!("data: {l}\n")).collect::<String>() + "\n"
        )
    };
    let word = |n: usize| {
        let word = CLEAN.split_inclusive(' ').cycle().nth(n % 17).unwrap_or_default();
        let choice = serde_json::json!({"index": 0, "delta": {"content": word}, "finish_reason": null});
        let chunk = serde_json::json!({"id": "chatcmpl-17", "object": "chat.completion.chunk", "created": 1_790_000_000, "model": "m", "choices": [choice]});
        format!("data: {chunk}\n\n")
    };
    // Padding of another length each time, as some services send.
    let padded = |n: usize| word(n).replacen('{', &format!("{{\"pad\":\"{}\",", &"abcdefgh"[..n % 8]), 1);
    let bodies = [
        ("text, clean", "text/plain", repeat(CLEAN)),
        ("text, a value in every sentence", "text/plain", repeat(DIRTY)),
        ("NDJSON, clean", "application/x-ndjson", repeat(&json(CLEAN))),
        ("NDJSON, values in every object", "application/x-ndjson", repeat(&json(DIRTY))),
        ("events, clean", "text/event-stream", repeat(&event(CLEAN))),
        ("events of chat deltas, clean", "text/event-stream", repeat(&delta(CLEAN))),
        ("events of chat deltas, values in each", "text/event-stream", repeat(&delta(DIRTY))),
        ("events of a word each, clean", "text/event-stream", repeat(&(0..17 * 8).map(word).collect::<String>())),
        (
            "events of a word each, padded, clean",
            "text/event-stream",
            repeat(&(0..17 * 8).map(padded).collect::<String>()),
        ),
    ];
    for (name, kind, body) in &bodies {
        let (masked, copied) = (best(|| mask(&rules, kind, body.as_bytes())), best(|| copy(body.as_bytes())));
        let bytes = f64::from(u32::try_from(body.len()).expect("below four gigabytes"));
        let speed = |took: Duration| bytes / took.as_secs_f64() / 1e9;
        println!("{name}: {:.2} GB/s, {:.3} of a copy", speed(masked), copied.as_secs_f64() / masked.as_secs_f64());
    }
    let mut took: Vec<Duration> = added(&rules, &event(CLEAN), if check { 100 } else { 100_000 });
    took.sort_unstable();
    println!("one event: {:?} at p50, {:?} at p99", took[took.len() / 2], took[took.len() * 99 / 100]);
}

fn best(mut run: impl FnMut()) -> Duration {
    let one = |run: &mut dyn FnMut()| {
        let began = Instant::now();
        run();
        began.elapsed()
    };
    (0..5).map(|_| one(&mut run)).min().unwrap_or_default()
}

fn mask(rules: &Arc<MaskRules>, kind: &str, body: &[u8]) {
    let mut masker = Masker::for_content_type(rules, kind).expect("a type that masks read");
    let mut out = Vec::with_capacity(2 * CHUNK);
    for chunk in body.chunks(CHUNK) {
        out.clear();
        masker.push(chunk, &mut out).expect("passes");
        black_box(&out);
    }
    masker.finish(&mut out).expect("passes");
    black_box(&out);
}

fn copy(body: &[u8]) {
    let mut out = Vec::with_capacity(2 * CHUNK);
    for chunk in body.chunks(CHUNK) {
        out.clear();
        out.extend_from_slice(chunk);
        black_box(&out);
    }
}

/// How long each event of a stream takes from its last byte in to its first byte out.
fn added(rules: &Arc<MaskRules>, event: &str, events: usize) -> Vec<Duration> {
    let mut masker = Masker::for_content_type(rules, "text/event-stream").expect("a type that masks read");
    let mut out = Vec::new();
    (0..events)
        .map(|_| {
            out.clear();
            let began = Instant::now();
            masker.push(event.as_bytes(), &mut out).expect("passes");
            let took = began.elapsed();
            assert!(!out.is_empty(), "an event goes out at once");
            took
        })
        .collect()
}
