//! The platform's state and how it answers, as one pure machine: a request goes in, an answer comes out.
//!
//! It knows the token endpoint, all four stores of attributes with their versions and conflicts, the bulk read of
//! conversations, and throttling; whatever else is to happen is scripted by [`Fault`]s. It does no I/O, reads no clock, and
//! uses nothing else of this crate: a mistake of the library is not repeated in what it is tested against.

mod answer;
mod call;
mod fault;
mod stores;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde_json::{Map, Value, json};

pub(crate) use answer::{Answer, Reply};
pub(crate) use call::Call;
pub use call::Seen;
pub use fault::{Action, Fault};
pub use stores::{Conversation, Participant, Record, Secure};

/// The client id that [`World`] knows.
pub const CLIENT_ID: &str = "sandbox-client";
/// The secret of [`CLIENT_ID`].
pub const CLIENT_SECRET: &str = "sandbox-secret";

/// Base64 of `CLIENT_ID:CLIENT_SECRET`.
const BASIC_CREDENTIALS: &str = "c2FuZGJveC1jbGllbnQ6c2FuZGJveC1zZWNyZXQ=";
const TOKEN_PATH: &str = "/oauth/token";
const START_TIME: &str = "2026-01-01T00:00:00.000Z";
const MAX_BODY_BYTES: usize = 512_000;
const RATE_WINDOW: Duration = Duration::from_secs(60);

/// All that the platform holds, and the knobs of the stand-in.
#[derive(Debug)]
#[non_exhaustive]
pub struct World {
    /// By id.
    pub conversations: BTreeMap<String, Conversation>,
    /// Unknown conversation ids come into being at first sight (as by [`World::add`]).
    pub auto_create: bool,
    /// The version of conversations that are added: 1.
    pub first_version: u64,
    /// Off: any client id logs in and any token is good.
    pub check_credentials: bool,
    /// The `expires_in` of new tokens, in seconds. It is only announced: tokens end by [`World::expire_tokens`], since the
    /// client under test may live by a clock of its own.
    pub token_lifetime: u64,
    /// The name of the organization that tokens belong to.
    pub organization: String,
    /// When not empty, every API request gets a 403 that names these.
    pub permissions_missing: Vec<String>,
    /// Sliding window of a minute over all API requests that were let through; beyond it they get a 429.
    pub rate_limit_per_minute: Option<u32>,
    /// A stale version of a custom record is a 400 that says so, instead of a 409.
    pub custom_conflict_as_400: bool,
    /// How the conversation-level endpoint tells versions.
    pub version_style: VersionStyle,
    /// How many ids one bulk read takes: 100. More are a 400.
    pub max_bulk_ids: usize,
    /// Conversations that the bulk read does not show yet, as a conversation that has only just begun.
    pub missing_in_bulk: BTreeSet<String>,
    /// Off: neither requests nor writes are kept. For long runs, since what is kept stays in memory.
    pub keep_log: bool,
    /// Requests and their status, in order.
    pub requests: Vec<Seen>,
    /// Writes that took effect, in order. What [`Action::Interfere`] and tests change themselves is not among them.
    pub writes: Vec<Write>,
    /// How often what happened.
    pub counters: Counters,
    faults: VecDeque<Fault>,
    valid_tokens: BTreeSet<String>,
    window: VecDeque<Duration>,
}

/// How the conversation-level endpoint tells versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
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

/// One of the stores of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Store {
    /// The conversation-level attributes.
    Conversation,
    /// The attributes of the participant with this id.
    Participant(String),
    /// The secure attributes.
    Secure,
    /// The custom record with this id.
    Custom(String),
}

/// A write that took effect.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Write {
    /// The conversation's id.
    pub conversation: String,
    /// Where in the conversation.
    pub store: Store,
    /// The attributes as sent.
    pub sent: Map<String, Value>,
    /// The keys that have another value than before, or had none.
    pub changed: Vec<String>,
    /// The keys that are gone.
    pub removed: Vec<String>,
    /// The store's version after the write; participants have none.
    pub version: Option<u64>,
}

/// How often what happened, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Tokens that were issued.
    pub logins: u64,
    /// Reads of the API that were answered with what was asked for, bulk reads among them.
    pub reads: u64,
    /// Bulk reads among them.
    pub bulk_reads: u64,
    /// Writes that took effect, whether or not their answer arrived.
    pub writes: u64,
    /// Writes that were refused for their version.
    pub conflicts: u64,
    /// Requests that were answered 429.
    pub throttled: u64,
}

