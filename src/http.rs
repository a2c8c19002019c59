//! One HTTP exchange: what goes out, what comes back, and how far a failed one got.
//!
//! The only file that names ureq.

use std::fmt;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result, Sent};
use crate::secret::Secret;

/// The HTTP methods that this library sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Method {
    /// Read.
    Get,
    /// Ask for a token.
    Post,
    /// Change a part.
    Patch,
    /// Replace as a whole.
    Put,
}

impl Method {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Patch => "PATCH",
            Method::Put => "PUT",
        }
    }
}

/// A request as a [`Transport`] gets it.
pub struct Request {
    pub(crate) method: Method,
    pub(crate) url: String,
    pub(crate) authorization: Option<Arc<Secret>>,
    pub(crate) if_match: Option<String>,
    pub(crate) content_type: &'static str,
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) timeout: Option<Duration>,
}

impl Request {
    pub(crate) fn new(method: Method, url: String) -> Request {
        Request {
            method,
            url,
            authorization: None,
            if_match: None,
            content_type: "application/json",
            body: None,
            timeout: None,
        }
    }

    /// The method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The absolute URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The header fields to send, apart from those that the transport adds by itself (`Host`,
    /// `Content-Length`, `User-Agent`). The `Authorization` field holds a secret: never log it.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let body = self.body.as_ref();
        [
            Some(("Accept", "application/json")),
            self.authorization
                .as_ref()
                .map(|secret| ("Authorization", secret.expose())),
            self.if_match.as_deref().map(|tag| ("If-Match", tag)),
            body.map(|_| ("Content-Type", self.content_type)),
        ]
        .into_iter()
        .flatten()
    }

    /// The body, if the method has one.
    pub fn body(&self) -> Option<&[u8]> {
        self.body.as_deref()
    }

    /// A limit for the whole exchange, when little of the update's deadline is left. Without it
    /// the transport's own limits apply.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("url", &self.url)
            .field("body_bytes", &self.body.as_ref().map(Vec::len))
            .finish_non_exhaustive()
    }
}

/// The body of a response.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Body {
    /// All of it.
    Whole(Vec<u8>),
    /// It ended too early or could not be decoded: why.
    Broken(String),
    /// It is larger than the limit, in bytes.
    TooLarge(usize),
}

/// A response as a [`Transport`] hands it back.
///
/// ```
/// use genesys_attributes::Response;
///
/// let response = Response::new(429).with_header("Retry-After", "7").with_body("{}");
/// assert_eq!(response.header("retry-after"), Some("7"));
/// ```
#[derive(Clone)]
pub struct Response {
    pub(crate) status: u16,
    headers: Vec<(&'static str, String)>,
    pub(crate) body: Body,
}

/// The header fields that the library reads; others are not kept.
const KEPT: [&str; 4] = [
    "retry-after",
    "etag",
    "inin-correlation-id",
    "genesys-correlation-id",
];

impl Response {
    /// A response with an empty body.
    pub fn new(status: u16) -> Response {
        Response {
            status,
            headers: Vec::new(),
            body: Body::Whole(Vec::new()),
        }
    }

    /// Adds a header field. Fields that the library does not read are dropped.
    pub fn with_header(mut self, name: &str, value: impl Into<String>) -> Response {
        if let Some(kept) = KEPT.iter().find(|k| k.eq_ignore_ascii_case(name)) {
            self.headers.push((kept, value.into()));
        }
        self
    }

    /// Sets the body.
    pub fn with_body(mut self, body: impl Into<Vec<u8>>) -> Response {
        self.body = Body::Whole(body.into());
        self
    }

    /// Marks the body as lost after the head arrived.
    pub fn with_broken_body(mut self, why: impl Into<String>) -> Response {
        self.body = Body::Broken(why.into());
        self
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The first field of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(kept, _)| kept.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body as JSON, or in words why it is none.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self) -> std::result::Result<T, String> {
        match &self.body {
            Body::Whole(bytes) if bytes.is_empty() => Err("the body is empty".into()),
            Body::Whole(bytes) => serde_json::from_slice(bytes).map_err(|e| {
                // serde_json may quote the text it met, which may hold personal data.
                format!(
                    "the body is not the expected JSON (line {}, column {})",
                    e.line(),
                    e.column()
                )
            }),
            Body::Broken(why) => Err(format!("the body is cut short ({why})")),
            Body::TooLarge(limit) => Err(format!("the body is larger than {limit} bytes")),
        }
    }

