//! Ids of participants, found for many conversations with one request.
//!
//! Only for the purposes `customer` and `external`, whose participants stay. What the answer does
//! not tell beyond doubt is left to the update's own read.

use std::collections::HashMap;
use std::collections::HashSet;

use serde::Deserialize;
use serde_json::Value;

use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::http::{Body, Response, Unreadable};
use crate::problem;
use crate::sync::Cancel;
use crate::target::{Target, encoded};
use crate::update::Update;
use crate::update::core::EndedPolicy;

/// How many conversations are asked for at once, at most.
const MAX_CHUNK: usize = 100;
/// Without an answer so often in a row, while lines get theirs, it is not asked again.
const MAX_FAILURES: u32 = 3;

/// A participant that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) id: String,
    /// The conversation is over.
    pub(super) ended: bool,
}

/// What came of asking for many conversations at once.
#[derive(Debug)]
pub(super) enum Answer {
    /// What was found, in the order of the targets.
    Found(Vec<Option<Found>>),
    /// These were more than it takes, or than fit into an answer.
    TooMany(Error),
    /// It will not answer these credentials, or nobody.
    Refused(Error),
    /// It did not answer this time.
    Failed(Error),
}

/// What to do with those that were asked for.
#[derive(Debug)]
pub(super) enum Lesson {
    /// They can be run.
    Run,
    /// Fewer of them may be asked for again.
    Again,
    /// The first shows whether the platform is there at all, and the others are asked for again.
    Sound,
    /// They can be run, and nobody is asked for from here on.
    Off(Error),
}

/// How many are asked for at once.
#[derive(Debug)]
pub(super) struct LookAhead {
    /// Fewer than two: none.
    chunk: usize,
    ceiling: usize,
    /// The most that ever were answered at once.
    proven: usize,
    failures: u32,
    /// Somebody got an answer since the last failure: the platform was there.
    heard: bool,
    /// The last request failed, and a line is on its way to show whether the platform is there.
    sounds: bool,
}

impl LookAhead {
    pub(super) fn new(client: &Client) -> LookAhead {
        // A client that refuses conversations that are over has to read each of them; and what is
        // found must still be remembered by the time that it is needed.
        let chunk = match client.ended_policy() {
            EndedPolicy::Refuse => 0,
            _ => MAX_CHUNK.min(client.cache_capacity() / 8),
        };
        LookAhead {
            chunk,
            ceiling: chunk,
            proven: 0,
            failures: 0,
            heard: false,
            sounds: false,
        }
    }

    /// Somebody got an answer.
    pub(super) fn heard(&mut self) {
        self.heard = true;
        self.sounds = false;
    }

    /// Whether to wait before the next request.
    pub(super) fn sounds(&self) -> bool {
        self.sounds
    }

    pub(super) fn chunk(&self) -> usize {
        self.chunk
    }

    /// Whether a look-up would spare this update its read.
    pub(super) fn helps(client: &Client, update: &Update) -> bool {
        !update.skip_unchanged && can_ask(client, update.target())
    }

    /// What to do after an answer to so many.
    pub(super) fn learn(&mut self, answer: &Answer, asked: usize) -> Lesson {
        let off = match answer {
            Answer::Found(_) => {
                self.failures = 0;
                self.proven = self.proven.max(asked);
                self.chunk = (2 * self.chunk).min(self.ceiling);
                return Lesson::Run;
            }
            Answer::TooMany(error) => {
                let half = asked / 2;
                // As many were answered before: something else is wrong with one of these.
                if asked > self.proven {
                    self.ceiling = self.ceiling.min(half);
                }
                if half >= 2 {
                    self.chunk = self.chunk.min(half);
                    return Lesson::Again;
                }
                if self.proven >= 2 {
                    self.chunk = self.chunk.min(self.proven);
                    return Lesson::Run;
                }
                error
            }
            Answer::Failed(error) if error.kind() == ErrorKind::Cancelled => return Lesson::Sound,
            Answer::Failed(error) => {
                // While nobody gets an answer it is not the look-up that is at fault.
                self.failures += u32::from(std::mem::take(&mut self.heard));
                if self.failures < MAX_FAILURES {
                    self.sounds = true;
                    return Lesson::Sound;
                }
                error
            }
            Answer::Refused(error) => error,
        };
        if self.chunk == 0 {
            return Lesson::Run;
        }
        (self.chunk, self.ceiling) = (0, 0);
        Lesson::Off(off.clone())
    }

