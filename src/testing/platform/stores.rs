//! The stores of a conversation: what they hold, how they are read and written, and what is a conflict.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{Answer, Call, START_TIME, Store, VersionStyle, Write};

/// What a write that took effect leads to.
type Written = Result<(Answer, Write), Answer>;

/// A conversation with its stores.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Conversation {
    /// Of the conversation-level attributes.
    pub version: u64,
    /// The conversation-level attributes.
    pub attributes: Map<String, Value>,
    /// As read; none by default.
    pub state: Option<String>,
    /// As read; a conversation with one has ended.
    pub end_time: Option<String>,
    /// In the order read.
    pub participants: Vec<Participant>,
    /// `None`: never written. GET then tells no version, and the first PUT needs none.
    pub secure: Option<Secure>,
    /// By id.
    pub custom: BTreeMap<String, Record>,
}

/// A participant of a conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Participant {
    /// Unique in the conversation.
    pub id: String,
    /// `customer`, `agent`, …
    pub purpose: String,
    /// As read; a participant with one has left.
    pub end_time: Option<String>,
    /// Text only.
    pub attributes: BTreeMap<String, String>,
}

/// The secure attributes of a conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Secure {
    /// Counts the writes.
    pub version: u64,
    /// Text only.
    pub attributes: BTreeMap<String, String>,
}

/// A custom record of a conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// Counts the writes.
    pub version: u64,
    /// Division ids. On the wire, both ways: a list of these strings.
    pub divisions: Vec<String>,
    /// The schema's id. On the wire: `schemaId` in requests, `schema: {id}` in answers.
    pub schema: String,
    /// Any JSON.
    pub attributes: Map<String, Value>,
}

impl Default for Conversation {
    fn default() -> Conversation {
        Conversation {
            version: 1,
            attributes: Map::new(),
            state: None,
            end_time: None,
            participants: Vec::new(),
            secure: None,
            custom: BTreeMap::new(),
        }
    }
}

impl Conversation {
    pub(super) fn live(id: &str, version: u64) -> Conversation {
        // The customer comes second, so that taking the first participant is not enough.
        let participant = |purpose: &str| Participant {
            id: format!("{id}-{purpose}"),
            purpose: purpose.to_owned(),
            ..Participant::default()
        };
        Conversation {
            version,
            participants: vec![participant("agent"), participant("customer")],
            ..Conversation::default()
        }
    }

    pub(super) fn read(&self, id: &str, style: VersionStyle) -> Answer {
        let participants: Vec<Value> = self.participants.iter().map(Participant::body).collect();
        let mut body = json!({
            "id": id,
            "startTime": START_TIME,
            "address": "tel:+13175550100",
            "recordingState": "NONE",
            "securePause": false,
            "participants": participants,
            "divisions": [],
            "recentTransfers": [],
            "attributes": self.attributes,
            "selfUri": format!("/api/v2/conversations/{id}"),
        });
        if let Some(end_time) = &self.end_time {
            body["endTime"] = json!(end_time);
        }
        if let Some(state) = &self.state {
            body["state"] = json!(state);
        }
        Answer::versioned(body, self.version, style)
    }

    /// As one of many: without attributes, and other names than a read of its own has.
    pub(super) fn in_bulk(&self, id: &str) -> Value {
        let participants: Vec<Value> = self.participants.iter().map(Participant::in_bulk).collect();
        let mut body = json!({
            "conversationId": id,
            "conversationStart": START_TIME,
            "divisionIds": [],
            "participants": participants,
        });
        if let Some(end_time) = &self.end_time {
            body["conversationEnd"] = json!(end_time);
        }
        body
    }

