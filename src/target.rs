//! What can be written, and how each kind speaks HTTP: where it is read, how it is written, where
//! its version travels, which answer is a conflict. Nothing outside this file knows which kind it
//! is writing.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result, Rule, Violation};
use crate::http::{Body, Method, Response};
use crate::problem;
use crate::validate::{Attributes, Values, same};

/// The kinds of targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TargetKind {
    /// The brief's conversation-level attributes.
    Conversation,
    /// The attributes of one participant.
    Participant,
    /// The conversation's secure attributes.
    Secure,
    /// A record of custom attributes.
    Custom,
}

impl TargetKind {
    /// The name used in JSON records, such as `"participant"`.
    pub fn name(self) -> &'static str {
        match self {
            TargetKind::Conversation => "conversation",
            TargetKind::Participant => "participant",
            TargetKind::Secure => "secure",
            TargetKind::Custom => "custom",
        }
    }
}

impl fmt::Display for TargetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One store of attributes of one conversation.
///
/// | target | read | write | lock | values |
/// |---|---|---|---|---|
/// | [`conversation`](Target::conversation) | GET conversation | PATCH with `If-Match` | version | strings, integers, booleans |
/// | [`participant`](Target::participant) | GET conversation | PATCH, changed keys only | none | text |
/// | [`secure`](Target::secure) | GET | PUT of the merged map, or an unlocked PATCH | version | text |
/// | [`custom`](Target::custom) | GET | PATCH, or PUT to create | version | any JSON that the schema allows |
///
/// The conversation target is the endpoint of the brief that this library was built from. The
/// Platform API does not offer it to today's public clients: on the live platform use the others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    conversation: String,
    store: Store,
    /// Only [`Store::Secure`] can do it; validation says so for the others.
    unlocked: bool,
    /// Only [`Store::Custom`] has one; validation says so for the others.
    schema: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Store {
    Conversation,
    Participant(String),
    Secure,
    Custom(String),
}

/// Whom a participant target means.
enum Who<'a> {
    Id(&'a str),
    /// The first purpose of the list that any participant has.
    Purpose(&'a [&'a str]),
}

/// What the platform and third-party clients call the person outside of the organization.
const CUSTOMER: [&str; 3] = ["customer", "external", "user"];

impl Target {
    /// The attributes of the conversation itself, by the conversation's id.
    pub fn conversation(conversation: impl Into<String>) -> Target {
        Target::of(conversation, Store::Conversation)
    }

    /// The attributes of one participant.
    ///
    /// `who` is `customer` (the first that exists of the purposes customer, external and user),
    /// `purpose:NAME` (exactly that purpose), or else the id of a participant. Participants that
    /// are still active come before those that left.
    pub fn participant(conversation: impl Into<String>, who: impl Into<String>) -> Target {
        Target::of(conversation, Store::Participant(who.into()))
    }

    /// The secure attributes of the conversation.
    pub fn secure(conversation: impl Into<String>) -> Target {
        Target::of(conversation, Store::Secure)
    }

    /// The record of custom attributes with the id `record`.
    pub fn custom(conversation: impl Into<String>, record: impl Into<String>) -> Target {
        Target::of(conversation, Store::Custom(record.into()))
    }

    fn of(conversation: impl Into<String>, store: Store) -> Target {
        Target {
            conversation: conversation.into(),
            store,
            unlocked: false,
            schema: None,
        }
    }

    pub(crate) fn set_unlocked(&mut self, unlocked: bool) {
        self.unlocked = unlocked;
    }

    pub(crate) fn set_schema(&mut self, schema: Option<String>) {
        self.schema = schema;
    }

    /// Which kind it is.
    pub fn kind(&self) -> TargetKind {
        match self.store {
            Store::Conversation => TargetKind::Conversation,
            Store::Participant(_) => TargetKind::Participant,
            Store::Secure => TargetKind::Secure,
            Store::Custom(_) => TargetKind::Custom,
        }
    }

    /// The conversation's id.
    pub fn conversation_id(&self) -> &str {
        &self.conversation
    }

    /// Whom a participant target means, as it was given.
    pub fn participant_selector(&self) -> Option<&str> {
        match &self.store {
            Store::Participant(who) => Some(who),
            _ => None,
        }
    }

