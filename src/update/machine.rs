//! The rules of one update, as a state machine without I/O, clock or locks: it is fed with what
//! happened, and answers what to do next. `run` and the retry loop of the session do it.
//!
//! | result of a write | event | locked target | unlocked target |
//! |---|---|---|---|
//! | 2xx | `Written` | `Applied`, whatever became of the body; not sent again | the same |
//! | conflict | `Conflict` | wait, read, evaluate, write: up to `max_conflicts` | wait, write again |
//! | the same, an earlier write ambiguous | | wait, read; in place → `AlreadyApplied`, else as above; computed → `Conflict` | as above |
//! | the same, `if_version` | | final, ambiguous or not | – |
//! | not sent | `Failed(Transient)` | wait, write again | the same |
//! | no answer, 408, 500, 502, 503, 504 | `Failed(Transient { may })` | ambiguous; wait, write again under the same version | ambiguous; wait, write again |
//! | the same, no version yet | | ambiguous; wait, read before it is written again | – |
//! | 429 | `Failed(Throttled)` | wait as asked, write again; not an attempt | the same |
//! | 503 with `Retry-After` | `Failed(Throttled { may })` | the same, and ambiguous as above | the same |
//! | 404, 409, 410 for what was remembered | `Stale` | – | forget it, read, write |
//! | any other 4xx, 3xx | `Failed(Final)` | final | final |
//! | any other 5xx but 501, 505 | `Failed(Final { may })` | final, and ambiguous | the same |
//!
//! A 401 is not seen here: the session sends the request again with a new token.
//!
//! Where a value is computed, or a version demanded, to find the value in place proves nothing:
//! another writer may have written the same. Only a value that the caller calls unique does.

use crate::session::retry::{Failure, Wait};

/// What the rules depend on, fixed for one update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rules {
    /// A write carries a version that a competing write makes stale.
    pub(crate) locked: bool,
    /// The values depend on what was read: computing them again could count twice.
    pub(crate) computed: bool,
    /// Only this call can have written these values.
    pub(crate) unique: bool,
    /// The caller demands a version.
    pub(crate) if_version: bool,
    pub(crate) max_attempts: u32,
    pub(crate) max_conflicts: u32,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The update begins, and what the write needs is known or not.
    Begun { known: bool },
    /// The target was read. `in_place`: it holds every wanted value. `versioned`: it has a version.
    ReadDone { in_place: bool, versioned: bool },
    /// What was read allows the write. `versioned`: it is locked with what was read.
    Ready { versioned: bool },
    /// There is nothing to change.
    Unchanged,
    /// The write was confirmed.
    Written,
    /// The write met a competing one.
    Conflict,
    /// The write was based on something remembered that is gone.
    Stale,
    /// A request failed, or what was read forbids the write.
    Failed(Failure),
    /// The wait is over.
    Waited,
    /// No time is left for the wait or request.
    OutOfTime,
    /// The caller gave up.
    Cancelled,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read the target.
    Read,
    /// See what the read means: guard, compute, compare.
    Evaluate,
    /// Send the write, on top of what is known.
    Write,
    /// Wait before the next step.
    Wait(Wait),
    Done(End),
}

/// How the update ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Applied,
    AlreadyApplied,
    Unchanged,
    Failed(Cause),
}

/// Which failure the caller gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The last one.
    Last,
    /// That of the write: the read that was to settle it failed, too.
    Write,
    /// Another writer wrote after a write of this update whose outcome is unknown.
    Conflict,
}

/// Why the target is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// To have something to base the write on.
    Base,
    /// A write met a competing one. `last`: no further write is allowed.
    Conflict { last: bool },
    /// A write without a version ended without a clear answer, and would replace what came since.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Reading(Why),
    Evaluating(Why),
    Writing,
    Waiting(Wait, Next),
    Ended,
}

/// What comes after a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Read(Why),
    /// The same read, whose failures so far count.
    ReadAgain(Why),
    Write,
}

/// The state of one update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    rules: Rules,
    state: State,
    /// A write may be in place although no answer says so: the one place that knows.
    may_have_applied: bool,
    /// The write is locked with a version. Without one it replaces whatever is there.
    versioned: bool,
    /// How often the read under way failed.
    failed_reads: u32,
    /// How often the write under way failed; reads in between do not change it.
    failed_writes: u32,
    conflicts: u32,
}

impl Machine {
    pub(crate) fn new(rules: Rules) -> Machine {
        Machine {
            rules,
            state: State::Start,
            may_have_applied: false,
            versioned: true,
            failed_reads: 0,
            failed_writes: 0,
            conflicts: 0,
        }
    }

    /// True if a write of this update may be in place although no answer says so.
    pub(crate) fn may_have_applied(&self) -> bool {
        self.may_have_applied
    }

    /// True while the end of a write is awaited.
    pub(crate) fn is_writing(&self) -> bool {
        self.state == State::Writing
    }

