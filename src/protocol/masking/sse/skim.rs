//! Events that are there at once and hold nothing to mask: they pass as they are.

use crate::protocol::masking::detect::Scanner;
use crate::protocol::masking::json::skim::whole_event;
use crate::protocol::masking::sse::{LINE_COST, MAX_HELD, SseMasker, data_value};

/// Most lines of an event that passes so.
const MAX_LINES: usize = 16;
/// Longest event that does: less than may be held, whatever its lines cost.
const LONGEST: usize = MAX_HELD - (MAX_LINES + 1) * LINE_COST;
/// Most bytes of events that are scanned together.
pub(super) const REACH: usize = 64 * 1024;

impl SseMasker {
    /// Passes whole events at the front of `rest` that are clean and that no string continues over; gives how many bytes
    /// that were. They are scanned together; where something is found, one by one.
    pub(super) fn skim(&mut self, rest: &[u8], out: &mut Vec<u8>) -> usize {
        let between = self.begun && !self.carriage_return && self.line.is_empty() && self.event.is_empty();
        if !between || !self.waiting.is_empty() {
            return 0;
        }
        let mut passed = 0;
        loop {
            let (mut length, mut events) = (0, 0);
            while length < self.reach {
                let Some(event) = self.clear_event(&rest[passed + length..]) else { break };
                (length, events) = (length + event, events + 1);
            }
            if length == 0 {
                break;
            }
            let clean = Scanner::is_clean(&self.rules, &rest[passed..passed + length]);
            if clean {
                passed += length;
                self.reach = (self.reach * 2).min(REACH);
            } else {
                self.reach = 1;
                if events == 1 {
                    break;
                }
            }
        }
        out.extend_from_slice(&rest[..passed]);
        passed
    }

    /// Length of the event at the front, if it is plain lines and one whole document, in whose escapes nothing is found.
    fn clear_event(&self, rest: &[u8]) -> Option<usize> {
        let (mut data, mut at, mut lines) = (None, 0, 0);
        loop {
            let end = at + memchr::memchr(b'\n', &rest[at..])?;
            if end == at {
                break;
            }
            if lines == MAX_LINES || end > LONGEST || rest[end - 1] == b'\r' {
                return None;
            }
            match data_value(&rest[at..end]) {
                // Lines of data are joined, which may make a value of its pieces.
                Some(_) if data.is_some() => return None,
                Some(value) => data = Some(value),
                // Such a line is a text of its own: with what follows it another value might be read, or none.
                None if !Scanner::is_clean(&self.rules, &rest[at..end]) => return None,
                None => {}
            }
            (at, lines) = (end + 1, lines + 1);
        }
        let (event, length) = (&rest[..at], at + 1);
        if lines == 0 || !event.is_ascii() || memchr::memchr(b'\r', event).is_some() {
            return None;
        }
        // It may end a string that goes on.
        if !self.continued.is_empty() && memchr::memmem::find(event, b"finish_reason").is_some() {
            return None;
        }
        let clear = data.is_none_or(|data| {
            data.first() == Some(&b'{')
                && whole_event(&self.rules, data).is_some_and(|walk| walk.is_clean_read(&self.rules, data))
        });
        clear.then_some(length)
    }
}
