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
use crate::session::problem;
use crate::session::retry::Caller;
use crate::store::{Target, encoded};
use crate::update::Update;
use crate::update::core::EndedPolicy;
use crate::util::sync::Cancel;

use super::outage::Notice;

/// How many conversations are asked for at once, at most.
const MAX_CHUNK: usize = 100;
/// So few that refuse an answer together are read one by one: asking for parts of them costs as
/// much.
const FEW: usize = 3;
/// After so many failures in a row, while lines get their answers, it is not asked for a while; and
/// after so many searches for a number that is taken, no more.
const MAX_FAILURES: u32 = 3;
/// For how many lines it is not asked then, the first time. Each failure after that doubles it.
const SUSPENDED_LINES: u64 = 500;
/// So many ids must be wrong, and more than half of those that were used, before none are asked for.
const MAX_WRONG: u64 = 10;

/// What was found of a conversation: the participants who stay, where there is one of the purpose.
/// Which of several is meant depends on who is still there, which the answer does not tell.
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
    /// have for them, unless it knows better.
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

/// What came of asking for many conversations at once.
#[derive(Debug)]
pub(super) enum Answer {
    /// What was found, in the order of the targets.
    Found(Vec<Option<Found>>),
    /// These were more than it takes, or than fit into an answer; or one of them is refused for
    /// itself.
    TooMany(Error),
    /// It will not answer these credentials.
    Refused(Error),
    /// It did not answer this time.
    Failed(Error),
}

/// What to do with those that were asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lesson {
    /// They can be run, and so many of those that come after them as well.
    Run { also: usize },
    /// Fewer of them may be asked for again.
    Again,
    /// The first shows whether the platform is there at all, and the others are asked for again.
    Sound,
}

/// How many are asked for at once.
///
/// A refusal does not say whether these are more than it takes or one of them is at fault. What is
/// known is how many were answered together and how many were not: between the two, the number is
/// looked for by halves. A refusal of fewer than were answered before points at one of them, which
/// is looked for by halves in the same way, and read by itself. Both searches ask one at a time.
#[derive(Debug)]
pub(super) struct LookAhead {
    /// Never more than this; fewer than two: none.
    most: usize,
    /// How many are asked for next.
    chunk: usize,
    /// The most that ever were answered at once.
    proven: usize,
    /// The fewest that were refused for their number; more than `most` where none were.
    refused: usize,
    /// As many at the front of the queue hold one that is refused for itself.
    suspects: usize,
    /// The number that was refused may have been refused for one of them.
    doubt: bool,
    /// Searches for a number that is taken, in a row, which found none.
    dead_ends: u32,
    failures: u32,
    /// Somebody got an answer since the last failure: the platform was there.
    heard: bool,
    /// The last request failed, and a line is on its way to show whether the platform is there.
    sounds: bool,
    /// It failed too often, and has not answered since.
    suspended: bool,
    /// So many lines are begun before it is asked again, and after the next failure so many.
    lines_left: u64,
    next_lines: u64,
    /// Ids that were used, and were what the platform knows or not.
    right: u64,
    wrong: u64,
}

impl LookAhead {
    pub(super) fn new(client: &Client) -> LookAhead {
        // A client that refuses conversations that are over has to read each of them.
        LookAhead::up_to(match client.ended_policy() {
            EndedPolicy::Refuse => 0,
            _ => MAX_CHUNK.min(client.cache_capacity() / 8),
        })
    }

    fn up_to(most: usize) -> LookAhead {
        LookAhead {
            most,
            chunk: most,
            proven: 0,
            refused: most + 1,
            suspects: 0,
            doubt: false,
            dead_ends: 0,
            failures: 0,
            heard: false,
            sounds: false,
            suspended: false,
            lines_left: 0,
            next_lines: SUSPENDED_LINES,
            right: 0,
            wrong: 0,
        }
    }

    /// Somebody got an answer.
    pub(super) fn heard(&mut self) {
        self.heard = true;
        self.sounds = false;
    }

    /// A line was begun.
    pub(super) fn begun(&mut self) {
        self.lines_left = self.lines_left.saturating_sub(1);
    }

    /// Whether to wait before the next request.
    pub(super) fn sounds(&self) -> bool {
        self.sounds
    }

    /// How many to ask for; fewer than two: none.
    pub(super) fn chunk(&self) -> usize {
        match self.lines_left {
            0 => self.chunk,
            _ => 0,
        }
    }

    /// Whether what comes next depends on the answer to the last request.
    pub(super) fn learns(&self) -> bool {
        self.suspects > 0 || self.chunk > self.proven || self.suspended
    }

