//! Many updates on a few threads: each conversation's in the order of the input, different
//! conversations at the same time, in bounded memory.

use std::collections::hash_map::{Entry, RandomState};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::hash::BuildHasher;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::client::Client;
use crate::clock::{Cancel, lock, wait};
use crate::error::{Error, ErrorKind};
use crate::histogram::{Histogram, Latency};
use crate::receipt::{Outcome, Receipt, whole_millis};
use crate::update::Update;

/// A line of the input that is no update: why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineError {
    message: String,
}

impl LineError {
    /// `message` says what is wrong with the line. It should not hold values.
    pub fn new(message: impl Into<String>) -> LineError {
        LineError {
            message: message.into(),
        }
    }
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for LineError {}

/// How one line of a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum BatchStatus {
    /// Written and confirmed.
    Applied,
    /// Found in place after an attempt without an answer.
    AlreadyApplied,
    /// There was nothing to change.
    Unchanged,
    /// It failed; see the error.
    Failed,
    /// Not tried, since an earlier line of the same conversation failed in a way that may pass:
    /// its older value must not come after this newer one.
    Skipped,
}

/// What came of one line of a batch.
///
/// As JSON it is the record `{"line":1,"conversationId":"…","status":"applied","version":"7",
/// "attempts":1,"requests":2,"latencyMs":41}`, with an `error` object where it failed and a
/// `reason` where it was skipped.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BatchOutcome {
    /// The number of the item in the input, from 1.
    pub line: u64,
    /// The conversation's id, where the line could be read.
    pub conversation_id: Option<String>,
    /// How it ended.
    pub status: BatchStatus,
    /// The version now, where the platform told it.
    pub version: Option<String>,
    /// Writes sent.
    pub attempts: u32,
    /// API requests sent.
    pub requests: u32,
    /// From the first request to the end of the last.
    pub latency: Duration,
    /// Why it failed.
    pub error: Option<Error>,
}

impl BatchOutcome {
    /// Whether running the line again would be pointless: it is done, or failed for good. What
    /// failed transiently, may be in place, was skipped, or was refused for the credentials' sake
    /// is not final.
    pub fn is_final(&self) -> bool {
        match (self.status, &self.error) {
            (BatchStatus::Skipped, _) => false,
            (BatchStatus::Failed, Some(error)) => {
                !error.is_transient()
                    && !error.may_have_applied()
                    && !matches!(error.kind(), ErrorKind::Auth | ErrorKind::Internal)
            }
            _ => true,
        }
    }

    fn untried(line: u64, conversation_id: Option<String>, status: BatchStatus) -> BatchOutcome {
        BatchOutcome {
            line,
            conversation_id,
            status,
            version: None,
            attempts: 0,
            requests: 0,
            latency: Duration::ZERO,
            error: None,
        }
    }

    fn of_bad_line(line: u64, problem: &LineError) -> BatchOutcome {
        BatchOutcome {
            error: Some(Error::new(ErrorKind::InvalidInput, problem.to_string())),
            ..BatchOutcome::untried(line, None, BatchStatus::Failed)
        }
    }

    fn of(line: u64, conversation_id: &str, result: Result<Receipt, Error>) -> BatchOutcome {
        let id = Some(conversation_id.to_owned());
        match result {
            Ok(receipt) => BatchOutcome {
                version: receipt.version,
                attempts: receipt.attempts,
                requests: receipt.requests,
                latency: receipt.latency,
                ..BatchOutcome::untried(
                    line,
                    id,
                    match receipt.outcome {
                        Outcome::Applied => BatchStatus::Applied,
                        Outcome::AlreadyApplied => BatchStatus::AlreadyApplied,
                        Outcome::Unchanged => BatchStatus::Unchanged,
                    },
                )
            },
            Err(error) => BatchOutcome {
                attempts: error.attempts(),
                requests: error.requests(),
                latency: error.latency(),
                error: Some(error),
                ..BatchOutcome::untried(line, id, BatchStatus::Failed)
            },
        }
    }
}

impl Serialize for BatchOutcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("line", &self.line)?;
        if let Some(id) = &self.conversation_id {
            map.serialize_entry("conversationId", id)?;
        }
        map.serialize_entry("status", &self.status)?;
        if let Some(version) = &self.version {
            map.serialize_entry("version", version)?;
        }
        map.serialize_entry("attempts", &self.attempts)?;
        map.serialize_entry("requests", &self.requests)?;
        map.serialize_entry("latencyMs", &whole_millis(self.latency))?;
        if let Some(error) = &self.error {
            map.serialize_entry("error", error)?;
        }
        if self.status == BatchStatus::Skipped {
            map.serialize_entry(
                "reason",
                "an earlier update of this conversation failed in a way that may pass",
            )?;
        }
        map.end()
    }
}