impl World {
    /// Without conversations.
    pub(crate) fn new() -> World {
        World {
            conversations: BTreeMap::new(),
            auto_create: false,
            first_version: 1,
            check_credentials: true,
            token_lifetime: 86_400,
            organization: "Sandbox".to_owned(),
            permissions_missing: Vec::new(),
            rate_limit_per_minute: None,
            custom_conflict_as_400: false,
            version_style: VersionStyle::Text,
            max_bulk_ids: 100,
            missing_in_bulk: BTreeSet::new(),
            keep_log: true,
            requests: Vec::new(),
            writes: Vec::new(),
            counters: Counters::default(),
            faults: VecDeque::new(),
            valid_tokens: BTreeSet::new(),
            window: VecDeque::new(),
        }
    }

    /// A live conversation of the first version, with the participants `{id}-agent` and `{id}-customer`, in this order. It replaces
    /// one of the same id.
    pub fn add(&mut self, id: &str) -> &mut Conversation {
        let conversation = self.conversations.entry(id.to_owned()).or_default();
        *conversation = Conversation::live(id, self.first_version);
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

    /// Adds a fault. Each request meets at most one: the first that is due for it, in the order in which they were added.
    ///
    /// # Panics
    ///
    /// If the fault's status is not between 200 and 999.
    pub fn script(&mut self, fault: Fault) {
        assert!(fault.action.is_possible(), "no status: {:?}", fault.action);
        self.faults.push_back(fault);
    }

    /// Faults that were added and have not ended, in their order.
    pub fn faults(&self) -> impl Iterator<Item = &Fault> {
        self.faults.iter()
    }

    /// Ends all faults.
    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// Answers a request.
    pub(crate) fn handle(&mut self, call: &Call) -> Reply {
        let reply = self.reply(call);
        if let Reply::Answer(answer) = &reply
            && answer.status == 429
        {
            self.counters.throttled += 1;
        }
        if self.keep_log {
            self.requests.push(call.seen(reply.status()));
        }
        reply
    }

    fn reply(&mut self, call: &Call) -> Reply {
        if call.is_api()
            && let Some(seconds) = self.seconds_until_room(call.at)
        {
            return Answer::rate_limited(Some(seconds.to_string())).into();
        }
        let refusal = self.refusal(call);
        let action = self.next_fault(call, refusal.is_some());
        let work = |world: &mut World| refusal.clone().unwrap_or_else(|| world.work(call));
        match action {
            None => work(self).into(),
            Some(Action::Status { status, body }) => Answer::scripted(call, status, body).into(),
            Some(Action::RateLimited { retry_after }) => Answer::rate_limited(retry_after).into(),
            Some(Action::Unavailable { retry_after }) => {
                Answer::unavailable(call, retry_after).into()
            }
            Some(Action::Raw { status, body }) => Answer::raw(status, body).into(),
            Some(Action::Interfere { key, value }) => {
                self.interfere(call, key, value);
                work(self).into()
            }
            Some(Action::ApplyThenStatus { status, body }) => match work(self) {
                done if done.status < 300 => Answer::scripted(call, status, body).into(),
                refused => refused.into(),
            },
            Some(Action::Lose) => Reply::Lost,
            Some(Action::ApplyThenLose) => {
                work(self);
                Reply::Lost
            }
            Some(Action::Unreachable) => Reply::Unreachable,
        }
    }

    /// The first fault that is due for this request. One that lets the work go on waits for a request that is not refused.
    fn next_fault(&mut self, call: &Call, refused: bool) -> Option<Action> {
        for fault in &mut self.faults {
            fault.count(call);
        }
        let at = self.faults.iter().position(|fault| fault.is_due(call))?;
        let fault = self.faults.get_mut(at)?;
        if refused && fault.action.lets_work_go_on() {
            return None;
        }
        let action = fault.action.clone();
        if fault.ends() {
            self.faults.remove(at);
        }
        Some(action)
    }

    /// Seconds, rounded up, until one more request fits into the window; `None` when it fits now, and then it is counted.
    fn seconds_until_room(&mut self, now: Duration) -> Option<u64> {
        let limit = usize::try_from(self.rate_limit_per_minute?).unwrap_or(usize::MAX);
        while let Some(oldest) = self.window.front()
            && now.saturating_sub(*oldest) >= RATE_WINDOW
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
            RATE_WINDOW.saturating_sub(now.saturating_sub(*sent))
        });
        Some(u64::try_from(wait.as_millis().div_ceil(1000).max(1)).unwrap_or(60))
    }

    /// What the gateway refuses before any work.
    fn refusal(&self, call: &Call) -> Option<Answer> {
        if !call.is_api() {
            return None;
        }
        let token = call.credentials("bearer");
        let known = !self.check_credentials || token.is_some_and(|t| self.valid_tokens.contains(t));
        if token.is_none() || !known {
            return Some(Answer::platform_error(401));
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
                "GET" => Ok(Answer::json(200, &self.token_info())),
                _ => Err(Answer::platform_error(405)),
            },
            ["api", "v2", "analytics", "conversations", "details"] => self.bulk(call),
            ["api", "v2", "conversations", id, rest @ ..] => self.conversation(call, id, rest),
            _ => Err(Answer::platform_error(404)),
        };
        if let Err(refusal) = &result
            && refusal.is_conflict
        {
            self.counters.conflicts += 1;
        }
        if call.is_api() && call.method == "GET" && result.is_ok() {
            self.counters.reads += 1;
        }
        result.unwrap_or_else(|refusal| refusal)
    }

    fn token(&mut self, call: &Call) -> Result<Answer, Answer> {
        if call.method != "POST" {
            return Err(Answer::platform_error(405));
        }
        let given = call.credentials("basic");
        if given.is_none() || self.check_credentials && given != Some(BASIC_CREDENTIALS) {
            let text = "authentication failed";
            return Err(Answer::token_error(401, "invalid_client", text));
        }
        if call.raw_body() != "grant_type=client_credentials" {
            let text = "the only grant type here is client_credentials";
            return Err(Answer::token_error(400, "unsupported_grant_type", text));
        }
        self.counters.logins += 1;
        let token = format!("sandbox-token-{}", self.counters.logins);
        self.accept_token(&token);
        let body = json!({
            "access_token": token,
            "token_type": "bearer",
            "expires_in": self.token_lifetime,
        });
        Ok(Answer::json(200, &body))
    }

    /// Many conversations at once. Unknown ones are left out of the answer.
    fn bulk(&mut self, call: &Call) -> Result<Answer, Answer> {
        if call.method != "GET" {
            return Err(Answer::platform_error(405));
        }
        let ids = call.query("id");
        if ids.is_empty() || ids.len() > self.max_bulk_ids {
            let text = format!("Between 1 and {} ids may be given.", self.max_bulk_ids);
            return Err(Answer::bad_request(&text));
        }
        let mut found = Vec::new();
        for id in ids.iter().filter(|id| !self.missing_in_bulk.contains(*id)) {
            if let Some(conversation) = self.conversations.get(id) {
                found.push(conversation.in_bulk(id));
            }
        }
        self.counters.bulk_reads += 1;
        Ok(Answer::json(200, &json!({ "conversations": found })))
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
        let as_400 = self.custom_conflict_as_400;
        let conversation = self.find(id).ok_or_else(|| Answer::platform_error(404))?;
        let (answer, mut write) = match (call.method.as_str(), rest) {
            ("GET", []) => return Ok(conversation.read(id, style)),
            ("GET", ["secureattributes"]) => return Ok(conversation.read_secure()),
            ("GET", ["customattributes"]) => {
                let records = conversation.custom.iter();
                let results: Vec<Value> = records.map(|(key, one)| one.body(id, key)).collect();
                return Ok(Answer::json(200, &json!({ "results": results })));
            }
            ("GET", ["customattributes", record]) => {
                let found = conversation.custom.get(*record);
                return found
                    .map(|found| Answer::json(200, &found.body(id, record)))
                    .ok_or_else(|| Answer::platform_error(404));
            }
            ("PATCH", ["attributes"]) => conversation.patch(id, call, style)?,
            ("PATCH", ["participants", participant, "attributes"]) => {
                conversation.patch_participant(participant, call)?
            }
            ("PATCH", ["secureattributes"]) => conversation.patch_secure(call)?,
            ("PUT", ["secureattributes"]) => conversation.put_secure(call)?,
            ("PATCH", ["customattributes"]) => conversation.patch_custom(call, as_400)?,
            ("PUT", ["customattributes"]) => conversation.put_custom(call, as_400)?,
            _ => return Err(Answer::platform_error(405)),
        };
        self.counters.writes += 1;
        if self.keep_log {
            write.conversation = id.to_owned();
            self.writes.push(write);
        }
        Ok(answer)
    }

    fn find(&mut self, id: &str) -> Option<&mut Conversation> {
        if self.auto_create && !id.is_empty() && !self.conversations.contains_key(id) {
            self.add(id);
        }
        self.conversations.get_mut(id)
    }

    /// Another writer, in the store that the request addresses.
    fn interfere(&mut self, call: &Call, key: String, value: Value) {
        let segments: Vec<&str> = call.segments.iter().map(String::as_str).collect();
        if let ["api", "v2", "conversations", id, rest @ ..] = segments.as_slice()
            && let Some(conversation) = self.find(id)
        {
            conversation.interfere(rest, call, key, value);
        }
    }

    fn token_info(&self) -> Value {
        let id = "5a4db0c5-0000-4000-9000-000000000001";
        let organization = json!({"id": id, "name": self.organization});
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
}
