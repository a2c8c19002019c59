//! The machine as a table, state by event, and as a model: every sequence of events up to the
//! bounds, played against a platform that knows what really happened.

use super::*;

const PLAIN: Rules = Rules {
    locked: true,
    computed: false,
    unique: false,
    if_version: false,
    max_attempts: 3,
    max_conflicts: 2,
};

fn in_state(rules: Rules, state: State, may_have_applied: bool) -> Machine {
    Machine {
        state,
        may_have_applied,
        ..Machine::new(rules)
    }
}

const FAILED: Step = Step::Done(End::Failed(Cause::Last));

const THROTTLED: Wait = Wait::Throttled {
    retry_after: None,
    limited: true,
};

const fn throttled(may: bool) -> Event {
    Event::Failed(Failure::Throttled {
        retry_after: None,
        may,
    })
}

/// Every event, with what the table below calls it.
const EVENTS: [(&str, Event); 21] = [
    ("begun known", Event::Begun { known: true }),
    ("begun unknown", Event::Begun { known: false }),
    (
        "read",
        Event::ReadDone {
            in_place: false,
            versioned: true,
        },
    ),
    (
        "read nothing",
        Event::ReadDone {
            in_place: false,
            versioned: false,
        },
    ),
    (
        "read in place",
        Event::ReadDone {
            in_place: true,
            versioned: true,
        },
    ),
    (
        "read in place, no version",
        Event::ReadDone {
            in_place: true,
            versioned: false,
        },
    ),
    ("ready", Event::Ready { versioned: true }),
    ("ready, no version", Event::Ready { versioned: false }),
    ("unchanged", Event::Unchanged),
    ("written", Event::Written),
    ("conflict", Event::Conflict),
    ("stale", Event::Stale),
    ("not sent", Event::Failed(Failure::Transient { may: false })),
    ("lost", Event::Failed(Failure::Transient { may: true })),
    ("throttled", throttled(false)),
    ("throttled, may", throttled(true)),
    ("refused", Event::Failed(Failure::Final { may: false })),
    ("refused, may", Event::Failed(Failure::Final { may: true })),
    ("waited", Event::Waited),
    ("out of time", Event::OutOfTime),
    ("cancelled", Event::Cancelled),
];

fn word(step: Step) -> String {
    match step {
        Step::Read => "read".into(),
        Step::Evaluate => "evaluate".into(),
        Step::Write => "write".into(),
        Step::Wait(Wait::Backoff { attempts }) => format!("back off {attempts}"),
        Step::Wait(Wait::Conflict { before, .. }) => format!("wait conflict {before}"),
        Step::Wait(Wait::Throttled { .. }) => "wait throttled".into(),
        FAILED => "fail".into(),
        Step::Done(End::Failed(Cause::Write)) => "fail with the write".into(),
        Step::Done(End::Failed(Cause::Conflict)) => "fail with a conflict".into(),
        Step::Done(end) => format!("{end:?}"),
    }
}

