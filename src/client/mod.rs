//! The client: the handle by which everything else is reached.

pub(crate) mod builder;
pub(crate) mod settings;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::http::Response;
use crate::report::audit;
use crate::report::event::Subscription;
use crate::report::metrics::Metrics;
use crate::report::receipt::{Identity, Receipt, Snapshot};
use crate::session::exchange::Purpose;
use crate::session::limiter::Wait;
use crate::session::retry::{Caller, RetryPolicy};
use crate::store::cache::Cached;
use crate::store::{ParticipantInfo, Target};
use crate::update::core::{Core, EndedPolicy, Job};
use crate::update::{Edit, Update};
use crate::util::clock::Clock;
use crate::util::sync::Cancel;
use crate::values::attributes::Attributes;

/// The time for a look-up that lines of a batch wait for: they can do without it.
const LOOK_UP_DEADLINE: Duration = Duration::from_secs(30);
/// A look-up of 100 long conversations is answered by more than other requests are.
const LOOK_UP_BODY: usize = 8 << 20;

/// Changes attributes on conversations: the entry point of this library.
///
/// A client is cheap to clone, and its clones share the token, the connections, the rate limit,
/// the metrics and the hooks. It may be used from any number of threads. Make one for a set of
/// credentials and keep it.
///
/// A process that is forked must not use a client of its parent, whose connections and locks it has
/// copies of: every call is an error of the kind `Config` there, before anything is sent. Make a
/// client in each process, after the fork.
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
    pub(crate) core: Arc<Core>,
    /// What ends its calls early, beside what a call is given.
    pub(crate) cancel: Option<Cancel>,
    /// The deadline of its calls, in place of the policy's.
    pub(crate) deadline: Option<Duration>,
}

/// How [`Client::update_with_options`] runs.
///
/// ```
/// use genesys_attributes::{Cancel, UpdateOptions};
///
/// let cancel = Cancel::new();
/// let options = UpdateOptions::new().cancel(&cancel).unique();
/// ```
#[must_use = "options do nothing until an update is given them"]
#[derive(Debug, Clone, Copy, Default)]
pub struct UpdateOptions<'a> {
    cancel: Option<&'a Cancel>,
    unique: bool,
}

impl<'a> UpdateOptions<'a> {
    /// The options of [`Client::update_with`].
    pub fn new() -> UpdateOptions<'a> {
        UpdateOptions::default()
    }

    /// Ends the call early when `cancel` is set.
    pub fn cancel(mut self, cancel: &'a Cancel) -> UpdateOptions<'a> {
        self.cancel = Some(cancel);
        self
    }

    /// Says that the computed values can only come from this call (they hold an id made for it,
    /// say), so that finding them in place after a write whose outcome is unknown proves that the
    /// write was applied: the outcome is then `AlreadyApplied`. A count is not unique.
    pub fn unique(mut self) -> UpdateOptions<'a> {
        self.unique = true;
        self
    }
}

impl Client {
    /// What the clones share. An error in a forked child of the process that made it.
    pub(crate) fn core(&self) -> Result<&Core> {
        self.core.process.check()?;
        Ok(&self.core)
    }

    /// This client with another deadline for each of its calls, reads and updates alike.
    ///
    /// As [`RetryPolicy::with_deadline`](crate::RetryPolicy::with_deadline) has it, waits for the
    /// rate limit do not count. All else is shared, as between clones.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use genesys_attributes::{Cancel, Client, Target};
    /// # let client = Client::from_env()?;
    /// let cancel = Cancel::new(); // a clone of it goes to the thread that may give up
    /// let client = client.with_deadline(Duration::from_secs(5)).with_cancel(&cancel);
    /// let now = client.read(&Target::participant("5b2f0c1e", "customer"))?;
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    #[must_use = "the client itself stays as it is"]
    pub fn with_deadline(&self, deadline: Duration) -> Client {
        let mut client = self.clone();
        client.deadline = Some(deadline);
        client
    }

    /// This client with calls that end early when `cancel` is set, reads and updates alike: with
    /// [`ErrorKind::Cancelled`]. A cancel that is given to a call takes its place.
    #[must_use = "the client itself stays as it is"]
    pub fn with_cancel(&self, cancel: &Cancel) -> Client {
        let mut client = self.clone();
        client.cancel = Some(cancel.clone());
        client
    }

