//! The threads of a batch: one reads the input, up to a bound; workers run the lines whose turn has
//! come, and find out whether the platform is there.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::hash::BuildHasher;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::MutexGuard;
use std::sync::mpsc::SyncSender;
use std::thread::Scope;
use std::time::{Duration, Instant};

use log::warn;

use crate::error::{Error, ErrorKind, Result};
use crate::report::receipt::Receipt;
use crate::session::retry::Caller;
use crate::update::Update;
use crate::update::core::EndedPolicy;
use crate::util::clock::sleep_unless;
use crate::util::sync::{lock, wait};

use super::BatchItem;
use super::lookahead::{Answer, Found, Lesson, LookAhead};
use super::outage::{Notice, Sign, Strikes};
use super::queue::{Job, Shared, State, Task};
use super::report::{BatchOutcome, StopReason};

/// More workers than are started eagerly only help where updates wait for the network: where they
/// take this long.
const SLOW_UPDATE: Duration = Duration::from_millis(10);

/// How a panic of a batch begins for which the system had no thread.
pub(crate) const NO_THREAD: &str = "the batch got no thread";

/// What the threads of a batch hand to the one that called it.
pub(super) enum Message<T> {
    Outcome(T, BatchOutcome),
    /// There are notices to take.
    Notices,
    /// No thread is left.
    Done,
}

/// What it takes to run a thread of the batch.
pub(super) struct Crew<'scope, 'env, T> {
    pub(super) shared: &'scope Shared<'scope, T>,
    pub(super) scope: &'scope Scope<'scope, 'env>,
    pub(super) out: SyncSender<Message<T>>,
}

impl<T> Clone for Crew<'_, '_, T> {
    fn clone(&self) -> Self {
        Crew {
            out: self.out.clone(),
            ..*self
        }
    }
}

/// A thread of the batch ends, also by a panic: no thread may wait for it.
struct Leaving<'c, 'scope, 'env, T>(&'c Crew<'scope, 'env, T>);

impl<T> Drop for Leaving<'_, '_, '_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.shared.stop();
        }
        self.0.left();
    }
}

