//! Ids of participants, found for up to 100 conversations with one request.
//!
//! Only for the purposes `customer` and `external`, whose participants stay. Whatever the answer
//! leaves open is left to the update's own read.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value;

use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::http::{Body, Response, Unreadable};
use crate::session::problem;
use crate::session::retry::Caller;
use crate::store::{Target, encoded};
use crate::update::Update;
use crate::update::core::EndedPolicy;
use crate::util::sync::Cancel;

use super::notice::Notice;

/// How many conversations are asked for at once, at most.
const MAX_CHUNK: usize = 100;
/// So many look-ups in a row without an answer that helps switch the look-ahead off.
const MAX_REFUSED: u32 = 2;
/// So many wrong ids in a row switch it off.
const MAX_WRONG: u32 = 10;

/// What the look-up found of a conversation: the participants who stay, where there is one of the
/// purpose. Of several, the look-up does not tell which one is still there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    customer: Option<String>,
    external: Option<String>,
    /// The conversation is over.
    pub(super) ended: bool,
}

impl Found {
    /// The id of the participant that a target means.
    pub(super) fn id_of(&self, target: &Target) -> Option<&str> {
        match purpose(target)? {
            "customer" => self.customer.as_deref(),
            _ => self.external.as_deref(),
        }
    }

    /// Makes the client remember the ids, under every name that a target of the conversation may
    /// have for them. What the client knows already stays.
    pub(super) fn remember(&self, client: &Client, conversation: &str) {
        for (name, id) in [
            ("customer", &self.customer),
            ("purpose:customer", &self.customer),
            ("external", &self.external),
        ] {
            let Some(id) = id else { continue };
            let target = Target::participant(conversation, name);
            if !client.knows_participant(&target) {
                client.remember_participant(&target, id.clone());
            }
        }
    }
}

/// What a look-up came to.
#[derive(Debug)]
pub(super) enum Answer {
    /// What was found, in the order of the targets.
    Found(Vec<Option<Found>>),
    /// The platform refused this request.
    Refused(Error),
    /// These credentials may not look up.
    Forbidden(Error),
    /// The request failed in a way that may pass.
    Failed(Error),
}

/// Whether participants are looked up in bulk, in the course of a batch.
#[derive(Debug)]
pub(super) struct LookAhead {
    /// How many conversations are asked for at once. Fewer than two: none.
    chunk: usize,
    /// Look-ups in a row without an answer that helps.
    refused: u32,
    /// A look-up failed, and no line has been answered since.
    waits: bool,
    /// Wrong ids in a row.
    wrong: u32,
}

impl LookAhead {
    pub(super) fn new(client: &Client) -> LookAhead {
        LookAhead {
            // A client that refuses conversations that are over reads each of them.
            chunk: match client.ended_policy() {
                EndedPolicy::Refuse => 0,
                _ => MAX_CHUNK.min(client.cache_capacity() / 8),
            },
            refused: 0,
            waits: false,
            wrong: 0,
        }
    }

    /// How many conversations to ask for now. Fewer than two: none.
    pub(super) fn chunk(&self) -> usize {
        if self.waits { 0 } else { self.chunk }
    }

    /// Whether no more look-ups come.
    pub(super) fn is_off(&self) -> bool {
        self.chunk < 2
    }

    /// Whether a look-up would save this update its read.
    pub(super) fn helps(&self, client: &Client, update: &Update) -> bool {
        !self.is_off() && !update.skip_unchanged && can_ask(client, update.target())
    }

    /// A line was answered.
    pub(super) fn answered(&mut self) {
        self.waits = false;
    }

    fn off(&mut self, error: &Error) -> Option<Notice> {
        let known = self.is_off();
        self.chunk = 0;
        let error = error.clone();
        (!known).then_some(Notice::LookAheadOff { error })
    }

    /// Counts an answer. Says whether the same lines may be looked up again.
    pub(super) fn learn(&mut self, answer: &Answer) -> (bool, Option<Notice>) {
        let (again, error) = match answer {
            Answer::Found(_) => {
                self.refused = 0;
                return (false, None);
            }
            Answer::Forbidden(error) => return (false, self.off(error)),
            Answer::Refused(error) => (false, error),
            Answer::Failed(error) => {
                self.waits = true;
                // It was not sent, in a pause that the platform asked for.
                let unsent = error.http_status().is_none();
                if error.kind() == ErrorKind::Cancelled
                    || error.kind() == ErrorKind::RateLimited && unsent
                {
                    return (true, None);
                }
                (true, error)
            }
        };
        self.refused += 1;
        match self.refused {
            MAX_REFUSED.. => (false, self.off(error)),
            _ => (again, None),
        }
    }

    /// Counts an id that was found and used. Each wrong one costs a request more than it saves.
    pub(super) fn used(&mut self, right: bool) -> Option<Notice> {
        self.wrong = if right { 0 } else { self.wrong + 1 };
        if self.wrong < MAX_WRONG {
            return None;
        }
        self.off(&Error::new(
            ErrorKind::NotFound,
            "most of the participants that were found are not there (their conversations may be gone)",
        ))
    }
}

