//! Every kind of target against the sandbox: which requests are sent, what their bodies hold, and
//! what comes of conflicts, faults and misuse.

mod ambiguous;
mod custom;
mod ended;
mod every;
mod participant;
mod reads;
mod secure;
mod unlocked;

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use genesys_attributes::audit::JsonLines;
use genesys_attributes::clock::ManualClock;
use genesys_attributes::error::Rule;
use genesys_attributes::{
    Attributes, Client, ClientBuilder, Credentials, Edit, EndedPolicy, Error, ErrorKind, Outcome,
    RateLimit, Receipt, Region, RetryPolicy, Status, Target, TargetKind, Update, UpdateEvent,
    UpdateOptions,
};
use serde_json::{Value, json};

use crate::sandbox::{
    Action, CLIENT_ID, CLIENT_SECRET, Conversation, Fault, Participant, Record, Sandbox, Secure,
    Seen, VersionStyle,
};
use crate::server::{Resp, Server};

const MAX_BYTES: usize = 512_000;
const END: &str = "2026-01-01T00:10:00.000Z";

const C: &str = "/api/v2/conversations/c-1";

// Setting the scene.

/// With the conversation `c-1`: version 1, participants `c-1-agent` and `c-1-customer`.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::start();
    sandbox.world(|world| {
        world.add("c-1");
    });
    sandbox
}

fn with(change: impl FnOnce(&mut Conversation)) -> Sandbox {
    let sandbox = sandbox();
    change_in(&sandbox, change);
    sandbox
}

fn change_in(sandbox: &Sandbox, change: impl FnOnce(&mut Conversation)) {
    sandbox.world(|world| change(world.conversations.get_mut("c-1").unwrap()));
}

fn with_secure() -> Sandbox {
    with(|c| c.secure = Some(secure(7, &[("old", "1"), ("kept", "k")])))
}

fn with_record() -> Sandbox {
    with(|c| {
        let mut record = Record {
            version: 7,
            divisions: vec!["d-1".into(), "d-2".into()],
            schema: "s-1".into(),
            ..Record::default()
        };
        record
            .attributes
            .insert("kept".into(), json!({"deep": [1]}));
        c.custom.insert("r-1".into(), record);
    })
}

fn secure(version: u64, attributes: &[(&str, &str)]) -> Secure {
    Secure {
        version,
        attributes: attributes
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
    }
}

fn participant(id: &str, purpose: &str, ended: bool) -> Participant {
    Participant {
        id: id.into(),
        purpose: purpose.into(),
        end_time: ended.then(|| END.to_owned()),
        attributes: Default::default(),
    }
}

/// A clock of its own, so that nothing here sleeps.
fn builder(sandbox: &Sandbox) -> ClientBuilder {
    at(sandbox.url())
}

fn at(url: String) -> ClientBuilder {
    let tiny = Duration::from_micros(10);
    Client::builder(
        Region::parse("eu-west-1").unwrap(),
        Credentials::new(CLIENT_ID, CLIENT_SECRET),
    )
    .base_url(url)
    .no_proxy()
    .rate_limit(RateLimit::unlimited())
    .retry(RetryPolicy::default().with_backoff(tiny, tiny))
    .clock(ManualClock::new())
}

fn client(sandbox: &Sandbox) -> Client {
    builder(sandbox).build().unwrap()
}

fn patient(sandbox: &Sandbox, max_conflicts: u32) -> Client {
    let policy = RetryPolicy::default().with_max_conflicts(max_conflicts);
    builder(sandbox).retry(policy).build().unwrap()
}

fn customer() -> Update {
    Update::participant("c-1", "customer")
}

fn record() -> Update {
    Update::custom("c-1", "r-1")
}

fn status(status: u16) -> Action {
    let body = Value::Null;
    Action::Status { status, body }
}

/// The write is done, and the answer says 503.
fn applied_then_503() -> Fault {
    Fault::on_write(Action::ApplyThenStatus {
        status: 503,
        body: Value::Null,
    })
}

fn interfere(key: &str, value: impl Into<Value>) -> Fault {
    Fault::on_write(Action::Interfere {
        key: key.into(),
        value: value.into(),
    })
}

fn raw(status: u16, body: impl ToString) -> Action {
    let body = body.to_string();
    Action::Raw { status, body }
}

fn script(sandbox: &Sandbox, scripted: impl IntoIterator<Item = Fault>) {
    sandbox.world(|world| scripted.into_iter().for_each(|one| world.script(one)));
}

// Looking at what happened.

/// `METHOD path status` of each API request since the last look.
fn seen(sandbox: &Sandbox) -> Vec<String> {
    let lines = sandbox
        .api_requests()
        .iter()
        .map(|one| format!("{} {} {}", one.method, one.path, one.status))
        .collect();
    sandbox.clear_requests();
    lines
}

/// The requests as `METHOD rest-of-path status`, below the conversation `c-1`.
#[track_caller]
fn assert_seen<const N: usize>(sandbox: &Sandbox, expected: [&str; N]) {
    let seen = seen(sandbox);
    let short: Vec<String> = seen.iter().map(|line| line.replace(C, "~")).collect();
    assert_eq!(short, expected);
}

/// The body of the only or last write, which must be JSON without conditions of HTTP.
#[track_caller]
fn last_write(sandbox: &Sandbox) -> Seen {
    let mut seen = sandbox.api_requests();
    seen.retain(|one| one.method != "GET");
    let last = seen.pop().expect("a write");
    assert_eq!(last.content_type.as_deref(), Some("application/json"));
    assert_eq!(last.if_match, None);
    last
}

#[track_caller]
fn assert_body(sandbox: &Sandbox, expected: Value) {
    let last = last_write(sandbox);
    // As text, so that `7` and `7.0` differ.
    let text = |value: &Value| value.to_string();
    assert_eq!(text(&last.body), text(&expected));
}

#[track_caller]
fn assert_error(result: Result<Receipt, Error>, kind: ErrorKind) -> Error {
    let error = result.expect_err("an error");
    assert_eq!(error.kind(), kind, "{error}");
    error
}

/// `field: rule` of each violation.
fn violations(error: &Error) -> Vec<String> {
    error
        .violations()
        .iter()
        .map(|v| format!("{}: {}", v.key, v.rule.name()))
        .collect()
}

fn conversation_now(sandbox: &Sandbox) -> Conversation {
    sandbox.world(|world| world.conversations["c-1"].clone())
}

fn secure_now(sandbox: &Sandbox) -> Secure {
    conversation_now(sandbox).secure.expect("a secure map")
}

fn record_now(sandbox: &Sandbox) -> Record {
    conversation_now(sandbox).custom["r-1"].clone()
}
