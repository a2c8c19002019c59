//! What can be written. Each kind of store has a file of its own that says where it is read, how
//! it is written, where its version travels, what is a conflict, what it may hold and what is
//! remembered of it; here is what they share. An update does not know which kind it writes.

pub(crate) mod cache;

mod conversation;
mod custom;
mod identifier;
mod participant;
mod secure;
mod who;

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result, Violation, one_line};
use crate::http::{Response, Unreadable};
pub(crate) use crate::session::Write;
use crate::values::attributes::{Attributes, Values, same};
pub use crate::values::kind::TargetKind;

use conversation::Conversation;
use custom::Custom;
pub(crate) use identifier::encoded;
use identifier::identifier;
pub use participant::ParticipantInfo;
use secure::Secure;
pub use who::Participant;

/// One store of attributes of one conversation.
///
/// | target | read | write | lock | values |
/// |---|---|---|---|---|
/// | [`conversation`](Target::conversation) | GET conversation | PATCH with `If-Match` | version | strings, integers, booleans |
/// | [`participant`](Target::participant) | GET conversation | PATCH, changed keys only | none | text |
/// | [`secure`](Target::secure) | GET | PUT of the merged map, or an unlocked PATCH | version | text |
/// | [`custom`](Target::custom) | GET | PATCH, or PUT to create | version | any JSON that the schema allows |
///
/// The conversation target is the conversation-level endpoint, which today's public API does not
/// offer: on the live platform use the others.
///
/// ```
/// use genesys_attributes::{Participant, Target, TargetKind};
///
/// let target = Target::participant("5b2f0c1e", Participant::customer());
/// assert_eq!(target.kind(), TargetKind::Participant);
/// assert_eq!(target.conversation_id(), "5b2f0c1e");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    conversation: String,
    store: Store,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Store {
    Conversation(Conversation),
    Participant(Participant),
    Secure(Secure),
    Custom(Custom),
}

/// What a kind of store does in its own way.
trait Kind {
    const KIND: TargetKind;

    /// What its values may be.
    const VALUES: Values;

    /// What an error message calls it, before "conversation" and the id.
    fn description(&self) -> String;

    /// What is wrong with its identifiers.
    fn check(&self, _found: &mut Vec<Violation>) {}

    /// Whether a write carries a version that a competing write makes stale.
    fn is_locked(&self) -> bool {
        true
    }

    /// Whether keys can be taken away.
    fn can_remove(&self) -> bool {
        false
    }

    /// What is known without a read: what `cached` holds, or nothing where nothing is needed.
    /// `None` means that it must be read.
    fn known(&self, _cached: Option<String>) -> Option<TargetState> {
        None
    }

    /// Where it is read, below the path of the conversation.
    fn read_path(&self) -> Cow<'static, str>;

    /// Reads a successful answer.
    fn parse(&self, response: &Response) -> Result<TargetState, ReadFailure>;

    /// The request that writes `change` on top of `state`; `path` is the conversation's.
    fn write(&self, path: String, change: &Change<'_>, state: &TargetState) -> Result<Write>;

    /// Whether an answer to the write means that somebody else was faster.
    fn is_conflict(&self, response: &Response) -> bool {
        response.status() == 409
    }

    /// The version that the answer to a write gives, where it gives one that the next write can
    /// use. An answer that cannot be read is no failure: the write is applied all the same.
    fn version_written(&self, _state: &TargetState, _response: &Response) -> Option<String> {
        None
    }

    /// Under which key a client may remember what the next write needs; `None` where that is the
    /// whole map or record, or nothing.
    fn cache_key<'k>(&self, _conversation: &'k str) -> Option<Cow<'k, str>> {
        None
    }

    /// What of the conversation is written: the participant that was found, or the record.
    fn resource_id(&self, _state: &TargetState) -> Option<String> {
        None
    }

    /// Whether a key may not be set once the conversation has ended.
    fn is_guarded(&self, _key: &str) -> bool {
        false
    }

    /// Whether the values must stay out of events and audit.
    fn is_confidential(&self) -> bool {
        false
    }

    /// Whether a read shows that the conversation has ended.
    fn shows_end(&self) -> bool {
        false
    }

    /// Whether an answer to a read means that there is nothing yet, and the write creates it.
    fn is_absent(&self, _response: &Response) -> bool {
        false
    }

    /// Whether an answer to a write means that the platform does not offer the endpoint, given that
    /// the conversation itself could be read just before.
    fn endpoint_missing(&self, _status: u16) -> bool {
        false
    }

    /// What else to do about an answer that is no success.
    fn advice(&self, _status: u16, _endpoint_missing: bool) -> Option<String> {
        None
    }

    /// Whether the version that was read is the one that the caller demands.
    fn is_version(&self, now: &str, demanded: &str) -> bool {
        now == demanded
    }

    /// What a read of the conversation tells of a write that was answered with 404.
    fn who_is_there(&self, _conversation: &Response) -> Option<String> {
        None
    }

    /// About how many bytes its identifiers take.
    fn approximate_size(&self) -> usize {
        0
    }
}

