//! An update: a target and the values to set.
//!
//! Here are its data. `core` has what the clones of a client share and reads; `execute` checks an
//! update, takes its turn, and tells what came of it; `run` reads and writes as the rules in
//! `machine` say; `summary` is what the update did.

pub(crate) mod core;
pub(crate) mod execute;
mod machine;
mod run;
mod summary;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result, Rule, Violation};
use crate::store::{Participant, Target, TargetKind};
use crate::values::attributes::{self, Attributes, ValidationLimits, json_length, longest_json};
use crate::values::json::{self, Strict, Wrong};
use crate::values::schema::Schema;
use crate::values::version::is_version;

/// What to change: a [`Target`] and the attributes to set on it.
///
/// Keys that are not named keep their values. `Debug` shows keys, and no values.
///
/// ```
/// use genesys_attributes::Update;
///
/// let update = Update::conversation("5b2f0c1e-0000-4000-8000-000000000001")
///     .set("customer.tier", "premium")
///     .set("routing.score", 85)
///     .skip_unchanged();
/// update.validate()?; // the client does this too
///
/// // The same as a JSON record, the form that a batch reads:
/// let line = r#"{"conversationId":"5b2f0c1e-0000-4000-8000-000000000001","target":"conversation",
///     "attributes":{"customer.tier":"premium","routing.score":85},"skipUnchanged":true}"#;
/// assert_eq!(serde_json::from_str::<Update>(line).unwrap(), update);
/// # Ok::<(), genesys_attributes::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
#[must_use = "an update does nothing until a client runs it"]
pub struct Update {
    pub(crate) target: Target,
    pub(crate) attributes: Attributes,
    pub(crate) remove: Vec<String>,
    pub(crate) if_version: Option<String>,
    pub(crate) skip_unchanged: bool,
    pub(crate) verify: bool,
    /// Options that the target does not have; validation says so.
    misplaced: Misplaced,
}

/// Options of one kind of target on another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Misplaced {
    unlocked: bool,
    schema: Option<String>,
    /// Values that are no object.
    values: bool,
}

impl Update {
    /// An update of any target.
    pub fn new(target: Target) -> Update {
        Update {
            target,
            attributes: Attributes::new(),
            remove: Vec::new(),
            if_version: None,
            skip_unchanged: false,
            verify: false,
            misplaced: Misplaced::default(),
        }
    }

    /// An update of a conversation's own attributes; see [`Target::conversation`].
    pub fn conversation(conversation: impl Into<String>) -> Update {
        Update::new(Target::conversation(conversation))
    }

    /// An update of a participant's attributes: [`Participant::customer`], say, or text such as
    /// `"agent"` or a participant's id.
    pub fn participant(conversation: impl Into<String>, who: impl Into<Participant>) -> Update {
        Update::new(Target::participant(conversation, who))
    }

    /// An update of a conversation's secure attributes, locked by their version.
    pub fn secure(conversation: impl Into<String>) -> Update {
        Update::new(Target::secure(conversation))
    }

    /// An update of the record of custom attributes with the id `record`.
    pub fn custom(conversation: impl Into<String>, record: impl Into<String>) -> Update {
        Update::new(Target::custom(conversation, record))
    }

    /// Sets an attribute. The last value of a key counts.
    pub fn set(mut self, key: impl Into<String>, value: impl Into<Value>) -> Update {
        self.attributes.insert(key.into(), value.into());
        self
    }

    /// Sets an attribute for each entry of a map or field of a struct. What is `None` sets nothing.
    ///
    /// Validation refuses what serializes to something else than an object.
    ///
    /// ```
    /// use genesys_attributes::Update;
    ///
    /// #[derive(serde::Serialize)]
    /// struct Customer {
    ///     tier: String,
    ///     score: Option<u32>,
    /// }
    ///
    /// let conversation = String::from("5b2f0c1e-0000-4000-8000-000000000001");
    /// let customer = Customer { tier: "gold".to_owned(), score: None };
    /// let update = Update::participant(&conversation, "customer").set_all(customer);
    /// assert_eq!(update, Update::participant(&conversation, "customer").set("tier", "gold"));
    /// ```
    pub fn set_all(mut self, values: impl Serialize) -> Update {
        match serde_json::to_value(values) {
            Ok(Value::Object(all)) => {
                let given = all.into_iter().filter(|(_, value)| !value.is_null());
                self.attributes.extend(given);
            }
            Ok(Value::Null) => {}
            Ok(_) | Err(_) => self.misplaced.values = true,
        }
        self
    }

