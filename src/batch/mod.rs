//! Many updates on a few threads: each conversation's in the order of the input, different
//! conversations at the same time, in bounded memory.

mod item;
mod journal;
mod lookahead;
mod notice;
mod outage;
mod past;
mod progress;
mod queue;
mod report;
mod spool;
mod worker;

use std::fmt;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{Builder, Scope};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::session::limiter::Wait;
use crate::util::sync::{Cancel, lock};

use item::Line;
use queue::{Shared, TICK};
use report::Tally;
use worker::{Message, Worker};

pub use item::BatchItem;
pub use journal::{FailedLines, Journal, JournalSummary};
pub use notice::Notice;
pub use past::Retry;
pub use progress::{Progress, ProgressHandle, Waiting};
pub use report::{BatchOutcome, BatchReport, StopReason};

/// How a panic of a batch begins for which the system had no thread.
pub(crate) const NO_THREAD: &str = "the batch got no thread";

/// Shorter waits are not worth a notice.
const MIN_NOTED_WAIT: Duration = Duration::from_secs(1);
/// How soon an input is asked again that had nothing yet.
const ASK_AGAIN: Duration = Duration::from_millis(10);

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
    journal: Option<PathBuf>,
    retry: Retry,
    on_notice: Option<Observer>,
    progress: ProgressHandle,
    cancel: Cancel,
}

type Observer = Box<dyn Fn(&Notice) + Send + Sync>;

