//! Whom of a conversation's participants an update means, and how that is written as text.

use std::fmt;

use crate::error::clip;
use crate::error::text::{did_you_mean, nearest};

/// Whom of a conversation's participants an update means.
///
/// From text, a purpose that the platform knows is a purpose, `purpose:NAME` is any purpose,
/// `id:ID` is any id, and text with a digit is an id. Another word is refused before anything is
/// sent, since it is more likely a purpose that is misspelt.
///
/// ```
/// use genesys_attributes::Participant;
///
/// assert_eq!(Participant::from("customer"), Participant::customer());
/// assert_eq!(Participant::from("agent"), Participant::purpose("agent"));
/// assert_eq!(Participant::from("purpose:robot"), Participant::purpose("robot"));
/// assert_eq!(Participant::from("7c1b4f0e"), Participant::id("7c1b4f0e"));
/// assert_eq!(Participant::purpose("robot").to_string(), "purpose:robot");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Participant {
    /// In the form in which records hold it.
    text: String,
}

/// What a [`Participant`] means.
pub(super) enum Selector<'a> {
    Id(&'a str),
    /// The first of these purposes that any participant has.
    Customer,
    Purpose(&'a str),
}

/// What the platform and its clients call the person outside of the organization.
pub(super) const CUSTOMER: [&str; 3] = ["customer", "external", "user"];

/// Purposes whose participant stays as long as the conversation does.
pub(super) const STAYING: [&str; 2] = ["customer", "external"];

/// The platform's purposes (`purpose` in its participant and analytics models).
const KNOWN: [&str; 19] = [
    "acd",
    "agent",
    "api",
    "botflow",
    "campaign",
    "customer",
    "dialer",
    "external",
    "fax",
    "group",
    "inbound",
    "ivr",
    "manual",
    "outbound",
    "station",
    "user",
    "voicemail",
    "voicesurveyflow",
    "workflow",
];

impl Participant {
    /// The customer: the first that exists of the purposes customer, external and user.
    pub fn customer() -> Participant {
        Participant::from("customer")
    }

    /// The participant with exactly this purpose. Those who are still active come before those who
    /// left; when several remain, the update fails and lists their ids.
    ///
    /// `purpose("customer")` does not look for `external` or `user`, as
    /// [`customer`](Participant::customer) does.
    pub fn purpose(purpose: impl Into<String>) -> Participant {
        let purpose = purpose.into();
        let text = if KNOWN.contains(&purpose.as_str()) && purpose != "customer" {
            purpose
        } else {
            ["purpose:", &purpose].concat()
        };
        Participant { text }
    }

    /// The participant with this id.
    pub fn id(id: impl Into<String>) -> Participant {
        let id = id.into();
        let ambiguous = KNOWN.contains(&id.as_str())
            || is_word(&id)
            || id.starts_with("purpose:")
            || id.starts_with("id:");
        let text = if ambiguous { ["id:", &id].concat() } else { id };
        Participant { text }
    }

    /// The text form: `customer`, `agent`, `purpose:NAME` or an id.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn selector(&self) -> Selector<'_> {
        let text = self.text.as_str();
        if text == "customer" {
            Selector::Customer
        } else if let Some(purpose) = text.strip_prefix("purpose:") {
            Selector::Purpose(purpose)
        } else if KNOWN.contains(&text) {
            Selector::Purpose(text)
        } else {
            Selector::Id(text.strip_prefix("id:").unwrap_or(text))
        }
    }

    /// The purpose that is meant in the first place, where its participant stays. Whoever does not
    /// know all participants cannot tell that it is one of a later purpose.
    pub(crate) fn staying_purpose(&self) -> Option<&'static str> {
        match self.selector() {
            Selector::Customer | Selector::Purpose("customer") => Some("customer"),
            Selector::Purpose("external") => Some("external"),
            _ => None,
        }
    }

    /// The id, where it is not a purpose that is meant.
    pub(crate) fn as_id(&self) -> Option<&str> {
        match self.selector() {
            Selector::Id(id) => Some(id),
            _ => None,
        }
    }

    /// What is wrong with a word that is neither a purpose nor like an id.
    pub(super) fn unknown_word(&self) -> Option<String> {
        let text = self.text.as_str();
        let is_plain = matches!(self.selector(), Selector::Id(id) if id == text);
        let hint = did_you_mean(text, &KNOWN);
        (is_plain && is_word(text)).then(|| format!("{:?}{hint}", clip(text, 64)))
    }
}

/// Whether text is a word rather than an id, or resembles a purpose.
fn is_word(text: &str) -> bool {
    let is_uuid = text.len() == 36 && text.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
    let has_digit = text.chars().any(char::is_numeric);
    let is_plain = text
        .chars()
        .all(|c| c.is_alphabetic() || c == '_' || c == '-');
    let letters = text.chars().count() > 2 && text.chars().all(char::is_alphabetic);
    !is_uuid && !has_digit && (letters || is_plain && nearest(text, &KNOWN).is_some())
}

impl From<&str> for Participant {
    fn from(text: &str) -> Participant {
        Participant::from(text.to_owned())
    }
}

impl From<String> for Participant {
    fn from(text: String) -> Participant {
        // One form for each meaning.
        match text.strip_prefix("purpose:") {
            Some(purpose) if purpose != "customer" => Participant::purpose(purpose),
            _ => match text.strip_prefix("id:") {
                Some(id) => Participant::id(id),
                None => Participant { text },
            },
        }
    }
}

impl From<&String> for Participant {
    fn from(text: &String) -> Participant {
        Participant::from(text.clone())
    }
}

impl From<&Participant> for Participant {
    fn from(participant: &Participant) -> Participant {
        participant.clone()
    }
}

impl fmt::Display for Participant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
