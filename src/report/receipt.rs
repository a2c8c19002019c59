//! What a caller gets back.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::names::named_enum;
use crate::error::{Error, ErrorKind, Result, clip, one_line};
use crate::util::date::short;
use crate::values::attributes::Attributes;
use crate::values::kind::TargetKind;
use crate::values::lenient::{Lenient, LenientMap};

named_enum! {
    /// How an update that did not fail ended.
    pub enum Outcome, "outcome" {
        /// Written and confirmed.
        Applied = "applied",
        /// The outcome of a write was unknown, and a read then found every value in place.
        AlreadyApplied = "alreadyApplied",
        /// There was nothing to change, so nothing was written.
        Unchanged = "unchanged",
    }
}

named_enum! {
    /// The `status` of an audit record or of a batch's line.
    pub enum Status, "status" {
        /// Not known yet: the record is an intent.
        Pending = "pending",
        /// Written and confirmed.
        Applied = "applied",
        /// The outcome of a write was unknown, and a read then found every value in place.
        AlreadyApplied = "alreadyApplied",
        /// There was nothing to change.
        Unchanged = "unchanged",
        /// In an audit: it failed after its intent was recorded. In a batch: it failed, for any
        /// reason.
        Failed = "failed",
        /// It was refused before anything was written: by validation, a guard or a failed read.
        Refused = "refused",
        /// Not tried: an earlier line of the same conversation failed in a way that may pass, or
        /// the batch stopped.
        Skipped = "skipped",
    }
}

impl From<Outcome> for Status {
    fn from(outcome: Outcome) -> Status {
        match outcome {
            Outcome::Applied => Status::Applied,
            Outcome::AlreadyApplied => Status::AlreadyApplied,
            Outcome::Unchanged => Status::Unchanged,
        }
    }
}

/// The proof of an update: what happened, gathered once.
///
/// `Debug` shows no values: of the platform's answer only its size.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Receipt {
    /// How it ended.
    pub outcome: Outcome,
    /// The conversation's id.
    pub conversation_id: String,
    /// What was written.
    pub target: TargetKind,
    /// The id of what was written: the participant (the one found, where a purpose was given), or
    /// the custom record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<String>,
    /// The version now: what the platform said, or `None` where it did not.
    pub version: Option<String>,
    /// The version that the write was based on.
    pub previous_version: Option<String>,
    /// Writes sent.
    pub attempts: u32,
    /// API requests sent, reads and writes; the login's are not counted.
    pub requests: u32,
    /// From the first request of this update to the end of the last, waits in between included;
    /// a wait for the rate limit before the first one is not.
    #[serde(rename = "latencyMs", with = "crate::util::date::millis")]
    pub latency: Duration,
    /// The id under which the platform knows the last request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// When it was done. In records: RFC 3339, UTC, milliseconds.
    #[serde(with = "crate::util::date::text")]
    pub timestamp: SystemTime,
    /// Whether the conversation has ended, when the platform's analytics does not keep what is
    /// written any more; `None` where no read of this update showed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversation_ended: Option<bool>,
    /// The values were read back after the write; see [`Update::verify`](crate::Update::verify).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verified: bool,
    /// An audit record of this update could not be kept.
    pub audit_failed: bool,
    /// How many hooks panicked on this update's event.
    pub hook_panics: u32,
    /// The platform's answer to the write, as it came.
    #[serde(
        rename = "response",
        default,
        skip_serializing_if = "Answer::is_not_json"
    )]
    pub(crate) answer: Answer,
}

/// A body that is parsed when somebody asks.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Answer(pub(crate) Vec<u8>);

impl Answer {
    fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.0).ok()
    }

    fn is_not_json(&self) -> bool {
        self.json().is_none()
    }
}

impl Serialize for Answer {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Answer {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(|json| Answer(json.to_string().into_bytes()))
    }
}

impl Receipt {
    /// The platform's answer to the write, where it was JSON. It is parsed at each call.
    pub fn response(&self) -> Option<Value> {
        self.answer.json()
    }
}

