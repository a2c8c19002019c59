//! What can go wrong, and how a caller distinguishes the cases.

pub(crate) mod names;
pub(crate) mod secret;
pub(crate) mod text;
pub(crate) mod violation;

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::names::named_enum;
use crate::error::text::did_you_mean;
pub(crate) use crate::error::text::{clip, one_line};
pub use crate::error::violation::{Rule, Violation};

/// The result of everything that can fail in this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

named_enum! {
    /// Why a call failed: the one thing to match on.
    ///
    /// The kind is the single source of the names in JSON records, the labels of the metrics and the
    /// status codes of the C interface, so the three never disagree.
    pub enum ErrorKind, "kind of error" {
        /// The request is wrong and was not sent, or the platform refused it as wrong
        /// (400, 405, 415, 422, 428). See [`Error::violations`].
        InvalidInput = "invalidInput",
        /// A setting is missing or wrong; nothing was sent.
        Config = "config",
        /// The credentials or the token were refused (401, or `invalid_client` at the token endpoint).
        Auth = "auth",
        /// The credentials are good but may not do this (403). See [`Error::missing_permissions`].
        Forbidden = "forbidden",
        /// The conversation, participant or record does not exist (404, 410).
        NotFound = "notFound",
        /// Somebody else changed the target, and retrying did not settle it (409, 412).
        Conflict = "conflict",
        /// The platform asked to slow down for longer than the retry policy waits (429).
        /// See [`Error::retry_after`].
        RateLimited = "rateLimited",
        /// A time limit passed: one of the transport's phases, or 408 from the platform.
        Timeout = "timeout",
        /// No connection could be made; nothing was sent.
        Connect = "connect",
        /// The connection failed after something may have been sent.
        Transport = "transport",
        /// The platform failed (5xx).
        Server = "server",
        /// The answer does not follow the protocol that the platform documents.
        Protocol = "protocol",
        /// The request body is larger than the platform takes (413, or found before sending).
        PayloadTooLarge = "payloadTooLarge",
        /// The strict audit mode could not record the intent, so nothing was written.
        Audit = "audit",
        /// The caller cancelled the work.
        Cancelled = "cancelled",
        /// A defect of this library; or a transport, clock or closure of yours panicked during the
        /// update.
        Internal = "internal",
    }
}

impl ErrorKind {
    /// The status code of the C interface: 1 and up in the order of [`ErrorKind::ALL`], and 255
    /// for [`ErrorKind::Internal`]. 0 means success there.
    pub fn code(self) -> i32 {
        match self {
            ErrorKind::Internal => 255,
            other => other as i32 + 1,
        }
    }

    fn usually_passes(self) -> bool {
        matches!(
            self,
            ErrorKind::Conflict
                | ErrorKind::RateLimited
                | ErrorKind::Timeout
                | ErrorKind::Connect
                | ErrorKind::Transport
                | ErrorKind::Server
                | ErrorKind::Audit
                | ErrorKind::Cancelled
        )
    }
}

/// How far a request got before its connection failed.
///
/// It decides what a retry may do: a request that was never sent can be sent again without a
/// second thought, one that may have arrived makes the outcome of the write uncertain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Sent {
    /// Nothing of the request left this machine.
    No,
    /// The request may have reached the platform; its answer did not come back.
    Maybe,
}

/// An error of this library: one word wide, cheap to pass on.
///
/// `Display` is one line that names the cause and, where it is known, what to do. It never holds
/// a secret or the value of an attribute, and does not repeat [`source`](StdError::source).
///
/// ```
/// use genesys_attributes::{ErrorKind, Update};
///
/// let error = Update::conversation("c-1").set("score", 1.5).validate().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidInput);
/// assert_eq!(error.violations()[0].key, "score");
/// assert!(!error.is_transient());
/// ```
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<Arc<dyn StdError + Send + Sync>>,
    http_status: Option<u16>,
    code: Option<String>,
    violations: Vec<Violation>,
    retry_after: Option<Duration>,
    attempts: u32,
    requests: u32,
    latency: Duration,
    correlation_id: Option<String>,
    missing_permissions: Vec<String>,
    may_have_applied: bool,
    transient: bool,
    during_login: bool,
    endpoint_missing: bool,
}

