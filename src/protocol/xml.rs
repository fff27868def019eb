//! A small XML tree with one reading: no document type, comment, processing instruction or CDATA section, so that no two
//! readers can see different texts. Signatures are not its business.

use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::{NamespaceResolver, QName, ResolveResult};
use quick_xml::reader::NsReader;

const MAX_DEPTH: usize = 32;
const MAX_ELEMENTS: usize = 2000;
const MAX_ATTRIBUTES: usize = 32;

/// An element with its namespace resolved.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Element {
    /// Namespace URI.
    pub namespace: String,
    /// Local name.
    pub name: String,
    /// Attributes without a namespace; those with one are under `{URI}NAME`.
    pub attributes: Vec<(String, String)>,
    /// Children in order.
    pub children: Vec<Element>,
    /// The texts between them, joined.
    pub text: String,
}

impl Element {
    /// Reads a document that is one element.
    pub fn parse(xml: &str) -> Result<Self, String> {
        // The `Char` of XML 1.0 section 2.2, less what has no place in a name or a value.
        if xml
            .chars()
            .any(|c| (c.is_control() && !matches!(c, '\t' | '\n' | '\r')) || matches!(c, '\u{fffe}' | '\u{ffff}'))
        {
            return Err("a control character".into());
        }
        let mut reader = NsReader::from_str(xml);
        reader.config_mut().expand_empty_elements = true;
        let (mut open, mut root, mut count) = (Vec::<Self>::new(), None::<Self>, 0);
        loop {
            let (resolved, event) = reader.read_resolved_event().map_err(|e| format!("not well-formed: {e}"))?;
            match event {
                Event::Start(start) => {
                    let namespace = uri(&resolved)?;
                    count += 1;
                    if root.is_some() || open.len() >= MAX_DEPTH || count > MAX_ELEMENTS {
                        return Err("more than one root, or too deep, or too many elements".into());
                    }
                    open.push(Self::started(namespace, &start, reader.resolver())?);
                }
                Event::End(_) => {
                    let done = open.pop().ok_or("an end without a start")?;
                    match open.last_mut() {
                        Some(parent) => parent.children.push(done),
                        None => root = Some(done),
                    }
                }
                Event::Text(text) => put(&mut open, &text.xml10_content())?,
                Event::GeneralRef(entity) => {
                    let name = entity.xml10_content();
                    let found = match entity.resolve_char_ref().map_err(|e| format!("a character reference: {e}"))? {
                        Some(found) => found.to_string(),
                        None => quick_xml::escape::resolve_predefined_entity(&name)
                            .ok_or("an entity that XML does not define")?
                            .to_owned(),
                    };
                    put(&mut open, &found)?;
                }
                Event::Decl(_) if root.is_none() && open.is_empty() && count == 0 => {}
                Event::Eof => break,
                Event::Comment(_) => return Err("a comment, which readers see in different ways".into()),
                Event::DocType(_) => return Err("a document type".into()),
                Event::PI(_) => return Err("a processing instruction".into()),
                Event::CData(_) => return Err("a CDATA section".into()),
                Event::Decl(_) | Event::Empty(_) => return Err("a declaration that is not at the beginning".into()),
            }
        }
        if !open.is_empty() {
            return Err("it ends early".into());
        }
        root.ok_or_else(|| "no element".into())
    }

    fn started(namespace: String, start: &BytesStart<'_>, resolver: &NamespaceResolver) -> Result<Self, String> {
        named(start.name())?;
        let name = start.local_name().into_inner().to_owned();
        let mut element = Self { namespace, name, ..Self::default() };
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|e| format!("an attribute: {e}"))?;
            named(attribute.key)?;
            if attribute.value.contains('<') {
                return Err("an attribute with a `<`, which XML does not allow".into());
            }
            if attribute.key.as_namespace_binding().is_some() {
                // Bound as it is written: a reference or a space in it is read in different ways.
                if attribute.value.contains(|c: char| c == '&' || c.is_ascii_whitespace()) {
                    return Err("a namespace that is not written plainly".into());
                }
                continue;
            }
            let (resolved, local) = resolver.resolve_attribute(attribute.key);
            let namespace = uri(&resolved)?;
            let value =
                attribute.normalized_value(XmlVersion::Explicit1_0).map_err(|e| format!("an attribute: {e}"))?;
            let local = local.into_inner();
            let name = if namespace.is_empty() { local.to_owned() } else { format!("{{{namespace}}}{local}") };
            if element.attribute(&name).is_some() {
                return Err("an attribute that occurs twice".into());
            }
            element.attributes.push((name, value.into_owned()));
            if element.attributes.len() > MAX_ATTRIBUTES {
                return Err("too many attributes".into());
            }
        }
        Ok(element)
    }

    /// Whether this is an element of a namespace.
    pub fn is(&self, namespace: &str, name: &str) -> bool {
        self.namespace == namespace && self.name == name
    }

    /// An attribute without a namespace.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Children by name.
    pub fn all<'a>(&'a self, namespace: &'a str, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |c| c.is(namespace, name))
    }

    /// The child of a name; none if there is not exactly one.
    pub fn only<'a>(&'a self, namespace: &'a str, name: &'a str) -> Option<&'a Self> {
        let mut all = self.all(namespace, name);
        let first = all.next()?;
        all.next().is_none().then_some(first)
    }

    /// This element and all below it.
    pub fn walk(&self) -> Vec<&Self> {
        let mut found = vec![self];
        let mut at = 0;
        while let Some(element) = found.get(at) {
            let element: &Self = element;
            found.extend(element.children.iter());
            at += 1;
        }
        found
    }

    /// Its text, if it has no children.
    pub fn plain(&self) -> Option<&str> {
        self.children.is_empty().then_some(self.text.as_str())
    }
}

