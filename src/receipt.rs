//! What a caller gets back.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::target::TargetKind;
use crate::validate::Attributes;

/// How an update that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum Outcome {
    /// Written and confirmed.
    Applied,
    /// An attempt got no answer, and a read then found every value in place.
    AlreadyApplied,
    /// There was nothing to change, so nothing was written.
    Unchanged,
}

impl Outcome {
    /// The `status` of a batch outcome, such as `"alreadyApplied"`.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Applied => "applied",
            Outcome::AlreadyApplied => "alreadyApplied",
            Outcome::Unchanged => "unchanged",
        }
    }
}

/// The proof of an update.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Receipt {
    /// How it ended.
    pub outcome: Outcome,
    /// The conversation's id.
    pub conversation_id: String,
    /// What was written.
    #[serde(serialize_with = "kind_name")]
    pub target: TargetKind,
    /// The participant that was written (the one found, where a purpose was given), or the
    /// custom record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// The version now: what the platform told, or `None` where it did not.
    pub version: Option<String>,
    /// The version that the write was based on.
    pub previous_version: Option<String>,
    /// Writes sent.
    pub attempts: u32,
    /// API requests sent, reads and writes; the token's are not counted.
    pub requests: u32,
    /// From the first request of this update to the end of the last, waits in between included;
    /// a wait for the rate limit before the first one is not.
    #[serde(rename = "latencyMs", serialize_with = "millis")]
    pub latency: Duration,
    /// The id under which the platform knows the last request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// When it was done: RFC 3339, UTC, milliseconds.
    pub timestamp: String,
    /// The platform's answer to the write, where it was JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<Value>,
    /// The conversation is over, as far as a read of this update told: the platform's analytics
    /// does not keep what is written now.
    pub conversation_ended: bool,
    /// An audit record of this update could not be kept.
    pub audit_failed: bool,
    /// How many hooks panicked on this update's event.
    pub hook_panics: u32,
}

/// What a target holds at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Snapshot {
    /// The conversation's id.
    pub conversation_id: String,
    /// What was read.
    #[serde(serialize_with = "kind_name")]
    pub target: TargetKind,
    /// The participant that was read, or the custom record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// The version, where the target has one.
    pub version: Option<String>,
    /// The attributes.
    pub attributes: Attributes,
    /// The conversation is over, as far as this read tells.
    pub conversation_ended: bool,
}

/// Who the credentials are: the answer of `GET /api/v2/tokens/me`.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    /// Until when the token is good: RFC 3339, UTC. `None` for a given access token, whose end
    /// the platform does not tell.
    pub expires_at: Option<String>,
}

fn millis<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(whole_millis(*duration))
}

fn kind_name<S: serde::Serializer>(kind: &TargetKind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(kind.name())
}

/// A duration as records write it: in whole milliseconds.
pub(crate) fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