impl Batch {
    /// A batch of one worker on `client`.
    pub fn new(client: &Client) -> Batch {
        Batch {
            client: client.clone(),
            workers: 1,
            stop_after: None,
            max_outage: Duration::from_secs(600),
            journal: None,
            retry: Retry::None,
            on_notice: None,
            progress: ProgressHandle::new(client),
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

    /// Keeps each outcome in this file, and goes on with what earlier runs left in it.
    ///
    /// The run compares the input with the journal before anything is sent: a line that was
    /// applied and has changed since, or is missing, is an error by its number. It then runs the
    /// lines that have no final outcome, in order, and after them those of the same conversation
    /// that came later. Lines may be added at the end of the input. With
    /// [`run_tagged`](Batch::run_tagged) the line numbers must increase.
    ///
    /// A file `.lock` beside it keeps a second writer out. The end of an outcome that a crash cut
    /// off is removed. The journal takes 16 bytes of memory a line while the input is compared.
    /// The lines that run again wait until then, beyond 1 MiB in a file without a name in the folder
    /// for temporary files. What goes wrong with it stops the batch with [`StopReason::Journal`].
    ///
    /// ```no_run
    /// use genesys_attributes::batch::{Journal, Retry};
    /// use genesys_attributes::{Batch, Client, Update};
    /// use std::ops::ControlFlow;
    ///
    /// let client = Client::from_env()?;
    /// let updates = (1..=100).map(|n| Update::participant(format!("c-{n}"), "customer").set("n", n));
    /// let report = Batch::new(&client)
    ///     .journal("done.jsonl")
    ///     .retry_failed(Retry::Changed)
    ///     .run(updates, |_| ControlFlow::Continue(()));
    /// println!("{report:?}, in all {:?}", Journal::summary("done.jsonl")?);
    /// # Ok::<(), genesys_attributes::Error>(())
    /// ```
    pub fn journal(mut self, path: impl Into<PathBuf>) -> Batch {
        self.journal = Some(path.into());
        self
    }

    /// Says which lines that failed for good run again: with `true` all of them, as they are now.
    /// Lines that failed may then be corrected in the input, or taken from its end.
    pub fn retry_failed(mut self, retry: impl Into<Retry>) -> Batch {
        self.retry = retry.into();
        self
    }

    /// Says how many lines the input has, so that [`Batch::progress`] knows how much is left.
    pub fn expect_lines(self, lines: u64) -> Batch {
        self.progress.expect(lines);
        self
    }

    /// A handle that tells how far the batch is, from any thread. Take it before
    /// [`run`](Batch::run).
    pub fn progress(&self) -> ProgressHandle {
        self.progress.clone()
    }

    /// Runs the updates, and hands each outcome to `each` on this thread as it completes, those of
    /// one conversation in order. The items are [`Update`](crate::Update)s or `Result<Update, Error>`s.
    ///
    /// This thread reads the input as well, so neither needs to be `Send`. While a read of the
    /// input blocks, no outcome is handed over: an input that may have to wait gives `Option`s, and
    /// `None` after a moment without an item.
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
    {
        let mut line = 0;
        let numbered = updates.into_iter().map(|item| {
            line += u64::from(item.is_ready());
            (line, (), item)
        });
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
    /// let line = r#"{"conversationId":"c-1","participant":"customer","attributes":{"a":1}}"#;
    /// let messages = [("handle-1", line)];
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
        let elapsed = || clock.now().saturating_duration_since(start);
        let mut updates = updates.into_iter();
        let mut again = None;
        let mut opened = None;
        if let Some(path) = &self.journal {
            let wait = || {
                clock.sleep(ASK_AGAIN);
                !self.cancel.is_cancelled()
            };
            let resumed = Journal::resume(path, self.retry, updates.by_ref(), wait, clock.wall());
            let resumed = resumed.and_then(|(journal, resumed)| {
                tally.before(resumed.finished, resumed.failed);
                Ok((journal, resumed.lines.read()?))
            });
            match resumed {
                Ok((journal, lines)) => (opened, again) = (Some(journal), Some(lines)),
                Err(error) => {
                    match error.kind() {
                        ErrorKind::Cancelled => tally.stop(StopReason::Cancelled, None),
                        _ => tally.stop(StopReason::Journal, Some(error)),
                    }
                    return tally.report(elapsed());
                }
            }
        }
        self.progress.start(start, tally.finished_before());
        let shared = Shared::new(
            &self.client,
            &self.cancel,
            self.workers,
            self.max_outage,
            opened,
        );
        let mut input = Input {
            again: again.into_iter().flatten(),
            updates,
        };
        std::thread::scope(|scope| {
            let (out, receiver) = sync_channel(self.workers);
            let mut running = Running {
                batch: &self,
                shared: &shared,
                tally: &mut tally,
                each: &mut each,
                noted: None,
            };
            // Also when `each` panics: the threads are waited for then.
            let _stop = StopOnPanic(&shared);
            running.read_and_hand_over(&mut input, scope, &receiver, &out);
            drop(out);
            if running.tally.stopped() != Some(StopReason::Break) {
                receiver.iter().for_each(|message| running.take(message));
            }
        });
        if let Some(panic) = lock(&shared.state).panic.take() {
            resume_unwind(panic);
        }
        // Lines that missed their answer and may be in place all the same.
        for job in std::mem::take(&mut lock(&shared.state).held) {
            let target = job.update.target();
            if let Some(error) = job.missed.filter(Error::may_have_applied) {
                let outcome = BatchOutcome::of(job.line, target, Err(error), clock.wall());
                shared.record(&outcome, job.mark);
                if tally.stopped() != Some(StopReason::Break) {
                    tally.count(&outcome);
                    if each(job.tag, &outcome).is_break() {
                        tally.stop(StopReason::Break, None);
                    }
                }
            }
        }
        let mut state = shared.into_state();
        if let Some((reason, error)) = state.stopped.take() {
            tally.stop(reason, Some(error));
        }
        if self.cancel.is_cancelled() && !state.is_finished() {
            tally.stop(StopReason::Cancelled, None);
        }
        tally.report(elapsed())
    }

    fn notify(&self, notice: &Notice) {
        let since = |after: &Duration| self.client.clock().now().checked_sub(*after);
        match notice {
            Notice::OutageBegan { .. } => self.progress.outage(since(&Duration::ZERO)),
            Notice::Probing { after, .. } => self.progress.outage(since(after)),
            Notice::OutageEnded { .. } => self.progress.outage(None),
            _ => {}
        }
        if let Some(observe) = &self.on_notice {
            observe(notice);
        }
    }
}

/// The lines that run again, and then the rest of the input.
struct Input<A, I> {
    again: A,
    updates: I,
}

/// What a read of the input gave.
enum Read {
    Line,
    NothingYet,
    Nothing,
}

/// A batch under way, as its calling thread has it.
struct Running<'a, 'b, T, E> {
    batch: &'a Batch,
    shared: &'a Shared<'b, T>,
    tally: &'a mut Tally,
    each: &'a mut E,
    /// The end of the last wait that a notice told.
    noted: Option<Instant>,
}

impl<'a, T: Send, E: FnMut(T, &BatchOutcome) -> ControlFlow<()>> Running<'a, '_, T, E> {
    /// Until nothing is left to do, or the batch stops.
    fn read_and_hand_over<'scope, A, I, U>(
        &mut self,
        input: &mut Input<A, I>,
        scope: &'scope Scope<'scope, '_>,
        receiver: &Receiver<Message<T>>,
        out: &SyncSender<Message<T>>,
    ) where
        A: Iterator<Item = Result<Line<T>>>,
        I: Iterator<Item = (u64, T, U)>,
        U: BatchItem,
        'a: 'scope,
    {
        let shared = self.shared;
        let mut twice = false;
        loop {
            let mut state = lock(&shared.state);
            let more = shared.missing_workers(&mut state, twice);
            state.started += more;
            let finished = state.is_finished();
            let reads = !state.exhausted && !state.is_full();
            drop(state);
            twice = false;
            if finished {
                return;
            }
            if shared.cancel.is_cancelled() {
                // Wakes the workers.
                return shared.stop();
            }
            for _ in 0..more {
                hire(shared, scope, out);
            }
            let read = if reads {
                self.read(input)
            } else {
                Read::Nothing
            };
            let message = match read {
                Read::Line => receiver
                    .try_recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
                Read::NothingYet => receiver.recv_timeout(ASK_AGAIN),
                Read::Nothing => receiver.recv_timeout(TICK),
            };
            match message {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {
                    twice = true;
                    self.look_around();
                }
                // There is no message yet.
                Err(RecvTimeoutError::Disconnected) => {}
            }
        }
    }

