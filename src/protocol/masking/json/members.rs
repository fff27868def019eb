//! Members and items: which are dropped or redacted, and what that does to the commas around them.

use crate::protocol::masking::Blocked;
use crate::protocol::masking::json::{Container, Expect, JsonMasker, REDACTED_FIELD, whole};
use crate::protocol::masking::path::Step;
use crate::protocol::masking::rules::FieldAction;

impl JsonMasker {
    /// A member or item has ended: if it was muted, writing goes on, with what takes its place.
    pub(super) fn unmute_item(&mut self, out: &mut Vec<u8>) -> Result<(), Blocked> {
        if self.muted_at == Some(self.stack.len()) {
            self.muted_at = None;
            if let Some((action, bytes)) = self.captured.take() {
                out.extend(whole::instead(action, &bytes, &self.rules, &mut self.counts)?);
            }
        }
        Ok(())
    }

    pub(super) fn comma(&mut self, out: &mut Vec<u8>) -> Result<(), Blocked> {
        self.unmute_item(out)?;
        match self.stack.last_mut() {
            None => return self.malformed(b","),
            Some(container) if container.object => {
                self.expect = Expect::Name;
                self.separator.push(b',');
            }
            Some(container) => {
                container.index += 1;
                self.expect = Expect::Value;
                self.write(b",", out);
                self.item_begins(out)?;
            }
        }
        Ok(())
    }

    /// An array's item is about to begin: rules on it apply before its first byte.
    pub(super) fn item_begins(&mut self, out: &mut Vec<u8>) -> Result<(), Blocked> {
        let in_array = self.stack.last().is_some_and(|c| !c.object);
        if !in_array || self.muted_at.is_some() || self.rules.fields.is_empty() {
            return Ok(());
        }
        match self.action_here() {
            Some(FieldAction::Block) => Err(Blocked::Forbidden),
            Some(action @ (FieldAction::Token | FieldAction::Base64)) => {
                self.capture(action);
                Ok(())
            }
            Some(action) => {
                self.mute(if action == FieldAction::Drop { b"null" } else { REDACTED_FIELD }, out);
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(super) fn mute(&mut self, instead: &[u8], out: &mut Vec<u8>) {
        out.extend(instead);
        self.muted_at = Some(self.stack.len());
        *self.counts.entry("field".into()).or_default() += 1;
    }

    /// Mutes a value that is replaced once it is whole.
    fn capture(&mut self, action: FieldAction) {
        self.muted_at = Some(self.stack.len());
        self.captured = Some((action, Vec::new()));
    }

    pub(super) fn action_here(&self) -> Option<FieldAction> {
        let path = self.path();
        self.rules.fields.iter().find(|f| f.path.matches(&path)).map(|f| f.action)
    }

    pub(super) fn path(&self) -> Vec<Step> {
        let step = |c: &Container| if c.object { Step::Name(c.name.clone()) } else { Step::Index(c.index) };
        self.stack.iter().map(step).collect()
    }

    pub(super) fn end_name(&mut self, out: &mut Vec<u8>) -> Result<(), Blocked> {
        // Only rules on fields and strings that go on ask where they are.
        if (self.collect_delta || !self.rules.fields.is_empty())
            && let Some(container) = self.stack.last_mut()
        {
            container.name.clear();
            container.name.push_str(&String::from_utf8_lossy(self.string.written.text()));
        }
        self.expect = Expect::Colon;
        let watched = self.muted_at.is_none() && !self.rules.fields.is_empty();
        let action = if watched { self.action_here() } else { None };
        match action {
            Some(FieldAction::Block) => return Err(Blocked::Forbidden),
            Some(FieldAction::Drop) => {
                self.separator.clear();
                self.mute(b"", out);
                return Ok(());
            }
            _ => {}
        }
        self.write_separator(out);
        self.write(b"\"", out);
        self.drain(true, out)?;
        self.write(b"\"", out);
        match action {
            Some(FieldAction::Redact) => {
                out.push(b':');
                self.mute(REDACTED_FIELD, out);
            }
            Some(action) => {
                out.push(b':');
                self.capture(action);
            }
            None => {}
        }
        Ok(())
    }

    /// The comma before a member that stays goes out only if a member before it stayed.
    pub(super) fn write_separator(&mut self, out: &mut Vec<u8>) {
        let held = std::mem::take(&mut self.separator);
        let first =
            self.muted_at.is_none() && self.stack.last_mut().is_some_and(|c| !std::mem::replace(&mut c.written, true));
        let kept: Vec<u8> = held.into_iter().filter(|b| !(first && *b == b',')).collect();
        self.write(&kept, out);
    }

    pub(super) fn close(&mut self, b: u8, out: &mut Vec<u8>) -> Result<(), Blocked> {
        if self.stack.last().is_none_or(|c| c.object != (b == b'}')) {
            return self.malformed(&[b]);
        }
        self.unmute_item(out)?;
        let held = std::mem::take(&mut self.separator);
        let spaces: Vec<u8> = held.into_iter().filter(|b| *b != b',').collect();
        self.write(&spaces, out);
        self.stack.pop();
        self.value_ended();
        self.write(&[b], out);
        Ok(())
    }
}
