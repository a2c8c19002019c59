//! One HTTP exchange: what goes out, what comes back, and how far a failed one got. Who carries it
//! is a [`Transport`].

pub(crate) mod address;
pub(crate) mod region;
pub(crate) mod ureq_transport;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use crate::error::secret::Secret;
use crate::error::{Error, ErrorKind, Result, Sent};
use crate::util::date::{self, http_date};

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

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
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
    /// So much of the response's body is read at least, whatever the transport's limit is.
    pub(crate) least_body_limit: usize,
    /// Further header fields, whose names and values were checked.
    pub(crate) extra: Vec<(String, Secret)>,
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
            least_body_limit: 0,
            extra: Vec::new(),
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
    /// `Content-Length`, `User-Agent`). The `Authorization` field, and others, may hold a secret:
    /// never log their values.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let extra = self.extra.iter();
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
        .chain(extra.map(|(name, value)| (name.as_str(), value.expose())))
    }

    /// The body, if the method has one.
    pub fn body(&self) -> Option<&[u8]> {
        self.body.as_deref()
    }

    /// A limit for the whole exchange, when less of the update's deadline is left than the
    /// [`Timeouts`] add up to. Without it the transport's own limits apply.
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
    /// It did not come in time.
    TimedOut,
    /// It is larger than the limit: as much of it as that.
    TooLarge(Vec<u8>),
}

/// A response as a [`Transport`] hands it back.
///
/// ```
/// use genesys_attributes::http::Response;
///
/// let response = Response::new(429).with_header("Retry-After", "7").with_body("{}");
/// assert_eq!(response.header("retry-after"), Some("7"));
/// ```
#[must_use = "a response does nothing until a transport returns it"]
#[derive(Clone)]
pub struct Response {
    pub(crate) status: u16,
    headers: Vec<(&'static str, String)>,
    pub(crate) body: Body,
}

/// The header fields that the library reads; others are not kept.
pub(crate) const KEPT: [&str; 5] = [
    "retry-after",
    "date",
    "etag",
    "inin-correlation-id",
    "genesys-correlation-id",
];

impl Response {
    /// A response from its parts; `headers` are of those that are kept.
    pub(crate) fn received(
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: Body,
    ) -> Response {
        Response {
            status,
            headers,
            body,
        }
    }

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

    /// Whether all of the body arrived.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.body, Body::Whole(_))
    }

    /// The body as JSON.
    fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, Unreadable> {
        match &self.body {
            Body::Whole(bytes) if bytes.is_empty() => {
                Err(Unreadable::NotJson("the body is empty".into()))
            }
            Body::Whole(bytes) => serde_json::from_slice(bytes).map_err(|e| {
                // serde_json may quote the text it met, which may hold personal data.
                let at = format!("(line {}, column {})", e.line(), e.column());
                if e.is_data() {
                    Unreadable::Unexpected(format!("the body is not the expected JSON {at}"))
                } else {
                    Unreadable::NotJson(format!("the body is not JSON {at}"))
                }
            }),
            Body::Broken(why) => Err(Unreadable::Cut(why.clone())),
            Body::TimedOut => Err(Unreadable::TimedOut),
            Body::TooLarge(bytes) => Err(Unreadable::TooLarge(bytes.len())),
        }
    }

    /// The body as a JSON object, read field by field: what all answers but the large ones are.
    pub(crate) fn object(&self) -> Result<Map<String, Value>, Unreadable> {
        match self.json()? {
            Value::Object(fields) => Ok(fields),
            _ => Err(Unreadable::not_an_object()),
        }
    }

    /// The body as a JSON object of a known shape. Not any JSON, since serde fills a struct from a
    /// list as well, field by field: `[]` would be an object without any.
    pub(crate) fn object_of<T: serde::de::DeserializeOwned>(&self) -> Result<T, Unreadable> {
        match &self.body {
            Body::Whole(bytes) if matches!(bytes.trim_ascii_start().first(), Some(b'[')) => {
                Err(Unreadable::not_an_object())
            }
            _ => self.json(),
        }
    }

