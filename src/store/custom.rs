//! A record of custom attributes: typed and searchable, after a schema of the organization.
//!
//! - Read: `GET …/customattributes/{record}` → `customAttributes`, `version`, `divisions`.
//! - Write: `PATCH …/customattributes` with the `version` and the record's `divisions`, since
//!   leaving those out clears them. A record that is absent is created by `PUT` when the update
//!   names a schema.
//! - Conflict: 409, or 400 with "does not match the current version".
//! - Values: any JSON; the platform checks it against the schema.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::Value;

use super::{
    Change, Kind, ReadFailure, TargetKind, TargetState, Write, attributes_in, encoded, identifier,
    json_bytes, unusable,
};
use crate::error::{Result, Violation};
use crate::http::{Method, Response};
use crate::session::problem;
use crate::values::attributes::{Attributes, Values};
use crate::values::version::{json_version, version_in_body};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Custom {
    pub(super) record: String,
    /// With which an absent record is created.
    pub(super) schema: Option<String>,
}

impl Kind for Custom {
    const KIND: TargetKind = TargetKind::Custom;
    const VALUES: Values = Values::Any;

    fn description(&self) -> String {
        format!("custom record {} of conversation ", self.record)
    }

    fn check(&self, found: &mut Vec<Violation>) {
        identifier("record", &self.record, found);
        if let Some(schema) = &self.schema {
            identifier("schema", schema, found);
        }
    }

    fn read_path(&self) -> Cow<'static, str> {
        ["/customattributes/", &encoded(&self.record)]
            .concat()
            .into()
    }

    fn parse(&self, response: &Response) -> Result<TargetState, ReadFailure> {
        let mut read = response.object()?;
        let version =
            version_in_body(read.get("version")).ok_or_else(|| unusable("it has no version"))?;
        Ok(TargetState {
            version: Some(version),
            attributes: Some(attributes_in(&mut read, "customAttributes")?),
            divisions: read.remove("divisions").filter(|list| !list.is_null()),
            exists: true,
            ..TargetState::default()
        })
    }

    fn write(&self, path: String, change: &Change<'_>, state: &TargetState) -> Result<Write> {
        Ok(Write {
            method: if state.exists {
                Method::Patch
            } else {
                Method::Put
            },
            path: path + "/customattributes",
            if_match: None,
            body: json_bytes(&CustomWrite {
                id: &self.record,
                // Required to create, and immutable afterwards.
                schema_id: self.schema.as_deref().filter(|_| !state.exists),
                divisions: state.divisions.as_ref(),
                version: state.version.as_deref().map(json_version),
                custom_attributes: change.set,
            })?,
        })
    }

    fn is_conflict(&self, response: &Response) -> bool {
        match response.status() {
            409 => true,
            400 => problem::message_of(response)
                .is_some_and(|text| text.contains("does not match the current version")),
            _ => false,
        }
    }

    fn resource_id(&self, _: &TargetState) -> Option<String> {
        Some(self.record.clone())
    }

    fn is_absent(&self, response: &Response) -> bool {
        response.status() == 404 && self.schema.is_some()
    }

    fn advice(&self, status: u16, _: bool) -> Option<String> {
        if status == 403 {
            return Some(
                "custom attributes ask for conversation:customAttributes permissions".into(),
            );
        }
        (status == 404 && self.schema.is_none()).then(|| {
            format!(
                "to create record {} by an update, give its schema id",
                self.record
            )
        })
    }

    fn approximate_size(&self) -> usize {
        self.record.len() + self.schema.as_ref().map_or(0, String::len)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CustomWrite<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_id: Option<&'a str>,
    /// As read: leaving them out, or empty, would clear them.
    #[serde(skip_serializing_if = "Option::is_none")]
    divisions: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<Value>,
    custom_attributes: &'a Attributes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn custom_write_keeps_divisions_and_names_the_schema_only_to_create() {
        let custom = Custom {
            record: "crm-1".into(),
            schema: Some("s-1".into()),
        };
        let set = Attributes::from_iter([("tier".to_owned(), 3.into())]);
        let change = Change {
            set: &set,
            remove: &[],
            source: "",
            timestamp: "",
        };
        let body = r#"{"version":4,"divisions":["d-1"],"customAttributes":{}}"#;
        let read = custom.parse(&Response::new(200).with_body(body)).unwrap();
        for (state, method, body) in [
            (
                read,
                Method::Patch,
                r#"{"id":"crm-1","divisions":["d-1"],"version":4,"customAttributes":{"tier":3}}"#,
            ),
            (
                TargetState::with(Attributes::new()),
                Method::Put,
                r#"{"id":"crm-1","schemaId":"s-1","customAttributes":{"tier":3}}"#,
            ),
        ] {
            let write = custom.write(String::new(), &change, &state).unwrap();
            assert_eq!(write.method, method);
            assert_eq!(String::from_utf8(write.body).unwrap(), body);
        }
    }

    #[test]
    fn custom_conflict_is_a_409_or_a_400_about_the_version() {
        let custom = Custom {
            record: "r".into(),
            schema: None,
        };
        for (status, message, conflict) in [
            (409, "", true),
            (
                400,
                "The version 3 does not match the current version 4",
                true,
            ),
            (400, "The schema does not allow this", false),
            (412, "", false),
        ] {
            let body = serde_json::json!({ "message": message }).to_string();
            let response = Response::new(status).with_body(body);
            assert_eq!(
                custom.is_conflict(&response),
                conflict,
                "{status} {message}"
            );
        }
    }
}
