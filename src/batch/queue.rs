//! The queue between the thread that reads the input and the workers that run it: how far it is
//! read ahead, in which order lines run, what runs next, and who waits.
//!
//! Whoever makes work wakes one waiter, and whoever takes work while there is more wakes the next.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime};

use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::report::receipt::Receipt;
use crate::update::Update;
use crate::util::clock::Clock;
use crate::util::sync::{Cancel, lock, wait};

use super::lookahead::{Found, LookAhead};
use super::outage::{Notice, Outage, Strikes};
use super::report::{BatchOutcome, StopReason};

/// What is read ahead of the workers, at most.
const MAX_READ_AHEAD_LINES: usize = 1_000;
const MAX_READ_AHEAD_BYTES: usize = 4 << 20;
/// So many workers are started as soon as there is work; more of them only help where updates wait
/// for the network, which shows by how long they take.
const EAGER_WORKERS: usize = 16;

/// One update on its way.
pub(super) struct Job<T> {
    pub(super) line: u64,
    pub(super) tag: T,
    pub(super) update: Update,
    pub(super) bytes: usize,
    /// The hash of its conversation.
    pub(super) key: u64,
    /// What the look-ahead found.
    pub(super) found: Option<Found>,
    /// The number of its last run, over all lines.
    pub(super) begun: u64,
    pub(super) strikes: Strikes,
    /// How its last run ended, if that was without an answer; with the effort of all of its runs.
    pub(super) missed: Option<Error>,
}

impl<T> Job<T> {
    pub(super) fn conversation(&self) -> &str {
        self.update.target().conversation_id()
    }

    /// The result of one more run, with what the runs before it cost and left open.
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
    /// Wait this long, then send one line to see whether the outage of this number is over.
    Probe(Duration, u64),
    /// Ask for something that is no line's: there is no other line to compare a failed one with.
    Ping,
    /// Look up the participants of these in bulk.
    LookUp(Vec<Job<T>>),
}

/// What the threads of a batch share.
pub(super) struct Shared<'a, T> {
    pub(super) client: &'a Client,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) cancel: &'a Cancel,
    pub(super) workers: usize,
    pub(super) max_outage: Duration,
    pub(super) hasher: RandomState,
    pub(super) state: Mutex<State<T>>,
    /// There is work for a worker.
    pub(super) work: Condvar,
    /// There is room for the reader.
    pub(super) room: Condvar,
}

pub(super) struct State<T> {
    /// Conversations with a line whose turn has come, and the lines that wait behind it.
    pub(super) busy: HashMap<String, VecDeque<Job<T>>>,
    /// Lines whose turn has come.
    pub(super) ready: VecDeque<Job<T>>,
    /// The same, but the ids of their participants are to be looked up first.
    pub(super) unresolved: VecDeque<Job<T>>,
    /// Lines that missed an answer, and wait for the answer to one that was begun after that. Oldest
    /// first, with the number of the last run that was begun before.
    pub(super) held: VecDeque<(u64, Job<T>)>,
    /// How many runs were begun, and how many of them when the last outage ended.
    pub(super) runs: u64,
    pub(super) runs_of_outage: u64,
    pub(super) waiting_lines: usize,
    pub(super) waiting_bytes: usize,
    pub(super) exhausted: bool,
    pub(super) reader_waits: bool,
    /// Nothing was read or done for a moment: do not wait for more input.
    pub(super) quiet: bool,
    /// A line was dropped without an outcome.
    pub(super) abandoned: bool,
    /// Hashes of the conversations whose later lines are skipped. A chance meeting of two hashes
    /// skips a line that could have run, which a later run makes good.
    pub(super) blocked: HashSet<u64>,
    pub(super) outage: Outage,
    pub(super) look_ahead: LookAhead,
    /// Lines whose participants are being looked up.
    pub(super) looking: usize,
    /// Workers that run, and how many of them have nothing to do.
    pub(super) started: usize,
    pub(super) idle: usize,
    /// Workers and the reader.
    pub(super) threads: usize,
    /// What is to be reported, in order.
    pub(super) notices: VecDeque<Notice>,
    /// What stopped the batch that is no line's error.
    pub(super) stopped: Option<(StopReason, Error)>,
    pub(super) panic: Option<Box<dyn std::any::Any + Send>>,
}