/// Asks for the participants of these targets, of up to 100 conversations, with one request.
pub(super) fn ask(
    client: &Client,
    targets: &[&Target],
    caller: Caller,
    cancel: Option<&Cancel>,
) -> Answer {
    let ids: Vec<_> = targets
        .iter()
        .map(|target| encoded(target.conversation_id()))
        .collect();
    let path = format!(
        "/api/v2/analytics/conversations/details?id={}",
        ids.join(",")
    );
    let what = match targets.len() {
        1 => "participants of 1 conversation".to_owned(),
        many => format!("participants of {many} conversations"),
    };
    let response = match client.look_up(&path, &what, caller, cancel) {
        Ok(response) => response,
        Err(error) => return Answer::Failed(error),
    };
    let refused = || problem::error_of(&response, &what, None);
    match response.status {
        200..=299 => {}
        403 => {
            let advice = "the permission that it takes is analytics:conversationDetail:view";
            return Answer::Forbidden(refused().and(advice));
        }
        408 | 429 | 500.. => return Answer::Failed(refused()),
        _ => return Answer::Refused(refused()),
    }
    match read(&response) {
        Ok(details) => Answer::Found(details.found(targets)),
        Err(unreadable) => {
            let lost = unreadable.is_transient();
            let error = unreadable.into_error("the answer cannot be used");
            match lost {
                true => Answer::Failed(error.within(&what)),
                false => Answer::Refused(error.within(&what)),
            }
        }
    }
}

impl Client {
    /// Looks up the ids of participants that are named by their purpose (`customer`, `external`)
    /// with one request for 100 conversations, and remembers them. A later update of one then
    /// takes one request instead of two. A [`Batch`](crate::Batch) does this by itself.
    ///
    /// Other targets are left out, and so are conversations whose id is no UUID, that the platform
    /// does not tell yet, or that are over. For
    /// [`Participant::customer`](crate::Participant::customer) only a participant of the purpose
    /// customer is taken: another one may only be the first to be told. Returns how many were
    /// found. A client that [refuses conversations that are over](EndedPolicy::Refuse) looks
    /// nothing up.
    ///
    /// # Errors
    ///
    /// `Forbidden` without the permission `analytics:conversationDetail:view`; `InvalidInput` where
    /// everything that was asked for is refused; others as for reading in [`Client::update`]. What
    /// was found before stays.
    ///
    /// Source: the Platform API's `GET /api/v2/analytics/conversations/details`.
    ///
    /// ```no_run
    /// # use genesys_attributes::{Client, Update};
    /// # let client = Client::from_env()?;
    /// let updates: Vec<Update> = ["5b2f0c1e-0000-4000-8000-000000000001"]
    ///     .map(|id| Update::participant(id, "customer").set("tier", "gold"))
    ///     .into();
    /// client.prefetch_participants(updates.iter().map(Update::target))?;
    /// for update in &updates {
    ///     client.update(update)?;
    /// }
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn prefetch_participants<'t>(
        &self,
        targets: impl IntoIterator<Item = &'t Target>,
    ) -> Result<usize> {
        self.core()?;
        let mut look_ahead = LookAhead::new(self);
        let mut seen = HashSet::new();
        let wanted: Vec<&Target> = targets
            .into_iter()
            .filter(|target| can_ask(self, target) && seen.insert(target.conversation_id()))
            .collect();
        let (mut count, mut refusal) = (0, None);
        for chunk in wanted.chunks(look_ahead.chunk.max(1)) {
            if look_ahead.is_off() {
                break;
            }
            let answer = ask(self, chunk, Caller::Single, None);
            look_ahead.learn(&answer);
            match answer {
                Answer::Found(found) => {
                    for (target, found) in chunk.iter().zip(found) {
                        if let Some(found) = found.filter(|found| !found.ended) {
                            found.remember(self, target.conversation_id());
                            count += 1;
                        }
                    }
                }
                // The updates' own reads find these.
                Answer::Refused(error) => refusal = Some(error),
                Answer::Forbidden(error) | Answer::Failed(error) => return Err(error),
            }
        }
        match refusal {
            Some(error) if count == 0 => Err(error),
            _ => Ok(count),
        }
    }
}

/// Whether the id of the target's participant is unknown, and can be asked for.
fn can_ask(client: &Client, target: &Target) -> bool {
    purpose(target).is_some()
        && is_uuid(target.conversation_id())
        && target.checked().is_ok()
        && !client.knows_participant(target)
}

/// Conversation ids are UUIDs. The platform refuses a whole look-up for one that is none.
fn is_uuid(id: &str) -> bool {
    let is_right = |(at, byte): (usize, u8)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    };
    id.len() == 36 && id.bytes().enumerate().all(is_right)
}