    /// What of the conversation is written: the participant (the one that was found, where a
    /// purpose was given) or the record.
    pub(crate) fn item(&self, basis: &Basis) -> Option<String> {
        match &self.store {
            Store::Participant(who) => basis.participant.clone().or_else(|| Some(who.clone())),
            Store::Custom(record) => Some(record.clone()),
            Store::Conversation | Store::Secure => None,
        }
    }

    /// The id of the record of a custom target.
    pub fn record(&self) -> Option<&str> {
        match &self.store {
            Store::Custom(record) => Some(record),
            _ => None,
        }
    }

    /// Whether the write of a secure target gives up its lock.
    pub fn is_unlocked(&self) -> bool {
        self.unlocked
    }

    /// The schema with which an absent custom record is created.
    pub fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    fn who(&self) -> Option<Who<'_>> {
        const CUSTOMER_PURPOSES: &[&str] = &CUSTOMER;
        let who = self.participant_selector()?;
        Some(if who == "customer" {
            Who::Purpose(CUSTOMER_PURPOSES)
        } else if who.starts_with("purpose:") {
            Who::Purpose(&[])
        } else {
            Who::Id(who)
        })
    }

    /// What the values may be.
    pub(crate) fn values(&self) -> Values {
        match self.store {
            Store::Conversation => Values::Typed,
            Store::Participant(_) | Store::Secure => Values::Text,
            Store::Custom(_) => Values::Any,
        }
    }

    /// Whether a write carries a version that a competing write makes stale.
    pub(crate) fn is_locked(&self) -> bool {
        match self.store {
            Store::Conversation | Store::Custom(_) => true,
            Store::Participant(_) => false,
            Store::Secure => !self.unlocked,
        }
    }

    /// Whether a write replaces whatever is there by then: the first one, when there is no version
    /// yet. Sent a second time, it could undo what somebody else wrote after the first.
    pub(crate) fn replaces(&self, basis: &Basis) -> bool {
        self.is_locked() && basis.version.is_none()
    }

    /// Whether keys can be taken away.
    pub(crate) fn can_remove(&self) -> bool {
        self.store == Store::Secure && !self.unlocked
    }

    /// Whether a key may not be set once the conversation is over.
    pub(crate) fn is_guarded(&self, key: &str) -> bool {
        self.store == Store::Conversation && key.starts_with("system.")
    }

    /// Whether the values must stay out of events and audit.
    pub(crate) fn is_confidential(&self) -> bool {
        self.store == Store::Secure
    }

    /// What an error message calls it.
    pub(crate) fn description(&self) -> String {
        let conversation = &self.conversation;
        match &self.store {
            Store::Conversation => format!("conversation {conversation}"),
            Store::Participant(who) => format!("participant {who} of conversation {conversation}"),
            Store::Secure => format!("secure attributes of conversation {conversation}"),
            Store::Custom(record) => {
                format!("custom record {record} of conversation {conversation}")
            }
        }
    }

    /// An error with all that is wrong with the identifiers and options.
    pub(crate) fn checked(&self) -> Result<()> {
        let mut found = Vec::new();
        self.check(&mut found);
        if found.is_empty() {
            Ok(())
        } else {
            Err(Error::violated(found))
        }
    }

    /// What is wrong with the identifiers and options.
    pub(crate) fn check(&self, found: &mut Vec<Violation>) {
        identifier("conversationId", &self.conversation, found);
        match &self.store {
            Store::Participant(who) => {
                let id = who.strip_prefix("purpose:").unwrap_or(who);
                identifier("participant", id, found);
            }
            Store::Custom(record) => identifier("record", record, found),
            Store::Conversation | Store::Secure => {}
        }
        if self.unlocked && self.store != Store::Secure {
            found.push(Violation::new(
                "unlocked",
                Rule::Unsupported,
                format!("a {} target (only secure attributes can)", self.kind()),
            ));
        }
        match (&self.schema, &self.store) {
            (Some(schema), Store::Custom(_)) => identifier("schema", schema, found),
            (Some(_), _) => found.push(Violation::new(
                "schema",
                Rule::Unsupported,
                format!("a {} target (only custom records have one)", self.kind()),
            )),
            (None, _) => {}
        }
    }

    /// Under which key a client may remember what the next write needs, if that is possible.
    ///
    /// It is the version for a conversation, and the id found for a purpose. The other locked
    /// targets need the whole map or record for every write.
    pub(crate) fn memory_key(&self) -> Option<Cow<'_, str>> {
        match (&self.store, self.who()) {
            (Store::Conversation, _) => Some(Cow::Borrowed(&self.conversation)),
            // No identifier holds a '/'.
            (Store::Participant(who), Some(Who::Purpose(_))) => {
                Some(Cow::Owned(format!("{}/{who}", self.conversation)))
            }
            _ => None,
        }
    }

    /// What is known without reading: what was remembered or given, or nothing where nothing is
    /// needed. `None` means that the target must be read.
    pub(crate) fn known(
        &self,
        remembered: Option<String>,
        if_version: Option<&str>,
    ) -> Option<Basis> {
        let basis = Basis::default();
        match (&self.store, self.who()) {
            (Store::Conversation, _) => {
                let version = if_version.map(str::to_owned).or(remembered)?;
                Some(Basis {
                    version: Some(version),
                    ..basis
                })
            }
            (_, Some(Who::Id(id))) => Some(Basis {
                participant: Some(id.to_owned()),
                ..basis
            }),
            (_, Some(Who::Purpose(_))) => remembered.map(|id| Basis {
                participant: Some(id),
                ..basis
            }),
            (Store::Secure, _) if self.unlocked => Some(basis),
            _ => None,
        }
    }

    /// Where the target is read.
    pub(crate) fn read_path(&self) -> String {
        let conversation = ["/api/v2/conversations/", &encoded(&self.conversation)].concat();
        match &self.store {
            Store::Conversation | Store::Participant(_) => conversation,
            Store::Secure => conversation + "/secureattributes",
            Store::Custom(record) => {
                format!("{conversation}/customattributes/{}", encoded(record))
            }
        }
    }

    /// Whether the answer to a read means that there is nothing yet, and the write creates it.
    pub(crate) fn is_absent(&self, response: &Response) -> bool {
        response.status == 404 && self.record().is_some() && self.schema.is_some()
    }

    /// What else to do about an answer that is no success.
    pub(crate) fn advice(&self, response: &Response) -> Option<String> {
        match (&self.store, response.status) {
            (Store::Custom(record), 404) if self.schema.is_none() => Some(format!(
                "to create record {record} by an update, give its schema id"
            )),
            _ => None,
        }
    }

    /// Reads a successful answer of [`Target::read_path`].
    pub(crate) fn parse(&self, response: &Response) -> Result<Basis> {
        let unreadable = |why: String| {
            Error::new(
                ErrorKind::Protocol,
                format!("{}: the answer cannot be used: {why}", self.description()),
            )
            .with_http_status(response.status)
            .with_correlation_id(response.correlation_id().map(str::to_owned))
        };
        match &self.store {
            Store::Conversation => {
                let read: ConversationBody = response.object_of().map_err(unreadable)?;
                let version = version_of(read.version.as_ref(), response).ok_or_else(|| {
                    unreadable(
                        "it has no version, so the write could not be locked; the platform's \
                         conversations have none: use the participant, secure or custom target"
                            .into(),
                    )
                })?;
                let ended = read.ended();
                Ok(Basis {
                    version: Some(version),
                    attributes: read.attributes,
                    ended,
                    ..Basis::default()
                })
            }
            Store::Participant(_) => {
                let read: ConversationBody = response.object_of().map_err(unreadable)?;
                let participant = self.choose(read.participants.as_deref().unwrap_or_default())?;
                Ok(Basis {
                    participant: participant.id.clone(),
                    // A participant without the field has no attributes.
                    attributes: Some(participant.attributes.clone().unwrap_or_default()),
                    ended: read.ended(),
                    ..Basis::default()
                })
            }
            Store::Secure => {
                let mut read = response.object().map_err(unreadable)?;
                let version = told_version(read.get("version"));
                // Only a map that was never written has no version, and the write of one replaces
                // all that is there: an answer that speaks of something else, or whose version
                // cannot be read, must not pass for it.
                let foreign = !read.is_empty() && !read.contains_key("attributes")
                    || read
                        .get("version")
                        .is_some_and(|version| !version.is_null());
                let attributes = attributes_in(&mut read, "attributes").map_err(unreadable)?;
                if version.is_none() && (foreign || !attributes.is_empty()) {
                    return Err(unreadable(
                        "it has no version to lock the write with".into(),
                    ));
                }
                Ok(Basis {
                    version,
                    attributes: Some(attributes),
                    ..Basis::default()
                })
            }
            Store::Custom(_) => {
                let mut read = response.object().map_err(unreadable)?;
                let version = told_version(read.get("version"))
                    .ok_or_else(|| unreadable("it has no version".into()))?;
                Ok(Basis {
                    version: Some(version),
                    attributes: Some(
                        attributes_in(&mut read, "customAttributes").map_err(unreadable)?,
                    ),
                    divisions: read.remove("divisions").filter(|list| !list.is_null()),
                    exists: true,
                    ..Basis::default()
                })
            }
        }
    }

    /// The participant that is meant: active ones before ended ones, one and no more.
    fn choose<'p>(&self, participants: &'p [ParticipantBody]) -> Result<&'p ParticipantBody> {
        let selector = self.participant_selector().unwrap_or_default();
        let exact;
        let purposes: &[&str] = match self.who() {
            Some(Who::Purpose([])) | None => {
                exact = [selector.strip_prefix("purpose:").unwrap_or_default()];
                &exact
            }
            Some(Who::Purpose(list)) => list,
            Some(Who::Id(id)) => {
                return participants
                    .iter()
                    .find(|p| p.id.as_deref() == Some(id))
                    .ok_or_else(|| self.nobody(participants));
            }
        };
        let mut meant: Vec<&ParticipantBody> = Vec::new();
        for purpose in purposes {
            meant = participants
                .iter()
                .filter(|p| p.id.is_some() && p.purpose.as_deref() == Some(*purpose))
                .collect();
            if !meant.is_empty() {
                break;
            }
        }
        if meant.iter().any(|p| p.is_active()) {
            meant.retain(|p| p.is_active());
        }
        match meant.as_slice() {
            [one] => Ok(one),
            [] => Err(self.nobody(participants)),
            several => {
                let ids: Vec<&str> = several.iter().filter_map(|p| p.id.as_deref()).collect();
                Err(Error::violated(vec![Violation::new(
                    "participant",
                    Rule::Unsupported,
                    format!(
                        "{selector} means {} participants; give the id of one: {}",
                        ids.len(),
                        ids.join(", ")
                    ),
                )]))
            }
        }
    }

    fn nobody(&self, participants: &[ParticipantBody]) -> Error {
        let mut purposes: Vec<&str> = Vec::new();
        for purpose in participants.iter().filter_map(|p| p.purpose.as_deref()) {
            if !purposes.contains(&purpose) {
                purposes.push(purpose);
            }
        }
        let there = match purposes.as_slice() {
            [] => "no participants".to_owned(),
            some => format!("participants of the purposes {}", some.join(", ")),
        };
        Error::new(
            ErrorKind::NotFound,
            format!(
                "{}: there is none; the conversation has {there}",
                self.description()
            ),
        )
    }

    /// The request that writes `change` on top of `basis`.
    pub(crate) fn write(&self, change: &Change<'_>, basis: &Basis) -> Result<Write> {
        let path = self.read_path();
        let version = basis.version.as_deref();
        let body_version = || version.map(json_version);
        let no_lock = || {
            Error::new(
                ErrorKind::Internal,
                format!("{}: no version to write with", self.description()),
            )
        };
        match &self.store {
            Store::Conversation => {
                let version = version.ok_or_else(no_lock)?;
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
            Store::Participant(_) => {
                let participant = basis.participant.as_deref().ok_or_else(no_lock)?;
                Ok(Write {
                    method: Method::Patch,
                    path: format!("{path}/participants/{}/attributes", encoded(participant)),
                    if_match: None,
                    body: json_bytes(&AttributesPatch {
                        attributes: change.set,
                    })?,
                })
            }
            Store::Secure if self.unlocked => Ok(Write {
                method: Method::Patch,
                path,
                if_match: None,
                body: json_bytes(&AttributesPatch {
                    attributes: change.set,
                })?,
            }),
            Store::Secure => {
                let mut merged = basis.attributes.clone().unwrap_or_default();
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
                        version: body_version(),
                    })?,
                })
            }
            Store::Custom(record) => {
                let conversation = format!("/api/v2/conversations/{}", encoded(&self.conversation));
                Ok(Write {
                    method: if basis.exists {
                        Method::Patch
                    } else {
                        Method::Put
                    },
                    path: conversation + "/customattributes",
                    if_match: None,
                    body: json_bytes(&CustomWrite {
                        id: record,
                        // Required to create, and immutable afterwards.
                        schema_id: self.schema().filter(|_| !basis.exists),
                        divisions: basis.divisions.as_ref(),
                        version: body_version(),
                        custom_attributes: change.set,
                    })?,
                })
            }
        }
    }

    /// Whether an answer to the write means that somebody else was faster.
    pub(crate) fn is_conflict(&self, response: &Response) -> bool {
        match (&self.store, response.status) {
            (_, 409) => true,
            (Store::Conversation, 412) => true,
            (Store::Custom(_), 400) => problem::message_of(response)
                .is_some_and(|text| text.contains("does not match the current version")),
            _ => false,
        }
    }

    /// Whether a participant that was remembered may have been the reason for an answer.
    pub(crate) fn memory_may_be_stale(&self, response: &Response) -> bool {
        response.status == 404 && matches!(self.who(), Some(Who::Purpose(_)))
    }

    /// The answer's JSON and the version that it tells, where it tells any. An answer that cannot
    /// be read is no failure: the write is applied all the same.
    pub(crate) fn written(
        &self,
        basis: &Basis,
        response: &Response,
    ) -> (Option<String>, Option<Value>) {
        let body: Option<Value> = response.json().ok();
        let told = body.as_ref().and_then(|body| body.get("version"));
        let version = match (&self.store, &response.body) {
            // Frameworks tag bodies by themselves, weakly, which `If-Match` never matches: such a
            // tag is a version only where the read had one, too.
            (Store::Conversation, Body::Whole(_)) => version_of(told, response)
                .filter(|version| basis.is_tagged() || !version.starts_with("W/")),
            _ => None,
        };
        (version, body)
    }

    /// What to remember for the next write.
    pub(crate) fn memory(&self, basis: &Basis, version: Option<&str>) -> Option<String> {
        match self.store {
            Store::Conversation => version.map(str::to_owned),
            Store::Participant(_) => basis.participant.clone(),
            Store::Secure | Store::Custom(_) => None,
        }
    }
}

