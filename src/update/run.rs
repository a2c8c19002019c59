//! One update under way: what its requests are, and what their answers mean for it.
//!
//! The session's retry loop sends and waits; `machine` has the rules of what comes next.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use log::warn;

use super::core::{Compute, Core, EndedPolicy, Job, ended, snapshot, with_advice};
use super::machine::{Cause, End, Event, Machine, Rules, Step};
use super::summary::Summary;
use super::{Update, fits};
use crate::error::{Error, ErrorKind, Result, Rule, Violation};
use crate::http::{Request, Response};
use crate::report::audit::{self, AuditMode};
use crate::report::receipt::{Outcome, Snapshot};
use crate::session::exchange::{Call, Next, Progress, Purpose, Reply, Stop, Work};
use crate::session::retry::Failure;
use crate::store::cache::Cached;
use crate::store::{Change, TargetState};
use crate::util::clock::sleep_unless;
use crate::util::date::Rfc3339;
use crate::util::sync::discard;
use crate::values::attributes::Attributes;

/// One update under way.
pub(super) struct Run<'a> {
    core: &'a Core,
    update: &'a Update,
    compute: Option<Compute<'a>>,
    machine: Machine,
    summary: Summary<'a>,
    read_request: Option<Request>,
    /// The write on top of the known state, once it is prepared.
    write_request: Option<Request>,
    /// The state is from the cache.
    from_cache: bool,
    /// Versions that writes of this conversation return are not to be used.
    untrusted: bool,
    /// A read of this update succeeded.
    was_read: bool,
    /// The answer to the write that was confirmed.
    answer: Option<Response>,
    last_error: Option<Error>,
    /// The last failure of a write.
    write_error: Option<Error>,
}

/// What the retry loop asks the update after each step.
impl Work for Run<'_> {
    type Done = End;

    fn next(&mut self, call: &mut Call<'_>, progress: Progress) -> Next<'_, End> {
        let mut event = match progress {
            Progress::Begun => self.begin(),
            Progress::Answered(reply) if self.machine.is_writing() => self.write_ended(reply),
            Progress::Answered(reply) => self.read_ended(reply),
            Progress::Waited => Event::Waited,
            Progress::Stopped(stop) => self.stopped(stop),
        };
        loop {
            event = match self.machine.next(event) {
                Step::Read => {
                    let (session, target) = (&self.core.session, self.summary.target);
                    let read = || session.read_request(&target.read_path());
                    return Next::Send(self.read_request.get_or_insert_with(read), Purpose::Read);
                }
                Step::Evaluate => self.evaluate_read(),
                Step::Write => {
                    let prepared = self.write_request.take();
                    match prepared.map_or_else(|| self.prepare(call), Ok) {
                        Ok(request) => {
                            let request = self.write_request.insert(request);
                            return Next::Send(request, Purpose::Write);
                        }
                        Err(error) => self.refused(error),
                    }
                }
                Step::Wait(wait) => return Next::Wait(wait),
                Step::Done(end) => return Next::Done(end),
            };
        }
    }
}

