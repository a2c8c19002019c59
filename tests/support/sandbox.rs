//! A stateful stand-in for the Genesys Cloud platform, for tests and examples.
//!
//! It knows the token endpoint, the brief's conversation endpoint, and the platform's participant, secure and custom
//! attributes, with versions, conflicts, throttling and scripted faults. It needs `mockito` and `serde_json`, and nothing
//! of the library under test: a mistake in the library must not be repeated here.
//!
//! What mockito 1.7.2 imposes on its users:
//!
//! - It answers one request at a time, on one thread, under one lock. Never send a request from inside
//!   [`Sandbox::world`]: the server waits for that lock. A delay here would delay every client, so there is none.
//! - Every answer says `connection: close`; that cannot be changed, so there are no kept-alive connections.
//! - Its listener cannot be shut down: after the last [`Sandbox`] is gone, its port answers 501 to everything.
//! - At log level debug, it logs whole requests, `Authorization` included (target `mockito::server`).
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mockito::{Matcher, Request, Server, ServerOpts};
use serde_json::{Map, Value, json};

pub const CLIENT_ID: &str = "sandbox-client";
pub const CLIENT_SECRET: &str = "sandbox-secret";

/// Base64 of `CLIENT_ID:CLIENT_SECRET`.
const BASIC_CREDENTIALS: &str = "c2FuZGJveC1jbGllbnQ6c2FuZGJveC1zZWNyZXQ=";
const TOKEN_PATH: &str = "/oauth/token";
const START_TIME: &str = "2026-01-01T00:00:00.000Z";
const MAX_BODY_BYTES: usize = 512_000;
const RATE_WINDOW: Duration = Duration::from_secs(60);

/// mockito matches a method exactly, so every method that shall be answered needs mocks of its own.
const METHODS: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];

/// One running stand-in. Clones share it; it lives until the last clone is dropped.
#[derive(Clone)]
pub struct Sandbox {
    running: Arc<Running>,
}

struct Running {
    server: Option<Server>,
    url: String,
    inside: Arc<Inside>,
}

/// One request as it came in, and the status it was answered with.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub method: String,
    /// As sent: percent-encoded, with the query.
    pub path: String,
    pub authorization: Option<String>,
    pub if_match: Option<String>,
    pub content_type: Option<String>,
    pub user_agent: Option<String>,
    /// `Null` when there was none, or when it was not JSON.
    pub body: Value,
    pub raw_body: String,
    pub status: u16,
}

impl Sandbox {
    /// Starts on a free port.
    pub fn start() -> Sandbox {
        Sandbox::start_on(0)
    }

    /// Starts on this port; panics when it is taken. A port that an earlier, dropped `Sandbox` of this process had is free.
    pub fn start_on(port: u16) -> Sandbox {
        let mut server = acquire_server(port);
        let inside = Arc::new(Inside(Mutex::new(State {
            world: World::new(),
            seen: Vec::new(),
            prepared: None,
            current: Answer::empty(200),
        })));
        for method in METHODS {
            for shape in Shape::ALL {
                mount(&mut server, method, shape, &inside);
            }
        }
        Sandbox {
            running: Arc::new(Running {
                url: server.url(),
                server: Some(server),
                inside,
            }),
        }
    }

    /// `http://127.0.0.1:PORT`, the base of the API and of the login alike.
    pub fn url(&self) -> String {
        self.running.url.clone()
    }

    /// Looks at or changes the world while no request is being answered. Never send a request from within `f`.
    pub fn world<R>(&self, f: impl FnOnce(&mut World) -> R) -> R {
        f(&mut self.running.inside.lock().world)
    }

    /// All requests so far, in order.
    pub fn requests(&self) -> Vec<Seen> {
        self.running.inside.lock().seen.clone()
    }

    /// All requests so far but those for a token, in order.
    pub fn api_requests(&self) -> Vec<Seen> {
        let mut seen = self.requests();
        seen.retain(|one| path_of(&one.path) != TOKEN_PATH);
        seen
    }

    pub fn clear_requests(&self) {
        self.running.inside.lock().seen.clear();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.reset();
            retired_servers().push_back(server);
        }
    }
}

/// Servers without a sandbox. mockito never ends a server's thread nor closes its listener, so a test binary that starts
/// hundreds would run out of file descriptors: retired ones are used again, the longest idle first, and only once there
/// are many, so that a late request of an earlier test does not meet the next test's world.
static RETIRED: Mutex<VecDeque<Server>> = Mutex::new(VecDeque::new());
const RETIRED_AT_LEAST: usize = 32;

fn retired_servers() -> MutexGuard<'static, VecDeque<Server>> {
    RETIRED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn acquire_server(port: u16) -> Server {
    let mut retired = retired_servers();
    let reused = if port == 0 {
        (retired.len() >= RETIRED_AT_LEAST).then_some(0)
    } else {
        retired
            .iter()
            .position(|server| server.socket_address().port() == port)
    };
    let server = reused.and_then(|at| retired.remove(at));
    drop(retired);
    // Not `Server::new`: that one blocks while 50 others are in use.
    server.unwrap_or_else(|| {
        Server::new_with_opts(ServerOpts {
            port,
            ..ServerOpts::default()
        })
    })
}