/// What each state answers to the events that are not "fail".
#[test]
fn machine_every_state_by_every_event() {
    let computed = Rules {
        computed: true,
        ..PLAIN
    };
    let unique = Rules {
        unique: true,
        ..computed
    };
    let demanded = Rules {
        if_version: true,
        ..PLAIN
    };
    let unlocked = Rules {
        locked: false,
        ..PLAIN
    };
    let last = Why::Conflict { last: true };
    let conflict = Why::Conflict { last: false };
    let (sure, doubt) = (false, true);
    let reading = |then: &'static [(&str, &str)]| {
        let common = [
            ("not sent", "back off 1"),
            ("lost", "back off 1"),
            ("throttled", "wait throttled"),
            ("throttled, may", "wait throttled"),
        ];
        Vec::from_iter(common.into_iter().chain(then.iter().copied()))
    };
    let writing = |conflict: &'static str| {
        let mut all = vec![
            ("written", "Applied"),
            ("stale", "read"),
            ("not sent", "back off 1"),
            ("lost", "back off 1"),
            ("throttled", "wait throttled"),
            ("throttled, may", "wait throttled"),
        ];
        all.push(("conflict", conflict));
        all
    };
    let read_on = &[
        ("read", "evaluate"),
        ("read nothing", "evaluate"),
        ("read in place", "evaluate"),
        ("read in place, no version", "evaluate"),
    ];
    let settle = &[
        ("read", "evaluate"),
        ("read nothing", "evaluate"),
        ("read in place", "AlreadyApplied"),
        ("read in place, no version", "AlreadyApplied"),
    ];
    type Row = (&'static str, Machine, Vec<(&'static str, &'static str)>);
    let rows: Vec<Row> = vec![
        (
            "start",
            in_state(PLAIN, State::Start, sure),
            vec![("begun known", "write"), ("begun unknown", "read")],
        ),
        (
            "reading",
            in_state(PLAIN, State::Reading(Why::Base), sure),
            reading(read_on),
        ),
        (
            "reading after a conflict",
            in_state(PLAIN, State::Reading(conflict), sure),
            reading(read_on),
        ),
        (
            "reading after a conflict, in doubt",
            in_state(PLAIN, State::Reading(conflict), doubt),
            reading(settle),
        ),
        (
            "reading after the last conflict, in doubt",
            in_state(PLAIN, State::Reading(last), doubt),
            reading(&[
                ("read", "fail with the write"),
                ("read nothing", "fail with the write"),
                ("read in place", "AlreadyApplied"),
                ("read in place, no version", "AlreadyApplied"),
            ]),
        ),
        (
            "reading after a conflict, in doubt, computed",
            in_state(computed, State::Reading(conflict), doubt),
            reading(&[
                ("read", "fail with the write"),
                ("read nothing", "fail with the write"),
                ("read in place", "fail with the write"),
                ("read in place, no version", "fail with the write"),
            ]),
        ),
        (
            "reading after a conflict, in doubt, computed and unique",
            in_state(unique, State::Reading(conflict), doubt),
            reading(&[
                ("read", "fail with the write"),
                ("read nothing", "fail with the write"),
                ("read in place", "AlreadyApplied"),
                ("read in place, no version", "AlreadyApplied"),
            ]),
        ),
        (
            "reading after a lost write without a version",
            in_state(PLAIN, State::Reading(Why::Lost), doubt),
            {
                let mut row = reading(settle);
                row.extend([
                    ("refused", "fail with the write"),
                    ("refused, may", "fail with the write"),
                    ("out of time", "fail with the write"),
                ]);
                row
            },
        ),
        (
            "reading after a lost write without a version, computed",
            in_state(computed, State::Reading(Why::Lost), doubt),
            {
                let mut row = reading(&[
                    ("read", "fail with a conflict"),
                    ("read nothing", "write"),
                    ("read in place", "fail with a conflict"),
                    ("read in place, no version", "write"),
                ]);
                row.extend([
                    ("refused", "fail with the write"),
                    ("refused, may", "fail with the write"),
                    ("out of time", "fail with the write"),
                ]);
                row
            },
        ),
        (
            "evaluating",
            in_state(PLAIN, State::Evaluating(Why::Base), sure),
            vec![
                ("ready", "write"),
                ("ready, no version", "write"),
                ("unchanged", "Unchanged"),
            ],
        ),
        (
            "writing",
            in_state(PLAIN, State::Writing, sure),
            writing("wait conflict 0"),
        ),
        (
            "writing, in doubt",
            in_state(PLAIN, State::Writing, doubt),
            writing("wait conflict 0"),
        ),
        (
            "writing with a version demanded",
            in_state(demanded, State::Writing, sure),
            writing("fail"),
        ),
        (
            "writing with a version demanded, in doubt",
            in_state(demanded, State::Writing, doubt),
            writing("fail"),
        ),
        (
            "writing what was computed",
            in_state(computed, State::Writing, sure),
            writing("wait conflict 0"),
        ),
        (
            "writing what was computed, in doubt",
            in_state(computed, State::Writing, doubt),
            writing("fail"),
        ),
        (
            "writing what is unique, in doubt",
            in_state(unique, State::Writing, doubt),
            writing("wait conflict 0"),
        ),
        (
            "writing without a lock",
            in_state(unlocked, State::Writing, doubt),
            writing("wait conflict 0"),
        ),
        (
            "waiting to read",
            in_state(
                PLAIN,
                State::Waiting(THROTTLED, Next::Read(Why::Lost)),
                doubt,
            ),
            vec![("waited", "read")],
        ),
        (
            "waiting to read again",
            in_state(
                PLAIN,
                State::Waiting(THROTTLED, Next::ReadAgain(Why::Base)),
                sure,
            ),
            vec![("waited", "read")],
        ),
        (
            "waiting to write",
            in_state(
                PLAIN,
                State::Waiting(Wait::Backoff { attempts: 1 }, Next::Write),
                sure,
            ),
            vec![("waited", "write")],
        ),
        (
            "waiting after a conflict",
            in_state(
                PLAIN,
                State::Waiting(
                    Wait::Conflict {
                        before: 0,
                        locked: true,
                    },
                    Next::Read(conflict),
                ),
                sure,
            ),
            vec![("waited", "read")],
        ),
        (
            "waiting after a conflict, in doubt",
            in_state(
                PLAIN,
                State::Waiting(
                    Wait::Conflict {
                        before: 0,
                        locked: true,
                    },
                    Next::Read(conflict),
                ),
                doubt,
            ),
            vec![("waited", "read"), ("out of time", "read")],
        ),
        ("ended", in_state(PLAIN, State::Ended, sure), vec![]),
    ];
    for (state, machine, answers) in rows {
        for (name, event) in EVENTS {
            let step = word(machine.clone().next(event));
            let row = answers.iter().find(|(event, _)| *event == name);
            let expected = row.map_or("fail", |(_, step)| step);
            assert_eq!(step, expected, "{state}, {name}");
        }
    }
}

