//! A transport that plays a script: which requests must come, in which order, and what each is answered. What came is
//! kept for the test to look at, and what did not follow the script fails the test when the [`Fake`] is dropped.
//!
//! Beside it, for tests with threads: [`Gate`], which holds a request until the test lets it go.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use genesys_attributes::clock::{Clock, ManualClock};
use genesys_attributes::error::Sent;
use genesys_attributes::http::{Request, Response, Transport, TransportError};
use genesys_attributes::{Client, ClientBuilder, Credentials, Error, ErrorKind, Region};
use serde_json::{Value, json};

pub const BASE: &str = "http://127.0.0.1:1";
pub const CLIENT_ID: &str = "client-id";
pub const CLIENT_SECRET: &str = "client-5ecret";

/// How long a test waits for another thread before it fails. Nothing waits that long when the library is right.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// True for the long run: `GENESYS_ATTRIBUTES_TEST=full` turns counts up, and adds what only repeats or needs tools.
pub fn full() -> bool {
    std::env::var("GENESYS_ATTRIBUTES_TEST").is_ok_and(|value| value == "full")
}

pub fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One request as the transport got it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: &'static str,
    /// The URL without the base.
    pub path: String,
    pub headers: HashMap<String, String>,
    /// JSON, or else the text, or else null.
    pub body: Value,
    pub timeout: Option<Duration>,
    /// When it came, from the start of the clock.
    pub at: Duration,
}