impl<T> State<T> {
    /// Whether there is nothing left to do.
    pub(super) fn is_finished(&self) -> bool {
        self.exhausted && self.busy.is_empty() && !self.abandoned
    }

    pub(super) fn has_work(&self) -> bool {
        !self.ready.is_empty() && self.outage.parked.is_none()
    }

    /// Whether there is work that has no thread yet.
    pub(super) fn has_backlog(&self) -> bool {
        self.idle == 0 && self.has_work()
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting_lines >= MAX_READ_AHEAD_LINES || self.waiting_bytes >= MAX_READ_AHEAD_BYTES
    }

    /// Whether the reader should go on: when there is a quarter of room, or the workers need it.
    pub(super) fn has_room(&self) -> bool {
        !self.is_full()
            && (self.ready.is_empty()
                || self.waiting_lines <= MAX_READ_AHEAD_LINES / 4 * 3
                    && self.waiting_bytes <= MAX_READ_AHEAD_BYTES / 4 * 3)
    }

    pub(super) fn take(&mut self, job: Job<T>) -> Task<T> {
        self.waiting_lines -= 1;
        self.waiting_bytes -= job.bytes;
        if self.blocked.contains(&job.key) {
            Task::Skip(job)
        } else {
            self.begin(job)
        }
    }

    pub(super) fn begin(&mut self, mut job: Job<T>) -> Task<T> {
        self.runs += 1;
        job.begun = self.runs;
        self.look_ahead.begun();
        Task::Run(job)
    }

    /// A line that was not begun, also one whose participant is not looked up yet.
    pub(super) fn next_untried(&mut self) -> Option<Job<T>> {
        match self.ready.pop_front() {
            None => self.unresolved.pop_front(),
            job => job,
        }
    }

    /// A held line runs again before those that were not begun.
    pub(super) fn again(&mut self, job: Job<T>) {
        self.waiting_lines += 1;
        self.waiting_bytes += job.bytes;
        self.ready.push_front(job);
    }