/// The purpose that a target means, where its participant stays.
fn purpose(target: &Target) -> Option<&'static str> {
    target.participant_selector()?.staying_purpose()
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    conversations: Option<Vec<Conversation>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Conversation {
    #[serde(default)]
    conversation_id: Option<String>,
    #[serde(default)]
    conversation_end: Option<Value>,
    #[serde(default)]
    participants: Option<Vec<Participant>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Participant {
    #[serde(default)]
    participant_id: Option<String>,
    #[serde(default)]
    purpose: Option<String>,
}

fn read(response: &Response) -> std::result::Result<Details, Unreadable> {
    let details: Details = response.object_of()?;
    match details.conversations {
        Some(_) => Ok(details),
        // The platform knows none of these conversations, and may leave out an empty list.
        None if matches!(&response.body, Body::Whole(body) if body.trim_ascii() == b"{}") => {
            Ok(details)
        }
        None => Err(Unreadable::Unexpected("it holds no conversations".into())),
    }
}

impl Details {
    fn found(self, targets: &[&Target]) -> Vec<Option<Found>> {
        let mut by_id: HashMap<String, Conversation> = HashMap::new();
        for conversation in self.conversations.unwrap_or_default() {
            if let Some(id) = conversation.conversation_id.clone() {
                by_id.insert(id, conversation);
            }
        }
        let found = targets.iter().map(|target| {
            let conversation = by_id.get(target.conversation_id())?;
            let end = conversation.conversation_end.as_ref();
            let found = Found {
                customer: conversation.only("customer"),
                external: conversation.only("external"),
                ended: end.is_some_and(|end| !end.is_null()),
            };
            found.id_of(target).is_some().then_some(found)
        });
        found.collect()
    }
}

impl Conversation {
    /// The one participant of a purpose.
    fn only(&self, purpose: &str) -> Option<String> {
        let all = self.participants.as_deref().unwrap_or_default();
        let mut meant = all.iter().filter(|p| p.purpose.as_deref() == Some(purpose));
        let one = meant.next().filter(|_| meant.next().is_none())?;
        one.participant_id.clone().filter(|id| !id.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: ErrorKind) -> Error {
        Error::new(kind, "scripted")
    }

    fn on() -> LookAhead {
        LookAhead {
            chunk: MAX_CHUNK,
            refused: 0,
            waits: false,
            wrong: 0,
        }
    }

    #[test]
    fn two_refusals_in_a_row_switch_it_off_and_one_does_not() {
        let mut look_ahead = on();
        let refused = || Answer::Refused(error(ErrorKind::InvalidInput));
        for _ in 0..5 {
            assert!(matches!(look_ahead.learn(&refused()), (false, None)));
            look_ahead.learn(&Answer::Found(Vec::new()));
        }
        look_ahead.learn(&refused());
        assert!(!look_ahead.is_off());
        let (again, notice) = look_ahead.learn(&refused());
        assert!(look_ahead.is_off() && !again && notice.is_some());
        // Told once.
        assert!(look_ahead.learn(&refused()).1.is_none());
    }

    #[test]
    fn missing_permission_switches_it_off_at_once() {
        let mut look_ahead = on();
        let forbidden = Answer::Forbidden(error(ErrorKind::Forbidden));
        assert!(look_ahead.learn(&forbidden).1.is_some());
        assert_eq!(look_ahead.chunk(), 0);
    }

    #[test]
    fn after_a_failure_it_waits_for_the_answer_to_a_line() {
        let mut look_ahead = on();
        let failed = || Answer::Failed(error(ErrorKind::Server).with_http_status(503));
        assert!(matches!(look_ahead.learn(&failed()), (true, None)));
        assert_eq!(look_ahead.chunk(), 0);
        look_ahead.answered();
        assert_eq!(look_ahead.chunk(), MAX_CHUNK);
        look_ahead.learn(&failed());
        assert!(look_ahead.is_off());
        // A pause in which nothing is sent does not count.
        let mut look_ahead = on();
        for _ in 0..10 {
            let unsent = Answer::Failed(error(ErrorKind::RateLimited));
            assert!(matches!(look_ahead.learn(&unsent), (true, None)));
        }
        assert!(!look_ahead.is_off());
    }

    #[test]
    fn wrong_ids_in_a_row_switch_it_off() {
        let mut look_ahead = on();
        for wrong in 0..MAX_WRONG - 1 {
            assert!(look_ahead.used(false).is_none(), "{wrong}");
        }
        assert!(look_ahead.used(true).is_none());
        for _ in 1..MAX_WRONG {
            assert!(look_ahead.used(false).is_none());
        }
        assert!(look_ahead.used(false).is_some() && look_ahead.is_off());
        assert!(look_ahead.used(false).is_none());
    }

    #[test]
    fn uuids_by_table() {
        assert!(is_uuid("5b2f0c1e-0000-4000-8000-00000000000A"));
        for other in [
            "",
            "c-1",
            "5b2f0c1e-0000-4000-8000-00000000000",
            "5b2f0c1e-0000-4000-8000-00000000000g",
            "5b2f0c1e00000-4000-8000-000000000001",
            "5b2f0c1e-0000-4000-8000-0000000000é",
        ] {
            assert!(!is_uuid(other), "{other}");
        }
    }
}