    fn policy(&self) -> RetryPolicy {
        let policy = self.core.session.wire.policy;
        match self.deadline {
            Some(deadline) => policy.with_deadline(deadline),
            None => policy,
        }
    }

    /// Sets attributes: checks them, reads the version if it is not known, writes, and settles
    /// conflicts and ambiguous outcomes.
    ///
    /// By a participant's id it costs one request; secure attributes, custom records and participants
    /// of other purposes than `customer` and `external` two; those two and the conversation-level
    /// endpoint two the first time (cold), and then one (warm). Updates of one conversation
    /// through one client take turns, first come, first served, within the deadline.
    ///
    /// # Errors
    ///
    /// Nothing was written unless [`Error::may_have_applied`] says so. Kinds: `InvalidInput` and
    /// `PayloadTooLarge` (not sent, or refused), `Auth`, `Forbidden`, `NotFound`, `Conflict` (at the
    /// deadline, after [`max_conflicts`](crate::RetryPolicy::max_conflicts), or with `if_version`), `RateLimited`,
    /// `Timeout`, `Connect`, `Transport`, `Server`, `Protocol`, and `Audit` in strict mode.
    ///
    /// ```no_run
    /// # use genesys_attributes::{Client, Update};
    /// # let client = Client::from_env()?;
    /// let update = Update::participant("5b2f0c1e", "customer").set("customer.tier", "premium");
    /// match client.update(&update) {
    ///     Ok(receipt) => println!("{} with {} requests", receipt.outcome, receipt.requests),
    ///     Err(error) if error.is_transient() => println!("try again later: {error}"),
    ///     Err(error) => println!("give up: {error}"),
    /// }
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn update(&self, update: &Update) -> Result<Receipt> {
        let job = Job::new(update, Caller::Single, self.policy(), self.cancel.as_ref());
        self.core()?.execute(job)
    }

    /// As [`Client::update`], ending early when `cancel` is set.
    ///
    /// # Errors
    ///
    /// As [`Client::update`], and [`ErrorKind::Cancelled`].
    ///
    /// ```no_run
    /// # use genesys_attributes::{Cancel, Client, Update};
    /// # let client = Client::from_env()?;
    /// let cancel = Cancel::new(); // a clone of it goes to the thread that may give up
    /// let update = Update::participant("5b2f0c1e", "customer").set("customer.tier", "premium");
    /// let receipt = client.update_cancellable(&update, &cancel)?;
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn update_cancellable(&self, update: &Update, cancel: &Cancel) -> Result<Receipt> {
        let job = Job::new(update, Caller::Single, self.policy(), Some(cancel));
        self.core()?.execute(job)
    }

    /// As [`Client::update_cancellable`], for a batch: a 429 is waited out however often it comes,
    /// and a login that is held off is an error at once, for the batch to wait as a whole.
    pub(crate) fn update_in_batch(&self, update: &Update, cancel: &Cancel) -> Result<Receipt> {
        let job = Job::new(update, Caller::Batch, self.policy(), Some(cancel));
        self.core()?.execute(job)
    }

    /// Reads, computes and writes under the lock of the target: `compute` gets the current values
    /// and returns those to set, or `None` when there is nothing to change.
    ///
    /// After a conflict on the version it is called again with the new values. When the outcome of
    /// a write is unknown and a conflict follows, it is not: the call then fails with
    /// [`ErrorKind::Conflict`] and [`Error::may_have_applied`], since computing twice could count
    /// twice, and the computed value in place could be somebody else's. Where the values are
    /// unique to this call, [`UpdateOptions::unique`] says so.
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
    /// let counted = client.update_with(&Target::secure("5b2f0c1e"), |now| {
    ///     let calls: u64 = now.get("calls")?.unwrap_or(0);
    ///     Ok(Some(Attributes::from_iter([("calls".to_owned(), (calls + 1).into())])))
    /// });
    /// if let Err(error) = counted && error.may_have_applied() {
    ///     println!("counted once or not at all: read it to see");
    /// }
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn update_with(
        &self,
        target: &Target,
        mut compute: impl FnMut(&Snapshot) -> Result<Option<Attributes>>,
    ) -> Result<Receipt> {
        self.update_with_options(target, UpdateOptions::new(), |now| {
            Ok(compute(now)?.map(Edit::from))
        })
    }