    /// The body as a JSON object, read field by field: what all answers but the large ones are.
    pub(crate) fn object(&self) -> std::result::Result<Map<String, Value>, String> {
        match self.json()? {
            Value::Object(fields) => Ok(fields),
            _ => Err(NO_OBJECT.into()),
        }
    }

    /// The body as a JSON object of a known shape. Not [`Response::json`], since serde fills a
    /// struct from a list as well, field by field: `[]` would be an object without any.
    pub(crate) fn object_of<T: serde::de::DeserializeOwned>(
        &self,
    ) -> std::result::Result<T, String> {
        match &self.body {
            Body::Whole(bytes) if bytes.trim_ascii_start().first().is_some_and(|b| *b != b'{') => {
                Err(NO_OBJECT.into())
            }
            _ => self.json(),
        }
    }

    /// The id under which the platform knows the request.
    pub(crate) fn correlation_id(&self) -> Option<&str> {
        self.header("inin-correlation-id")
            .or_else(|| self.header("genesys-correlation-id"))
    }
}

const NO_OBJECT: &str = "the body is not a JSON object";

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

/// A request that got no status line.
#[derive(Debug, Clone)]
pub struct TransportError {
    pub(crate) error: Error,
    pub(crate) sent: Sent,
}

impl TransportError {
    /// `error` says what happened in words; `sent` how far the request got, which decides
    /// whether a write may be counted as not done.
    pub fn new(error: Error, sent: Sent) -> TransportError {
        TransportError { error, sent }
    }

    /// What happened.
    pub fn error(&self) -> &Error {
        &self.error
    }

    /// How far the request got.
    pub fn sent(&self) -> Sent {
        self.sent
    }
}

/// Carries one request to the platform and brings the answer back.
///
/// Implement it to put the library on another HTTP client or to test without a network; closures
/// of the same shape implement it. The library does the rest: it retries, waits, limits the rate
/// and reads the answers.
///
/// An implementation must not follow redirects, must hand back any status without making it an
/// error, must bound its own time, and must tell honestly how far a failed request got.
pub trait Transport: Send + Sync {
    /// Sends `request` once.
    ///
    /// # Errors
    ///
    /// A [`TransportError`] when no status line arrived.
    fn send(&self, request: &Request) -> std::result::Result<Response, TransportError>;
}

impl<F> Transport for F
where
    F: Fn(&Request) -> std::result::Result<Response, TransportError> + Send + Sync,
{
    fn send(&self, request: &Request) -> std::result::Result<Response, TransportError> {
        self(request)
    }
}

/// The time limits of one request, one for each of its phases.
///
/// There is no limit over all of them: ureq would start a thread for every request to keep it,
/// and could no longer tell in which phase the time ran out. The update's deadline
/// ([`RetryPolicy::with_deadline`](crate::RetryPolicy::with_deadline)) bounds the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeouts {
    /// Resolve the name, connect and shake hands. Default 5 s.
    pub connect: Duration,
    /// Send the request's head, and again its body. Default 10 s each.
    pub send: Duration,
    /// Wait for the head of the response. Default 20 s.
    pub response: Duration,
    /// Receive the body of the response. Default 20 s.
    pub body: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(5),
            send: Duration::from_secs(10),
            response: Duration::from_secs(20),
            body: Duration::from_secs(20),
        }
    }
}

impl Timeouts {
    /// Sets the limit for connecting.
    pub fn with_connect(mut self, limit: Duration) -> Timeouts {
        self.connect = limit;
        self
    }

    /// Sets the limit for sending.
    pub fn with_send(mut self, limit: Duration) -> Timeouts {
        self.send = limit;
        self
    }

    /// Sets the limit for the head of the response.
    pub fn with_response(mut self, limit: Duration) -> Timeouts {
        self.response = limit;
        self
    }

    /// Sets the limit for the body of the response.
    pub fn with_body(mut self, limit: Duration) -> Timeouts {
        self.body = limit;
        self
    }

    /// The longest that one request can take.
    pub(crate) fn sum(&self) -> Duration {
        self.connect + self.send + self.send + self.response + self.body
    }

