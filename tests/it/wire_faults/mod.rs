//! What the network can do to an update, on real sockets: every row of the fault table, and for
//! each what the caller gets, what was sent again, and what the server saw.

mod ambiguous;
mod answers;
mod connecting;
mod hostile;
mod matrix;
mod proxies;
mod reads;
pub(crate) mod tls;

use std::io::{BufRead, BufReader, Read, Write};

use std::net::{SocketAddr, TcpListener, TcpStream};

use std::process::Command;

use std::sync::atomic::{AtomicBool, Ordering};

use std::sync::{Arc, Mutex, PoisonError};

use std::thread::JoinHandle;

use std::time::Duration;

use genesys_attributes::clock::ManualClock;
use genesys_attributes::{
    Attributes, Client, ClientBuilder, Credentials, Edit, Error, ErrorKind, Metrics, Outcome,
    RateLimit, Receipt, Region, RetryPolicy, Timeouts, Update, UpdateOptions,
};

use serde_json::json;

use crate::server::{Resp, Server};

use crate::wire::{Act, Received, Report, Wire, refused_url, respond};

const ID: &str = "c-1";

const READ: &str = r#"{"id":"c-1","version":"6","state":"connected"}"#;

const WRITTEN: &str = r#"{"version":"7"}"#;

/// A time limit that passes where it is the subject.
const SHORT: Duration = Duration::from_millis(200);

fn update() -> Update {
    Update::conversation(ID)
        .set("tier", "premium")
        .set("score", 85)
}

/// An update that needs no read: its write is the first request on the first connection.
fn direct() -> Update {
    update().if_version("6")
}

fn builder(url: &str) -> ClientBuilder {
    builder_of(url, Credentials::access_token("token"))
}

fn builder_of(url: &str, credentials: Credentials) -> ClientBuilder {
    Client::builder(Region::parse("eu-west-1").unwrap(), credentials)
        .base_url(url)
        .no_proxy()
        .rate_limit(RateLimit::unlimited())
}

/// Whether a fault ends in a time limit of the client's: such limits are short, and since they are
/// real time, such requests are tried twice at most.
fn stalls(fault: &[Act]) -> bool {
    matches!(fault.last(), Some(Act::WaitClientClose))
}

fn tries(fault: &[Act]) -> u32 {
    if stalls(fault) { 2 } else { 4 }
}

fn builder_for(fault: &[Act], url: &str) -> ClientBuilder {
    let timeouts = if stalls(fault) {
        Timeouts::default().with_response(SHORT).with_body(SHORT)
    } else {
        Timeouts::default()
    };
    builder(url)
        .timeouts(timeouts)
        .retry(RetryPolicy::default().with_max_attempts(tries(fault)))
}

/// What was left when a client was done with its server.
struct Seen {
    report: Report,
    sleeps: usize,
    metrics: Metrics,
}

impl Seen {
    fn methods(&self) -> Vec<&str> {
        methods(&self.report.requests)
    }

    fn writes(&self) -> Vec<&Received> {
        let of_writes = |r: &&Received| r.method != "GET";
        self.report.requests.iter().filter(of_writes).collect()
    }

    /// Every write carried this version and the same bytes.
    #[track_caller]
    fn assert_same_writes(&self, version: &str) {
        let writes = self.writes();
        for write in &writes {
            assert_eq!(write.method, "PATCH");
            assert_eq!(
                write.path,
                format!("/api/v2/conversations/{ID}/attributes"),
                "{write:?}"
            );
            assert_eq!(
                write.header("if-match"),
                Some(format!("\"{version}\"").as_str())
            );
            if !write.body.is_empty() {
                assert_eq!(write.body, writes.last().unwrap().body);
            }
        }
    }
}

fn methods(requests: &[Received]) -> Vec<&str> {
    requests.iter().map(|r| r.method.as_str()).collect()
}

/// Lets a client work against scripts. It never sleeps: its clock only writes sleeps down.
#[track_caller]
fn play<T>(
    scripts: Vec<Vec<Act>>,
    configure: impl FnOnce(&str) -> ClientBuilder,
    work: impl FnOnce(&Client) -> T,
) -> (T, Seen) {
    let wire = Wire::start(scripts);
    let clock = ManualClock::new();
    let client = configure(&wire.url()).clock(clock.clone()).build().unwrap();
    let result = work(&client);
    let metrics = client.metrics();
    drop(client);
    let report = wire.finish();
    report.assert_clean();
    let sleeps = clock.sleeps().len();
    let seen = Seen {
        report,
        sleeps,
        metrics,
    };
    (result, seen)
}

#[track_caller]
fn play_one(scripts: Vec<Vec<Act>>, update: &Update) -> (Result<Receipt, Error>, Seen) {
    play(scripts, builder, |client| client.update(update))
}

