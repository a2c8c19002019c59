//! Many updates on a few threads: each conversation's in the order of the input, different
//! conversations at the same time, in bounded memory.

mod crew;
mod lookahead;
mod outage;
mod queue;
mod report;

use std::fmt;
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::update::Update;
use crate::util::sync::Cancel;

use crew::{Crew, Message};
use queue::Shared;
use report::Tally;

#[cfg(feature = "capi")]
pub(crate) use crew::NO_THREAD;
pub use outage::Notice;
pub use report::{BatchOutcome, BatchReport, StopReason};

/// What a batch runs: an [`Update`], or the error of a line that is none.
pub trait BatchItem {
    /// The update, or why there is none. The error should not hold values.
    ///
    /// # Errors
    ///
    /// The line's outcome is `failed` with this error, for good unless it
    /// [is transient](Error::is_transient).
    fn into_update(self) -> Result<Update>;
}

impl BatchItem for Update {
    fn into_update(self) -> Result<Update> {
        Ok(self)
    }
}

impl BatchItem for Result<Update, Error> {
    fn into_update(self) -> Result<Update> {
        self
    }
}

/// Runs many updates.
///
/// ```no_run
/// use genesys_attributes::{Batch, Client, Update};
/// use std::ops::ControlFlow;
///
/// let client = Client::from_env()?;
/// let updates = (1..=100).map(|n| Update::participant(format!("c-{n}"), "customer").set("tier", "gold"));
/// let report = Batch::new(&client)
///     .workers(8)
///     .on_notice(|notice| eprintln!("{notice}"))
///     .run(updates, |outcome| {
///         if let Some(error) = &outcome.error {
///             eprintln!("line {}: {error}", outcome.line);
///         }
///         ControlFlow::Continue(())
///     });
/// println!("{} applied, {} failed", report.applied, report.failed);
/// # Ok::<(), genesys_attributes::Error>(())
/// ```
///
/// Records as JSON lines become updates by `lines.map(|line| line.parse::<Update>())`.
///
/// # Order
///
/// Updates of one conversation are applied in the order of the input, and never at the same time.
/// Different conversations go in parallel; one that is slow holds the others up only when its
/// waiting lines fill the read-ahead.
///
/// After a failure that may pass (or that may be in place), the later lines of the conversation
/// are skipped: a later run, in the same order, takes them up. After one that is final they go on.
///
/// # Limits
///
/// All workers share the client's rate limit. A 429 makes them wait for the pause that it asks for,
/// however often it comes; one that asks for longer than
/// [`max_retry_after`](crate::RetryPolicy::max_retry_after) stops the batch. About 1,000 lines or
/// 4 MiB are read ahead.
///
/// # Outages
///
/// A failed connection, a timeout, a 5xx, a broken answer, or a login that fails for such a reason,
/// is not a line's fault while no line gets an answer. The line is held back. Once several lines in
/// a row got none, all wait, and one line at a time is sent to see whether the platform is back,
/// after random waits of up to 1 s at first and 30 s in the end; any answer to that line ends the
/// outage, and the lines that met it run again. When it lasts longer than [`Batch::max_outage`], the batch stops, and the
/// lines that met it have no outcome, unless they may be in place: those fail.
///
/// A line that goes on without an answer while others get theirs fails with its own error. Where no
/// other line is left, `GET /api/v2/tokens/me` is asked instead, a few times. Three lines and more of
/// which none gets an answer are an outage, whatever else answers.
///
/// # Requests
///
/// Lines that name a participant as `customer` or `external` would take a request each to find its
/// id. A batch asks for up to 100 conversations at once, where the credentials have the permission
/// `analytics:conversationDetail:view`; see [`Client::prefetch_participants`]. It finds out how many
/// the platform takes at once. After failures it goes on without for some hundred lines, which a
/// [`Notice`] tells; it gives it up where it is not permitted or finds the wrong ids.
#[must_use = "a batch does nothing until it is run"]
pub struct Batch {
    client: Client,
    workers: usize,
    stop_after: Option<u64>,
    max_outage: Duration,
    on_notice: Option<Observer>,
    cancel: Cancel,
}