/// Why a batch ended before its input did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum StopReason {
    /// The caller's closure broke off.
    Break,
    /// The cancel handle was used.
    Cancelled,
    /// As many updates failed as [`Batch::stop_after`] allows.
    Failures,
    /// The credentials were refused: every further update would be, too.
    Auth,
    /// The first 20 results were the same refusal for want of permission.
    Forbidden,
    /// The platform asked to wait longer than the retry policy allows. What is left can be run
    /// later.
    RateLimited,
}

/// What a batch did.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BatchReport {
    /// Updates written and confirmed.
    pub applied: u64,
    /// Updates found in place after an attempt without an answer.
    pub already_applied: u64,
    /// Updates that had nothing to change.
    pub unchanged: u64,
    /// Lines that failed.
    pub failed: u64,
    /// Lines that were not tried after an earlier failure of their conversation.
    pub skipped: u64,
    /// How long the batch took.
    pub elapsed: Duration,
    /// Latency of the updates that were applied.
    pub latency: Latency,
    /// Why it ended before its input did, if it did.
    pub stopped: Option<StopReason>,
    failed_by_kind: [u64; ErrorKind::ALL.len()],
}

impl BatchReport {
    /// How many lines have an outcome.
    pub fn lines(&self) -> u64 {
        self.applied + self.already_applied + self.unchanged + self.failed + self.skipped
    }

    /// How many lines failed with the given kind.
    pub fn failed_with(&self, kind: ErrorKind) -> u64 {
        self.failed_by_kind[kind as usize]
    }

    /// Outcomes per minute.
    pub fn per_minute(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 {
            self.lines() as f64 * 60.0 / seconds
        } else {
            0.0
        }
    }

    /// Whether every line of the input is in place.
    pub fn is_complete(&self) -> bool {
        self.failed == 0 && self.skipped == 0 && self.stopped.is_none()
    }
}

impl Serialize for BatchReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ms = |q| self.latency.quantile(q).as_micros() as f64 / 1_000.0;
        let by_kind: serde_json::Map<String, serde_json::Value> = ErrorKind::ALL
            .iter()
            .filter(|kind| self.failed_with(**kind) > 0)
            .map(|kind| (kind.name().to_owned(), self.failed_with(*kind).into()))
            .collect();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("lines", &self.lines())?;
        map.serialize_entry("applied", &self.applied)?;
        map.serialize_entry("alreadyApplied", &self.already_applied)?;
        map.serialize_entry("unchanged", &self.unchanged)?;
        map.serialize_entry("failed", &self.failed)?;
        map.serialize_entry("skipped", &self.skipped)?;
        map.serialize_entry("failedByKind", &by_kind)?;
        map.serialize_entry("elapsedMs", &whole_millis(self.elapsed))?;
        map.serialize_entry("perMinute", &self.per_minute())?;
        map.serialize_entry(
            "latencyMs",
            &serde_json::json!({ "p50": ms(0.5), "p90": ms(0.9), "p99": ms(0.99), "max": ms(1.0) }),
        )?;
        map.serialize_entry("stopped", &self.stopped)?;
        map.end()
    }
}

/// Runs many updates.
///
/// ```no_run
/// use genesys_attributes::{Batch, Client, Update};
/// use std::ops::ControlFlow;
///
/// let client = Client::from_env()?;
/// let updates = (1..=100).map(|n| Ok(Update::participant(format!("c-{n}"), "customer").set("tier", "gold")));
/// let report = Batch::new(&client).workers(8).run(updates, |outcome| {
///     if let Some(error) = &outcome.error {
///         eprintln!("line {}: {error}", outcome.line);
///     }
///     ControlFlow::Continue(())
/// });
/// println!("{} applied, {} failed", report.applied, report.failed);
/// # Ok::<(), genesys_attributes::Error>(())
/// ```
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
/// All workers share the client's rate limit. A 429 parks them for the pause that it asks for,
/// and nothing fails because of it. At most 1,000 lines or 4 MiB are read ahead.
pub struct Batch {
    client: Client,
    workers: usize,
    stop_after: Option<u64>,
    cancel: Cancel,
}