    /// Whether a look-up would spare this update its read.
    pub(super) fn helps(client: &Client, update: &Update) -> bool {
        !update.skip_unchanged && can_ask(client, update.target())
    }

    fn next(&self) -> usize {
        if self.suspects > 0 {
            (self.suspects / 2).max(2)
        } else if self.refused > self.most {
            (2 * self.chunk).max(self.proven).min(self.most)
        } else if self.doubt && self.proven + 1 >= self.refused {
            self.refused
        } else {
            usize::midpoint(self.proven, self.refused)
        }
    }

    /// Whether nobody is asked for any more.
    pub(super) fn is_off(&self) -> bool {
        self.most == 0
    }

    fn off(&mut self) {
        (self.most, self.chunk, self.suspects) = (0, 0, 0);
    }

    /// What to do after an answer to so many.
    pub(super) fn learn(&mut self, answer: &Answer, asked: usize) -> (Lesson, Option<Notice>) {
        let run = Lesson::Run { also: 0 };
        if self.is_off() {
            // It was found to be of no use while this was on its way.
            return (run, None);
        }
        match answer {
            Answer::Found(_) => {
                let resumed = std::mem::take(&mut self.suspended);
                (self.failures, self.next_lines) = (0, SUSPENDED_LINES);
                let also = self.found(asked);
                let notice = resumed.then_some(Notice::LookAheadResumed {});
                (Lesson::Run { also }, notice)
            }
            Answer::TooMany(error) => match self.too_many(asked) {
                Some(lesson) => (lesson, None),
                None => {
                    self.off();
                    let error = error.clone();
                    (run, Some(Notice::LookAheadOff { error }))
                }
            },
            Answer::Refused(error) => {
                self.off();
                let error = error.clone();
                (run, Some(Notice::LookAheadOff { error }))
            }
            Answer::Failed(error) if error.kind() == ErrorKind::Cancelled => (Lesson::Sound, None),
            // It was not sent, in a pause that lines wait out.
            Answer::Failed(error)
                if error.kind() == ErrorKind::RateLimited && error.http_status().is_none() =>
            {
                self.sounds = true;
                (Lesson::Sound, None)
            }
            Answer::Failed(error) => {
                // While nobody gets an answer it is not the look-up that is at fault. One that
                // hangs holds all lines up: once is enough.
                if std::mem::take(&mut self.heard) {
                    self.failures = match error.kind() {
                        ErrorKind::Timeout => MAX_FAILURES,
                        _ => self.failures + 1,
                    };
                }
                if self.failures < MAX_FAILURES {
                    self.sounds = true;
                    return (Lesson::Sound, None);
                }
                // The next one that fails is enough.
                self.failures = MAX_FAILURES - 1;
                self.lines_left = self.next_lines;
                self.next_lines = self.next_lines.saturating_mul(2);
                let known = std::mem::replace(&mut self.suspended, true);
                let error = error.clone();
                (
                    run,
                    (!known).then_some(Notice::LookAheadSuspended { error }),
                )
            }
        }
    }

    /// So many were answered. Says how many after them are to be run by themselves.
    fn found(&mut self, asked: usize) -> usize {
        self.dead_ends = 0;
        self.proven = self.proven.max(asked);
        if asked >= self.refused {
            // Not their number was refused then.
            (self.refused, self.doubt) = (self.most + 1, false);
        }
        self.suspects = self.suspects.saturating_sub(asked);
        let also = match self.suspects {
            0..=FEW => std::mem::take(&mut self.suspects),
            _ => 0,
        };
        if also > 0 {
            self.chunk = self.chunk.max(self.proven);
        }
        self.chunk = self.next();
        also
    }

    /// So many were refused. `None`: there is no number that is taken.
    fn too_many(&mut self, asked: usize) -> Option<Lesson> {
        let run = Lesson::Run { also: 0 };
        if asked <= self.proven {
            // As many were answered before: one of these is at fault, as it may have been when more
            // were refused.
            self.doubt |= self.refused <= self.most;
            if asked > FEW {
                (self.suspects, self.chunk) = (asked, asked / 2);
                return Some(Lesson::Again);
            }
            (self.suspects, self.chunk) = (0, self.proven);
            self.chunk = self.next();
            return Some(run);
        }
        self.doubt &= asked != self.refused;
        self.refused = self.refused.min(asked);
        if self.proven >= 2 {
            self.chunk = usize::midpoint(self.proven, asked);
            return Some(Lesson::Again);
        }
        if asked > FEW {
            self.chunk = asked / 2;
            return Some(Lesson::Again);
        }
        self.dead_ends += 1;
        (self.refused, self.chunk) = (self.most + 1, self.most);
        (self.dead_ends < MAX_FAILURES).then_some(run)
    }