    /// As [`Client::update_with`], with removals and options.
    ///
    /// # Errors
    ///
    /// As [`Client::update_with`], and [`ErrorKind::Cancelled`].
    ///
    /// ```no_run
    /// # use genesys_attributes::{Cancel, Client, Edit, Target, UpdateOptions};
    /// # let client = Client::from_env()?;
    /// let cancel = Cancel::new();
    /// let options = UpdateOptions::new().cancel(&cancel);
    /// client.update_with_options(&Target::secure("5b2f0c1e"), options, |now| {
    ///     let old: Option<String> = now.get("old")?;
    ///     Ok(old.map(|value| Edit::new().set("new", value).remove("old")))
    /// })?;
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn update_with_options(
        &self,
        target: &Target,
        options: UpdateOptions<'_>,
        mut compute: impl FnMut(&Snapshot) -> Result<Option<Edit>>,
    ) -> Result<Receipt> {
        self.core()?.execute(Job {
            update: &Update::new(target.clone()),
            compute: Some(&mut compute),
            unique: options.unique,
            caller: Caller::Single,
            policy: self.policy(),
            cancel: options.cancel.or(self.cancel.as_ref()),
        })
    }

    /// Checks an update against this client's limits and schemas, without any network.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] with every violation at once, or
    /// [`ErrorKind::PayloadTooLarge`].
    pub fn validate(&self, update: &Update) -> Result<()> {
        update.validate_against(&self.core.limits, &self.core.schemas)
    }

    /// Reads a target's attributes and version: one request.
    ///
    /// # Errors
    ///
    /// As for reading in [`Client::update`]; `Protocol` where the answer holds no attributes, as
    /// the platform's own conversations do not at the top level.
    ///
    /// ```no_run
    /// # use genesys_attributes::{Client, Target};
    /// # let client = Client::from_env()?;
    /// let now = client.read(&Target::participant("5b2f0c1e", "customer"))?;
    /// let tier: Option<String> = now.get("customer.tier")?;
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn read(&self, target: &Target) -> Result<Snapshot> {
        self.read_until(target, self.cancel.as_ref())
    }

    /// As [`Client::read`], ending early when `cancel` is set.
    pub(crate) fn read_until(&self, target: &Target, cancel: Option<&Cancel>) -> Result<Snapshot> {
        let core = self.core()?;
        core.read(target, self.policy(), cancel)
    }

    /// Reads who takes part in a conversation, or did: one request.
    ///
    /// # Errors
    ///
    /// As for reading in [`Client::update`].
    ///
    /// ```no_run
    /// # use genesys_attributes::Client;
    /// # let client = Client::from_env()?;
    /// for participant in client.participants("5b2f0c1e")? {
    ///     println!("{participant}"); // customer 7c1b (Ann) since 2026-01-01T00:00:00Z, active
    /// }
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn participants(&self, conversation: impl Into<String>) -> Result<Vec<ParticipantInfo>> {
        self.participants_until(conversation, self.cancel.as_ref())
    }

    /// As [`Client::participants`], ending early when `cancel` is set.
    pub(crate) fn participants_until(
        &self,
        conversation: impl Into<String>,
        cancel: Option<&Cancel>,
    ) -> Result<Vec<ParticipantInfo>> {
        let target = Target::conversation(conversation);
        self.core()?.participants(&target, self.policy(), cancel)
    }

    /// As [`Client::read`], in one try of a few seconds at most: others wait for it.
    #[cfg(feature = "forward")]
    pub(crate) fn read_once(&self, target: &Target, cancel: &Cancel) -> Result<Snapshot> {
        let core = self.core()?;
        let policy = core.session.wire.policy;
        let policy = policy
            .with_max_attempts(1)
            .with_deadline(Duration::from_secs(5));
        core.read(target, policy, Some(cancel))
    }