    /// The lines that missed their answer and may be in place all the same: what is left to report
    /// about them when the batch has ended.
    pub(super) fn in_doubt(&mut self, at: SystemTime) -> Vec<(T, BatchOutcome)> {
        let held = std::mem::take(&mut self.held);
        held.into_iter()
            .filter_map(|(_, job)| {
                let error = job.missed.filter(Error::may_have_applied)?;
                let target = job.update.target();
                Some((job.tag, BatchOutcome::of(job.line, target, Err(error), at)))
            })
            .collect()
    }
}

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(
        client: &'a Client,
        cancel: &'a Cancel,
        workers: usize,
        max_outage: Duration,
    ) -> Shared<'a, T> {
        Shared {
            client,
            clock: client.clock(),
            cancel,
            workers,
            max_outage,
            hasher: RandomState::new(),
            state: Mutex::new(State {
                busy: HashMap::new(),
                ready: VecDeque::new(),
                unresolved: VecDeque::new(),
                held: VecDeque::new(),
                runs: 0,
                runs_of_outage: 0,
                waiting_lines: 0,
                waiting_bytes: 0,
                exhausted: false,
                reader_waits: false,
                quiet: false,
                abandoned: false,
                blocked: HashSet::new(),
                outage: Outage::default(),
                look_ahead: LookAhead::new(client),
                looking: 0,
                started: 0,
                idle: 0,
                threads: 0,
                notices: VecDeque::new(),
                stopped: None,
                panic: None,
            }),
            work: Condvar::new(),
            room: Condvar::new(),
        }
    }

    pub(super) fn into_state(self) -> State<T> {
        self.state
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn take_notices(&self) -> VecDeque<Notice> {
        std::mem::take(&mut lock(&self.state).notices)
    }

    pub(super) fn stop(&self) {
        self.cancel.cancel();
        // Under the lock, so that no thread is between looking and waiting.
        let _state = lock(&self.state);
        self.work.notify_all();
        self.room.notify_all();
    }

    /// Stops for a reason that is no line's.
    pub(super) fn stop_for(&self, state: &mut State<T>, reason: StopReason, error: Error) {
        state.stopped.get_or_insert((reason, error));
        self.cancel.cancel();
        self.work.notify_all();
        self.room.notify_all();
    }

    pub(super) fn no_time_left(&self, state: &mut State<T>) -> bool {
        let now = self.clock.now();
        let error = match &mut state.outage.parked {
            Some(parked) if self.client.limited_until().is_some_and(|until| until > now) => {
                // That is an answer: what asked goes on after the pause.
                parked.paused = true;
                return false;
            }
            Some(parked) if !parked.paused && parked.lasted(now) >= self.max_outage => {
                parked.error.clone()
            }
            _ => return false,
        };
        self.stop_for(state, StopReason::Outage, error);
        true
    }

    /// The next thing to do for a worker; `None` when there is nothing left or the batch stops.
    ///
    /// Says as well whether another worker would find something to do.
    pub(super) fn next(&self) -> Option<(Task<T>, bool)> {
        let mut state = lock(&self.state);
        loop {
            if self.cancel.is_cancelled() {
                return None;
            }
            if let Some(task) = self.choose(&mut state) {
                if state.idle > 0 && state.has_work() {
                    self.work.notify_one();
                }
                if state.reader_waits && state.has_room() {
                    self.room.notify_one();
                }
                let backlog = state.has_backlog() && state.started < EAGER_WORKERS;
                return Some((task, backlog));
            }
            if state.is_finished() {
                self.work.notify_all();
                return None;
            }
            if !self.cancel.is_cancelled() {
                state.idle += 1;
                state = wait(&self.work, state, None, None);
                state.idle -= 1;
            }
        }
    }

    fn choose(&self, state: &mut State<T>) -> Option<Task<T>> {
        if state.outage.parked.is_some() {
            if self.no_time_left(state) {
                return None;
            }
            let now = self.clock.now();
            let parked = state.outage.parked.as_mut().filter(|p| !p.probing)?;
            parked.probing = true;
            let left = self.max_outage.saturating_sub(parked.lasted(now));
            let delay = self.client.jitter(parked.ceiling()).min(left);
            return Some(Task::Probe(delay, parked.number));
        }
        let alone = state.idle + 1 == state.started;
        let look_ahead = &state.look_ahead;
        let (chunk, waiting) = (look_ahead.chunk(), state.unresolved.len());
        // What is found ahead of its need may be out of date by then.
        let ahead = state.looking + state.ready.len();
        let wanted = ahead < chunk.max(state.started)
            && (state.looking == 0 || !look_ahead.learns())
            && (!look_ahead.sounds() || state.ready.is_empty() && alone);
        // Fewer than could be asked for, where no more come before the workers have nothing to do.
        let last = ahead < state.started && (state.exhausted || state.quiet || state.is_full());
        if chunk < 2 || last && waiting == 1 {
            state.ready.append(&mut state.unresolved);
        } else if wanted && (waiting >= chunk || last && waiting > 0) {
            let count = chunk.min(waiting);
            state.looking += count;
            return Some(Task::LookUp(state.unresolved.drain(..count).collect()));
        }
        if let Some(job) = state.ready.pop_front() {
            return Some(state.take(job));
        }
        (!state.held.is_empty() && alone && (state.exhausted || state.quiet)).then_some(Task::Ping)
    }

    /// A line got its answer, and with `blocks` the later ones of its conversation are skipped.
    pub(super) fn finished(&self, conversation: &str, key: u64, blocks: bool) {
        let mut state = lock(&self.state);
        if blocks {
            state.blocked.insert(key);
        }
        let behind = state.busy.get_mut(conversation);
        match behind.and_then(VecDeque::pop_front) {
            Some(next) => {
                // The line before it may have found the participant.
                if state.look_ahead.chunk() >= 2 && LookAhead::helps(self.client, &next.update) {
                    state.unresolved.push_back(next);
                    return;
                }
                state.ready.push_back(next);
                if state.idle > 0 {
                    self.work.notify_one();
                }
            }
            None => {
                state.busy.remove(conversation);
            }
        }
    }
}