/// What waits for its conversation's turn, at most.
const READ_AHEAD_LINES: usize = 1_000;
const READ_AHEAD_BYTES: usize = 4 << 20;
/// As many equal refusals at the start mean that no line would fare better.
const SAME_REFUSALS: u64 = 20;
/// How often a line that is only held up by 429 is taken up again before the batch gives up.
const MOST_PARKINGS: u32 = 20;

impl Batch {
    /// A batch of one worker on `client`.
    pub fn new(client: &Client) -> Batch {
        Batch {
            client: client.clone(),
            workers: 1,
            stop_after: None,
            cancel: Cancel::new(),
        }
    }

    /// Sets how many updates run at the same time: 1 to 1,024, other numbers are clamped. Each
    /// takes a thread, and a connection's buffers of some 300 KiB.
    pub fn workers(mut self, workers: usize) -> Batch {
        self.workers = workers.clamp(1, 1_024);
        self
    }

    /// Stops the batch after so many failed lines.
    pub fn stop_after(mut self, failures: u64) -> Batch {
        self.stop_after = Some(failures.max(1));
        self
    }

    /// A handle that stops the batch from elsewhere: updates in flight end at their next wait,
    /// and nothing new is begun. A read of the input that blocks is waited for. The batch sets it
    /// itself when it stops early.
    pub fn cancel_handle(&self) -> Cancel {
        self.cancel.clone()
    }

    /// Runs the updates, and hands each outcome to `each` on this thread as it completes, those of
    /// one conversation in order. `Break` stops the batch: updates under way end at their next
    /// wait or request, and their outcomes are neither handed over nor counted.
    ///
    /// Lines that were not begun when it stops have no outcome.
    ///
    /// # Panics
    ///
    /// When the iterator or `each` panics, after the workers have ended.
    pub fn run<I>(
        self,
        updates: I,
        mut each: impl FnMut(&BatchOutcome) -> ControlFlow<()>,
    ) -> BatchReport
    where
        I: IntoIterator<Item = Result<Update, LineError>>,
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
    pub fn run_tagged<I, T>(
        self,
        updates: I,
        mut each: impl FnMut(T, &BatchOutcome) -> ControlFlow<()>,
    ) -> BatchReport
    where
        I: IntoIterator<Item = (u64, T, Result<Update, LineError>)>,
        I::IntoIter: Send,
        T: Send,
    {
        let clock = self.client.clock();
        let start = clock.now();
        let shared = Shared {
            client: &self.client,
            cancel: &self.cancel,
            input: Mutex::new(updates.into_iter()),
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
            hasher: RandomState::new(),
        };
        let mut tally = Tally::new(self.stop_after);
        std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel(self.workers);
            for _ in 0..self.workers {
                let (shared, sender) = (&shared, sender.clone());
                scope.spawn(move || shared.work(&sender));
            }
            drop(sender);
            // Also when `each` panics: the workers are waited for then.
            let _stop = StopOnDrop(&shared);
            for (tag, outcome) in receiver {
                tally.count(&outcome);
                if each(tag, &outcome).is_break() {
                    tally.stopped.get_or_insert(StopReason::Break);
                }
                if tally.stopped.is_some() {
                    shared.stop();
                    if tally.stopped == Some(StopReason::Break) {
                        break;
                    }
                }
            }
        });
        let state = shared
            .state
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(panic) = state.panic {
            resume_unwind(panic);
        }
        if self.cancel.is_cancelled() && !state.is_finished() {
            tally.stopped.get_or_insert(StopReason::Cancelled);
        }
        tally.report(clock.now().saturating_duration_since(start))
    }
}

struct StopOnDrop<'a, 'b, I, T>(&'a Shared<'b, I, T>);

impl<I, T> Drop for StopOnDrop<'_, '_, I, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

/// One update on its way.
struct Job<T> {
    line: u64,
    tag: T,
    update: Update,
    bytes: usize,
}

enum Work<T> {
    Run(Job<T>),
    Refuse(u64, T, LineError),
}

/// What the workers share.
struct Shared<'a, I, T> {
    client: &'a Client,
    cancel: &'a Cancel,
    /// Locked only by the one worker that reads, apart from the state: a read may block.
    input: Mutex<I>,
    state: Mutex<State<T>>,
    changed: Condvar,
    hasher: RandomState,
}