    /// What the target of an update holds now, once everything is checked that the update would
    /// check before its first write: values, the version that is demanded, the end of the
    /// conversation. Nothing is written, and nobody is told.
    ///
    /// # Errors
    ///
    /// Those with which the update would fail before its first write.
    ///
    /// ```no_run
    /// # use genesys_attributes::{Client, Update};
    /// # let client = Client::from_env()?;
    /// let update = Update::participant("5b2f0c1e", "customer").set("customer.tier", "premium");
    /// let now = client.preview(&update)?;
    /// println!("{:?} would become premium", now.get::<String>("customer.tier")?);
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn preview(&self, update: &Update) -> Result<Snapshot> {
        self.preview_until(update, self.cancel.as_ref())
    }

    /// As [`Client::preview`], ending early when `cancel` is set.
    pub(crate) fn preview_until(
        &self,
        update: &Update,
        cancel: Option<&Cancel>,
    ) -> Result<Snapshot> {
        self.core()?.preview(update, self.policy(), cancel)
    }

    /// A bounded channel of the events from now on, of 1 to 65,536 places (`capacity` is clamped).
    /// In a forked child it is closed.
    ///
    /// ```no_run
    /// # use genesys_attributes::Client;
    /// # let client = Client::from_env()?;
    /// let events = client.subscribe(1_000);
    /// std::thread::spawn(move || {
    ///     for delivery in events {
    ///         println!("{}, {} lost before", delivery.conversation_id, delivery.lost_before);
    ///     }
    /// });
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn subscribe(&self, capacity: usize) -> Subscription {
        let core = &self.core;
        core.listeners
            .subscribe(capacity, core.counters.clone(), core.process)
    }

    /// What this client and its clones did so far.
    pub fn metrics(&self) -> Metrics {
        self.core.counters.snapshot()
    }

    /// Logs in if need be, and asks the platform whose token it is: `GET /api/v2/tokens/me`.
    ///
    /// # Errors
    ///
    /// `Auth` when the credentials are refused; others as in [`Client::update`].
    ///
    /// ```no_run
    /// # use genesys_attributes::Client;
    /// # let client = Client::from_env()?;
    /// println!("{:?}", client.verify_credentials()?.organization_name);
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn verify_credentials(&self) -> Result<Identity> {
        self.verify_credentials_until(self.cancel.as_ref())
    }

    /// As [`Client::verify_credentials`], ending early when `cancel` is set.
    pub(crate) fn verify_credentials_until(&self, cancel: Option<&Cancel>) -> Result<Identity> {
        let session = &self.core()?.session;
        let mut call =
            session
                .wire
                .begin(self.policy(), Caller::Single, "verify_credentials", cancel);
        session
            .identity(&mut call)
            .map_err(|error| call.failed(error))
    }

    /// Waits until no update of this client is in flight on any thread and their hooks have
    /// returned, then flushes the audit sink. For the end of a program.
    ///
    /// # Errors
    ///
    /// `Timeout` when updates are still in flight after `timeout`; `Audit` when the sink fails;
    /// `InvalidInput` from inside of an update of this client, in a hook for example.
    ///
    /// ```no_run
    /// # use genesys_attributes::Client;
    /// # let client = Client::from_env()?;
    /// client.flush(std::time::Duration::from_secs(5))?;
    /// print!("{}", client.metrics().to_prometheus());
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn flush(&self, timeout: Duration) -> Result<()> {
        self.flush_until(timeout, self.cancel.as_ref())
    }

