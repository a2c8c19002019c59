//! Whom of a conversation's participants an update means, and how that is written as text.

use std::fmt;

/// Whom of a conversation's participants an update means.
///
/// From text, a purpose that the platform knows is a purpose, `purpose:NAME` is any purpose,
/// `id:ID` is any id, and everything else is an id.
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
const KNOWN: [&str; 18] = [
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
        let ambiguous =
            KNOWN.contains(&id.as_str()) || id.starts_with("purpose:") || id.starts_with("id:");
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

    pub(crate) fn is_id(&self) -> bool {
        matches!(self.selector(), Selector::Id(_))
    }

    /// The purpose that an id looks like, such as `agent` for `agnet`.
    pub(crate) fn resembles(&self) -> Option<&'static str> {
        let Selector::Id(id) = self.selector() else {
            return None;
        };
        let letters = |text: &str| {
            let mut letters: Vec<char> = text.to_lowercase().chars().collect();
            letters.sort_unstable();
            letters
        };
        let near = |purpose: &&&str| {
            // The same letters in another order, or one more, one less or another one.
            let (a, b) = (letters(id), letters(purpose));
            let missing = a.iter().filter(|c| !b.contains(c)).count();
            let extra = b.iter().filter(|c| !a.contains(c)).count();
            a == b || a.len().abs_diff(b.len()) <= 1 && missing + extra <= 1 && a.len() > 3
        };
        KNOWN.iter().find(near).copied()
    }
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
