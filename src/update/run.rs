//! Carries out one update: does what the machine says, and reports to it what happened. One file,
//! since each step takes up the facts that another one left.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use log::warn;

use super::core::{Compute, Core, EndedPolicy, Order, advised, snapshot};
use super::facts::Facts;
use super::machine::{Cause, End, Event, Machine, Rules, Step};
use super::{Update, fits};
use crate::error::{Error, ErrorKind, Result, Rule, Violation};
use crate::http::{Request, Response};
use crate::report::audit::{self, AuditMode};
use crate::report::receipt::{Outcome, Snapshot};
use crate::session::exchange::{Call, Class, Purpose, Stop};
use crate::session::retry::Pause;
use crate::store::cache::Cached;
use crate::store::{Change, TargetState};
use crate::util::date::Rfc3339;
use crate::util::sync::discard;
use crate::values::attributes::Attributes;

/// One update in flight.
pub(super) struct Run<'a> {
    core: &'a Core,
    update: &'a Update,
    compute: Option<Compute<'a>>,
    machine: Machine,
    call: Call<'a>,
    facts: Facts<'a>,
    read_request: Option<Request>,
    /// The write on top of the facts' state, once it is prepared.
    write_request: Option<Request>,
    /// The state is from the cache.
    from_cache: bool,
    /// Versions that writes of this conversation return are not to be used.
    untrusted: bool,
    /// A read of this update succeeded.
    was_read: bool,
    /// The pause that the last throttled answer asked for.
    throttled: Pause,
    /// How many writes had been sent when the one in flight was begun.
    sent_before: Option<u32>,
    /// The answer to the write that was confirmed.
    answer: Option<Response>,
    last_error: Option<Error>,
    /// The last failure of a write.
    write_error: Option<Error>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        core: &'a Core,
        order: Order<'a>,
        call: Call<'a>,
        facts: Facts<'a>,
    ) -> Run<'a> {
        let policy = core.session.wire.policy;
        let rules = Rules {
            locked: facts.target.is_locked(),
            computed: order.compute.is_some(),
            unique: order.unique,
            if_version: order.update.if_version.is_some(),
            max_attempts: policy.max_attempts,
            max_conflicts: policy.conflict_budget(),
        };
        Run {
            core,
            update: order.update,
            compute: order.compute,
            machine: Machine::new(rules),
            call,
            facts,
            read_request: None,
            write_request: None,
            from_cache: false,
            untrusted: false,
            was_read: false,
            throttled: Pause::Throttled {
                retry_after: None,
                limited: true,
            },
            sent_before: None,
            answer: None,
            last_error: None,
            write_error: None,
        }
    }

    /// What is left of it: what was sent, what happened, and the answer to a confirmed write.
    pub(super) fn into_parts(self) -> (Call<'a>, Facts<'a>, Option<Response>) {
        (self.call, self.facts, self.answer)
    }

    /// Does what the machine says until the update has ended: with the outcome and the version
    /// then, or the error to report.
    pub(super) fn until_done(&mut self) -> Result<(Outcome, Option<String>)> {
        // A transport or closure of the caller's that panics must not leave an intent without its
        // outcome: that would look like a crash.
        let ended = catch_unwind(AssertUnwindSafe(|| match self.drive() {
            End::Applied => self.applied().map(|version| (Outcome::Applied, version)),
            End::AlreadyApplied => {
                let version = self.facts.state.version.clone();
                self.remember(version.clone());
                self.facts.note_end();
                Ok((Outcome::AlreadyApplied, version))
            }
            End::Unchanged => Ok((Outcome::Unchanged, self.facts.state.version.clone())),
            End::Failed(cause) => Err(self.error(cause)),
        }));
        let ended = ended.unwrap_or_else(|payload| {
            discard(payload);
            let writing = self.sent_before.is_some_and(|n| n < self.call.attempts);
            self.machine.panicked(writing);
            Err(Error::new(
                ErrorKind::Internal,
                "a transport, clock or closure panicked during the update: correct it",
            ))
        });
        ended.map_err(|error| {
            // A closure may have passed on the error of another update.
            let may_have_applied = self.machine.may_have_applied() || error.may_have_applied();
            error
                .with_effort(self.call.attempts, self.call.requests, self.call.latency())
                .with_may_have_applied(may_have_applied)
        })
    }

    fn drive(&mut self) -> End {
        let mut event = self.begin();
        loop {
            event = match self.machine.next(event) {
                Step::Read => self.read(),
                Step::Evaluate => self.evaluate_read(),
                Step::Write => self.write(),
                Step::Wait(wait) => self.wait(wait.pause(self.throttled)),
                Step::Done(end) => return end,
            };
        }
    }

    fn begin(&mut self) -> Event {
        let target = self.facts.target;
        let must_read = self.compute.is_some()
            || self.update.skip_unchanged
            || self.facts.wanted.keys().any(|key| target.is_guarded(key));
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
        self.facts.state = known.unwrap_or_default();
        event
    }

    fn read(&mut self) -> Event {
        let (core, target) = (self.core, self.facts.target);
        let session = &core.session;
        let request = self
            .read_request
            .get_or_insert_with(|| session.read_request(&target.read_path()));
        let reply = match session.exchange(&mut self.call, request, Purpose::Read) {
            Ok(reply) => reply,
            Err(stop) => return self.stopped(stop),
        };
        let response = match reply.result {
            Ok(response) => response,
            Err(error) => {
                self.last_error = Some(error);
                return self.failed(reply.class);
            }
        };
        let state = if response.is_success() {
            match target.parse(&response) {
                Ok(state) => state,
                Err(failure) => {
                    self.last_error = Some(failure.error);
                    return match reply.class {
                        Class::Settled { .. } if failure.transient => {
                            Event::Transient { may: false }
                        }
                        class => self.failed(class),
                    };
                }
            }
        } else if target.is_absent(&response) {
            TargetState::with(Attributes::new())
        } else {
            let error = self.refusal(&response);
            self.last_error = Some(advised(error, target, &response, false));
            return self.failed(reply.class);
        };
        self.facts.state = state;
        self.write_request = None;
        self.from_cache = false;
        self.was_read = true;
        // What this read failed with before is settled; what a write met is not.
        self.last_error.clone_from(&self.write_error);
        Event::ReadDone {
            in_place: self.machine.may_have_applied() && self.facts.in_place(),
            versioned: self.facts.state.version.is_some(),
        }
    }

    /// What a read decides before anything is written.
    fn evaluate_read(&mut self) -> Event {
        match self.evaluate() {
            Ok(true) => Event::Ready {
                versioned: self.facts.state.version.is_some(),
            },
            Ok(false) => Event::Unchanged,
            Err(error) => {
                self.last_error = Some(error);
                Event::Refused { may: false }
            }
        }
    }

    /// What the target holds, once that allows the write.
    pub(super) fn preview(mut self) -> Result<Snapshot> {
        self.evaluate()?;
        snapshot(self.facts.target, &self.facts.state)
    }

    /// Whether there is something to write, and it may be.
    fn evaluate(&mut self) -> Result<bool> {
        let (core, update, target) = (self.core, self.update, self.facts.target);
        self.check_ended()?;
        let state = &self.facts.state;
        if let Some(expected) = &update.if_version
            && state.version.as_ref() != Some(expected)
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
            let wanted = computed
                .checked(&core.limits, core.schema.as_ref())?
                .into_owned();
            if wanted != *self.facts.wanted || computed.remove != *self.facts.removed {
                self.facts.wanted = Cow::Owned(wanted);
                self.facts.removed = Cow::Owned(computed.remove);
                self.facts.intended = false;
            }
        } else if update.skip_unchanged && self.facts.in_place() {
            return Ok(false);
        }
        self.guard()?;
        Ok(true)
    }

    fn check_ended(&mut self) -> Result<()> {
        let known = self.facts.conversation_ended;
        self.facts.note_end();
        let Some(how) = &self.facts.state.ended else {
            return Ok(());
        };
        if self.core.ended == EndedPolicy::Refuse {
            let refused = Violation::new("conversationId", Rule::Ended, how.clone());
            return Err(Error::violated(vec![refused]));
        }
        if self.core.ended == EndedPolicy::Warn && known != Some(true) {
            warn!(
                "conversation {} is {how}: analytics does not keep attributes written now",
                self.facts.target.conversation_id()
            );
        }
        Ok(())
    }

    /// Keys that begin with `system.` may not be set on a conversation that has ended.
    fn guard(&self) -> Result<()> {
        let Some(how) = &self.facts.state.ended else {
            return Ok(());
        };
        let keys = self.facts.wanted.keys();
        let immutable: Vec<Violation> = keys
            .filter(|key| self.facts.target.is_guarded(key))
            .map(|key| Violation::new(key, Rule::SystemKey, how.clone()))
            .collect();
        if immutable.is_empty() {
            Ok(())
        } else {
            Err(Error::violated(immutable))
        }
    }

    fn write(&mut self) -> Event {
        let prepared = match self.write_request.take() {
            Some(request) => Ok(request),
            None => self.prepare(),
        };
        let mut request = match prepared {
            Ok(request) => request,
            Err(error) => {
                self.last_error = Some(error);
                return Event::Refused { may: false };
            }
        };
        self.sent_before = Some(self.call.attempts);
        let sent = self
            .core
            .session
            .exchange(&mut self.call, &mut request, Purpose::Write);
        self.sent_before = None;
        let reply = match sent {
            Ok(reply) => reply,
            Err(stop) => return self.stopped(stop),
        };
        let response = match reply.result {
            Ok(response) if response.is_success() => {
                self.answer = Some(response);
                return Event::Written;
            }
            Ok(response) => response,
            Err(error) => {
                self.write_request = Some(request);
                self.write_error = Some(error.clone());
                self.last_error = Some(error);
                return self.failed(reply.class);
            }
        };
        let target = self.facts.target;
        let conflict = target.is_conflict(&response);
        let mut error = self.refusal(&response);
        if conflict && self.update.if_version.is_some() {
            error = error.with_transient(false);
        }
        let mut missing = false;
        if self.was_read && !conflict {
            missing = target.endpoint_missing(response.status);
        }
        error = advised(error, target, &response, missing).with_endpoint_missing(missing);
        self.write_error = Some(error.clone());
        self.last_error = Some(error);

        let gone = !target.is_locked() && matches!(response.status, 404 | 409 | 410);
        if self.from_cache && gone {
            self.core.forget(target);
            self.from_cache = false;
            // What is read now may be written elsewhere.
            self.facts.intended = false;
            return Event::Stale;
        }
        if conflict {
            self.core.counters.conflicts.increment();
            self.distrust();
            if !target.is_locked() {
                self.write_request = Some(request);
            }
            return Event::Conflict;
        }
        self.write_request = Some(request);
        self.failed(reply.class)
    }

    /// The request that writes on top of what is known, with its intent recorded.
    fn prepare(&mut self) -> Result<Request> {
        let core = self.core;
        let now = core.clock.wall();
        let timestamp = Rfc3339::new(now);
        let facts = &mut self.facts;
        let write = facts.target.write(
            &Change {
                set: &facts.wanted,
                remove: &facts.removed,
                source: &core.metadata_source,
                timestamp: timestamp.as_str(),
            },
            &facts.state,
        )?;
        fits(facts.target, write.body.len(), &core.limits)?;
        facts.last_write_base.clone_from(&facts.state.version);
        // An intent for what is written first, and for whatever else is computed then.
        if let Some(audit) = &core.audit
            && !facts.intended
        {
            facts.intended = true;
            let id = core.audit_id(facts);
            let intent = facts.intent(id, &self.call, now);
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
                facts.audit_failed = true;
            }
        }
        Ok(core.session.write_request(write))
    }

    fn wait(&mut self, pause: Pause) -> Event {
        match self.core.session.wire.wait(&mut self.call, pause) {
            Ok(()) => Event::Waited,
            Err(stop) => self.stopped(stop),
        }
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
            Stop::Login(error) => {
                self.last_error = Some(error);
                Event::Refused { may: false }
            }
        }
    }

    fn failed(&mut self, class: Class) -> Event {
        match class {
            Class::Settled { may } => Event::Refused { may },
            Class::Transient { may } => Event::Transient { may },
            Class::Throttled { retry_after, may } => {
                self.throttled = Pause::Throttled {
                    retry_after,
                    limited: !may,
                };
                Event::Throttled { may }
            }
        }
    }

    fn refusal(&self, response: &Response) -> Error {
        let target = self.facts.target;
        let mut hidden: Vec<&Attributes> = vec![&self.facts.wanted];
        if target.is_confidential() {
            hidden.extend(&self.facts.state.attributes);
        }
        self.core.refusal(target, response, &hidden)
    }

    /// After a conflict nothing that is remembered of the target holds; and when it was a version
    /// that a write had returned, the next ones will be no better.
    fn distrust(&mut self) {
        let Some(key) = self.facts.target.cache_key() else {
            return;
        };
        if self.from_cache && self.facts.target.is_locked() {
            self.untrusted = true;
            self.core.cache.put(key, Cached::Untrusted);
        } else {
            self.core.cache.forget(&key);
        }
    }

    /// The version after a confirmed write. With [`Update::verify`] the values are read back.
    fn applied(&mut self) -> Result<Option<String>> {
        let answer = self.answer.as_ref();
        let version =
            answer.and_then(|answer| self.facts.target.version_written(&self.facts.state, answer));
        self.remember(version.clone());
        if self.update.verify {
            self.machine.verifying();
            self.verify()?;
        }
        Ok(version)
    }

    fn remember(&self, version: Option<String>) {
        let Some(key) = self.facts.target.cache_key() else {
            return;
        };
        let cache = &self.core.cache;
        let found = self.facts.state.participant.as_ref();
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
    fn verify(&mut self) -> Result<()> {
        const MAX_READS: u32 = 10;
        let (core, target) = (self.core, self.facts.target);
        let clock = core.clock.as_ref();
        let mut delay = Duration::from_millis(100);
        for read in 1..=MAX_READS {
            let now = core.read_with(target, &mut self.call, &[&self.facts.wanted])?;
            let state = TargetState::with(now.attributes);
            if state.holds(&self.facts.wanted, &self.facts.removed) == Some(true) {
                return Ok(());
            }
            if read == MAX_READS || !self.call.budget.has_time(delay, clock.now()) {
                break;
            }
            crate::util::clock::sleep_unless(clock, delay, self.call.cancel)?;
            delay = (delay * 2).min(Duration::from_secs(3));
        }
        let error = Error::new(
            ErrorKind::Timeout,
            format!(
                "{}: the write was confirmed, but its values are not in place yet, or somebody \
                 else changed them: read the target later",
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
                    self.facts.target.description()
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
