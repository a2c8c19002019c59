//! An update: a target and the values to set. Plain data, and the record that a batch reads.

use std::borrow::Cow;

use serde::de::{self, Deserialize, Deserializer};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result, Rule, Violation};
use crate::target::{Target, TargetKind, is_version};
use crate::validate::{self, Attributes, ValidationLimits};

/// What to change: a [`Target`] and the attributes to set on it.
///
/// Keys that are not named keep their values.
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
/// let line = r#"{"conversationId":"5b2f0c1e-0000-4000-8000-000000000001",
///     "attributes":{"customer.tier":"premium","routing.score":85},"skipUnchanged":true}"#;
/// assert_eq!(serde_json::from_str::<Update>(line).unwrap(), update);
/// # Ok::<(), genesys_attributes::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    pub(crate) target: Target,
    pub(crate) attributes: Attributes,
    pub(crate) remove: Vec<String>,
    pub(crate) if_version: Option<String>,
    pub(crate) skip_unchanged: bool,
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
        }
    }

    /// An update of a conversation's own attributes; see [`Target::conversation`].
    pub fn conversation(conversation: impl Into<String>) -> Update {
        Update::new(Target::conversation(conversation))
    }

    /// An update of a participant's attributes; see [`Target::participant`] for `who`.
    pub fn participant(conversation: impl Into<String>, who: impl Into<String>) -> Update {
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

    /// Removes an attribute. Only a locked secure target can; validation says so for the others.
    pub fn remove(mut self, key: impl Into<String>) -> Update {
        let key = key.into();
        if !self.remove.contains(&key) {
            self.remove.push(key);
        }
        self
    }

    /// Writes only if the target still has this version, as an earlier read or receipt told it.
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

    /// Writes secure attributes without reading and without their lock.
    pub fn unlocked(mut self) -> Update {
        self.target.set_unlocked(true);
        self
    }

    /// Creates a custom record with this schema when it does not exist yet.
    ///
    /// The platform has no "create only": when two clients create the same record at the same
    /// moment, or a copy of the first write is held back on its way, the later one replaces the
    /// earlier one's values.
    pub fn schema(mut self, schema: impl Into<String>) -> Update {
        self.target.set_schema(Some(schema.into()));
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
            + self.target.description().len()
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
        self.checked(limits).map(drop)
    }

    /// The attributes as they are written, if nothing is wrong with the update.
    pub(crate) fn checked(&self, limits: &ValidationLimits) -> Result<Cow<'_, Attributes>> {
        let mut found = Vec::new();
        let target = &self.target;
        target.check(&mut found);
        if self.attributes.is_empty() && self.remove.is_empty() {
            found.push(Violation::new("attributes", Rule::NothingToDo, "nothing"));
        }
        validate::check(&self.attributes, target.values(), limits, &mut found);
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
            let attributes = validate::normalized(&self.attributes, target.values());
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

/// No less than how long attributes are as JSON, in bytes.
fn longest_json(attributes: &Attributes) -> usize {
    // A control character takes the most: six bytes for one.
    let text = |s: &str| 6 * s.len() + 2;
    let value = |value: &Value| match value {
        Value::String(s) => text(s),
        Value::Null | Value::Bool(_) => 5,
        // Numbers, whose digits are not worth counting, and what only custom records hold.
        _ => json_length(value),
    };
    let entries = attributes.iter();
    entries.fold(2, |sum, (k, v)| sum + text(k) + value(v) + 2)
}

/// How long a value is as JSON, in bytes, without writing it anywhere.
fn json_length(value: &impl Serialize) -> usize {
    struct Length(usize);
    impl std::io::Write for Length {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut length = Length(0);
    // Neither JSON values nor this writer can fail.
    let _ = serde_json::to_writer(&mut length, value);
    length.0
}

/// Reads the record form. Unknown fields are refused by name, since a misspelt one would change
/// what is written; of a repeated field the last counts, as in JavaScript.
impl<'de> Deserialize<'de> for Update {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let mut fields = Attributes::deserialize(deserializer)?;
        let mut text = |name: &'static str| match fields.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(de::Error::custom(format_args!("{name} must be text"))),
        };
        let conversation =
            text("conversationId")?.ok_or_else(|| de::Error::missing_field("conversationId"))?;
        let kind = text("target")?;
        let participant = text("participant")?;
        let record = text("record")?;
        let schema = text("schema")?;
        let if_version = text("ifVersion")?;
        let mut flag = |name: &'static str| match fields.remove(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(de::Error::custom(format_args!(
                "{name} must be true or false"
            ))),
        };
        let skip_unchanged = flag("skipUnchanged")?;
        let unlocked = flag("unlocked")?;
        let attributes = match fields.remove("attributes") {
            None | Some(Value::Null) => Attributes::new(),
            Some(Value::Object(attributes)) => attributes,
            Some(_) => return Err(de::Error::custom("attributes must be an object")),
        };
        let remove = match fields.remove("remove") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(keys)) => keys
                .into_iter()
                .map(|key| match key {
                    Value::String(key) => Ok(key),
                    _ => Err(de::Error::custom("remove must be a list of keys")),
                })
                .collect::<std::result::Result<Vec<_>, _>>()?,
            Some(_) => return Err(de::Error::custom("remove must be a list of keys")),
        };
        if let Some((name, _)) = fields.iter().next() {
            return Err(de::Error::custom(format_args!(
                "unknown field {:?}; known are conversationId, target, participant, record, \
                 schema, attributes, remove, ifVersion, skipUnchanged and unlocked",
                crate::error::shortened(name, 64)
            )));
        }

        let kind = match (kind.as_deref(), &participant) {
            (None, None) | (Some("conversation"), _) => TargetKind::Conversation,
            (None, Some(_)) | (Some("participant"), _) => TargetKind::Participant,
            (Some("secure"), _) => TargetKind::Secure,
            (Some("custom"), _) => TargetKind::Custom,
            (Some(other), _) => {
                return Err(de::Error::custom(format_args!(
                    "unknown target {:?}; known are conversation, participant, secure and custom",
                    crate::error::shortened(other, 64)
                )));
            }
        };
        let misplaced = |name: &str, kind: TargetKind| {
            de::Error::custom(format_args!("{name} does not go with target {kind}"))
        };
        if participant.is_some() && kind != TargetKind::Participant {
            return Err(misplaced("participant", kind));
        }
        if record.is_some() && kind != TargetKind::Custom {
            return Err(misplaced("record", kind));
        }
        let mut target = match kind {
            TargetKind::Conversation => Target::conversation(conversation),
            TargetKind::Participant => Target::participant(
                conversation,
                participant.ok_or_else(|| de::Error::missing_field("participant"))?,
            ),
            TargetKind::Secure => Target::secure(conversation),
            TargetKind::Custom => Target::custom(
                conversation,
                record.ok_or_else(|| de::Error::missing_field("record"))?,
            ),
        };
        target.set_unlocked(unlocked);
        target.set_schema(schema);
        let update = Update {
            target,
            attributes,
            remove: Vec::new(),
            if_version,
            skip_unchanged,
        };
        Ok(remove.into_iter().fold(update, Update::remove))
    }
}

/// Writes the record form, without the fields that say nothing.
impl Serialize for Update {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let target = &self.target;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("conversationId", target.conversation_id())?;
        if target.kind() != TargetKind::Conversation {
            map.serialize_entry("target", target.kind().name())?;
        }
        for (name, text) in [
            ("participant", target.participant_selector()),
            ("record", target.record()),
            ("schema", target.schema()),
            ("ifVersion", self.if_version.as_deref()),
        ] {
            if let Some(text) = text {
                map.serialize_entry(name, text)?;
            }
        }
        map.serialize_entry("attributes", &self.attributes)?;
        if !self.remove.is_empty() {
            map.serialize_entry("remove", &self.remove)?;
        }
        for (name, flag) in [
            ("skipUnchanged", self.skip_unchanged),
            ("unlocked", target.is_unlocked()),
        ] {
            if flag {
                map.serialize_entry(name, &true)?;
            }
        }
        map.end()
    }
}
