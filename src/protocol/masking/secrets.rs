//! Secrets by their prefixes: which characters follow, and how many at least.

/// One family of secrets.
pub struct Family {
    /// Literal beginning.
    pub prefix: &'static [u8],
    /// Fewest characters that follow it.
    pub least: usize,
}

/// Families in use; a longer prefix stands before its own beginning.
pub const FAMILIES: &[Family] = &[
    Family { prefix: b"sk_live_", least: 16 },
    Family { prefix: b"sk_test_", least: 16 },
    Family { prefix: b"rk_live_", least: 16 },
    Family { prefix: b"sk-", least: 16 },
    Family { prefix: b"AKIA", least: 16 },
    Family { prefix: b"ASIA", least: 16 },
    Family { prefix: b"AIza", least: 30 },
    Family { prefix: b"github_pat_", least: 20 },
    Family { prefix: b"ghp_", least: 20 },
    Family { prefix: b"gho_", least: 20 },
    Family { prefix: b"ghu_", least: 20 },
    Family { prefix: b"ghs_", least: 20 },
    Family { prefix: b"ghr_", least: 20 },
    Family { prefix: b"glpat-", least: 16 },
    Family { prefix: b"xoxb-", least: 16 },
    Family { prefix: b"xoxp-", least: 16 },
    Family { prefix: b"xoxa-", least: 16 },
    Family { prefix: b"xoxs-", least: 16 },
    Family { prefix: b"npm_", least: 24 },
    Family { prefix: b"hf_", least: 24 },
    Family { prefix: b"pgj1.", least: 64 },
    Family { prefix: b"eyJ", least: 24 },
];

/// First bytes of a PEM block; what follows decides whether it is a private key.
pub const PEM_BEGIN: &[u8] = b"-----BEGIN ";
/// End of a private key's first line.
pub const PEM_PRIVATE: &[u8] = b"PRIVATE KEY-----";
/// First bytes of a PEM block's last line.
pub const PEM_END: &[u8] = b"-----END ";
/// Longest first line of a PEM block.
pub const PEM_LABEL: usize = 64;

/// Characters of a secret after its prefix.
pub const fn is_body(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'+' | b'/' | b'=')
}

/// What the bytes at the front of a text are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Front {
    /// No secret.
    No,
    /// More bytes would tell.
    Undecided,
    /// A secret whose first bytes these are.
    Secret(usize),
    /// A PEM private key whose first line these are.
    Pem(usize),
}

/// Looks at the front of `text`; `whole` says that nothing follows it.
pub fn front(text: &[u8], whole: bool) -> Front {
    match pem(text, whole) {
        Front::No => {}
        decided => return decided,
    }
    for family in FAMILIES {
        match family_at(family, text, whole) {
            Front::No => {}
            decided => return decided,
        }
    }
    Front::No
}

fn family_at(family: &Family, text: &[u8], whole: bool) -> Front {
    let Some(body) = text.strip_prefix(family.prefix) else {
        let partial = !whole && text.len() < family.prefix.len() && family.prefix.starts_with(text);
        return if partial { Front::Undecided } else { Front::No };
    };
    let length = body.iter().take(family.least).take_while(|b| is_body(**b)).count();
    if length >= family.least {
        Front::Secret(family.prefix.len() + length)
    } else if !whole && length == body.len() {
        Front::Undecided
    } else {
        Front::No
    }
}

fn pem(text: &[u8], whole: bool) -> Front {
    let Some(label) = text.strip_prefix(PEM_BEGIN) else {
        let partial = !whole && text.len() < PEM_BEGIN.len() && PEM_BEGIN.starts_with(text);
        return if partial { Front::Undecided } else { Front::No };
    };
    // Only what may stand in a label counts, so that no byte behind it changes the answer.
    let legal = |b: &&u8| b.is_ascii_uppercase() || b.is_ascii_digit() || matches!(b, b' ' | b'-');
    let length = label.iter().take(PEM_LABEL).take_while(legal).count();
    if let Some(at) = memchr::memmem::find(&label[..length], PEM_PRIVATE) {
        return Front::Pem(PEM_BEGIN.len() + at + PEM_PRIVATE.len());
    }
    let open = length == label.len() && length < PEM_LABEL;
    if open && !whole { Front::Undecided } else { Front::No }
}