impl Error {
    /// An error of the given kind. Public so that a [`Transport`](crate::http::Transport), an
    /// `update_with` closure or a test can make one.
    #[cold]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error(Box::new(Inner {
            kind,
            message: one_line(&message.into()),
            source: None,
            http_status: None,
            code: None,
            violations: Vec::new(),
            retry_after: None,
            attempts: 0,
            requests: 0,
            latency: Duration::ZERO,
            correlation_id: None,
            missing_permissions: Vec::new(),
            may_have_applied: false,
            transient: kind.usually_passes(),
            during_login: false,
            endpoint_missing: false,
        }))
    }

    /// A name that is none of those that are known.
    #[cold]
    pub(crate) fn unknown(what: &str, name: &str, known: &[&str]) -> Error {
        let hint = did_you_mean(name, known);
        let (name, known) = (clip(name, 64), known.join(", "));
        let message = format!("unknown {what} {name:?}{hint}; known are {known}");
        Error::new(ErrorKind::InvalidInput, message)
    }

    #[cold]
    pub(crate) fn config(setting: &str, problem: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Config, format!("{setting}: {problem}"))
    }

    /// The error of [`Error::config`], whose setting goes by the second of two names.
    #[cold]
    pub(crate) fn with_names(mut self, names: &[(&str, &str)]) -> Error {
        let found = names.iter().find_map(|(from, to)| {
            let rest = self.0.message.strip_prefix(from)?;
            rest.starts_with(':').then(|| format!("{to}{rest}"))
        });
        if let Some(message) = found {
            self.0.message = message;
        }
        self
    }

    #[cold]
    pub(crate) fn violated(violations: Vec<Violation>) -> Error {
        let listed: Vec<String> = violations.iter().map(Violation::to_string).collect();
        let of_participant = |violation: &Violation| {
            matches!(
                violation.rule,
                Rule::UnknownPurpose | Rule::SeveralParticipants
            )
        };
        let what = match violations.iter().all(of_participant) {
            true => "",
            false => "attribute validation failed: ",
        };
        let message = format!("{what}{}", listed.join("; "));
        let mut error = Error::new(ErrorKind::InvalidInput, message);
        error.0.violations = violations;
        error
    }

    /// Says one thing more.
    pub(crate) fn and(mut self, more: &str) -> Error {
        self.0.message = format!("{}; {}", self.0.message, one_line(more));
        self
    }

    /// Says what it was about, in front.
    pub(crate) fn within(mut self, what: &str) -> Error {
        // A list of violations speaks for itself.
        if self.0.violations.is_empty() {
            self.0.message = format!("{}: {}", one_line(what), self.0.message);
        }
        self
    }

    /// Adds the cause, for [`source`](StdError::source).
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Error {
        self.0.source = Some(Arc::new(source));
        self
    }

    pub(crate) fn with_http_status(mut self, status: u16) -> Error {
        self.0.http_status = Some(status);
        self
    }

    pub(crate) fn with_code(mut self, code: Option<String>) -> Error {
        self.0.code = code;
        self
    }

    pub(crate) fn with_correlation_id(mut self, id: Option<String>) -> Error {
        self.0.correlation_id = id;
        self
    }

    pub(crate) fn with_missing_permissions(mut self, permissions: Vec<String>) -> Error {
        self.0.missing_permissions = permissions;
        self
    }

    pub(crate) fn with_retry_after(mut self, wait: Option<Duration>) -> Error {
        self.0.retry_after = wait;
        self
    }

    pub(crate) fn with_transient(mut self, transient: bool) -> Error {
        self.0.transient = transient;
        self
    }

    pub(crate) fn with_login(mut self) -> Error {
        self.0.during_login = true;
        self
    }

    pub(crate) fn with_endpoint_missing(mut self, missing: bool) -> Error {
        self.0.endpoint_missing = missing;
        self
    }

    pub(crate) fn with_effort(mut self, attempts: u32, requests: u32, latency: Duration) -> Error {
        self.0.attempts = attempts;
        self.0.requests = requests;
        self.0.latency = latency;
        self
    }

    pub(crate) fn with_may_have_applied(mut self, may: bool) -> Error {
        self.0.may_have_applied = may;
        self
    }

    /// Why the call failed.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The status of the platform's last answer, where there was one.
    pub fn http_status(&self) -> Option<u16> {
        self.0.http_status
    }

    /// The platform's own code for the error, such as `"missing.any.permissions"`, or the `error`
    /// field of the token endpoint. Codes are an open set.
    pub fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// Everything that is wrong with the update, when validation refused it.
    pub fn violations(&self) -> &[Violation] {
        &self.0.violations
    }

    /// How long the platform asked to wait: always worth a look on a [`ErrorKind::RateLimited`]
    /// error, and sometimes set on others.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// How many writes were sent before giving up.
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// How many API requests (reads and writes; the token's not counted) were sent.
    pub fn requests(&self) -> u32 {
        self.0.requests
    }

    /// From the first request of the update to the end of the last.
    pub fn latency(&self) -> Duration {
        self.0.latency
    }

    /// The id under which the platform knows the failed request: give it to their support.
    pub fn correlation_id(&self) -> Option<&str> {
        self.0.correlation_id.as_deref()
    }

    /// The permissions that the platform says are missing, on a [`ErrorKind::Forbidden`] error.
    pub fn missing_permissions(&self) -> &[String] {
        &self.0.missing_permissions
    }

    /// Whether the change may have reached the platform although no answer says so.
    ///
    /// When it is `false`, nothing was changed by this call. When it is `true`, read the target
    /// (or run the same update again: values are set, not added) to settle it.
    pub fn may_have_applied(&self) -> bool {
        self.0.may_have_applied
    }

    /// Whether it was logging in that failed: nothing of the update itself was refused.
    pub fn during_login(&self) -> bool {
        self.0.during_login
    }

    /// Whether the platform does not offer the endpoint that the update needs, so that no other
    /// update of this kind can succeed.
    pub(crate) fn endpoint_missing(&self) -> bool {
        self.0.endpoint_missing
    }

    /// Whether the same call may succeed later without any change of input or settings.
    pub fn is_transient(&self) -> bool {
        self.0.transient
    }
}

