//! The platform of a schedule: its stores, how they lock, and a log of every change. Leaner than
//! the public stand-in, since thousands of schedules a second go through it.

use serde_json::{Value, json};

use crate::http::{Method, Request, Response};
use crate::values::attributes::Attributes;

/// One store of a conversation.
#[derive(Debug, Clone, Default)]
pub(super) struct Stored {
    /// `None` where nothing was ever written.
    pub(super) version: Option<u64>,
    pub(super) values: Attributes,
}

#[derive(Debug, Clone)]
pub(super) struct Person {
    pub(super) id: String,
    pub(super) purpose: &'static str,
    pub(super) left: bool,
    pub(super) values: Attributes,
}

/// How the conversation-level store tells its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Number,
    Text,
    Tag,
}

#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) id: String,
    pub(super) style: Style,
    pub(super) own: Stored,
    pub(super) secure: Stored,
    pub(super) custom: Stored,
    pub(super) people: Vec<Person>,
}

/// Which store of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Store {
    Own,
    Person,
    Secure,
    Custom,
}

/// A write on its way.
#[derive(Debug, Clone)]
pub(super) struct Write {
    pub(super) call: usize,
    pub(super) conversation: usize,
    pub(super) store: Store,
    pub(super) method: Method,
    /// As it came: an entity tag, or the body's version as text.
    pub(super) version: Option<String>,
    pub(super) values: Attributes,
    pub(super) person: Option<String>,
    pub(super) divisions: bool,
}

/// A change that took effect.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) values: Attributes,
}

/// What a read showed.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) version: Option<u64>,
    pub(super) values: Attributes,
    pub(super) agent: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Platform {
    pub(super) conversations: Vec<Conversation>,
    pub(super) log: Vec<Change>,
}

/// The key that counts; all others are set.
pub(super) const COUNTER: &str = "n";

pub(super) fn count_in(values: &Attributes) -> u64 {
    match values.get(COUNTER) {
        Some(Value::Number(n)) => n.as_u64().unwrap_or_default(),
        Some(Value::String(text)) => text.parse().unwrap_or_default(),
        _ => 0,
    }
}

impl Conversation {
    pub(super) fn new(number: usize, style: Style, secure_written: bool, record: bool) -> Self {
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

    pub(super) fn stored(&mut self, store: Store) -> Option<&mut Stored> {
        match store {
            Store::Own => Some(&mut self.own),
            Store::Secure => Some(&mut self.secure),
            Store::Custom => Some(&mut self.custom),
            Store::Person => None,
        }
    }

    pub(super) fn agent(&self) -> Option<&str> {
        let mut people = self.people.iter();
        let agent = people.find(|p| p.purpose == "agent" && !p.left)?;
        Some(&agent.id)
    }

    /// Another agent takes over.
    pub(super) fn transfer(&mut self) {
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
    pub(super) fn parse(&self, call: usize, request: &Request) -> Option<Write> {
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
        let version = match (&request.if_match, body.get("version")) {
            (Some(tag), _) => Some(tag.clone()),
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
    pub(super) fn apply(&mut self, write: &Write) -> Result<Option<u64>, u16> {
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
    pub(super) fn interfere(&mut self, conversation: usize, store: Store, values: Attributes) {
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
    pub(super) fn read(&self, conversation: usize, store: Store, who: &str) -> (Seen, Response) {
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
                let mut response = Response::new(200).with_body(body);
                if conversation.style == Style::Tag {
                    response = response.with_header("ETag", format!("\"{version}\""));
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
                (seen, response)
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
                let response = match stored.version {
                    Some(version) => {
                        let divisions = if store == Store::Custom {
                            r#","divisions":["d-1"]"#
                        } else {
                            ""
                        };
                        let values = text_of(&stored.values);
                        Response::new(200).with_body(format!(
                            r#"{{"{field}":{values},"version":{version}{divisions}}}"#
                        ))
                    }
                    None if store == Store::Secure => Response::new(200).with_body("{}"),
                    None => Response::new(404).with_body(r#"{"code":"not.found"}"#),
                };
                (seen, response)
            }
        }
    }

    /// The answer to a write that took effect. `way`: how much it tells of the new version.
    pub(super) fn written(&self, write: &Write, version: Option<u64>, way: u64) -> Response {
        let conversation = &self.conversations[write.conversation];
        if write.store == Store::Person {
            return Response::new(202).with_body("{}");
        }
        let version = version.unwrap_or_default();
        if write.store != Store::Own {
            return Response::new(200).with_body(json!({ "version": version }).to_string());
        }
        match (way, conversation.style) {
            // Nothing, or the hash of a body: of another form than the version, or of the same.
            (0, _) => Response::new(200).with_body("{}"),
            (1, _) => Response::new(200)
                .with_header("ETag", format!("\"hash-{version}\""))
                .with_body("{}"),
            (2, _) => Response::new(204),
            (_, Style::Number) => {
                Response::new(200).with_body(format!(r#"{{"version":{version}}}"#))
            }
            (_, Style::Text) => {
                Response::new(200).with_body(format!(r#"{{"version":"{version}"}}"#))
            }
            (_, Style::Tag) => Response::new(200)
                .with_header("ETag", format!("\"{version}\""))
                .with_body("{}"),
        }
    }
}

fn text_of(values: &Attributes) -> String {
    serde_json::to_string(values).unwrap_or_default()
}