    /// As [`Client::flush`], ending early when `cancel` is set.
    pub(crate) fn flush_until(&self, timeout: Duration, cancel: Option<&Cancel>) -> Result<()> {
        const STEP: Duration = Duration::from_millis(5);
        let core = self.core()?;
        if core.is_updating_here() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "code that an update calls (a hook, a closure, a sink) cannot wait for that \
                 update: flush after it",
            ));
        }
        let start = core.clock.now();
        while core.in_flight.load(Ordering::Acquire) > 0 {
            Cancel::check(cancel)?;
            if core.clock.now().saturating_duration_since(start) >= timeout {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    "updates or their hooks are still in flight: wait for them, or give more time",
                ));
            }
            core.clock.sleep(STEP.min(timeout));
        }
        match &core.audit {
            Some(audit) => audit::flush(audit.sink.as_ref()).map_err(|e| {
                Error::new(
                    ErrorKind::Audit,
                    "the audit sink could not be flushed: check it",
                )
                .with_source(e)
            }),
            None => Ok(()),
        }
    }

    /// One read of many things, for the sake of later ones; its answer may be of any status.
    pub(crate) fn look_up(
        &self,
        path: &str,
        subject: &str,
        caller: Caller,
        cancel: Option<&Cancel>,
    ) -> Result<Response> {
        let session = &self.core()?.session;
        let mut policy = self.policy();
        let cancel = cancel.or(self.cancel.as_ref());
        if caller == Caller::LookUp {
            policy.deadline = policy.deadline.min(LOOK_UP_DEADLINE);
        }
        let mut call = session.wire.begin(policy, caller, subject, cancel);
        let mut request = session.read_request(path);
        request.least_body_limit = LOOK_UP_BODY;
        session.get(&mut call, request, policy.max_attempts)
    }

    /// Whether the platform answers at all.
    pub(crate) fn reachable(&self, cancel: &Cancel) -> Result<bool> {
        let session = &self.core()?.session;
        let (policy, path) = (session.wire.policy, "/api/v2/tokens/me");
        let mut call = session
            .wire
            .begin(policy, Caller::Batch, path, Some(cancel));
        let request = session.read_request(path);
        let (read, most) = (Purpose::Read, policy.max_attempts);
        let answered = session
            .wire
            .request(&mut call, request, read, most, |reply| {
                let failure = reply.failure;
                (reply.result.map(|_| !failure.may()), failure)
            });
        match answered {
            Ok(is_sound) => Ok(is_sound),
            Err(error) => match error.kind() {
                ErrorKind::Cancelled => Err(error),
                ErrorKind::Connect
                | ErrorKind::Timeout
                | ErrorKind::Transport
                | ErrorKind::Server
                | ErrorKind::Protocol => Ok(false),
                _ => Ok(true),
            },
        }
    }

    /// A random part of `most`.
    pub(crate) fn jitter(&self, most: Duration) -> Duration {
        self.core.session.wire.seeds.next().up_to(most)
    }

    /// Until when a limit of requests makes everybody wait.
    pub(crate) fn limited_until(&self) -> Option<Instant> {
        self.core.session.wire.limiter.limited_until()
    }

    /// Why a request could not be sent now.
    pub(crate) fn blocked(&self, now: Instant) -> Option<Wait> {
        let limiter = &self.core.session.wire.limiter;
        match limiter.acquire(now) {
            Ok(()) => {
                limiter.give_back();
                None
            }
            Err(wait) => Some(wait),
        }
    }

    /// How many requests a minute its rate limit allows.
    pub(crate) fn rate(&self) -> Option<usize> {
        self.core.session.wire.limiter.per_minute()
    }

    pub(crate) fn ended_policy(&self) -> EndedPolicy {
        self.core.ended
    }

    /// For how many targets it remembers what a write needs.
    pub(crate) fn cache_capacity(&self) -> usize {
        self.core.cache.capacity()
    }

    /// Whether it knows the id of the target's participant.
    pub(crate) fn knows_participant(&self, target: &Target) -> bool {
        let cached = target.cache_key().and_then(|key| self.core.cache.get(&key));
        let value = cached.and_then(|cached| cached.into_value(|| self.core.clock.now()));
        value.is_some()
    }

    pub(crate) fn remember_participant(&self, target: &Target, id: String) {
        if let Some(key) = target.cache_key() {
            let cached = Cached::Participant(id, self.core.clock.now());
            self.core.cache.put(key, cached);
        }
    }

    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        self.core.clock.clone()
    }

    /// Whether a login of this client ever succeeded.
    pub(crate) fn has_logged_in(&self) -> bool {
        self.core.session.tokens.has_logged_in()
    }
}

/// Leaks what a forked child has copies of. To drop it could send something on the parent's
/// connections, or wait for a lock that no thread of the child frees.
impl Drop for Client {
    fn drop(&mut self) {
        if !self.core.process.is_current() {
            std::mem::forget(self.core.clone());
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("base_url", &self.core.session.base_url)
            .finish_non_exhaustive()
    }
}