    /// Asks for the participants of these targets, of as many conversations: one request.
    pub(super) fn ask(client: &Client, targets: &[&Target], cancel: Option<&Cancel>) -> Answer {
        let ids: Vec<_> = targets
            .iter()
            .map(|target| encoded(target.conversation_id()))
            .collect();
        let path = format!(
            "/api/v2/analytics/conversations/details?id={}",
            ids.join(",")
        );
        let response = match client.get(&path, cancel) {
            Ok(response) => response,
            Err(error) => return Answer::Failed(error),
        };
        let what = "participants of many conversations";
        let refused = || problem::error_of(&response, what, None);
        match response.status {
            200..=299 => {}
            400 | 413 | 414 => return Answer::TooMany(refused()),
            403 => {
                return Answer::Refused(
                    refused()
                        .and("the permission that it takes is analytics:conversationDetail:view"),
                );
            }
            408 | 429 | 500 | 502..=504 => return Answer::Failed(refused()),
            _ => return Answer::Refused(refused()),
        }
        match read(&response) {
            Ok(details) => Answer::Found(details.found(targets)),
            Err(unreadable) => {
                let too_large = matches!(unreadable, Unreadable::TooLarge(_));
                let error = unreadable
                    .into_error("the answer cannot be used")
                    .within(what);
                if too_large {
                    Answer::TooMany(error)
                } else {
                    Answer::Failed(error)
                }
            }
        }
    }
}

impl Client {
    /// Looks up the ids of participants that are named by their purpose (`customer`, `external`)
    /// for up to 100 conversations with one request, and remembers them: a later update of one then
    /// takes one request instead of two. A [`Batch`](crate::Batch) does this by itself.
    ///
    /// Other targets are left out, and so are conversations that the platform does not tell yet or
    /// that are over. Returns how many were found. A client that
    /// [refuses conversations that are over](EndedPolicy::Refuse) looks nothing up.
    ///
    /// # Errors
    ///
    /// `Forbidden` without the permission `analytics:conversationDetail:view`; others as for
    /// reading in [`Client::update`]. What was found before stays.
    ///
    /// Source: the Platform API's `GET /api/v2/analytics/conversations/details`.
    ///
    /// ```no_run
    /// # use genesys_attributes::{Client, Update};
    /// # let client = Client::from_env()?;
    /// let updates: Vec<Update> = ["5b2f0c1e", "5b2f0c1f"]
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
        let mut look_ahead = LookAhead::new(self);
        let mut seen = HashSet::new();
        let mut wanted: Vec<&Target> = targets
            .into_iter()
            .filter(|target| can_ask(self, target) && seen.insert(target.conversation_id()))
            .collect();
        let mut count = 0;
        while !wanted.is_empty() && look_ahead.chunk > 0 {
            let rest = wanted.split_off(look_ahead.chunk.min(wanted.len()));
            let answer = LookAhead::ask(self, &wanted, None);
            let lesson = look_ahead.learn(&answer, wanted.len());
            match (answer, lesson) {
                (Answer::Found(found), _) => {
                    for (target, found) in wanted.iter().zip(found) {
                        if let Some(found) = found.filter(|found| !found.ended) {
                            self.remember_participant(target, found.id);
                            count += 1;
                        }
                    }
                }
                (_, Lesson::Again) => {
                    wanted.extend(rest);
                    continue;
                }
                (_, Lesson::Off(error)) | (Answer::Failed(error), Lesson::Sound) => {
                    return Err(error);
                }
                (_, Lesson::Run | Lesson::Sound) => {}
            }
            wanted = rest;
        }
        Ok(count)
    }
}

/// Whether the id of the target's participant is not known, and may be asked for.
fn can_ask(client: &Client, target: &Target) -> bool {
    !purposes(target).is_empty()
        && target.cache_key().is_some()
        && target.checked().is_ok()
        && !client.knows_participant(target)
}

