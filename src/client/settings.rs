//! The settings of a client as JSON: one way to write a configuration down, for the C interface,
//! the program and whoever keeps settings in a file.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::client::builder::{BASE_URL, ClientBuilder, LOGIN_URL, Names, variable};
use crate::error::secret::Secret;
use crate::error::{Error, ErrorKind, Result, clip};
use crate::http::Timeouts;
use crate::http::region::Region;
use crate::report::audit::{AuditFile, AuditMode, AuditPhase, AuditRecord, AuditSink};
use crate::session::auth::Credentials;
use crate::session::limiter::RateLimit;
use crate::session::retry::RetryPolicy;
use crate::update::core::EndedPolicy;
use crate::values::attributes::ValidationLimits;
use crate::values::schema::Schema;

/// The settings of a [`Client`](crate::Client) as a JSON object.
///
/// The fields are named after the builder's methods; hooks, transport and clock are code only. Every
/// field may be left out, or `null`; its default is then that of the [`ClientBuilder`] method.
/// Unknown fields are refused by name.
///
/// | field | value |
/// |---|---|
/// | `region` | AWS name or domain, such as `"eu-west-1"` |
/// | `clientId`, `clientSecret` | the OAuth client, for client credentials |
/// | `accessToken` | a token instead of the two |
/// | `baseUrl`, `loginUrl` | other addresses than the region's |
/// | `allowHttp` | `true` or `false` |
/// | `ratePerMinute` | requests a minute; 0 for no limit |
/// | `retry` | object of `maxAttempts`, `maxConflicts`, `deadlineSeconds`, `maxRetryAfterSeconds`, `backoffBaseMs`, `backoffMaxMs` |
/// | `timeouts` | object of `resolveSeconds`, `connectSeconds`, `sendSeconds`, `responseSeconds`, `bodySeconds` |
/// | `validationLimits` | object of `keyLength`, `stringLength`, `integerMax`, `bodyBytes` |
/// | `schema` | an object, as [`Schema::from_json`](crate::validate::Schema::from_json) reads it |
/// | `audit` | object of `file` (JSON lines are appended to it), `strict`, `values`, `secureValues` (with `values`) |
/// | `webhook` | object of `url`, `proxy`, `rootCertificatesFile`, `rootCertificates`, `timeouts`: the receiver of a forwarder, with fields of the same meaning |
/// | `metadataSource` | text |
/// | `endedConversations` | `"allow"`, `"warn"` or `"refuse"` |
/// | `secureValuesInEvents` | `true` or `false` |
/// | `proxy` | URL, or `false` for none whatever the environment says |
/// | `rootCertificatesFile`, `rootCertificates` | a PEM file, or PEM text; not both |
/// | `clientCertificateFile`, `clientKeyFile` | PEM files of a client certificate and its key; both or none |
/// | `maxIdleConnections` | connections |
/// | `maxResponseBody` | bytes |
/// | `userAgent` | text |
/// | `versionCache` | conversations |
/// | `jitterSeed` | number from which the jitter of waits starts, for tests |
///
/// Seconds may have a fraction; milliseconds are whole. Files are relative to the working
/// directory.
///
/// # Region and credentials
///
/// Where none of `region`, `clientId`, `clientSecret` and `accessToken` is given, all of them come
/// from the environment, as in [`ClientBuilder::from_env`]; a `baseUrl` then takes the place of
/// `GENESYS_CLOUD_BASE_URL` and `GENESYS_CLOUD_LOGIN_URL`. Where one of the four is given, none of them and no address is taken
/// from the environment: `clientId` and `clientSecret`, or `accessToken`, are then required, and
/// `region` or `baseUrl`.
///
/// ```
/// use genesys_attributes::Settings;
///
/// let client = Settings::from_json(
///     r#"{
///         "region": "eu-west-1",
///         "clientId": "id",
///         "clientSecret": "secret",
///         "ratePerMinute": 120,
///         "retry": { "maxAttempts": 6, "deadlineSeconds": 60 }
///     }"#,
/// )?
/// .builder()?
/// .build()?;
///
/// let error = Settings::from_json(r#"{"regoin": "eu-west-1"}"#).unwrap_err();
/// assert!(error.to_string().contains("regoin"));
/// # Ok::<(), genesys_attributes::Error>(())
/// ```
#[must_use = "settings do nothing until `builder` is called"]
#[derive(Clone, Default)]
pub struct Settings {
    region: Option<String>,
    client_id: Option<String>,
    client_secret: Option<Secret>,
    access_token: Option<Secret>,
    base_url: Option<String>,
    login_url: Option<String>,
    allow_http: Option<bool>,
    rate_per_minute: Option<u32>,
    retry: RetryPolicy,
    timeouts: Timeouts,
    limits: ValidationLimits,
    schema: Option<Schema>,
    audit: Audit,
    #[cfg_attr(not(feature = "forward"), allow(dead_code))]
    pub(crate) webhook: Receiver,
    metadata_source: Option<String>,
    ended_conversations: Option<EndedPolicy>,
    secure_values_in_events: Option<bool>,
    proxy: Option<Proxy>,
    root_certificates: Option<Roots>,
    client_certificate: Option<[PathBuf; 2]>,
    max_idle_connections: Option<usize>,
    max_response_body: Option<usize>,
    user_agent: Option<String>,
    version_cache: Option<usize>,
    jitter_seed: Option<u64>,
}

