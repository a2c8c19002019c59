//! One schedule: a few clients, as separate processes would be, other writers and a platform, with
//! faults and interruptions drawn from a seed. Nothing runs in parallel: whatever happens "at the
//! same time" happens inside of a client's request, wait, audit record or hook, nested. A call of
//! the same client in there runs on a thread of its own, for whose end the first one waits; so it
//! is only made where it has not to wait for the first one's turn or login.
//!
//! What is seen on the way is checked here; what only the end shows, in `verdict`. It is longer than
//! other files, since what a call knows, does and may do is one story.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use genesys_attributes::audit::{AuditMode, AuditPhase, AuditRecord, AuditSink};
use genesys_attributes::clock::{Clock, SystemClock};
use genesys_attributes::error::Sent;
use genesys_attributes::http::{Method, Request, Response, Transport, TransportError};
use genesys_attributes::{
    Attributes, Cancel, Client, Credentials, Edit, Error, ErrorKind, Metrics, RateLimit, Receipt,
    Region, RetryPolicy, Snapshot, Status, Subscription, Update, UpdateEvent, UpdateOptions,
};
use serde_json::Value;

use crate::answer::Answer;
use crate::cells::{Number, Random, Shared};
use crate::platform::{COUNTER, Conversation, Platform, Seen, Store, Style, Write, count_in};

/// Nanoseconds since the start of the schedule.
pub type Time = u64;
pub const MS: Time = 1_000_000;
pub const SECOND: Time = 1_000 * MS;
/// The longest request, by the limits of its phases.
const LONGEST: Time = 65 * SECOND;
/// What an early refresh may cost.
const EARLY: Time = 2 * SECOND;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Schedule>>> = const { RefCell::new(None) };
}

fn current() -> Arc<Schedule> {
    CURRENT.with_borrow(|current| current.clone().expect("a schedule runs"))
}

/// What is the same for the whole schedule.
#[derive(Debug)]
pub struct Knobs {
    /// In percent of the requests.
    faults: u64,
    login_faults: u64,
    /// In percent of the places where something else may happen.
    interludes: u64,
    pub rate: Option<u32>,
    pub deadline: Time,
    attempts: u32,
    conflicts: u32,
    pub max_pause: u64,
    pub audit: Option<AuditMode>,
    token_life: u64,
    clients: usize,
}

/// What a call is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Set,
    Count,
    Unique,
    Edit,
    Nothing,
}

/// One call of `update` or `update_with`, and all that is known of it.
#[derive(Debug)]
pub struct Call {
    pub client: usize,
    pub conversation: usize,
    pub store: Store,
    pub who: &'static str,
    pub work: Work,
    pub unlocked: bool,
    pub demanded: bool,
    pub verify: bool,
    /// Made from inside of an audit sink, which gets no record of it.
    pub in_sink: bool,
    /// Made from inside of another update of the same client, on its thread.
    pub reentrant: bool,
    pub wanted: Attributes,
    pub removed: Vec<String>,
    cancel: Option<Cancel>,
    begun: Time,
    /// No pause held the client when it began.
    unpaused: bool,
    first_send: Option<Time>,
    api_began: Option<Time>,
    pub api_ended: Time,
    pub requests: u32,
    pub attempts: u32,
    pub reads: u32,
    pub read: Option<Seen>,
    /// What the answer under way shows, should it arrive.
    shown: Option<Seen>,
    /// Where a write showed up in the log.
    pub applied: Vec<usize>,
    /// A write ended without a clear answer.
    pub doubt: bool,
    /// The write that was sent last.
    sent: Option<Write>,
    pub panicked: bool,
    /// Somebody else's doing kept it beyond the limit of its request or wait.
    stolen: Time,
    early: Time,
    in_turn: bool,
    /// Intents that were recorded, and those that could not be as well.
    pub intents: u32,
    pub intents_tried: u32,
    pub outcomes: Vec<Status>,
    pub audit_id: Option<String>,
    pub audit_failed: bool,
    pub hook_panicked: bool,
    pub events: u32,
    pub sequence: Option<u64>,
    /// The version in the answer to the last write.
    pub told: Option<String>,
    pub result: Option<Result<Receipt, Error>>,
}

/// What one client must know and count.
#[derive(Debug, Default)]
pub struct Truth {
    pub calls: u64,
    pub requests: u64,
    pub conflicts: u64,
    pub rate_limited: u64,
    pub server_errors: u64,
    pub transport_errors: u64,
    pub logins: u64,
    pub hook_panics: u64,
    pub audit_failures: u64,
    /// When requests of the API came to the platform.
    arrivals: Vec<Time>,
    paused_until: Time,
    login_paused_until: Time,
    /// The longest that the client may pause by itself, too.
    perhaps_paused_until: Time,
    logging_in: bool,
    /// The token that was issued last, and until when the client can count on it.
    token: Option<(u64, Time)>,
    refused: Vec<u64>,
    /// The version that a write without a read may carry, by conversation.
    told: Vec<Option<String>>,
    /// Versions told by writes met a conflict.
    distrust: Vec<bool>,
    /// When the customer of a conversation was found.
    found: Vec<Option<Time>>,
}

pub struct Schedule {
    pub random: Random,
    pub knobs: Knobs,
    now: Number,
    start: Instant,
    pub platform: Shared<Platform>,
    clients: Shared<Vec<Client>>,
    pub subscriptions: Mutex<Vec<Subscription>>,
    pub truths: Shared<Vec<Truth>>,
    pub calls: Shared<Vec<Call>>,
    /// The calls under way, from the outermost to the one that runs.
    stack: Shared<Vec<usize>>,
    delayed: Shared<Vec<Write>>,
    left: Number,
    /// Tokens that the platform takes, by client: serial number and end.
    tokens: Shared<Vec<(u64, Time)>>,
    serial: Number,
    /// The running thread is in an audit sink.
    in_sink: Number,
    pub violation: Shared<Option<String>>,
    trace: Option<Shared<Vec<String>>>,
    tally: Shared<Vec<Counted>>,
}

/// A group and what happened.
pub type Counted = (&'static str, &'static str);

