//! JSON that is there at once and holds nothing to mask: walked over by its brackets and quotes, scanned as one text, and
//! passed on. What is not so clear is left to the masker, which takes each string apart.
//!
//! A value that is found within a string is found in the whole text, too: no detector reads over a quote, and what ends a
//! string ends a value. The other way round a find may be none, which the masker then sees.

use crate::protocol::masking::detect::Scanner;
use crate::protocol::masking::fold::{Fold, fold};
use crate::protocol::masking::json::scalar::{is_literal, is_scalar};
use crate::protocol::masking::json::{Container, Expect, JsonMasker, Lexing, MAX_DEPTH, MAX_HELD};
use crate::protocol::masking::path::FieldPath;
use crate::protocol::masking::rules::MaskRules;

/// Shorter texts are not worth it.
const LEAST: usize = 32;
/// How far a walk goes at most, and after a text that was not clean at least.
const REACH: (usize, usize) = (64 * 1024, 256);

/// How far the next walk may go, and what it must leave to the masker before.
pub(super) struct Reach {
    bytes: usize,
    left: usize,
}

impl Default for Reach {
    fn default() -> Self {
        Self { bytes: REACH.0, left: 0 }
    }
}

impl Reach {
    /// The masker itself took this many bytes.
    pub(super) const fn took(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }
}

/// A container that a walk came into.
struct Frame {
    object: bool,
    index: usize,
    /// Where the name of its last member stands; none: as it was before the walk.
    name: Option<(usize, usize)>,
    written: bool,
}

/// What a walk came over.
pub(in crate::protocol::masking) struct Walk {
    /// From the front to the end of a value, or behind an opening bracket.
    length: usize,
    /// How far it looked before it stopped.
    looked: usize,
    expect: Expect,
    /// How many of the containers that were open it came out of.
    closed: usize,
    /// Those that it is in: the innermost that was open before, if any, then its own.
    frames: Vec<Frame>,
    /// Whether a string has escapes.
    escaped: bool,
}

/// Where a walk begins.
struct Start<'a> {
    rules: &'a MaskRules,
    /// Whether strings at the mask's delta paths are not to be walked over.
    deltas: bool,
    stack: &'a [Container],
    expect: Expect,
}

impl JsonMasker {
    /// Passes over what is whole and clean at the front of `rest`, and gives how many bytes that were.
    pub(super) fn skim(&mut self, rest: &[u8], out: &mut Vec<u8>) -> usize {
        if rest.len() < LEAST || self.reach.left > 0 || !self.is_between() {
            return 0;
        }
        let text = &rest[..rest.len().min(self.reach.bytes)];
        let (rules, stack) = (&*self.rules, &self.stack[..]);
        let walk = Walk::over(&Start { rules, deltas: self.collect_delta, stack, expect: self.expect }, text);
        let Some(walk) = walk else { return 0 };
        if walk.length == 0 {
            // What was looked at in vain is not looked at again and again.
            self.reach.left = walk.looked;
            return 0;
        }
        let passed = &text[..walk.length];
        if !walk.is_clean(&self.rules, passed) {
            self.reach = Reach { bytes: (self.reach.bytes / 4).max(REACH.1), left: walk.length };
            return 0;
        }
        self.reach.bytes = (self.reach.bytes * 2).min(REACH.0);
        out.extend_from_slice(passed);
        self.stand(&walk, passed);
        walk.length
    }

    /// Whether nothing is begun that a walk would have to know of.
    fn is_between(&self) -> bool {
        // A value's name decides what it is: the masker knows the one that it has read.
        let named = matches!(self.expect, Expect::Colon | Expect::Value) && self.stack.last().is_some_and(|c| c.object);
        let begun = self.plain_text || self.lone || named || self.muted_at.is_some() || !self.separator.is_empty();
        matches!(self.lexing, Lexing::Between) && !begun
    }