/// What [`ClientBuilder::build`] complains of, as it is written in JSON.
const NAMES: Names = &[
    ("base_url", "baseUrl"),
    ("login_url", "loginUrl"),
    ("rate_limit", "ratePerMinute"),
    ("retry.max_attempts", "retry.maxAttempts"),
    ("retry.deadline", "retry.deadlineSeconds"),
    ("retry.max_retry_after", "retry.maxRetryAfterSeconds"),
    ("retry.backoff", "retry.backoffBaseMs and backoffMaxMs"),
    ("timeouts.resolve", "timeouts.resolveSeconds"),
    ("timeouts.connect", "timeouts.connectSeconds"),
    ("timeouts.send", "timeouts.sendSeconds"),
    ("timeouts.response", "timeouts.responseSeconds"),
    ("timeouts.body", "timeouts.bodySeconds"),
    ("validation_limits.key_length", "validationLimits.keyLength"),
    (
        "validation_limits.string_length",
        "validationLimits.stringLength",
    ),
    ("validation_limits.body_bytes", "validationLimits.bodyBytes"),
    ("root_certificates", "rootCertificates"),
    ("client_certificate", "clientCertificateFile"),
    ("client_key", "clientKeyFile"),
    ("max_response_body", "maxResponseBody"),
    ("user_agent", "userAgent"),
];

/// The receiver of a forwarder's events, and the way to it.
#[derive(Clone, Default)]
#[cfg_attr(not(feature = "forward"), allow(dead_code))]
pub(crate) struct Receiver {
    /// It may hold a token.
    pub(crate) url: Option<Secret>,
    pub(crate) proxy: Option<Proxy>,
    pub(crate) root_certificates: Option<Roots>,
    pub(crate) timeouts: Timeouts,
}

#[derive(Clone, Default)]
struct Audit {
    file: Option<PathBuf>,
    strict: bool,
    values: bool,
    secure_values: bool,
}

#[derive(Clone)]
pub(crate) enum Proxy {
    None,
    Url(Secret),
}

#[derive(Clone)]
pub(crate) enum Roots {
    File(PathBuf),
    Pem(String),
}

impl Settings {
    /// Reads the settings from the text of a JSON object.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`], naming the field that is unknown or wrong, or the place where the
    /// text is no JSON. It never holds the value of a field outside of `schema`.
    pub fn from_json(text: &str) -> Result<Settings> {
        let value = crate::values::json::value(text)
            .map_err(|wrong| Error::new(ErrorKind::Config, format!("the settings: {wrong}")))?;
        Settings::from_value(value)
    }