/// What came of a schedule.
pub struct Report {
    pub violation: Option<String>,
    pub trace: Vec<String>,
    pub tally: Vec<Counted>,
}

#[derive(Debug)]
struct Line(usize);

impl Transport for Line {
    fn send(&self, request: &Request) -> Result<Response, TransportError> {
        current().send(self.0, request)
    }
}

#[derive(Debug)]
struct Simulated;

impl Clock for Simulated {
    fn now(&self) -> Instant {
        let schedule = current();
        schedule.start + Duration::from_nanos(schedule.now.get())
    }

    fn wall(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_767_225_600) + Duration::from_nanos(current().now.get())
    }

    fn sleep(&self, duration: Duration) {
        current().sleep(duration.as_nanos() as Time);
    }
}

struct Trail(usize);

impl AuditSink for Trail {
    fn record(&self, record: &AuditRecord) -> std::io::Result<()> {
        current().recorded(self.0, record)
    }
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answer,
    /// Answered so, and it took effect or not.
    Status(u16, Option<u64>, bool),
    NotSent,
    Reset(Effect),
    TimedOut(Effect),
    Cut,
    Html,
    Revoked,
    Cancelled,
    Panic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Now,
    Later,
    Never,
}

/// Runs the schedule of a seed.
pub fn run(seed: u64, traced: bool) -> Report {
    let schedule = Arc::new(Schedule::new(seed, traced));
    CURRENT.set(Some(schedule.clone()));
    schedule.open();
    schedule.play();
    crate::verdict::check(&schedule);
    schedule.subscriptions.lock().unwrap().clear();
    schedule.clients.take();
    CURRENT.set(None);
    let trace = schedule.trace.as_ref().map(Shared::take);
    Report {
        violation: schedule.violation.take(),
        trace: trace.unwrap_or_default(),
        tally: schedule.tally.take(),
    }
}

impl Schedule {
    fn new(seed: u64, traced: bool) -> Schedule {
        let random = Random::new(seed);
        let knobs = Knobs {
            faults: random.of(&[0, 10, 25, 50]),
            login_faults: random.of(&[0, 0, 20, 60]),
            interludes: random.of(&[5, 15, 30]),
            rate: random.of(&[None, None, None, Some(300), Some(2), Some(5)]),
            deadline: random.of(&[2, 5, 20, 100]) * SECOND,
            attempts: random.of(&[1, 2, 3, 4]),
            conflicts: random.of(&[0, 1, 3, 8]),
            max_pause: random.of(&[3, 180, 180]),
            audit: random.of(&[None, Some(AuditMode::BestEffort), Some(AuditMode::Strict)]),
            token_life: random.of(&[60, 86_400, 86_400]),
            clients: random.of(&[1, 1, 2, 2, 3]),
        };
        let mut platform = Platform::default();
        for number in 0..random.of(&[1, 2]) {
            let style = random.of(&[Style::Number, Style::Text, Style::Tag]);
            let conversation =
                Conversation::new(number, style, random.percent(80), random.percent(80));
            platform.conversations.push(conversation);
        }
        Schedule {
            left: Number::new(2 + random.below(3)),
            random,
            knobs,
            now: Number::default(),
            start: SystemClock.now(),
            platform: Shared::new(platform),
            clients: Shared::default(),
            subscriptions: Mutex::default(),
            truths: Shared::default(),
            calls: Shared::default(),
            stack: Shared::default(),
            delayed: Shared::default(),
            tokens: Shared::default(),
            serial: Number::default(),
            in_sink: Number::default(),
            violation: Shared::default(),
            trace: traced.then(Shared::default),
            tally: Shared::default(),
        }
    }

    fn open(&self) {
        let knobs = &self.knobs;
        self.note(|| format!("{knobs:?}"));
        let conversations = self.platform.borrow().conversations.len();
        for number in 0..knobs.clients {
            let region = Region::custom("example.com").expect("a domain");
            let credentials = if self.random.percent(40) {
                Credentials::access_token(format!("t{}", self.issue(Time::MAX)))
            } else {
                Credentials::new("id", "secret")
            };
            let mut builder = Client::builder(region, credentials)
                .base_url("http://127.0.0.1:1")
                .transport(Line(number))
                .clock(Simulated)
                .jitter_seed(self.random.next())
                .rate_limit(
                    knobs
                        .rate
                        .map_or(RateLimit::unlimited(), RateLimit::per_minute),
                )
                .retry(
                    RetryPolicy::default()
                        .with_deadline(Duration::from_nanos(knobs.deadline))
                        .with_max_attempts(knobs.attempts)
                        .with_max_conflicts(knobs.conflicts)
                        .with_max_retry_after(Duration::from_secs(knobs.max_pause)),
                )
                .on_update(move |event| current().told(number, event))
                .on_update(move |_| current().hook(number));
            if let Some(mode) = knobs.audit {
                builder = builder.audit(Trail(number)).audit_mode(mode);
            }
            let client = builder.build().expect("good settings");
            self.subscriptions
                .lock()
                .unwrap()
                .push(client.subscribe(64));
            self.clients.borrow_mut().push(client);
            self.truths.borrow_mut().push(Truth {
                told: vec![None; conversations],
                distrust: vec![false; conversations],
                found: vec![None; conversations],
                ..Truth::default()
            });
        }
    }

    fn play(&self) {
        while self.left.get() > 0 {
            self.call(self.random.index(self.knobs.clients), false);
            if self.random.percent(30) {
                self.elsewhere();
            }
        }
        while !self.delayed.borrow().is_empty() {
            self.land();
        }
    }

    // What is written down.

    pub fn now(&self) -> Time {
        self.now.get()
    }

    pub fn pass(&self, time: Time) {
        self.now.set(self.now.get() + time);
    }

