//! What is wrong with an update, key by key.

use std::fmt;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::error::text::{clip, one_line};

/// The rule that a value, key, identifier or option broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// An update must set or remove something.
    NothingToDo,
    /// A key must not be empty.
    KeyEmpty,
    /// A key must not be longer than the limit, in UTF-16 code units.
    KeyLength,
    /// A string must not be longer than the limit, in UTF-16 code units.
    ValueLength,
    /// An integer must not be below zero.
    IntegerMin,
    /// An integer must not be above the limit.
    IntegerMax,
    /// A number must be an integer.
    Integer,
    /// The value is of a type that the target does not take.
    Type,
    /// An identifier must not be empty, nor hold whitespace, control characters, `/`, `?`, `#`
    /// or `..`.
    Identifier,
    /// A `system.` key must not be set on a conversation that is over.
    SystemKey,
    /// The conversation is over, and the client is set to refuse that.
    Ended,
    /// The target cannot do what the option asks for.
    Unsupported,
    /// The same key is both set and removed.
    SetAndRemoved,
    /// A version must be text that fits into a header field.
    Version,
    /// A rule of a [`Schema`](crate::values::schema::Schema) of the caller's.
    Schema,
    /// A rule of the caller's own, by its name in JSON records.
    Custom(&'static str),
}

impl Rule {
    /// The name used in JSON records, such as `"keyLength"`.
    pub fn name(self) -> &'static str {
        match self {
            Rule::NothingToDo => "nothingToDo",
            Rule::KeyEmpty => "keyEmpty",
            Rule::KeyLength => "keyLength",
            Rule::ValueLength => "valueLength",
            Rule::IntegerMin => "integerMin",
            Rule::IntegerMax => "integerMax",
            Rule::Integer => "integer",
            Rule::Type => "type",
            Rule::Identifier => "identifier",
            Rule::SystemKey => "systemKey",
            Rule::Ended => "ended",
            Rule::Unsupported => "unsupported",
            Rule::SetAndRemoved => "setAndRemoved",
            Rule::Version => "version",
            Rule::Schema => "schema",
            Rule::Custom(name) => name,
        }
    }
}

impl Rule {
    const ALL: [Rule; 15] = [
        Rule::NothingToDo,
        Rule::KeyEmpty,
        Rule::KeyLength,
        Rule::ValueLength,
        Rule::IntegerMin,
        Rule::IntegerMax,
        Rule::Integer,
        Rule::Type,
        Rule::Identifier,
        Rule::SystemKey,
        Rule::Ended,
        Rule::Unsupported,
        Rule::SetAndRemoved,
        Rule::Version,
        Rule::Schema,
    ];
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One thing that is wrong with an update.
///
/// A violation never holds the offending value itself, since values may be personal data: only
/// its key, the rule, the limit and a description such as `"1025 UTF-16 units"`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Violation {
    /// The attribute's key, or the name of the field (`conversationId`, `ifVersion`, …). A key
    /// that is too long is cut.
    pub key: String,
    /// The rule that is broken.
    pub rule: Rule,
    /// The limit of the rule, where it has one: code units, or the largest integer.
    pub limit: Option<u64>,
    /// What was found, without the value.
    pub found: String,
}

impl Violation {
    /// A violation of a rule of your own, for [`Schema::check`](crate::values::schema::Schema::check). `found` says
    /// what is wrong, and should not hold the value.
    ///
    /// ```
    /// use genesys_attributes::validate::Violation;
    ///
    /// let violation = Violation::custom("iban", "checksum", "a wrong check digit");
    /// assert_eq!(violation.to_string(), "\"iban\" breaks the rule checksum: a wrong check digit");
    /// ```
    pub fn custom(key: &str, rule: &'static str, found: impl Into<String>) -> Violation {
        Violation::new(key, Rule::Custom(rule), one_line(&found.into()))
    }

    pub(crate) fn new(key: &str, rule: Rule, found: impl Into<String>) -> Violation {
        Violation {
            key: clip(key, 64),
            rule,
            limit: None,
            found: found.into(),
        }
    }

    pub(crate) fn limit(mut self, limit: u64) -> Violation {
        self.limit = Some(limit);
        self
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation {
            key, rule, found, ..
        } = self;
        let limit = self.limit.unwrap_or_default();
        // The key is the caller's text: escaped, so that a message stays one line.
        match rule {
            Rule::NothingToDo => write!(f, "nothing to set: give at least one attribute"),
            Rule::KeyEmpty => write!(f, "an attribute has an empty key: name it"),
            Rule::KeyLength => write!(
                f,
                "key {key:?} is too long: at most {limit} UTF-16 units, found {found}"
            ),
            Rule::ValueLength => write!(
                f,
                "{key:?} is too long: at most {limit} UTF-16 units, found {found}"
            ),
            Rule::IntegerMin => write!(f, "{key:?} must be 0 or more, found {found}"),
            Rule::IntegerMax => write!(f, "{key:?} must be at most {limit}, found {found}"),
            Rule::Integer => write!(f, "{key:?} must be an integer, found {found}"),
            Rule::Type => write!(
                f,
                "{key:?} must be a string, an integer or a boolean, found {found}"
            ),
            Rule::Identifier => write!(
                f,
                "{key} must be an identifier without whitespace, control characters, '/', '?', '#' or '..', found {found}"
            ),
            Rule::SystemKey => write!(
                f,
                "cannot modify immutable attributes {key} on {found} conversation: leave out keys that begin with \"system.\""
            ),
            Rule::Ended => write!(
                f,
                "the conversation is {found}, and updates of such are set to be refused"
            ),
            Rule::Unsupported => write!(f, "{key} cannot be used here: {found}"),
            Rule::Schema => write!(f, "{key:?} breaks the schema: found {found}"),
            Rule::Custom(name) => write!(f, "{key:?} breaks the rule {name}: {found}"),
            Rule::SetAndRemoved => write!(f, "{key:?} is both set and removed: choose one"),
            Rule::Version => write!(
                f,
                "{key} is not a usable version, found {found}: give the version of a receipt or snapshot"
            ),
        }
    }
}

impl Serialize for Violation {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut s = serializer.serialize_struct("Violation", 4)?;
        s.serialize_field("key", &self.key)?;
        s.serialize_field("rule", self.rule.name())?;
        s.serialize_field("limit", &self.limit)?;
        s.serialize_field("found", &self.found)?;
        s.end()
    }
}

/// Reads what serializing wrote; a rule of a caller's own comes back as `Rule::Custom("custom")`.
impl<'de> Deserialize<'de> for Violation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Fields {
            key: String,
            rule: String,
            #[serde(default)]
            limit: Option<u64>,
            found: String,
        }
        let fields = Fields::deserialize(deserializer)?;
        let rule = Rule::ALL.iter().find(|rule| rule.name() == fields.rule);
        Ok(Violation {
            key: fields.key,
            rule: rule.copied().unwrap_or(Rule::Custom("custom")),
            limit: fields.limit,
            found: fields.found,
        })
    }
}