    /// An id that was found was used, and was right or not. Gives the notice that no more are asked
    /// for, because most of them are wrong: each costs a request more than it spares.
    pub(super) fn used(&mut self, right: bool) -> Option<Notice> {
        match right {
            true => self.right += 1,
            false => self.wrong += 1,
        }
        if self.is_off() || self.wrong < MAX_WRONG || self.wrong <= self.right {
            return None;
        }
        self.off();
        let error = Error::new(
            ErrorKind::NotFound,
            "most of the participants that were found are not there (their conversations may be gone)",
        );
        Some(Notice::LookAheadOff { error })
    }

    /// Asks for the participants of these targets, of as many conversations: one request.
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
            400 | 413 | 414 => return Answer::TooMany(refused()),
            403 => {
                return Answer::Refused(
                    refused()
                        .and("the permission that it takes is analytics:conversationDetail:view"),
                );
            }
            _ => return Answer::Failed(refused()),
        }
        match read(&response) {
            Ok(details) => Answer::Found(details.found(targets)),
            Err(unreadable) => {
                let too_large = matches!(unreadable, Unreadable::TooLarge(_));
                let error = unreadable
                    .into_error("the answer cannot be used")
                    .within(&what);
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
    /// that are over. For [`Participant::customer`](crate::Participant::customer) only a participant of
    /// the purpose customer is taken: one of another may only be the first to be told. Returns how many were found. A client that
    /// [refuses conversations that are over](EndedPolicy::Refuse) looks nothing up.
    ///
    /// # Errors
    ///
    /// `Forbidden` without the permission `analytics:conversationDetail:view`; `InvalidInput` where
    /// everything that was asked for is refused; others as for reading in [`Client::update`]. What was found before stays.
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
        self.core()?;
        let mut look_ahead = LookAhead::new(self);
        let mut seen = HashSet::new();
        let mut wanted: Vec<&Target> = targets
            .into_iter()
            .filter(|target| can_ask(self, target) && seen.insert(target.conversation_id()))
            .collect();
        let (mut count, mut refusal) = (0, None);
        while !wanted.is_empty() && look_ahead.chunk() > 0 {
            let mut rest = wanted.split_off(look_ahead.chunk().min(wanted.len()));
            let answer = LookAhead::ask(self, &wanted, Caller::Single, None);
            let (lesson, _) = look_ahead.learn(&answer, wanted.len());
            match answer {
                Answer::Found(found) => {
                    for (target, found) in wanted.iter().zip(found) {
                        if let Some(found) = found.filter(|found| !found.ended) {
                            found.remember(self, target.conversation_id());
                            count += 1;
                        }
                    }
                }
                Answer::TooMany(error) => refusal = Some(error),
                Answer::Refused(error) | Answer::Failed(error) => return Err(error),
            }
            match lesson {
                // These are left to the updates' own reads.
                Lesson::Run { also } => drop(rest.drain(..also.min(rest.len()))),
                Lesson::Again | Lesson::Sound => {
                    wanted.append(&mut rest);
                    continue;
                }
            }
            wanted = rest;
        }
        match refusal {
            // Nothing was answered at all.
            Some(error) if look_ahead.proven == 0 => Err(error),
            _ => Ok(count),
        }
    }
}

