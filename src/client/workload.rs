//! A client of the SPIFFE Workload API: identities from the agent at `SPIFFE_ENDPOINT_SOCKET`.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

use crate::client::ClientError;
use crate::client::identity::{Identity, Servers};
use crate::domain::spiffe_id::SpiffeId;
use crate::net::keys::P256Key;
use crate::net::workload_api::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use crate::net::workload_api::{JwtsvidRequest, SECURITY_HEADER, X509svid, X509svidRequest, X509svidResponse};
use crate::protocol::svid;

/// The variable that names the socket (SPIFFE Workload Endpoint section 4).
pub const VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// How long an agent is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// An agent's socket.
#[derive(Clone)]
pub struct WorkloadApi {
    path: PathBuf,
    client: SpiffeWorkloadApiClient<Channel>,
}

impl WorkloadApi {
    /// From the value of [`VARIABLE`]: `unix:///path` or `unix:/path`, nothing else of a URI.
    pub fn new(address: &str) -> Result<Self, ClientError> {
        let refuse = || ClientError::Input(format!("{VARIABLE} is {address:?}: write unix:///path/of/the/agent.sock"));
        let path = address.strip_prefix("unix:").ok_or_else(refuse)?;
        let path = path.strip_prefix("//").unwrap_or(path);
        if !path.starts_with('/') || path.contains(['?', '#']) {
            return Err(refuse());
        }
        let path = PathBuf::from(path);
        let dialled = path.clone();
        // The URI is never dialled: the connector goes to the socket.
        let channel =
            Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let path = dialled.clone();
                async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
            }));
        Ok(Self { path, client: SpiffeWorkloadApiClient::new(channel) })
    }

    fn failed(&self, status: &Status) -> ClientError {
        let socket = self.path.display();
        match status.code() {
            Code::PermissionDenied => ClientError::Refused {
                what: format!("the agent at {socket}"),
                status: 403,
                error: "permission_denied".into(),
                detail: format!(
                    "{}; `popgate entry suggest --pid PID` shows which selectors an entry could have",
                    status.message()
                ),
            },
            Code::InvalidArgument => ClientError::Input(format!("the agent at {socket} says: {}", status.message())),
            _ => ClientError::Unreachable { url: format!("unix://{socket}"), cause: status.message().to_owned() },
        }
    }

    /// The identity now and after each rotation; with `wanted` that one, else the default.
    pub async fn identities(
        &self,
        wanted: Option<SpiffeId>,
    ) -> Result<BoxStream<'static, Result<Identity, ClientError>>, ClientError> {
        let answer = self.client.clone().fetch_x509svid(with_header(X509svidRequest {})).await;
        let stream = answer.map_err(|s| self.failed(&s))?.into_inner();
        let this = self.clone();
        Ok(stream.map_err(move |s| this.failed(&s)).map(move |message| identity(&message?, wanted.as_ref())).boxed())
    }

    /// The identity now; an agent that has just started, or has just been told of the entry, is waited for.
    pub async fn identity(&self, wanted: Option<SpiffeId>) -> Result<Identity, ClientError> {
        let began = std::time::Instant::now();
        loop {
            match self.first(wanted.clone()).await {
                Err(ClientError::Unreachable { .. }) if began.elapsed() < PATIENCE => {
                    tokio::time::sleep(PATIENCE / 20).await;
                }
                done => return done,
            }
        }
    }

    async fn first(&self, wanted: Option<SpiffeId>) -> Result<Identity, ClientError> {
        let ended = || ClientError::Unreachable {
            url: format!("unix://{}", self.path.display()),
            cause: "the agent ended the stream".into(),
        };
        self.identities(wanted).await?.next().await.ok_or_else(ended)?
    }

    /// A JWT-SVID for audiences.
    pub async fn jwt(&self, audience: Vec<String>, wanted: Option<&SpiffeId>) -> Result<String, ClientError> {
        let spiffe_id = wanted.map(ToString::to_string).unwrap_or_default();
        let answer = self.client.clone().fetch_jwtsvid(with_header(JwtsvidRequest { audience, spiffe_id })).await;
        let svids = answer.map_err(|s| self.failed(&s))?.into_inner().svids;
        let first = svids.into_iter().next();
        first.map(|s| s.svid).ok_or_else(|| self.failed(&Status::permission_denied("no JWT-SVID in the answer")))
    }
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(SECURITY_HEADER, tonic::metadata::MetadataValue::from_static("true"));
    request
}

fn identity(message: &X509svidResponse, wanted: Option<&SpiffeId>) -> Result<Identity, ClientError> {
    let bad = |cause: String| ClientError::Protocol { what: "the agent".into(), cause };
    let is_wanted = |s: &&X509svid| wanted.is_none_or(|id| s.spiffe_id == id.as_str());
    let svid = message.svids.iter().find(is_wanted).ok_or_else(|| {
        let there: Vec<&str> = message.svids.iter().map(|s| s.spiffe_id.as_str()).collect();
        ClientError::Input(format!("the agent has no identity as asked for; it has {}", there.join(", ")))
    })?;
    let key = P256Key::from_pkcs8(&svid.x509_svid_key).map_err(|e| bad(e.to_string()))?;
    let chain = svid::split_concatenated(&svid.x509_svid).ok_or_else(|| bad("its chain is not certificates".into()))?;
    let roots = svid::split_concatenated(&svid.bundle).ok_or_else(|| bad("its bundle is not certificates".into()))?;
    Identity::new(key, chain, roots, Servers::default())
}