#[test]
fn machine_write_without_a_version_is_looked_up_before_it_is_sent_again() {
    let mut machine = in_state(PLAIN, State::Evaluating(Why::Base), false);
    let steps = [
        (Event::Ready { versioned: false }, "write"),
        (
            Event::Failed(Failure::Transient { may: false }),
            "back off 1",
        ),
        (Event::Waited, "write"),
        (
            Event::Failed(Failure::Transient { may: true }),
            "back off 2",
        ),
        (Event::Waited, "read"),
        (
            Event::ReadDone {
                in_place: false,
                versioned: false,
            },
            "evaluate",
        ),
        (Event::Ready { versioned: false }, "write"),
        // The reads in between do not make it another request.
        (Event::Failed(Failure::Transient { may: true }), "fail"),
    ];
    for (event, step) in steps {
        assert_eq!(word(machine.next(event)), step, "{event:?}");
    }
}

/// What may come of one request at the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It takes effect, and the answer arrives (whatever became of its body).
    Done,
    /// It takes effect, and no answer arrives, or one that leaves it open: a reset, a timeout,
    /// 408, 500, 502, 503, 504.
    DoneUnseen,
    /// It takes effect later, after a request that comes in between.
    Delayed,
    /// It does not, and that is not known.
    LostUnseen,
    /// It does not, and that is known: refused, connect timeout.
    NotSent,
    /// 429.
    Throttled,
    /// A 503 with `Retry-After`: it takes effect, or it does not, and that is not known.
    DoneThrottled,
    LostThrottled,
    /// What was remembered of the target is gone: 404, 409, 410.
    Stale,
    /// 400, 401 after a renewed token, 403, 404, 413.
    Refused,
    /// A 5xx that is not worth another try, and leaves it open.
    RefusedUnseen,
    OutOfTime,
    Cancelled,
}

const FATES: [Fate; 13] = [
    Fate::Done,
    Fate::DoneUnseen,
    Fate::Delayed,
    Fate::LostUnseen,
    Fate::NotSent,
    Fate::Throttled,
    Fate::DoneThrottled,
    Fate::LostThrottled,
    Fate::Stale,
    Fate::Refused,
    Fate::RefusedUnseen,
    Fate::OutOfTime,
    Fate::Cancelled,
];

/// The platform's truth: who wrote what, in order. `0` is the start, `me(n)` our n-th value.
#[derive(Debug, Clone, PartialEq, Eq)]
struct World {
    /// Counts every write that took effect.
    version: u32,
    /// The value in place: somebody's, or one of ours.
    value: Value,
    ours_applied: u32,
    /// A write of ours that is held up on the way, with the version it names.
    delayed: Option<(Option<u32>, Value)>,
    /// Somebody else writes at most so often.
    others_left: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Nothing,
    Theirs(u32),
    /// What we want, whoever wrote it.
    Wanted,
}