/// Whether the id of the target's participant is not known, and may be asked for.
fn can_ask(client: &Client, target: &Target) -> bool {
    purpose(target).is_some() && target.checked().is_ok() && !client.knows_participant(target)
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

    /// What a run of `lines` costs, one look-up after the other, at a platform that takes `limit`
    /// at once and none together with a line that is `bad`; and whether it was off in the end.
    fn run(lines: usize, limit: usize, bad: impl Fn(usize) -> bool) -> (usize, bool) {
        let mut look_ahead = LookAhead::up_to(100);
        let (mut front, mut requests) = (0, 0);
        while front < lines {
            let asked = look_ahead.chunk().min(lines - front);
            if asked < 2 {
                requests += 2;
                front += 1;
                continue;
            }
            requests += 1;
            let refused = asked > limit || (front..front + asked).any(&bad);
            let answer = match refused {
                true => Answer::TooMany(error(ErrorKind::InvalidInput)),
                false => Answer::Found(vec![None; asked]),
            };
            if let (Lesson::Run { also }, _) = look_ahead.learn(&answer, asked) {
                let also = also.min(lines - front - asked);
                requests += asked * (1 + usize::from(refused)) + 2 * also;
                front += asked + also;
            }
            assert!(requests < 4 * lines + 100, "it asks without end");
        }
        (requests, look_ahead.is_off())
    }

    #[test]
    fn number_that_is_taken_is_found_and_kept() {
        for limit in 3..=100 {
            let (requests, off) = run(2_000, limit, |_| false);
            let floor = 2_000 + 2_000usize.div_ceil(limit);
            assert!(!off && requests <= floor + 14, "{limit}: {requests}");
        }
        // 50 requests for 20 at a time, and a few to find that number.
        assert!(run(1_000, 20, |_| false).0 <= 1_056);
        let (requests, off) = run(2_000, 0, |_| false);
        assert!(off && requests < 4_050, "{requests}");
    }

    #[test]
    fn an_id_that_is_refused_for_itself_costs_some_requests_once() {
        for limit in [20, 100] {
            let floor = 2_000 + 2_000 / limit;
            for one in [1, 77, 555] {
                let (requests, off) = run(2_000, limit, |line| line == one);
                assert!(!off && requests <= floor + 40, "{limit} {one}: {requests}");
            }
            let (requests, off) = run(2_000, limit, |line| line % 200 == 1);
            assert!(!off && requests <= floor + 260, "{limit}: {requests}");
        }
    }

    #[test]
    fn whatever_is_refused_the_queue_comes_to_its_end() {
        let mut random = 7u64;
        let mut next = move |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005) | 1;
            (random >> 33) % below
        };
        for _ in 0..2_000 {
            let limit = next(101) as usize;
            let bad: HashSet<usize> = (0..next(9)).map(|_| next(400) as usize).collect();
            run(400, limit, |line| bad.contains(&line));
        }
    }

    #[test]
    fn failures_count_only_while_others_are_answered() {
        let mut look_ahead = LookAhead::up_to(100);
        let failed = Answer::Failed(error(ErrorKind::Server));
        for _ in 0..10 {
            assert_eq!(look_ahead.learn(&failed, 100).0, Lesson::Sound);
        }
        let mut counted = 0;
        while look_ahead.chunk() > 0 {
            look_ahead.heard();
            look_ahead.learn(&failed, 100);
            counted += 1;
        }
        assert_eq!(counted, MAX_FAILURES);
    }

    #[test]
    fn pause_that_is_not_over_is_no_failure() {
        let mut look_ahead = LookAhead::up_to(100);
        for _ in 0..10 {
            look_ahead.heard();
            let unsent = Answer::Failed(error(ErrorKind::RateLimited));
            let (lesson, notice) = look_ahead.learn(&unsent, 100);
            assert_eq!((lesson, look_ahead.sounds()), (Lesson::Sound, true));
            assert!(notice.is_none());
        }
        assert_eq!(look_ahead.chunk(), 100);
    }

    #[test]
    fn failures_suspend_it_for_longer_each_time_and_an_answer_ends_that() {
        let mut look_ahead = LookAhead::up_to(100);
        let mut notices = Vec::new();
        let mut waits = Vec::new();
        let failed = || Answer::Failed(error(ErrorKind::Server));
        let answers = [3, 1, 1].map(|failures| (0..failures).map(|_| failed()));
        let found = || Answer::Found(vec![None; 100]);
        let mut learn = |look_ahead: &mut LookAhead, answer: &Answer| {
            look_ahead.heard();
            let (_, notice) = look_ahead.learn(answer, 100);
            notices.extend(notice.map(|notice| notice.to_string()));
        };
        for failures in answers {
            failures.for_each(|failed| learn(&mut look_ahead, &failed));
            let mut lines = 0;
            while look_ahead.chunk() == 0 {
                look_ahead.begun();
                lines += 1;
            }
            waits.push(lines);
        }
        assert_eq!(waits, [500, 1_000, 2_000]);
        // One at a time, until it answers.
        assert!(look_ahead.learns());
        learn(&mut look_ahead, &found());
        assert_eq!((look_ahead.chunk(), look_ahead.learns()), (100, false));
        // From the beginning.
        learn(&mut look_ahead, &failed());
        learn(&mut look_ahead, &failed());
        assert_eq!(look_ahead.chunk(), 100);
        assert_eq!(notices.len(), 2, "{notices:?}");
        assert!(notices[0].contains("one by one for a while") && notices[1].contains("again"));
    }

    #[test]
    fn ids_that_are_mostly_wrong_turn_it_off() {
        let mut look_ahead = LookAhead::up_to(100);
        let used = |look_ahead: &mut LookAhead, right| look_ahead.used(right).is_some();
        for _ in 0..9 {
            assert!(!used(&mut look_ahead, false));
        }
        for _ in 0..10 {
            assert!(!used(&mut look_ahead, true));
        }
        assert!(!used(&mut look_ahead, false));
        assert!(used(&mut look_ahead, false) && look_ahead.is_off());
        assert!(!used(&mut look_ahead, false));
    }
}