/// The sets of headers that an answer can have. mockito's header callbacks cannot leave their header out, so each set is a
/// mock of its own, and `match_request` picks the one.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Bare,
    Typed,
    TypedRetryAfter,
    TypedETag,
}

impl Shape {
    const ALL: [Shape; 4] = [
        Shape::Bare,
        Shape::Typed,
        Shape::TypedRetryAfter,
        Shape::TypedETag,
    ];
}

fn mount(server: &mut Server, method: &str, shape: Shape, inside: &Arc<Inside>) {
    let header = |get: fn(&Answer) -> String| {
        let inside = Arc::clone(inside);
        move |_: &Request| get(&inside.lock().current)
    };
    let (chooser, committer, body) = (Arc::clone(inside), Arc::clone(inside), Arc::clone(inside));
    let mut mock = server
        .mock(method, Matcher::Any)
        .match_request(move |request| chooser.lock().prepare(request) == shape)
        .with_status_code_from_request(move |_| committer.lock().commit())
        .with_header_from_request(
            "ININ-Correlation-Id",
            header(|answer| answer.correlation.clone()),
        )
        .with_body_from_request(move |_| std::mem::take(&mut body.lock().current.body));
    if shape != Shape::Bare {
        mock =
            mock.with_header_from_request("Content-Type", header(|answer| answer.media.to_owned()));
    }
    if shape == Shape::TypedRetryAfter {
        mock = mock.with_header_from_request(
            "Retry-After",
            header(|answer| answer.retry_after.clone().unwrap_or_default()),
        );
    }
    if shape == Shape::TypedETag {
        mock = mock.with_header_from_request(
            "ETag",
            header(|answer| answer.etag.clone().unwrap_or_default()),
        );
    }
    mock.create();
}

struct Inside(Mutex<State>);

impl Inside {
    /// A failed assertion inside `Sandbox::world` must not bring down the server, and other tests' messages with it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct State {
    world: World,
    seen: Vec<Seen>,
    prepared: Option<Answer>,
    current: Answer,
}

impl State {
    /// mockito asks every mock of the method, and then calls back the one that matched, all under its own lock. So the
    /// first asking does the work, the others only look at its result, and exactly one mock matches: whichever order
    /// they are asked in, and however often.
    fn prepare(&mut self, request: &Request) -> Shape {
        if self.prepared.is_none() {
            let call = Call::new(request);
            let answer = self.world.answer(&call);
            if self.world.record_requests {
                self.seen.push(call.seen(answer.status));
            }
            self.prepared = Some(answer);
        }
        self.prepared.as_ref().map_or(Shape::Bare, Answer::shape)
    }

    fn commit(&mut self) -> usize {
        if let Some(answer) = self.prepared.take() {
            self.current = answer;
        }
        usize::from(self.current.status)
    }
}