impl Seen {
    pub fn of(request: &Request, at: Duration) -> Seen {
        let text = request
            .body()
            .map(|body| String::from_utf8(body.to_vec()).unwrap());
        Seen {
            method: request.method().as_str(),
            path: request
                .url()
                .strip_prefix(BASE)
                .unwrap_or(request.url())
                .to_owned(),
            headers: request
                .headers()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            body: text.map_or(Value::Null, |text| {
                serde_json::from_str(&text).unwrap_or(Value::String(text))
            }),
            timeout: request.timeout(),
            at,
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn if_match(&self) -> Option<&str> {
        self.header("If-Match")
    }

    pub fn authorization(&self) -> &str {
        self.header("Authorization").unwrap_or_default()
    }

    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

type Action = Box<dyn FnOnce() + Send>;

enum Answer {
    Response(Response),
    Failure(ErrorKind, Sent),
    Panic,
}

struct Line {
    method: &'static str,
    answer: Answer,
    takes: Duration,
    meanwhile: Option<Action>,
}

#[derive(Default)]
struct State {
    script: VecDeque<Line>,
    tokens: usize,
    seen: Vec<Seen>,
    problems: Vec<String>,
}

struct Player {
    state: Arc<Mutex<State>>,
    clock: ManualClock,
    start: Instant,
}

impl Transport for Player {
    fn send(&self, request: &Request) -> Result<Response, TransportError> {
        let seen = Seen::of(request, self.clock.now() - self.start);
        let line = {
            let mut state = lock(&self.state);
            let number = state.seen.len() + 1;
            let line = match state.script.pop_front() {
                Some(line) if line.method == seen.method => Ok(line),
                Some(line) => Err(format!(
                    "request {number}: {} instead of {}",
                    seen.line(),
                    line.method
                )),
                None => Err(format!(
                    "request {number}: {} after the end of the script",
                    seen.line()
                )),
            };
            state.seen.push(seen);
            line.map_err(|problem| state.problems.push(problem))
        };
        let Ok(line) = line else {
            return Err(failure(ErrorKind::Internal, Sent::No));
        };
        if let Some(meanwhile) = line.meanwhile {
            meanwhile();
        }
        self.clock.advance(line.takes);
        match line.answer {
            Answer::Response(response) => Ok(response),
            Answer::Failure(kind, sent) => Err(failure(kind, sent)),
            Answer::Panic => panic!("the transport panics on purpose"),
        }
    }
}

pub fn failure(kind: ErrorKind, sent: Sent) -> TransportError {
    TransportError::new(Error::new(kind, format!("scripted fault {sent:?}")), sent)
}

/// The script, the clock and the record of one test.
pub struct Fake {
    name: String,
    pub clock: ManualClock,
    start: Instant,
    state: Arc<Mutex<State>>,
}

impl Fake {
    pub fn new() -> Fake {
        Fake::named("")
    }

    /// For a row of a table: the name is part of what a failure says.
    pub fn named(name: impl Into<String>) -> Fake {
        let clock = ManualClock::new();
        Fake {
            name: name.into(),
            start: clock.now(),
            clock,
            state: Arc::default(),
        }
    }

    pub fn client(&self) -> Client {
        self.builder().build().unwrap()
    }

    pub fn builder(&self) -> ClientBuilder {
        self.builder_with(Credentials::new(CLIENT_ID, CLIENT_SECRET))
    }

    /// A client that never logs in.
    pub fn builder_with_token(&self) -> ClientBuilder {
        self.builder_with(Credentials::access_token("given"))
    }

    fn builder_with(&self, credentials: Credentials) -> ClientBuilder {
        Client::builder(Region::parse("eu-west-1").unwrap(), credentials)
            .base_url(BASE)
            .transport(Player {
                state: self.state.clone(),
                clock: self.clock.clone(),
                start: self.start,
            })
            .clock(self.clock.clone())
    }

    /// The next request must be a login. It gets `token-1`, `token-2` and so on, good for a day.
    pub fn token(&self) -> &Fake {
        self.token_for(json!(86_400))
    }

    pub fn token_for(&self, expires_in: impl Into<Value>) -> &Fake {
        let number = {
            let mut state = lock(&self.state);
            state.tokens += 1;
            state.tokens
        };
        self.login(json!({
            "access_token": format!("token-{number}"),
            "token_type": "bearer",
            "expires_in": expires_in.into(),
        }))
    }

    /// A login that is answered with this.
    pub fn login(&self, body: Value) -> &Fake {
        self.answer("POST", json_response(200, &body))
    }

    /// The next request must be a GET. It tells this version and no attributes.
    pub fn get(&self, version: impl Into<Value>) -> &Fake {
        self.get_body(json!({ "id": "c-1", "version": version.into() }))
    }

    /// A GET that tells version and attributes.
    pub fn get_with(&self, version: impl Into<Value>, attributes: Value) -> &Fake {
        self.get_body(json!({ "id": "c-1", "version": version.into(), "attributes": attributes }))
    }

    pub fn get_body(&self, body: Value) -> &Fake {
        self.answer("GET", json_response(200, &body))
    }

    /// The next request must be a PATCH. It is applied and makes this version.
    pub fn patch(&self, version: impl Into<Value>) -> &Fake {
        let body = json!({ "id": "c-1", "version": version.into() });
        self.answer("PATCH", json_response(200, &body))
    }

    /// A request of the method that is answered with an empty body.
    pub fn status(&self, method: &'static str, status: u16) -> &Fake {
        self.answer(method, Response::new(status))
    }

    pub fn answer(&self, method: &'static str, response: Response) -> &Fake {
        self.push(method, Answer::Response(response))
    }

    /// A request of the method that gets no answer.
    pub fn fault(&self, method: &'static str, kind: ErrorKind, sent: Sent) -> &Fake {
        self.push(method, Answer::Failure(kind, sent))
    }

    pub fn panics(&self, method: &'static str) -> &Fake {
        self.push(method, Answer::Panic)
    }

    fn push(&self, method: &'static str, answer: Answer) -> &Fake {
        lock(&self.state).script.push_back(Line {
            method,
            answer,
            takes: Duration::ZERO,
            meanwhile: None,
        });
        self
    }

    /// The exchange added last takes this long.
    pub fn takes(&self, duration: Duration) -> &Fake {
        self.last_line(|line| line.takes = duration)
    }

    /// Runs while the exchange added last is under way.
    pub fn meanwhile(&self, action: impl FnOnce() + Send + 'static) -> &Fake {
        self.last_line(|line| line.meanwhile = Some(Box::new(action)))
    }

    fn last_line(&self, change: impl FnOnce(&mut Line)) -> &Fake {
        change(lock(&self.state).script.back_mut().unwrap());
        self
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.state).seen.clone()
    }

    /// The requests of one method so far.
    pub fn sent(&self, method: &str) -> Vec<Seen> {
        let mut seen = self.seen();
        seen.retain(|request| request.method == method);
        seen
    }

    /// The methods of all requests so far, in order, such as `"POST GET PATCH"`.
    pub fn methods(&self) -> String {
        let methods: Vec<_> = self.seen().iter().map(|request| request.method).collect();
        methods.join(" ")
    }

    /// Method and path of all requests so far, in order.
    pub fn lines(&self) -> Vec<String> {
        self.seen().iter().map(Seen::line).collect()
    }

    /// The `If-Match` of all writes so far, in order.
    pub fn if_matches(&self) -> Vec<String> {
        self.sent("PATCH")
            .iter()
            .map(|request| request.if_match().unwrap_or("none").to_owned())
            .collect()
    }

    pub fn sleeps(&self) -> Vec<Duration> {
        self.clock.sleeps()
    }

    /// Every sleep within its bounds, and no other.
    #[track_caller]
    pub fn slept(&self, bounds: &[(Duration, Duration)]) {
        let sleeps = self.sleeps();
        assert!(
            sleeps.len() == bounds.len()
                && sleeps
                    .iter()
                    .zip(bounds)
                    .all(|(slept, (least, most))| least <= slept && slept <= most),
            "{}: slept {sleeps:?}, not within {bounds:?}",
            self.name
        );
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let state = lock(&self.state);
        let left: Vec<_> = state.script.iter().map(|line| line.method).collect();
        assert!(
            state.problems.is_empty() && left.is_empty(),
            "{}: {:?}; never asked for: {left:?}; seen: {:#?}",
            self.name,
            state.problems,
            state.seen.iter().map(Seen::line).collect::<Vec<_>>()
        );
    }
}

pub fn json_response(status: u16, body: &Value) -> Response {
    Response::new(status).with_body(body.to_string())
}

/// Text that must be in an error's `Display`, with the whole text when it is not.
#[track_caller]
pub fn says(error: &Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    assert!(!text.contains('\n'), "{text:?}");
}

/// A manual clock that does something when somebody begins to sleep: once, the first time.
#[derive(Clone)]
pub struct AlarmClock {
    pub manual: ManualClock,
    alarm: Arc<Mutex<Option<Action>>>,
}

impl AlarmClock {
    pub fn new(manual: ManualClock, alarm: impl FnOnce() + Send + 'static) -> AlarmClock {
        AlarmClock {
            manual,
            alarm: Arc::new(Mutex::new(Some(Box::new(alarm)))),
        }
    }
}

impl std::fmt::Debug for AlarmClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AlarmClock")
    }
}