    pub(super) fn patch(&mut self, id: &str, call: &Call, style: VersionStyle) -> Written {
        let body = call.object()?;
        let attributes = attributes_of(&body)?;
        for (key, value) in attributes {
            if !is_conversation_key(key) || !is_conversation_value(value) {
                let text = format!("Value is not valid for attribute [{key}].");
                return Err(Answer::bad_request(&text));
            }
        }
        if attributes.is_empty() {
            return Err(Answer::bad_request("attributes must not be empty."));
        }
        if body.get("metadata").is_some_and(|value| !value.is_object()) {
            return Err(Answer::bad_request("metadata must be an object."));
        }
        let Some(if_match) = call.header("if-match") else {
            let text = "The If-Match header is required.";
            return Err(Answer::error(428, "precondition.required", text));
        };
        // Quoted, as HTTP wants it: a bare version is a mistake of the client, not a conflict.
        let quoted = if_match.strip_prefix('"');
        let Some(expected) = quoted.and_then(|rest| rest.strip_suffix('"')) else {
            let text = "The If-Match header must be a quoted version.";
            return Err(Answer::bad_request(text));
        };
        if expected != self.version.to_string() {
            let text = "The version in If-Match is not the current version of the conversation.";
            return Err(Answer::error(412, "precondition.failed", text).conflict());
        }
        let before = self.attributes.clone();
        self.attributes.extend(attributes.clone());
        self.version += 1;
        let write = Write::new(Store::Conversation, attributes, &before, &self.attributes);
        let body = json!({"id": id, "attributes": self.attributes});
        let answer = Answer::versioned(body, self.version, style);
        Ok((answer, write.version(self.version)))
    }

    pub(super) fn patch_participant(&mut self, id: &str, call: &Call) -> Written {
        let participant = self.participants.iter_mut().find(|one| one.id == id);
        let participant = participant.ok_or_else(|| Answer::platform_error(404))?;
        let attributes = strings_of(&call.object()?)?;
        let before = map_of(&participant.attributes);
        let sent = map_of(&attributes);
        participant.attributes.extend(attributes);
        let after = map_of(&participant.attributes);
        let store = Store::Participant(id.to_owned());
        Ok((
            Answer::empty(202),
            Write::new(store, &sent, &before, &after),
        ))
    }

    pub(super) fn read_secure(&self) -> Answer {
        let body = match &self.secure {
            None => json!({"attributes": {}}),
            Some(secure) => json!({"attributes": secure.attributes, "version": secure.version}),
        };
        Answer::json(200, &body)
    }

    pub(super) fn patch_secure(&mut self, call: &Call) -> Written {
        let attributes = strings_of(&call.object()?)?;
        let secure = self.secure.get_or_insert_default();
        let before = map_of(&secure.attributes);
        let sent = map_of(&attributes);
        secure.attributes.extend(attributes);
        secure.version += 1;
        let write = Write::new(Store::Secure, &sent, &before, &map_of(&secure.attributes));
        let answer = Answer::json(202, &json!("update request was accepted"));
        Ok((answer, write.version(secure.version)))
    }

    pub(super) fn put_secure(&mut self, call: &Call) -> Written {
        let body = call.object()?;
        let attributes = strings_of(&body)?;
        let current = self.secure.as_ref().map(|secure| secure.version);
        if version_of(&body)? != current {
            return Err(Answer::platform_error(409).conflict());
        }
        let version = current.unwrap_or(0) + 1;
        let sent = map_of(&attributes);
        let before = self.secure.take().unwrap_or_default();
        self.secure = Some(Secure {
            version,
            attributes,
        });
        let write = Write::new(Store::Secure, &sent, &map_of(&before.attributes), &sent);
        let answer = Answer::json(202, &json!("set request was accepted"));
        Ok((answer, write.version(version)))
    }

    pub(super) fn patch_custom(&mut self, call: &Call, conflict_as_400: bool) -> Written {
        let change = CustomChange::parse(call)?;
        let record = self.custom.get_mut(&change.id);
        let record = record.ok_or_else(|| Answer::platform_error(404))?;
        change.check_version(Some(record.version), conflict_as_400)?;
        let before = record.attributes.clone();
        record.attributes.extend(change.attributes.clone());
        // The platform's trap: what a PATCH leaves out survives, but for the divisions.
        record.divisions = change.divisions;
        record.version += 1;
        let store = Store::Custom(change.id);
        let write = Write::new(store, &change.attributes, &before, &record.attributes);
        Ok((Answer::empty(200), write.version(record.version)))
    }

