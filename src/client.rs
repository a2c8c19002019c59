//! The client: the story of one update, read top-down.

use std::borrow::Cow;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use log::warn;

use crate::api::Api;
use crate::audit::{self, AuditMode, AuditPhase, AuditRecord, AuditSink, AuditStatus};
use crate::call::{Call, Purpose};
use crate::clock::{Cancel, Clock, rfc3339};
use crate::error::{Error, ErrorKind, Result, Rule, Violation};
use crate::event::{Listeners, Subscription, UpdateEvent};
use crate::http::Response;
use crate::metrics::{Counters, Metrics};
use crate::problem;
use crate::receipt::{Identity, Outcome, Receipt, Snapshot, whole_millis};
use crate::target::{Basis, Change, Target};
use crate::update::{Update, fits};
use crate::validate::{Attributes, ValidationLimits};
use crate::version_cache::{Turns, VersionCache};

/// What to do about a conversation that is over, where a read shows that it is.
///
/// The platform's analytics drops attributes that are written after the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum EndedPolicy {
    /// Write, and only flag it in the receipt.
    Allow,
    /// Write, flag it in the receipt and log a warning.
    #[default]
    Warn,
    /// Refuse with [`ErrorKind::InvalidInput`]. An update that does not read (a warm one, or one
    /// by participant id) does not know, and writes; nor do reads of secure attributes and custom
    /// records tell.
    Refuse,
}

/// Changes attributes on conversations: the entry point of this library.
///
/// A client is cheap to clone, and its clones share the token, the connections, the rate limit,
/// the metrics and the hooks. It may be used from any number of threads. Make one for a set of
/// credentials and keep it.
///
/// ```no_run
/// use genesys_attributes::{Client, Update};
///
/// let client = Client::from_env()?;
/// let receipt = client.update(
///     &Update::participant("5b2f0c1e-0000-4000-8000-000000000001", "customer")
///         .set("customer.tier", "premium"),
/// )?;
/// println!("applied in {:?}", receipt.latency);
/// # Ok::<(), genesys_attributes::Error>(())
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

/// What all clones of a client share.
pub(crate) struct Inner {
    pub(crate) api: Api,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) listeners: Listeners,
    pub(crate) audit: Option<Audit>,
    /// Tells the audit ids of this client from those of another.
    pub(crate) audit_prefix: String,
    pub(crate) audit_sequence: AtomicU64,
    pub(crate) limits: ValidationLimits,
    pub(crate) metadata_source: String,
    pub(crate) ended: EndedPolicy,
    pub(crate) secure_values_in_events: bool,
    pub(crate) memory: VersionCache,
    pub(crate) turns: Turns,
    pub(crate) in_flight: AtomicUsize,
}

/// The audit trail's settings.
pub(crate) struct Audit {
    pub(crate) sink: Arc<dyn AuditSink>,
    pub(crate) mode: AuditMode,
    pub(crate) values: bool,
}

/// Reads the current values and says what to write, or that there is nothing to.
type Compute<'a> = &'a mut dyn FnMut(&Snapshot) -> Result<Option<Attributes>>;

/// Counts an update as under way, also when something in it panics.
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

/// An update that did not fail, before it becomes a receipt.
struct Done {
    outcome: Outcome,
    version: Option<String>,
    previous_version: Option<String>,
    correlation_id: Option<String>,
    response: Option<serde_json::Value>,
}

/// One update under way.
struct Job<'a> {
    update: &'a Update,
    compute: Option<Compute<'a>>,
    /// What to write, in the form that is written.
    wanted: Cow<'a, Attributes>,
    basis: Basis,
    /// The version that the last write was based on, also when a read came after it.
    written_on: Option<String>,
    ended: bool,
    audit_id: Option<String>,
    audit_failed: bool,
}

impl Client {
    pub(crate) fn from_inner(inner: Inner) -> Client {
        Client {
            inner: Arc::new(inner),
        }
    }