    /// Removes an attribute. Only a locked secure target can; validation says so for the others.
    pub fn remove(mut self, key: impl Into<String>) -> Update {
        let key = key.into();
        if !self.remove.contains(&key) {
            self.remove.push(key);
        }
        self
    }

    /// Writes only if the target still has this version, as an earlier read or receipt gave it.
    /// A conflict is then final at once. Not for targets without a lock.
    pub fn if_version(mut self, version: impl Into<String>) -> Update {
        self.if_version = Some(version.into());
        self
    }

    /// Reads first, and writes nothing when every value is in place already. Where the values
    /// cannot be read, it writes.
    pub fn skip_unchanged(mut self) -> Update {
        self.skip_unchanged = true;
        self
    }

    /// Reads the values back after the write, until they are there. A participant's are stored
    /// only after the platform has answered. The receipt then says `verified`; when they are not
    /// there after some 15 s (or the deadline), the call fails with [`ErrorKind::Timeout`] and
    /// [`Error::may_have_applied`].
    pub fn verify(mut self) -> Update {
        self.verify = true;
        self
    }

    /// Writes secure attributes without reading and without their lock. Validation refuses it on
    /// another target.
    pub fn unlocked(mut self) -> Update {
        self.misplaced.unlocked = !self.target.set_unlocked();
        self
    }

    /// Creates a custom record with this schema when it does not exist yet. Validation refuses it
    /// on another target.
    ///
    /// The platform has no "create only": when two clients create the same record at the same
    /// moment, or a copy of the first write is held back on its way, the later one replaces the
    /// earlier one's values.
    pub fn schema(mut self, schema: impl Into<String>) -> Update {
        let schema = schema.into();
        if !self.target.set_schema(schema.clone()) {
            self.misplaced.schema = Some(schema);
        }
        self
    }

    /// What is written to.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The attributes to set, as they were given.
    pub fn attributes(&self) -> &Attributes {
        &self.attributes
    }

    /// The keys to remove.
    pub fn removals(&self) -> &[String] {
        &self.remove
    }

    /// About how much memory it takes, in bytes.
    pub(crate) fn approximate_size(&self) -> usize {
        // A map's entry takes about this much beyond its text.
        const ENTRY: usize = 96;
        json_length(&self.attributes)
            + ENTRY * self.attributes.len()
            + self.target.approximate_size()
            + self.remove.iter().map(String::len).sum::<usize>()
    }

    /// Checks the update against the default [`ValidationLimits`], without any network.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] with every violation at once, or
    /// [`ErrorKind::PayloadTooLarge`].
    pub fn validate(&self) -> Result<()> {
        self.validate_with(&ValidationLimits::default())
    }

    /// Checks the update against the given limits, without any network.
    ///
    /// # Errors
    ///
    /// As [`Update::validate`].
    pub fn validate_with(&self, limits: &ValidationLimits) -> Result<()> {
        self.validate_against(limits, &[])
    }

    pub(crate) fn validate_against(
        &self,
        limits: &ValidationLimits,
        schemas: &[Schema],
    ) -> Result<()> {
        self.checked(limits, schemas).map(drop)
    }