    pub(super) fn put_custom(&mut self, call: &Call, conflict_as_400: bool) -> Written {
        let change = CustomChange::parse(call)?;
        let existing = self.custom.get(&change.id);
        change.check_version(existing.map(|record| record.version), conflict_as_400)?;
        let schema = match (existing, change.schema) {
            (None, None) => return Err(Answer::bad_request("schemaId is required.")),
            (None, Some(given)) => given,
            (Some(record), None) => record.schema.clone(),
            (Some(record), Some(given)) if given == record.schema => given,
            (Some(_), Some(_)) => return Err(Answer::bad_request("schemaId cannot be changed.")),
        };
        let before = existing.cloned().unwrap_or_default();
        let record = Record {
            version: before.version + 1,
            divisions: change.divisions,
            schema,
            attributes: change.attributes,
        };
        let answer = Answer::json(200, &json!({"id": change.id}));
        let store = Store::Custom(change.id.clone());
        let write = Write::new(
            store,
            &record.attributes,
            &before.attributes,
            &record.attributes,
        );
        let write = write.version(record.version);
        self.custom.insert(change.id, record);
        Ok((answer, write))
    }

    /// Another writer, in the store at `rest` of the path.
    pub(super) fn interfere(&mut self, rest: &[&str], call: &Call, key: String, value: Value) {
        match rest {
            [] | ["attributes"] => {
                self.attributes.insert(key, value);
                self.version += 1;
            }
            ["participants", participant, ..] => {
                let mut participants = self.participants.iter_mut();
                if let Some(found) = participants.find(|one| one.id == *participant) {
                    found.attributes.insert(key, text_of(value));
                }
            }
            ["secureattributes"] => {
                let secure = self.secure.get_or_insert_default();
                secure.attributes.insert(key, text_of(value));
                secure.version += 1;
            }
            ["customattributes", ..] => {
                let body = call.json();
                let named = body.get("id").and_then(Value::as_str);
                let Some(name) = rest.get(1).copied().or(named) else {
                    return;
                };
                let record = self.custom.entry(name.to_owned()).or_insert_with(|| {
                    let schema = body.get("schemaId").and_then(Value::as_str);
                    Record {
                        schema: schema.unwrap_or_default().to_owned(),
                        ..Record::default()
                    }
                });
                record.attributes.insert(key, value);
                record.version += 1;
            }
            _ => {}
        }
    }
}

impl Participant {
    fn body(&self) -> Value {
        let mut body = json!({
            "id": self.id,
            "startTime": START_TIME,
            "connectedTime": START_TIME,
            "purpose": self.purpose,
            "wrapupRequired": false,
            "mediaRoles": ["full"],
            "attributes": self.attributes,
        });
        if let Some(end_time) = &self.end_time {
            body["endTime"] = json!(end_time);
        }
        for media in [
            "calls",
            "callbacks",
            "chats",
            "cobrowsesessions",
            "emails",
            "messages",
            "screenshares",
            "socialExpressions",
            "videos",
            "internalMessages",
        ] {
            body[media] = json!([]);
        }
        body
    }

    fn in_bulk(&self) -> Value {
        json!({
            "participantId": self.id,
            "participantName": "Name",
            "purpose": self.purpose,
            "sessions": [{"mediaType": "voice"}],
        })
    }
}

impl Record {
    pub(super) fn body(&self, conversation: &str, id: &str) -> Value {
        json!({
            "id": id,
            "conversationId": conversation,
            "divisions": self.divisions,
            "schema": {"id": self.schema},
            "customAttributes": self.attributes,
            "version": self.version,
            "dateCreated": START_TIME,
            "dateModified": START_TIME,
        })
    }
}

