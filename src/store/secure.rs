//! The secure attributes of a conversation: what must not be seen by everybody. They need a key
//! configured in the organization.
//!
//! - Read: `GET …/secureattributes` → `attributes` and `version`. A map that was never written may
//!   have no version.
//! - Write: `PUT` of the whole merged map with `version` in the body; unlocked, a `PATCH` of the
//!   changed keys without a version.
//! - Conflict: 409. Keys can be removed by a locked write.
//! - Values: text. They stay out of events, audit records and messages.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::Value;

use super::{
    AttributesPatch, Change, Kind, ReadFailure, TargetKind, TargetState, Write, attributes_in,
    json_bytes, unusable,
};
use crate::error::Result;
use crate::http::{Method, Response};
use crate::values::attributes::{Attributes, Values};
use crate::values::version::{json_version, version_in_body};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Secure {
    pub(super) unlocked: bool,
}

impl Kind for Secure {
    const KIND: TargetKind = TargetKind::Secure;
    const VALUES: Values = Values::Text;

    fn description(&self) -> String {
        "secure attributes of conversation ".to_owned()
    }

    fn is_locked(&self) -> bool {
        !self.unlocked
    }

    fn can_remove(&self) -> bool {
        !self.unlocked
    }

    fn is_confidential(&self) -> bool {
        true
    }

    fn known(&self, _cached: Option<String>) -> Option<TargetState> {
        self.unlocked.then(TargetState::default)
    }

    fn read_path(&self) -> Cow<'static, str> {
        Cow::Borrowed("/secureattributes")
    }

    fn advice(&self, status: u16, _: bool) -> Option<String> {
        (status == 403).then(|| {
            "secure attributes ask for conversation:participant:attributesview and \
             conversation:participant:attributesedit"
                .to_owned()
        })
    }

    fn parse(&self, response: &Response) -> Result<TargetState, ReadFailure> {
        let mut read = response.object()?;
        let version = version_in_body(read.get("version"));
        // Only a map that was never written has no version, and the write of one replaces all that
        // is there: an answer that speaks of something else, or whose version cannot be read, must
        // not pass for it.
        let unreadable_version = read
            .get("version")
            .is_some_and(|version| !version.is_null());
        let foreign = !read.is_empty() && !read.contains_key("attributes") || unreadable_version;
        let attributes = attributes_in(&mut read, "attributes")?;
        if version.is_none() && (foreign || !attributes.is_empty()) {
            return Err(unusable("it has no version to lock the write with"));
        }
        Ok(TargetState {
            version,
            attributes: Some(attributes),
            ..TargetState::default()
        })
    }

    fn write(&self, path: String, change: &Change<'_>, state: &TargetState) -> Result<Write> {
        let path = path + "/secureattributes";
        if self.unlocked {
            return Ok(Write {
                method: Method::Patch,
                path,
                if_match: None,
                body: json_bytes(&AttributesPatch {
                    attributes: change.set,
                })?,
            });
        }
        let mut merged = state.attributes.clone().unwrap_or_default();
        for key in change.remove {
            merged.remove(key);
        }
        for (key, value) in change.set {
            merged.insert(key.clone(), value.clone());
        }
        Ok(Write {
            method: Method::Put,
            path,
            if_match: None,
            body: json_bytes(&SecurePut {
                attributes: &merged,
                version: state.version.as_deref().map(json_version),
            })?,
        })
    }
}

#[derive(Serialize)]
struct SecurePut<'a> {
    attributes: &'a Attributes,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKED: Secure = Secure { unlocked: false };

    #[test]
    fn secure_map_without_a_version_is_only_one_that_was_never_written() {
        for (body, version) in [
            (r#"{}"#, Ok(None)),
            (r#"{"attributes":{}}"#, Ok(None)),
            (r#"{"attributes":{},"version":null}"#, Ok(None)),
            (r#"{"attributes":{"a":"1"},"version":3}"#, Ok(Some("3"))),
            (r#"{"version":7}"#, Ok(Some("7"))),
            (r#"{"attributes":{"a":"1"}}"#, Err(())),
            (r#"{"attributes":{},"version":[]}"#, Err(())),
            (r#"{"message":"hello"}"#, Err(())),
            (r#"{"attributes":[]}"#, Err(())),
        ] {
            let read = LOCKED.parse(&Response::new(200).with_body(body));
            let read = read.map(|state| state.version).map_err(|_| ());
            assert_eq!(
                read,
                version.map(|v: Option<&str>| v.map(str::to_owned)),
                "{body}"
            );
        }
    }

    #[test]
    fn secure_write_merges_sets_and_removals_into_the_map_that_was_read() {
        let state = LOCKED
            .parse(
                &Response::new(200)
                    .with_body(r#"{"attributes":{"keep":"1","old":"2","set":"3"},"version":4}"#),
            )
            .unwrap();
        let set = Attributes::from_iter([("set".to_owned(), "new".into())]);
        let change = Change {
            set: &set,
            remove: &["old".to_owned()],
            source: "",
            timestamp: "",
        };
        let write = LOCKED.write(String::new(), &change, &state).unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&write.body).unwrap(),
            serde_json::json!({ "attributes": { "keep": "1", "set": "new" }, "version": 4 })
        );
    }
}