impl Clock for AlarmClock {
    fn now(&self) -> Instant {
        self.manual.now()
    }

    fn wall(&self) -> std::time::SystemTime {
        self.manual.wall()
    }

    fn sleep(&self, duration: Duration) {
        let alarm = lock(&self.alarm).take();
        if let Some(alarm) = alarm {
            alarm();
        }
        self.manual.sleep(duration);
    }
}

/// Holds whoever comes until it is opened.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    open: bool,
    waiting: usize,
}

impl Gate {
    pub fn new() -> Gate {
        Gate::default()
    }

    pub fn pass(&self) {
        let (state, changed) = &*self.0;
        let mut guard = lock(state);
        guard.waiting += 1;
        changed.notify_all();
        let (guard, timeout) = changed
            .wait_timeout_while(guard, PATIENCE, |state| !state.open)
            .unwrap();
        drop(guard);
        assert!(!timeout.timed_out(), "nobody opened the gate");
    }

    /// Until `number` have come.
    pub fn await_waiting(&self, number: usize) {
        let (state, changed) = &*self.0;
        let (_guard, timeout) = changed
            .wait_timeout_while(lock(state), PATIENCE, |state| state.waiting < number)
            .unwrap();
        assert!(!timeout.timed_out(), "nobody came to the gate");
    }

    pub fn open(&self) {
        let (state, changed) = &*self.0;
        lock(state).open = true;
        changed.notify_all();
    }
}
