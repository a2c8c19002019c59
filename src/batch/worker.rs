//! The workers of a batch: they run lines, look participants up, and find out whether the
//! platform can be reached.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::MutexGuard;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use log::warn;

use crate::error::{Error, ErrorKind, Result};
use crate::report::receipt::Receipt;
use crate::session::retry::Caller;
use crate::update::core::EndedPolicy;
use crate::util::clock::sleep_unless;
use crate::util::sync::lock;

use super::lookahead::{Answer, ask};
use super::notice::Notice;
use super::outage::{Breaker, MAX_HELD, MAX_STRIKES, Reach};
use super::queue::{Job, Shared, State, Task};
use super::report::{BatchOutcome, StopReason};

/// More workers than start eagerly help only where updates take this long.
const SLOW_UPDATE: Duration = Duration::from_millis(10);

/// What workers hand to the thread that called the batch.
pub(super) enum Message<T> {
    Outcome(T, BatchOutcome),
    /// There may be notices to take, or nothing left to do.
    News,
}

pub(super) struct Worker<'a, 'b, T> {
    pub(super) shared: &'a Shared<'b, T>,
    pub(super) out: SyncSender<Message<T>>,
}

impl<T> Worker<'_, '_, T> {
    /// Works until nothing is left. A panic stops the batch, whose caller gets it.
    pub(super) fn work(self) {
        let shared = self.shared;
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let mut ran = false;
            while let Some(task) = shared.next(ran) {
                ran = true;
                match task {
                    Task::Run(job) => {
                        let begun = shared.clock.now();
                        self.run(job, false);
                        let took = shared.clock.now().saturating_duration_since(begun);
                        if took >= SLOW_UPDATE {
                            lock(&shared.state).slow = true;
                        }
                    }
                    Task::Skip(job) => self.skip(job),
                    Task::Probe(delay) => self.probe(delay),
                    Task::Ping => self.ping(),
                    Task::LookUp(jobs) => self.look_up(jobs),
                }
            }
        }));
        if let Err(panic) = ended {
            lock(&shared.state).panic.get_or_insert(panic);
            shared.stop();
            let _ = self.out.send(Message::News);
        }
    }

    /// Runs a line; in an outage as a probe.
    fn run(&self, job: Job<T>, probe: bool) {
        let shared = self.shared;
        if let Some(found) = &job.found {
            // Only now: the client could forget it before it is needed.
            found.remember(shared.client, job.conversation());
        }
        let begun = shared.clock.now();
        let result = shared.client.update_in_batch(&job.update, shared.cancel);
        self.check_found(&job, &result);
        let result = job.with_past(result);
        let reach = Reach::of(&result, || shared.client.has_logged_in());
        let at = shared.clock.wall();
        match (reach, result) {
            (Reach::Missed, Err(error)) => self.hold(job, error, begun),
            (Reach::WrongLogin, Err(error)) => {
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
                // A reason to stop that is not the error of a line takes the outcome of none.
                let unspent = error.requests() == 0 || state.stopped.is_some();
                state.abandoned |= unspent;
                drop(state);
                if !unspent {
                    let reason = "the batch was stopped before this update was written";
                    let target = job.update.target();
                    let outcome = BatchOutcome::skipped(job.line, target, reason, error, at);
                    self.end(job, outcome);
                }
            }
            (reach, result) => {
                let target = job.update.target();
                let mut outcome = BatchOutcome::of(job.line, target, result, at);
                let ended = job.found.as_ref().is_some_and(|found| found.ended);
                outcome.conversation_ended |= ended && outcome.error.is_none();
                self.end(job, outcome);
                if reach == Reach::Answered {
                    self.answered(probe);
                }
            }
        }
    }

    fn skip(&self, job: Job<T>) {
        let reason = "an earlier update of this conversation failed in a way that may pass";
        let unsent = Error::new(ErrorKind::Cancelled, reason);
        let at = self.shared.clock.wall();
        let outcome = BatchOutcome::skipped(job.line, job.update.target(), reason, unsent, at);
        self.end(job, outcome);
    }

    /// Counts whether the id that was looked up for a line was the right one.
    fn check_found(&self, job: &Job<T>, result: &Result<Receipt>) {
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
            state.ready.iter_mut().for_each(|job| job.found = None);
            self.notify(state, notice);
        }
    }

    /// Holds a line back that got no answer. What comes next decides about it.
    fn hold(&self, mut job: Job<T>, error: Error, begun: Instant) {
        let shared = self.shared;
        let mut state = lock(&shared.state);
        job.missed = Some(error.clone());
        state.held.push(job);
        let since = *state.missed_since.get_or_insert(begun);
        if shared.cancel.is_cancelled() {
            return;
        }
        if let Some(breaker) = &mut state.breaker {
            breaker.error = error;
        } else if error.during_login() || state.held.len() >= MAX_HELD {
            self.open(state, since, error);
        }
    }

    fn open(&self, mut state: MutexGuard<'_, State<T>>, since: Instant, error: Error) {
        state.breaker = Some(Breaker::new(since, error.clone()));
        self.notify(state, Notice::OutageBegan { error });
    }

    /// A line was answered, or the platform otherwise: held lines run again or fail. In an outage
    /// only the answer to a probe counts: the other lines may have been answered before it.
    fn answered(&self, probe: bool) {
        let shared = self.shared;
        let mut state = lock(&shared.state);
        if state.breaker.is_some() && !probe {
            return;
        }
        state.look_ahead.answered();
        let ended = state.breaker.take();
        if ended.is_none() && state.held.is_empty() {
            return;
        }
        let failed = state.release(MAX_STRIKES);
        shared.wake(&state);
        match ended {
            Some(breaker) => {
                let after = breaker.lasted(shared.clock.now());
                self.notify(state, Notice::OutageEnded { after });
            }
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

    /// Asks for something that no line needs, where no other line is left.
    fn ping(&self) {
        let shared = self.shared;
        match shared.client.reachable(shared.cancel) {
            Ok(true) => self.answered(false),
            Ok(false) => {
                let state = lock(&shared.state);
                let missed = state.held.last().and_then(|job| job.missed.clone());
                if let (Some(error), Some(since)) = (missed, state.missed_since) {
                    self.open(state, since, error);
                }
            }
            // Cancelled.
            Err(_) => {}
        }
    }

    fn probe(&self, delay: Duration) {
        let shared = self.shared;
        if sleep_unless(shared.clock.as_ref(), delay, Some(shared.cancel)).is_err() {
            return;
        }
        let mut state = lock(&shared.state);
        // A line that is at fault itself must not be the only one that is asked.
        let task = match state.next_untried() {
            Some(job) => Some(state.take(job)),
            None if state.held.is_empty() => None,
            None => Some(Task::Run(state.held.remove(0))),
        };
        let now = shared.clock.now();
        let after = state.breaker.as_ref().map(|breaker| breaker.lasted(now));
        match (task, after) {
            (Some(Task::Run(job)), Some(after)) => {
                let line = job.line;
                self.notify(state, Notice::Probing { line, after });
                self.run(job, true);
            }
            (Some(Task::Skip(job)), _) => {
                drop(state);
                self.skip(job);
            }
            // No line is left to ask with.
            _ => state.breaker = None,
        }
    }

    fn look_up(&self, mut jobs: Vec<Job<T>>) {
        let shared = self.shared;
        let targets: Vec<_> = jobs.iter().map(|job| job.update.target()).collect();
        let answer = ask(shared.client, &targets, Caller::LookUp, Some(shared.cancel));
        let mut state = lock(&shared.state);
        state.looking = false;
        let (again, notice) = state.look_ahead.learn(&answer);
        if let Answer::Found(found) = answer
            && !state.look_ahead.is_off()
        {
            for (job, found) in jobs.iter_mut().zip(found) {
                let ended = found.as_ref().is_some_and(|found| found.ended);
                if ended && shared.client.ended_policy() == EndedPolicy::Warn {
                    warn!(
                        "conversation {} is ended: analytics does not keep attributes written now",
                        job.conversation()
                    );
                }
                job.found = found;
            }
        }
        if again {
            for job in jobs.into_iter().rev() {
                state.unresolved.push_front(job);
            }
        } else {
            state.ready.extend(jobs);
        }
        shared.wake(&state);
        if let Some(notice) = notice {
            self.notify(state, notice);
        }
    }

    /// Records and hands over an outcome before the conversation's next line may begin, so that
    /// those of one conversation keep their order.
    fn end(&self, job: Job<T>, outcome: BatchOutcome) {
        let shared = self.shared;
        let blocks = !outcome.is_final();
        shared.record(&outcome, job.mark);
        let Job {
            tag, update, key, ..
        } = job;
        // No caller listens to a batch that was broken off.
        let _ = self.out.send(Message::Outcome(tag, outcome));
        let conversation = update.target().conversation_id();
        if shared.finished(conversation, key, blocks) {
            let _ = self.out.send(Message::News);
        }
    }

    /// Notices keep their order, since they are made under the lock. They are not sent under it:
    /// the channel may be full, and its reader may wait for the lock.
    fn notify(&self, mut state: MutexGuard<'_, State<T>>, notice: Notice) {
        state.notices.push_back(notice);
        drop(state);
        let _ = self.out.send(Message::News);
    }
}