/// A name as SAML and XML signatures have them: letters, digits, `_`, `-` and `.`, with one prefix at most. The reader itself
/// takes whatever stands before a space.
fn named(name: QName<'_>) -> Result<(), String> {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
    };
    let name = name.into_inner();
    let sound = name.split_once(':').map_or_else(|| part(name), |(prefix, local)| part(prefix) && part(local));
    if sound { Ok(()) } else { Err("a name that is no name".into()) }
}

fn put(open: &mut [Element], text: &str) -> Result<(), String> {
    match open.last_mut() {
        Some(element) => element.text.push_str(text),
        None if text.trim().is_empty() => {}
        None => return Err("text outside the element".into()),
    }
    Ok(())
}

fn uri(resolved: &ResolveResult<'_>) -> Result<String, String> {
    match resolved {
        ResolveResult::Bound(namespace) => Ok(namespace.into_inner().to_owned()),
        ResolveResult::Unbound => Ok(String::new()),
        ResolveResult::Unknown(_) => Err("a prefix that no namespace is bound to".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g4_what_readers_see_in_different_ways_is_refused() {
        for bad in [
            "<a>admin<!-- -->@x</a>",
            "<!DOCTYPE a><a/>",
            "<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>",
            "<a>&b;</a>",
            "<?xml version=\"1.0\"?><?xml-stylesheet href=\"x\"?><a/>",
            "<a><![CDATA[x]]></a>",
            "<a/><b/>",
            "<a/>x",
            "<a><b></a></b>",
            "<a>",
            "",
            "<p:a/>",
            "<a x=\"1\" x=\"2\"/>",
            "<a x=\"&b;\"/>",
            "<a x=\"<\"/>",
            "<a xmlns=\"urn:x<\"/>",
            "<\u{1}<!--x/>",
            "<a<b/>",
            "<a:b:c xmlns:a=\"urn:x\"/>",
            "<a b<c=\"1\"/>",
            "<a>\u{0}</a>",
            "<a>&#0;</a>",
            "<a xmlns:p=\"urn:x\" xmlns:q=\"urn:x\" p:x=\"1\" q:x=\"2\"/>",
            "<a xmlns=\"urn:x&#110;\"/>",
            "<a xmlns=\" urn:x\"/>",
            "<p:a xmlns:p=\"urn:x\n\"/>",
        ] {
            assert!(Element::parse(bad).is_err(), "{bad}");
        }
        assert!(Element::parse(&"<a>".repeat(40)).is_err());
        assert!(Element::parse(&format!("<a>{}</a>", "<b/>".repeat(3000))).is_err());
    }

    #[test]
    fn g4_namespaces_texts_and_references_are_read() {
        let read = Element::parse(
            "<?xml version=\"1.0\"?>\n<p:a xmlns:p=\"urn:x\" ID=\"i\" p:y=\"z&amp;\"><b xmlns=\"urn:y\">&lt;&#65;</b>t</p:a>\n",
        );
        let read = read.expect("well-formed");
        assert!(read.is("urn:x", "a"));
        assert_eq!(read.attribute("ID"), Some("i"));
        assert_eq!(read.attribute("{urn:x}y"), Some("z&"));
        assert_eq!(read.only("urn:y", "b").and_then(Element::plain), Some("<A"));
        assert_eq!((read.plain(), read.walk().len()), (None, 2));
    }
}
