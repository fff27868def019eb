//! Masks gRPC messages by their descriptors: every string is scanned, fields have rules by their names' path.

use std::path::Path;
use std::sync::Arc;

use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, MapKey, MessageDescriptor, Value};

use crate::protocol::masking::path::Step;
use crate::protocol::masking::{self, Blocked, Counts, FieldAction, MaskRules};

/// Longest message that is held.
const MAX_MESSAGE: usize = 4 << 20;
const PREFIX: usize = 5;

/// Descriptors of the services behind a route.
#[derive(Clone, Debug)]
pub struct Descriptors(DescriptorPool);

impl Descriptors {
    /// Reads a `FileDescriptorSet`, as `protoc --include_imports --descriptor_set_out` writes it.
    pub fn read(file: &Path) -> Result<Self, String> {
        let bytes = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
        DescriptorPool::decode(&bytes[..]).map(Self).map_err(|e| format!("{}: {e}", file.display()))
    }

    /// What a method at `/package.Service/Method` answers with.
    pub fn output(&self, path: &str) -> Option<MessageDescriptor> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        let service = self.0.get_service_by_name(service)?;
        let found = service.methods().find(|m| m.name() == method)?;
        Some(found.output())
    }
}

/// Masks the messages of one answer.
pub struct GrpcMasker {
    rules: Arc<MaskRules>,
    message: MessageDescriptor,
    held: Vec<u8>,
    counts: Counts,
}

impl GrpcMasker {
    /// A masker for messages of a type.
    pub const fn new(rules: Arc<MaskRules>, message: MessageDescriptor) -> Self {
        Self { rules, message, held: Vec::new(), counts: Counts::new() }
    }

    /// Takes a chunk and appends what may be released: whole messages.
    pub fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), Blocked> {
        self.held.extend(chunk);
        while let Some(prefix) = self.held.first_chunk::<PREFIX>() {
            let [compressed, length @ ..] = *prefix;
            let length = u32::from_be_bytes(length) as usize;
            if compressed != 0 {
                return Err(Blocked::Coding);
            }
            if length > MAX_MESSAGE {
                return Err(Blocked::TooLong);
            }
            if self.held.len() < PREFIX + length {
                break;
            }
            let payload: Vec<u8> = self.held.drain(..PREFIX + length).skip(PREFIX).collect();
            let masked = self.masked(&payload)?;
            let length = u32::try_from(masked.len()).map_err(|_| Blocked::TooLong)?;
            out.push(0);
            out.extend(length.to_be_bytes());
            out.extend(masked);
        }
        Ok(())
    }

    /// The answer has ended: no message may be half there.
    pub fn finish(&self) -> Result<(), Blocked> {
        if self.held.is_empty() { Ok(()) } else { Err(Blocked::Malformed) }
    }

    /// What has been masked.
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    fn masked(&mut self, payload: &[u8]) -> Result<Vec<u8>, Blocked> {
        use prost_reflect::prost::Message as _;
        let mut message = DynamicMessage::decode(self.message.clone(), payload).map_err(|_| Blocked::Malformed)?;
        Walk { rules: &self.rules, counts: &mut self.counts, path: Vec::new() }.message(&mut message)?;
        Ok(message.encode_to_vec())
    }
}

struct Walk<'a> {
    rules: &'a Arc<MaskRules>,
    counts: &'a mut Counts,
    path: Vec<Step>,
}

impl Walk<'_> {
    fn message(&mut self, message: &mut DynamicMessage) -> Result<(), Blocked> {
        // A field that the descriptors do not know may hold anything.
        if message.unknown_fields().next().is_some() {
            return Err(Blocked::Malformed);
        }
        let fields: Vec<FieldDescriptor> = message.fields().map(|(field, _)| field).collect();
        for field in fields {
            self.path.push(Step::Name(field.name().to_owned()));
            let done = self.field(message, &field);
            self.path.pop();
            done?;
        }
        Ok(())
    }

    fn field(&mut self, message: &mut DynamicMessage, field: &FieldDescriptor) -> Result<(), Blocked> {
        let action = self.rules.fields.iter().find(|f| f.path.matches(&self.path)).map(|f| f.action);
        match action {
            None => self.value(message.get_field_mut(field)),
            Some(FieldAction::Block) => Err(Blocked::Forbidden),
            Some(action) => {
                *self.counts.entry("field".into()).or_default() += 1;
                match message.get_field_mut(field) {
                    Value::String(text) if action != FieldAction::Drop => *text = "[redacted:field]".into(),
                    _ => message.clear_field(field),
                }
                Ok(())
            }
        }
    }

    fn value(&mut self, value: &mut Value) -> Result<(), Blocked> {
        match value {
            Value::String(text) => {
                *text = self.text(text.as_bytes())?;
                Ok(())
            }
            Value::Bytes(bytes) => {
                // Bytes that are text are scanned; others are none of a detector's.
                if std::str::from_utf8(bytes).is_ok() {
                    *bytes = self.text(bytes)?.into();
                }
                Ok(())
            }
            Value::Message(message) => self.message(message),
            Value::List(items) => {
                for (i, item) in items.iter_mut().enumerate() {
                    self.path.push(Step::Index(i));
                    let done = self.value(item);
                    self.path.pop();
                    done?;
                }
                Ok(())
            }
            Value::Map(members) => {
                for (key, item) in members.iter_mut() {
                    let name = match key {
                        MapKey::String(name) => {
                            if self.text(name.as_bytes())? != *name {
                                return Err(Blocked::Forbidden);
                            }
                            name.clone()
                        }
                        other => format!("{other:?}"),
                    };
                    self.path.push(Step::Name(name));
                    let done = self.value(item);
                    self.path.pop();
                    done?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn text(&mut self, text: &[u8]) -> Result<String, Blocked> {
        let (masked, counts) = masking::mask_text(self.rules, text)?;
        for (kind, n) in counts {
            *self.counts.entry(kind).or_default() += n;
        }
        String::from_utf8(masked).map_err(|_| Blocked::Charset)
    }
}