/// The platform's state, and the knobs of the sandbox.
pub struct World {
    pub conversations: BTreeMap<String, Conversation>,
    /// Unknown conversation ids come into being at first sight (as by [`World::add`]).
    pub auto_create: bool,
    /// The `expires_in` of new tokens, in seconds. It is only announced: tokens end by [`World::expire_tokens`], since the
    /// client under test may live by a clock of its own.
    pub token_lifetime: u64,
    pub tokens_issued: u64,
    pub scripted: VecDeque<Scripted>,
    /// What each so-many-th matching request meets, for as long as the sandbox runs.
    pub recurring: Vec<Recurring>,
    /// When not empty, every API request gets a 403 that names these.
    pub permissions_missing: Vec<String>,
    /// Switch off for long runs: what is recorded stays in memory.
    pub record_requests: bool,
    /// Sliding window of a minute over all API requests that were let through.
    pub rate_limit_per_minute: Option<u32>,
    /// A stale version of a custom record is a 400 that says so, instead of a 409.
    pub custom_conflict_as_400: bool,
    /// How the brief's endpoint tells versions.
    pub version_style: VersionStyle,
    valid_tokens: BTreeSet<String>,
    window: VecDeque<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionStyle {
    /// `"version": "7"`
    Text,
    /// `"version": 7`
    Number,
    /// `ETag: "7"`, and nothing in the body.
    ETag,
    /// Not at all.
    Missing,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    pub version: u64,
    pub attributes: Map<String, Value>,
    pub state: Option<String>,
    pub end_time: Option<String>,
    pub participants: Vec<Participant>,
    /// `None`: never written. GET then tells no version, and the first PUT needs none.
    pub secure: Option<Secure>,
    pub custom: BTreeMap<String, Record>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Participant {
    pub id: String,
    pub purpose: String,
    pub end_time: Option<String>,
    pub attributes: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Secure {
    pub version: u64,
    pub attributes: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    pub version: u64,
    /// Division ids. On the wire, both ways: a list of these strings.
    pub divisions: Vec<String>,
    /// The schema's id. On the wire: `schemaId` in requests, `schema: {id}` in answers.
    pub schema: String,
    pub attributes: Map<String, Value>,
}

/// Something other than the usual for one request. A request consumes the first that matches it. One that lets the work
/// go on ([`Action::Interfere`], [`Action::ApplyThenStatus`]) is left for the next request when this one is refused before
/// any work (401, 403, 413).
#[derive(Clone, Debug, PartialEq)]
pub struct Scripted {
    /// Empty: any.
    pub methods: &'static [&'static str],
    /// Looked for in the path as sent and in the decoded one.
    pub path_contains: Option<String>,
    pub action: Action,
}

/// A [`Scripted`] that comes back with every `every`-th request that it matches.
#[derive(Clone, Debug, PartialEq)]
pub struct Recurring {
    pub every: u64,
    pub scripted: Scripted,
    pub matched: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Answered instead of doing the work. A `Null` body stands for what the platform says with an error status, and for
    /// no body otherwise.
    Status { status: u16, body: Value },
    /// 429 with the platform's body; the header as given, or none.
    RateLimited { retry_after: Option<String> },
    /// Another writer comes first and raises the version of the store that the request addresses; then the request is
    /// handled as usual, so that a locked write meets a conflict.
    Interfere { key: String, value: Value },
    /// The work is done, but the answer is this one (bodies as for `Status`). Work that is refused is answered as usual.
    ApplyThenStatus { status: u16, body: Value },
    /// Any text as body, instead of doing the work.
    Raw { status: u16, body: String },
}

impl Scripted {
    /// For a PATCH or PUT of the API.
    pub fn on_write(action: Action) -> Scripted {
        Scripted::new(&["PATCH", "PUT"], Some("/api/"), action)
    }

    /// For a GET of the API.
    pub fn on_read(action: Action) -> Scripted {
        Scripted::new(&["GET"], Some("/api/"), action)
    }

    /// For a request for a token.
    pub fn on_token(action: Action) -> Scripted {
        Scripted::new(&["POST"], Some(TOKEN_PATH), action)
    }

    /// For any request, one for a token included.
    pub fn any(action: Action) -> Scripted {
        Scripted::new(&[], None, action)
    }

    fn new(methods: &'static [&'static str], path: Option<&str>, action: Action) -> Scripted {
        Scripted {
            methods,
            path_contains: path.map(str::to_owned),
            action,
        }
    }

    fn matches(&self, call: &Call) -> bool {
        let part = self.path_contains.as_deref().unwrap_or_default();
        (self.methods.is_empty() || self.methods.contains(&call.method.as_str()))
            && (call.target.contains(part) || decode(&call.target).contains(part))
    }
}

impl Action {
    /// How the token endpoint throttles: a 400.
    pub fn token_rate_limited() -> Action {
        let text = "rate limit exceeded; please try again later";
        let body =
            json!({"error": "invalid_request", "description": text, "error_description": text});
        Action::Status { status: 400, body }
    }

    fn lets_work_go_on(&self) -> bool {
        matches!(
            self,
            Action::Interfere { .. } | Action::ApplyThenStatus { .. }
        )
    }
}

impl World {
    fn new() -> World {
        World {
            conversations: BTreeMap::new(),
            auto_create: false,
            token_lifetime: 86_400,
            tokens_issued: 0,
            scripted: VecDeque::new(),
            recurring: Vec::new(),
            permissions_missing: Vec::new(),
            record_requests: true,
            rate_limit_per_minute: None,
            custom_conflict_as_400: false,
            version_style: VersionStyle::Text,
            valid_tokens: BTreeSet::new(),
            window: VecDeque::new(),
        }
    }

    /// A live conversation of version 1, with the participants `{id}-agent` and `{id}-customer`, in this order. It replaces
    /// one of the same id.
    pub fn add(&mut self, id: &str) -> &mut Conversation {
        let conversation = self.conversations.entry(id.to_owned()).or_default();
        *conversation = Conversation::live(id);
        conversation
    }

    /// Refuses every token from now on that was issued or accepted before.
    pub fn expire_tokens(&mut self) {
        self.valid_tokens.clear();
    }

    /// Accepts a token that was not issued here, as for a client that is given one.
    pub fn accept_token(&mut self, token: &str) {
        self.valid_tokens.insert(token.to_owned());
    }

    pub fn script(&mut self, scripted: Scripted) {
        if let Action::Status { status, .. }
        | Action::ApplyThenStatus { status, .. }
        | Action::Raw { status, .. } = scripted.action
        {
            assert!((200..1000).contains(&status), "not a status: {status}");
        }
        self.scripted.push_back(scripted);
    }