    fn from_value(value: Value) -> Result<Settings> {
        let mut all = match value {
            Value::Object(map) => Fields::new(map),
            _ => return Err(wrong("the settings", "must be a JSON object")),
        };
        let mut retry = RetryPolicy::default();
        if let Some(mut given) = all.object("retry")? {
            set(&mut retry.max_attempts, given.whole("maxAttempts")?);
            if let Some(conflicts) = given.whole("maxConflicts")? {
                retry = retry.with_max_conflicts(conflicts);
            }
            set(&mut retry.deadline, given.seconds("deadlineSeconds")?);
            let longest = given.seconds("maxRetryAfterSeconds")?;
            set(&mut retry.max_retry_after, longest);
            set(&mut retry.backoff_base, given.millis("backoffBaseMs")?);
            set(&mut retry.backoff_max, given.millis("backoffMaxMs")?);
            given.finish()?;
        }
        let timeouts = timeouts_of(&mut all)?;
        let mut limits = ValidationLimits::default();
        if let Some(mut given) = all.object("validationLimits")? {
            set(&mut limits.key_length, given.whole("keyLength")?);
            set(&mut limits.string_length, given.whole("stringLength")?);
            set(&mut limits.integer_max, given.whole("integerMax")?);
            set(&mut limits.body_bytes, given.whole("bodyBytes")?);
            given.finish()?;
        }
        let mut audit = Audit::default();
        if let Some(mut given) = all.object("audit")? {
            audit.file = given.text("file")?.map(PathBuf::from);
            set(&mut audit.strict, given.flag("strict")?);
            set(&mut audit.values, given.flag("values")?);
            set(&mut audit.secure_values, given.flag("secureValues")?);
            given.finish()?;
        }
        let ended_conversations = match all.text("endedConversations")?.as_deref() {
            None => None,
            Some("allow") => Some(EndedPolicy::Allow),
            Some("warn") => Some(EndedPolicy::Warn),
            Some("refuse") => Some(EndedPolicy::Refuse),
            Some(_) => {
                return Err(wrong(
                    "endedConversations",
                    "must be \"allow\", \"warn\" or \"refuse\"",
                ));
            }
        };
        let mut webhook = Receiver::default();
        if let Some(mut given) = all.object("webhook")? {
            webhook = Receiver {
                url: given.text("url")?.map(Secret::new),
                proxy: proxy_of(&mut given)?,
                root_certificates: roots_of(&mut given)?,
                timeouts: timeouts_of(&mut given)?,
            };
            given.finish()?;
        }
        let proxy = proxy_of(&mut all)?;
        let root_certificates = roots_of(&mut all)?;
        let client_certificate = match (
            all.text("clientCertificateFile")?,
            all.text("clientKeyFile")?,
        ) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some([certificate.into(), key.into()]),
            (Some(_), None) => {
                return Err(wrong(
                    "clientKeyFile",
                    "goes with clientCertificateFile: give it",
                ));
            }
            (None, Some(_)) => {
                return Err(wrong(
                    "clientCertificateFile",
                    "goes with clientKeyFile: give it",
                ));
            }
        };
        let settings = Settings {
            region: all.text("region")?,
            client_id: all.text("clientId")?,
            client_secret: all.text("clientSecret")?.map(Secret::new),
            access_token: all.text("accessToken")?.map(Secret::new),
            base_url: all.text("baseUrl")?,
            login_url: all.text("loginUrl")?,
            allow_http: all.flag("allowHttp")?,
            rate_per_minute: all.whole("ratePerMinute")?,
            retry,
            timeouts,
            limits,
            schema: schema_of(all.take("schema"))?,
            audit,
            webhook,
            metadata_source: all.text("metadataSource")?,
            ended_conversations,
            secure_values_in_events: all.flag("secureValuesInEvents")?,
            proxy,
            root_certificates,
            client_certificate,
            max_idle_connections: all.whole("maxIdleConnections")?,
            max_response_body: all.whole("maxResponseBody")?,
            user_agent: all.text("userAgent")?,
            version_cache: all.whole("versionCache")?,
            jitter_seed: all.whole("jitterSeed")?,
        };
        all.finish()?;
        Ok(settings)
    }

    /// Makes a builder with these settings, to which hooks and what else is code can be added.
    /// Checks the audit file, which the first record opens, and reads the file of root certificates.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`], naming the field or the environment variable that is missing or
    /// wrong, or the file that cannot be opened. What the settings say is checked by
    /// [`ClientBuilder::build`].
    pub fn builder(self) -> Result<ClientBuilder> {
        self.build_with(None, variable)
    }

    /// As [`Settings::builder`]; where it takes variables from the environment, `lookup` gives
    /// their values instead.
    ///
    /// # Errors
    ///
    /// As [`Settings::builder`], and whatever `lookup` returns.
    pub fn builder_from_variables(
        self,
        lookup: impl Fn(&str) -> Result<Option<String>>,
    ) -> Result<ClientBuilder> {
        self.build_with(None, lookup)
    }

    /// As [`Settings::builder`], with a sink that gets every audit record beside the file.
    #[cfg(feature = "capi")]
    pub(crate) fn builder_with_sink(
        self,
        sink: Option<Arc<dyn AuditSink>>,
    ) -> Result<ClientBuilder> {
        self.build_with(sink, variable)
    }

    fn build_with(
        mut self,
        sink: Option<Arc<dyn AuditSink>>,
        lookup: impl Fn(&str) -> Result<Option<String>>,
    ) -> Result<ClientBuilder> {
        let mut builder = self
            .start(lookup)?
            .named(NAMES)
            .retry(self.retry)
            .timeouts(self.timeouts)
            .validation_limits(self.limits);
        if let Some(url) = self.login_url {
            builder = builder.login_url(url);
        }
        if let Some(allow) = self.allow_http {
            builder = builder.allow_http(allow);
        }
        if let Some(per_minute) = self.rate_per_minute {
            builder = builder.rate_limit(match per_minute {
                0 => RateLimit::unlimited(),
                n => RateLimit::per_minute(n),
            });
        }
        if let Some(source) = self.metadata_source {
            builder = builder.metadata_source(source);
        }
        if let Some(schema) = self.schema {
            builder = builder.schema(schema);
        }
        if let Some(policy) = self.ended_conversations {
            builder = builder.ended_conversations(policy);
        }
        if let Some(include) = self.secure_values_in_events {
            builder = builder.secure_values_in_events(include);
        }
        builder = match self.proxy {
            None => builder,
            Some(Proxy::None) => builder.no_proxy(),
            Some(Proxy::Url(url)) => builder.proxy(url.expose()),
        };
        builder = match self.root_certificates {
            None => builder,
            Some(roots) => builder.root_certificates(roots.pem()?),
        };
        if let Some([certificate, key]) = self.client_certificate {
            builder = builder.client_certificate(
                bytes_of("clientCertificateFile", &certificate)?,
                bytes_of("clientKeyFile", &key)?,
            );
        }
        if let Some(connections) = self.max_idle_connections {
            builder = builder.max_idle_connections(connections);
        }
        if let Some(bytes) = self.max_response_body {
            builder = builder.max_response_body(bytes);
        }
        if let Some(name) = self.user_agent {
            builder = builder.user_agent(name);
        }
        if let Some(capacity) = self.version_cache {
            builder = builder.version_cache(capacity);
        }
        if let Some(seed) = self.jitter_seed {
            builder = builder.jitter_seed(seed);
        }
        builder = builder
            .audit_values(self.audit.values)
            .secure_values_in_audit(self.audit.secure_values);
        if self.audit.strict {
            builder = builder.audit_mode(AuditMode::Strict);
        }
        let file = match self.audit.file {
            None => None,
            Some(path) => {
                let file = AuditFile::lazy(&path);
                let checked = file.check().map(|()| file);
                Some(checked.map_err(|e| {
                    wrong(
                        "audit.file",
                        format_args!("{} cannot be opened: {e}", path.display()),
                    )
                })?)
            }
        };
        Ok(match (file, sink) {
            (None, None) if self.audit.strict => {
                return Err(wrong(
                    "audit.strict",
                    "needs a place for the records: give audit.file",
                ));
            }
            (None, None) => builder,
            (Some(file), None) => builder.audit(file),
            (None, Some(sink)) => builder.audit(sink),
            (Some(file), Some(sink)) => builder.audit(Both {
                file,
                sink,
                strict: self.audit.strict,
            }),
        })
    }

    /// A builder with region, credentials and base URL: all given, or all of the environment.
    fn start(&mut self, lookup: impl Fn(&str) -> Result<Option<String>>) -> Result<ClientBuilder> {
        let id = self.client_id.take();
        let secret = self.client_secret.take();
        let token = self.access_token.take();
        let region = self.region.take();
        let base_url = self.base_url.take();
        let credentials = match (id, secret, token) {
            (None, None, None) if region.is_none() => {
                return ClientBuilder::from_variables(|name| match (name, &base_url) {
                    (BASE_URL, Some(url)) => Ok(Some(url.clone())),
                    // It belongs to the base URL of the environment.
                    (LOGIN_URL, Some(_)) => Ok(None),
                    _ => lookup(name),
                });
            }
            (Some(id), Some(secret), None) => Credentials::new(id, secret.expose()),
            (None, None, Some(token)) => Credentials::access_token(token.expose()),
            (id, secret, token) => {
                let missing = match (id, secret) {
                    _ if token.is_some() => {
                        return Err(wrong(
                            "accessToken",
                            "goes without clientId and clientSecret: choose one of the two ways",
                        ));
                    }
                    (Some(_), _) => "clientSecret",
                    (None, Some(_)) => "clientId",
                    (None, None) => "clientId and clientSecret",
                };
                return Err(wrong(
                    missing,
                    "not given: give clientId and clientSecret, or accessToken; or leave out \
                     region and credentials, and all of them come from the environment",
                ));
            }
        };
        let region = match region {
            Some(name) => Some(Region::parse(&name).map_err(|e| wrong("region", e))?),
            None if base_url.is_some() => None,
            None => return Err(wrong("region", "not given: give it, or baseUrl")),
        };
        let builder = ClientBuilder::new(region, credentials);
        Ok(match base_url {
            Some(url) => builder.base_url(url),
            None => builder,
        })
    }
}

