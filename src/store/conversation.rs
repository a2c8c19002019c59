//! The attributes of a conversation itself, by the conversation-level endpoint, which today's
//! public API does not offer: for gateways and stand-ins that speak it.
//!
//! - Read: `GET /api/v2/conversations/{id}`. The version is the body's `version` (text or number),
//!   or else the entity tag. Top-level `attributes` are read where there are any.
//! - Write: `PATCH …/attributes` with `If-Match` and `{attributes, metadata: {source, timestamp}}`.
//! - Conflict: 412, and 409. The answer to a write may give the next version.
//! - Values: strings, integers and booleans within [`ValidationLimits`](crate::values::attributes::ValidationLimits).

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Change, ConversationBody, Kind, ReadFailure, TargetKind, TargetState, Write, json_bytes,
    nothing_to_write_on, unusable,
};
use crate::error::Result;
use crate::http::{Method, Response};
use crate::values::attributes::{Attributes, Values};
use crate::values::version::{entity_tag, same_form, version_of};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Conversation;

impl Kind for Conversation {
    const KIND: TargetKind = TargetKind::Conversation;
    const VALUES: Values = Values::Typed;

    fn description(&self) -> String {
        "conversation ".to_owned()
    }

    fn known(&self, cached: Option<String>) -> Option<TargetState> {
        Some(TargetState {
            version: Some(cached?),
            ..TargetState::default()
        })
    }

    fn read_path(&self) -> Cow<'static, str> {
        Cow::Borrowed("")
    }

    fn parse(&self, response: &Response) -> Result<TargetState, ReadFailure> {
        let read: ConversationBody = response.object_of()?;
        let version = version_of(read.version.as_ref(), response).ok_or_else(|| {
            let mut failure = unusable(
                "it has no version, so the write could not be locked; the platform's \
                 conversations have none: use the participant, secure or custom target",
            );
            // None of the others has one, either.
            failure.error = failure.error.with_endpoint_missing(true);
            failure
        })?;
        Ok(TargetState {
            version: Some(version),
            ended: read.ended(),
            attributes: read.attributes,
            ..TargetState::default()
        })
    }

    fn write(&self, path: String, change: &Change<'_>, state: &TargetState) -> Result<Write> {
        let version = state
            .version
            .as_deref()
            .ok_or_else(|| nothing_to_write_on("no version to lock the write with"))?;
        Ok(Write {
            method: Method::Patch,
            path: path + "/attributes",
            if_match: Some(entity_tag(version)),
            body: json_bytes(&ConversationPatch {
                attributes: change.set,
                metadata: Metadata {
                    source: change.source,
                    timestamp: change.timestamp,
                },
            })?,
        })
    }

    fn is_conflict(&self, response: &Response) -> bool {
        matches!(response.status(), 409 | 412)
    }

    /// Plain text is sent as an entity tag: both name the same version.
    fn is_version(&self, now: &str, demanded: &str) -> bool {
        now == demanded || entity_tag(demanded) == now
    }

    /// Where it is of the same form as the one that the write was locked with.
    fn version_written(&self, state: &TargetState, response: &Response) -> Option<String> {
        #[derive(Deserialize)]
        struct Written {
            #[serde(default)]
            version: Option<Value>,
        }
        if !response.is_whole() {
            return None;
        }
        let in_body = response
            .object_of::<Written>()
            .ok()
            .and_then(|body| body.version);
        version_of(in_body.as_ref(), response)
            .filter(|version| same_form(version, state.version.as_deref().unwrap_or_default()))
    }

    /// The version that the last write returned.
    fn cache_key<'k>(&self, conversation: &'k str) -> Option<Cow<'k, str>> {
        Some(Cow::Borrowed(conversation))
    }

    fn is_guarded(&self, key: &str) -> bool {
        key.starts_with("system.")
    }

    fn shows_end(&self) -> bool {
        true
    }

    fn endpoint_missing(&self, status: u16) -> bool {
        matches!(status, 404 | 405)
    }

    fn advice(&self, status: u16, endpoint_missing: bool) -> Option<String> {
        let advice = match status {
            _ if endpoint_missing => {
                "the conversation exists, but this organization does not offer the \
                 conversation-level endpoint: write participant, secure or custom attributes instead"
            }
            403 => {
                "the conversation-level endpoint asks for conversation:attributes:write and \
                 conversation:read"
            }
            _ => return None,
        };
        Some(advice.to_owned())
    }
}

#[derive(Serialize)]
struct ConversationPatch<'a> {
    attributes: &'a Attributes,
    metadata: Metadata<'a>,
}

#[derive(Serialize)]
struct Metadata<'a> {
    source: &'a str,
    timestamp: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversation_version_of_another_form_in_a_write_answer_is_not_used() {
        let at = |version: &str| TargetState {
            version: Some(version.to_owned()),
            ..TargetState::default()
        };
        let tagged = |tag: &str| Response::new(200).with_header("ETag", tag).with_body("{}");
        let body = Response::new(200).with_body(r#"{"version":"8"}"#);
        for (state, response, version) in [
            (at("7"), &body, Some("8")),
            (at("7"), &tagged("\"hash\""), None),
            (at("\"7\""), &tagged("\"8\""), Some("\"8\"")),
            (at("\"7\""), &tagged("W/\"8\""), None),
            (at("W/\"7\""), &tagged("W/\"8\""), Some("W/\"8\"")),
            (at("\"7\""), &body, None),
            (at("7"), &body.clone().with_broken_body("cut"), None),
        ] {
            assert_eq!(
                Conversation.version_written(&state, response).as_deref(),
                version
            );
        }
    }

    #[test]
    fn conversation_end_is_read_from_state_or_end_time() {
        for (body, ended) in [
            (r#"{"version":1}"#, None),
            (r#"{"version":1,"state":"connected"}"#, None),
            (r#"{"version":1,"state":"terminated"}"#, Some("terminated")),
            (r#"{"version":1,"state":"abandoned"}"#, Some("abandoned")),
            (r#"{"version":1,"endTime":null}"#, None),
            (
                r#"{"version":1,"endTime":"2026-01-01T00:00:00Z"}"#,
                Some("ended"),
            ),
        ] {
            let state = Conversation
                .parse(&Response::new(200).with_body(body))
                .unwrap();
            assert_eq!(state.ended.as_deref(), ended, "{body}");
        }
    }
}
