//! Pages that may call a route (Fetch standard, CORS): the browser asks first, without credentials, and reads what it may read.
//! A page still needs a token and a proof of its own, and answers are never shown to one that sends cookies; of a public
//! route cookies are the service's own to protect.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};

use crate::gateway::config::CorsConfig;
use crate::gateway::read::Incoming;
use crate::net::body::{AnyBody, full};

/// Headers that each proved request has.
const OURS: [&str; 4] = ["authorization", "dpop", "content-type", "popgate-approval"];
/// Headers of answers that a page needs to go on.
const SHOWN: &str = "dpop-nonce, www-authenticate, popgate-request-id, location, retry-after";

/// Which pages may call a route, checked.
#[derive(Clone, Debug)]
pub struct Cors {
    origins: Vec<HeaderValue>,
    headers: HeaderValue,
    max_age: u64,
}

impl Cors {
    /// Checks `cors` of a route.
    pub fn new(config: &CorsConfig) -> Result<Self, String> {
        let origin = |text: &String| {
            let uri: http::Uri =
                text.parse().map_err(|_| format!("{text:?} is no origin: write https://host[:port]"))?;
            let bare = uri.scheme().is_some() && uri.authority().is_some() && uri.path() == "/" && !text.ends_with('/');
            if !bare || text != &text.to_ascii_lowercase() {
                return Err(format!(
                    "{text:?} is no origin: write https://host[:port], in small letters, and nothing behind it"
                ));
            }
            HeaderValue::from_str(text).map_err(|e| e.to_string())
        };
        let mut headers: Vec<String> = OURS.iter().map(ToString::to_string).collect();
        for name in &config.headers {
            let parsed: HeaderName = name.parse().map_err(|_| format!("{name:?} is no header name"))?;
            if !OURS.contains(&parsed.as_str()) {
                headers.push(parsed.as_str().to_owned());
            }
        }
        Ok(Self {
            origins: config.origins.iter().map(origin).collect::<Result<_, _>>()?,
            headers: HeaderValue::from_str(&headers.join(", ")).map_err(|e| e.to_string())?,
            max_age: config.max_age.0.as_secs(),
        })
    }

    /// The origin of a request, if its page may call.
    pub fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        self.origins.iter().find(|o| *o == origin).cloned()
    }

    /// The answer to a page that asks whether it may.
    pub fn answer(&self, origin: &HeaderValue, method: &HeaderValue) -> Response<AnyBody> {
        let mut response = Response::new(full(""));
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, method.clone());
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, self.headers.clone());
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(self.max_age));
        show(origin, headers);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        response
    }
}

/// The method that a page asks for, before it calls.
pub fn asked(request: &Incoming) -> Option<&HeaderValue> {
    let headers = &request.head.headers;
    let method = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
    (request.head.method == Method::OPTIONS && headers.contains_key(header::ORIGIN)).then_some(method)
}

/// Lets a page read an answer. What upstream says of it itself does not count.
pub fn show(origin: &HeaderValue, headers: &mut HeaderMap) {
    for name in [header::ACCESS_CONTROL_ALLOW_CREDENTIALS, header::ACCESS_CONTROL_EXPOSE_HEADERS] {
        headers.remove(name);
    }
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(SHOWN));
}