    fn answer(&mut self, call: &Call) -> Answer {
        if call.is_api()
            && let Some(seconds) = self.seconds_until_room(Instant::now())
        {
            return Answer::rate_limited(Some(seconds.to_string()));
        }
        for recurring in &mut self.recurring {
            if recurring.scripted.matches(call) {
                recurring.matched += 1;
                if recurring.matched % recurring.every.max(1) == 0 {
                    self.scripted.push_front(recurring.scripted.clone());
                }
            }
        }
        let matching = self.scripted.iter().position(|one| one.matches(call));
        let goes_on = matching.is_some_and(|at| self.scripted[at].action.lets_work_go_on());
        if goes_on && let Some(refusal) = self.refusal(call) {
            return refusal;
        }
        let action = matching
            .and_then(|at| self.scripted.remove(at))
            .map(|scripted| scripted.action);
        match action {
            None => self.refusal(call).unwrap_or_else(|| self.work(call)),
            Some(Action::Status { status, body }) => Answer::scripted(call, status, body),
            Some(Action::RateLimited { retry_after }) => Answer::rate_limited(retry_after),
            Some(Action::Raw { status, body }) => Answer::raw(status, body),
            Some(Action::Interfere { key, value }) => {
                self.interfere(call, key, value);
                self.work(call)
            }
            Some(Action::ApplyThenStatus { status, body }) => {
                let done = self.work(call);
                if done.status < 300 {
                    Answer::scripted(call, status, body)
                } else {
                    done
                }
            }
        }
    }

    /// Seconds, rounded up, until one more request fits into the window; `None` when it fits now, and then it is counted.
    fn seconds_until_room(&mut self, now: Instant) -> Option<u64> {
        let limit = usize::try_from(self.rate_limit_per_minute?).unwrap_or(usize::MAX);
        while let Some(oldest) = self.window.front()
            && now.duration_since(*oldest) >= RATE_WINDOW
        {
            self.window.pop_front();
        }
        if self.window.len() < limit {
            self.window.push_back(now);
            return None;
        }
        // The limit may have been lowered since: room comes when enough of the oldest have left.
        let blocking = self.window.get(self.window.len().saturating_sub(limit));
        let wait = blocking.map_or(RATE_WINDOW, |sent| {
            RATE_WINDOW.saturating_sub(now.duration_since(*sent))
        });
        Some(wait.as_millis().div_ceil(1000).max(1) as u64)
    }

    /// What the gateway refuses before any work.
    fn refusal(&self, call: &Call) -> Option<Answer> {
        if !call.is_api() {
            return None;
        }
        let token = call.authorization.as_deref().and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token)
        });
        if !token.is_some_and(|token| self.valid_tokens.contains(token)) {
            return Some(Answer::error(
                401,
                "bad.credentials",
                "Invalid login credentials.",
            ));
        }
        if !self.permissions_missing.is_empty() {
            return Some(Answer::missing_permissions(&self.permissions_missing));
        }
        if call.body.len() > MAX_BODY_BYTES {
            return Some(Answer::platform_error(413));
        }
        None
    }

    fn work(&mut self, call: &Call) -> Answer {
        let segments: Vec<&str> = call.segments.iter().map(String::as_str).collect();
        let result = match segments.as_slice() {
            ["oauth", "token"] => self.token(call),
            ["api", "v2", "tokens", "me"] => match call.method.as_str() {
                "GET" => Ok(Answer::json(200, &token_info())),
                _ => Err(Answer::platform_error(405)),
            },
            ["api", "v2", "conversations", id, rest @ ..] => self.conversation(call, id, rest),
            _ => Err(Answer::platform_error(404)),
        };
        result.unwrap_or_else(|refusal| refusal)
    }

    fn token(&mut self, call: &Call) -> Result<Answer, Answer> {
        if call.method != "POST" {
            return Err(Answer::platform_error(405));
        }
        let given = call.authorization.as_deref().and_then(|value| {
            let (scheme, credentials) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("basic").then_some(credentials)
        });
        if given != Some(BASIC_CREDENTIALS) {
            return Err(Answer::token_error(
                401,
                "invalid_client",
                "authentication failed",
            ));
        }
        if call.raw_body() != "grant_type=client_credentials" {
            let text = "the only grant type here is client_credentials";
            return Err(Answer::token_error(400, "unsupported_grant_type", text));
        }
        self.tokens_issued += 1;
        let token = format!("sandbox-token-{}", self.tokens_issued);
        self.accept_token(&token);
        let body = json!({
            "access_token": token,
            "token_type": "bearer",
            "expires_in": self.token_lifetime,
        });
        Ok(Answer::json(200, &body))
    }

    fn conversation(&mut self, call: &Call, id: &str, rest: &[&str]) -> Result<Answer, Answer> {
        let known = matches!(
            rest,
            [] | ["attributes" | "secureattributes" | "customattributes"]
                | ["customattributes", _]
                | ["participants", _, "attributes"]
        );
        if !known {
            return Err(Answer::platform_error(404));
        }
        let style = self.version_style;
        let conflict_as_400 = self.custom_conflict_as_400;
        let conversation = self.find(id).ok_or_else(|| Answer::platform_error(404))?;
        match (call.method.as_str(), rest) {
            ("GET", []) => Ok(conversation.read(id, style)),
            ("PATCH", ["attributes"]) => conversation.patch(id, call, style),
            ("PATCH", ["participants", participant, "attributes"]) => {
                conversation.patch_participant(participant, call)
            }
            ("GET", ["secureattributes"]) => Ok(conversation.read_secure()),
            ("PATCH", ["secureattributes"]) => conversation.patch_secure(call),
            ("PUT", ["secureattributes"]) => conversation.put_secure(call),
            ("GET", ["customattributes"]) => {
                let records = conversation.custom.iter();
                let results: Vec<Value> = records.map(|(key, one)| one.body(id, key)).collect();
                Ok(Answer::json(200, &json!({ "results": results })))
            }
            ("GET", ["customattributes", record]) => conversation
                .custom
                .get(*record)
                .map(|found| Answer::json(200, &found.body(id, record)))
                .ok_or_else(|| Answer::platform_error(404)),
            ("PATCH", ["customattributes"]) => conversation.patch_custom(call, conflict_as_400),
            ("PUT", ["customattributes"]) => conversation.put_custom(call, conflict_as_400),
            _ => Err(Answer::platform_error(405)),
        }
    }

    fn find(&mut self, id: &str) -> Option<&mut Conversation> {
        if self.auto_create && !id.is_empty() && !self.conversations.contains_key(id) {
            self.add(id);
        }
        self.conversations.get_mut(id)
    }

    fn interfere(&mut self, call: &Call, key: String, value: Value) {
        let segments: Vec<&str> = call.segments.iter().map(String::as_str).collect();
        let ["api", "v2", "conversations", id, rest @ ..] = segments.as_slice() else {
            return;
        };
        let Some(conversation) = self.find(id) else {
            return;
        };
        match rest {
            [] | ["attributes"] => {
                conversation.attributes.insert(key, value);
                conversation.version += 1;
            }
            ["participants", participant, ..] => {
                let found = conversation
                    .participants
                    .iter_mut()
                    .find(|one| one.id == *participant);
                if let Some(found) = found {
                    found.attributes.insert(key, text_of(value));
                }
            }
            ["secureattributes"] => {
                let secure = conversation.secure.get_or_insert_default();
                secure.attributes.insert(key, text_of(value));
                secure.version += 1;
            }
            ["customattributes", ..] => {
                let body = call.json();
                let named = body.get("id").and_then(Value::as_str);
                let Some(name) = rest.get(1).copied().or(named) else {
                    return;
                };
                let schema = body.get("schemaId").and_then(Value::as_str);
                let record = conversation
                    .custom
                    .entry(name.to_owned())
                    .or_insert_with(|| Record {
                        schema: schema.unwrap_or_default().to_owned(),
                        ..Record::default()
                    });
                record.attributes.insert(key, value);
                record.version += 1;
            }
            _ => {}
        }
    }
}

