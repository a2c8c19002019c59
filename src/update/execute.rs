//! The frame of one update: check it, take its turn, run it, record and tell what came of it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Update;
use super::core::{Core, Job};
use super::run::Run;
use super::summary::Summary;
use crate::error::{Error, ErrorKind, Result};
use crate::report::audit;
use crate::report::receipt::{Outcome, Receipt, Snapshot, Status};
use crate::session::retry::{Caller, RetryPolicy};
use crate::store::TargetState;
use crate::util::sync::Cancel;
use crate::values::attributes::Attributes;

/// The number of updates that may be inside of each other: a hook that updates is called again by
/// its own update, and the stack of a thread ends.
const MAX_NESTED: usize = 16;

thread_local! {
    /// The clients whose updates this thread is in, outermost first.
    static UPDATING: RefCell<Vec<*const Core>> = const { RefCell::new(Vec::new()) };
}

/// Counts an update as in flight, also when something in it panics.
struct InFlight<'a>(&'a AtomicUsize);

impl<'a> InFlight<'a> {
    fn enter(core: &'a Core) -> InFlight<'a> {
        core.in_flight.fetch_add(1, Ordering::AcqRel);
        UPDATING.with_borrow_mut(|clients| clients.push(core));
        InFlight(&core.in_flight)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        UPDATING.with_borrow_mut(|clients| clients.pop());
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Refuses an update inside of too many others.
pub(crate) fn limit_nesting() -> Result<()> {
    if UPDATING.with_borrow(Vec::len) < MAX_NESTED {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!(
            "{MAX_NESTED} updates are under way inside of each other: an on_update hook that \
             updates is called again by its own update, so guard against that"
        ),
    ))
}

impl Core {
    /// True if this thread is inside of an update of this client.
    pub(crate) fn is_updating_here(&self) -> bool {
        UPDATING.with_borrow(|clients| clients.contains(&std::ptr::from_ref(self)))
    }

    /// Runs an update and counts how it ended.
    pub(crate) fn execute<'a>(&'a self, job: Job<'a>) -> Result<Receipt> {
        let nested = limit_nesting();
        let _in_flight = InFlight::enter(self);
        self.counters.calls.increment();
        let result = nested.and_then(|()| self.run(job));
        match &result {
            Ok(receipt) => {
                match receipt.outcome {
                    Outcome::Applied => self.counters.applied.increment(),
                    Outcome::AlreadyApplied => self.counters.already_applied.increment(),
                    Outcome::Unchanged => self.counters.unchanged.increment(),
                }
                if receipt.outcome != Outcome::Unchanged {
                    self.counters.latency(receipt.latency);
                }
            }
            Err(error) => {
                if !error.violations().is_empty() {
                    self.counters.validation_errors.increment();
                }
                self.counters.failed(error.kind());
            }
        }
        result
    }

    /// Reads the target, and checks whatever an update would check before its first write.
    pub(crate) fn preview(
        &self,
        update: &Update,
        policy: RetryPolicy,
        cancel: Option<&Cancel>,
    ) -> Result<Snapshot> {
        let target = update.target();
        let wanted = update.checked(&self.limits, &self.schemas)?;
        let wire = &self.session.wire;
        let id = target.conversation_id();
        let mut call = wire.begin(policy, Caller::Single, id, cancel);
        let mut summary = Summary::new(target, wanted, &update.remove);
        let job = Job::new(update, Caller::Single, policy, cancel);
        summary.state = match self.read_state(target, &mut call, &[&summary.wanted]) {
            Ok(state) => state,
            // The write would create it.
            Err(error) if error.kind() == ErrorKind::NotFound && target.schema().is_some() => {
                TargetState::with(Attributes::new())
            }
            Err(error) => {
                return Err(call.failed(error));
            }
        };
        Run::new(self, job, summary).preview(&mut call)
    }

    /// Checks an update, takes its turn, runs it, records and tells what came of it.
    fn run<'a>(&'a self, job: Job<'a>) -> Result<Receipt> {
        let Job { update, cancel, .. } = job;
        let target = &update.target;
        let checked = if job.compute.is_some() {
            target.checked().map(|()| Cow::Borrowed(&update.attributes))
        } else {
            update.checked(&self.limits, &self.schemas)
        };
        let (wanted, invalid) = match checked {
            Ok(wanted) => (wanted, None),
            Err(error) => (Cow::Borrowed(&update.attributes), Some(error)),
        };
        let mut summary = Summary::new(target, wanted, &update.remove);
        summary.audit_values = self.audit.as_ref().is_some_and(|audit| {
            audit.values && (audit.secure_values || !target.is_confidential())
        });
        if let Some(error) = invalid {
            return Err(self.failed(&mut summary, error));
        }

        let policy = job.policy;
        let id = target.conversation_id();
        let locked = self
            .locks
            .acquire(id, self.clock.as_ref(), policy.deadline, cancel);
        let guard = match locked {
            Ok(guard) => guard,
            Err(error) => return Err(self.failed(&mut summary, error)),
        };
        let mut call = self.session.wire.begin(policy, job.caller, id, cancel);
        if let Some(since) = guard.waited_since() {
            call.budget.start(since);
        }
        let mut run = Run::new(self, job, summary);
        let ended = run.until_done(&mut call);
        let timestamp = self.clock.wall();
        let (mut summary, answer) = run.into_parts();
        let (outcome, version) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                if call.attempts > 0 {
                    self.forget(target);
                }
                return Err(self.failed(&mut summary, error));
            }
        };
        let mut receipt = summary.receipt(outcome, version, answer, &call, timestamp);
        receipt.verified = update.verify && outcome == Outcome::Applied;
        let tells = outcome != Outcome::Unchanged;
        // A conflict may have shown that there is nothing to change after an intent was recorded,
        // which is closed then. It is no event all the same.
        let listened = tells && self.listeners.any();
        let audited = self.audit.is_some() && (tells || summary.audit_id.is_some());
        if listened || audited {
            let id = self.audit_id(&mut summary);
            let record = summary.outcome(id, &receipt);
            if audited {
                receipt.audit_failed |= !self.keep(&record);
            }
            if listened {
                let sequence = self.listeners.next_sequence();
                let event = summary.event(sequence, record, self.secure_values_in_events);
                if self.listeners.has_subscribers() {
                    self.listeners.deliver(event.clone(), &self.counters);
                }
                drop(guard);
                receipt.hook_panics = self.listeners.run_hooks(&event, &self.counters);
            }
        }
        Ok(receipt)
    }

    /// Records how an update failed, and returns the error.
    fn failed(&self, summary: &mut Summary<'_>, error: Error) -> Error {
        // Inside of a sink a refusal is not recorded: each record would lead to the next. An intent
        // gets its outcome everywhere.
        if self.audit.is_some() && (summary.audit_id.is_some() || !audit::is_recording()) {
            let status = if summary.audit_id.is_some() {
                Status::Failed
            } else {
                Status::Refused
            };
            let id = self.audit_id(summary);
            self.keep(&summary.failure(id, status, &error, self.clock.wall()));
        }
        error
    }
}