    pub(crate) fn check(&self) -> Result<()> {
        for (name, limit) in [
            ("timeouts.connect", self.connect),
            ("timeouts.send", self.send),
            ("timeouts.response", self.response),
            ("timeouts.body", self.body),
        ] {
            if limit < Duration::from_millis(1) || limit > Duration::from_secs(3_600) {
                return Err(Error::config(name, "must be between 1 ms and 1 h"));
            }
        }
        Ok(())
    }
}

/// Which proxy the built-in transport uses.
#[derive(Clone, Default)]
pub(crate) enum ProxyChoice {
    /// What `ALL_PROXY`, `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` say.
    #[default]
    Environment,
    None,
    /// May hold a password.
    Url(Secret),
}

/// What the built-in transport is made from.
#[derive(Clone)]
pub(crate) struct TransportOptions {
    pub(crate) timeouts: Timeouts,
    pub(crate) proxy: ProxyChoice,
    pub(crate) root_certificates: Option<Vec<u8>>,
    pub(crate) max_idle_connections: usize,
    pub(crate) max_response_body: usize,
    pub(crate) user_agent: String,
}

/// The built-in transport.
pub(crate) struct UreqTransport {
    agent: ureq::Agent,
    /// Where there is a proxy: for loopback hosts, which it cannot reach in our stead.
    direct: Option<ureq::Agent>,
    max_response_body: usize,
}

impl UreqTransport {
    pub(crate) fn new(options: &TransportOptions) -> Result<UreqTransport> {
        let proxy = match &options.proxy {
            ProxyChoice::Environment => ureq::Proxy::try_from_env(),
            ProxyChoice::None => None,
            // The error would quote the URL, which may hold a password.
            ProxyChoice::Url(url) => Some(ureq::Proxy::new(url.expose()).map_err(|_| {
                Error::config(
                    "proxy",
                    "not a proxy address such as http://user:password@host:8080",
                )
            })?),
        };
        if let Some(authority) = proxy.as_ref().and_then(|proxy| proxy.uri().authority())
            && !is_addressable(authority)
        {
            return Err(Error::config(
                "proxy",
                "names no host, or a port that is none",
            ));
        }
        if let Some(proxy) = &proxy
            && !matches!(
                proxy.protocol(),
                ureq::ProxyProtocol::Http | ureq::ProxyProtocol::Https
            )
        {
            return Err(Error::config(
                "proxy",
                "only http:// and https:// proxies are supported",
            ));
        }
        let Timeouts {
            connect,
            send,
            response,
            body,
        } = options.timeouts;
        #[cfg(feature = "rustls")]
        let tls = match &options.root_certificates {
            None => ureq::tls::TlsConfig::default(),
            Some(pem) => ureq::tls::TlsConfig::builder()
                .root_certs(certificates(pem)?)
                .build(),
        };
        let agent_with = |proxy| {
            let config = ureq::Agent::config_builder()
                // As errors, statuses would lose their body, headers and connection.
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .timeout_connect(Some(connect))
                .timeout_send_request(Some(send))
                .timeout_send_body(Some(send))
                .timeout_recv_response(Some(response))
                .timeout_recv_body(Some(body))
                .max_idle_connections(options.max_idle_connections)
                .max_idle_connections_per_host(options.max_idle_connections)
                .user_agent(options.user_agent.as_str())
                // Bodies are small, and asking for no coding keeps a caller's own ureq features
                // out.
                .accept_encoding(ureq::config::AutoHeaderValue::None)
                .proxy(proxy);
            #[cfg(feature = "rustls")]
            let config = config.tls_config(tls.clone());
            ureq::Agent::new_with_config(config.build())
        };
        let direct = proxy.is_some().then(|| agent_with(None));
        Ok(UreqTransport {
            agent: agent_with(proxy),
            direct,
            max_response_body: options.max_response_body,
        })
    }
}