/// One line, such as `applied: c-1 / p-1, version 7 (was 6), 1 write, 2 requests, 41.2 ms`.
impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.outcome, one_line(&self.conversation_id))?;
        if let Some(item) = &self.resource_id {
            write!(f, " / {}", one_line(item))?;
        }
        match (&self.version, &self.previous_version) {
            (Some(now), Some(before)) if now != before => {
                write!(f, ", version {} (was {})", one_line(now), one_line(before))?;
            }
            (Some(now), _) => write!(f, ", version {}", one_line(now))?,
            (None, _) => {}
        }
        let many =
            |count: u32, noun| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
        let (writes, requests) = (many(self.attempts, "write"), many(self.requests, "request"));
        write!(f, ", {writes}, {requests}, {}", short(self.latency))
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt")
            .field("outcome", &self.outcome)
            .field("conversation_id", &self.conversation_id)
            .field("target", &self.target)
            .field("resource_id", &self.resource_id)
            .field("version", &self.version)
            .field("previous_version", &self.previous_version)
            .field("attempts", &self.attempts)
            .field("requests", &self.requests)
            .field("latency", &self.latency)
            .field("correlation_id", &self.correlation_id)
            .field("timestamp", &self.timestamp)
            .field("conversation_ended", &self.conversation_ended)
            .field("verified", &self.verified)
            .field("audit_failed", &self.audit_failed)
            .field("hook_panics", &self.hook_panics)
            .field("response_bytes", &self.answer.0.len())
            .finish()
    }
}

/// What a target holds at one moment. `Debug` shows keys, and no values.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Snapshot {
    /// The conversation's id.
    pub conversation_id: String,
    /// What was read.
    pub target: TargetKind,
    /// The id of what was read: the participant, or the custom record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<String>,
    /// The version, where the target has one.
    pub version: Option<String>,
    /// The attributes.
    pub attributes: Attributes,
    /// Whether the conversation has ended; `None` where the read does not show it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversation_ended: Option<bool>,
}

impl Snapshot {
    /// The value of `key` as a `T`. `None` when the key is not there or is null.
    ///
    /// Participants and secure attributes hold text only: numbers and booleans are read out of it.
    ///
    /// # Errors
    ///
    /// `InvalidInput`, naming the key and never the value, when it is not a `T`.
    ///
    /// ```no_run
    /// # use genesys_attributes::{Client, Target};
    /// # let client = Client::from_env()?;
    /// let now = client.read(&Target::participant("5b2f0c1e", "customer"))?;
    /// let calls: u32 = now.get("calls")?.unwrap_or(0);
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        match self.attributes.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(Lenient(value)).map(Some).map_err(|_| {
                Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "the value of {:?} is not of the type that was asked for: read it as \
                         another type, or correct it at the platform",
                        clip(key, 64)
                    ),
                )
            }),
        }
    }

    /// All attributes as one `T`, a struct whose fields are keys, say.
    ///
    /// Where a store holds text only, a field that is a number or a boolean in `T` is read out of
    /// it, and text stays text. That cannot be seen of fields inside of `#[serde(flatten)]` and of
    /// untagged or internally tagged enums: what they get is as it was stored.
    ///
    /// # Errors
    ///
    /// `InvalidInput` when they do not fit.
    pub fn attributes_as<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(LenientMap(&self.attributes)).map_err(|_| {
            Error::new(
                ErrorKind::InvalidInput,
                "the attributes do not fit the type that was asked for: check its fields against \
                 the keys and their values",
            )
        })
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("conversation_id", &self.conversation_id)
            .field("target", &self.target)
            .field("resource_id", &self.resource_id)
            .field("version", &self.version)
            .field("keys", &Vec::from_iter(self.attributes.keys()))
            .field("conversation_ended", &self.conversation_ended)
            .finish()
    }
}