    /// Stands where the walk ended.
    fn stand(&mut self, walk: &Walk, text: &[u8]) {
        self.expect = walk.expect;
        self.stack.truncate(self.stack.len() - walk.closed);
        let mut frames = walk.frames.iter();
        if let (Some(here), Some(frame)) = (self.stack.last_mut(), frames.next()) {
            frame.onto(here, text);
        }
        for frame in frames {
            let mut container = Container { object: frame.object, index: 0, name: String::new(), written: false };
            frame.onto(&mut container, text);
            self.stack.push(container);
        }
    }
}

impl Frame {
    const fn new(object: bool) -> Self {
        Self { object, index: 0, name: None, written: false }
    }

    fn onto(&self, container: &mut Container, text: &[u8]) {
        container.index += self.index;
        container.written |= self.written;
        if let Some((from, to)) = self.name {
            container.name.clear();
            container.name.push_str(&String::from_utf8_lossy(&text[from..to]));
        }
    }
}

impl<'a> Start<'a> {
    /// The paths whose values are not walked over.
    fn watched(&self) -> impl Iterator<Item = &'a FieldPath> {
        let deltas = if self.deltas { &self.rules.delta[..] } else { &[] };
        self.rules.fields.iter().map(|f| &f.path).chain(deltas)
    }

    /// The innermost container that is open once so many are closed, so that its members are known; outside all, a frame
    /// for nothing.
    fn frame(&self, closed: usize) -> Frame {
        let open = self.stack.len().checked_sub(closed + 1).and_then(|n| self.stack.get(n));
        Frame::new(open.is_some_and(|c| c.object))
    }
}

/// Walks over an event's data, if that is whole, clear JSON, none of whose strings goes on in another event.
pub(in crate::protocol::masking) fn whole_event(rules: &MaskRules, data: &[u8]) -> Option<Walk> {
    let start = Start { rules, deltas: true, stack: &[], expect: Expect::Value };
    Walk::over(&start, data).filter(|w| w.length == data.len() && matches!(w.expect, Expect::Value))
}

impl Walk {
    /// Walks as far as all is clear; none where a rule may be about anything.
    fn over(start: &Start<'_>, text: &[u8]) -> Option<Self> {
        // An operator's pattern may read over a quote.
        if !start.rules.custom.is_empty() || start.watched().any(|path| !path.ends_with_name()) {
            return None;
        }
        let frames = vec![start.frame(0)];
        let mut walk = Self { length: 0, looked: 0, expect: start.expect, closed: 0, frames, escaped: false };
        walk.go(start, text);
        Some(walk)
    }

    fn go(&mut self, start: &Start<'_>, text: &[u8]) {
        use Expect::{Colon, CommaOrEnd, Name, NameOrEnd, Value, ValueOrEnd};
        let (mut at, mut expect, mut name, mut item) = (0, start.expect, None, false);
        loop {
            at += text[at..].iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')).count();
            self.looked = at;
            let Some(b) = text.get(at).copied() else { return };
            let depth = self.depth(start);
            let object = self.frames.last().is_some_and(|f| f.object);
            match (b, expect) {
                (b'"', Name | NameOrEnd) => {
                    let Some((end, false)) = self.string(text, at + 1) else { return };
                    let named = &text[at + 1..end];
                    if named.len() > MAX_HELD || start.watched().any(|path| path.may_end_with(named)) {
                        return;
                    }
                    (name, at, expect) = (Some((at + 1, end)), end + 1, Colon);
                    continue;
                }
                (b':', Colon) => {
                    (at, expect) = (at + 1, Value);
                    continue;
                }
                (b',', CommaOrEnd) if depth > 0 => {
                    (item, at, expect) = (!object, at + 1, if object { Name } else { Value });
                    continue;
                }
                (b'}', NameOrEnd | CommaOrEnd) if depth > 0 && object => self.leave(start),
                (b']', ValueOrEnd | CommaOrEnd) if depth > 0 && !object => self.leave(start),
                (b'{' | b'[', Value | ValueOrEnd) if depth < MAX_DEPTH => {
                    self.place(&mut name, &mut item);
                    self.frames.push(Frame::new(b == b'{'));
                }
                (b'"', Value | ValueOrEnd) => {
                    let Some((end, escaped)) = self.string(text, at + 1) else { return };
                    self.escaped |= escaped;
                    self.place(&mut name, &mut item);
                    at = end;
                }
                (_, Value | ValueOrEnd) if depth > 0 && is_scalar(b) => {
                    let run = text[at..].iter().take_while(|b| is_scalar(**b)).count();
                    self.looked = at + run;
                    if at + run == text.len() || run > MAX_HELD || !is_literal(&text[at..at + run]) {
                        return;
                    }
                    self.place(&mut name, &mut item);
                    at += run - 1;
                }
                _ => return,
            }
            at += 1;
            expect = match b {
                b'{' => NameOrEnd,
                b'[' => ValueOrEnd,
                _ if self.depth(start) > 0 => CommaOrEnd,
                _ => Value,
            };
            (self.length, self.expect) = (at, expect);
        }
    }