#[cfg(feature = "rustls")]
fn certificates(pem: &[u8]) -> Result<ureq::tls::RootCerts> {
    use ureq::tls::{PemItem, parse_pem};

    let mut found = Vec::new();
    for item in parse_pem(pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) if is_der(certificate.der()) => {
                found.push(certificate);
            }
            // ureq would leave it out in silence, and then trust nobody.
            Ok(PemItem::Certificate(_)) => {
                return Err(Error::config(
                    "root_certificates",
                    "a certificate in the PEM text is damaged or cut short",
                ));
            }
            Ok(_) => {}
            Err(e) => {
                return Err(
                    Error::config("root_certificates", "the PEM text cannot be read")
                        .with_source(e),
                );
            }
        }
    }
    if found.is_empty() {
        return Err(Error::config(
            "root_certificates",
            "no certificate found: give PEM text with at least one \
             \"-----BEGIN CERTIFICATE-----\" block",
        ));
    }
    Ok(ureq::tls::RootCerts::from(found.into_iter()))
}

/// Whether these bytes are framed as a certificate is: one DER sequence, and nothing after it.
#[cfg(feature = "rustls")]
fn is_der(bytes: &[u8]) -> bool {
    let Some((0x30, [length, rest @ ..])) = bytes.split_first().map(|(tag, rest)| (*tag, rest))
    else {
        return false;
    };
    match length {
        0..=0x7f => usize::from(*length) == rest.len() && *length > 0,
        // The length follows, in this many bytes.
        0x81..=0x84 if rest.len() > usize::from(length & 0x7f) => {
            let (told, content) = rest.split_at(usize::from(length & 0x7f));
            told.iter()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
                == content.len()
        }
        _ => false,
    }
}

impl Transport for UreqTransport {
    fn send(&self, request: &Request) -> std::result::Result<Response, TransportError> {
        let agent = match &self.direct {
            Some(direct) if is_loopback(host_of(&request.url)) => direct,
            _ => &self.agent,
        };
        let mut builder = ureq::http::Request::builder()
            .method(match request.method {
                Method::Get => ureq::http::Method::GET,
                Method::Post => ureq::http::Method::POST,
                Method::Patch => ureq::http::Method::PATCH,
                Method::Put => ureq::http::Method::PUT,
            })
            .uri(request.url.as_str());
        for (name, value) in request.headers() {
            builder = builder.header(name, value);
        }
        let outcome = match request.body() {
            Some(body) => finish(agent, builder.body(body), request.timeout),
            None => finish(agent, builder.body(()), request.timeout),
        };
        match outcome {
            Ok(response) => Ok(received(response, self.max_response_body)),
            Err(error) => {
                let proxied = agent.config().proxy().is_some();
                Err(failed(error, &request.url, proxied))
            }
        }
    }
}

fn finish<B: ureq::AsSendBody>(
    agent: &ureq::Agent,
    request: std::result::Result<ureq::http::Request<B>, ureq::http::Error>,
    timeout: Option<Duration>,
) -> std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error> {
    let request = request?;
    match timeout {
        None => agent.run(request),
        Some(limit) => agent.run(
            agent
                .configure_request(request)
                .timeout_per_call(Some(limit))
                .build(),
        ),
    }
}

fn received(response: ureq::http::Response<ureq::Body>, limit: usize) -> Response {
    let (parts, body) = response.into_parts();
    // Once through the few that came, rather than a search for each of those that are read.
    let headers = parts
        .headers
        .iter()
        .filter_map(|(name, value)| {
            let kept = KEPT.iter().find(|kept| **kept == name.as_str())?;
            Some((*kept, value.to_str().ok()?.to_owned()))
        })
        .collect();
    let expected = body.content_length().unwrap_or(0).min(limit as u64);
    let mut bytes = Vec::with_capacity(expected as usize);
    // One more than the limit, since ureq reports a limit that is met as one that is passed.
    let read = body
        .into_with_config()
        .limit(limit as u64 + 1)
        .reader()
        .read_to_end(&mut bytes);
    let body = match read {
        _ if bytes.len() > limit => Body::TooLarge(limit),
        Ok(_) => Body::Whole(bytes),
        Err(e) => Body::Broken(e.to_string()),
    };
    Response {
        status: parts.status.as_u16(),
        headers,
        body,
    }
}