    /// Sets attributes: checks them, reads the version if it is not known, writes, and settles
    /// what conflicts and faults leave open.
    ///
    /// A cold update costs two requests, a warm one (of a conversation or purpose that this client
    /// wrote lately) one. Updates of one conversation take turns.
    ///
    /// # Errors
    ///
    /// Nothing was written unless [`Error::may_have_applied`] says so. Kinds: `InvalidInput` and
    /// `PayloadTooLarge` (not sent, or refused), `Auth`, `Forbidden`, `NotFound`, `Conflict` (after
    /// [`max_conflicts`](crate::RetryPolicy::max_conflicts), or with `if_version`), `RateLimited`,
    /// `Timeout`, `Connect`, `Transport`, `Server`, `Protocol`, and `Audit` in strict mode.
    ///
    /// Source: the brief's *Atomic PATCH with Optimistic Locking*; the Platform API's
    /// Conversations endpoints for the other targets.
    pub fn update(&self, update: &Update) -> Result<Receipt> {
        self.inner.run(update, None, None)
    }

    /// As [`Client::update`], ending early when `cancel` is set.
    ///
    /// # Errors
    ///
    /// As [`Client::update`], and [`ErrorKind::Cancelled`].
    pub fn update_cancellable(&self, update: &Update, cancel: &Cancel) -> Result<Receipt> {
        self.inner.run(update, None, Some(cancel))
    }

    /// Reads, computes and writes under the lock of the target: `compute` gets the current values
    /// and returns those to set, or `None` when there is nothing to change.
    ///
    /// After a conflict on the version it is called again with the new values. When an attempt may
    /// have been applied and its values are not found in place, it is not: the call then fails
    /// with [`ErrorKind::Conflict`] and [`Error::may_have_applied`], since computing twice could
    /// count twice.
    ///
    /// On a participant target there is no lock: a writer in between is overwritten. `compute` must
    /// not call `update` on the same client; it gets `InvalidInput` there. Nor must it wait for
    /// another thread's update of the same conversation, which waits for this one.
    ///
    /// # Errors
    ///
    /// As [`Client::update`]; `Protocol` where the target's values cannot be read; whatever
    /// `compute` returns.
    ///
    /// ```no_run
    /// # use genesys_attributes::{Attributes, Client, Target};
    /// # let client = Client::from_env()?;
    /// let calls = client.update_with(&Target::secure("5b2f0c1e"), |now| {
    ///     let count: u64 = now.attributes.get("calls").and_then(|v| v.as_str()?.parse().ok()).unwrap_or(0);
    ///     Ok(Some(Attributes::from_iter([("calls".to_owned(), (count + 1).into())])))
    /// })?;
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn update_with(
        &self,
        target: &Target,
        mut compute: impl FnMut(&Snapshot) -> Result<Option<Attributes>>,
    ) -> Result<Receipt> {
        self.inner
            .run(&Update::new(target.clone()), Some(&mut compute), None)
    }

    /// Reads a target's attributes and version: one request.
    ///
    /// # Errors
    ///
    /// As for reading in [`Client::update`]; `Protocol` where the answer holds no attributes, as
    /// the platform's own conversations do not at the top level.
    pub fn read(&self, target: &Target) -> Result<Snapshot> {
        target.checked()?;
        // A schema makes an absent record writable, not readable.
        let mut target = target.clone();
        target.set_schema(None);
        let mut call = self.inner.api.caller.begin(None);
        self.inner
            .read_target(&target, &mut call)
            .and_then(|basis| snapshot(&target, &basis))
            .map_err(|error| error.with_effort(call.attempts, call.requests, call.latency()))
    }

    /// A bounded channel of the events from now on, of 1 to 65,536 places (`capacity` is clamped).
    pub fn subscribe(&self, capacity: usize) -> Subscription {
        self.inner
            .listeners
            .subscribe(capacity, self.inner.counters.clone())
    }