impl Default for Conversation {
    fn default() -> Conversation {
        Conversation {
            version: 1,
            attributes: Map::new(),
            state: None,
            end_time: None,
            participants: Vec::new(),
            secure: None,
            custom: BTreeMap::new(),
        }
    }
}

impl Conversation {
    fn live(id: &str) -> Conversation {
        // The customer comes second, so that taking the first participant is not enough.
        let participant = |purpose: &str| Participant {
            id: format!("{id}-{purpose}"),
            purpose: purpose.to_owned(),
            end_time: None,
            attributes: BTreeMap::new(),
        };
        Conversation {
            participants: vec![participant("agent"), participant("customer")],
            ..Conversation::default()
        }
    }

    fn read(&self, id: &str, style: VersionStyle) -> Answer {
        let participants: Vec<Value> = self.participants.iter().map(Participant::body).collect();
        let mut body = json!({
            "id": id,
            "startTime": START_TIME,
            "address": "tel:+13175550100",
            "recordingState": "NONE",
            "securePause": false,
            "participants": participants,
            "divisions": [],
            "recentTransfers": [],
            "attributes": self.attributes,
            "selfUri": format!("/api/v2/conversations/{id}"),
        });
        if let Some(end_time) = &self.end_time {
            body["endTime"] = json!(end_time);
        }
        if let Some(state) = &self.state {
            body["state"] = json!(state);
        }
        Answer::versioned(body, self.version, style)
    }

    fn patch(&mut self, id: &str, call: &Call, style: VersionStyle) -> Result<Answer, Answer> {
        let body = call.object()?;
        let attributes = attributes_of(&body)?;
        for (key, value) in attributes {
            if !is_brief_key(key) || !is_brief_value(value) {
                return Err(Answer::bad_request(&format!(
                    "Value is not valid for attribute [{key}]."
                )));
            }
        }
        if attributes.is_empty() {
            return Err(Answer::bad_request("attributes must not be empty."));
        }
        if body.get("metadata").is_some_and(|value| !value.is_object()) {
            return Err(Answer::bad_request("metadata must be an object."));
        }
        let Some(if_match) = call.if_match.as_deref() else {
            return Err(Answer::error(
                428,
                "precondition.required",
                "The If-Match header is required.",
            ));
        };
        // Quoted, as the brief and HTTP want it: a bare version is a mistake of the client, not a conflict.
        let Some(expected) = if_match
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'))
        else {
            return Err(Answer::bad_request(
                "The If-Match header must be a quoted version.",
            ));
        };
        if expected != self.version.to_string() {
            return Err(Answer::error(
                412,
                "precondition.failed",
                "The version in If-Match is not the current version of the conversation.",
            ));
        }
        self.attributes.extend(attributes.clone());
        self.version += 1;
        let body = json!({"id": id, "attributes": self.attributes});
        Ok(Answer::versioned(body, self.version, style))
    }

