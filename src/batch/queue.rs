//! The lines of a batch between its input and its workers: how many are read ahead, in which
//! order they run, and what a worker does next.

use std::collections::hash_map::{Entry, RandomState};
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasher;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::report::receipt::Receipt;
use crate::update::Update;
use crate::util::clock::Clock;
use crate::util::sync::{Cancel, lock, wait};

use super::item::Mark;
use super::journal::Journal;
use super::lookahead::{Found, LookAhead};
use super::notice::Notice;
use super::outage::Breaker;
use super::report::{BatchOutcome, StopReason};

/// What is read ahead of the workers, at most.
const MAX_READ_AHEAD_LINES: usize = 1_000;
const MAX_READ_AHEAD_BYTES: usize = 4 << 20;
/// So many workers start as soon as there is work. More only help where updates wait for the
/// network, which shows by how long they take.
const EAGER_WORKERS: usize = 16;
/// How often a thread looks around while it waits for something that may not come.
pub(super) const TICK: Duration = Duration::from_millis(50);

/// One update on its way.
pub(super) struct Job<T> {
    pub(super) line: u64,
    pub(super) tag: T,
    pub(super) update: Update,
    pub(super) mark: Mark,
    bytes: usize,
    /// The hash of its conversation.
    pub(super) key: u64,
    /// What the look-ahead found.
    pub(super) found: Option<Found>,
    /// How often other lines were answered after this one was not.
    pub(super) strikes: u32,
    /// How its last run ended, if that was without an answer; with the effort of all of its runs.
    pub(super) missed: Option<Error>,
}

impl<T> Job<T> {
    pub(super) fn conversation(&self) -> &str {
        self.update.target().conversation_id()
    }

    /// The result of one more run, with the effort and the doubt of the runs before it.
    pub(super) fn with_past(&self, result: Result<Receipt>) -> Result<Receipt> {
        let Some(past) = &self.missed else {
            return result;
        };
        let (attempts, requests) = (past.attempts(), past.requests());
        match result {
            Ok(mut receipt) => {
                receipt.attempts += attempts;
                receipt.requests += requests;
                Ok(receipt)
            }
            Err(error) => {
                let attempts = attempts + error.attempts();
                let requests = requests + error.requests();
                let latency = error.latency();
                let may_have_applied = past.may_have_applied() || error.may_have_applied();
                // Why it missed its answer says more than that the batch was stopped since.
                let described = match error.kind() {
                    ErrorKind::Cancelled => past.clone(),
                    _ => error,
                };
                Err(described
                    .with_effort(attempts, requests, latency)
                    .with_may_have_applied(may_have_applied))
            }
        }
    }
}

pub(super) enum Task<T> {
    Run(Job<T>),
    /// An earlier line of its conversation failed in a way that may pass.
    Skip(Job<T>),
    /// Wait this long, then send one line to see whether the outage is over.
    Probe(Duration),
    /// Ask for something else: there is no other line to compare a held one with.
    Ping,
    /// Look up the participants of these in bulk.
    LookUp(Vec<Job<T>>),
}

/// What the threads of a batch share.
pub(super) struct Shared<'a, T> {
    pub(super) client: &'a Client,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) cancel: &'a Cancel,
    pub(super) max_outage: Duration,
    pub(super) journal: Option<Mutex<Journal>>,
    workers: usize,
    hasher: RandomState,
    pub(super) state: Mutex<State<T>>,
    /// There may be work for a worker.
    work: Condvar,
}

pub(super) struct State<T> {
    /// Conversations with a line whose turn has come, and the lines that wait behind it.
    pub(super) busy: HashMap<String, VecDeque<Job<T>>>,
    /// Lines whose turn has come.
    pub(super) ready: VecDeque<Job<T>>,
    /// The same, but the ids of their participants are to be looked up first.
    pub(super) unresolved: VecDeque<Job<T>>,
    /// Lines without an answer, each of another conversation, since the last answer to any line.
    pub(super) held: Vec<Job<T>>,
    /// When the first of them began.
    pub(super) missed_since: Option<Instant>,
    pub(super) breaker: Option<Breaker>,
    pub(super) look_ahead: LookAhead,
    /// A look-up is under way.
    pub(super) looking: bool,
    waiting_lines: usize,
    waiting_bytes: usize,
    /// How many lines were read.
    read: u64,
    pub(super) exhausted: bool,
    /// Nothing was read for a moment: do not wait for more input.
    pub(super) quiet: bool,
    /// A line was dropped without an outcome.
    pub(super) abandoned: bool,
    /// Hashes of the conversations whose later lines are skipped. Two conversations with one hash
    /// skip a line that could have run, which a later run makes good.
    blocked: HashSet<u64>,
    /// Workers that were started, have nothing to do, or have a task.
    pub(super) started: usize,
    idle: usize,
    running: usize,
    /// An update took long enough for more workers to help.
    pub(super) slow: bool,
    /// What is to be reported, in order.
    pub(super) notices: VecDeque<Notice>,
    /// What stopped the batch and is not the error of a line.
    pub(super) stopped: Option<(StopReason, Error)>,
    pub(super) panic: Option<Box<dyn std::any::Any + Send>>,
}

