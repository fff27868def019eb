//! E-mail addresses, found from their `@`, so that clean text costs one search.

/// Longest local part (RFC 5321 §4.5.3.1.1).
const LOCAL: usize = 64;
/// Longest domain (RFC 5321 §4.5.3.1.2).
const DOMAIN: usize = 255;

/// What stands at a position.
pub enum Address {
    /// No address.
    No,
    /// More bytes would tell.
    Undecided,
    /// One of this length.
    Of(usize),
}

/// Walks through a text from one `@` to the next.
pub struct EmailFinder {
    next_at: Option<usize>,
    start: usize,
    open_tail: usize,
}

impl EmailFinder {
    /// A finder at the front of `text`; `whole` says that nothing follows it.
    pub fn new(text: &[u8], whole: bool) -> Self {
        let open = if whole { 0 } else { text.iter().rev().take(LOCAL).take_while(|b| is_local(**b)).count() };
        let mut finder = Self { next_at: None, start: text.len(), open_tail: text.len() - open };
        finder.seek(text, 0);
        finder
    }

    /// Finds the first `@` at or behind `from` that has a local part before it.
    fn seek(&mut self, text: &[u8], from: usize) {
        let mut from = from;
        loop {
            self.next_at = memchr::memchr(b'@', &text[from..]).map(|at| from + at);
            let Some(at) = self.next_at else {
                self.start = text.len();
                return;
            };
            let local = text[..at].iter().rev().take(LOCAL).take_while(|b| is_local(**b)).count();
            self.start = at - local;
            if local > 0 {
                return;
            }
            from = at + 1;
        }
    }

    /// The first position from `i` on where an address may begin.
    pub fn next(&mut self, text: &[u8], i: usize) -> usize {
        while let Some(at) = self.next_at.filter(|at| *at <= i) {
            self.seek(text, at + 1);
        }
        self.start.min(self.open_tail).max(i)
    }

    /// What begins at `i`, which is not before the last one asked for.
    pub fn at(&mut self, text: &[u8], i: usize, whole: bool) -> Address {
        while let Some(at) = self.next_at.filter(|at| *at <= i) {
            self.seek(text, at + 1);
        }
        if let Some(at) = self.next_at.filter(|_| i >= self.start) {
            match domain(&text[at + 1..], whole) {
                Domain::Undecided => return Address::Undecided,
                Domain::Of(length) => return Address::Of(at + 1 + length - i),
                // No other front of this local part fares better.
                Domain::No => self.seek(text, at + 1),
            }
        }
        if i >= self.open_tail { Address::Undecided } else { Address::No }
    }
}

enum Domain {
    No,
    Undecided,
    Of(usize),
}

/// The domain at the front of `rest`: labels with dots between, the last one of letters.
fn domain(rest: &[u8], whole: bool) -> Domain {
    let run = rest.iter().take(DOMAIN).take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-')).count();
    if run == rest.len() && run < DOMAIN && !whole {
        return Domain::Undecided;
    }
    let mut name = &rest[..run];
    // The longest front whose last label is one of a top-level domain: what follows may be the next sentence.
    loop {
        while let Some((b'.' | b'-', front)) = name.split_last() {
            name = front;
        }
        let Some(dot) = memchr::memrchr(b'.', name).filter(|dot| *dot > 0) else { return Domain::No };
        let last = &name[dot + 1..];
        if last.len() >= 2 && last.iter().any(u8::is_ascii_alphabetic) {
            return Domain::Of(name.len());
        }
        name = &name[..dot];
    }
}

const fn is_local(b: u8) -> bool {
    b.is_ascii_alphanumeric()
        || matches!(b, b'.' | b'_' | b'%' | b'+' | b'-' | b'\'' | b'!' | b'#' | b'$' | b'&' | b'*' | b'=' | b'?' | b'~')
}