    /// The wait that the answer asks for. A date counts from the answer's own `Date`, since the
    /// local clock, `now`, may be off.
    pub(crate) fn retry_after(&self, now: SystemTime) -> Option<Duration> {
        let sent = self.header("date").and_then(|date| http_date(date, now));
        date::retry_after(self.header("retry-after")?, sent.unwrap_or(now))
    }

    /// The id under which the platform knows the request.
    pub(crate) fn correlation_id(&self) -> Option<&str> {
        self.header("inin-correlation-id")
            .or_else(|| self.header("genesys-correlation-id"))
    }
}

/// Why a body is of no use.
#[derive(Debug)]
pub(crate) enum Unreadable {
    /// The connection broke inside of it.
    Cut(String),
    /// It did not come in time.
    TimedOut,
    /// It is larger than the limit, in bytes.
    TooLarge(usize),
    /// It is not JSON: a page of a gateway, perhaps.
    NotJson(String),
    /// It is JSON, and not what was asked for.
    Unexpected(String),
}

impl Unreadable {
    fn not_an_object() -> Unreadable {
        Unreadable::Unexpected("the body is not a JSON object".into())
    }

    /// Whether another try may bring a better answer.
    pub(crate) fn is_transient(&self) -> bool {
        !matches!(self, Unreadable::TooLarge(_) | Unreadable::Unexpected(_))
    }

    pub(crate) fn into_error(self, context: &str) -> Error {
        let (kind, why) = match self {
            Unreadable::Cut(why) => (
                ErrorKind::Transport,
                format!("the body is cut short ({why})"),
            ),
            Unreadable::TimedOut => (ErrorKind::Timeout, "the body did not come in time".into()),
            Unreadable::TooLarge(limit) => (
                ErrorKind::Protocol,
                format!("the body is larger than {limit} bytes: see max_response_body"),
            ),
            Unreadable::NotJson(why) | Unreadable::Unexpected(why) => (ErrorKind::Protocol, why),
        };
        Error::new(kind, format!("{context}: {why}"))
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

/// A request that got no status line.
///
/// ```
/// use genesys_attributes::error::Sent;
/// use genesys_attributes::http::TransportError;
/// use genesys_attributes::{Error, ErrorKind};
///
/// let refused = Error::new(ErrorKind::Connect, "nothing is listening there");
/// let failure = TransportError::new(refused, Sent::No);
/// assert_eq!(failure.sent(), Sent::No);
/// ```
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

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for TransportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}

/// Carries one request to the platform and brings the answer back.
///
/// Implement it to put the library on another HTTP client or to test without a network; closures
/// of the same shape implement it. The library does the rest: it retries, waits, limits the rate
/// and reads the answers.
///
/// An implementation must not follow redirects, must hand back any status without making it an
/// error, must bound its own time, and must report truthfully how far a failed request got.
pub trait Transport: Send + Sync {
    /// Sends `request` once.
    ///
    /// # Errors
    ///
    /// A [`TransportError`] when no status line arrived.
    fn send(&self, request: &Request) -> std::result::Result<Response, TransportError>;
}

/// A transport that is shared, so that its owner can still reach it.
impl<T: Transport + ?Sized> Transport for Arc<T> {
    fn send(&self, request: &Request) -> std::result::Result<Response, TransportError> {
        (**self).send(request)
    }
}

/// A closure, whose parameter needs its type. [`TransportError::new`] says how far a failed request
/// got; its error is of the kind `Connect` (not sent), `Timeout` or `Transport` (perhaps).
///
/// ```
/// use genesys_attributes::error::Sent;
/// use genesys_attributes::http::{Request, Response, TransportError};
/// use genesys_attributes::{Client, Credentials, Error, ErrorKind, Region};
///
/// let builder = Client::builder(Region::parse("eu-west-1")?, Credentials::access_token("token"))
///     .transport(|request: &Request| match request.url().ends_with("/attributes") {
///         true => Ok(Response::new(202)),
///         false => Err(TransportError::new(
///             Error::new(ErrorKind::Transport, "the connection broke"),
///             Sent::Maybe,
///         )),
///     });
/// # Ok::<(), genesys_attributes::Error>(())
/// ```
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
/// and could no longer say in which phase the time ran out. The update's deadline
/// ([`RetryPolicy::with_deadline`](crate::RetryPolicy::with_deadline)) bounds the whole: when less
/// of it is left than the phases add up to, each is shortened in proportion.
///
/// Looking a name up is the system resolver's, which has limits of its own (often 5 s for each of
/// several tries) and cannot be interrupted: the deadline is checked before and after it. Where
/// that is too long, [`with_resolve`](Timeouts::with_resolve) bounds it, at the price of a thread
/// for each look-up.
#[must_use = "limits do nothing until a builder is given them"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeouts {
    /// Look the name up. Default `None`: as long as the system's resolver takes.
    pub resolve: Option<Duration>,
    /// Connect and shake hands. Default 5 s.
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
            resolve: None,
            connect: Duration::from_secs(5),
            send: Duration::from_secs(10),
            response: Duration::from_secs(20),
            body: Duration::from_secs(20),
        }
    }
}