fn schema_of(value: Option<Value>) -> Result<Option<Schema>> {
    let Some(value) = value else {
        return Ok(None);
    };
    let schema: Schema =
        crate::values::json::of_value(value).map_err(|wrong| Error::config("schema", wrong))?;
    schema.checked()?;
    Ok(Some(schema))
}

/// Shows neither secrets nor addresses, which may hold a password.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("region", &self.region)
            .field("client_id", &self.client_id)
            .field("rate_per_minute", &self.rate_per_minute)
            .field("retry", &self.retry)
            .field("timeouts", &self.timeouts)
            .field("audit_file", &self.audit.file)
            .finish_non_exhaustive()
    }
}

/// Refuses unknown fields by name, and shows no value in its errors.
impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Settings::from_value(Value::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// A file, and whoever wants the records as well.
struct Both<F> {
    file: F,
    sink: Arc<dyn AuditSink>,
    strict: bool,
}

impl<F: AuditSink> AuditSink for Both<F> {
    fn record(&self, record: &AuditRecord) -> std::io::Result<()> {
        let kept = self.file.record(record);
        if kept.is_err() && self.strict && record.phase == AuditPhase::Intent {
            // The update ends here: an intent that somebody got would stay without its outcome.
            return kept;
        }
        self.sink.record(record).and(kept)
    }

    fn flush(&self) -> std::io::Result<()> {
        let flushed = self.file.flush();
        self.sink.flush().and(flushed)
    }
}

#[cold]
fn timeouts_of(fields: &mut Fields) -> Result<Timeouts> {
    let mut timeouts = Timeouts::default();
    if let Some(mut given) = fields.object("timeouts")? {
        timeouts.resolve = given.seconds("resolveSeconds")?;
        set(&mut timeouts.connect, given.seconds("connectSeconds")?);
        set(&mut timeouts.send, given.seconds("sendSeconds")?);
        set(&mut timeouts.response, given.seconds("responseSeconds")?);
        set(&mut timeouts.body, given.seconds("bodySeconds")?);
        given.finish()?;
    }
    Ok(timeouts)
}

fn proxy_of(fields: &mut Fields) -> Result<Option<Proxy>> {
    Ok(match fields.take("proxy") {
        None => None,
        Some(Value::Bool(false)) => Some(Proxy::None),
        Some(Value::String(url)) => Some(Proxy::Url(Secret::new(url))),
        Some(_) => return Err(fields.wrong("proxy", "must be a URL, or false for no proxy")),
    })
}

fn roots_of(fields: &mut Fields) -> Result<Option<Roots>> {
    let file = fields.text("rootCertificatesFile")?;
    Ok(match (file, fields.text("rootCertificates")?) {
        (None, None) => None,
        (Some(file), None) => Some(Roots::File(file.into())),
        (None, Some(pem)) => Some(Roots::Pem(pem)),
        (Some(_), Some(_)) => {
            let problem = "and rootCertificatesFile are both given: choose one";
            return Err(fields.wrong("rootCertificates", problem));
        }
    })
}

impl Roots {
    pub(crate) fn pem(self) -> Result<Vec<u8>> {
        match self {
            Roots::Pem(pem) => Ok(pem.into_bytes()),
            Roots::File(path) => bytes_of("rootCertificatesFile", &path),
        }
    }
}

fn wrong(field: &str, problem: impl fmt::Display) -> Error {
    Error::config(field, problem)
}

fn bytes_of(field: &str, path: &Path) -> Result<Vec<u8>> {
    let problem = |e| {
        wrong(
            field,
            format_args!("{} cannot be read: {e}", path.display()),
        )
    };
    fs::read(path).map_err(problem)
}

fn set<T>(place: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *place = value;
    }
}