/// Sorts ureq's errors by what a caller can do about them, and by how far the request got.
fn failed(error: ureq::Error, url: &str, proxied: bool) -> TransportError {
    use std::io::ErrorKind as Io;

    let host = host_and_port(url);
    if let Some(what) = untrusted(&error) {
        let message =
            format!("the TLS connection to {host} is not trusted ({what}): see root_certificates");
        // Trust does not come by waiting.
        return TransportError::new(
            Error::new(ErrorKind::Connect, message).with_transient(false),
            Sent::No,
        );
    }
    let (kind, sent, mut message) = match &error {
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => (
            ErrorKind::Connect,
            Sent::No,
            format!("connecting to {host} took too long: check the address, firewall and proxy"),
        ),
        ureq::Error::Timeout(phase) => (
            ErrorKind::Timeout,
            Sent::Maybe,
            format!("{host} did not answer in time (phase: {phase})"),
        ),
        ureq::Error::HostNotFound => unresolved(host),
        ureq::Error::Io(e) => match e.kind() {
            Io::ConnectionRefused => (
                ErrorKind::Connect,
                Sent::No,
                format!("nothing is listening at {host}: connection refused"),
            ),
            Io::HostUnreachable | Io::NetworkUnreachable | Io::NetworkDown => (
                ErrorKind::Connect,
                Sent::No,
                format!("{host} cannot be reached: check the network"),
            ),
            _ => {
                // std has no kind for it; an unknown wording falls to the safe side.
                if e.to_string()
                    .starts_with("failed to lookup address information")
                {
                    unresolved(host)
                } else {
                    (
                        ErrorKind::Transport,
                        Sent::Maybe,
                        format!("the connection to {host} broke before an answer came"),
                    )
                }
            }
        },
        ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => (
            ErrorKind::Protocol,
            Sent::Maybe,
            format!("{host} did not answer in HTTP/1.1: is it the API, or a proxy in between?"),
        ),
        ureq::Error::ConnectProxyFailed(_) => (
            ErrorKind::Connect,
            Sent::No,
            format!("the proxy refused to connect to {host}: check its address and credentials"),
        ),
        ureq::Error::ConnectionFailed => (
            ErrorKind::Connect,
            Sent::No,
            format!("no connection to {host}"),
        ),
        ureq::Error::Http(_) | ureq::Error::BadUri(_) | ureq::Error::TlsRequired => (
            ErrorKind::Config,
            Sent::No,
            format!("a request to {host} could not be made: check the base URL"),
        ),
        _ => (
            ErrorKind::Transport,
            Sent::Maybe,
            format!("the request to {host} failed"),
        ),
    };
    if proxied && kind == ErrorKind::Connect && !message.contains("proxy") {
        message += " (a proxy is set: it may be the one that cannot be reached)";
    }
    TransportError::new(
        Error::new(kind, message).with_source(Cause(error.to_string())),
        sent,
    )
}

fn unresolved(host: &str) -> (ErrorKind, Sent, String) {
    (
        ErrorKind::Connect,
        Sent::No,
        format!("the name of {host} does not resolve: check the region or base URL, and DNS"),
    )
}

/// What is wrong with the server's certificate, if that is what stopped the handshake. Nothing of
/// the request is sent before the handshake is over.
fn untrusted(error: &ureq::Error) -> Option<String> {
    match error {
        // rustls' errors arrive inside of an I/O error of this kind.
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            Some(e.to_string()).filter(|text| text.starts_with("invalid peer certificate"))
        }
        ureq::Error::Tls(what) => Some((*what).to_owned()),
        #[cfg(feature = "rustls")]
        ureq::Error::Rustls(e) => Some(e.to_string()),
        _ => None,
    }
}

/// ureq's error as text: the type itself stays out of this crate's public API.
#[derive(Debug)]
struct Cause(String);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Cause {}

/// A base URL without a slash at its end, or what is wrong with it.
pub(crate) fn base_url(text: &str, allow_http: bool) -> std::result::Result<String, &'static str> {
    let uri: ureq::http::Uri = text.parse().map_err(|_| "is not a URL")?;
    let authority = uri.authority().ok_or("is not an absolute URL")?;
    if authority.as_str().contains('@') {
        return Err("must not hold user information");
    }
    if uri.query().is_some() || text.contains('#') {
        return Err("must not hold a query or fragment");
    }
    if !is_addressable(authority) {
        return Err("names no host, or a port that is none");
    }
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if allow_http || is_loopback(host_of(text)) => {}
        Some("http") => {
            return Err(
                "is http, which would send the token in the clear: use https, or \
                        allow_http for a host you trust (loopback hosts need neither)",
            );
        }
        _ => return Err("must begin with https://"),
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// Whether there is a host, and a port that is one if any is given: else the scheme's would be
/// taken in silence.
fn is_addressable(authority: &ureq::http::uri::Authority) -> bool {
    let (host, text) = (authority.host(), authority.as_str());
    let without_user = text.rsplit_once('@').map_or(text, |(_, rest)| rest);
    !host.is_empty() && (without_user == host || authority.port_u16().is_some())
}