    pub fn note(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            let depth = self.stack.borrow().len();
            let at = self.now() as f64 / SECOND as f64;
            let line = format!("{at:>10.3} {}{}", "  ".repeat(depth), line());
            trace.borrow_mut().push(line);
        }
    }

    fn count(&self, group: &'static str, what: &'static str) {
        self.tally.borrow_mut().push((group, what));
    }

    pub fn wrong(&self, what: impl FnOnce() -> String) {
        let mut violation = self.violation.borrow_mut();
        if violation.is_none() {
            let what = what();
            self.note(|| format!("WRONG: {what}"));
            *violation = Some(what);
        }
    }

    /// The call that runs.
    fn top(&self) -> usize {
        self.stack.borrow().last().copied().unwrap_or_default()
    }

    fn with_top<R>(&self, f: impl FnOnce(&mut Call) -> R) -> R {
        f(&mut self.calls.borrow_mut()[self.top()])
    }

    // Calls.

    /// A call of this client, from the start to its end.
    fn call(&self, client: usize, reentrant: bool) {
        if self.left.get() == 0 || self.stack.borrow().len() > 3 {
            return;
        }
        let random = &self.random;
        let conversation = random.index(self.platform.borrow().conversations.len());
        let waits = self.stack.borrow().iter().any(|n| {
            let call = &self.calls.borrow()[*n];
            call.client == client && call.conversation == conversation && call.in_turn
        });
        if waits && !reentrant {
            return;
        }
        self.left.set(self.left.get() - 1);
        let number = self.calls.borrow().len();
        let (store, who) = random.of(&[
            (Store::Own, ""),
            (Store::Own, ""),
            (Store::Person, "customer"),
            (Store::Person, "agent"),
            (Store::Person, "id"),
            (Store::Secure, ""),
            (Store::Secure, ""),
            (Store::Custom, ""),
        ]);
        let work = match random.below(10) {
            0..6 => Work::Set,
            6 | 7 if matches!(store, Store::Own | Store::Secure) => Work::Count,
            8 => random.of(&[Work::Unique, Work::Unique, Work::Nothing]),
            9 if store == Store::Secure => Work::Edit,
            _ => Work::Set,
        };
        let unlocked = work == Work::Set && store == Store::Secure && random.percent(15);
        let mut wanted = Attributes::new();
        let mut removed = Vec::new();
        match work {
            Work::Set => {
                for _ in 0..=random.below(2) {
                    wanted.insert(self.key(), self.value());
                }
                if store == Store::Secure && !unlocked && random.percent(30) {
                    let key = self.key();
                    if !wanted.contains_key(&key) {
                        removed.push(key);
                    }
                }
            }
            Work::Unique => {
                wanted.insert("u".into(), format!("call-{number}").into());
            }
            Work::Edit => {
                wanted.insert("k0".into(), self.value());
                removed.push("k1".into());
            }
            // Known when it is computed.
            Work::Count | Work::Nothing => {}
        }
        let mut platform = self.platform.borrow_mut();
        let at = &mut platform.conversations[conversation];
        let id = at.id.clone();
        let mut update = match store {
            Store::Own => Update::conversation(&*id),
            Store::Person if who == "id" => Update::participant(&*id, at.people[1].id.as_str()),
            Store::Person => Update::participant(&*id, who),
            Store::Secure => Update::secure(&*id),
            Store::Custom => Update::custom(&*id, "r"),
        };
        if unlocked {
            update = update.unlocked();
        }
        if store == Store::Custom && random.percent(50) {
            update = update.schema("s");
        }
        let target = update.target().clone();
        for (key, value) in &wanted {
            update = update.set(key, value.clone());
        }
        for key in &removed {
            update = update.remove(key);
        }
        let mut demanded = false;
        if work == Work::Set && !unlocked && random.percent(10) {
            let style = at.style;
            if let Some(version) = at.stored(store).and_then(|stored| stored.version) {
                demanded = true;
                let stale = u64::from(random.percent(20));
                let version = version + stale;
                update = update.if_version(match (store, style) {
                    (Store::Own, Style::Tag) => format!("\"{version}\""),
                    _ => version.to_string(),
                });
            }
        }
        drop(platform);
        if work == Work::Set && random.percent(10) {
            update = update.skip_unchanged();
        }
        let verify = work == Work::Set && random.percent(5);
        if verify {
            update = update.verify();
        }
        let cancel = random.percent(25).then(Cancel::new);
        let begun = self.now();
        let unpaused = {
            let mut truths = self.truths.borrow_mut();
            truths[client].calls += 1;
            truths[client].perhaps_paused_until <= begun
        };
        self.note(|| {
            format!(
                "call {number} of client {client}: {work:?} {id} {store:?} {who} {update:?}{}",
                if reentrant { ", reentrant" } else { "" },
            )
        });
        self.calls.borrow_mut().push(Call {
            client,
            conversation,
            store,
            who,
            work,
            unlocked,
            demanded,
            verify,
            reentrant,
            wanted,
            removed,
            cancel: cancel.clone(),
            begun,
            unpaused,
            first_send: None,
            api_began: None,
            api_ended: 0,
            requests: 0,
            attempts: 0,
            reads: 0,
            read: None,
            shown: None,
            applied: Vec::new(),
            doubt: false,
            sent: None,
            panicked: false,
            stolen: 0,
            early: 0,
            in_turn: !reentrant,
            in_sink: self.in_sink.get() > 0,
            intents: 0,
            intents_tried: 0,
            outcomes: Vec::new(),
            audit_id: None,
            audit_failed: false,
            hook_panicked: false,
            events: 0,
            sequence: None,
            told: None,
            result: None,
        });
        let handle = self.clients.borrow()[client].clone();
        self.stack.borrow_mut().push(number);
        let work_it = || match (work, &cancel) {
            (Work::Set, None) => handle.update(&update),
            (Work::Set, Some(cancel)) => handle.update_cancellable(&update, cancel),
            (_, cancel) => {
                let mut options = UpdateOptions::new();
                if let Some(cancel) = cancel {
                    options = options.cancel(cancel);
                }
                if work == Work::Unique {
                    options = options.unique();
                }
                handle.update_with_options(&target, options, |now| Ok(self.computed(number, now)))
            }
        };
        match catch_unwind(AssertUnwindSafe(work_it)) {
            Ok(result) => self.ended(number, result),
            Err(_) => self.wrong(|| "a panic leaves the call".into()),
        }
        self.stack.borrow_mut().pop();
    }

    fn key(&self) -> String {
        self.random.of(&["k0", "k1", "k2"]).to_owned()
    }

    fn value(&self) -> Value {
        self.random.of(&["v0", "v1", "v2"]).into()
    }

    fn computed(&self, number: usize, now: &Snapshot) -> Option<Edit> {
        let mut calls = self.calls.borrow_mut();
        let call = &mut calls[number];
        match call.work {
            Work::Nothing => None,
            Work::Count => {
                let next = count_in(&now.attributes) + 1;
                let value: Value = if call.store == Store::Secure {
                    next.to_string().into()
                } else {
                    next.into()
                };
                call.wanted.insert(COUNTER.into(), value);
                Some(Edit::from(call.wanted.clone()))
            }
            _ => {
                let mut edit = Edit::from(call.wanted.clone());
                for key in &call.removed {
                    edit = edit.remove(key);
                }
                Some(edit)
            }
        }
    }

    fn ended(&self, number: usize, result: Result<Receipt, Error>) {
        let now = self.now();
        let mut calls = self.calls.borrow_mut();
        let call = &mut calls[number];
        call.in_turn = false;
        self.count(
            "end",
            match &result {
                Ok(receipt) => receipt.outcome.name(),
                Err(error) => error.kind().name(),
            },
        );
        self.note(|| match &result {
            Ok(receipt) => format!("ended {} {:?}", receipt.outcome, receipt.version),
            Err(error) => format!(
                "ended {} may={} {error}",
                error.kind(),
                error.may_have_applied()
            ),
        });
        if call.events == 0 {
            // Otherwise its hooks came after it.
            self.in_time(call, now);
            let mut truths = self.truths.borrow_mut();
            let ok = result
                .as_ref()
                .ok()
                .map(|receipt| (receipt.outcome.into(), &receipt.version));
            self.learned(&mut truths[call.client], call, ok);
        }
        crate::verdict::check_call(self, call, &result);
        call.result = Some(result);
    }

    /// The call ended within its deadline.
    fn in_time(&self, call: &Call, now: Time) {
        if self.knobs.rate.is_some() || !call.unpaused || call.panicked {
            return;
        }
        let end = call.begun + self.knobs.deadline + call.early + call.stolen;
        if now > end + MS {
            self.wrong(|| format!("it ended {} ms after its deadline", (now - end) / MS));
        }
    }

    /// What a client may count on after a call.
    fn learned(&self, truth: &mut Truth, call: &Call, ok: Option<(Status, &Option<String>)>) {
        let at = call.conversation;
        match (call.store, ok) {
            (Store::Own, Some((status, version))) if status != Status::Unchanged => {
                truth.told[at] = version.clone();
            }
            (Store::Own, None) if call.attempts > 0 => truth.told[at] = None,
            (Store::Person, Some(_))
                if call.who == "customer" && call.attempts > 0 && call.reads > 0 =>
            {
                truth.found[at] = Some(self.now());
            }
            (Store::Person, None) if call.who == "customer" && call.attempts > 0 => {
                truth.found[at] = None;
            }
            _ => {}
        }
    }

    // What happens elsewhere.

    /// Perhaps something happens elsewhere meanwhile.
    fn interlude(&self) {
        if self.random.percent(self.knobs.interludes) {
            self.elsewhere();
        }
    }

    fn elsewhere(&self) {
        let random = &self.random;
        let conversation = random.index(self.platform.borrow().conversations.len());
        match random.below(10) {
            0..4 => {
                let client = random.index(self.knobs.clients);
                let busy = self.stack.borrow().iter().any(|n| {
                    let call = &self.calls.borrow()[*n];
                    call.client == client && call.in_turn
                });
                let inside = busy && self.with_top(|top| top.client == client && top.in_turn);
                if inside && random.percent(10) {
                    self.count("meanwhile", "reentrant call");
                    self.call(client, true);
                } else if !busy {
                    self.count("meanwhile", "another client");
                    self.on_another_thread(client);
                } else if self.is_free(client) {
                    self.count("meanwhile", "another thread");
                    self.on_another_thread(client);
                }
            }
            4 | 5 => {
                let store = random.of(&[Store::Own, Store::Person, Store::Secure, Store::Custom]);
                let mut platform = self.platform.borrow_mut();
                let mut values = Attributes::new();
                // What a call wants, perhaps; else anything; or one more.
                let pending = self.stack.borrow().last().copied();
                let calls = self.calls.borrow();
                let wanted = pending.map(|n| &calls[n]);
                match wanted {
                    Some(call) if random.percent(50) && call.work != Work::Unique => {
                        values = call.wanted.clone();
                    }
                    _ => {
                        values.insert(self.key(), self.value());
                    }
                }
                let at = &mut platform.conversations[conversation];
                values.remove(COUNTER);
                if let Some(stored) = at.stored(store)
                    && random.percent(40)
                {
                    let next = count_in(&stored.values) + 1;
                    values.insert(COUNTER.into(), next.to_string().into());
                    if store == Store::Own {
                        values.insert(COUNTER.into(), next.into());
                    }
                }
                self.count("meanwhile", "another writer");
                self.note(|| format!("another writer: {} {store:?} {values:?}", at.id));
                platform.interfere(conversation, store, values);
            }
            6 => self.land(),
            7 => {
                let time = random.of(&[50 * MS, 50 * MS, SECOND, 5 * SECOND, 60 * SECOND]);
                let time = if random.percent(5) {
                    400 * SECOND
                } else {
                    time
                };
                self.note(|| format!("{} s pass", time / SECOND));
                self.pass(time);
            }
            8 => {
                self.count("meanwhile", "transfer");
                let mut platform = self.platform.borrow_mut();
                let at = &mut platform.conversations[conversation];
                at.transfer();
                self.note(|| format!("{}: the agent is now {:?}", at.id, at.agent()));
            }
            _ => {
                self.count("meanwhile", "token revoked");
                // One that was given cannot be renewed.
                let given = random.percent(10);
                let mut tokens = self.tokens.borrow_mut();
                tokens.retain(|(_, end)| *end == Time::MAX && !given);
                self.note(|| "all tokens are revoked".into());
            }
        }
    }

    /// Whether a call that has its turn goes on without another call of this client: no login is needed or under way, and
    /// there is room in the rate limit.
    fn is_free(&self, client: usize) -> bool {
        let truths = self.truths.borrow();
        let lasting = |(_, end): (u64, Time)| end > self.now() + 1_000 * SECOND;
        self.knobs.rate.is_none() && truths[client].token.is_some_and(lasting)
    }

    /// A call on a thread that holds no turn and is in no audit sink.
    fn on_another_thread(&self, client: usize) {
        let schedule = current();
        let in_sink = self.in_sink.get();
        self.in_sink.set(0);
        let thread = std::thread::spawn(move || {
            CURRENT.set(Some(schedule.clone()));
            schedule.call(client, false);
            CURRENT.set(None);
        });
        thread.join().expect("the panics of a call are caught");
        self.in_sink.set(in_sink);
    }

    /// A copy of an earlier write arrives late.
    fn land(&self) {
        let mut delayed = self.delayed.borrow_mut();
        if delayed.is_empty() {
            return;
        }
        let at = self.random.index(delayed.len());
        let write = delayed.swap_remove(at);
        let lands = self.arrive(&write);
        self.count("meanwhile", "a copy lands");
        self.note(|| format!("a late copy of call {}: {lands:?}", write.call));
    }

    fn sleep(&self, time: Time) {
        let until = self.now() + time;
        // Cancellable waits come in slices.
        if time > 100 * MS || self.random.percent(10) {
            self.interlude();
        }
        let now = self.now();
        if now < until {
            self.now.set(until);
        } else if !self.stack.borrow().is_empty() {
            self.with_top(|call| call.stolen += now - until);
        }
    }

    // Requests.

    fn send(&self, client: usize, request: &Request) -> Result<Response, TransportError> {
        let login = request.method() == Method::Post;
        let writes = matches!(request.method(), Method::Patch | Method::Put);
        let early = self.entered(client, request, login);
        let began = self.now();
        let limit = request
            .timeout()
            .map_or(LONGEST, |limit| limit.as_nanos() as Time);
        let fate = self.fate(login, writes);
        if fate == Fate::Panic {
            self.note(|| "the transport panics".into());
            self.with_top(|call| {
                call.panicked = true;
                call.doubt |= writes;
            });
            let truth = &mut self.truths.borrow_mut()[client];
            truth.logging_in &= !login;
            truth.transport_errors += 1;
            resume_unwind(Box::new("on purpose"));
        }
        let result: Result<Answer, TransportError> = if fate == Fate::NotSent {
            self.pass((5 * MS).min(limit));
            lost(ErrorKind::Connect, Sent::No)
        } else {
            self.interlude();
            self.pass(self.random.of(&[MS, 20 * MS, 20 * MS, 200 * MS]));
            let result = if login {
                self.login(fate)
            } else {
                self.api(client, request, fate)
            };
            self.interlude();
            if matches!(fate, Fate::TimedOut(_)) {
                self.now.set(self.now().max(began + limit));
            } else if self.random.percent(2) {
                // Slow, and just in time.
                self.now
                    .set(self.now().max(began + limit.saturating_sub(1)));
            }
            if self.now() > began + limit {
                self.with_top(|call| call.stolen += self.now() - (began + limit));
                lost(ErrorKind::Timeout, Sent::Maybe)
            } else {
                result
            }
        };
        if early {
            self.with_top(|call| call.early += self.now() - began);
        }
        self.left(client, request, began, &result);
        if fate == Fate::Cancelled
            && let Some(cancel) = self.with_top(|call| call.cancel.clone())
        {
            self.note(|| "cancelled".into());
            cancel.cancel();
        }
        result.map(Answer::response)
    }

    /// What must hold when a request is sent. Whether it is an early refresh.
    fn entered(&self, client: usize, request: &Request, login: bool) -> bool {
        let now = self.now();
        let top = self.top();
        let mut calls = self.calls.borrow_mut();
        if calls[top].client != client || calls[top].result.is_some() {
            self.wrong(|| "a request of a call that is over".into());
        }
        let call = &mut calls[top];
        call.first_send.get_or_insert(now);
        if call.cancel.as_ref().is_some_and(Cancel::is_cancelled) {
            self.wrong(|| "a request after the cancel".into());
        }
        if call.reentrant {
            self.wrong(|| "a call from inside of an update sends".into());
        }
        let counted = self.knobs.rate.is_none() && call.unpaused;
        if counted && now >= call.begun + self.knobs.deadline + call.early + call.stolen + MS {
            self.wrong(|| "a request after the deadline".into());
        }
        let mut truths = self.truths.borrow_mut();
        let truth = &mut truths[client];
        if login {
            let early = truth.token.is_some_and(|(_, end)| now < end);
            if truth.logging_in {
                self.wrong(|| "two logins at once".into());
            }
            truth.logging_in = true;
            if now < truth.login_paused_until {
                self.wrong(|| "a login inside of a Retry-After".into());
            }
            let limit = request.timeout().map(|limit| limit.as_nanos() as Time);
            if early && limit.is_none_or(|limit| limit > EARLY) {
                self.wrong(|| "an early refresh may take longer than 2 s".into());
            }
            return early;
        }
        truth.requests += 1;
        call.requests += 1;
        call.api_began.get_or_insert(now);
        if now < truth.paused_until {
            self.wrong(|| "a request inside of a Retry-After".into());
        }
        let token = serial_of(request);
        if truth.logins > 0 && truth.refused.contains(&token) {
            self.wrong(|| "a request with a token that was refused".into());
        }
        if request.method() == Method::Get {
            call.reads += 1;
            return false;
        }
        call.attempts += 1;
        if self.knobs.audit == Some(AuditMode::Strict) && call.intents == 0 {
            self.wrong(|| "a write without an intent".into());
        }
        drop(truths);
        drop(calls);
        self.leaves(client, request);
        false
    }

    /// What must hold of a write that is sent.
    fn leaves(&self, client: usize, request: &Request) {
        let top = self.top();
        let Some(write) = self.platform.borrow().parse(top, request) else {
            return self.wrong(|| format!("a write that cannot be read: {}", request.url()));
        };
        let mut calls = self.calls.borrow_mut();
        let call = &mut calls[top];
        call.sent = Some(write.clone());
        let truths = self.truths.borrow();
        let truth = &truths[client];
        if write.conversation != call.conversation || write.store != call.store {
            self.wrong(|| "a write to another target".into());
        }
        let read = call.read.as_ref();
        let at = call.conversation;
        match call.store {
            Store::Own => {
                if read.is_none() && !call.demanded {
                    if truth.distrust[at] {
                        self.wrong(|| "a version that was told is used after a conflict".into());
                    }
                    let told = truth.told[at].as_ref().map(|v| v.trim_matches('"'));
                    if write.version.as_deref().map(|v| v.trim_matches('"')) != told {
                        self.wrong(|| format!("version {:?} from nowhere", write.version));
                    }
                }
            }
            Store::Secure if !call.unlocked => {
                let mut merged = read.map(|seen| seen.values.clone()).unwrap_or_default();
                for key in &call.removed {
                    merged.remove(key);
                }
                merged.extend(call.wanted.clone());
                if merged != write.values {
                    self.wrong(|| "the map is not the one that was read, with the change".into());
                }
                if read.and_then(|seen| seen.version).is_some() != write.version.is_some() {
                    self.wrong(|| "a write without its version".into());
                }
            }
            Store::Secure => {}
            Store::Custom => {
                let exists = read.is_some_and(|seen| seen.version.is_some());
                let good = exists == (write.method == Method::Patch)
                    && exists == write.version.is_some()
                    && exists == write.divisions;
                if !good {
                    self.wrong(|| "a record written without version or divisions".into());
                }
            }
            Store::Person if call.who == "agent" => {
                let agent = read.and_then(|seen| seen.agent.clone());
                if write.person != agent {
                    let to = &write.person;
                    self.wrong(|| format!("a write to {to:?}, and the agent was {agent:?}"));
                }
            }
            Store::Person if call.who == "customer" && read.is_none() => {
                let fresh = truth.found[at].is_some_and(|since| call.begun < since + 300 * SECOND);
                if !fresh {
                    self.wrong(|| "the id of a customer is remembered for too long".into());
                }
            }
            Store::Person => {}
        }
        let whole = call.store == Store::Secure && !call.unlocked;
        if !whole && write.values != call.wanted {
            self.wrong(|| "a write of other values than wanted".into());
        }
    }

    /// What a result means for what the client knows and counts.
    fn left(
        &self,
        client: usize,
        request: &Request,
        began: Time,
        result: &Result<Answer, TransportError>,
    ) {
        let now = self.now();
        let login = request.method() == Method::Post;
        let writes = matches!(request.method(), Method::Patch | Method::Put);
        let top = self.top();
        let mut calls = self.calls.borrow_mut();
        let call = &mut calls[top];
        let mut truths = self.truths.borrow_mut();
        let truth = &mut truths[client];
        truth.logging_in &= !login;
        if !login {
            call.api_ended = now;
        }
        self.note(|| {
            let what = if login {
                "POST"
            } else {
                request.method().as_str()
            };
            match result {
                Ok(response) => format!("{what} {} answered {}", request.url(), response.status),
                Err(failure) => format!("{what} {} failed: {failure}", request.url()),
            }
        });
        let response = match result {
            Ok(response) => response,
            Err(failure) => {
                truth.transport_errors += 1;
                call.doubt |= writes && failure.sent() == Sent::Maybe;
                return;
            }
        };
        let status = response.status;
        truth.server_errors += u64::from(status >= 500);
        let whole = !response.cut;
        truth.transport_errors += u64::from(status < 400 && !whole && !writes);
        if login {
            let granted = response.object().filter(|_| status == 200);
            let token = granted.as_ref().and_then(|body| body.get("access_token"));
            let serial = token
                .and_then(Value::as_str)
                .and_then(|t| t.strip_prefix('t'));
            if let Some(serial) = serial.and_then(|serial| serial.parse().ok()) {
                truth.logins += 1;
                truth.token = Some((serial, began + self.knobs.token_life * SECOND));
            }
        } else if status == 401 {
            let serial = serial_of(request);
            truth.refused.push(serial);
            truth.token = truth.token.filter(|(current, _)| *current != serial);
        }
        let asked = response.retry_after;
        let mut paused = false;
        let throttled = status == 429 || status == 503 && asked.is_some() || status == 400 && login;
        if throttled {
            truth.rate_limited += 1;
            if !login {
                paused = true;
                let longest = now + (asked.unwrap_or(60) + 1) * SECOND;
                truth.perhaps_paused_until = truth.perhaps_paused_until.max(longest);
            }
            if let Some(wait) = asked.filter(|wait| *wait <= self.knobs.max_pause) {
                let until = now + wait * SECOND;
                let pause = if login {
                    &mut truth.login_paused_until
                } else {
                    &mut truth.paused_until
                };
                *pause = until.max(*pause);
            }
        }
        if paused {
            // Outside of the deadline, for those who did not send yet.
            for number in self.stack.borrow().iter() {
                let other = &mut calls[*number];
                other.unpaused &= other.client != client || other.first_send.is_some();
            }
        }
        let call = &mut calls[top];
        if !login && !writes {
            let shown = call.shown.take();
            if status == 200 && response.object().is_some() {
                call.read = shown;
            } else if status == 404 && call.store == Store::Custom {
                call.read = Some(Seen::default());
            }
        }
        if !writes {
            return;
        }
        call.doubt |= matches!(status, 408 | 500 | 502 | 503 | 504);
        let told = response.object().filter(|_| call.store == Store::Own);
        let told = told.and_then(|body| body.get("version").cloned());
        call.told = match told {
            Some(Value::String(text)) => Some(text),
            Some(number) => Some(number.to_string()),
            None => response.etag.clone(),
        };
        let remembered = call.reads == 0 && call.who == "customer";
        if remembered && matches!(status, 404 | 409 | 410) {
            truth.found[call.conversation] = None;
            return;
        }
        let conflict = match call.store {
            Store::Own => matches!(status, 409 | 412),
            Store::Custom => {
                status == 409 || status == 400 && whole && response.body.contains("current version")
            }
            Store::Person | Store::Secure => status == 409,
        };
        truth.conflicts += u64::from(conflict);
        if conflict && call.store == Store::Own {
            truth.told[call.conversation] = None;
            if call.reads == 0 && !call.demanded {
                truth.distrust[call.conversation] = true;
            }
        }
    }

    fn fate(&self, login: bool, writes: bool) -> Fate {
        let random = &self.random;
        let chance = if login {
            self.knobs.login_faults
        } else {
            self.knobs.faults
        };
        if !random.percent(chance) {
            return Fate::Answer;
        }
        let applied = writes && random.percent(50);
        let effect = random.of(&[Effect::Now, Effect::Later, Effect::Never]);
        let wait = random.of(&[None, Some(0), Some(1), Some(7), Some(200)]);
        let fate = match random.below(if login { 20 } else { 26 }) {
            0 | 1 => Fate::Status(429, wait, false),
            2 => Fate::Status(503, wait, applied),
            3 => Fate::Status(500, None, applied),
            4 => Fate::Status(random.of(&[502, 504]), None, applied),
            5 => Fate::Status(408, None, applied),
            6 => Fate::NotSent,
            7 | 8 => Fate::Reset(effect),
            9 => Fate::TimedOut(effect),
            10 | 11 => Fate::Cut,
            12 => Fate::Html,
            13 => Fate::Revoked,
            14 => Fate::Status(404, None, false),
            15 if random.percent(20) => Fate::Panic,
            16 if login => Fate::Status(400, wait, false),
            15 | 16 => Fate::Answer,
            17 if login => Fate::Status(random.of(&[401, 302, 503]), None, false),
            18 | 19 if login => Fate::Cancelled,
            17 | 18 if writes => Fate::Status(random.of(&[409, 412]), None, false),
            19 => Fate::Status(random.of(&[400, 403, 413]), None, false),
            20 | 21 => Fate::Cancelled,
            22 | 23 => Fate::Reset(effect),
            _ => Fate::Reset(Effect::Now),
        };
        let name = match fate {
            Fate::Answer => "none after all",
            Fate::Status(429, Some(_), _) => "429 with Retry-After",
            Fate::Status(429, None, _) => "429",
            Fate::Status(503, Some(_), _) => "503 with Retry-After",
            Fate::Status(503, None, _) => "503",
            Fate::Status(500, ..) => "500",
            Fate::Status(502 | 504, ..) => "502, 504",
            Fate::Status(408, ..) => "408",
            Fate::Status(404, ..) if login => "login 404",
            Fate::Status(400, ..) if login => "login throttled by 400",
            Fate::Status(401 | 302, ..) => "login 401, 302",
            Fate::Status(404, ..) => "404",
            Fate::Status(409 | 412, ..) => "409, 412",
            Fate::Status(..) => "400, 403, 413",
            Fate::NotSent => "not sent",
            Fate::Reset(Effect::Now) => "reset, done",
            Fate::Reset(Effect::Later) => "reset, done later",
            Fate::Reset(Effect::Never) => "reset, not done",
            Fate::TimedOut(_) => "timeout",
            Fate::Cut => "cut body",
            Fate::Html => "HTML body",
            Fate::Revoked => "401",
            Fate::Cancelled => "cancel",
            Fate::Panic => "transport panic",
        };
        self.count("fault", name);
        fate
    }

    /// The serial number of a new token.
    fn issue(&self, end: Time) -> u64 {
        let serial = self.serial.get() + 1;
        self.serial.set(serial);
        self.tokens.borrow_mut().push((serial, end));
        serial
    }

    fn login(&self, fate: Fate) -> Result<Answer, TransportError> {
        match fate {
            Fate::Reset(_) => return lost(ErrorKind::Transport, Sent::Maybe),
            Fate::TimedOut(_) => return lost(ErrorKind::Timeout, Sent::Maybe),
            Fate::Status(status, wait, _) => {
                let body = match status {
                    400 => r#"{"error":"invalid_request","description":"Rate limit exceeded"}"#,
                    401 => r#"{"error":"invalid_client"}"#,
                    _ => "",
                };
                return Ok(Answer::new(status, body).wait(wait));
            }
            Fate::Html => return Ok(Answer::new(200, "<html>")),
            Fate::Cut => return Ok(Answer::new(200, "").cut()),
            _ => {}
        }
        let life = self.knobs.token_life;
        let serial = self.issue(self.now() + life * SECOND);
        if fate == Fate::Revoked {
            self.tokens.borrow_mut().pop();
        }
        let body = format!(r#"{{"access_token":"t{serial}","expires_in":{life}}}"#);
        Ok(Answer::new(200, body))
    }

    fn api(&self, client: usize, request: &Request, fate: Fate) -> Result<Answer, TransportError> {
        self.arrived(client);
        let writes = request.method() != Method::Get;
        let serial = serial_of(request);
        if fate == Fate::Revoked {
            let mut tokens = self.tokens.borrow_mut();
            tokens.retain(|(other, end)| *other != serial || *end == Time::MAX);
        }
        let known = self
            .tokens
            .borrow()
            .iter()
            .any(|(t, end)| *t == serial && self.now() < *end);
        if !known {
            return Ok(Answer::new(401, r#"{"code":"bad.credentials"}"#));
        }
        let does = match fate {
            Fate::Status(_, _, applied) => applied,
            Fate::Reset(effect) | Fate::TimedOut(effect) => effect == Effect::Now,
            _ => true,
        };
        let mut answer = None;
        if writes {
            if let Some(write) = self.with_top(|call| call.sent.take()) {
                if does {
                    answer = Some(match self.arrive(&write) {
                        Ok(version) => {
                            let way = self.random.below(8);
                            self.platform.borrow().written(&write, version, way)
                        }
                        Err(409) if write.store == Store::Custom && self.random.percent(50) => {
                            let body = r#"{"message":"it does not match the current version"}"#;
                            Answer::new(400, body)
                        }
                        Err(status) => Answer::new(status, "{}"),
                    });
                } else if matches!(
                    fate,
                    Fate::Reset(Effect::Later) | Fate::TimedOut(Effect::Later)
                ) {
                    self.delayed.borrow_mut().push(write);
                }
            }
        } else if does {
            let (conversation, store, who) =
                self.with_top(|call| (call.conversation, call.store, call.who));
            let (seen, response) = self.platform.borrow().read(conversation, store, who);
            self.with_top(|call| call.shown = Some(seen));
            answer = Some(response);
        }
        match (fate, answer) {
            (Fate::Reset(_), _) => lost(ErrorKind::Transport, Sent::Maybe),
            (Fate::TimedOut(_), _) => lost(ErrorKind::Timeout, Sent::Maybe),
            (Fate::Status(status, wait, _), _) => Ok(Answer::new(status, "{}").wait(wait)),
            (Fate::Cut, Some(answer)) => Ok(answer.cut()),
            (Fate::Html, Some(answer)) => Ok(Answer {
                body: "<html>".into(),
                ..answer
            }),
            (_, Some(answer)) => Ok(answer),
            (_, None) => Ok(Answer::new(400, "{}")),
        }
    }

    /// A request of the API came to the platform: never more than the limit in any 60 s.
    fn arrived(&self, client: usize) {
        let Some(rate) = self.knobs.rate else {
            return;
        };
        let now = self.now();
        let mut truths = self.truths.borrow_mut();
        let arrivals = &mut truths[client].arrivals;
        arrivals.push(now);
        let window = arrivals
            .iter()
            .filter(|at| **at + 60 * SECOND > now)
            .count();
        if window > rate as usize {
            self.wrong(|| format!("{window} requests in 60 s, and {rate} are allowed"));
        }
    }

    /// A write arrives, and takes effect or not.
    fn arrive(&self, write: &Write) -> Result<Option<u64>, u16> {
        let mut platform = self.platform.borrow_mut();
        let mut calls = self.calls.borrow_mut();
        let call = &mut calls[write.call];
        let before = platform.conversations[write.conversation]
            .stored(write.store)
            .map(|stored| count_in(&stored.values));
        let applied = platform.apply(write);
        if applied.is_ok() {
            call.applied.push(platform.log.len() - 1);
            let counts = call.work == Work::Count && write.version.is_some();
            if counts && before.map(|n| n + 1) != Some(count_in(&write.values)) {
                self.wrong(|| format!("call {} loses a count", write.call));
            }
            if counts && call.applied.len() > 1 {
                self.wrong(|| format!("call {} counts twice", write.call));
            }
        }
        applied
    }

    // What the client tells.

    fn recorded(&self, client: usize, record: &AuditRecord) -> std::io::Result<()> {
        let fails = self.random.percent(3);
        let began = self.now();
        let outcome = record.phase == AuditPhase::Outcome;
        self.with_top(|call| {
            if call.client != client {
                self.wrong(|| "a record of somebody else's call".into());
            }
            let keys: Vec<&str> = record.updated_keys.iter().map(|key| key.as_ref()).collect();
            let wanted: Vec<&str> = call.wanted.keys().map(String::as_str).collect();
            if keys != wanted && !(outcome && call.work != Work::Set) {
                self.wrong(|| format!("a record of {keys:?}, and {wanted:?} are written"));
            }
            let id = call.audit_id.get_or_insert_with(|| record.id.to_string());
            if *id != record.id {
                self.wrong(|| "two ids for one call".into());
            }
            if outcome {
                call.outcomes.push(record.status);
            } else {
                call.intents_tried += 1;
                call.intents += u32::from(!fails);
                if !call.outcomes.is_empty() {
                    self.wrong(|| "an intent after the outcome".into());
                }
            }
            call.audit_failed |= fails;
        });
        self.note(|| format!("{:?} {:?}", record.phase, record.status));
        if fails {
            self.truths.borrow_mut()[client].audit_failures += 1;
        }
        self.in_sink.set(1);
        self.interlude();
        self.in_sink.set(0);
        self.with_top(|call| call.stolen += self.now() - began);
        if fails {
            Err(std::io::Error::other("no space"))
        } else {
            Ok(())
        }
    }

    fn told(&self, client: usize, event: &UpdateEvent) {
        let mut calls = self.calls.borrow_mut();
        let call = &mut calls[self.top()];
        self.note(|| format!("event {}", event.sequence));
        call.events += 1;
        call.sequence = Some(event.sequence);
        let id = &self.platform.borrow().conversations[call.conversation].id;
        if call.client != client || *id != event.conversation_id {
            self.wrong(|| "an event of another call".into());
        }
        if let Some(audit_id) = &call.audit_id
            && *audit_id != event.audit().id
        {
            self.wrong(|| "an event with another audit id".into());
        }
        self.in_time(call, self.now());
        let mut truths = self.truths.borrow_mut();
        self.learned(
            &mut truths[client],
            call,
            Some((event.status, &event.version)),
        );
        call.in_turn = false;
    }

    fn hook(&self, client: usize) {
        self.interlude();
        if self.random.percent(5) {
            self.truths.borrow_mut()[client].hook_panics += 1;
            self.with_top(|call| call.hook_panicked = true);
            resume_unwind(Box::new("on purpose"));
        }
    }

    pub fn metrics(&self, client: usize) -> Metrics {
        self.clients.borrow()[client].metrics()
    }

    /// From the first request of the API to the end of the last.
    pub fn latency(call: &Call) -> Duration {
        let began = call.api_began.unwrap_or(call.api_ended);
        Duration::from_nanos(call.api_ended.saturating_sub(began))
    }
}

fn lost(kind: ErrorKind, sent: Sent) -> Result<Answer, TransportError> {
    Err(TransportError::new(Error::new(kind, "on purpose"), sent))
}

/// The serial number of the request's token.
fn serial_of(request: &Request) -> u64 {
    let mut headers = request.headers();
    let header = headers.find(|(name, _)| *name == "Authorization");
    let token = header.and_then(|(_, text)| text.strip_prefix("Bearer t"));
    token.and_then(|text| text.parse().ok()).unwrap_or_default()
}
