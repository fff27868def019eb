//! JSON inside a JSON string, such as a tool call's arguments: what takes a bare value's place there is written as a string,
//! so that the inner document stays one.

/// Where in the inner document the text stands.
#[derive(Default)]
pub struct Inner {
    /// Whether the string is inside JSON, so that a quote in it needs a backslash.
    escaping: bool,
    state: State,
}

#[derive(Default, PartialEq, Eq)]
enum State {
    /// Nothing but white space has come.
    #[default]
    Begins,
    /// It is no object and no array.
    Text,
    /// Between strings.
    Outside,
    /// In a string.
    Inside,
    /// In a string, behind a backslash.
    Escape,
}

impl Inner {
    /// For a string inside JSON.
    pub const fn in_json() -> Self {
        Self { escaping: true, state: State::Begins }
    }

    /// Follows text that passes.
    pub fn pass(&mut self, text: &[u8]) {
        if !self.escaping || self.state == State::Text {
            return;
        }
        let mut rest = text;
        while let Some(first) = rest.first() {
            let (next, used) = match self.state {
                State::Text => return,
                State::Begins => match first {
                    b' ' | b'\t' | b'\n' | b'\r' => (State::Begins, 1),
                    b'{' | b'[' => (State::Outside, 1),
                    _ => (State::Text, 1),
                },
                State::Outside => match memchr::memchr(b'"', rest) {
                    Some(at) => (State::Inside, at + 1),
                    None => (State::Outside, rest.len()),
                },
                State::Inside => match memchr::memchr2(b'"', b'\\', rest) {
                    Some(at) if rest[at] == b'"' => (State::Outside, at + 1),
                    Some(at) => (State::Escape, at + 1),
                    None => (State::Inside, rest.len()),
                },
                State::Escape => (State::Inside, 1),
            };
            self.state = next;
            rest = &rest[used..];
        }
    }

    /// Writes a replacement.
    pub fn write(&mut self, replacement: &[u8], out: &mut Vec<u8>) {
        if self.escaping && self.state == State::Begins {
            self.state = State::Text;
        }
        let bare = self.escaping && self.state == State::Outside && !replacement.is_empty();
        if bare {
            out.extend(b"\\\"");
        }
        out.extend(replacement);
        if bare {
            out.extend(b"\\\"");
        }
    }
}