    /// Reads one item. A panic of the input is its end, and the caller gets it in the end.
    fn read<A, I, U>(&mut self, input: &mut Input<A, I>) -> Read
    where
        A: Iterator<Item = Result<Line<T>>>,
        I: Iterator<Item = (u64, T, U)>,
        U: BatchItem,
    {
        let shared = self.shared;
        let next = catch_unwind(AssertUnwindSafe(|| match input.again.next() {
            Some(line) => Some(line.map(Some)),
            None => input.updates.next().map(|item| Ok(Line::read(item))),
        }));
        match next {
            Ok(Some(Ok(Some(line)))) => {
                let (number, tag, mark) = (line.number, line.tag, line.mark);
                match line.update {
                    Ok(update) => shared.push(number, tag, update, mark),
                    Err(error) => {
                        let at = shared.clock.wall();
                        let outcome = BatchOutcome::unreadable(number, error, at);
                        shared.record(&outcome, mark);
                        self.take(Message::Outcome(tag, outcome));
                    }
                }
                Read::Line
            }
            Ok(Some(Ok(None))) => {
                shared.quiet(false);
                Read::NothingYet
            }
            Ok(Some(Err(error))) => {
                shared.stop_for(&mut lock(&shared.state), StopReason::Journal, error);
                Read::Nothing
            }
            end => {
                if let Err(panic) = end {
                    lock(&shared.state).panic = Some(panic);
                }
                // An input that heeds the cancel handle, too, was not read to its end.
                shared.quiet(!shared.cancel.is_cancelled());
                Read::Nothing
            }
        }
    }

    fn take(&mut self, message: Message<T>) {
        match message {
            Message::Outcome(tag, outcome) => {
                self.tally.count(&outcome);
                self.batch.progress.count(&outcome);
                if (self.each)(tag, &outcome).is_break() {
                    self.tally.stop(StopReason::Break, None);
                }
                if self.tally.stopped().is_some() {
                    self.shared.stop();
                }
            }
            Message::News => {
                let notices = std::mem::take(&mut lock(&self.shared.state).notices);
                notices.iter().for_each(|notice| self.batch.notify(notice));
            }
        }
    }

    /// Now and then, while nothing happens.
    fn look_around(&mut self) {
        let shared = self.shared;
        if shared.gives_up(&mut lock(&shared.state)) {
            return;
        }
        let now = shared.clock.now();
        let limited = shared.client.limited_until();
        let (wait, is_own) = match (limited, shared.client.blocked(now)) {
            (Some(until), _) if until > now => (until - now, false),
            (_, Some(Wait::Slot(wait))) => (wait, true),
            _ => return,
        };
        if wait >= MIN_NOTED_WAIT && self.noted.is_none_or(|noted| now + wait > noted) {
            self.noted = Some(now + wait);
            self.batch.notify(&match is_own {
                true => Notice::OwnRateLimit { wait },
                false => Notice::RateLimited { wait },
            });
        }
    }
}

/// Starts a worker. Without the first one there is no batch, and that is a panic of the caller's;
/// without a further one there is a smaller batch.
fn hire<'scope, T: Send>(
    shared: &'scope Shared<'_, T>,
    scope: &'scope Scope<'scope, '_>,
    out: &SyncSender<Message<T>>,
) {
    let worker = Worker {
        shared,
        out: out.clone(),
    };
    let hired = Builder::new().spawn_scoped(scope, move || worker.work());
    if let Err(error) = hired {
        let mut state = lock(&shared.state);
        state.started -= 1;
        if state.started == 0 {
            state.panic = Some(Box::new(format!("{NO_THREAD} to work: {error}")));
            drop(state);
            shared.stop();
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