    /// Where a string ends that begins at `from`, and whether it has escapes; none where that is not there, or not clear.
    fn string(&mut self, text: &[u8], from: usize) -> Option<(usize, bool)> {
        let (mut at, mut escaped) = (from, false);
        loop {
            self.looked = text.len();
            let stop = at + memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
            self.looked = stop;
            if !reads_as_written(&text[at..stop]) {
                return None;
            }
            if text[stop] == b'"' {
                return Some((stop, escaped));
            }
            escape(*text.get(stop + 1)?)?;
            (at, escaped) = (stop + 2, true);
        }
    }

    /// How deep the walk is in containers.
    const fn depth(&self, start: &Start<'_>) -> usize {
        start.stack.len() - self.closed + self.frames.len() - 1
    }

    /// A value begins: its name or place is its container's last.
    fn place(&mut self, name: &mut Option<(usize, usize)>, item: &mut bool) {
        if let Some(frame) = self.frames.last_mut() {
            frame.index += usize::from(std::mem::take(item));
            if let Some(name) = name.take() {
                (frame.name, frame.written) = (Some(name), true);
            }
        }
    }

    /// A container ends.
    fn leave(&mut self, start: &Start<'_>) {
        self.frames.pop();
        if self.frames.is_empty() {
            self.closed += 1;
            self.frames.push(start.frame(self.closed));
        }
    }

    fn is_clean(&self, rules: &MaskRules, text: &[u8]) -> bool {
        if self.escaped { self.is_clean_read(rules, text) } else { Scanner::is_clean(rules, text) }
    }

    /// Whether nothing is found in what the text's escapes stand for; it is what is written where it has none.
    pub(in crate::protocol::masking) fn is_clean_read(&self, rules: &MaskRules, text: &[u8]) -> bool {
        !self.escaped || Scanner::is_clean(rules, &read(text))
    }
}

/// The escapes that a walk reads; of others the masker knows more.
const fn escape(b: u8) -> Option<u8> {
    match b {
        b'n' => Some(b'\n'),
        b't' => Some(b'\t'),
        b'r' => Some(b'\r'),
        b'"' | b'\\' | b'/' => Some(b),
        _ => None,
    }
}

/// The text with its escapes read, each of which `escape` knows.
fn read(text: &[u8]) -> Vec<u8> {
    let mut read = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        read.extend_from_slice(&rest[..at]);
        read.extend(rest.get(at + 1).and_then(|b| escape(*b)));
        rest = rest.get(at + 2..).unwrap_or_default();
    }
    read.extend_from_slice(rest);
    read
}

fn reads_as_written(text: &[u8]) -> bool {
    text.is_ascii() || std::str::from_utf8(text).is_ok_and(|t| t.chars().all(|c| fold(c) == Fold::Same))
}