/// The fields of an object, taken out one after the other; what is left is unknown. Errors name
/// the field and never hold its value, which may be a secret in the wrong place.
pub(crate) struct Fields {
    /// The object's own name and a dot, or nothing.
    within: String,
    map: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    pub(crate) fn new(map: Map<String, Value>) -> Fields {
        Fields {
            within: String::new(),
            map,
            known: Vec::new(),
        }
    }

    fn wrong(&self, name: &str, problem: &str) -> Error {
        wrong(&format!("{}{name}", self.within), problem)
    }

    fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.map.remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&mut self, name: &'static str) -> Result<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(name, "must be text")),
        }
    }

    pub(crate) fn flag(&mut self, name: &'static str) -> Result<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.wrong(name, "must be true or false")),
        }
    }

    pub(crate) fn whole<T: TryFrom<u64>>(&mut self, name: &'static str) -> Result<Option<T>> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match value.as_u64().map(T::try_from) {
                Some(Ok(number)) => Ok(Some(number)),
                Some(Err(_)) => Err(self.wrong(name, "is too large")),
                None => Err(self.wrong(name, "must be a whole number, 0 or more")),
            },
        }
    }

    pub(crate) fn seconds(&mut self, name: &'static str) -> Result<Option<Duration>> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match value.as_f64().map(Duration::try_from_secs_f64) {
                Some(Ok(time)) => Ok(Some(time)),
                _ => Err(self.wrong(name, "must be a number of seconds, 0 or more")),
            },
        }
    }

    fn millis(&mut self, name: &'static str) -> Result<Option<Duration>> {
        Ok(self.whole(name)?.map(Duration::from_millis))
    }

    fn object(&mut self, name: &'static str) -> Result<Option<Fields>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields {
                within: format!("{}{name}.", self.within),
                ..Fields::new(map)
            })),
            Some(_) => Err(self.wrong(name, "must be an object")),
        }
    }

    /// Refuses fields that were not taken.
    pub(crate) fn finish(self) -> Result<()> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::new(
                ErrorKind::Config,
                format!(
                    "unknown field {:?}; known are {}",
                    format!("{}{}", self.within, clip(name, 64)),
                    self.known.join(", ")
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = r#"{
        "region": "eu-west-1", "clientId": "the-id", "clientSecret": "the-secret",
        "baseUrl": "http://127.0.0.1:1/base", "loginUrl": "http://127.0.0.1:1/login",
        "allowHttp": true, "ratePerMinute": 0,
        "retry": {"maxAttempts": 2, "maxConflicts": 3, "deadlineSeconds": 4.5,
            "maxRetryAfterSeconds": 5, "backoffBaseMs": 6, "backoffMaxMs": 7},
        "timeouts": {"resolveSeconds": null, "connectSeconds": 1, "sendSeconds": 2, "responseSeconds": 3, "bodySeconds": 0.25},
        "validationLimits": {"keyLength": 1, "stringLength": 2, "integerMax": 3, "bodyBytes": 4},
        "schema": {"keys": {"tier": {"type": "text"}}, "onlyKnownKeys": true},
        "audit": {"file": null, "strict": false, "values": true, "secureValues": true},
        "webhook": {"url": "https://crm.example/hook", "proxy": false, "timeouts": {"connectSeconds": 1}},
        "metadataSource": "tests", "endedConversations": "refuse", "secureValuesInEvents": true,
        "proxy": false, "maxIdleConnections": 5, "maxResponseBody": 1000, "userAgent": "tests/1",
        "versionCache": 0, "jitterSeed": 7
    }"#;

    fn problem(json: &str) -> String {
        let error = Settings::from_json(json)
            .and_then(Settings::builder)
            .and_then(ClientBuilder::build)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{json}");
        error.to_string()
    }

    #[test]
    fn settings_all_fields_make_a_client() {
        let settings = Settings::from_json(ALL).unwrap();
        assert_eq!(settings.retry.deadline, Duration::from_millis(4_500));
        assert_eq!(settings.retry.backoff_max, Duration::from_millis(7));
        assert_eq!(settings.timeouts.body, Duration::from_millis(250));
        assert_eq!(settings.limits.integer_max, 3);
        let client = settings.builder().unwrap().build().unwrap();
        assert!(format!("{client:?}").contains("http://127.0.0.1:1/base"));
    }

    /// The field of a method of the builder, by its path; `None` for those that are code only.
    fn field_of(method: &str) -> Option<String> {
        Some(match method {
            "on_update" | "transport" | "clock" => return None,
            "rate_limit" => "ratePerMinute".into(),
            "no_proxy" => "proxy".into(),
            "client_certificate" => "clientCertificateFile".into(),
            "audit" => "audit.file".into(),
            "audit_mode" => "audit.strict".into(),
            "audit_values" => "audit.values".into(),
            "secure_values_in_audit" => "audit.secureValues".into(),
            _ => method
                .split('_')
                .enumerate()
                .map(|(at, word)| match (at, word.split_at(1)) {
                    (0, _) => word.to_owned(),
                    (_, (first, rest)) => first.to_ascii_uppercase() + rest,
                })
                .collect(),
        })
    }

    /// The methods of the builder that set something.
    fn methods() -> Vec<&'static str> {
        include_str!("builder.rs")
            .split("    pub fn ")
            .skip(1)
            .filter_map(|rest| rest.split_once('('))
            .filter(|(_, rest)| rest.trim_start().starts_with("mut self"))
            .map(|(name, _)| name)
            .collect()
    }

    #[test]
    fn settings_have_every_method_of_the_builder() {
        let methods = methods();
        assert!(methods.len() >= 25, "{methods:?}");
        for field in methods.iter().filter_map(|method| field_of(method)) {
            // A value that none of them takes: the error says whether the field is known.
            let json = field.rsplit('.').fold("[[]]".to_owned(), |json, name| {
                format!("{{\"{name}\":{json}}}")
            });
            let error = Settings::from_json(&json).unwrap_err().to_string();
            assert!(!error.contains("unknown field"), "{field}: {error}");
            let name = field.rsplit('.').next().unwrap();
            let docs = include_str!("settings.rs").split("pub struct").next();
            assert!(docs.unwrap().contains(&format!("`{name}`")), "{field}");
        }
    }

    #[test]
    fn settings_that_build_refuses_are_named_as_in_json() {
        let base = r#""baseUrl": "http://127.0.0.1:1", "accessToken": "t""#;
        for (field, name) in [
            (r#""ratePerMinute": 4000000"#, "ratePerMinute: "),
            (r#""retry": {"maxAttempts": 0}"#, "retry.maxAttempts: "),
            (
                r#""retry": {"deadlineSeconds": 1e9}"#,
                "retry.deadlineSeconds: ",
            ),
            (
                r#""retry": {"maxRetryAfterSeconds": 1e9}"#,
                "retry.maxRetryAfterSeconds: ",
            ),
            (
                r#""retry": {"backoffBaseMs": 9000000000}"#,
                "retry.backoffBaseMs and",
            ),
            (
                r#""timeouts": {"resolveSeconds": 0}"#,
                "timeouts.resolveSeconds: ",
            ),
            (
                r#""timeouts": {"connectSeconds": 0}"#,
                "timeouts.connectSeconds: ",
            ),
            (
                r#""timeouts": {"sendSeconds": 0}"#,
                "timeouts.sendSeconds: ",
            ),
            (
                r#""timeouts": {"responseSeconds": 0}"#,
                "timeouts.responseSeconds: ",
            ),
            (
                r#""timeouts": {"bodySeconds": 0}"#,
                "timeouts.bodySeconds: ",
            ),
            (
                r#""validationLimits": {"keyLength": 0}"#,
                "validationLimits.keyLength: ",
            ),
            (
                r#""validationLimits": {"stringLength": 0}"#,
                "validationLimits.stringLength: ",
            ),
            (
                r#""validationLimits": {"bodyBytes": 0}"#,
                "validationLimits.bodyBytes: ",
            ),
            (r#""maxResponseBody": 0"#, "maxResponseBody: "),
            (r#""userAgent": """#, "userAgent: "),
            (r#""loginUrl": "ftp://x""#, "loginUrl: "),
            (r#""loginUrl": "http://example.com""#, "loginUrl: "),
        ] {
            let problem = problem(&format!("{{{base}, {field}}}"));
            assert!(problem.starts_with(name), "{problem}");
            assert!(!problem.contains("::"), "{problem}");
        }
        let problem = problem(r#"{"baseUrl": "no", "accessToken": "t"}"#);
        assert!(problem.starts_with("baseUrl: "), "{problem}");
    }

    #[test]
    fn settings_schema_is_checked_by_the_client() {
        let client = Settings::from_json(ALL).unwrap().builder().unwrap();
        let update = crate::Update::participant("c-1", "customer");
        let client = client.build().unwrap();
        let error = client
            .validate(&update.clone().set("other", "x"))
            .unwrap_err();
        assert_eq!(error.violations().len(), 1, "{error}");
        let wrong = Settings::from_json(r#"{"schema": {"keys": {"a*b": {}}}}"#).unwrap_err();
        assert_eq!(wrong.kind(), ErrorKind::Config);
        assert!(wrong.to_string().contains("a*b"), "{wrong}");
    }

    #[test]
    fn settings_by_serde_are_the_same() {
        let one: Settings = serde_json::from_str(ALL).unwrap();
        let other = Settings::from_json(ALL).unwrap();
        assert_eq!(format!("{one:?}"), format!("{other:?}"));
        let error = serde_json::from_str::<Settings>(r#"{"regoin":1}"#).unwrap_err();
        assert!(error.to_string().contains("regoin"));
    }

    #[test]
    fn settings_unknown_field_is_named_with_its_path() {
        for (json, name) in [
            (r#"{"regoin": "eu-west-1"}"#, "\"regoin\""),
            (r#"{"retry": {"attempts": 1}}"#, "\"retry.attempts\""),
            (r#"{"timeouts": {"connect": 1}}"#, "\"timeouts.connect\""),
            (r#"{"audit": {"path": "x"}}"#, "\"audit.path\""),
            (
                r#"{"validationLimits": {"max": 1}}"#,
                "\"validationLimits.max\"",
            ),
        ] {
            let problem = problem(json);
            assert!(problem.contains("unknown field"), "{problem}");
            assert!(problem.contains(name), "{problem}");
        }
    }

    #[test]
    fn settings_wrong_value_is_named_by_field_and_never_shown() {
        let names: Map<String, Value> = serde_json::from_str(ALL).unwrap();
        let wrong = [
            "\"hunter2\"",
            "[\"hunter2\"]",
            "{\"hunter2\":1}",
            "-1.5",
            "1e300",
        ];
        let mut refused = 0;
        for name in names.keys() {
            for value in wrong {
                let json = format!("{{\"{name}\":{value}}}");
                let Err(error) = Settings::from_json(&json) else {
                    continue; // Any text is text.
                };
                refused += 1;
                let text = error.to_string();
                assert_eq!(error.kind(), ErrorKind::Config, "{json}");
                assert!(text.contains(name.as_str()), "{text}");
                let unknown_name = value.starts_with('{') && text.contains("unknown field");
                assert!(unknown_name || !text.contains("hunter2"), "{text}");
            }
        }
        assert!(refused > 60, "{refused}");
    }

    #[test]
    fn settings_that_are_no_object_are_refused_without_their_text() {
        for json in ["", "{", "[1]", "\"hunter2\"", "{\"clientSecret\":\"hunter2"] {
            let text = problem(json);
            assert!(text.contains("JSON"), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn settings_debug_shows_no_secret() {
        let settings = Settings::from_json(
            r#"{"clientId": "id", "clientSecret": "hunter2", "accessToken": "hunter2",
                "proxy": "http://u:hunter2@p", "baseUrl": "http://u:hunter2@h"}"#,
        )
        .unwrap();
        let text = format!("{settings:?} {settings:#?}");
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn settings_given_credentials_are_never_completed_from_elsewhere() {
        for (json, missing) in [
            (
                r#"{"region": "eu-west-1"}"#,
                "clientId and clientSecret: not given",
            ),
            (
                r#"{"region": "eu-west-1", "clientId": "i"}"#,
                "clientSecret: not given",
            ),
            (r#"{"clientSecret": "s"}"#, "clientId: not given"),
            (
                r#"{"clientId": "i", "clientSecret": "s"}"#,
                "region: not given",
            ),
            (r#"{"accessToken": "t"}"#, "region: not given"),
            (
                r#"{"region": "eu-west-1", "accessToken": "t", "clientId": "i"}"#,
                "accessToken: goes without",
            ),
        ] {
            let problem = problem(json);
            assert!(problem.starts_with(missing), "{problem}");
        }
        for json in [
            r#"{"region": "eu-west-1", "accessToken": "t"}"#,
            r#"{"baseUrl": "http://127.0.0.1:1", "accessToken": "t"}"#,
        ] {
            let settings = Settings::from_json(json).unwrap();
            let built = settings.builder().unwrap().build();
            // Without TLS only loopback can be reached.
            assert!(built.is_ok() || !cfg!(feature = "rustls") && !json.contains("127.0.0.1"));
        }
    }

    #[test]
    fn settings_files_that_cannot_be_opened_are_named() {
        let base = r#""baseUrl": "http://127.0.0.1:1", "accessToken": "t""#;
        for field in [
            r#""rootCertificatesFile": "no/such/file.pem""#,
            r#""audit": {"file": "no/such/folder/audit.jsonl"}"#,
        ] {
            let problem = problem(&format!("{{{base}, {field}}}"));
            assert!(problem.contains("no/such"), "{problem}");
        }
        for (field, part) in [
            (r#""audit": {"strict": true}"#, "audit.strict"),
            (
                r#""rootCertificates": "x", "rootCertificatesFile": "y""#,
                "choose one",
            ),
            #[cfg(feature = "rustls")]
            (r#""rootCertificates": "no PEM""#, "rootCertificates: "),
            (r#""proxy": true"#, "proxy"),
            (r#""retry": {"maxAttempts": 0}"#, "maxAttempts"),
        ] {
            let problem = problem(&format!("{{{base}, {field}}}"));
            assert!(problem.contains(part), "{problem}");
        }
    }

    #[test]
    fn settings_audit_file_that_fails_keeps_strict_intents_from_the_sink() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        struct Counting(AtomicUsize);
        impl AuditSink for Counting {
            fn record(&self, _: &AuditRecord) -> std::io::Result<()> {
                self.0.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        }
        for (strict, phase, delivered) in [
            (true, AuditPhase::Intent, 0),
            (true, AuditPhase::Outcome, 1),
            (false, AuditPhase::Intent, 1),
            (false, AuditPhase::Outcome, 1),
        ] {
            let counting = Arc::new(Counting(AtomicUsize::new(0)));
            // A file that is open for reading only takes nothing.
            let file = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
            let both = Both {
                file: crate::report::audit::JsonLines::new(std::fs::File::open(file).unwrap()),
                sink: counting.clone(),
                strict,
            };
            let mut record = crate::report::audit::tests::sample();
            record.phase = phase;
            both.record(&record).unwrap_err();
            assert_eq!(counting.0.load(Ordering::Relaxed), delivered);
        }
    }
}
