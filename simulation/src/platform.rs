//! The platform of a schedule: its stores, how they lock, and a log of every change.
//!
//! Not the library's own stand-in: a schedule asks which write of which call took effect, and when a late copy of one
//! lands, and runs thousands of times a second.

use genesys_attributes::Attributes;
use genesys_attributes::http::{Method, Request};
use serde_json::{Value, json};

use crate::answer::Answer;

/// One store of a conversation.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// `None` where nothing was ever written.
    pub version: Option<u64>,
    pub values: Attributes,
}

#[derive(Debug, Clone)]
pub struct Person {
    pub id: String,
    pub purpose: &'static str,
    pub left: bool,
    pub values: Attributes,
}

/// How the conversation-level store tells its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Number,
    Text,
    Tag,
}

#[derive(Debug)]
pub struct Conversation {
    pub id: String,
    pub style: Style,
    pub own: Stored,
    pub secure: Stored,
    pub custom: Stored,
    pub people: Vec<Person>,
}

/// Which store of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Own,
    Person,
    Secure,
    Custom,
}

/// A write on its way.
#[derive(Debug, Clone)]
pub struct Write {
    pub call: usize,
    pub conversation: usize,
    pub store: Store,
    pub method: Method,
    /// As it came: an entity tag, or the body's version as text.
    pub version: Option<String>,
    pub values: Attributes,
    pub person: Option<String>,
    pub divisions: bool,
}

/// A change that took effect.
#[derive(Debug)]
pub struct Change {
    pub values: Attributes,
}

/// What a read showed.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub version: Option<u64>,
    pub values: Attributes,
    pub agent: Option<String>,
}

#[derive(Debug, Default)]
pub struct Platform {
    pub conversations: Vec<Conversation>,
    pub log: Vec<Change>,
}

/// The key that counts; all others are set.
pub const COUNTER: &str = "n";

pub fn count_in(values: &Attributes) -> u64 {
    match values.get(COUNTER) {
        Some(Value::Number(n)) => n.as_u64().unwrap_or_default(),
        Some(Value::String(text)) => text.parse().unwrap_or_default(),
        _ => 0,
    }
}

impl Conversation {
    pub fn new(number: usize, style: Style, secure_written: bool, record: bool) -> Self {
        let stored = |version| Stored {
            version,
            values: Attributes::new(),
        };
        let person = |name: &str, purpose| Person {
            id: format!("{name}{number}"),
            purpose,
            left: false,
            values: Attributes::new(),
        };
        let customer = if number == 0 { "customer" } else { "external" };
        Conversation {
            id: format!("c{number}"),
            style,
            own: stored(Some(1)),
            secure: stored(secure_written.then_some(1)),
            custom: stored(record.then_some(1)),
            people: vec![person("p", customer), person("a", "agent")],
        }
    }

    pub fn stored(&mut self, store: Store) -> Option<&mut Stored> {
        match store {
            Store::Own => Some(&mut self.own),
            Store::Secure => Some(&mut self.secure),
            Store::Custom => Some(&mut self.custom),
            Store::Person => None,
        }
    }

    pub fn agent(&self) -> Option<&str> {
        let mut people = self.people.iter();
        let agent = people.find(|p| p.purpose == "agent" && !p.left)?;
        Some(&agent.id)
    }

    /// Another agent takes over.
    pub fn transfer(&mut self) {
        let id = format!("{}-a{}", self.id, self.people.len());
        for person in &mut self.people {
            person.left |= person.purpose == "agent";
        }
        self.people.push(Person {
            id,
            purpose: "agent",
            left: false,
            values: Attributes::new(),
        });
    }
}

impl Platform {
    /// Takes a write apart.
    pub fn parse(&self, call: usize, request: &Request) -> Option<Write> {
        let path = request.url().split("/conversations/").nth(1)?;
        let mut parts = path.split('/');
        let id = parts.next()?;
        let conversation = self.conversations.iter().position(|c| c.id == id)?;
        let (store, person) = match (parts.next()?, parts.next()) {
            ("attributes", None) => (Store::Own, None),
            ("participants", Some(id)) => (Store::Person, Some(id.to_owned())),
            ("secureattributes", None) => (Store::Secure, None),
            ("customattributes", None) => (Store::Custom, None),
            _ => return None,
        };
        let mut body: Attributes = serde_json::from_slice(request.body()?).ok()?;
        let field = if store == Store::Custom {
            "customAttributes"
        } else {
            "attributes"
        };
        let Some(Value::Object(values)) = body.remove(field) else {
            return None;
        };
        let mut headers = request.headers();
        let tag = headers.find(|(name, _)| *name == "If-Match");
        let version = match (tag, body.get("version")) {
            (Some((_, tag)), _) => Some(tag.to_owned()),
            (None, Some(Value::Number(n))) => Some(n.to_string()),
            (None, Some(Value::String(text))) => Some(text.clone()),
            _ => None,
        };
        Some(Write {
            call,
            conversation,
            store,
            method: request.method(),
            version,
            values,
            person,
            divisions: body.get("divisions").is_some(),
        })
    }