struct State<T> {
    /// Conversations with an update under way, and the lines that wait behind it.
    busy: HashMap<String, VecDeque<Job<T>>>,
    /// Lines whose turn has come.
    ready: VecDeque<Job<T>>,
    waiting_lines: usize,
    waiting_bytes: usize,
    reading: bool,
    exhausted: bool,
    /// A line was cancelled before anything of it was sent.
    abandoned: bool,
    /// Hashes of the conversations whose later lines are skipped. A chance meeting of two hashes
    /// skips a line that could have run, which a later run makes good.
    blocked: HashSet<u64>,
    panic: Option<Box<dyn std::any::Any + Send>>,
}

impl<T> State<T> {
    /// Whether there is nothing left to do.
    fn is_finished(&self) -> bool {
        self.exhausted && self.busy.is_empty() && !self.abandoned
    }
}

impl<T> Default for State<T> {
    fn default() -> State<T> {
        State {
            busy: HashMap::new(),
            ready: VecDeque::new(),
            waiting_lines: 0,
            waiting_bytes: 0,
            reading: false,
            exhausted: false,
            abandoned: false,
            blocked: HashSet::new(),
            panic: None,
        }
    }
}

impl<I, T> Shared<'_, I, T> {
    fn stop(&self) {
        self.cancel.cancel();
        // Under the lock, so that nobody is between looking and waiting.
        let _state = lock(&self.state);
        self.changed.notify_all();
    }
}

impl<I, T> Shared<'_, I, T>
where
    I: Iterator<Item = (u64, T, Result<Update, LineError>)> + Send,
    T: Send,
{
    fn work(&self, outcomes: &SyncSender<(T, BatchOutcome)>) {
        while let Some(work) = self.next() {
            match work {
                Work::Refuse(line, tag, problem) => {
                    let outcome = BatchOutcome::of_bad_line(line, &problem);
                    if outcomes.send((tag, outcome)).is_err() {
                        return;
                    }
                }
                Work::Run(job) => {
                    let conversation = job.update.target().conversation_id().to_owned();
                    let blocked = self.hasher.hash_one(&conversation);
                    let outcome = if lock(&self.state).blocked.contains(&blocked) {
                        BatchOutcome::untried(
                            job.line,
                            Some(conversation.clone()),
                            BatchStatus::Skipped,
                        )
                    } else {
                        BatchOutcome::of(job.line, &conversation, self.run(&job.update))
                    };
                    if !outcome.is_final() {
                        lock(&self.state).blocked.insert(blocked);
                    }
                    // Handed over before the conversation's next line may begin: outcomes of one
                    // conversation keep their order. A line that was cancelled before anything was
                    // sent counts as not begun.
                    let untouched = outcome.requests == 0
                        && outcome.error.as_ref().map(Error::kind) == Some(ErrorKind::Cancelled);
                    if untouched {
                        lock(&self.state).abandoned = true;
                    }
                    let gone = !untouched && outcomes.send((job.tag, outcome)).is_err();
                    self.finished(&conversation);
                    if gone {
                        return;
                    }
                }
            }
        }
    }

    /// One update; 429 only delays it.
    fn run(&self, update: &Update) -> Result<Receipt, Error> {
        let (mut attempts, mut requests, mut may_have_applied) = (0, 0, false);
        let mut parkings = 0;
        loop {
            let result = self
                .client
                .update_cancellable(update, self.cancel)
                .map(|mut receipt| {
                    receipt.attempts += attempts;
                    receipt.requests += requests;
                    receipt
                })
                .map_err(|error| {
                    let (attempts, requests) =
                        (attempts + error.attempts(), requests + error.requests());
                    let latency = error.latency();
                    let may = may_have_applied || error.may_have_applied();
                    error
                        .with_effort(attempts, requests, latency)
                        .with_may_have_applied(may)
                });
            match result {
                Err(error)
                    if error.kind() == ErrorKind::RateLimited
                        && error
                            .retry_after()
                            .is_none_or(|wait| wait <= self.client.max_retry_after())
                        && parkings < MOST_PARKINGS =>
                {
                    parkings += 1;
                    (attempts, requests) = (error.attempts(), error.requests());
                    may_have_applied = error.may_have_applied();
                }
                result => return result,
            }
        }
    }

    /// The next thing to do; `None` when there is nothing left or the batch stops.
    fn next(&self) -> Option<Work<T>> {
        let mut state = lock(&self.state);
        loop {
            if self.cancel.is_cancelled() {
                return None;
            }
            if let Some(job) = state.ready.pop_front() {
                state.waiting_lines -= 1;
                state.waiting_bytes -= job.bytes;
                // Room in the read-ahead: somebody may read.
                self.changed.notify_one();
                return Some(Work::Run(job));
            }
            let full =
                state.waiting_lines >= READ_AHEAD_LINES || state.waiting_bytes >= READ_AHEAD_BYTES;
            if state.is_finished() {
                return None;
            }
            if state.exhausted || state.reading || full {
                state = wait(&self.changed, state, Some(self.cancel));
            } else {
                state.reading = true;
                drop(state);
                let item = catch_unwind(AssertUnwindSafe(|| lock(&self.input).next()));
                state = lock(&self.state);
                state.reading = false;
                self.changed.notify_all();
                match item {
                    Ok(Some((line, tag, Err(problem)))) => {
                        return Some(Work::Refuse(line, tag, problem));
                    }
                    Ok(Some((line, tag, Ok(update)))) => {
                        let bytes = update.approximate_size();
                        let job = Job {
                            line,
                            tag,
                            update,
                            bytes,
                        };
                        let conversation = job.update.target().conversation_id().to_owned();
                        match state.busy.entry(conversation) {
                            Entry::Vacant(free) => {
                                free.insert(VecDeque::new());
                                return Some(Work::Run(job));
                            }
                            Entry::Occupied(mut line) => line.get_mut().push_back(job),
                        }
                        state.waiting_lines += 1;
                        state.waiting_bytes += bytes;
                    }
                    // An input that heeds the cancel handle, too, was not read to its end.
                    Ok(None) => state.exhausted = !self.cancel.is_cancelled(),
                    Err(panic) => {
                        state.exhausted = true;
                        state.panic = Some(panic);
                    }
                }
            }
        }
    }

    /// The conversation's next line may begin.
    fn finished(&self, conversation: &str) {
        let mut state = lock(&self.state);
        match state
            .busy
            .get_mut(conversation)
            .and_then(VecDeque::pop_front)
        {
            Some(job) => state.ready.push_back(job),
            None => {
                state.busy.remove(conversation);
            }
        }
        self.changed.notify_all();
    }
}