/// `host:port` of an absolute URL, without user information.
fn host_and_port(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    authority.rsplit_once('@').map_or(authority, |(_, h)| h)
}

/// The host of an absolute URL, without port and brackets.
pub(crate) fn host_of(url: &str) -> &str {
    let authority = host_and_port(url);
    match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(v6),
        None => authority.split(':').next().unwrap_or(authority),
    }
}

/// Whether a host is this machine itself.
pub(crate) fn is_loopback(host: &str) -> bool {
    if let Ok(ip) = host.parse::<std::net::IpAddr>() {
        return ip.is_loopback();
    }
    let name = host.trim_end_matches('.');
    name.eq_ignore_ascii_case("localhost")
        || name.len() > 10 && name.to_ascii_lowercase().ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_urls() {
        for (url, host, loopback) in [
            (
                "https://api.mypurecloud.com/api",
                "api.mypurecloud.com",
                false,
            ),
            ("http://127.0.0.1:80", "127.0.0.1", true),
            ("http://127.8.9.1/x", "127.8.9.1", true),
            ("http://[::1]:8080/x", "::1", true),
            ("http://localhost:1?x", "localhost", true),
            ("http://LOCALHOST", "LOCALHOST", true),
            ("http://a.localhost", "a.localhost", true),
            ("http://user:pw@127.0.0.1:1/", "127.0.0.1", true),
            ("http://127.0.0.1@evil.example/", "evil.example", false),
            (
                "http://localhost.evil.example",
                "localhost.evil.example",
                false,
            ),
            (
                "http://127.0.0.1.evil.example",
                "127.0.0.1.evil.example",
                false,
            ),
        ] {
            assert_eq!(host_of(url), host, "{url}");
            assert_eq!(is_loopback(host), loopback, "{url}");
        }
    }

    #[test]
    fn base_urls_are_checked() {
        for (text, open, ok) in [
            ("https://api.mypurecloud.com", false, true),
            ("https://gw.example/genesys/", false, true),
            ("http://127.0.0.1:8080", false, true),
            ("http://[::1]:8080/", false, true),
            ("http://localhost", false, true),
            ("http://gw.example", false, false),
            ("http://gw.example", true, true),
            ("http://127.0.0.1@evil.example", true, false),
            ("https://user:pw@gw.example", false, false),
            ("https://gw.example/?x=1", false, false),
            ("https://gw.example/#x", false, false),
            ("ftp://gw.example", true, false),
            ("gw.example", false, false),
            ("https://", false, false),
            ("", false, false),
            ("https://gw.exa mple", false, false),
            ("https://gw.example/\n", false, false),
        ] {
            let found = base_url(text, open);
            assert_eq!(found.is_ok(), ok, "{text}: {found:?}");
            assert!(found.is_err() || !found.is_ok_and(|url| url.ends_with('/')));
        }
    }

    #[test]
    fn debug_shows_neither_token_nor_body() {
        let mut request = Request::new(Method::Patch, "http://127.0.0.1/x".into());
        request.authorization = Some(Arc::new(Secret::new("Bearer hidden")));
        request.body = Some(b"personal".to_vec());
        let shown = format!("{request:?} {request:#?}");
        assert!(
            !shown.contains("hidden") && !shown.contains("personal"),
            "{shown}"
        );
        let response = Response::new(200).with_body("personal");
        assert!(!format!("{response:?}").contains("personal"));
    }

    #[test]
    fn timeouts_are_checked() {
        assert!(Timeouts::default().check().is_ok());
        for bad in [Duration::ZERO, Duration::MAX] {
            let error = Timeouts::default().with_body(bad).check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains("timeouts.body"));
        }
    }
}