    /// A write takes effect, or is refused. The new version.
    pub fn apply(&mut self, write: &Write) -> Result<Option<u64>, u16> {
        let conversation = &mut self.conversations[write.conversation];
        let version = match write.store {
            Store::Person => {
                let mut people = conversation.people.iter_mut();
                let person = people
                    .find(|p| Some(&p.id) == write.person.as_ref())
                    .ok_or(404u16)?;
                person.values.extend(write.values.clone());
                None
            }
            store => {
                let stored = conversation.stored(store).ok_or(404u16)?;
                let named = write.version.as_deref().map(|text| text.trim_matches('"'));
                let current = stored.version.map(|v| v.to_string());
                let replaces = write.method == Method::Put;
                let matches = match (store, named) {
                    (Store::Own, None) => return Err(428),
                    // Only the secure map's PATCH and a creating PUT have none.
                    (_, None) => true,
                    (_, named) => named == current.as_deref(),
                };
                if store == Store::Custom && !replaces && stored.version.is_none() {
                    return Err(404);
                }
                if !matches {
                    return Err(if store == Store::Own { 412 } else { 409 });
                }
                if replaces {
                    stored.values = write.values.clone();
                } else {
                    stored.values.extend(write.values.clone());
                }
                let next = stored.version.unwrap_or(0) + 1;
                stored.version = Some(next);
                Some(next)
            }
        };
        self.log.push(Change {
            values: write.values.clone(),
        });
        Ok(version)
    }

    /// Another program sets these values.
    pub fn interfere(&mut self, conversation: usize, store: Store, values: Attributes) {
        let conversation = &mut self.conversations[conversation];
        match conversation.stored(store) {
            Some(stored) if stored.version.is_some() => {
                stored.values.extend(values.clone());
                stored.version = stored.version.map(|v| v + 1);
            }
            Some(_) => return,
            None => {
                for person in &mut conversation.people {
                    person.values.extend(values.clone());
                }
            }
        }
        self.log.push(Change { values });
    }

    /// What a read of this store shows, and the answer.
    pub fn read(&self, conversation: usize, store: Store, who: &str) -> (Seen, Answer) {
        let conversation = &self.conversations[conversation];
        let agent = conversation.agent().map(str::to_owned);
        match store {
            Store::Own | Store::Person => {
                let version = conversation.own.version.unwrap_or_default();
                let mut body = String::with_capacity(400);
                body += r#"{"id":""#;
                body += &conversation.id;
                body += r#"","attributes":"#;
                body += &text_of(&conversation.own.values);
                match conversation.style {
                    Style::Number => body += &format!(r#","version":{version}"#),
                    Style::Text => body += &format!(r#","version":"{version}""#),
                    Style::Tag => {}
                }
                body += r#","participants":["#;
                for (i, person) in conversation.people.iter().enumerate() {
                    if i > 0 {
                        body.push(',');
                    }
                    body += r#"{"id":""#;
                    body += &person.id;
                    body += r#"","purpose":""#;
                    body += person.purpose;
                    body += if person.left {
                        r#"","endTime":"2026-01-01T00:00:00Z","attributes":"#
                    } else {
                        r#"","attributes":"#
                    };
                    body += &text_of(&person.values);
                    body.push('}');
                }
                body += "]}";
                let mut answer = Answer::new(200, body);
                if conversation.style == Style::Tag {
                    answer = answer.etag(version);
                }
                let seen = if store == Store::Own {
                    Seen {
                        version: conversation.own.version,
                        values: conversation.own.values.clone(),
                        agent,
                    }
                } else {
                    let meant = match who {
                        "agent" => agent.as_deref(),
                        "customer" => Some(conversation.people[0].id.as_str()),
                        id => Some(id),
                    };
                    let mut people = conversation.people.iter();
                    let person = people.find(|p| Some(p.id.as_str()) == meant);
                    Seen {
                        version: None,
                        values: person.map(|p| p.values.clone()).unwrap_or_default(),
                        agent,
                    }
                };
                (seen, answer)
            }
            Store::Secure | Store::Custom => {
                let (stored, field) = if store == Store::Secure {
                    (&conversation.secure, "attributes")
                } else {
                    (&conversation.custom, "customAttributes")
                };
                let seen = Seen {
                    version: stored.version,
                    values: stored.values.clone(),
                    agent,
                };
                let answer = match stored.version {
                    Some(version) => {
                        let divisions = if store == Store::Custom {
                            r#","divisions":["d-1"]"#
                        } else {
                            ""
                        };
                        let values = text_of(&stored.values);
                        Answer::new(
                            200,
                            format!(r#"{{"{field}":{values},"version":{version}{divisions}}}"#),
                        )
                    }
                    None if store == Store::Secure => Answer::new(200, "{}"),
                    None => Answer::new(404, r#"{"code":"not.found"}"#),
                };
                (seen, answer)
            }
        }
    }

    /// The answer to a write that took effect. `way`: how much it tells of the new version.
    pub fn written(&self, write: &Write, version: Option<u64>, way: u64) -> Answer {
        let conversation = &self.conversations[write.conversation];
        if write.store == Store::Person {
            return Answer::new(202, "{}");
        }
        let version = version.unwrap_or_default();
        if write.store != Store::Own {
            return Answer::new(200, json!({ "version": version }).to_string());
        }
        match (way, conversation.style) {
            // Nothing, or the hash of a body: of another form than the version, or of the same.
            (0, _) => Answer::new(200, "{}"),
            (1, _) => Answer::new(200, "{}").etag(format!("hash-{version}")),
            (2, _) => Answer::new(204, ""),
            (_, Style::Number) => Answer::new(200, format!(r#"{{"version":{version}}}"#)),
            (_, Style::Text) => Answer::new(200, format!(r#"{{"version":"{version}"}}"#)),
            (_, Style::Tag) => Answer::new(200, "{}").etag(version),
        }
    }
}

fn text_of(values: &Attributes) -> String {
    serde_json::to_string(values).unwrap_or_default()
}