/// The report in the making, and the reasons to stop early.
struct Tally {
    report: BatchReport,
    latency: Histogram,
    stop_after: Option<u64>,
    /// How many of the first results were the same refusal; `None` once one was not.
    refusals: Option<(u64, Option<String>)>,
    stopped: Option<StopReason>,
}

impl Tally {
    fn new(stop_after: Option<u64>) -> Tally {
        let latency = Histogram::default();
        Tally {
            report: BatchReport {
                applied: 0,
                already_applied: 0,
                unchanged: 0,
                failed: 0,
                skipped: 0,
                elapsed: Duration::ZERO,
                latency: latency.snapshot(),
                stopped: None,
                failed_by_kind: [0; ErrorKind::ALL.len()],
            },
            latency,
            stop_after,
            refusals: Some((0, None)),
            stopped: None,
        }
    }

    fn count(&mut self, outcome: &BatchOutcome) {
        let report = &mut self.report;
        match outcome.status {
            BatchStatus::Applied => report.applied += 1,
            BatchStatus::AlreadyApplied => report.already_applied += 1,
            BatchStatus::Unchanged => report.unchanged += 1,
            BatchStatus::Failed => report.failed += 1,
            BatchStatus::Skipped => report.skipped += 1,
        }
        if matches!(
            outcome.status,
            BatchStatus::Applied | BatchStatus::AlreadyApplied
        ) {
            self.latency.record(outcome.latency);
        }
        let Some(error) = &outcome.error else {
            self.refusals = None;
            return;
        };
        report.failed_by_kind[error.kind() as usize] += 1;
        self.refusals = match self.refusals.take() {
            Some((count, code))
                if error.kind() == ErrorKind::Forbidden
                    && (count == 0 || code.as_deref() == error.code()) =>
            {
                Some((count + 1, error.code().map(str::to_owned)))
            }
            _ => None,
        };
        let reason = match error.kind() {
            ErrorKind::Auth => Some(StopReason::Auth),
            ErrorKind::RateLimited => Some(StopReason::RateLimited),
            _ if matches!(self.refusals, Some((SAME_REFUSALS.., _))) => Some(StopReason::Forbidden),
            _ if self.stop_after.is_some_and(|most| report.failed >= most) => {
                Some(StopReason::Failures)
            }
            _ => None,
        };
        self.stopped = self.stopped.or(reason);
    }

    fn report(self, elapsed: Duration) -> BatchReport {
        BatchReport {
            elapsed,
            latency: self.latency.snapshot(),
            stopped: self.stopped,
            ..self.report
        }
    }
}