impl<T> State<T> {
    /// Whether there is nothing left to do.
    pub(super) fn is_finished(&self) -> bool {
        self.exhausted && self.busy.is_empty() && !self.abandoned
    }

    fn has_work(&self) -> bool {
        !self.ready.is_empty() && self.breaker.is_none()
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting_lines >= MAX_READ_AHEAD_LINES || self.waiting_bytes >= MAX_READ_AHEAD_BYTES
    }

    /// Nothing more comes that would fill a look-up.
    fn is_settled(&self) -> bool {
        self.exhausted || self.quiet || self.is_full()
    }

    pub(super) fn take(&mut self, job: Job<T>) -> Task<T> {
        self.waiting_lines -= 1;
        self.waiting_bytes -= job.bytes;
        if self.blocked.contains(&job.key) {
            Task::Skip(job)
        } else {
            Task::Run(job)
        }
    }

    /// A line that was not begun, also one whose participant is not looked up yet.
    pub(super) fn next_untried(&mut self) -> Option<Job<T>> {
        let ready = self.ready.pop_front();
        ready.or_else(|| self.unresolved.pop_front())
    }

    /// Other lines were answered: the held ones run again, before those that were not begun.
    pub(super) fn release(&mut self, max_strikes: u32) -> Vec<Job<T>> {
        self.missed_since = None;
        let mut failed = Vec::new();
        for mut job in std::mem::take(&mut self.held).into_iter().rev() {
            job.strikes += 1;
            if job.strikes >= max_strikes {
                failed.push(job);
            } else {
                self.waiting_lines += 1;
                self.waiting_bytes += job.bytes;
                self.ready.push_front(job);
            }
        }
        failed
    }
}

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(
        client: &'a Client,
        cancel: &'a Cancel,
        workers: usize,
        max_outage: Duration,
        journal: Option<Journal>,
    ) -> Shared<'a, T> {
        Shared {
            client,
            clock: client.clock(),
            cancel,
            max_outage,
            journal: journal.map(Mutex::new),
            workers,
            hasher: RandomState::new(),
            state: Mutex::new(State {
                busy: HashMap::new(),
                ready: VecDeque::new(),
                unresolved: VecDeque::new(),
                held: Vec::new(),
                missed_since: None,
                breaker: None,
                look_ahead: LookAhead::new(client),
                looking: false,
                waiting_lines: 0,
                waiting_bytes: 0,
                read: 0,
                exhausted: false,
                quiet: false,
                abandoned: false,
                blocked: HashSet::new(),
                started: 0,
                idle: 0,
                running: 0,
                slow: false,
                notices: VecDeque::new(),
                stopped: None,
                panic: None,
            }),
            work: Condvar::new(),
        }
    }

    pub(super) fn into_state(self) -> State<T> {
        self.state
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stop(&self) {
        self.cancel.cancel();
        // Under the lock, so that no thread is between looking and waiting.
        let _state = lock(&self.state);
        self.work.notify_all();
    }

    /// Stops for a reason that is not the error of a line.
    pub(super) fn stop_for(&self, state: &mut State<T>, reason: StopReason, error: Error) {
        state.stopped.get_or_insert((reason, error));
        self.cancel.cancel();
        self.work.notify_all();
    }

    /// Writes an outcome into the journal. A journal that cannot be written stops the batch.
    pub(super) fn record(&self, outcome: &BatchOutcome, mark: Mark) {
        if let Some(journal) = &self.journal {
            let appended = lock(journal).append(outcome, mark);
            if let Err(error) = appended {
                self.stop_for(&mut lock(&self.state), StopReason::Journal, error);
            }
        }
    }

    /// Takes a line in.
    pub(super) fn push(&self, line: u64, tag: T, update: Update, mark: Mark) {
        let job = Job {
            line,
            tag,
            mark,
            bytes: update.approximate_size(),
            key: self.hasher.hash_one(update.target().conversation_id()),
            found: None,
            strikes: 0,
            missed: None,
            update,
        };
        let mut state = lock(&self.state);
        state.quiet = false;
        state.read += 1;
        state.waiting_lines += 1;
        state.waiting_bytes += job.bytes;
        let conversation = job.conversation().to_owned();
        match state.busy.entry(conversation) {
            Entry::Occupied(mut behind) => behind.get_mut().push_back(job),
            Entry::Vacant(free) => {
                free.insert(VecDeque::new());
                self.enqueue(&mut state, job);
            }
        }
    }

    /// The turn of a line has come.
    fn enqueue(&self, state: &mut State<T>, job: Job<T>) {
        let wakes = if state.look_ahead.helps(self.client, &job.update) {
            state.unresolved.push_back(job);
            state.unresolved.len() >= state.look_ahead.chunk()
        } else {
            state.ready.push_back(job);
            true
        };
        if wakes && state.idle > 0 {
            self.work.notify_one();
        }
    }

    /// The input gives nothing for now, or nothing more.
    pub(super) fn quiet(&self, exhausted: bool) {
        let mut state = lock(&self.state);
        state.exhausted |= exhausted;
        state.quiet = true;
        match exhausted {
            true => self.work.notify_all(),
            false => self.work.notify_one(),
        }
    }

    /// How many more workers would find something to do. `twice`: all of them wait for the network.
    pub(super) fn missing_workers(&self, state: &mut State<T>, twice: bool) -> usize {
        let most = self.workers - state.started;
        if state.started == 0 {
            return usize::from(!state.busy.is_empty());
        }
        if state.idle > 0 || !state.has_work() {
            return 0;
        }
        let slow = std::mem::take(&mut state.slow);
        let wanted = match (twice, state.started < EAGER_WORKERS || slow) {
            (true, _) => state.started.min(state.ready.len()),
            (false, eager) => usize::from(eager),
        };
        wanted.min(most)
    }

    /// Whether the outage has lasted for too long; it stops the batch then.
    pub(super) fn gives_up(&self, state: &mut State<T>) -> bool {
        let now = self.clock.now();
        let Some(breaker) = &mut state.breaker else {
            return false;
        };
        if self.client.limited_until().is_some_and(|until| until > now) {
            // A pause is an answer. The probe goes on after it.
            breaker.since = now;
        }
        if breaker.lasted(now) < self.max_outage {
            return false;
        }
        let error = breaker.error.clone();
        self.stop_for(state, StopReason::Outage, error);
        true
    }

    /// The next task of a worker, which has done its last one; `None` when nothing is left or the
    /// batch stops.
    pub(super) fn next(&self, was_running: bool) -> Option<Task<T>> {
        let mut state = lock(&self.state);
        state.running -= usize::from(was_running);
        loop {
            if self.cancel.is_cancelled() {
                return None;
            }
            if let Some(task) = self.choose(&mut state) {
                state.running += 1;
                if state.idle > 0 && state.has_work() {
                    self.work.notify_one();
                }
                return Some(task);
            }
            if state.is_finished() {
                self.work.notify_all();
                return None;
            }
            if self.cancel.is_cancelled() {
                continue;
            }
            // Only more input, or the lack of it, decides about these.
            let undecided = !state.unresolved.is_empty() || !state.held.is_empty();
            let (read, waits) = (state.read, undecided && !state.quiet);
            state.idle += 1;
            if waits {
                let waited = self.work.wait_timeout(state, TICK);
                let (guard, end) = waited.unwrap_or_else(PoisonError::into_inner);
                state = guard;
                // Woken for another reason, it says nothing about the input.
                state.quiet |= end.timed_out() && state.read == read;
            } else {
                state = wait(&self.work, state, None, None);
            }
            state.idle -= 1;
        }
    }

    fn choose(&self, state: &mut State<T>) -> Option<Task<T>> {
        if state.breaker.is_some() {
            if self.gives_up(state) || state.running > 0 {
                return None;
            }
            let now = self.clock.now();
            let breaker = state.breaker.as_mut()?;
            let left = self.max_outage.saturating_sub(breaker.lasted(now));
            let delay = self.client.jitter(breaker.probe());
            return Some(Task::Probe(delay.min(left)));
        }
        // What is found long before its need may be out of date by then.
        if !state.looking && state.ready.len() < state.started && !state.unresolved.is_empty() {
            let (chunk, waiting) = (state.look_ahead.chunk(), state.unresolved.len());
            if chunk < 2 || waiting == 1 && state.is_settled() {
                let next = state.unresolved.pop_front();
                state.ready.extend(next);
            } else if waiting >= chunk || state.is_settled() {
                state.looking = true;
                let chunk = chunk.min(waiting);
                return Some(Task::LookUp(state.unresolved.drain(..chunk).collect()));
            }
        }
        if let Some(job) = state.ready.pop_front() {
            return Some(state.take(job));
        }
        let alone = state.running == 0 && (state.exhausted || state.quiet);
        (alone && !state.held.is_empty()).then_some(Task::Ping)
    }

    /// A line has its outcome; with `blocks` the later ones of its conversation are skipped. Says
    /// whether the batch is done.
    pub(super) fn finished(&self, conversation: &str, key: u64, blocks: bool) -> bool {
        let mut state = lock(&self.state);
        if blocks {
            state.blocked.insert(key);
        }
        let behind = state.busy.get_mut(conversation);
        match behind.and_then(VecDeque::pop_front) {
            Some(next) => self.enqueue(&mut state, next),
            None => {
                state.busy.remove(conversation);
            }
        }
        state.is_finished()
    }

    /// Wakes a worker if there is something to do.
    pub(super) fn wake(&self, state: &State<T>) {
        if state.idle > 0 {
            self.work.notify_one();
        }
    }
}