    /// What this client and its clones did so far.
    pub fn metrics(&self) -> Metrics {
        self.inner.counters.snapshot()
    }

    /// Logs in if need be, and asks the platform whose token it is: `GET /api/v2/tokens/me`.
    ///
    /// # Errors
    ///
    /// `Auth` when the credentials are refused; others as in [`Client::update`].
    pub fn verify_credentials(&self) -> Result<Identity> {
        self.inner.identity()
    }

    /// Waits until no update of this client is under way on any thread and their hooks have
    /// returned, then flushes the audit sink. For the end of a program; from inside of a hook it
    /// could only time out.
    ///
    /// # Errors
    ///
    /// `Timeout` when updates are still under way after `timeout`; `Audit` when the sink fails.
    pub fn flush(&self, timeout: Duration) -> Result<()> {
        const STEP: Duration = Duration::from_millis(5);
        let inner = &self.inner;
        let start = inner.clock.now();
        while inner.in_flight.load(Ordering::Acquire) > 0 {
            if inner.clock.now().saturating_duration_since(start) >= timeout {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    "updates or their hooks are still under way",
                ));
            }
            inner.clock.sleep(STEP.min(timeout));
        }
        match &inner.audit {
            Some(audit) => audit::flush(audit.sink.as_ref()).map_err(|e| {
                Error::new(ErrorKind::Audit, "the audit sink could not be flushed").with_source(e)
            }),
            None => Ok(()),
        }
    }

    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        self.inner.clock.clone()
    }

    /// The longest `Retry-After` that is waited for.
    pub(crate) fn max_retry_after(&self) -> Duration {
        self.inner.api.caller.policy.max_retry_after
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("base_url", &self.inner.api.base_url)
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn run<'a>(
        &self,
        update: &'a Update,
        compute: Option<Compute<'a>>,
        cancel: Option<&Cancel>,
    ) -> Result<Receipt> {
        let _under_way = InFlight::enter(&self.in_flight);
        self.counters.calls.increment();
        let result = self.tell(update, compute, cancel);
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

    /// The whole story: check, take the turn, settle, audit, tell.
    fn tell<'a>(
        &self,
        update: &'a Update,
        compute: Option<Compute<'a>>,
        cancel: Option<&Cancel>,
    ) -> Result<Receipt> {
        let wanted = if compute.is_some() {
            update.target.checked()?;
            Cow::Borrowed(&update.attributes)
        } else {
            update.checked(&self.limits)?
        };
        let target = &update.target;
        let mut job = Job {
            update,
            compute,
            wanted,
            basis: Basis::default(),
            written_on: None,
            ended: false,
            audit_id: None,
            audit_failed: false,
        };
        let turn = self.turns.take(target.conversation_id(), cancel)?;
        let mut call = self.api.caller.begin(cancel);
        // A transport or closure of the caller's that panics must not leave an intent without its
        // outcome: that would look like a crash.
        let settled = catch_unwind(AssertUnwindSafe(|| self.settle(&mut job, &mut call)))
            .unwrap_or_else(|_| {
                call.may_have_applied |= call.unclear;
                Err(Error::new(
                    ErrorKind::Internal,
                    "a transport, clock or closure panicked during the update",
                ))
            });
        let timestamp = rfc3339(self.clock.wall());
        let done = match settled {
            Ok(done) => done,
            Err(error) => {
                // A closure may have passed on the error of another update.
                let may_have_applied = call.may_have_applied || error.may_have_applied();
                let error = error
                    .with_effort(call.attempts, call.requests, call.latency())
                    .with_may_have_applied(may_have_applied);
                if call.attempts > 0 {
                    self.remember(target, None);
                }
                self.audit_failure(&mut job, &call, &error, timestamp);
                return Err(error);
            }
        };
        let mut receipt = Receipt {
            outcome: done.outcome,
            conversation_id: target.conversation_id().to_owned(),
            target: target.kind(),
            item: target.item(&job.basis),
            version: done.version,
            previous_version: done.previous_version,
            attempts: call.attempts,
            requests: call.requests,
            latency: call.latency(),
            correlation_id: done.correlation_id,
            timestamp,
            response: done.response,
            conversation_ended: job.ended,
            audit_failed: job.audit_failed,
            hook_panics: 0,
        };
        if receipt.outcome == Outcome::Unchanged {
            // A conflict may have shown that there is nothing to change after an intent was
            // recorded, which is closed then. It is no event all the same.
            if job.audit_id.is_some() {
                receipt.audit_failed |= !self.keep(&self.outcome_record(&job, &receipt));
            }
            return Ok(receipt);
        }
        let audited = self.audit.is_some() || self.listeners.any();
        let Some(record) = audited.then(|| self.outcome_record(&job, &receipt)) else {
            return Ok(receipt);
        };
        receipt.audit_failed |= !self.keep(&record);
        if self.listeners.any() {
            let event = Arc::new(self.event(&job, &receipt, record));
            self.listeners.deliver(&event, &self.counters);
            drop(turn);
            receipt.hook_panics = self.listeners.run_hooks(&event, &self.counters);
        }
        Ok(receipt)
    }

    /// Reads, guards, writes and reconciles until the outcome is known.
    fn settle(&self, job: &mut Job<'_>, call: &mut Call<'_>) -> Result<Done> {
        let update = job.update;
        let target = &update.target;
        let if_version = update.if_version.as_deref();
        let must_read = job.compute.is_some()
            || update.skip_unchanged
            || job.wanted.keys().any(|key| target.is_guarded(key));

        let key = target.memory_key();
        let remembered = key.as_deref().and_then(|key| self.memory.get(key));
        let known = if must_read {
            None
        } else {
            target.known(remembered, if_version)
        };
        let mut from_memory = known.is_some();
        let mut fresh = known.is_none();
        job.basis = match known {
            Some(basis) => basis,
            None => self.read_target(target, call)?,
        };
        loop {
            if fresh && let Some(done) = self.consider(job, call)? {
                return Ok(done);
            }
            let written = self.write(job, call);
            if std::mem::take(&mut call.look) {
                // Where looking fails, the unclear write is the error to tell.
                if let Ok(basis) = self.read_target(target, call) {
                    job.basis = basis;
                    // Computing again could count twice; what was computed from nothing still
                    // holds while there is nothing.
                    fresh = job.compute.is_none() || self.in_place(job);
                    if fresh || target.replaces(&job.basis) {
                        continue;
                    }
                }
            }
            let response = written?;
            if response.is_success() {
                let (version, body) = target.written(&job.basis, &response);
                self.remember(target, target.memory(&job.basis, version.as_deref()));
                return Ok(Done {
                    outcome: Outcome::Applied,
                    version,
                    previous_version: job.basis.version.clone(),
                    correlation_id: response.correlation_id().map(str::to_owned),
                    response: body,
                });
            }
            if target.is_conflict(&response) {
                fresh = self.conflict(job, call, &response)?;
            } else if from_memory && target.memory_may_be_stale(&response) {
                self.remember(target, None);
                job.basis = self.read_target(target, call)?;
                (fresh, from_memory) = (true, false);
            } else {
                return Err(self.refusal(target, &response));
            }
        }
    }

    /// Somebody else was faster: waits, and reads again where there is a version to read. Says
    /// whether it did.
    fn conflict(
        &self,
        job: &mut Job<'_>,
        call: &mut Call<'_>,
        response: &Response,
    ) -> Result<bool> {
        let target = &job.update.target;
        self.counters.conflicts.increment();
        self.remember(target, None);
        let error = || self.refusal(target, response);
        if job.update.if_version.is_some() && !call.may_have_applied {
            return Err(error().with_transient(false));
        }
        // After an attempt without an answer the conflict may be with ourselves, so even when no
        // further attempt is allowed, look.
        let may_try_again = self.api.caller.settle_conflict(call)?;
        let look = target.is_locked() && (may_try_again || call.may_have_applied);
        if look {
            job.basis = self.read_target(target, call)?;
        }
        // Computing again could count twice, and a given version is gone for good.
        let final_unless_in_place = !may_try_again
            || call.may_have_applied && (job.compute.is_some() || job.update.if_version.is_some());
        if final_unless_in_place && !(call.may_have_applied && look && self.in_place(job)) {
            return Err(error().with_transient(job.update.if_version.is_none()));
        }
        Ok(look)
    }

    fn in_place(&self, job: &Job<'_>) -> bool {
        job.basis.holds(&job.wanted, &job.update.remove) == Some(true)
    }

    /// What a fresh read decides before anything is written.
    fn consider(&self, job: &mut Job<'_>, call: &Call<'_>) -> Result<Option<Done>> {
        let update = job.update;
        let target = &update.target;
        let done = |outcome, basis: &Basis, previous_version| {
            Ok(Some(Done {
                outcome,
                version: basis.version.clone(),
                previous_version,
                correlation_id: None,
                response: None,
            }))
        };
        if call.may_have_applied && self.in_place(job) {
            self.remember(
                target,
                target.memory(&job.basis, job.basis.version.as_deref()),
            );
            job.ended |= job.basis.ended.is_some();
            return done(Outcome::AlreadyApplied, &job.basis, job.written_on.clone());
        }
        self.check_ended(job)?;
        if let Some(expected) = &update.if_version
            && job.basis.version.as_ref() != Some(expected)
        {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "{}: it is at version {}, not at {expected}",
                    target.description(),
                    job.basis.version.as_deref().unwrap_or("none"),
                ),
            )
            .with_transient(false));
        }
        if let Some(compute) = &mut job.compute {
            let Some(attributes) = compute(&snapshot(target, &job.basis)?)? else {
                return done(Outcome::Unchanged, &job.basis, job.basis.version.clone());
            };
            let computed = Update {
                attributes,
                ..Update::new(target.clone())
            };
            job.wanted = Cow::Owned(computed.checked(&self.limits)?.into_owned());
        } else if update.skip_unchanged && self.in_place(job) {
            return done(Outcome::Unchanged, &job.basis, job.basis.version.clone());
        }
        self.guard(job)?;
        Ok(None)
    }

    fn check_ended(&self, job: &mut Job<'_>) -> Result<()> {
        let Some(how) = &job.basis.ended else {
            return Ok(());
        };
        if self.ended == EndedPolicy::Refuse {
            return Err(Error::violated(vec![Violation::new(
                "conversationId",
                Rule::Ended,
                how.clone(),
            )]));
        }
        if self.ended == EndedPolicy::Warn && !job.ended {
            warn!(
                "conversation {} is {how}: analytics does not keep attributes written now",
                job.update.target.conversation_id()
            );
        }
        job.ended = true;
        Ok(())
    }

    /// The brief's state guard.
    fn guard(&self, job: &Job<'_>) -> Result<()> {
        let Some(how) = &job.basis.ended else {
            return Ok(());
        };
        let immutable: Vec<Violation> = job
            .wanted
            .keys()
            .filter(|key| job.update.target.is_guarded(key))
            .map(|key| Violation::new(key, Rule::SystemKey, how.clone()))
            .collect();
        if immutable.is_empty() {
            Ok(())
        } else {
            Err(Error::violated(immutable))
        }
    }

    fn read_target(&self, target: &Target, call: &mut Call<'_>) -> Result<Basis> {
        let response = self.api.get(call, &target.read_path())?;
        if response.is_success() {
            target.parse(&response)
        } else if target.is_absent(&response) {
            Ok(Basis::absent())
        } else {
            Err(self.refusal(target, &response))
        }
    }

    /// The error for an answer that is no success.
    fn refusal(&self, target: &Target, response: &Response) -> Error {
        let wait = self.api.caller.retry_after(response);
        let kind = if target.is_conflict(response) {
            ErrorKind::Conflict
        } else {
            problem::kind_of(response.status)
        };
        let error = problem::error_of_kind(kind, response, &target.description(), wait);
        match target.advice(response) {
            Some(advice) => error.and(&advice),
            None => error,
        }
    }

    /// Records the intent, once, and sends the write.
    fn write(&self, job: &mut Job<'_>, call: &mut Call<'_>) -> Result<Response> {
        let target = &job.update.target;
        let timestamp = rfc3339(self.clock.wall());
        let write = target.write(
            &Change {
                set: &job.wanted,
                remove: &job.update.remove,
                source: &self.metadata_source,
                timestamp: &timestamp,
            },
            &job.basis,
        )?;
        fits(target, write.body.len(), &self.limits)?;
        if let Some(audit) = &self.audit
            && job.audit_id.is_none()
        {
            job.audit_id = Some(self.next_audit_id());
            let mut intent = self.record(job, timestamp);
            intent.previous_version = job.basis.version.clone();
            if let Err(e) = audit::record(audit.sink.as_ref(), &intent) {
                self.counters.audit_failures.increment();
                if audit.mode == AuditMode::Strict {
                    job.audit_id = None;
                    return Err(Error::new(
                        ErrorKind::Audit,
                        "the intent could not be recorded, so nothing was written: check the \
                         audit sink",
                    )
                    .with_source(e));
                }
                warn!("an audit record could not be kept: {e}");
                job.audit_failed = true;
            }
        }
        job.written_on.clone_from(&job.basis.version);
        let purpose = if target.replaces(&job.basis) {
            Purpose::Replace
        } else {
            Purpose::Write
        };
        self.api.write(call, write, purpose)
    }

    fn remember(&self, target: &Target, what: Option<String>) {
        if let Some(key) = target.memory_key() {
            self.memory.put(key, what);
        }
    }

    /// Keeps an outcome; `false` when that failed, which is no error of the update.
    fn keep(&self, record: &AuditRecord) -> bool {
        let Some(audit) = &self.audit else {
            return true;
        };
        audit::record(audit.sink.as_ref(), record)
            .inspect_err(|e| {
                self.counters.audit_failures.increment();
                warn!("an audit record could not be kept: {e}");
            })
            .is_ok()
    }

    fn next_audit_id(&self) -> String {
        let number = self.audit_sequence.fetch_add(1, Ordering::Relaxed) + 1;
        format!("{}-{number}", self.audit_prefix)
    }

    /// The parts that all records of an update have.
    fn record(&self, job: &Job<'_>, timestamp: String) -> AuditRecord {
        let target = &job.update.target;
        let values = self.audit.as_ref().is_some_and(|audit| audit.values);
        AuditRecord {
            id: job.audit_id.clone().unwrap_or_else(|| self.next_audit_id()),
            phase: AuditPhase::Intent,
            timestamp,
            conversation_id: target.conversation_id().to_owned(),
            target: target.kind().name(),
            item: target.item(&job.basis),
            status: AuditStatus::Pending,
            updated_keys: job.wanted.keys().cloned().collect(),
            removed_keys: job.update.remove.clone(),
            attributes: (values && !target.is_confidential())
                .then(|| job.wanted.clone().into_owned()),
            previous_version: None,
            version: None,
            attempts: 0,
            requests: 0,
            latency_ms: 0,
            error_kind: None,
            http_status: None,
            may_have_applied: false,
            correlation_id: None,
        }
    }

    fn outcome_record(&self, job: &Job<'_>, receipt: &Receipt) -> AuditRecord {
        AuditRecord {
            phase: AuditPhase::Outcome,
            status: match receipt.outcome {
                Outcome::Applied => AuditStatus::Success,
                Outcome::AlreadyApplied => AuditStatus::AlreadyApplied,
                Outcome::Unchanged => AuditStatus::Unchanged,
            },
            previous_version: receipt.previous_version.clone(),
            version: receipt.version.clone(),
            attempts: receipt.attempts,
            requests: receipt.requests,
            latency_ms: whole_millis(receipt.latency),
            correlation_id: receipt.correlation_id.clone(),
            ..self.record(job, receipt.timestamp.clone())
        }
    }

    /// Closes an intent whose update failed. Without an intent there is nothing to close.
    fn audit_failure(&self, job: &mut Job<'_>, call: &Call<'_>, error: &Error, timestamp: String) {
        if job.audit_id.is_none() {
            return;
        }
        self.keep(&AuditRecord {
            phase: AuditPhase::Outcome,
            status: AuditStatus::Failed,
            previous_version: job.written_on.clone(),
            attempts: call.attempts,
            requests: call.requests,
            latency_ms: whole_millis(call.latency()),
            error_kind: Some(error.kind()),
            http_status: error.http_status(),
            may_have_applied: error.may_have_applied(),
            correlation_id: error.correlation_id().map(str::to_owned),
            ..self.record(job, timestamp)
        });
    }

    fn event(&self, job: &Job<'_>, receipt: &Receipt, audit: AuditRecord) -> UpdateEvent {
        let hidden = job.update.target.is_confidential() && !self.secure_values_in_events;
        UpdateEvent {
            sequence: self.listeners.next_sequence(),
            conversation_id: receipt.conversation_id.clone(),
            target: receipt.target.name(),
            item: receipt.item.clone(),
            attributes: if hidden {
                Attributes::new()
            } else {
                job.wanted.clone().into_owned()
            },
            updated_keys: audit.updated_keys.clone(),
            removed_keys: audit.removed_keys.clone(),
            version: receipt.version.clone(),
            previous_version: receipt.previous_version.clone(),
            latency_ms: audit.latency_ms,
            timestamp: receipt.timestamp.clone(),
            audit,
        }
    }

    fn identity(&self) -> Result<Identity> {
        let mut call = self.api.caller.begin(None);
        self.ask_identity(&mut call)
            .map_err(|error| error.with_effort(call.attempts, call.requests, call.latency()))
    }

    fn ask_identity(&self, call: &mut Call<'_>) -> Result<Identity> {
        let response = self.api.get(call, "/api/v2/tokens/me")?;
        let what = "the token";
        if !response.is_success() {
            let wait = self.api.caller.retry_after(&response);
            return Err(problem::error_of(&response, what, wait));
        }
        let info = response.object().map_err(|why| {
            Error::new(
                ErrorKind::Protocol,
                format!("{what}: the answer cannot be used: {why}"),
            )
            .with_http_status(response.status)
        })?;
        let expires_at = self.api.tokens.token(None)?.expires.map(|end| {
            let left = end.saturating_duration_since(self.clock.now());
            rfc3339(self.clock.wall() + left)
        });
        let text = |of: &str, name: &str| Some(info.get(of)?.get(name)?.as_str()?.to_owned());
        Ok(Identity {
            organization_id: text("organization", "id"),
            organization_name: text("organization", "name"),
            client_id: text("OAuthClient", "id"),
            client_name: text("OAuthClient", "name"),
            expires_at,
        })
    }
}

fn snapshot(target: &Target, basis: &Basis) -> Result<Snapshot> {
    let attributes = basis.attributes.clone().ok_or_else(|| {
        Error::new(
            ErrorKind::Protocol,
            format!(
                "{}: the answer holds no attributes, so they cannot be read",
                target.description()
            ),
        )
    })?;
    Ok(Snapshot {
        conversation_id: target.conversation_id().to_owned(),
        target: target.kind(),
        item: target.item(basis),
        version: basis.version.clone(),
        attributes,
        conversation_ended: basis.ended.is_some(),
    })
}