/// Calls the same code for whichever kind of store it is.
macro_rules! dispatch {
    ($target:expr, $kind:ident => $call:expr) => {
        match &$target.store {
            Store::Conversation($kind) => $call,
            Store::Participant($kind) => $call,
            Store::Secure($kind) => $call,
            Store::Custom($kind) => $call,
        }
    };
}

impl Target {
    /// The attributes of the conversation itself, by the conversation's id.
    pub fn conversation(conversation: impl Into<String>) -> Target {
        Target::of(conversation, Store::Conversation(Conversation))
    }

    /// The attributes of one participant, such as [`Participant::customer`].
    pub fn participant(conversation: impl Into<String>, who: impl Into<Participant>) -> Target {
        Target::of(conversation, Store::Participant(who.into()))
    }

    /// The secure attributes of the conversation, locked by their version.
    pub fn secure(conversation: impl Into<String>) -> Target {
        Target::of(conversation, Store::Secure(Secure { unlocked: false }))
    }

    /// The record of custom attributes with the id `record`.
    pub fn custom(conversation: impl Into<String>, record: impl Into<String>) -> Target {
        let record = record.into();
        Target::of(
            conversation,
            Store::Custom(Custom {
                record,
                schema: None,
            }),
        )
    }

    fn of(conversation: impl Into<String>, store: Store) -> Target {
        Target {
            conversation: conversation.into(),
            store,
        }
    }

    /// Gives up the lock; `false` where only secure attributes can.
    pub(crate) fn set_unlocked(&mut self) -> bool {
        match &mut self.store {
            Store::Secure(secure) => {
                secure.unlocked = true;
                true
            }
            _ => false,
        }
    }

    /// Creates an absent record with this schema; `false` where only custom records have one.
    pub(crate) fn set_schema(&mut self, schema: String) -> bool {
        match &mut self.store {
            Store::Custom(custom) => {
                custom.schema = Some(schema);
                true
            }
            _ => false,
        }
    }

    /// Which kind it is.
    pub fn kind(&self) -> TargetKind {
        fn kind_of<K: Kind>(_: &K) -> TargetKind {
            K::KIND
        }
        dispatch!(self, kind => kind_of(kind))
    }

    /// The conversation's id.
    pub fn conversation_id(&self) -> &str {
        &self.conversation
    }

    /// Whom a participant target means, as it was given.
    pub fn participant_selector(&self) -> Option<&Participant> {
        match &self.store {
            Store::Participant(who) => Some(who),
            _ => None,
        }
    }

    /// The id of the record of a custom target.
    pub fn record(&self) -> Option<&str> {
        match &self.store {
            Store::Custom(custom) => Some(&custom.record),
            _ => None,
        }
    }

    /// Whether the write of a secure target gives up its lock.
    pub fn is_unlocked(&self) -> bool {
        matches!(&self.store, Store::Secure(secure) if secure.unlocked)
    }

    /// The schema with which an absent custom record is created.
    pub fn schema(&self) -> Option<&str> {
        match &self.store {
            Store::Custom(custom) => custom.schema.as_deref(),
            _ => None,
        }
    }

    /// What of the conversation is written: the participant (the one that was found, where a
    /// purpose was given) or the record.
    pub(crate) fn resource_id(&self, state: &TargetState) -> Option<String> {
        dispatch!(self, kind => kind.resource_id(state))
    }

    /// What the values may be.
    pub(crate) fn values(&self) -> Values {
        fn values_of<K: Kind>(_: &K) -> Values {
            K::VALUES
        }
        dispatch!(self, kind => values_of(kind))
    }

    /// Whether a write carries a version that a competing write makes stale.
    pub(crate) fn is_locked(&self) -> bool {
        dispatch!(self, kind => kind.is_locked())
    }

    /// Whether keys can be taken away.
    pub(crate) fn can_remove(&self) -> bool {
        dispatch!(self, kind => kind.can_remove())
    }

    /// Whether a key may not be set once the conversation has ended.
    pub(crate) fn is_guarded(&self, key: &str) -> bool {
        dispatch!(self, kind => kind.is_guarded(key))
    }