    fn patch_participant(&mut self, id: &str, call: &Call) -> Result<Answer, Answer> {
        let participant = self.participants.iter_mut().find(|one| one.id == id);
        let participant = participant.ok_or_else(|| Answer::platform_error(404))?;
        let attributes = strings_of(&call.object()?)?;
        participant.attributes.extend(attributes);
        Ok(Answer::empty(202))
    }

    fn read_secure(&self) -> Answer {
        let body = match &self.secure {
            None => json!({"attributes": {}}),
            Some(secure) => json!({"attributes": secure.attributes, "version": secure.version}),
        };
        Answer::json(200, &body)
    }

    fn patch_secure(&mut self, call: &Call) -> Result<Answer, Answer> {
        let attributes = strings_of(&call.object()?)?;
        let secure = self.secure.get_or_insert_default();
        secure.attributes.extend(attributes);
        secure.version += 1;
        Ok(Answer::json(202, &json!("update request was accepted")))
    }

    fn put_secure(&mut self, call: &Call) -> Result<Answer, Answer> {
        let body = call.object()?;
        let attributes = strings_of(&body)?;
        let current = self.secure.as_ref().map(|secure| secure.version);
        if version_of(&body)? != current {
            return Err(Answer::platform_error(409));
        }
        let version = current.unwrap_or(0) + 1;
        self.secure = Some(Secure {
            version,
            attributes,
        });
        Ok(Answer::json(202, &json!("set request was accepted")))
    }

    fn patch_custom(&mut self, call: &Call, conflict_as_400: bool) -> Result<Answer, Answer> {
        let change = CustomChange::parse(call)?;
        let record = self.custom.get_mut(&change.id);
        let record = record.ok_or_else(|| Answer::platform_error(404))?;
        change.check_version(Some(record.version), conflict_as_400)?;
        record.attributes.extend(change.attributes);
        // The platform's trap: what a PATCH leaves out survives, but for the divisions.
        record.divisions = change.divisions;
        record.version += 1;
        Ok(Answer::empty(200))
    }

    fn put_custom(&mut self, call: &Call, conflict_as_400: bool) -> Result<Answer, Answer> {
        let change = CustomChange::parse(call)?;
        let existing = self.custom.get(&change.id);
        change.check_version(existing.map(|record| record.version), conflict_as_400)?;
        let schema = match (existing, change.schema) {
            (None, None) => return Err(Answer::bad_request("schemaId is required.")),
            (None, Some(given)) => given,
            (Some(record), None) => record.schema.clone(),
            (Some(record), Some(given)) if given == record.schema => given,
            (Some(_), Some(_)) => return Err(Answer::bad_request("schemaId cannot be changed.")),
        };
        let record = Record {
            version: existing.map_or(0, |record| record.version) + 1,
            divisions: change.divisions,
            schema,
            attributes: change.attributes,
        };
        let answer = Answer::json(200, &json!({"id": change.id}));
        self.custom.insert(change.id, record);
        Ok(answer)
    }
}

impl Participant {
    fn body(&self) -> Value {
        let mut body = json!({
            "id": self.id,
            "startTime": START_TIME,
            "connectedTime": START_TIME,
            "purpose": self.purpose,
            "wrapupRequired": false,
            "mediaRoles": ["full"],
            "attributes": self.attributes,
        });
        if let Some(end_time) = &self.end_time {
            body["endTime"] = json!(end_time);
        }
        for media in [
            "calls",
            "callbacks",
            "chats",
            "cobrowsesessions",
            "emails",
            "messages",
            "screenshares",
            "socialExpressions",
            "videos",
            "internalMessages",
        ] {
            body[media] = json!([]);
        }
        body
    }
}

impl Record {
    fn body(&self, conversation: &str, id: &str) -> Value {
        json!({
            "id": id,
            "conversationId": conversation,
            "divisions": self.divisions,
            "schema": {"id": self.schema},
            "customAttributes": self.attributes,
            "version": self.version,
            "dateCreated": START_TIME,
            "dateModified": START_TIME,
        })
    }
}

/// The body of a PUT or PATCH of a custom record.
struct CustomChange {
    id: String,
    divisions: Vec<String>,
    version: Option<u64>,
    schema: Option<String>,
    attributes: Map<String, Value>,
}