    /// Code of the caller's panicked: before the answer to a write was looked at, perhaps, or after
    /// the update had ended, while its values were read back.
    pub(crate) fn panicked(&mut self) {
        self.may_have_applied |= matches!(self.state, State::Writing | State::Ended);
        self.state = State::Ended;
    }

    /// What to do after `event`. An event that the state does not expect ends the update: only a
    /// defect of the driver could bring one.
    pub(crate) fn next(&mut self, event: Event) -> Step {
        match (self.state, event) {
            (State::Start, Event::Begun { known: true }) => self.write(),
            (State::Start, Event::Begun { known: false }) => self.read(Why::Base),

            (
                State::Reading(why),
                Event::ReadDone {
                    in_place,
                    versioned,
                },
            ) => self.read_done(why, in_place, versioned),
            (State::Reading(why), Event::Failed(failure)) => {
                match failure.wait(&mut self.failed_reads, self.rules.max_attempts) {
                    Some(wait) => self.wait(wait, Next::ReadAgain(why)),
                    None => self.read_failed(why),
                }
            }
            (State::Reading(why), Event::OutOfTime) => self.read_failed(why),

            (State::Evaluating(why), Event::Ready { versioned }) => {
                self.versioned = versioned;
                if why != Why::Lost {
                    self.failed_writes = 0;
                }
                self.write()
            }
            (State::Evaluating(_), Event::Unchanged) => self.end(End::Unchanged),

            (State::Writing, Event::Written) => self.end(End::Applied),
            (State::Writing, Event::Conflict) => self.conflict(),
            (State::Writing, Event::Stale) => self.read(Why::Base),
            (State::Writing, Event::Failed(failure)) => {
                self.may_have_applied |= failure.may();
                // A write without a version would replace what came since.
                let next = if failure.may() && self.rules.locked && !self.versioned {
                    Next::Read(Why::Lost)
                } else {
                    Next::Write
                };
                match failure.wait(&mut self.failed_writes, self.rules.max_attempts) {
                    Some(wait) => self.wait(wait, next),
                    None => self.fail(Cause::Last),
                }
            }

            (State::Waiting(_, Next::Read(why)), Event::Waited) => self.read(why),
            (State::Waiting(_, Next::ReadAgain(why)), Event::Waited) => {
                self.state = State::Reading(why);
                Step::Read
            }
            (State::Waiting(_, Next::Write), Event::Waited) => self.write(),
            // There is no time to write again, but perhaps to see what is in place.
            (State::Waiting(Wait::Conflict { .. }, Next::Read(_)), Event::OutOfTime)
                if self.may_have_applied =>
            {
                self.read(Why::Conflict { last: true })
            }

            _ => self.fail(Cause::Last),
        }
    }

    fn read_done(&mut self, why: Why, in_place: bool, versioned: bool) -> Step {
        let proves = self.rules.unique || !self.rules.computed && !self.rules.if_version;
        if self.may_have_applied && in_place && proves {
            return self.end(End::AlreadyApplied);
        }
        let settles_nothing = self.may_have_applied && self.rules.computed;
        match why {
            Why::Conflict { last } if last || settles_nothing => self.fail(Cause::Write),
            // What was computed from nothing still holds while there is nothing.
            Why::Lost if self.rules.computed && !versioned => self.write(),
            Why::Lost if self.rules.computed => self.fail(Cause::Conflict),
            _ => {
                self.state = State::Evaluating(why);
                Step::Evaluate
            }
        }
    }

    fn read_failed(&mut self, why: Why) -> Step {
        self.fail(if why == Why::Lost {
            Cause::Write
        } else {
            Cause::Last
        })
    }

    fn conflict(&mut self) -> Step {
        let before = self.conflicts;
        self.conflicts += 1;
        self.failed_writes = 0;
        let ambiguous = self.may_have_applied;
        let hopeless = match self.rules {
            Rules { locked: false, .. } => false,
            Rules {
                if_version: true, ..
            } => true,
            Rules {
                computed, unique, ..
            } => ambiguous && computed && !unique,
        };
        if hopeless {
            self.fail(Cause::Last)
        } else if before < self.rules.max_conflicts {
            let next = if self.rules.locked {
                Next::Read(Why::Conflict { last: false })
            } else {
                Next::Write
            };
            let locked = self.rules.locked;
            self.wait(Wait::Conflict { before, locked }, next)
        } else if self.rules.locked && ambiguous {
            self.read(Why::Conflict { last: true })
        } else {
            self.fail(Cause::Last)
        }
    }

    fn read(&mut self, why: Why) -> Step {
        self.failed_reads = 0;
        self.state = State::Reading(why);
        Step::Read
    }

    fn write(&mut self) -> Step {
        self.state = State::Writing;
        Step::Write
    }

    fn wait(&mut self, wait: Wait, next: Next) -> Step {
        self.state = State::Waiting(wait, next);
        Step::Wait(wait)
    }

    fn fail(&mut self, cause: Cause) -> Step {
        self.end(End::Failed(cause))
    }

    fn end(&mut self, end: End) -> Step {
        self.state = State::Ended;
        Step::Done(end)
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