    /// The attributes as they are written, if nothing is wrong with the update.
    pub(crate) fn checked(
        &self,
        limits: &ValidationLimits,
        schemas: &[Schema],
    ) -> Result<Cow<'_, Attributes>> {
        let mut found = Vec::new();
        let target = &self.target;
        target.check(&mut found);
        let unlocked = ("unlocked", "only secure attributes can be unlocked");
        let no_schema = ("schema", "only custom records have one");
        for (name, of) in [
            self.misplaced.unlocked.then_some(unlocked),
            self.misplaced.schema.as_ref().map(|_| no_schema),
        ]
        .into_iter()
        .flatten()
        {
            let found_on = format!("a {} target ({of})", target.kind());
            found.push(Violation::new(name, Rule::Unsupported, found_on));
        }
        if self.misplaced.values {
            let not_object = "something else than a map or a struct in set_all";
            found.push(Violation::new("attributes", Rule::Type, not_object));
        } else if self.attributes.is_empty() && self.remove.is_empty() {
            found.push(Violation::new("attributes", Rule::NothingToDo, "nothing"));
        }
        attributes::check(&self.attributes, target.values(), limits, &mut found);
        for schema in schemas {
            found.extend(schema.violations(&self.attributes));
        }
        if !self.remove.is_empty() && !target.can_remove() {
            found.push(Violation::new(
                "remove",
                Rule::Unsupported,
                "only locked secure attributes can be removed",
            ));
        }
        for key in &self.remove {
            if self.attributes.contains_key(key) {
                found.push(Violation::new(key, Rule::SetAndRemoved, "both"));
            }
        }
        if let Some(version) = &self.if_version {
            if !target.is_locked() {
                found.push(Violation::new(
                    "ifVersion",
                    Rule::Unsupported,
                    "this target has no lock",
                ));
            } else if !is_version(version) {
                found.push(Violation::new(
                    "ifVersion",
                    Rule::Version,
                    "text that does not fit into an entity tag",
                ));
            }
        }
        if found.is_empty() {
            let attributes = attributes::normalized(&self.attributes, target.values());
            // The exact length takes as long as writing it does, which comes later anyway.
            if longest_json(&attributes) > limits.body_bytes {
                fits(target, json_length(attributes.as_ref()), limits)?;
            }
            Ok(attributes)
        } else {
            Err(Error::violated(found))
        }
    }
}

/// Refuses a body that the platform would refuse, before it is sent.
pub(crate) fn fits(target: &Target, bytes: usize, limits: &ValidationLimits) -> Result<()> {
    if bytes <= limits.body_bytes {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::PayloadTooLarge,
        format!(
            "{}: the body has {bytes} bytes, and the platform takes at most {}: send fewer or \
             shorter attributes",
            target.description(),
            limits.body_bytes
        ),
    ))
}

/// What an [`update_with`](crate::Client::update_with_options) closure wants: values to set, and
/// keys to remove where the target can.
///
/// ```
/// use genesys_attributes::Edit;
///
/// let edit = Edit::new().set("calls", 3).remove("old");
/// ```
#[derive(Clone, PartialEq, Eq, Default)]
#[must_use = "an edit does nothing until the closure returns it"]
pub struct Edit {
    pub(crate) set: Attributes,
    pub(crate) remove: Vec<String>,
}

impl Edit {
    /// An edit that changes nothing yet.
    pub fn new() -> Edit {
        Edit::default()
    }

    /// Sets an attribute. The last value of a key counts.
    pub fn set(mut self, key: impl Into<String>, value: impl Into<Value>) -> Edit {
        self.set.insert(key.into(), value.into());
        self
    }

    /// Removes an attribute. Only a locked secure target can; validation says so for the others.
    pub fn remove(mut self, key: impl Into<String>) -> Edit {
        let key = key.into();
        if !self.remove.contains(&key) {
            self.remove.push(key);
        }
        self
    }
}

impl From<Attributes> for Edit {
    fn from(set: Attributes) -> Edit {
        Edit {
            set,
            remove: Vec::new(),
        }
    }
}

impl fmt::Debug for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edit")
            .field("keys", &Vec::from_iter(self.set.keys()))
            .field("remove", &self.remove)
            .finish()
    }
}

impl Schema {
    /// Checks an update against this schema and the platform's default limits, without any
    /// network.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) with every violation at once, or
    /// [`ErrorKind::PayloadTooLarge`](crate::ErrorKind::PayloadTooLarge).
    pub fn validate(&self, update: &Update) -> Result<()> {
        update.validate_against(&ValidationLimits::default(), std::slice::from_ref(self))
    }
}

impl fmt::Debug for Update {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Update")
            .field("target", &self.target)
            .field("keys", &Vec::from_iter(self.attributes.keys()))
            .field("remove", &self.remove)
            .field("if_version", &self.if_version)
            .field("skip_unchanged", &self.skip_unchanged)
            .field("verify", &self.verify)
            .finish()
    }
}

