//! What is wrong with an update, key by key.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::text::{clip, one_line};

/// The rule that a value, key, identifier or option broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
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
    /// A participant is named by a word that is neither a purpose nor an id.
    UnknownPurpose,
    /// Several participants have the purpose that the update names.
    SeveralParticipants,
    /// A rule of the caller's own, by its name in JSON records.
    ///
    /// It reads back from JSON as `Rule::Custom("custom")`.
    #[serde(untagged, deserialize_with = "custom")]
    Custom(StaticName),
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
            Rule::UnknownPurpose => "unknownPurpose",
            Rule::SeveralParticipants => "severalParticipants",
            Rule::Custom(name) => name,
        }
    }
}

/// An alias, since serde would borrow a reference from its input.
type StaticName = &'static str;

fn custom<'de, D: Deserializer<'de>>(deserializer: D) -> Result<&'static str, D::Error> {
    String::deserialize(deserializer).map(|_| "custom")
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
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Violation {
    /// The attribute's key, or the name of the field (`conversationId`, `ifVersion`, …). A key
    /// that is too long is cut.
    pub key: String,
    /// The rule that is broken.
    pub rule: Rule,
    /// The limit of the rule, where it has one: code units, or the largest integer.
    #[serde(default)]
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
            Rule::Type => {
                let advice = match found.as_str() {
                    "null" => {
                        ": leave the key out to keep its value, set \"\" to empty it, or remove it \
                         where the store can"
                    }
                    _ => ": give it as text",
                };
                write!(
                    f,
                    "{key:?} must be text, a number or a boolean, found {found}{advice}"
                )
            }
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
            Rule::UnknownPurpose => write!(
                f,
                "{found} is neither a purpose of the platform nor like the id of a participant: \
                 write purpose:NAME for any purpose, or id:ID for any id"
            ),
            Rule::SeveralParticipants => f.write_str(found),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violation_reads_back_with_each_rule_by_its_name() {
        for rule in [
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
            Rule::UnknownPurpose,
            Rule::SeveralParticipants,
            Rule::Custom("custom"),
        ] {
            let violation = Violation::new("k", rule, "something").limit(3);
            let json = serde_json::to_value(&violation).unwrap();
            assert_eq!(json["rule"], rule.name());
            assert_eq!(
                serde_json::from_value::<Violation>(json).unwrap(),
                violation
            );
        }
        let json = serde_json::to_value(Violation::custom("k", "pair", "x")).unwrap();
        assert_eq!(
            (&json["rule"], &json["limit"]),
            (&"pair".into(), &serde_json::Value::Null)
        );
        let again: Violation = serde_json::from_value(json).unwrap();
        assert_eq!(again.rule, Rule::Custom("custom"));
    }
}