/// The same for scripts with this fault among them.
#[track_caller]
fn play_fault(
    fault: &[Act],
    scripts: Vec<Vec<Act>>,
    update: &Update,
) -> (Result<Receipt, Error>, Seen) {
    let configure = |url: &str| builder_for(fault, url);
    play(scripts, configure, |client| client.update(update))
}

/// Scripts of several connections from slices of steps.
macro_rules! scripts {
    ($($part:expr),* $(,)?) => { vec![$($part.to_vec()),*] };
}

pub(crate) use scripts;

/// One script of several parts.
fn then(parts: &[&[Act]]) -> Vec<Act> {
    parts.concat()
}

fn read_ok() -> [Act; 2] {
    [Act::ReadRequest, respond(200, READ)]
}

fn write_ok() -> [Act; 2] {
    [Act::ReadRequest, respond(200, WRITTEN)]
}

fn kept() -> [Act; 1] {
    [Act::WaitClientClose]
}

fn raw(text: &str) -> Act {
    Act::Write(text.as_bytes().to_vec())
}

fn many_headers() -> Act {
    let mut head = String::from("HTTP/1.1 200 OK\r\n");
    for n in 0..4_000 {
        head += &format!("X-{n}: {n}\r\n");
    }
    raw(&(head + "Content-Length: 2\r\n\r\n{}"))
}

/// A fault after which nobody can tell whether the request was processed: its name, its steps from
/// a request on, and the kind of the error when it happens every time.
fn unanswered() -> Vec<(&'static str, Vec<Act>, ErrorKind)> {
    use Act::{Close, ReadBytes, ReadHead, ReadRequest, Reset, WaitClientClose};
    use ErrorKind::{Protocol, Timeout, Transport};
    vec![
        ("closed before reading", vec![Close], Transport),
        (
            "reset after part of the head",
            vec![ReadBytes(40), Reset],
            Transport,
        ),
        ("reset after the head", vec![ReadHead, Reset], Transport),
        (
            "reset after the whole request",
            vec![ReadRequest, Reset],
            Transport,
        ),
        (
            "closed without an answer",
            vec![ReadRequest, Close],
            Transport,
        ),
        (
            "half a head",
            vec![
                ReadRequest,
                raw("HTTP/1.1 200 OK\r\nContent-Type: app"),
                Close,
            ],
            Transport,
        ),
        (
            "half a status line, then a reset",
            vec![ReadRequest, raw("HTTP/1.1 2"), Reset],
            Transport,
        ),
        (
            "not HTTP",
            vec![ReadRequest, raw("SSH-2.0-OpenSSH_9.6\r\n\r\n"), Close],
            Protocol,
        ),
        (
            "HTTP/2 status line",
            vec![
                ReadRequest,
                raw("HTTP/2 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
                Close,
            ],
            Protocol,
        ),
        (
            "two lengths",
            vec![
                ReadRequest,
                raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} "),
                Close,
            ],
            Protocol,
        ),
        (
            "thousands of headers",
            vec![ReadRequest, many_headers(), Close],
            Protocol,
        ),
        (
            "stall before the head",
            vec![ReadRequest, WaitClientClose],
            Timeout,
        ),
        (
            "stall within the head",
            vec![ReadRequest, raw("HTTP/1.1 200 OK\r\nCont"), WaitClientClose],
            Timeout,
        ),
    ]
}

/// Bodies that break: name, steps after the request, and the kind of the error when a read of them
/// breaks every time. `Protocol` does not pass.
fn broken_bodies() -> Vec<(&'static str, Vec<Act>, ErrorKind)> {
    let part = "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"version\":\"7\",\"x\":\"";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mebibyte = Act::WriteRepeated {
        bytes: vec![b'x'; 1 << 20],
        times: 50,
    };
    vec![
        (
            "cut short",
            vec![raw(part), Act::Close],
            ErrorKind::Transport,
        ),
        ("reset", vec![raw(part), Act::Reset], ErrorKind::Transport),
        (
            "stall",
            vec![raw(part), Act::WaitClientClose],
            ErrorKind::Timeout,
        ),
        (
            "bad chunk",
            vec![
                raw(&format!(
                    "{chunked}f\r\n{{\"version\":\"7\"}}\r\nnot a size\r\n"
                )),
                Act::WaitClientClose,
            ],
            ErrorKind::Transport,
        ),
        (
            "chunks cut short",
            vec![
                raw(&format!("{chunked}f\r\n{{\"version\":\"7\"}}\r\n")),
                Act::Close,
            ],
            ErrorKind::Transport,
        ),
        (
            "50 MiB",
            vec![
                raw("HTTP/1.1 200 OK\r\nContent-Length: 52428800\r\n\r\n"),
                mebibyte.clone(),
            ],
            ErrorKind::Protocol,
        ),
        (
            "50 MiB without a length",
            vec![
                raw("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"),
                mebibyte,
            ],
            ErrorKind::Protocol,
        ),
    ]
}
