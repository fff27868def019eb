//! Events that differ from one before in their delta's text alone, as those of a chat do: what stands around it is read
//! once.

use std::sync::Arc;

use crate::protocol::masking::Blocked;
use crate::protocol::masking::rules::Strategy;
use crate::protocol::masking::sse::skim::REACH;
use crate::protocol::masking::sse::waiting::{Form, Line, Slot, Source};
use crate::protocol::masking::sse::{Continued, LINE_COST, MAX_CONTINUED, MAX_HELD, SseMasker, data_value};

/// Most frames that are remembered: a stream of several choices has one for each.
const MOST: usize = 4;

/// Longest event that leaves one.
const LONGEST: usize = 16 << 10;

/// An event without the text of its one delta. The mask changes nothing in it, it ends no string, and what it says of the
/// delta's place holds for every event that has it.
pub(super) struct Frame {
    /// All before the text, with its opening quote.
    front: Vec<u8>,
    /// All behind it, from its closing quote on.
    back: Vec<u8>,
    /// What the string that goes on is known by.
    key: String,
    lines: usize,
}

impl Frame {
    /// The frame of an event that ends no string and whose one delta is `key`; `raw` is what came, `form` what will go.
    pub fn of(raw: &[Line], form: &Form, text: &[u8], key: &str) -> Option<Self> {
        let Form::Lines(lines, Some(data), slots) = form else { return None };
        let [slot] = &slots[..] else { return None };
        let length: usize = raw.iter().map(|l| l.content.len() + l.end.len()).sum();
        if length > LONGEST || !is_plain(text) || !slot.after.is_empty() {
            return None;
        }
        let mut before = 0;
        let mut values = raw.iter().filter_map(|l| {
            let at = before;
            before += l.content.len() + l.end.len();
            data_value(&l.content).map(|value| at + l.content.len() - value.len())
        });
        let (Some(at), None) = (values.next(), values.next()) else { return None };
        let came: Vec<u8> = raw.iter().flat_map(|l| l.content.iter().chain(&l.end)).copied().collect();
        // As it would go with nothing to mask in its text.
        let whole = Slot { at: slot.at, content: text.to_vec(), ..Slot::default() };
        let mut goes = Vec::with_capacity(came.len());
        Form::write_lines(lines, Some(data), &[whole], &mut goes);
        let (front, rest) = came.split_at_checked(at + slot.at)?;
        let back = rest.strip_prefix(text)?;
        // A carriage return at its end might be half a line's end the next time.
        let frames = front.ends_with(b"\"") && back.starts_with(b"\"") && back.ends_with(b"\n") && goes == came;
        frames.then(|| Self { front: front.to_vec(), back: back.to_vec(), key: key.to_owned(), lines: raw.len() })
    }

    /// The text of an event at the front that has this frame.
    fn text<'a>(&self, rest: &'a [u8]) -> Option<&'a [u8]> {
        let rest = rest.strip_prefix(&self.front[..])?;
        let (text, back) = rest.split_at(memchr::memchr(b'"', rest)?);
        (back.starts_with(&self.back) && is_plain(text)).then_some(text)
    }

    /// Length of an event.
    fn length(&self, text: &[u8]) -> usize {
        self.front.len() + text.len() + self.back.len()
    }

    /// Writes an event.
    pub fn write(&self, text: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.front);
        out.extend_from_slice(text);
        out.extend_from_slice(&self.back);
    }
}

/// Whether every byte of a string's content is a character that stands for itself.
fn is_plain(text: &[u8]) -> bool {
    text.iter().all(|b| matches!(b, b' '..=b'~') && !matches!(b, b'"' | b'\\'))
}

impl SseMasker {
    /// Remembers a frame, the last one first.
    pub(super) fn remember(&mut self, frame: Frame) {
        self.frames.truncate(MOST - 1);
        self.frames.insert(0, Arc::new(frame));
    }