type Observer = Box<dyn Fn(&Notice) + Send + Sync>;

/// How often the calling thread looks around while there is nothing to hand over.
const TICK: Duration = Duration::from_millis(50);
/// Shorter pauses are not worth a notice.
const MIN_NOTED_PAUSE: Duration = Duration::from_secs(1);

impl Batch {
    /// A batch of one worker on `client`.
    pub fn new(client: &Client) -> Batch {
        Batch {
            client: client.clone(),
            workers: 1,
            stop_after: None,
            max_outage: Duration::from_secs(600),
            on_notice: None,
            cancel: Cancel::new(),
        }
    }

    /// Sets how many updates run at the same time: 1 to 1,024, other numbers are clamped.
    ///
    /// Each takes a thread, and a connection's buffers of some 300 KiB. They are started as there is
    /// work for them, beyond 16 only while updates take 10 ms and more; one more thread reads the
    /// input.
    pub fn workers(mut self, workers: usize) -> Batch {
        self.workers = workers.clamp(1, 1_024);
        self
    }

    /// Stops the batch after so many failed lines.
    pub fn stop_after(mut self, failures: u64) -> Batch {
        self.stop_after = Some(failures.max(1));
        self
    }

    /// Sets how long an outage of the platform is waited for before the batch stops with
    /// [`StopReason::Outage`]. Default 600 s.
    pub fn max_outage(mut self, longest: Duration) -> Batch {
        self.max_outage = longest;
        self
    }

    /// Calls `observe` with what happens to the batch as a whole, such as an outage. It is called on the
    /// thread that runs the batch, between outcomes.
    pub fn on_notice(mut self, observe: impl Fn(&Notice) + Send + Sync + 'static) -> Batch {
        self.on_notice = Some(Box::new(observe));
        self
    }

    /// A handle that stops the batch from elsewhere: updates in flight end at their next wait,
    /// and nothing new is begun. A read of the input that blocks is waited for. The batch sets it
    /// itself when it stops early. Take it before [`run`](Batch::run).
    ///
    /// ```no_run
    /// # use genesys_attributes::{Batch, Client, Update};
    /// # use std::ops::ControlFlow;
    /// # let client = Client::from_env()?;
    /// # let updates: Vec<Update> = Vec::new();
    /// let batch = Batch::new(&client).workers(8);
    /// let stop = batch.cancel_handle(); // for a signal handler, say
    /// let report = batch.run(updates, |_| ControlFlow::Continue(()));
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn cancel_handle(&self) -> Cancel {
        self.cancel.clone()
    }

    /// Runs the updates, and hands each outcome to `each` on this thread as it completes, those of
    /// one conversation in order. The items are [`Update`]s or `Result<Update, Error>`s.
    ///
    /// `Break` stops the batch: updates under way end at their next wait or request, and their
    /// outcomes are neither handed over nor counted. After any other stop, updates under way that
    /// were not written are skipped, and lines that were not begun have no outcome.
    ///
    /// # Panics
    ///
    /// When the iterator, `each` or the observer panics, after the workers have ended; and when the
    /// system has no thread for the first worker.
    pub fn run<I>(
        self,
        updates: I,
        mut each: impl FnMut(&BatchOutcome) -> ControlFlow<()>,
    ) -> BatchReport
    where
        I: IntoIterator<Item: BatchItem>,
        I::IntoIter: Send,
    {
        let numbered = updates
            .into_iter()
            .enumerate()
            .map(|(index, item)| (index as u64 + 1, (), item));
        self.run_tagged(numbered, |(), outcome| each(outcome))
    }

