//! The options of a client: their names in JSON, their types, and their defaults.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::Value;

use crate::error::secret::Secret;
use crate::http::Timeouts;
use crate::http::ureq_transport::ProxyChoice;
use crate::session::limiter::RateLimit;
use crate::session::retry::RetryPolicy;
use crate::update::core::EndedPolicy;
use crate::values::attributes::ValidationLimits;
use crate::values::schema::Schema;

/// The options of a client that are data. A [`Settings`](crate::Settings) object has these fields,
/// and a [`ClientBuilder`](crate::ClientBuilder) a method for each.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Options {
    pub(crate) region: Option<String>,
    pub(crate) client_id: Option<String>,
    pub(crate) client_secret: Option<Secret>,
    pub(crate) access_token: Option<Secret>,
    pub(crate) base_url: Option<String>,
    pub(crate) login_url: Option<String>,
    pub(crate) allow_http: bool,
    #[serde(rename = "ratePerMinute", deserialize_with = "per_minute")]
    pub(crate) rate_limit: RateLimit,
    pub(crate) retry: RetryPolicy,
    pub(crate) timeouts: Timeouts,
    pub(crate) validation_limits: ValidationLimits,
    pub(crate) schema: Option<Schema>,
    pub(crate) audit: AuditOptions,
    pub(crate) metadata_source: String,
    pub(crate) ended_conversations: EndedPolicy,
    pub(crate) secure_values_in_events: bool,
    #[serde(deserialize_with = "proxy")]
    pub(crate) proxy: ProxyChoice,
    pub(crate) root_certificates_file: Option<PathBuf>,
    #[serde(deserialize_with = "pem")]
    pub(crate) root_certificates: Option<Vec<u8>>,
    pub(crate) max_idle_connections: usize,
    pub(crate) max_response_body: usize,
    pub(crate) user_agent: String,
    pub(crate) version_cache: usize,
    pub(crate) jitter_seed: Option<u64>,
}

/// The options of the audit trail.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct AuditOptions {
    pub(crate) file: Option<PathBuf>,
    pub(crate) strict: bool,
    pub(crate) values: bool,
    pub(crate) secure_values: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            region: None,
            client_id: None,
            client_secret: None,
            access_token: None,
            base_url: None,
            login_url: None,
            allow_http: false,
            rate_limit: RateLimit::default(),
            retry: RetryPolicy::default(),
            timeouts: Timeouts::default(),
            validation_limits: ValidationLimits::default(),
            schema: None,
            audit: AuditOptions::default(),
            metadata_source: "external-integration".to_owned(),
            ended_conversations: EndedPolicy::default(),
            secure_values_in_events: false,
            proxy: ProxyChoice::Environment,
            root_certificates_file: None,
            root_certificates: None,
            max_idle_connections: 64,
            max_response_body: 1 << 20,
            user_agent: concat!("genesys-attributes/", env!("CARGO_PKG_VERSION")).to_owned(),
            version_cache: 10_000,
            jitter_seed: None,
        }
    }
}

fn per_minute<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RateLimit, D::Error> {
    Ok(match u32::deserialize(deserializer)? {
        0 => RateLimit::unlimited(),
        requests => RateLimit::per_minute(requests),
    })
}

fn proxy<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ProxyChoice, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Bool(false) => Ok(ProxyChoice::None),
        Value::String(url) => Ok(ProxyChoice::Url(Secret::new(url))),
        _ => Err(D::Error::custom("must be a URL, or false for no proxy")),
    }
}

fn pem<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
    String::deserialize(deserializer).map(|text| Some(text.into_bytes()))
}