    /// Whether the values must stay out of events and audit.
    pub(crate) fn is_confidential(&self) -> bool {
        dispatch!(self, kind => kind.is_confidential())
    }

    /// What an error message calls it.
    pub(crate) fn description(&self) -> String {
        dispatch!(self, kind => kind.description()) + &self.conversation
    }

    /// About how many bytes its identifiers take.
    pub(crate) fn approximate_size(&self) -> usize {
        self.conversation.len() + dispatch!(self, kind => kind.approximate_size())
    }

    /// An error with all that is wrong with the identifiers.
    pub(crate) fn checked(&self) -> Result<()> {
        let mut found = Vec::new();
        self.check(&mut found);
        if found.is_empty() {
            Ok(())
        } else {
            Err(Error::violated(found))
        }
    }

    /// What is wrong with the identifiers.
    pub(crate) fn check(&self, found: &mut Vec<Violation>) {
        identifier("conversationId", &self.conversation, found);
        dispatch!(self, kind => kind.check(found));
    }

    /// Under which key a client may remember what the next write needs, if that is possible.
    pub(crate) fn cache_key(&self) -> Option<Cow<'_, str>> {
        dispatch!(self, kind => kind.cache_key(&self.conversation))
    }

    /// What is known without reading, given what was remembered or demanded. `None` means that
    /// the target must be read.
    pub(crate) fn known(&self, cached: Option<String>) -> Option<TargetState> {
        dispatch!(self, kind => kind.known(cached))
    }

    /// Where the conversation is read.
    pub(crate) fn path(&self) -> String {
        let mut path = String::with_capacity(160);
        path += "/api/v2/conversations/";
        path += &encoded(&self.conversation);
        path
    }

    /// Where the target is read.
    pub(crate) fn read_path(&self) -> String {
        self.path() + &dispatch!(self, kind => kind.read_path())
    }

    /// Whether an answer to a read means that there is nothing yet, and the write creates it.
    pub(crate) fn is_absent(&self, response: &Response) -> bool {
        dispatch!(self, kind => kind.is_absent(response))
    }

    /// Whether an answer to a write means that the platform does not offer the endpoint, given that
    /// the conversation itself could be read just before.
    pub(crate) fn endpoint_missing(&self, status: u16) -> bool {
        dispatch!(self, kind => kind.endpoint_missing(status))
    }

    /// Whether a read shows that the conversation has ended.
    pub(crate) fn shows_end(&self) -> bool {
        dispatch!(self, kind => kind.shows_end())
    }

    /// What else to do about an answer that is no success.
    pub(crate) fn advice(&self, status: u16, endpoint_missing: bool) -> Option<String> {
        dispatch!(self, kind => kind.advice(status, endpoint_missing))
    }

    /// Whether the version that was read is the one that the caller demands.
    pub(crate) fn is_version(&self, now: &str, demanded: &str) -> bool {
        dispatch!(self, kind => kind.is_version(now, demanded))
    }

    /// What a read of the conversation tells of a write that was answered with 404.
    pub(crate) fn who_is_there(&self, conversation: &Response) -> Option<String> {
        dispatch!(self, kind => kind.who_is_there(conversation))
    }

    /// How the conversation came to its end, by a successful read of it; `None` where it goes on.
    pub(crate) fn end_of(conversation: &Response) -> Result<Option<String>, ReadFailure> {
        let read: ConversationBody = conversation.object_of()?;
        Ok(read.ended())
    }

    /// The participants that can be written to, by a successful read of the conversation.
    pub(crate) fn participants_of(
        conversation: &Response,
    ) -> Result<Vec<ParticipantInfo>, ReadFailure> {
        let read: ConversationBody = conversation.object_of()?;
        let all = read.participants.unwrap_or_default();
        let named = all.iter().map(|one| one.info());
        Ok(named.filter(|one| !one.id.is_empty()).collect())
    }

    /// Reads a successful answer of [`Target::read_path`].
    pub(crate) fn parse(&self, response: &Response) -> Result<TargetState, ReadFailure> {
        dispatch!(self, kind => kind.parse(response)).map_err(|mut failure| {
            failure.error = failure
                .error
                .within(&self.description())
                .with_http_status(response.status())
                .with_correlation_id(response.correlation_id().map(str::to_owned));
            failure
        })
    }

    /// The request that writes `change` on top of `state`.
    pub(crate) fn write(&self, change: &Change<'_>, state: &TargetState) -> Result<Write> {
        dispatch!(self, kind => kind.write(self.path(), change, state))
    }

    /// Whether an answer to the write means that somebody else was faster.
    pub(crate) fn is_conflict(&self, response: &Response) -> bool {
        dispatch!(self, kind => kind.is_conflict(response))
    }

    /// The version that the answer to a write gives, where it gives one that the next write can
    /// use.
    pub(crate) fn version_written(
        &self,
        state: &TargetState,
        response: &Response,
    ) -> Option<String> {
        dispatch!(self, kind => kind.version_written(state, response))
    }
}