impl<'a> Run<'a> {
    pub(super) fn new(core: &'a Core, job: Job<'a>, summary: Summary<'a>) -> Run<'a> {
        let policy = core.session.wire.policy;
        let rules = Rules {
            locked: summary.target.is_locked(),
            computed: job.compute.is_some(),
            unique: job.unique,
            if_version: job.update.if_version.is_some(),
            max_attempts: policy.max_attempts,
            max_conflicts: policy.conflict_budget(),
        };
        Run {
            core,
            update: job.update,
            compute: job.compute,
            machine: Machine::new(rules),
            summary,
            read_request: None,
            write_request: None,
            from_cache: false,
            untrusted: false,
            was_read: false,
            answer: None,
            last_error: None,
            write_error: None,
        }
    }

    /// Gives back what the update did, and the answer to a confirmed write.
    pub(super) fn into_parts(self) -> (Summary<'a>, Option<Response>) {
        (self.summary, self.answer)
    }

    /// Reads and writes until the update has ended. Returns the outcome and the version then, or the
    /// error to report.
    pub(super) fn until_done(&mut self, call: &mut Call<'_>) -> Result<(Outcome, Option<String>)> {
        // A clock or closure of the caller's that panics must not leave an intent without its
        // outcome: that would look like a crash.
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let target = self.summary.target;
            self.summary.conversation_ended = self.core.end_elsewhere(target, call)?;
            let wire = &self.core.session.wire;
            match wire.run(call, self) {
                End::Applied => Ok((Outcome::Applied, self.applied(call)?)),
                End::AlreadyApplied => {
                    let version = self.summary.state.version.clone();
                    self.remember(version.clone());
                    self.summary.note_end();
                    Ok((Outcome::AlreadyApplied, version))
                }
                End::Unchanged => Ok((Outcome::Unchanged, self.summary.state.version.clone())),
                End::Failed(cause) => {
                    let error = self.error(cause);
                    Err(match self.was_read {
                        true => error,
                        false => self.core.explained(target, call, error),
                    })
                }
            }
        }));
        let ended = ended.unwrap_or_else(|payload| {
            discard(payload);
            if call.attempts > 0 {
                self.machine.panicked();
            }
            Err(Error::new(
                ErrorKind::Internal,
                "a clock or closure panicked during the update: correct it",
            ))
        });
        ended.map_err(|error| {
            // A closure may have passed on the error of another update.
            let may_have_applied = self.machine.may_have_applied() || error.may_have_applied();
            call.failed(error).with_may_have_applied(may_have_applied)
        })
    }

    fn begin(&mut self) -> Event {
        let target = self.summary.target;
        let must_read = self.compute.is_some()
            || self.core.ended == EndedPolicy::Refuse && target.shows_end()
            || self.update.skip_unchanged
            || self.summary.wanted.keys().any(|key| target.is_guarded(key));
        let cached = target.cache_key().and_then(|key| self.core.cache.get(&key));
        self.untrusted = cached == Some(Cached::Untrusted);
        if must_read {
            return Event::Begun { known: false };
        }
        let given = self.update.if_version.clone();
        let cached = cached.and_then(|cached| cached.into_value(|| self.core.clock.now()));
        self.from_cache = given.is_none() && cached.is_some();
        let known = target.known(given.or(cached));
        let event = Event::Begun {
            known: known.is_some(),
        };
        self.summary.state = known.unwrap_or_default();
        event
    }

    fn read_ended(&mut self, reply: Reply) -> Event {
        let target = self.summary.target;
        let response = match reply.result {
            Ok(response) => response,
            Err(error) => return self.failed(error, reply.failure),
        };
        let state = if response.is_success() {
            match target.parse(&response) {
                Ok(state) => state,
                Err(unread) => {
                    return self.failed(unread.error, reply.failure.or_again(unread.transient));
                }
            }
        } else if target.is_absent(&response) {
            TargetState::with(Attributes::new())
        } else {
            let error = self.refusal(&response);
            let error = with_advice(error, target, &response, false);
            return self.failed(error, reply.failure);
        };
        self.summary.state = state;
        self.write_request = None;
        self.from_cache = false;
        self.was_read = true;
        // What this read failed with before is settled; what a write met is not.
        self.last_error.clone_from(&self.write_error);
        Event::ReadDone {
            in_place: self.machine.may_have_applied() && self.summary.in_place(),
            versioned: self.summary.state.version.is_some(),
        }
    }

    /// Decides by what was read whether to write.
    fn evaluate_read(&mut self) -> Event {
        match self.evaluate() {
            Ok(true) => Event::Ready {
                versioned: self.summary.state.version.is_some(),
            },
            Ok(false) => Event::Unchanged,
            Err(error) => self.refused(error),
        }
    }

    /// What the target holds, once that allows the write.
    pub(super) fn preview(mut self, call: &mut Call<'_>) -> Result<Snapshot> {
        self.core.end_elsewhere(self.summary.target, call)?;
        self.evaluate()?;
        snapshot(self.summary.target, &self.summary.state)
    }

    /// True if there is something to write. An error if it must not be written.
    fn evaluate(&mut self) -> Result<bool> {
        let (core, update, target) = (self.core, self.update, self.summary.target);
        self.check_ended()?;
        let state = &self.summary.state;
        if let Some(expected) = &update.if_version
            && !state
                .version
                .as_ref()
                .is_some_and(|now| target.is_version(now, expected))
        {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "{}: optimistic locking conflict: it is at version {}, not at {expected}: \
                     read it and decide anew",
                    target.description(),
                    state.version.as_deref().unwrap_or("none"),
                ),
            )
            .with_transient(false));
        }
        if let Some(compute) = &mut self.compute {
            let Some(edit) = compute(&snapshot(target, state)?)? else {
                return Ok(false);
            };
            let computed = Update {
                attributes: edit.set,
                remove: edit.remove,
                ..Update::new(target.clone())
            };
            let wanted = computed.checked(&core.limits, &core.schemas)?.into_owned();
            if wanted != *self.summary.wanted || computed.remove != *self.summary.removed {
                self.summary.wanted = Cow::Owned(wanted);
                self.summary.removed = Cow::Owned(computed.remove);
                self.summary.intended = false;
            }
        } else if update.skip_unchanged && self.summary.in_place() {
            return Ok(false);
        }
        self.guard()?;
        Ok(true)
    }

    fn check_ended(&mut self) -> Result<()> {
        let known = self.summary.conversation_ended;
        self.summary.note_end();
        let Some(how) = &self.summary.state.ended else {
            return Ok(());
        };
        if self.core.ended == EndedPolicy::Refuse {
            return Err(ended(how));
        }
        if self.core.ended == EndedPolicy::Warn && known != Some(true) {
            warn!(
                "conversation {} is {how}: analytics does not keep attributes written now",
                self.summary.target.conversation_id()
            );
        }
        Ok(())
    }

    /// Keys that begin with `system.` may not be set on a conversation that has ended.
    fn guard(&self) -> Result<()> {
        let Some(how) = &self.summary.state.ended else {
            return Ok(());
        };
        let keys = self.summary.wanted.keys();
        let immutable: Vec<Violation> = keys
            .filter(|key| self.summary.target.is_guarded(key))
            .map(|key| Violation::new(key, Rule::SystemKey, how.clone()))
            .collect();
        if immutable.is_empty() {
            Ok(())
        } else {
            Err(Error::violated(immutable))
        }
    }

    fn write_ended(&mut self, reply: Reply) -> Event {
        let response = match reply.result {
            Ok(response) if response.is_success() => {
                self.answer = Some(response);
                return Event::Written;
            }
            Ok(response) => response,
            Err(error) => {
                self.write_error = Some(error.clone());
                return self.failed(error, reply.failure);
            }
        };
        let target = self.summary.target;
        let conflict = target.is_conflict(&response);
        let mut error = self.refusal(&response);
        if conflict && self.update.if_version.is_some() {
            error = error.with_transient(false);
        }
        let mut missing = false;
        if self.was_read && !conflict {
            missing = target.endpoint_missing(response.status);
        }
        error = with_advice(error, target, &response, missing).with_endpoint_missing(missing);
        self.write_error = Some(error.clone());
        self.last_error = Some(error.clone());

        let gone = !target.is_locked() && matches!(response.status, 404 | 409 | 410);
        if self.from_cache && gone {
            self.core.forget(target);
            self.from_cache = false;
            self.write_request = None;
            // What is read now may be written elsewhere.
            self.summary.intended = false;
            return Event::Stale;
        }
        if conflict {
            self.core.counters.conflicts.increment();
            self.distrust();
            if target.is_locked() {
                self.write_request = None;
            }
            return Event::Conflict;
        }
        self.failed(error, reply.failure)
    }

    /// Makes the request that writes on top of what is known, and records its intent.
    fn prepare(&mut self, call: &Call<'_>) -> Result<Request> {
        let core = self.core;
        let now = core.clock.wall();
        let timestamp = Rfc3339::new(now);
        let summary = &mut self.summary;
        let write = summary.target.write(
            &Change {
                set: &summary.wanted,
                remove: &summary.removed,
                source: &core.metadata_source,
                timestamp: timestamp.as_str(),
            },
            &summary.state,
        )?;
        fits(summary.target, write.body.len(), &core.limits)?;
        summary.last_write_base.clone_from(&summary.state.version);
        // An intent for what is written first, and for whatever else is computed then.
        if let Some(audit) = &core.audit
            && !summary.intended
        {
            summary.intended = true;
            let id = core.audit_id(summary);
            let intent = summary.intent(id, call, now);
            if let Err(e) = audit::record(audit.sink.as_ref(), &intent) {
                core.counters.audit_failures.increment();
                if audit.mode == AuditMode::Strict {
                    return Err(Error::new(
                        ErrorKind::Audit,
                        "the intent could not be recorded, so nothing was written: check the \
                         audit sink",
                    )
                    .with_source(e));
                }
                warn!("an audit record could not be kept: {e}");
                summary.audit_failed = true;
            }
        }
        Ok(core.session.write_request(write))
    }

    fn stopped(&mut self, stop: Stop) -> Event {
        match stop {
            Stop::OutOfTime(error) => {
                // The last real error says more than that there is no time for another attempt.
                self.last_error.get_or_insert(error);
                Event::OutOfTime
            }
            Stop::Cancelled(error) => {
                self.last_error = Some(error);
                Event::Cancelled
            }
            Stop::Refused(error) => self.refused(error),
        }
    }

    fn failed(&mut self, error: Error, failure: Failure) -> Event {
        self.last_error = Some(error);
        Event::Failed(failure)
    }

    /// Nothing was sent, and nothing will be.
    fn refused(&mut self, error: Error) -> Event {
        self.failed(error, Failure::Final { may: false })
    }

    fn refusal(&self, response: &Response) -> Error {
        let target = self.summary.target;
        let mut hidden: Vec<&Attributes> = vec![&self.summary.wanted];
        if target.is_confidential() {
            hidden.extend(&self.summary.state.attributes);
        }
        self.core.refusal(target, response, &hidden)
    }

    /// After a conflict nothing that is remembered of the target holds; and when it was a version
    /// that a write had returned, the next ones will be no better.
    fn distrust(&mut self) {
        let Some(key) = self.summary.target.cache_key() else {
            return;
        };
        if self.from_cache && self.summary.target.is_locked() {
            self.untrusted = true;
            self.core.cache.put(key, Cached::Untrusted);
        } else {
            self.core.cache.forget(&key);
        }
    }

    /// The version after a confirmed write. With [`Update::verify`] the values are read back.
    fn applied(&mut self, call: &mut Call<'_>) -> Result<Option<String>> {
        let answer = self.answer.as_ref();
        let version = answer.and_then(|answer| {
            self.summary
                .target
                .version_written(&self.summary.state, answer)
        });
        self.remember(version.clone());
        if self.update.verify {
            let verified = self.verify(call);
            verified.map_err(|error| error.with_may_have_applied(true))?;
        }
        Ok(version)
    }

    fn remember(&self, version: Option<String>) {
        let Some(key) = self.summary.target.cache_key() else {
            return;
        };
        let cache = &self.core.cache;
        let found = self.summary.state.participant.as_ref();
        match (version, found) {
            (Some(version), None) if !self.untrusted => cache.put(key, Cached::Version(version)),
            (_, Some(found)) if found.stays && !self.from_cache => {
                let since = self.core.clock.now();
                cache.put(key, Cached::Participant(found.id.clone(), since));
            }
            (_, Some(found)) if found.stays => {}
            _ => cache.forget(&key),
        }
    }

    /// Reads until the values are in place, for a bounded time.
    fn verify(&self, call: &mut Call<'_>) -> Result<()> {
        const MAX_READS: u32 = 10;
        let (core, target) = (self.core, self.summary.target);
        let clock = core.clock.as_ref();
        let mut delay = Duration::from_millis(100);
        for read in 1..=MAX_READS {
            let now = core.read_with(target, call, &[&self.summary.wanted])?;
            let state = TargetState::with(now.attributes);
            if state.holds(&self.summary.wanted, &self.summary.removed) == Some(true) {
                return Ok(());
            }
            if read == MAX_READS || !call.budget.has_time(delay, clock.now()) {
                break;
            }
            sleep_unless(clock, delay, call.cancel)?;
            delay = (delay * 2).min(Duration::from_secs(3));
        }
        let error = Error::new(
            ErrorKind::Timeout,
            format!(
                "{}: the write was confirmed, but its values are not in place yet, or another \
                 writer changed them: read the target later",
                target.description()
            ),
        );
        Err(match &self.answer {
            Some(answer) => error.with_http_status(answer.status()),
            None => error,
        })
    }

    fn error(&mut self, cause: Cause) -> Error {
        let found = match cause {
            Cause::Last => self.last_error.take(),
            Cause::Write => self.write_error.take().or(self.last_error.take()),
            Cause::Conflict => Some(Error::new(
                ErrorKind::Conflict,
                format!(
                    "{}: optimistic locking conflict: it was changed after a write of this \
                     update whose outcome is unknown, and computing again could count twice: read \
                     it and decide anew",
                    self.summary.target.description()
                ),
            )),
        };
        found.unwrap_or_else(|| {
            Error::new(
                ErrorKind::Internal,
                "the update ended without a reason: this is a defect of the library, please \
                 report it",
            )
        })
    }
}
