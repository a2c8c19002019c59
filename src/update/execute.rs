//! The story of one update around its driver: check, take the lock, carry out, audit, notify.

use std::borrow::Cow;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Update;
use super::core::{Core, Order};
use super::facts::Facts;
use super::run::Run;
use crate::error::{Error, ErrorKind, Result};
use crate::report::audit;
use crate::report::receipt::{Outcome, Receipt, Snapshot, Status};
use crate::session::retry::Patience;
use crate::store::TargetState;
use crate::values::attributes::Attributes;

/// Counts an update as in flight, also when something in it panics.
struct InFlight<'a>(&'a AtomicUsize);

impl<'a> InFlight<'a> {
    fn enter(count: &'a AtomicUsize) -> InFlight<'a> {
        count.fetch_add(1, Ordering::AcqRel);
        InFlight(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Core {
    /// Runs an update, and counts what came of it.
    pub(crate) fn execute<'a>(&'a self, order: Order<'a>) -> Result<Receipt> {
        let _in_flight = InFlight::enter(&self.in_flight);
        self.counters.calls.increment();
        let result = self.run(order);
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
    pub(crate) fn preview(&self, update: &Update) -> Result<Snapshot> {
        let target = update.target();
        let wanted = update.checked(&self.limits, self.schema.as_ref())?;
        let wire = &self.session.wire;
        let id = target.conversation_id();
        let mut call = wire.begin(wire.policy, Patience::Deadline, id, None);
        let mut facts = Facts::new(target, wanted, &update.remove);
        let order = Order {
            update,
            compute: None,
            unique: false,
            patience: Patience::Deadline,
            cancel: None,
        };
        facts.state = match self.read_state(target, &mut call, &[&facts.wanted]) {
            Ok(state) => state,
            // The write would create it.
            Err(error) if error.kind() == ErrorKind::NotFound && target.schema().is_some() => {
                TargetState::with(Attributes::new())
            }
            Err(error) => {
                return Err(error.with_effort(call.attempts, call.requests, call.latency()));
            }
        };
        Run::new(self, order, call, facts).preview()
    }

    /// The whole story: check, take the lock, carry out, audit, tell.
    fn run<'a>(&'a self, order: Order<'a>) -> Result<Receipt> {
        let Order { update, cancel, .. } = order;
        let target = &update.target;
        let checked = if order.compute.is_some() {
            target.checked().map(|()| Cow::Borrowed(&update.attributes))
        } else {
            update.checked(&self.limits, self.schema.as_ref())
        };
        let (wanted, invalid) = match checked {
            Ok(wanted) => (wanted, None),
            Err(error) => (Cow::Borrowed(&update.attributes), Some(error)),
        };
        let mut facts = Facts::new(target, wanted, &update.remove);
        facts.audit_values = self.audit.as_ref().is_some_and(|audit| {
            audit.values && (audit.secure_values || !target.is_confidential())
        });
        if let Some(error) = invalid {
            return Err(self.failed(&mut facts, error));
        }

        let policy = self.session.wire.policy;
        let id = target.conversation_id();
        let locked = self
            .locks
            .acquire(id, self.clock.as_ref(), policy.deadline, cancel);
        let guard = match locked {
            Ok(guard) => guard,
            Err(error) => return Err(self.failed(&mut facts, error)),
        };
        let mut call = self.session.wire.begin(policy, order.patience, id, cancel);
        if let Some(since) = guard.waited_since() {
            call.budget.start(since);
        }
        let mut run = Run::new(self, order, call, facts);
        let ended = run.until_done();
        let timestamp = self.clock.wall();
        let (call, mut facts, answer) = run.into_parts();
        let (outcome, version) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                if call.attempts > 0 {
                    self.forget(target);
                }
                return Err(self.failed(&mut facts, error));
            }
        };
        let mut receipt = facts.receipt(outcome, version, answer, &call, timestamp);
        receipt.verified = update.verify && outcome == Outcome::Applied;
        let tells = outcome != Outcome::Unchanged;
        // A conflict may have shown that there is nothing to change after an intent was recorded,
        // which is closed then. It is no event all the same.
        let listened = tells && self.listeners.any();
        let audited = self.audit.is_some() && (tells || facts.audit_id.is_some());
        if listened || audited {
            let id = self.audit_id(&mut facts);
            let record = facts.outcome(id, &receipt);
            if audited {
                receipt.audit_failed |= !self.keep(&record);
            }
            if listened {
                let sequence = self.listeners.next_sequence();
                let event = facts.event(sequence, record, self.secure_values_in_events);
                if self.listeners.has_subscribers() {
                    self.listeners.deliver(event.clone(), &self.counters);
                }
                drop(guard);
                receipt.hook_panics = self.listeners.run_hooks(&event, &self.counters);
            }
        }
        Ok(receipt)
    }

    /// Records what became of an update that failed, and passes the error on.
    fn failed(&self, facts: &mut Facts<'_>, error: Error) -> Error {
        // Inside of a sink a refusal is not recorded: each record would lead to the next. An intent
        // gets its outcome everywhere.
        if self.audit.is_some() && (facts.audit_id.is_some() || !audit::is_recording()) {
            let status = if facts.audit_id.is_some() {
                Status::Failed
            } else {
                Status::Refused
            };
            let id = self.audit_id(facts);
            self.keep(&facts.failure(id, status, &error, self.clock.wall()));
        }
        error
    }
}