impl<'scope, T: Send> Crew<'scope, '_, T> {
    /// Starts the thread that reads the input.
    pub(super) fn read<I, U>(&self, input: I)
    where
        I: Iterator<Item = (u64, T, U)> + Send + 'scope,
        U: BatchItem,
    {
        lock(&self.shared.state).threads += 1;
        let crew = self.clone();
        let hired = std::thread::Builder::new().spawn_scoped(self.scope, move || {
            let _leaving = Leaving(&crew);
            crew.read_all(input);
        });
        if let Err(error) = hired {
            let why = Box::new(format!("{NO_THREAD} to read its input: {error}"));
            lock(&self.shared.state).panic = Some(why);
            self.left();
        }
    }

    /// Starts a worker. Without the first one there is no batch, and that is a panic of the caller's;
    /// without a further one there is a smaller batch.
    fn hire(&self) {
        let mut state = lock(&self.shared.state);
        if state.started >= self.shared.workers {
            return;
        }
        state.started += 1;
        state.threads += 1;
        drop(state);
        let crew = self.clone();
        let hired = std::thread::Builder::new().spawn_scoped(self.scope, move || {
            let _leaving = Leaving(&crew);
            crew.work();
        });
        if let Err(error) = hired {
            let mut state = lock(&self.shared.state);
            state.started -= 1;
            if state.started == 0 {
                state.panic = Some(Box::new(format!("{NO_THREAD} to work: {error}")));
                drop(state);
                self.shared.stop();
            } else {
                drop(state);
            }
            self.left();
        }
    }

    /// Called now and then while nothing happens.
    pub(super) fn tick(&self) {
        let mut state = lock(&self.shared.state);
        if self.shared.no_time_left(&mut state) {
            return;
        }
        if !state.held.is_empty() || !state.unresolved.is_empty() {
            state.quiet = true;
            self.shared.work.notify_one();
        }
        // All workers wait for the network: twice as many may get twice as far.
        let more = match state.has_backlog() {
            true => state.started.min(state.ready.len()),
            false => 0,
        };
        drop(state);
        for _ in 0..more {
            self.hire();
        }
    }

    fn read_all<I, U>(&self, mut input: I)
    where
        I: Iterator<Item = (u64, T, U)>,
        U: BatchItem,
    {
        let shared = self.shared;
        loop {
            let mut state = lock(&shared.state);
            while state.is_full() && !shared.cancel.is_cancelled() {
                state.reader_waits = true;
                state = wait(&shared.room, state, None, None);
                state.reader_waits = false;
            }
            drop(state);
            if shared.cancel.is_cancelled() {
                return;
            }
            let next = catch_unwind(AssertUnwindSafe(|| {
                let (line, tag, item) = input.next()?;
                Some((line, tag, item.into_update()))
            }));
            match next {
                Ok(Some((line, tag, Ok(update)))) => self.push(line, tag, update),
                Ok(Some((line, tag, Err(error)))) => {
                    let at = shared.clock.wall();
                    self.deliver(tag, BatchOutcome::unreadable(line, error, at));
                }
                end => {
                    let mut state = lock(&shared.state);
                    // An input that heeds the cancel handle, too, was not read to its end.
                    state.exhausted = !shared.cancel.is_cancelled();
                    if let Err(panic) = end {
                        state.exhausted = true;
                        state.panic = Some(panic);
                    }
                    shared.work.notify_all();
                    return;
                }
            }
        }
    }

    fn push(&self, line: u64, tag: T, update: Update) {
        let shared = self.shared;
        let job = Job {
            line,
            tag,
            bytes: update.approximate_size(),
            key: shared.hasher.hash_one(update.target().conversation_id()),
            found: None,
            begun: 0,
            strikes: Strikes::default(),
            missed: None,
            update,
        };
        let looked_up = LookAhead::helps(shared.client, &job.update);
        let mut state = lock(&shared.state);
        state.quiet = false;
        state.waiting_lines += 1;
        state.waiting_bytes += job.bytes;
        let conversation = job.conversation().to_owned();
        match state.busy.entry(conversation) {
            Entry::Occupied(mut behind) => {
                behind.get_mut().push_back(job);
                return;
            }
            Entry::Vacant(free) => {
                free.insert(VecDeque::new());
            }
        }
        if looked_up && state.look_ahead.chunk() >= 2 {
            state.unresolved.push_back(job);
            if state.unresolved.len() < state.look_ahead.chunk() && state.started > 0 {
                return;
            }
        } else {
            state.ready.push_back(job);
        }
        if state.idle > 0 {
            shared.work.notify_one();
        } else if state.started == 0 {
            drop(state);
            self.hire();
        }
    }

    fn work(&self) {
        let shared = self.shared;
        while let Some((task, backlog)) = shared.next() {
            if backlog {
                self.hire();
            }
            match task {
                Task::Run(job) => {
                    let begun = shared.clock.now();
                    self.run(job, None);
                    let took = shared.clock.now().saturating_duration_since(begun);
                    if took >= SLOW_UPDATE && lock(&shared.state).has_backlog() {
                        self.hire();
                    }
                }
                Task::Skip(job) => self.skip(job),
                Task::Probe(delay, outage) => self.probe(delay, outage),
                Task::Ping => self.ping(),
                Task::LookUp(jobs) => self.look_up(jobs),
            }
        }
    }

    fn ping(&self) {
        let shared = self.shared;
        let longest = lock(&shared.state).outage.ping();
        let delay = shared.client.jitter(longest);
        if sleep_unless(shared.clock.as_ref(), delay, Some(shared.cancel)).is_err() {
            return;
        }
        match shared.client.reachable(shared.cancel) {
            Ok(true) => self.answered(None, None),
            Ok(false) => self.park(),
            // Cancelled.
            Err(_) => {}
        }
    }

    fn skip(&self, job: Job<T>) {
        let at = self.shared.clock.wall();
        let outcome = BatchOutcome::skipped(job.line, job.update.target(), None, at);
        self.end(job, outcome);
    }

    /// Runs a line, perhaps as a probe in an outage.
    fn run(&self, mut job: Job<T>, outage: Option<u64>) {
        let shared = self.shared;
        if let Some(found) = &job.found {
            // Only now: it could be forgotten before it is needed.
            found.remember(shared.client, job.conversation());
        }
        let begun = shared.clock.now();
        let result = shared.client.update_in_batch(&job.update, shared.cancel);
        self.judge(&job, &result);
        let result = job.with_past(result);
        let sign = Sign::of(&result, || shared.client.has_logged_in());
        match (sign, result) {
            (Sign::Missed { login }, Err(error)) => self.hold(job, error, login, begun),
            (Sign::WrongLogin, Err(error)) => {
                let mut state = lock(&shared.state);
                state.abandoned = true;
                shared.stop_for(&mut state, StopReason::Login, error);
            }
            (_, Err(error))
                if error.kind() == ErrorKind::Cancelled
                    && shared.cancel.is_cancelled()
                    && !error.may_have_applied() =>
            {
                let mut state = lock(&shared.state);
                // What stops for the sake of all lines spends none.
                let unspent = error.requests() == 0 || state.stopped.is_some();
                state.abandoned |= unspent;
                drop(state);
                if !unspent {
                    let at = shared.clock.wall();
                    let target = job.update.target();
                    let outcome = BatchOutcome::skipped(job.line, target, Some(&error), at);
                    self.end(job, outcome);
                }
            }
            (sign, result) => {
                let target = job.update.target();
                let at = shared.clock.wall();
                let number = job.begun;
                let mut outcome = BatchOutcome::of(job.line, target, result, at);
                let ended = job.found.as_ref().is_some_and(|found| found.ended);
                outcome.conversation_ended |= ended && outcome.error.is_none();
                job.missed = None;
                self.end(job, outcome);
                if sign == Sign::Answered {
                    self.answered(Some(number), outage);
                }
            }
        }
    }

    /// Counts whether the id that was looked up for a line was the right one.
    fn judge(&self, job: &Job<T>, result: &Result<Receipt>) {
        let target = job.update.target();
        let Some(id) = job.found.as_ref().and_then(|found| found.id_of(target)) else {
            return;
        };
        let right = match result {
            Ok(receipt) => receipt.resource_id.as_deref() == Some(id),
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(_) => return,
        };
        let mut state = lock(&self.shared.state);
        if let Some(notice) = state.look_ahead.used(right) {
            // Those that wait are no better.
            let State {
                ready, unresolved, ..
            } = &mut *state;
            for job in ready.iter_mut().chain(unresolved) {
                job.found = None;
            }
            self.notify(state, notice);
        }
    }

    /// A line missed its answer: what comes next decides about it.
    fn hold(&self, mut job: Job<T>, error: Error, login: bool, at: Instant) {
        let shared = self.shared;
        let mut state = lock(&shared.state);
        job.missed = Some(error.clone());
        if shared.cancel.is_cancelled() {
            // It is too late to find out more.
            state.held.push_back((0, job));
            return;
        }
        if state.outage.parked.is_none() && job.begun <= state.runs_of_outage {
            // It was on its way in an outage that is over: it says nothing about the platform now.
            job.strikes.add(false);
            state.again(job);
            return;
        }
        let began = state.outage.missed(&error, login, at);
        let begun = state.runs;
        state.held.push_back((begun, job));
        if began {
            self.notify(state, Notice::OutageBegan { error });
        }
    }

    /// Not even what is no line's was answered.
    fn park(&self) {
        let shared = self.shared;
        let mut state = lock(&shared.state);
        let Some(error) = state.held.back().and_then(|(_, job)| job.missed.clone()) else {
            return;
        };
        if state.outage.parked.is_none() {
            state.outage.park(&error, shared.clock.now());
            self.notify(state, Notice::OutageBegan { error });
        }
    }

    /// The run of this number, perhaps a probe in an outage, got an answer (or a ping did): that ends
    /// the outage, and decides about the lines that are held.
    ///
    /// What was begun before a line missed its answer, or before an outage, says nothing about it:
    /// its answer may have come earlier.
    fn answered(&self, begun: Option<u64>, outage: Option<u64>) {
        let shared = self.shared;
        let mut state = lock(&shared.state);
        if state.outage.parked.as_ref().map(|parked| parked.number) != outage {
            return;
        }
        state.look_ahead.heard();
        let ended = state.outage.answered(begun.is_some(), shared.clock.now());
        if ended.is_some() {
            state.runs_of_outage = state.runs;
        }
        let mut failed = Vec::new();
        for (missed, mut job) in std::mem::take(&mut state.held).into_iter().rev() {
            if begun.is_some_and(|begun| missed >= begun) {
                state.held.push_front((missed, job));
            } else if job.strikes.add(begun.is_some() && ended.is_none()) {
                failed.push(job);
            } else {
                state.again(job);
            }
        }
        if state.idle > 0 && state.has_work() {
            shared.work.notify_one();
        }
        match ended {
            Some(after) => self.notify(state, Notice::OutageEnded { after }),
            None => drop(state),
        }
        for mut job in failed {
            if let Some(error) = job.missed.take() {
                let at = shared.clock.wall();
                let outcome = BatchOutcome::of(job.line, job.update.target(), Err(error), at);
                self.end(job, outcome);
            }
        }
    }

    fn probe(&self, delay: Duration, outage: u64) {
        let shared = self.shared;
        if sleep_unless(shared.clock.as_ref(), delay, Some(shared.cancel)).is_err() {
            return;
        }
        let mut state = lock(&shared.state);
        let now = shared.clock.now();
        // An answer to a line that was still under way may have ended it meanwhile.
        let Some(parked) = state.outage.parked_as(outage) else {
            return;
        };
        let after = parked.lasted(now);
        let untried = parked.probe() || state.held.is_empty();
        let task = if untried && let Some(job) = state.next_untried() {
            Some(state.take(job))
        } else if let Some((_, job)) = state.held.pop_front() {
            Some(state.begin(job))
        } else {
            // No thread is left to ask, or to wait.
            state.outage.parked = None;
            None
        };
        match task {
            Some(Task::Run(job)) => {
                let line = job.line;
                self.notify(state, Notice::Probing { line, after });
                self.run(job, Some(outage));
            }
            Some(Task::Skip(job)) => {
                drop(state);
                self.skip(job);
            }
            _ => drop(state),
        }
        if let Some(parked) = lock(&shared.state).outage.parked_as(outage) {
            parked.probing = false;
        }
    }

    fn look_up(&self, mut jobs: Vec<Job<T>>) {
        let shared = self.shared;
        let targets: Vec<_> = jobs.iter().map(|job| job.update.target()).collect();
        let caller = Caller::LookUp;
        let answer = LookAhead::ask(shared.client, &targets, caller, Some(shared.cancel));
        if let Answer::Found(found) = &answer
            && shared.client.ended_policy() == EndedPolicy::Warn
        {
            let ended = |found: &Option<Found>| found.as_ref().is_some_and(|found| found.ended);
            for (job, _) in jobs.iter().zip(found).filter(|(_, found)| ended(found)) {
                warn!(
                    "conversation {} is ended: analytics does not keep attributes written now",
                    job.conversation()
                );
            }
        }
        let mut state = lock(&shared.state);
        state.looking -= jobs.len();
        let (lesson, notice) = state.look_ahead.learn(&answer, jobs.len());
        if let Answer::Found(found) = answer
            && !state.look_ahead.is_off()
        {
            for (job, found) in jobs.iter_mut().zip(found) {
                job.found = found;
            }
        }
        let (now, also) = match lesson {
            Lesson::Again => (0, 0),
            Lesson::Sound => (1, 0),
            Lesson::Run { also } => (jobs.len(), also),
        };
        for job in jobs.split_off(now).into_iter().rev() {
            state.unresolved.push_front(job);
        }
        state.ready.extend(jobs);
        for _ in 0..also {
            let next = state.unresolved.pop_front();
            state.ready.extend(next);
        }
        if state.idle > 0 {
            shared.work.notify_one();
        }
        if let Some(notice) = notice {
            self.notify(state, notice);
        }
    }

    /// Hands over an outcome before the conversation's next line may begin, so that those of one
    /// conversation keep their order.
    fn end(&self, job: Job<T>, outcome: BatchOutcome) {
        let blocks = !outcome.is_final();
        self.deliver(job.tag, outcome);
        let conversation = job.update.target().conversation_id();
        self.shared.finished(conversation, job.key, blocks);
    }

    fn deliver(&self, tag: T, outcome: BatchOutcome) {
        // No caller listens to a batch that was broken off.
        let _ = self.out.send(Message::Outcome(tag, outcome));
    }

    /// Notices are in order, since they are made under the lock. They are not sent under it, since
    /// the channel may be full, and whoever empties it may wait for the lock.
    fn notify(&self, mut state: MutexGuard<'_, State<T>>, notice: Notice) {
        state.notices.push_back(notice);
        drop(state);
        let _ = self.out.send(Message::Notices);
    }
}

impl<T> Crew<'_, '_, T> {
    fn left(&self) {
        let mut state = lock(&self.shared.state);
        state.threads -= 1;
        let last = state.threads == 0;
        drop(state);
        if last {
            let _ = self.out.send(Message::Done);
        }
    }
}