const MAY_HAVE_APPLIED: &str = "; the change may have been applied: read the target to settle it";

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if self.0.may_have_applied {
            f.write_str(MAY_HAVE_APPLIED)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut s = f.debug_struct("Error");
        s.field("kind", &self.0.kind)
            .field("message", &self.0.message);
        if let Some(status) = self.0.http_status {
            s.field("http_status", &status);
        }
        if let Some(id) = &self.0.correlation_id {
            s.field("correlation_id", id);
        }
        if self.0.may_have_applied {
            s.field("may_have_applied", &true);
        }
        if let Some(source) = &self.0.source {
            s.field("source", source);
        }
        s.finish_non_exhaustive()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.0.source {
            Some(source) => Some(source.as_ref()),
            None => None,
        }
    }
}

/// The `error` object of a batch outcome: what is left out of it is not known, or false.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    kind: ErrorKind,
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    http_status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_after_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    missing_permissions: Vec<String>,
    #[serde(default)]
    may_have_applied: bool,
    #[serde(default)]
    during_login: bool,
    /// Always written. Where it is not read, it is what the kind usually is.
    #[serde(default)]
    transient: Option<bool>,
    #[serde(default)]
    violations: Vec<Violation>,
}

/// The `error` object of a batch outcome: `kind`, `message`, `mayHaveApplied`, `duringLogin`,
/// `transient` and `violations`, and where they are known `httpStatus`, `code`, `correlationId`,
/// `retryAfterSeconds` and `missingPermissions`.
impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let inner = &*self.0;
        Record {
            kind: inner.kind,
            message: self.to_string(),
            http_status: inner.http_status,
            code: inner.code.clone(),
            correlation_id: inner.correlation_id.clone(),
            retry_after_seconds: inner.retry_after.map(|wait| wait.as_secs()),
            missing_permissions: inner.missing_permissions.clone(),
            may_have_applied: inner.may_have_applied,
            during_login: inner.during_login,
            transient: Some(inner.transient),
            violations: inner.violations.clone(),
        }
        .serialize(serializer)
    }
}

/// Reads what serializing wrote. What that leaves out (the source, the effort) is not there.
impl<'de> Deserialize<'de> for Error {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let record = Record::deserialize(deserializer)?;
        let message = record.message.strip_suffix(MAY_HAVE_APPLIED);
        let mut error = Error::new(record.kind, message.unwrap_or(&record.message));
        let inner = &mut *error.0;
        inner.http_status = record.http_status;
        inner.code = record.code;
        inner.correlation_id = record.correlation_id;
        inner.retry_after = record.retry_after_seconds.map(Duration::from_secs);
        inner.missing_permissions = record.missing_permissions;
        inner.may_have_applied = record.may_have_applied;
        inner.during_login = record.during_login;
        inner.transient = record.transient.unwrap_or(inner.transient);
        inner.violations = record.violations;
        Ok(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn error_is_one_word_and_crosses_threads() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        fn sendable<T: Send + Sync + 'static>() {}
        sendable::<Error>();
    }

    #[test]
    fn error_kind_names_and_codes_are_unique_and_nonzero() {
        let names: HashSet<_> = ErrorKind::ALL.iter().map(|k| k.name()).collect();
        let codes: HashSet<_> = ErrorKind::ALL.iter().map(|k| k.code()).collect();
        assert_eq!(names.len(), ErrorKind::ALL.len());
        assert_eq!(codes.len(), ErrorKind::ALL.len());
        assert!(!codes.contains(&0));
    }

    #[test]
    fn error_display_is_one_line_without_source() {
        let error = Error::new(ErrorKind::Transport, "first\nsecond\r\u{7}third")
            .with_source(std::io::Error::other("the cause"));
        assert_eq!(error.to_string(), "first second  third");
        assert_eq!(
            StdError::source(&error).map(ToString::to_string).as_deref(),
            Some("the cause")
        );
    }

    #[test]
    fn violation_hostile_key_stays_one_line() {
        let violation = Violation::new("a\nb", Rule::ValueLength, "1025 UTF-16 units").limit(1024);
        assert_eq!(
            violation.to_string(),
            "\"a\\nb\" is too long: at most 1024 UTF-16 units, found 1025 UTF-16 units"
        );
    }

    #[test]
    fn error_json_has_documented_fields() {
        let error = Error::violated(vec![
            Violation::new("k", Rule::KeyLength, "129 UTF-16 units").limit(128),
        ])
        .with_http_status(400)
        .with_correlation_id(Some("abc".into()));
        let json = serde_json::to_value(&error).unwrap();
        assert_eq!(json["kind"], "invalidInput");
        assert_eq!(json["httpStatus"], 400);
        assert_eq!(json["correlationId"], "abc");
        assert_eq!(json["violations"][0]["rule"], "keyLength");
        assert_eq!(json["violations"][0]["limit"], 128);
    }
}