impl Write {
    /// Who calls it knows the conversation.
    fn new(
        store: Store,
        sent: &Map<String, Value>,
        before: &Map<String, Value>,
        after: &Map<String, Value>,
    ) -> Write {
        let changed = after
            .iter()
            .filter(|(key, value)| before.get(*key) != Some(value));
        let gone: BTreeSet<&String> = before
            .keys()
            .filter(|key| !after.contains_key(*key))
            .collect();
        Write {
            conversation: String::new(),
            store,
            sent: sent.clone(),
            changed: changed.map(|(key, _)| key.clone()).collect(),
            removed: gone.into_iter().cloned().collect(),
            version: None,
        }
    }

    fn version(self, version: u64) -> Write {
        let version = Some(version);
        Write { version, ..self }
    }
}

/// The body of a PUT or PATCH of a custom record.
struct CustomChange {
    id: String,
    divisions: Vec<String>,
    version: Option<u64>,
    schema: Option<String>,
    attributes: Map<String, Value>,
}

impl CustomChange {
    fn parse(call: &Call) -> Result<CustomChange, Answer> {
        let body = call.object()?;
        let text = |name: &str| match body.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
            Some(_) => Err(Answer::bad_request(&format!("{name} must be a string."))),
        };
        let wrong_divisions = || Answer::bad_request("divisions must be a list of division ids.");
        let divisions = match body.get("divisions") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(list)) => list
                .iter()
                .map(|one| one.as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or_else(wrong_divisions)?,
            Some(_) => return Err(wrong_divisions()),
        };
        let attributes = body.get("customAttributes").and_then(Value::as_object);
        Ok(CustomChange {
            id: text("id")?.ok_or_else(|| Answer::bad_request("id is required."))?,
            divisions,
            version: version_of(&body)?,
            schema: text("schemaId")?,
            attributes: attributes
                .cloned()
                .ok_or_else(|| Answer::bad_request("customAttributes is required."))?,
        })
    }

    fn check_version(&self, current: Option<u64>, conflict_as_400: bool) -> Result<(), Answer> {
        let Some(given) = self.version else {
            return Ok(());
        };
        match current {
            Some(current) if current == given => Ok(()),
            current if conflict_as_400 => {
                let current = current.unwrap_or(0);
                let text =
                    format!("Version [{given}] does not match the current version [{current}].");
                Err(Answer::bad_request(&text).conflict())
            }
            _ => Err(Answer::platform_error(409).conflict()),
        }
    }
}

fn attributes_of(body: &Map<String, Value>) -> Result<&Map<String, Value>, Answer> {
    let attributes = body.get("attributes").and_then(Value::as_object);
    attributes.ok_or_else(|| Answer::bad_request("attributes must be an object."))
}

fn strings_of(body: &Map<String, Value>) -> Result<BTreeMap<String, String>, Answer> {
    let attributes = attributes_of(body)?.iter();
    attributes
        .map(|(key, value)| match value {
            Value::String(text) => Ok((key.clone(), text.clone())),
            _ => Err(Answer::bad_request(&format!(
                "Value of attribute [{key}] must be a string."
            ))),
        })
        .collect()
}

fn map_of(strings: &BTreeMap<String, String>) -> Map<String, Value> {
    let pairs = strings.iter();
    pairs
        .map(|(key, text)| (key.clone(), Value::from(text.as_str())))
        .collect()
}

fn version_of(body: &Map<String, Value>) -> Result<Option<u64>, Answer> {
    match body.get("version") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(version) => Ok(Some(version)),
            None => Err(Answer::bad_request("version must be an integer.")),
        },
    }
}

fn is_conversation_key(key: &str) -> bool {
    (1..=128).contains(&key.encode_utf16().count())
}

fn is_conversation_value(value: &Value) -> bool {
    match value {
        Value::Bool(_) => true,
        Value::String(text) => text.encode_utf16().count() <= 1024,
        // `85.0` is refused: a client is to send integers as such.
        Value::Number(number) => number.as_u64().is_some_and(|number| number <= 999_999_999),
        _ => false,
    }
}

fn text_of(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}