#[derive(Debug, Clone)]
struct Play {
    machine: Machine,
    world: World,
    rules: Rules,
    /// The target has a version before the first write.
    starts_versioned: bool,
    read_version: Option<u32>,
    read_value: Value,
    /// What the write needs was remembered, and may be gone.
    remembered: bool,
    waits: u32,
    left: u32,
}

#[derive(Default)]
struct Tally {
    sequences: u64,
    ends: std::collections::BTreeMap<String, u64>,
}

impl Play {
    fn version_to_read(&self) -> Option<u32> {
        (self.starts_versioned || self.world.version > 0).then_some(self.world.version)
    }

    /// Our write reaches the platform. Whether it took effect.
    fn apply(&mut self, version: Option<u32>, value: Value) -> bool {
        let matches =
            !self.rules.locked || version.is_none() || version == Some(self.world.version);
        if matches {
            self.world.version += 1;
            self.world.value = value;
            self.world.ours_applied += 1;
        }
        matches
    }

    fn explore(self, step: Step, tally: &mut Tally) {
        match step {
            Step::Done(end) => {
                tally.sequences += 1;
                *tally.ends.entry(format!("{end:?}")).or_default() += 1;
                self.check(end);
            }
            Step::Evaluate => {
                let mut next = self.clone();
                let versioned = self.read_version.is_some();
                let step = next.machine.next(Event::Ready { versioned });
                next.explore(step, tally);
                // What may be in place already is compared when it is read.
                if !self.machine.may_have_applied() {
                    let mut unchanged = self.clone();
                    let step = unchanged.machine.next(Event::Unchanged);
                    unchanged.explore(step, tally);
                }
            }
            Step::Wait(_) => {
                // Others write during waits, and what was held up lands.
                for other in [false, true] {
                    for lands in [false, true] {
                        let mut next = self.clone();
                        if lands {
                            let Some((version, value)) = next.world.delayed.take() else {
                                continue;
                            };
                            next.apply(version, value);
                        }
                        if other {
                            if next.world.others_left == 0 {
                                continue;
                            }
                            next.world.others_left -= 1;
                            next.world.version += 1;
                            // The very value that we want, or another one.
                            for value in [Value::Wanted, Value::Theirs(next.world.version)] {
                                let mut next = next.clone();
                                next.world.value = value;
                                next.wait_over(tally);
                            }
                        } else {
                            next.wait_over(tally);
                        }
                    }
                }
                let mut late = self.clone();
                let step = late.machine.next(Event::OutOfTime);
                late.explore(step, tally);
            }
            Step::Read | Step::Write if self.left == 0 => {
                let mut next = self.clone();
                let step = next.machine.next(Event::Cancelled);
                next.explore(step, tally);
            }
            Step::Read => {
                for fate in FATES {
                    let mut next = self.clone();
                    next.left -= 1;
                    let event = match fate {
                        Fate::Done => {
                            next.read_version = next.version_to_read();
                            next.read_value = next.world.value;
                            Event::ReadDone {
                                in_place: next.machine.may_have_applied()
                                    && next.world.value == Value::Wanted,
                                versioned: next.read_version.is_some(),
                            }
                        }
                        Fate::DoneUnseen => Event::Failed(Failure::Transient { may: true }),
                        Fate::NotSent => Event::Failed(Failure::Transient { may: false }),
                        Fate::Throttled => throttled(false),
                        Fate::DoneThrottled => throttled(true),
                        Fate::Refused => Event::Failed(Failure::Final { may: false }),
                        Fate::OutOfTime => Event::OutOfTime,
                        Fate::Cancelled => Event::Cancelled,
                        Fate::Delayed
                        | Fate::LostUnseen
                        | Fate::LostThrottled
                        | Fate::Stale
                        | Fate::RefusedUnseen => continue,
                    };
                    let step = next.machine.next(event);
                    next.explore(step, tally);
                }
            }
            Step::Write => {
                for fate in FATES {
                    let mut next = self.clone();
                    next.left -= 1;
                    let version = next.read_version;
                    let event = match fate {
                        Fate::Done
                        | Fate::DoneUnseen
                        | Fate::DoneThrottled
                        | Fate::RefusedUnseen => {
                            let applied = next.apply(version, Value::Wanted);
                            match (applied, fate) {
                                (true, Fate::Done) => Event::Written,
                                (false, Fate::Done) => Event::Conflict,
                                (_, Fate::RefusedUnseen) => {
                                    Event::Failed(Failure::Final { may: true })
                                }
                                (_, Fate::DoneThrottled) => throttled(true),
                                _ => Event::Failed(Failure::Transient { may: true }),
                            }
                        }
                        Fate::Delayed if next.world.delayed.is_none() => {
                            next.world.delayed = Some((version, Value::Wanted));
                            Event::Failed(Failure::Transient { may: true })
                        }
                        Fate::Delayed => continue,
                        Fate::LostUnseen => Event::Failed(Failure::Transient { may: true }),
                        Fate::LostThrottled => throttled(true),
                        // Only what was remembered can be, and only once.
                        Fate::Stale if !next.remembered => continue,
                        Fate::Stale => {
                            next.remembered = false;
                            Event::Stale
                        }
                        Fate::NotSent => Event::Failed(Failure::Transient { may: false }),
                        Fate::Throttled => throttled(false),
                        Fate::Refused => Event::Failed(Failure::Final { may: false }),
                        Fate::OutOfTime => Event::OutOfTime,
                        Fate::Cancelled => Event::Cancelled,
                    };
                    let step = next.machine.next(event);
                    next.explore(step, tally);
                }
            }
        }
    }