/// Such as `participant customer of conversation c-1`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.description()))
    }
}

/// What a read established, or is known without one: what the next write is based on.
#[derive(Debug, Clone, Default)]
pub(crate) struct TargetState {
    /// What the write is locked by.
    pub(crate) version: Option<String>,
    /// `None` where the values cannot be read, or were not.
    pub(crate) attributes: Option<Attributes>,
    /// How the conversation came to its end, if it did and that is known.
    pub(crate) ended: Option<String>,
    /// The participant that was found.
    pub(crate) participant: Option<participant::Found>,
    /// Of a custom record: as read, since leaving them out would clear them.
    divisions: Option<Value>,
    /// Of a custom record: whether it is there.
    exists: bool,
}

impl TargetState {
    /// These attributes are there, and nothing else is known: none, where nothing is there yet.
    pub(crate) fn with(attributes: Attributes) -> TargetState {
        TargetState {
            attributes: Some(attributes),
            ..TargetState::default()
        }
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

/// Why a successful answer to a read is of no use.
#[derive(Debug)]
pub(crate) struct ReadFailure {
    pub(crate) error: Error,
    /// Another try may bring a better answer.
    pub(crate) transient: bool,
}

impl From<Error> for ReadFailure {
    fn from(error: Error) -> ReadFailure {
        ReadFailure {
            error,
            transient: false,
        }
    }
}

impl From<Unreadable> for ReadFailure {
    fn from(unreadable: Unreadable) -> ReadFailure {
        ReadFailure {
            transient: unreadable.is_transient(),
            error: unreadable.into_error("the answer cannot be used"),
        }
    }
}

fn unusable(why: &str) -> ReadFailure {
    Unreadable::Unexpected(why.to_owned()).into()
}

/// What an update wants, in the form that is written.
pub(crate) struct Change<'a> {
    pub(crate) set: &'a Attributes,
    pub(crate) remove: &'a [String],
    pub(crate) source: &'a str,
    pub(crate) timestamp: &'a str,
}

/// The answer to a read of a conversation, as two kinds of targets need it.
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
    participants: Option<Vec<participant::ParticipantBody>>,
}

impl ConversationBody {
    /// By its state, or by the platform's end time.
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

/// The body of a PATCH that names nothing but the changed keys.
#[derive(Serialize)]
struct AttributesPatch<'a> {
    attributes: &'a Attributes,
}

/// The attributes in an answer; none where the field is missing or null.
fn attributes_in(fields: &mut Attributes, name: &str) -> Result<Attributes, ReadFailure> {
    match fields.remove(name) {
        None | Some(Value::Null) => Ok(Attributes::new()),
        Some(Value::Object(attributes)) => Ok(attributes),
        Some(_) => Err(unusable(&format!("its {name} are not an object"))),
    }
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

/// The error for a write whose read is missing.
fn nothing_to_write_on(what: &str) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("{what}: this is a defect of the library, please report it"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_kind_name_reads_back() {
        for kind in TargetKind::ALL {
            assert_eq!(kind.name().parse::<TargetKind>().unwrap(), *kind);
        }
        assert!("Participant".parse::<TargetKind>().is_err());
    }

    #[test]
    fn target_state_holds_by_table() {
        let object = |value: Value| value.as_object().cloned().unwrap_or_default();
        let there = TargetState {
            attributes: Some(object(serde_json::json!({ "a": 85, "b": "x" }))),
            ..TargetState::default()
        };
        let gone = |keys: &[&str]| Vec::from_iter(keys.iter().map(|key| (*key).to_owned()));
        for (set, remove, holds) in [
            (serde_json::json!({}), gone(&[]), true),
            (serde_json::json!({ "a": 85.0 }), gone(&["c"]), true),
            (serde_json::json!({ "a": "85" }), gone(&[]), false),
            (serde_json::json!({ "c": 1 }), gone(&[]), false),
            (serde_json::json!({}), gone(&["b"]), false),
        ] {
            assert_eq!(there.holds(&object(set), &remove), Some(holds));
        }
        assert_eq!(TargetState::default().holds(&Attributes::new(), &[]), None);
    }
}