    /// As [`Batch::run`], with a line number and a tag of the caller's for each update, such as
    /// the handle by which a queue's message is acknowledged.
    ///
    /// # Panics
    ///
    /// As [`Batch::run`].
    ///
    /// ```no_run
    /// # use genesys_attributes::{Batch, Client, Update};
    /// # use std::ops::ControlFlow;
    /// # let client = Client::from_env()?;
    /// let messages = [("handle-1", r#"{"conversationId":"c-1","attributes":{"a":1}}"#)];
    /// let tagged = (1..).zip(messages).map(|(n, (tag, text))| (n, tag, text.parse::<Update>()));
    /// Batch::new(&client).run_tagged(tagged, |tag, outcome| {
    ///     if outcome.is_final() {
    ///         println!("acknowledge {tag}");
    ///     }
    ///     ControlFlow::Continue(())
    /// });
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn run_tagged<I, T, U>(
        self,
        updates: I,
        mut each: impl FnMut(T, &BatchOutcome) -> ControlFlow<()>,
    ) -> BatchReport
    where
        I: IntoIterator<Item = (u64, T, U)>,
        I::IntoIter: Send,
        T: Send,
        U: BatchItem,
    {
        let mut tally = Tally::new(self.stop_after);
        if let Err(error) = self.client.core() {
            tally.stop(StopReason::Forked, Some(error));
            return tally.report(Duration::ZERO);
        }
        let clock = self.client.clock();
        let start = clock.now();
        let input = updates.into_iter();
        let shared = Shared::new(&self.client, &self.cancel, self.workers, self.max_outage);
        let mut paused = None;
        std::thread::scope(|scope| {
            let (out, receiver) = sync_channel(self.workers);
            let crew = Crew {
                shared: &shared,
                scope,
                out,
            };
            // Also when `each` panics: the threads are waited for then.
            let _stop = StopOnPanic(&shared);
            crew.read(input);
            loop {
                match receiver.recv_timeout(TICK) {
                    Ok(Message::Outcome(tag, outcome)) => {
                        tally.count(&outcome);
                        if each(tag, &outcome).is_break() {
                            tally.stop(StopReason::Break, None);
                        }
                    }
                    Ok(Message::Notices) => {
                        shared.take_notices().iter().for_each(|n| self.notify(n));
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        crew.tick();
                        self.note_pause(&mut paused, clock.now());
                    }
                    Ok(Message::Done) | Err(RecvTimeoutError::Disconnected) => break,
                }
                if tally.stopped().is_some() || self.cancel.is_cancelled() {
                    shared.stop();
                }
                if tally.stopped() == Some(StopReason::Break) {
                    break;
                }
            }
        });
        let mut state = shared.into_state();
        if let Some(panic) = state.panic {
            resume_unwind(panic);
        }
        if tally.stopped() != Some(StopReason::Break) {
            for (tag, outcome) in state.in_doubt(clock.wall()) {
                tally.count(&outcome);
                if each(tag, &outcome).is_break() {
                    break;
                }
            }
        }
        if let Some((reason, error)) = state.stopped.take() {
            tally.stop(reason, Some(error));
        }
        if self.cancel.is_cancelled() && !state.is_finished() {
            tally.stop(StopReason::Cancelled, None);
        }
        tally.report(clock.now().saturating_duration_since(start))
    }

    fn notify(&self, notice: &Notice) {
        if let Some(observe) = &self.on_notice {
            observe(notice);
        }
    }

    /// Reports a pause that the platform asked for, once each.
    fn note_pause(&self, noted: &mut Option<std::time::Instant>, now: std::time::Instant) {
        let until = self.client.limited_until();
        if let Some(end) = until
            && until > *noted
        {
            let wait = end.saturating_duration_since(now);
            if wait >= MIN_NOTED_PAUSE {
                *noted = until;
                self.notify(&Notice::RateLimited { wait });
            }
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("client", &self.client)
            .field("workers", &self.workers)
            .field("stop_after", &self.stop_after)
            .field("max_outage", &self.max_outage)
            .finish_non_exhaustive()
    }
}

struct StopOnPanic<'a, 'b, T>(&'a Shared<'b, T>);

impl<T> Drop for StopOnPanic<'_, '_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}