impl CustomChange {
    fn parse(call: &Call) -> Result<CustomChange, Answer> {
        let body = call.object()?;
        let text = |name: &str| match body.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
            Some(_) => Err(Answer::bad_request(&format!("{name} must be a string."))),
        };
        let wrong_divisions = || Answer::bad_request("divisions must be a list of division ids.");
        let divisions = match body.get("divisions") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(list)) => list
                .iter()
                .map(|one| one.as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or_else(wrong_divisions)?,
            Some(_) => return Err(wrong_divisions()),
        };
        let attributes = body.get("customAttributes").and_then(Value::as_object);
        Ok(CustomChange {
            id: text("id")?.ok_or_else(|| Answer::bad_request("id is required."))?,
            divisions,
            version: version_of(&body)?,
            schema: text("schemaId")?,
            attributes: attributes
                .cloned()
                .ok_or_else(|| Answer::bad_request("customAttributes is required."))?,
        })
    }

    fn check_version(&self, current: Option<u64>, conflict_as_400: bool) -> Result<(), Answer> {
        let Some(given) = self.version else {
            return Ok(());
        };
        match current {
            Some(current) if current == given => Ok(()),
            current if conflict_as_400 => Err(Answer::bad_request(&format!(
                "Version [{given}] does not match the current version [{}].",
                current.unwrap_or(0)
            ))),
            _ => Err(Answer::platform_error(409)),
        }
    }
}

/// A request, taken apart.
struct Call {
    method: String,
    target: String,
    /// Of the path, percent-decoded after splitting: an encoded slash does not separate.
    segments: Vec<String>,
    authorization: Option<String>,
    if_match: Option<String>,
    content_type: Option<String>,
    user_agent: Option<String>,
    body: Vec<u8>,
}

