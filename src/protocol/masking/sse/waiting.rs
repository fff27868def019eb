//! Events that wait, in order, until every byte of their deltas is decided.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::protocol::masking::sse::data_value;
use crate::protocol::masking::sse::repeat::Frame;

/// One line with the bytes that ended it.
pub(super) struct Line {
    pub content: Vec<u8>,
    pub end: Vec<u8>,
}

/// A delta string's place in a waiting event.
#[derive(Default)]
pub(super) struct Slot {
    /// Where in the joined data it stands.
    pub at: usize,
    /// What has been decided of it.
    pub content: Vec<u8>,
    /// Raw bytes at its end that read as nothing.
    pub after: Vec<u8>,
    /// Text bytes that are not decided.
    pub open: usize,
}

/// What an event is written from.
pub(super) enum Form {
    /// Its lines and joined data, masked but for its slots; none for an event without data.
    Lines(Vec<Line>, Option<Vec<u8>>, Vec<Slot>),
    /// A frame that came before, and its one slot.
    Repeated(Arc<Frame>, Slot),
}

impl Form {
    fn slots(&self) -> &[Slot] {
        match self {
            Self::Lines(_, _, slots) => slots,
            Self::Repeated(_, slot) => std::slice::from_ref(slot),
        }
    }

    fn slots_mut(&mut self) -> &mut [Slot] {
        match self {
            Self::Lines(_, _, slots) => slots,
            Self::Repeated(_, slot) => std::slice::from_mut(slot),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Repeated(frame, slot) => frame.write(&slot.content, out),
            Self::Lines(lines, data, slots) => Self::write_lines(lines, data.as_deref(), slots, out),
        }
    }

    /// Writes an event; its data goes back over the data lines it came from.
    pub fn write_lines(lines: &[Line], data: Option<&[u8]>, slots: &[Slot], out: &mut Vec<u8>) {
        let data = data.map(|data| with_slots(data, slots));
        let mut parts: VecDeque<&[u8]> = data.as_ref().map(|d| d.split(|b| *b == b'\n').collect()).unwrap_or_default();
        let data_lines = lines.iter().filter(|l| data_value(&l.content).is_some()).count();
        let mut seen = 0;
        for line in lines {
            let Some(value) = data_value(&line.content) else {
                out.extend(&line.content);
                out.extend(&line.end);
                continue;
            };
            seen += 1;
            let prefix = &line.content[..line.content.len() - value.len()];
            let take = if seen == data_lines { parts.len() } else { parts.len().min(1) };
            for part in parts.drain(..take) {
                out.extend(prefix);
                out.extend(part);
                out.extend(&line.end);
            }
        }
    }
}

fn with_slots(data: &[u8], slots: &[Slot]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut from = 0;
    for slot in slots {
        out.extend(&data[from..slot.at]);
        out.extend(&slot.content);
        out.extend(&slot.after);
        from = slot.at;
    }
    out.extend(&data[from..]);
    out
}

struct Waiting {
    form: Form,
    /// What holding it costs.
    size: usize,
}

/// The events that wait, by number.
#[derive(Default)]
pub(super) struct Queue {
    events: VecDeque<Waiting>,
    /// Number of the first.
    first: u64,
    /// What holding them costs.
    size: usize,
}

impl Queue {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// What holding them costs.
    pub const fn size(&self) -> usize {
        self.size
    }

    /// Adds an event and gives its number.
    pub fn push(&mut self, form: Form, size: usize) -> u64 {
        self.events.push_back(Waiting { form, size });
        self.size += size;
        self.first + self.events.len() as u64 - 1
    }

    /// Writes the events at the front that are decided.
    pub fn release(&mut self, out: &mut Vec<u8>) {
        while self.events.front().is_some_and(|e| e.form.slots().iter().all(|s| s.open == 0)) {
            if let Some(event) = self.events.pop_front() {
                self.first += 1;
                self.size -= event.size;
                event.form.write(out);
            }
        }
    }

    fn slot(&mut self, source: &Source) -> Option<&mut Slot> {
        let at = usize::try_from(source.event.checked_sub(self.first)?).ok()?;
        self.events.get_mut(at)?.form.slots_mut().get_mut(source.slot)
    }
}

/// Where undecided bytes of a continued string came from.
pub(super) struct Source {
    pub event: u64,
    pub slot: usize,
    pub length: usize,
}

/// Walks over the sources of a continued string, whose bytes are asked for from its front on.
pub(super) struct Walk<'a> {
    sources: &'a VecDeque<Source>,
    at: usize,
    offset: usize,
}

impl<'a> Walk<'a> {
    pub const fn over(sources: &'a VecDeque<Source>) -> Self {
        Self { sources, at: 0, offset: 0 }
    }

    /// The slot that a byte came from, and how many bytes of that source are left from there. No byte before one that was
    /// asked for is asked for again, but in the same source.
    pub fn slot<'q>(&mut self, byte: usize, queue: &'q mut Queue) -> Option<(&'q mut Slot, usize)> {
        loop {
            let source = self.sources.get(self.at)?;
            if byte < self.offset + source.length {
                return Some((queue.slot(source)?, self.offset + source.length - byte));
            }
            self.offset += source.length;
            self.at += 1;
        }
    }
}

/// The first bytes are decided: their slots wait for them no more.
pub(super) fn settle(sources: &mut VecDeque<Source>, mut decided: usize, queue: &mut Queue) {
    while let Some(source) = sources.front_mut() {
        let part = decided.min(source.length);
        if let Some(slot) = queue.slot(source) {
            slot.open -= part;
        }
        source.length -= part;
        decided -= part;
        if source.length > 0 {
            break;
        }
        sources.pop_front();
    }
}