/// Who the credentials are: the answer of `GET /api/v2/tokens/me`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Identity {
    /// The organization's id.
    pub organization_id: Option<String>,
    /// The organization's name.
    pub organization_name: Option<String>,
    /// The OAuth client's id.
    pub client_id: Option<String>,
    /// The OAuth client's name.
    pub client_name: Option<String>,
    /// Until when the token is good. `None` for a given access token, whose end the platform does
    /// not say. In records: RFC 3339, UTC.
    #[serde(with = "crate::util::date::text_or_null")]
    pub expires_at: Option<SystemTime>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn snapshot(attributes: Value) -> Snapshot {
        Snapshot {
            conversation_id: "c-1".into(),
            target: TargetKind::Participant,
            resource_id: None,
            version: None,
            attributes: attributes.as_object().cloned().unwrap_or_default(),
            conversation_ended: None,
        }
    }

    #[test]
    fn snapshot_get_reads_numbers_and_booleans_out_of_text() {
        let now = snapshot(json!({ "n": "7", "b": "true", "t": "x", "i": 5, "null": null }));
        assert_eq!(now.get::<u32>("n").unwrap(), Some(7));
        assert_eq!(now.get::<String>("n").unwrap().as_deref(), Some("7"));
        assert_eq!(now.get::<bool>("b").unwrap(), Some(true));
        assert_eq!(now.get::<i64>("i").unwrap(), Some(5));
        assert_eq!(now.get::<u32>("absent").unwrap(), None);
        assert_eq!(now.get::<u32>("null").unwrap(), None);
        let error = now.get::<u32>("t").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("\"t\""), "{error}");
    }

    #[test]
    fn snapshot_attributes_as_a_struct_reads_text_where_it_must() {
        #[derive(Deserialize, PartialEq, Debug)]
        struct Tier {
            name: String,
            score: u32,
        }
        let now = snapshot(json!({ "name": "gold", "score": "85", "other": "x" }));
        let tier = now.attributes_as::<Tier>().unwrap();
        assert_eq!((tier.name.as_str(), tier.score), ("gold", 85));
        let bad = snapshot(json!({ "name": "gold", "score": "secret" }));
        let error = bad.attributes_as::<Tier>().unwrap_err();
        assert!(!error.to_string().contains("secret"));
    }

    #[test]
    fn snapshot_attributes_as_reads_each_field_by_its_own_type() {
        #[derive(Deserialize, PartialEq, Debug)]
        struct Zip(u32);
        #[derive(Deserialize, PartialEq, Debug)]
        struct Mixed {
            code: String,
            flag: Option<String>,
            score: Option<u32>,
            vip: bool,
            ratio: f64,
            zip: Zip,
            absent: Option<u8>,
            list: Option<Vec<u8>>,
        }
        // Text that looks like a number or a boolean beside text that is read as one.
        let now = snapshot(json!({
            "code": "0042", "flag": "true", "score": " 85 ", "vip": "true", "ratio": "0.5",
            "zip": "12", "list": [1, 2]
        }));
        let mixed = Mixed {
            code: "0042".into(),
            flag: Some("true".into()),
            score: Some(85),
            vip: true,
            ratio: 0.5,
            zip: Zip(12),
            absent: None,
            list: Some(vec![1, 2]),
        };
        assert_eq!(now.attributes_as::<Mixed>().unwrap(), mixed);
        let numbers = snapshot(json!({ "a": "1", "b": 2 }));
        let map = numbers.attributes_as::<std::collections::BTreeMap<String, u8>>();
        assert_eq!(map.unwrap().into_values().collect::<Vec<_>>(), [1, 2]);
        let texts = snapshot(json!({ "a": "1", "b": "true" }));
        let map = texts.attributes_as::<std::collections::BTreeMap<String, String>>();
        assert_eq!(
            map.unwrap().into_values().collect::<Vec<_>>(),
            ["1", "true"]
        );
        assert_eq!(now.get::<Option<u32>>("score").unwrap(), Some(Some(85)));
        assert!(
            numbers
                .attributes_as::<std::collections::BTreeMap<String, bool>>()
                .is_err()
        );
    }

    #[test]
    fn status_and_outcome_names_read_back() {
        for status in Status::ALL {
            assert_eq!(status.name().parse::<Status>().unwrap(), *status);
            assert_eq!(serde_json::to_value(status).unwrap(), status.name());
        }
        assert_eq!(
            "alreadyApplied".parse::<Outcome>().unwrap(),
            Outcome::AlreadyApplied
        );
        assert!("pending".parse::<Outcome>().is_err());
    }

    #[test]
    fn receipt_snapshot_and_identity_read_back_from_their_json() {
        fn read_back<T: Serialize + DeserializeOwned>(value: &T) -> Value {
            let written = serde_json::to_value(value).unwrap();
            let again: T = serde_json::from_value(written.clone()).unwrap();
            assert_eq!(serde_json::to_value(again).unwrap(), written);
            written
        }
        let receipt = Receipt {
            outcome: Outcome::AlreadyApplied,
            conversation_id: "c-1".into(),
            target: TargetKind::Custom,
            resource_id: Some("r".into()),
            version: Some("2".into()),
            previous_version: None,
            attempts: 1,
            requests: 2,
            latency: Duration::from_millis(41),
            correlation_id: Some("abc".into()),
            timestamp: std::time::UNIX_EPOCH,
            conversation_ended: Some(true),
            verified: true,
            audit_failed: true,
            hook_panics: 3,
            answer: Answer(br#"{"version":2}"#.to_vec()),
        };
        assert_eq!(read_back(&receipt)["response"]["version"], 2);
        let bare = Receipt {
            resource_id: None,
            correlation_id: None,
            conversation_ended: None,
            verified: false,
            answer: Answer::default(),
            ..receipt
        };
        assert_eq!(read_back(&bare).get("response"), None);
        read_back(&snapshot(json!({ "a": 1.5, "b": [null] })));
        for expires_at in [None, Some(std::time::UNIX_EPOCH)] {
            read_back(&Identity {
                organization_id: Some("o".into()),
                organization_name: None,
                client_id: None,
                client_name: None,
                expires_at,
            });
        }
    }
}