impl Call {
    fn new(request: &Request) -> Call {
        let header = |name: &str| {
            let values = request.header(name);
            values
                .first()
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let path = request.path();
        Call {
            method: request.method().to_owned(),
            target: request.path_and_query().to_owned(),
            segments: path.split('/').skip(1).map(decode).collect(),
            authorization: header("authorization"),
            if_match: header("if-match"),
            content_type: header("content-type"),
            user_agent: header("user-agent"),
            body: request.body().cloned().unwrap_or_default(),
        }
    }

    fn is_api(&self) -> bool {
        self.target.starts_with("/api/")
    }

    fn raw_body(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    fn object(&self) -> Result<Map<String, Value>, Answer> {
        let media = self.content_type.as_deref().unwrap_or_default();
        let media = media.split(';').next().unwrap_or_default().trim();
        if !media.eq_ignore_ascii_case("application/json") {
            return Err(Answer::platform_error(415));
        }
        match self.json() {
            Value::Object(body) => Ok(body),
            _ => Err(Answer::platform_error(400)),
        }
    }

    fn seen(self, status: u16) -> Seen {
        Seen {
            body: self.json(),
            raw_body: self.raw_body(),
            method: self.method,
            path: self.target,
            authorization: self.authorization,
            if_match: self.if_match,
            content_type: self.content_type,
            user_agent: self.user_agent,
            status,
        }
    }
}

struct Answer {
    status: u16,
    correlation: String,
    media: &'static str,
    retry_after: Option<String>,
    etag: Option<String>,
    body: Vec<u8>,
}

impl Answer {
    fn shape(&self) -> Shape {
        if self.retry_after.is_some() {
            Shape::TypedRetryAfter
        } else if self.etag.is_some() {
            Shape::TypedETag
        } else if self.body.is_empty() {
            Shape::Bare
        } else {
            Shape::Typed
        }
    }

    fn empty(status: u16) -> Answer {
        // Unique in the process, not in the sandbox only: a mixed-up log then still tells them apart.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Answer {
            status,
            correlation: format!("5a4db0c5-0000-4000-8000-{number:012x}"),
            media: "application/json",
            retry_after: None,
            etag: None,
            body: Vec::new(),
        }
    }

    fn json(status: u16, body: &Value) -> Answer {
        Answer {
            body: body.to_string().into_bytes(),
            ..Answer::empty(status)
        }
    }

    fn raw(status: u16, body: String) -> Answer {
        // A status that mockito cannot send would poison it for all later requests.
        let status = if (200..1000).contains(&status) {
            status
        } else {
            500
        };
        Answer {
            media: "text/html",
            body: body.into_bytes(),
            ..Answer::empty(status)
        }
    }

    fn scripted(call: &Call, status: u16, body: Value) -> Answer {
        if !body.is_null() {
            return Answer {
                media: "application/json",
                ..Answer::raw(status, body.to_string())
            };
        }
        match status {
            400.. if call.is_api() => Answer::platform_error(status),
            400.. => Answer::token_error(status, "server_error", "scripted"),
            _ => Answer::raw(status, String::new()),
        }
    }

    fn versioned(mut body: Value, version: u64, style: VersionStyle) -> Answer {
        let mut etag = None;
        match style {
            VersionStyle::Text => body["version"] = json!(version.to_string()),
            VersionStyle::Number => body["version"] = json!(version),
            VersionStyle::ETag => etag = Some(format!("\"{version}\"")),
            VersionStyle::Missing => {}
        }
        Answer {
            etag,
            ..Answer::json(200, &body)
        }
    }

    fn rate_limited(retry_after: Option<String>) -> Answer {
        let seconds = retry_after.as_deref().unwrap_or("60");
        let message =
            format!("Rate limit exceeded the maximum. Retry the request in [{seconds}] seconds");
        Answer {
            retry_after: retry_after.clone(),
            ..Answer::error(429, "too.many.requests.retry.after", &message)
        }
    }

    fn missing_permissions(missing: &[String]) -> Answer {
        let start = "Unable to perform the requested action. You must have at least one of the following \
                     permissions assigned:";
        let names = format!("[{}]", missing.join(", "));
        let extra = json!({
            "messageWithParams": format!("{start} {{permissions}}"),
            "messageParams": {"permissions": names},
        });
        Answer::error_with(
            403,
            "missing.any.permissions",
            &format!("{start} {names}"),
            extra,
        )
    }

    fn bad_request(message: &str) -> Answer {
        Answer::error(400, "bad.request", message)
    }

    /// What the platform says with this status when there is nothing more to say.
    fn platform_error(status: u16) -> Answer {
        let (code, message) = match status {
            400 => (
                "bad.request",
                "The request could not be understood by the server due to malformed syntax.",
            ),
            401 => ("bad.credentials", "Invalid login credentials."),
            403 => (
                "not.authorized",
                "You are not authorized to perform the requested action.",
            ),
            404 => ("not.found", "The requested resource was not found."),
            405 => (
                "method.not.allowed",
                "The requested method is not allowed for this resource.",
            ),
            408 => (
                "client.timeout",
                "The client did not produce a request in time.",
            ),
            409 => (
                "general.conflict",
                "The request conflicts with the current state of the target resource.",
            ),
            412 => (
                "precondition.failed",
                "A precondition of the request was not met.",
            ),
            413 => (
                "request.entity.too.large",
                "The request is over the size limit. Maximum bytes: 512000",
            ),
            415 => (
                "unsupported.media.type",
                "The content type of the request is not supported.",
            ),
            429 => return Answer::rate_limited(None),
            500 => (
                "internal.server.error",
                "The server encountered an unexpected condition which prevented it from fulfilling the request.",
            ),
            503 => (
                "service.unavailable",
                "Service Unavailable - The server is currently unavailable (because it is overloaded or down for \
                 maintenance).",
            ),
            504 => ("request.timeout", "The request timed out."),
            _ => (
                "sandbox.error",
                "The sandbox was told to answer this status.",
            ),
        };
        Answer::error(status, code, message)
    }

    fn error(status: u16, code: &str, message: &str) -> Answer {
        Answer::error_with(status, code, message, json!({}))
    }

    fn error_with(status: u16, code: &str, message: &str, extra: Value) -> Answer {
        let blank = Answer::empty(status);
        let mut body = json!({
            "message": message,
            "code": code,
            "status": status,
            "contextId": blank.correlation,
            "details": [],
            "errors": [],
        });
        if let (Value::Object(body), Value::Object(extra)) = (&mut body, extra) {
            body.extend(extra);
        }
        Answer {
            body: body.to_string().into_bytes(),
            ..blank
        }
    }

    /// The token endpoint's errors have a shape of their own.
    fn token_error(status: u16, error: &str, text: &str) -> Answer {
        let body = json!({"error": error, "description": text, "error_description": text});
        Answer::json(status, &body)
    }
}

fn token_info() -> Value {
    let organization = json!({"id": "5a4db0c5-0000-4000-9000-000000000001", "name": "Sandbox"});
    json!({
        "organization": organization,
        "homeOrganization": organization,
        "authorizedScope": [],
        "OAuthClient": {
            "id": CLIENT_ID,
            "name": "Sandbox client",
            "organization": organization,
        },
    })
}

fn attributes_of(body: &Map<String, Value>) -> Result<&Map<String, Value>, Answer> {
    let attributes = body.get("attributes").and_then(Value::as_object);
    attributes.ok_or_else(|| Answer::bad_request("attributes must be an object."))
}

fn strings_of(body: &Map<String, Value>) -> Result<BTreeMap<String, String>, Answer> {
    let attributes = attributes_of(body)?.iter();
    attributes
        .map(|(key, value)| match value {
            Value::String(text) => Ok((key.clone(), text.clone())),
            _ => Err(Answer::bad_request(&format!(
                "Value of attribute [{key}] must be a string."
            ))),
        })
        .collect()
}

fn version_of(body: &Map<String, Value>) -> Result<Option<u64>, Answer> {
    match body.get("version") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(version) => Ok(Some(version)),
            None => Err(Answer::bad_request("version must be an integer.")),
        },
    }
}

fn is_brief_key(key: &str) -> bool {
    (1..=128).contains(&key.encode_utf16().count())
}

fn is_brief_value(value: &Value) -> bool {
    match value {
        Value::Bool(_) => true,
        Value::String(text) => text.encode_utf16().count() <= 1024,
        // `85.0` is refused: a client is to send integers as such.
        Value::Number(number) => number.as_u64().is_some_and(|number| number <= 999_999_999),
        _ => false,
    }
}

fn text_of(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

fn path_of(target: &str) -> &str {
    target.split('?').next().unwrap_or_default()
}

/// What is not valid percent-encoding stays as it is.
fn decode(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
        if first == b'%'
            && let (Some(high), Some(low)) = (digit(0), digit(1))
        {
            decoded.push((high * 16 + low) as u8);
            rest = &after[2..];
        } else {
            decoded.push(first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
