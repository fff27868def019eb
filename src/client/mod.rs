//! The library a workload uses: an identity, a token source, and requests that prove themselves.

pub mod admin;
pub mod discovery;
pub mod enrol;
pub mod http;
pub mod identity;
pub mod kept;
pub mod proxy;
pub mod session;
pub mod source;
pub mod workload;

/// Why a call could not be made. Each text says what happened, why, and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{0}")]
    Input(String),
    #[error(transparent)]
    File(#[from] crate::net::files::FileError),
    #[error(transparent)]
    Key(#[from] crate::net::keys::KeyError),
    #[error(transparent)]
    Tls(#[from] crate::net::tls::TlsError),
    #[error("{url} does not answer: {cause}; check that the service runs and that the address is right")]
    Unreachable { url: String, cause: String },
    #[error("{url}: {cause}")]
    Handshake { url: String, cause: String },
    #[error("{what} refused with {status}{}: {detail}", if error.is_empty() { String::new() } else { format!(" {error}") })]
    Refused { what: String, status: u16, error: String, detail: String },
    /// The gateway's metadata is of a resource that the URL is not part of (RFC 9728 section 3.3).
    #[error("no route seems to lead to {url}: what the gateway describes there is {resource}")]
    Elsewhere { url: String, resource: String },
    #[error("{what} answered what is not its protocol: {cause}")]
    Protocol { what: String, cause: String },
}

impl ClientError {
    /// The status of a refusal; of a URL that no route has, what the gateway would say to a proof.
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Elsewhere { .. } => Some(404),
            _ => None,
        }
    }

    /// The error code of a refusal.
    pub fn code(&self) -> &str {
        match self {
            Self::Refused { error, .. } => error,
            _ => "",
        }
    }
}