/// The purposes that a target means, in their order, as far as their participants stay.
fn purposes(target: &Target) -> &'static [&'static str] {
    target
        .participant_selector()
        .map_or(&[], |who| who.staying_purposes())
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
        // So many conversations, and none of them known: an empty list may be left out.
        None if matches!(&response.body, Body::Whole(body) if body.trim_ascii() == b"{}") => {
            Ok(details)
        }
        None => Err(Unreadable::Unexpected("it holds no conversations".into())),
    }
}

impl Details {
    fn found(self, targets: &[&Target]) -> Vec<Option<Found>> {
        let mut told: HashMap<String, Conversation> = HashMap::new();
        for conversation in self.conversations.unwrap_or_default() {
            if let Some(id) = conversation.conversation_id.clone() {
                told.insert(id, conversation);
            }
        }
        let found = targets.iter().map(|target| {
            let conversation = told.get(target.conversation_id())?;
            Some(Found {
                id: conversation.only(purposes(target))?.to_owned(),
                ended: conversation
                    .conversation_end
                    .as_ref()
                    .is_some_and(|end| !end.is_null()),
            })
        });
        found.collect()
    }
}

impl Conversation {
    /// The one participant of the first purpose that anybody has. Which of several is meant depends
    /// on who is still there, which this answer does not tell.
    fn only(&self, purposes: &[&str]) -> Option<&str> {
        let all = self.participants.as_deref().unwrap_or_default();
        for purpose in purposes {
            let mut meant = all.iter().filter(|p| p.purpose.as_deref() == Some(purpose));
            match (meant.next(), meant.next()) {
                (None, _) => {}
                (Some(one), None) => {
                    return one.participant_id.as_deref().filter(|id| !id.is_empty());
                }
                (Some(_), Some(_)) => return None,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> LookAhead {
        LookAhead {
            chunk: 100,
            ceiling: 100,
            proven: 0,
            failures: 0,
            heard: false,
            sounds: false,
        }
    }

    fn error(kind: ErrorKind) -> Error {
        Error::new(kind, "scripted")
    }

    fn answer(size: usize, most: usize) -> Answer {
        match size > most {
            true => Answer::TooMany(error(ErrorKind::InvalidInput)),
            false => Answer::Found(vec![None; size]),
        }
    }

    #[test]
    fn chunk_ends_below_what_is_taken_and_stays_there() {
        for most in 3..=100 {
            let mut look_ahead = fresh();
            for _ in 0..20 {
                let size = look_ahead.chunk();
                assert!(!matches!(
                    look_ahead.learn(&answer(size, most), size),
                    Lesson::Off(_)
                ));
            }
            assert!(look_ahead.chunk() <= most && look_ahead.chunk() > most / 3);
        }
    }

    #[test]
    fn chunk_grows_back_after_one_bad_id_among_sizes_that_were_taken() {
        let mut look_ahead = fresh();
        look_ahead.learn(&answer(100, 100), 100);
        for size in [100, 50, 25, 12, 6, 3, 1] {
            let lesson = look_ahead.learn(&answer(size, 0), size);
            assert_eq!(matches!(lesson, Lesson::Again), size > 3, "{size}");
        }
        for _ in 0..7 {
            let size = look_ahead.chunk();
            look_ahead.learn(&answer(size, 100), size);
        }
        assert_eq!(look_ahead.chunk(), 100);
    }

    #[test]
    fn nothing_that_is_taken_turns_it_off_once() {
        let mut look_ahead = fresh();
        let mut off = 0;
        for size in [100, 50, 25, 12, 6, 3, 3] {
            let lesson = look_ahead.learn(&answer(size, 0), size);
            off += u32::from(matches!(lesson, Lesson::Off(_)));
        }
        assert_eq!((off, look_ahead.chunk()), (1, 0));
    }

    #[test]
    fn failures_count_only_while_others_are_answered() {
        let mut look_ahead = fresh();
        let failed = Answer::Failed(error(ErrorKind::Server));
        for _ in 0..10 {
            assert!(matches!(look_ahead.learn(&failed, 100), Lesson::Sound));
        }
        let mut counted = 0;
        while look_ahead.chunk() > 0 {
            look_ahead.heard();
            look_ahead.learn(&failed, 100);
            counted += 1;
        }
        assert_eq!(counted, MAX_FAILURES);
    }
}