impl Timeouts {
    /// Sets a limit for looking a name up. ureq then starts a thread for each look-up, which goes
    /// on after the limit until the system's resolver answers.
    pub fn with_resolve(mut self, limit: Duration) -> Timeouts {
        self.resolve = Some(limit);
        self
    }

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
        let resolve = self.resolve.unwrap_or_default();
        resolve + self.connect + self.send + self.send + self.response + self.body
    }

    /// Each phase shortened in proportion, so that all of them fit into `whole`.
    pub(crate) fn scaled_to(&self, whole: Duration) -> Timeouts {
        let share = whole.as_secs_f64() / self.sum().as_secs_f64();
        // ureq takes none for no limit.
        let scaled = |phase: Duration| phase.mul_f64(share.min(1.0)).max(Duration::from_millis(1));
        Timeouts {
            resolve: self.resolve.map(scaled),
            connect: scaled(self.connect),
            send: scaled(self.send),
            response: scaled(self.response),
            body: scaled(self.body),
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let resolve = self.resolve.map(|limit| ("timeouts.resolve", limit));
        let phases = [
            ("timeouts.connect", self.connect),
            ("timeouts.send", self.send),
            ("timeouts.response", self.response),
            ("timeouts.body", self.body),
        ];
        for (name, limit) in resolve.into_iter().chain(phases) {
            if limit < Duration::from_millis(1) || limit > Duration::from_secs(3_600) {
                return Err(Error::config(name, "must be between 1 ms and 1 h"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_debug_hides_token_and_body() {
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
    fn timeouts_scaled_to_a_rest_fit_into_it() {
        let whole = Duration::from_secs(10);
        for timeouts in [
            Timeouts::default(),
            Timeouts::default().with_resolve(Duration::from_secs(30)),
        ] {
            let scaled = timeouts.scaled_to(whole);
            assert!(
                scaled.sum() <= whole + Duration::from_micros(1),
                "{scaled:?}"
            );
            assert!(
                scaled.sum() >= whole - Duration::from_micros(1),
                "{scaled:?}"
            );
        }
    }

    #[test]
    fn timeouts_out_of_range_are_refused() {
        assert!(Timeouts::default().check().is_ok());
        for bad in [Duration::ZERO, Duration::MAX] {
            let good = Timeouts::default;
            for (name, timeouts) in [
                ("timeouts.resolve", good().with_resolve(bad)),
                ("timeouts.connect", good().with_connect(bad)),
                ("timeouts.send", good().with_send(bad)),
                ("timeouts.response", good().with_response(bad)),
                ("timeouts.body", good().with_body(bad)),
            ] {
                let error = timeouts.check().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Config);
                assert!(error.to_string().starts_with(name), "{error}");
            }
        }
    }
}