    fn wait_over(mut self, tally: &mut Tally) {
        self.waits += 1;
        let step = self.machine.next(Event::Waited);
        self.explore(step, tally);
    }

    /// What design promises of every end.
    fn check(&self, end: End) {
        let applied = self.world.ours_applied;
        match end {
            End::Applied => assert!(applied >= 1, "{self:?}"),
            End::AlreadyApplied => {
                // In place when it was read, and not by chance where that would lie.
                assert_eq!(self.read_value, Value::Wanted, "{self:?}");
                assert!(!self.rules.computed || self.rules.unique, "{self:?}");
                assert!(!self.rules.if_version, "{self:?}");
            }
            End::Unchanged => assert_eq!(applied, 0, "{self:?}"),
            End::Failed(_) => {
                assert!(
                    applied == 0 || self.machine.may_have_applied(),
                    "not applied, it says, and it was: {self:?}"
                );
            }
        }
        // A computed value is written at most once, unless nothing ever locked it.
        if self.rules.computed && self.rules.locked && self.starts_versioned {
            assert!(applied <= 1, "computed twice: {self:?}");
        }
    }
}

#[test]
fn machine_every_sequence_of_events_keeps_its_promises() {
    let mut all = 0;
    for locked in [true, false] {
        for computed in [false, true] {
            for unique in [false, true] {
                for if_version in [false, true] {
                    for starts_versioned in [true, false] {
                        let meaningless = unique && !computed
                            || if_version && (computed || !locked || !starts_versioned)
                            || !locked && !starts_versioned;
                        if meaningless {
                            continue;
                        }
                        let rules = Rules {
                            locked,
                            computed,
                            unique,
                            if_version,
                            max_attempts: 3,
                            max_conflicts: 1,
                        };
                        let mut play = Play {
                            machine: Machine::new(rules),
                            world: World {
                                version: 0,
                                value: Value::Nothing,
                                ours_applied: 0,
                                delayed: None,
                                others_left: 1,
                            },
                            rules,
                            starts_versioned,
                            read_version: starts_versioned.then_some(0),
                            read_value: Value::Nothing,
                            remembered: !locked,
                            waits: 0,
                            left: 5,
                        };
                        let known = if_version || !locked;
                        let step = play.machine.next(Event::Begun { known });
                        let mut tally = Tally::default();
                        play.explore(step, &mut tally);
                        println!("{rules:?}, versioned {starts_versioned}: {:?}", tally.ends);
                        all += tally.sequences;
                    }
                }
            }
        }
    }
    println!("{all} sequences of events");
    assert!(all > 100_000, "{all}");
}