/// What is known of a target before a write.
#[derive(Debug, Clone, Default)]
pub(crate) struct Basis {
    pub(crate) version: Option<String>,
    /// `None` where the values cannot be read, or were not.
    pub(crate) attributes: Option<Attributes>,
    /// How the conversation came to its end, if it did and that is known.
    pub(crate) ended: Option<String>,
    pub(crate) participant: Option<String>,
    divisions: Option<Value>,
    exists: bool,
}

impl Basis {
    /// Nothing is there yet.
    pub(crate) fn absent() -> Basis {
        Basis {
            attributes: Some(Attributes::new()),
            ..Basis::default()
        }
    }

    fn is_tagged(&self) -> bool {
        self.version.as_deref().is_some_and(is_entity_tag)
    }

    /// Whether everything that the change wants is there already; `None` where the values cannot
    /// be read.
    pub(crate) fn holds(&self, set: &Attributes, remove: &[String]) -> Option<bool> {
        let present = self.attributes.as_ref()?;
        Some(
            set.iter()
                .all(|(key, value)| present.get(key).is_some_and(|found| same(found, value)))
                && remove.iter().all(|key| !present.contains_key(key)),
        )
    }
}

/// What an update wants, in the form that is written.
pub(crate) struct Change<'a> {
    pub(crate) set: &'a Attributes,
    pub(crate) remove: &'a [String],
    pub(crate) source: &'a str,
    pub(crate) timestamp: &'a str,
}