    /// Takes whole events at the front of `rest` that have a frame which came before, and gives how many bytes that were.
    /// Their text is scanned together.
    pub(super) fn repeat(&mut self, rest: &[u8], out: &mut Vec<u8>) -> Result<usize, Blocked> {
        if self.carriage_return || !self.line.is_empty() || !self.event.is_empty() {
            return Ok(0);
        }
        let Some(frame) = self.frames.iter().find(|f| f.text(rest).is_some()).cloned() else { return Ok(0) };
        let known = self.continued.contains_key(&frame.key);
        if !known && self.continued.len() == MAX_CONTINUED {
            return Ok(0);
        }
        let continued = self.continued.entry(frame.key.clone()).or_insert_with(Continued::new);
        // Where a replacement waits for its value's end, it stands at the last byte that was scanned before: of this event.
        let waits = !matches!(self.rules.strategy, Strategy::Redact | Strategy::Block);
        let together = if waits { 1 } else { REACH };
        let mut taken = 0;
        while taken < together {
            let Some(text) = frame.text(&rest[taken..]) else { break };
            let size = frame.length(text) + frame.lines * LINE_COST;
            // What is too long is so wherever the chunk was cut: it is taken, and told of, one by one.
            if self.waiting.size() + size > MAX_HELD {
                break;
            }
            let slot = Slot { content: Vec::with_capacity(text.len()), open: text.len(), ..Slot::default() };
            let event = self.waiting.push(Form::Repeated(frame.clone(), slot), size);
            continued.sources.push_back(Source { event, slot: 0, length: text.len() });
            continued.scan.written.push_plain(text);
            taken += frame.length(text);
        }
        if taken > 0 {
            self.advance(&frame.key, false)?;
            self.waiting.release(out);
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{Just, ProptestConfig, prop_assert, prop_assert_eq, prop_oneof, proptest};

    use super::*;
    use crate::protocol::masking::path::FieldPath;
    use crate::protocol::masking::rules::{Counts, EntityKind, FieldAction, FieldRule, MaskRules};

    fn rules(strategy: Strategy) -> MaskRules {
        MaskRules { strategy, ..MaskRules::detecting(&[EntityKind::Email, EntityKind::Card, EntityKind::Secret]) }
    }

    /// A masker that has read one event, and what it let go.
    fn begun(rules: MaskRules, first: &str) -> (SseMasker, Vec<u8>) {
        let (mut masker, mut out) = (SseMasker::new(Arc::new(rules)), Vec::new());
        masker.push(first.as_bytes(), &mut out).expect("passes");
        (masker, out)
    }

    fn masked(rules: &MaskRules, body: &str, size: usize) -> (String, Result<Counts, Blocked>) {
        let (mut masker, mut out) = (SseMasker::new(Arc::new(rules.clone())), Vec::new());
        let pushed = body.as_bytes().chunks(size).try_for_each(|chunk| masker.push(chunk, &mut out));
        let ended = pushed.and_then(|()| masker.finish(&mut out)).map(|()| masker.counts().clone());
        (String::from_utf8(out).expect("UTF-8"), ended)
    }

    fn event(text: &str) -> String {
        format!(
            "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":null}}]}}\n\n"
        )
    }

    #[test]
    fn what_came_before_is_read_once_and_its_texts_are_scanned_together() {
        let (mut masker, mut out) = begun(rules(Strategy::Redact), &event("To "));
        let more = ["ada@", "example", ".org, ", "and so ", "on. "].map(event).concat();
        assert_eq!(masker.repeat(more.as_bytes(), &mut out), Ok(more.len()));
        masker.finish(&mut out).expect("passes");
        let want = ["To ", "", "", "[redacted:email], ", "and so ", "on. "].map(event).concat();
        assert_eq!(String::from_utf8(out).expect("UTF-8"), want);
    }

    #[test]
    fn what_differs_in_more_than_plain_text_has_another_frame() {
        for other in [
            event("\\u0034111"),
            event("naïve"),
            event("a\tb"),
            event("a").replace("\"index\":0", "\"index\":1"),
            event("a").replace("null", "\"stop\""),
            event("a").replace("}\n", "} \n"),
            event("a").replace("\n\n", "\r\n\r\n"),
            event("a\",\"role\":\"b"),
            event("a").replace("\n\n", "\n"),
        ] {
            let (mut masker, mut out) = begun(rules(Strategy::Redact), &event("card "));
            assert_eq!((masker.frames.len(), masker.repeat(other.as_bytes(), &mut out)), (1, Ok(0)), "{other}");
        }
    }

    #[test]
    fn a_frame_that_the_mask_changes_or_that_ends_a_string_is_none() {
        for first in [
            event("a").replace("\"index\"", "\"by\":\"ada@example.org\",\"index\""),
            event("a").replace("null", "\"stop\""),
            event("a").replace("data: ", "id: ada@example.org\ndata: "),
            event("a").replace("{\"choices\"", "{\ndata: \"choices\""),
            event("a").replace("\"content\"", "\"content\":\"b\",\"content\""),
            event("\\n"),
            event("a").replace("finish_reason\":null", "finish\\u005freason\":\"stop\""),
            event("a").replace("\n\n", "\r\r"),
            event("a").replace("\"index\"", &format!("\"by\":\"{}\",\"index\"", "x".repeat(LONGEST))),
        ] {
            let (masker, _) = begun(rules(Strategy::Redact), &first);
            assert!(masker.frames.is_empty(), "{first}");
        }
        let fields = vec![FieldRule { path: FieldPath::parse("$..index").expect("a path"), action: FieldAction::Drop }];
        let (masker, _) = begun(MaskRules { fields, ..rules(Strategy::Redact) }, &event("a"));
        assert!(masker.frames.is_empty());
        // What is redacted already counts each time.
        let fields = vec![FieldRule { path: FieldPath::parse("$..by").expect("a path"), action: FieldAction::Redact }];
        let rules = MaskRules { fields, ..rules(Strategy::Redact) };
        let body = event("a").replace("\"index\"", "\"by\":\"[redacted:field]\",\"index\"").repeat(5);
        assert_eq!(masked(&rules, &body, body.len()), masked(&rules, &body, 7));
    }

    #[test]
    fn a_replacement_that_waits_stands_in_the_same_event_wherever_it_is_cut() {
        let body = ["To ", "sk-abcdefghijklmnop", "@", "a"].map(event).concat();
        for strategy in [Strategy::KeepLast(4), Strategy::Token] {
            let rules = rules(strategy);
            assert_eq!(masked(&rules, &body, body.len()), masked(&rules, &body, 7));
        }
    }

    #[test]
    fn a_string_that_is_never_decided_is_blocked_wherever_it_is_cut() {
        // One choice's text may be a key's beginning, and all of the other's waits behind it.
        let undecided = event("clean. ") + &event("sk-abc").replace("\"index\":0", "\"index\":1");
        let body = undecided + &event("clean. ").repeat(6000);
        let rules = rules(Strategy::Redact);
        let (want, ended) = masked(&rules, &body, 7);
        assert_eq!(ended, Err(Blocked::TooLong));
        for size in [100, 16 << 10, body.len()] {
            assert_eq!(masked(&rules, &body, size), (want.clone(), Err(Blocked::TooLong)));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

        #[test]
        fn what_repeats_is_masked_as_what_is_read(
            texts in vec(
                (0_usize..5, prop_oneof![
                    6 => "[a-z ]{0,9}",
                    3 => "[0-9 @.-]{0,9}",
                    1 => Just("4111 1111 1111 1111".to_owned()),
                    1 => Just("4111".to_owned()),
                    1 => Just("1111 1111 1111".to_owned()),
                    1 => Just("ada@example.org".to_owned()),
                    1 => Just("sk-abcdefghijklmnop".to_owned()),
                    1 => Just("{\\\"to\\\": 4111111111111111}".to_owned()),
                    1 => Just("1111\\u00e9\\\\".to_owned()),
                    1 => Just("\u{200b}1".to_owned()),
                ]),
                0..40,
            ),
            size in 60_usize..900,
            strategy in prop_oneof![
                Just(Strategy::Redact), Just(Strategy::KeepLast(4)), Just(Strategy::Token), Just(Strategy::Block)
            ],
        ) {
            let frame = |(n, text): &(usize, String)| match n {
                0 | 1 => event(text),
                2 => event(text).replace("\"index\":0", "\"index\":1"),
                3 => event(text).replace("data: ", "event: part\ndata: "),
                _ => event(text).replace("null", "\"stop\""),
            };
            let body = event("") + &texts.iter().map(frame).collect::<String>();
            let rules = rules(strategy);
            let (want, ended) = masked(&rules, &body, 7);
            for size in [size, body.len()] {
                let (got, end) = masked(&rules, &body, size);
                prop_assert_eq!(&end, &ended);
                // How much of a body goes out before a fault in it is the pieces' affair.
                let fits = if end.is_ok() { got == want } else { want.starts_with(&got) };
                prop_assert!(fits, "in pieces of {}:\n{}\ninstead of\n{}", size, got, want);
            }
        }
    }
}