/// The record form of an update.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Record {
    conversation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<TargetKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    participant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    if_version: Option<String>,
    attributes: Option<Attributes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remove: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skip_unchanged: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unlocked: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verify: Option<bool>,
}

/// The four ways to name what is written.
const NO_TARGET: &str = "no target is named: give \"participant\" (\"customer\", another purpose or \
                         an id), \"target\":\"secure\", \"target\":\"custom\" with \"record\", or \
                         \"target\":\"conversation\"";

impl Record {
    fn update(self) -> Result<Update, Wrong> {
        let given = |name: &'static str, text: Option<String>| {
            text.ok_or_else(|| <Wrong as de::Error>::missing_field(name))
        };
        let conversation = given("conversationId", self.conversation_id)?;
        let kind = match (self.target, &self.participant) {
            (Some(kind), _) => kind,
            (None, Some(_)) => TargetKind::Participant,
            (None, None) => return Err(Wrong::new(NO_TARGET)),
        };
        for (name, is_given, of) in [
            (
                "participant",
                self.participant.is_some(),
                TargetKind::Participant,
            ),
            ("record", self.record.is_some(), TargetKind::Custom),
        ] {
            if is_given && kind != of {
                return Err(Wrong::new(format!("{name} does not go with target {kind}")));
            }
        }
        let mut update = Update::new(match kind {
            TargetKind::Conversation => Target::conversation(conversation),
            TargetKind::Participant => {
                Target::participant(conversation, given("participant", self.participant)?)
            }
            TargetKind::Secure => Target::secure(conversation),
            TargetKind::Custom => Target::custom(conversation, given("record", self.record)?),
        });
        update.attributes = self.attributes.unwrap_or_default();
        update.if_version = self.if_version;
        update.skip_unchanged = self.skip_unchanged.unwrap_or_default();
        update.verify = self.verify.unwrap_or_default();
        if self.unlocked.unwrap_or_default() {
            update = update.unlocked();
        }
        if let Some(schema) = self.schema {
            update = update.schema(schema);
        }
        let remove = self.remove.unwrap_or_default();
        Ok(remove.into_iter().fold(update, Update::remove))
    }
}

/// Reads the record form. Unknown fields are refused by name, since a misspelt one would change
/// what is written, and so are repeated ones and whole numbers that would be rounded.
impl<'de> Deserialize<'de> for Update {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let Strict(value) = Strict::deserialize(deserializer)?;
        let update = json::of_value(value).and_then(Record::update);
        update.map_err(de::Error::custom)
    }
}

/// Reads the record form from JSON text. The error names the field or the place that is wrong, and no
/// value. A number that would be rounded is refused, as is a repeated key.
///
/// ```
/// use genesys_attributes::{ErrorKind, TargetKind, Update};
///
/// let text = r#"{"conversationId":"c-1","participant":"customer","attributes":{"tier":"gold"}}"#;
/// let update: Update = text.parse()?;
/// assert_eq!(update.target().kind(), TargetKind::Participant);
///
/// let error = r#"{"conversationId":"c-1","attribute":{}}"#.parse::<Update>().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidInput);
/// # Ok::<(), genesys_attributes::Error>(())
/// ```
impl FromStr for Update {
    type Err = Error;

    fn from_str(text: &str) -> Result<Update> {
        json::read(text).and_then(Record::update).map_err(|why| {
            let message = format!("the record is no update: {why}");
            Error::new(ErrorKind::InvalidInput, message)
        })
    }
}

/// Writes the record form, without the fields that say nothing.
impl Serialize for Update {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let target = &self.target;
        let text = |text: Option<&str>| text.map(str::to_owned);
        Record {
            conversation_id: Some(target.conversation_id().to_owned()),
            target: Some(target.kind()),
            participant: text(target.participant_selector().map(Participant::as_str)),
            record: text(target.record()),
            schema: text(target.schema().or(self.misplaced.schema.as_deref())),
            if_version: self.if_version.clone(),
            attributes: Some(self.attributes.clone()),
            remove: Some(self.remove.clone()).filter(|keys| !keys.is_empty()),
            skip_unchanged: self.skip_unchanged.then_some(true),
            unlocked: (target.is_unlocked() || self.misplaced.unlocked).then_some(true),
            verify: self.verify.then_some(true),
        }
        .serialize(serializer)
    }
}