/// A write, before it is put on the wire.
pub(crate) struct Write {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) if_match: Option<String>,
    pub(crate) body: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConversationBody {
    #[serde(default)]
    version: Option<Value>,
    #[serde(default)]
    state: Option<Value>,
    #[serde(default)]
    end_time: Option<Value>,
    #[serde(default)]
    attributes: Option<Attributes>,
    #[serde(default)]
    participants: Option<Vec<ParticipantBody>>,
}

impl ConversationBody {
    /// The brief's states, or the platform's end time.
    fn ended(&self) -> Option<String> {
        match self.state.as_ref().and_then(Value::as_str) {
            Some(state @ ("terminated" | "abandoned")) => Some(state.to_owned()),
            _ => self
                .end_time
                .as_ref()
                .filter(|end| !end.is_null())
                .map(|_| "ended".to_owned()),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ParticipantBody {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    purpose: Option<String>,
    #[serde(default)]
    end_time: Option<Value>,
    #[serde(default)]
    attributes: Option<Attributes>,
}

impl ParticipantBody {
    fn is_active(&self) -> bool {
        self.end_time.as_ref().is_none_or(Value::is_null)
    }
}

/// The attributes in an answer; none where the field is missing or null.
fn attributes_in(fields: &mut Attributes, name: &str) -> std::result::Result<Attributes, String> {
    match fields.remove(name) {
        None | Some(Value::Null) => Ok(Attributes::new()),
        Some(Value::Object(attributes)) => Ok(attributes),
        Some(_) => Err(format!("its {name} are no object")),
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

#[derive(Serialize)]
struct AttributesPatch<'a> {
    attributes: &'a Attributes,
}

#[derive(Serialize)]
struct SecurePut<'a> {
    attributes: &'a Attributes,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<Value>,
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

fn json_bytes(body: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(512);
    match serde_json::to_writer(&mut bytes, body) {
        Ok(()) => Ok(bytes),
        Err(e) => Err(
            Error::new(ErrorKind::Internal, "the body could not be written as JSON").with_source(e),
        ),
    }
}

/// The version that a body tells, as text or number, or else the entity tag: for the target whose
/// version travels in `If-Match`.
fn version_of(told: Option<&Value>, response: &Response) -> Option<String> {
    told_version(told).or_else(|| {
        response
            .header("etag")
            .filter(|tag| is_entity_tag(tag))
            .map(str::to_owned)
    })
}

/// The version that a body tells, as text or number.
fn told_version(told: Option<&Value>) -> Option<String> {
    match told {
        Some(Value::String(text)) if is_version(text) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    }
}

/// Whether text can travel as a version: as the inside of an entity tag, or as a whole one.
pub(crate) fn is_version(text: &str) -> bool {
    is_entity_tag(text) || is_opaque(text) && !text.is_empty()
}

/// The characters that an entity tag may hold (RFC 9110 §8.8.3), without those beyond ASCII.
fn is_opaque(text: &str) -> bool {
    text.bytes()
        .all(|b| b == b'!' || (b'#'..=b'~').contains(&b))
}

fn is_entity_tag(text: &str) -> bool {
    text.strip_prefix("W/")
        .unwrap_or(text)
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .is_some_and(is_opaque)
}

/// The `If-Match` value of a version: a tag goes back verbatim, other text in quotes.
fn entity_tag(version: &str) -> String {
    if is_entity_tag(version) {
        version.to_owned()
    } else {
        ["\"", version, "\""].concat()
    }
}

/// A version in a body: a number where it is one, since the platform's schema says integer.
fn json_version(version: &str) -> Value {
    version
        .parse::<u64>()
        .ok()
        .filter(|n| n.to_string() == version)
        .map_or_else(|| Value::from(version), Value::from)
}

fn identifier(name: &str, id: &str, found: &mut Vec<Violation>) {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !id.is_empty() && id.bytes().all(is_plain) {
        return;
    }
    let problem = if id.is_empty() {
        "nothing"
    } else if id.chars().any(char::is_control) {
        "a control character"
    } else if id.chars().any(char::is_whitespace) {
        "whitespace"
    } else if id.contains(['/', '?', '#']) {
        "'/', '?' or '#'"
    } else if id.contains("..") {
        "'..'"
    } else if id == "." {
        // A dot segment: servers and proxies remove it from a path.
        "'.' alone"
    } else {
        return;
    };
    found.push(Violation::new(name, Rule::Identifier, problem));
}

/// An identifier as a path segment (RFC 3986 §2.3: all but the unreserved characters).
fn encoded(id: &str) -> Cow<'_, str> {
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    if id.bytes().all(unreserved) {
        return Cow::Borrowed(id);
    }
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(id.len() * 3);
    for b in id.bytes() {
        if unreserved(b) {
            out.push(char::from(b));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(b >> 4)]));
            out.push(char::from(HEX[usize::from(b & 15)]));
        }
    }
    Cow::Owned(out)
}
