//! What the network can do to an update, on real sockets: every row of the fault table, and for
//! each what the caller gets, what was sent again, and what the server saw.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use genesys_attributes::{
    Attributes, Client, ClientBuilder, Credentials, Error, ErrorKind, ManualClock, Metrics,
    Outcome, RateLimit, Receipt, Region, RetryPolicy, Timeouts, Update,
};
use serde_json::json;

use crate::server::{Resp, Server};
use crate::wire::{Act, Received, Report, Wire, refused_url, respond};

const ID: &str = "c-1";
const READ: &str = r#"{"id":"c-1","version":"6","state":"connected"}"#;
const WRITTEN: &str = r#"{"version":"7"}"#;
/// A read after somebody wrote what [`update`] wants, and after somebody wrote something else.
const IN_PLACE: &str = r#"{"version":"7","attributes":{"tier":"premium","score":85,"x":1}}"#;
const OTHERS: &str = r#"{"version":"7","attributes":{"tier":"basic","score":85}}"#;
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

#[test]
fn an_unanswered_write_is_sent_again_with_the_same_version() {
    for (name, fault, _) in unanswered() {
        eprintln!("{name}");
        let (result, seen) = play_fault(
            &fault,
            scripts![fault, then(&[&write_ok(), &kept()])],
            &direct(),
        );
        let receipt = result.unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!((receipt.attempts, receipt.requests), (2, 2));
        assert_eq!(receipt.version.as_deref(), Some("7"));
        assert_eq!(receipt.previous_version.as_deref(), Some("6"));
        seen.assert_same_writes("6");
        assert_eq!(seen.report.connections, 2);
        assert_eq!(seen.sleeps, 1);
        assert_eq!(
            (seen.metrics.transport_errors, seen.metrics.retries),
            (1, 1)
        );
    }
}

#[test]
fn a_write_that_is_never_answered_may_have_been_applied() {
    for (name, fault, kind) in unanswered() {
        eprintln!("{name}");
        let tries = tries(&fault);
        let (result, seen) = play_fault(&fault, vec![fault.clone(); tries as usize], &direct());
        let error = result.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.may_have_applied());
        assert!(error.to_string().contains("may have been applied"));
        assert_eq!(error.http_status(), None);
        assert_eq!((error.attempts(), error.requests()), (tries, tries));
        seen.assert_same_writes("6");
        assert_eq!(seen.report.connections, tries as usize);
        assert_eq!(seen.sleeps, tries as usize - 1);
        assert_eq!(seen.metrics.transport_errors, u64::from(tries));
    }
}

#[test]
fn a_fault_on_the_kept_connection_of_the_read_is_settled_the_same_way() {
    for (name, fault, _) in unanswered() {
        if name == "closed before reading" {
            // Whether the client finds it closed before or after it sends is a race.
            continue;
        }
        eprintln!("{name}");
        let (result, seen) = play_fault(
            &fault,
            scripts![then(&[&read_ok(), &fault]), then(&[&write_ok(), &kept()]),],
            &update(),
        );
        let receipt = result.unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!((receipt.attempts, receipt.requests), (2, 3));
        seen.assert_same_writes("6");
        assert_eq!(seen.report.connections, 2);
    }
}

#[test]
fn a_conflict_with_our_own_unanswered_write_is_already_applied() {
    for (name, fault, _) in unanswered() {
        eprintln!("{name}");
        if !matches!(fault[0], Act::ReadRequest) {
            // The same to the client as another row.
            continue;
        }
        let first = then(&[&read_ok(), &fault]);
        let (result, seen) = play(
            scripts![
                first,
                then(&[
                    &[Act::ReadRequest, respond(412, "{}")],
                    &[Act::ReadRequest, respond(200, IN_PLACE)],
                    &kept(),
                ]),
            ],
            |url| builder_for(&fault, url).retry(RetryPolicy::default()),
            |client| client.update(&update()),
        );
        let receipt = result.unwrap();
        assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
        assert_eq!((receipt.attempts, receipt.requests), (2, 4));
        assert_eq!(receipt.version.as_deref(), Some("7"));
        assert_eq!(receipt.previous_version.as_deref(), Some("6"));
        seen.assert_same_writes("6");
        assert_eq!(seen.report.connections, 2);
        assert_eq!(seen.metrics.conflicts, 1);
    }
}

/// Answers after which the write may be in place all the same, as after none.
#[test]
fn a_conflict_after_a_failing_server_is_already_applied() {
    for status in [408, 500, 502, 503, 504] {
        let (result, seen) = play_one(
            scripts![then(&[
                &read_ok(),
                &[Act::ReadRequest, respond(status, "{}")],
                &[Act::ReadRequest, respond(412, "{}")],
                &[Act::ReadRequest, respond(200, IN_PLACE)],
                &kept(),
            ])],
            &update(),
        );
        let receipt = result.unwrap();
        assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
        assert_eq!((receipt.attempts, receipt.requests), (2, 4));
        seen.assert_same_writes("6");
        assert_eq!(seen.report.connections, 1);
    }
}

#[test]
fn a_conflict_with_somebody_else_after_an_unanswered_write_is_written_again() {
    let (result, seen) = play_one(
        scripts![
            then(&[&read_ok(), &[Act::ReadRequest, Act::Close]]),
            then(&[
                &[Act::ReadRequest, respond(412, "{}")],
                &[Act::ReadRequest, respond(200, OTHERS)],
                &[Act::ReadRequest, respond(200, r#"{"version":"8"}"#)],
                &kept(),
            ]),
        ],
        &update(),
    );
    let receipt = result.unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!((receipt.attempts, receipt.requests), (3, 5));
    assert_eq!(receipt.previous_version.as_deref(), Some("7"));
    assert_eq!(receipt.version.as_deref(), Some("8"));
    let versions: Vec<_> = seen.writes().iter().map(|w| w.header("if-match")).collect();
    assert_eq!(versions, [Some("\"6\""), Some("\"6\""), Some("\"7\"")]);
}

/// Whatever ends the update later, the lost write stays in doubt.
#[test]
fn a_lost_write_stays_in_doubt_when_the_update_fails_for_another_reason() {
    let lost = then(&[&read_ok(), &[Act::ReadRequest, Act::Close]]);
    for (status, kind) in [
        (400, ErrorKind::InvalidInput),
        (401, ErrorKind::Auth),
        (403, ErrorKind::Forbidden),
        (404, ErrorKind::NotFound),
        (413, ErrorKind::PayloadTooLarge),
    ] {
        let (result, seen) = play_one(
            scripts![
                lost,
                [
                    Act::ReadRequest,
                    respond(status, "{}"),
                    Act::WaitClientClose
                ]
            ],
            &update(),
        );
        let error = result.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(error.http_status(), Some(status));
        assert!(error.may_have_applied());
        assert_eq!((error.attempts(), error.requests()), (2, 3));
        seen.assert_same_writes("6");
    }
    // The read that would settle it fails.
    let (result, seen) = play_one(
        scripts![
            lost,
            [
                Act::ReadRequest,
                respond(412, "{}"),
                Act::ReadRequest,
                respond(404, "{}"),
                Act::WaitClientClose
            ]
        ],
        &update(),
    );
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.may_have_applied());
    assert_eq!((error.attempts(), error.requests()), (2, 4));
    assert_eq!(seen.methods(), ["GET", "PATCH", "PATCH", "GET"]);
}

/// Neither of these may be written a second time on top of what somebody else wrote.
#[test]
fn a_computed_or_versioned_write_is_not_repeated_after_a_conflict_that_may_be_its_own() {
    let conflict = [
        Act::ReadRequest,
        respond(412, "{}"),
        Act::ReadRequest,
        respond(200, OTHERS),
        Act::WaitClientClose,
    ];
    let lost = [Act::ReadRequest, Act::Close];
    let (result, seen) = play_one(scripts![lost, conflict], &direct());
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(error.may_have_applied());
    assert_eq!(error.http_status(), Some(412));
    assert_eq!((error.attempts(), error.requests()), (2, 3));
    seen.assert_same_writes("6");

    let read = r#"{"version":"6","attributes":{"score":84}}"#;
    let start = then(&[&[Act::ReadRequest, respond(200, read)], &lost]);
    let computed = |answer: &str| {
        let mut conflict = conflict.clone();
        conflict[3] = respond(200, answer);
        let mut calls = 0;
        let (result, seen) = play(scripts![start, conflict], builder, |client| {
            client.update_with(update().target(), |now| {
                calls += 1;
                let score = now.attributes["score"].as_u64().unwrap();
                Ok(Some(Attributes::from_iter([(
                    "score".to_owned(),
                    (score + 1).into(),
                )])))
            })
        });
        assert_eq!(calls, 1);
        seen.assert_same_writes("6");
        assert_eq!(seen.methods(), ["GET", "PATCH", "PATCH", "GET"]);
        result
    };
    // Somebody else's, and then our own.
    let error = computed(r#"{"version":"7","attributes":{"score":90}}"#).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(error.may_have_applied());
    let receipt = computed(OTHERS).unwrap();
    assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
}

/// The same with a server that keeps state: the write arrives, the answer is lost.
#[test]
fn an_unanswered_write_is_applied_exactly_once() {
    struct World {
        version: u64,
        attributes: Attributes,
        applied: Vec<String>,
    }
    let world = Arc::new(Mutex::new(World {
        version: 6,
        attributes: Attributes::new(),
        applied: Vec::new(),
    }));
    let theirs = Arc::clone(&world);
    let server = Server::start(move |request| {
        let mut world = theirs.lock().unwrap();
        if request.method == "GET" {
            let body = json!({"version": world.version, "attributes": world.attributes});
            return Resp::json(200, body.to_string());
        }
        if request.header("if-match") != Some(&format!("\"{}\"", world.version)) {
            return Resp::json(412, "{}");
        }
        let body = request.json();
        world.version += 1;
        world
            .attributes
            .extend(body["attributes"].as_object().unwrap().clone());
        world.applied.push(body["attributes"].to_string());
        Resp::reset()
    });
    let client = builder(&server.url())
        .clock(ManualClock::new())
        .build()
        .unwrap();
    let events = client.subscribe(8);
    let receipt = client.update(&update()).unwrap();
    assert_eq!(receipt.outcome, Outcome::AlreadyApplied);
    assert_eq!((receipt.attempts, receipt.requests), (2, 4));
    assert_eq!(receipt.version.as_deref(), Some("7"));
    let world = world.lock().unwrap();
    assert_eq!(world.version, 7);
    assert_eq!(world.applied, [r#"{"score":85,"tier":"premium"}"#]);
    let event = events.try_recv().unwrap();
    assert_eq!(event.version.as_deref(), Some("7"));
    assert!(events.try_recv().is_none());
}

#[test]
fn an_unanswered_read_is_sent_again_and_changes_nothing() {
    for (name, fault, kind) in unanswered() {
        eprintln!("{name}");
        let (result, seen) = play_fault(
            &fault,
            scripts![fault, then(&[&read_ok(), &write_ok(), &kept()])],
            &update(),
        );
        let receipt = result.unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!((receipt.attempts, receipt.requests), (1, 3));
        assert_eq!(seen.report.connections, 2);
        assert_eq!(seen.sleeps, 1);

        let tries = tries(&fault);
        let (result, seen) = play_fault(&fault, vec![fault.clone(); tries as usize], &update());
        let error = result.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(!error.may_have_applied());
        assert_eq!(error.http_status(), None);
        assert_eq!((error.attempts(), error.requests()), (0, tries));
        assert!(seen.writes().is_empty());
        assert_eq!(seen.report.connections, tries as usize);
    }
}

/// Bodies that break: name, steps after the request, and whether a later read of them could be
/// better.
fn broken_bodies() -> Vec<(&'static str, Vec<Act>, bool)> {
    let part = "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"version\":\"7\",\"x\":\"";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mebibyte = Act::WriteRepeated {
        bytes: vec![b'x'; 1 << 20],
        times: 50,
    };
    vec![
        ("cut short", vec![raw(part), Act::Close], true),
        ("reset", vec![raw(part), Act::Reset], true),
        ("stall", vec![raw(part), Act::WaitClientClose], true),
        (
            "bad chunk",
            vec![
                raw(&format!(
                    "{chunked}f\r\n{{\"version\":\"7\"}}\r\nnot a size\r\n"
                )),
                Act::WaitClientClose,
            ],
            true,
        ),
        (
            "chunks cut short",
            vec![
                raw(&format!("{chunked}f\r\n{{\"version\":\"7\"}}\r\n")),
                Act::Close,
            ],
            true,
        ),
        (
            "50 MiB",
            vec![
                raw("HTTP/1.1 200 OK\r\nContent-Length: 52428800\r\n\r\n"),
                mebibyte.clone(),
            ],
            false,
        ),
        (
            "50 MiB without a length",
            vec![
                raw("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"),
                mebibyte,
            ],
            false,
        ),
    ]
}

#[test]
fn an_accepted_write_is_never_repeated_whatever_its_body() {
    for (name, fault, _) in broken_bodies() {
        eprintln!("{name}");
        let read = [Act::ReadRequest, respond(200, r#"{"version":7}"#)];
        let (results, seen) = play(
            scripts![
                then(&[&read_ok(), &[Act::ReadRequest], &fault]),
                // The version is not known any more, and the broken connection not used again.
                then(&[&read, &write_ok(), &kept()]),
            ],
            |url| builder_for(&fault, url),
            |client| [client.update(&update()), client.update(&update())],
        );
        let [first, second] = results.map(Result::unwrap);
        assert_eq!(first.outcome, Outcome::Applied);
        assert_eq!((first.attempts, first.requests), (1, 2));
        assert_eq!(first.previous_version.as_deref(), Some("6"));
        assert_eq!((first.version, first.response), (None, None));
        assert_eq!((second.attempts, second.requests), (1, 2));
        assert_eq!(seen.methods(), ["GET", "PATCH", "GET", "PATCH"]);
        assert_eq!(seen.writes()[1].header("if-match"), Some("\"7\""));
        assert_eq!(seen.report.connections, 2);
        assert_eq!(seen.sleeps, 0);
    }
}

#[test]
fn an_accepted_write_needs_no_usable_body() {
    let answers = [
        ("empty", respond(200, ""), true),
        ("not JSON", respond(200, "<html>fine</html>"), true),
        ("half of JSON", respond(202, r#"{"version":"#), true),
        ("204", respond(204, ""), true),
        // What follows a 204 cannot be told from an answer nobody asked for.
        (
            "204 with a body",
            raw("HTTP/1.1 204 No Content\r\nContent-Length: 15\r\n\r\n{\"version\":\"9\"}"),
            false,
        ),
    ];
    for (name, answer, reused) in answers {
        eprintln!("{name}");
        let start = then(&[&read_ok(), &[Act::ReadRequest, answer]]);
        let more = then(&[&read_ok(), &write_ok(), &kept()]);
        let scripts = if reused {
            vec![then(&[&start, &more])]
        } else {
            vec![then(&[&start, &kept()]), more]
        };
        let connections = scripts.len();
        let (results, seen) = play(scripts, builder, |client| {
            [client.update(&update()), client.update(&update())]
        });
        let [first, second] = results.map(Result::unwrap);
        assert_eq!(first.outcome, Outcome::Applied);
        assert_eq!((first.attempts, first.requests), (1, 2));
        assert_eq!((first.version, first.response), (None, None));
        assert_eq!((second.attempts, second.requests), (1, 2));
        assert_eq!(second.version.as_deref(), Some("7"));
        assert_eq!(seen.methods(), ["GET", "PATCH", "GET", "PATCH"]);
        assert_eq!(seen.report.connections, connections);
    }
}

/// An answer nobody asked for must not become the answer to the next write.
#[test]
fn what_follows_an_answer_is_not_the_next_answer() {
    let answer = |version: u8| {
        format!("HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{{\"version\":\"{version}\"}}")
    };
    let (results, seen) = play(
        scripts![
            then(&[
                &read_ok(),
                &[Act::ReadRequest, raw(&(answer(7) + &answer(9)))],
                &kept(),
            ]),
            then(&[
                &[Act::ReadRequest, respond(200, r#"{"version":"8"}"#)],
                &kept(),
            ]),
        ],
        builder,
        |client| [client.update(&update()), client.update(&update())],
    );
    let versions = results.map(|result| result.unwrap().version.unwrap());
    assert_eq!(versions, ["7", "8"]);
    assert_eq!(seen.writes()[1].header("if-match"), Some("\"7\""));
    assert_eq!(seen.report.connections, 2);
}

#[test]
fn a_broken_body_of_a_read_never_leads_to_a_write() {
    for (name, fault, passes) in broken_bodies() {
        eprintln!("{name}");
        let broken = then(&[&[Act::ReadRequest], &fault]);
        let tries = if passes { tries(&fault) as usize } else { 1 };
        let (result, seen) = play_fault(&fault, vec![broken.clone(); tries], &update());
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        assert_eq!(error.http_status(), Some(200));
        assert!(!error.may_have_applied());
        assert_eq!((error.attempts(), error.requests()), (0, tries as u32));
        assert_eq!(seen.methods(), vec!["GET"; tries]);
        assert_eq!(seen.report.connections, tries);
        if !passes {
            assert!(error.to_string().contains("1048576 bytes"), "{error}");
            continue;
        }
        let (result, seen) = play_fault(
            &fault,
            scripts![broken, then(&[&read_ok(), &write_ok(), &kept()])],
            &update(),
        );
        let receipt = result.unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!((receipt.attempts, receipt.requests), (1, 3));
        assert_eq!(seen.methods(), ["GET", "GET", "PATCH"]);
    }
}

#[test]
fn a_read_without_a_usable_version_is_an_error_and_never_an_unlocked_write() {
    for (name, answer) in [
        ("empty", respond(200, "")),
        ("204", respond(204, "")),
        ("not JSON", respond(200, "<html>sign in</html>")),
        ("truncated JSON", respond(200, r#"{"version":"6","#)),
        ("not an object", respond(200, r#"["6"]"#)),
        ("no version", respond(200, r#"{"id":"c-1"}"#)),
        ("null version", respond(200, r#"{"version":null}"#)),
        ("empty version", respond(200, r#"{"version":""}"#)),
        ("an object as version", respond(200, r#"{"version":{}}"#)),
    ] {
        eprintln!("{name}");
        let (result, seen) = play_one(
            scripts![then(&[&[Act::ReadRequest, answer], &kept()])],
            &update(),
        );
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        assert!(matches!(error.http_status(), Some(200 | 204)));
        assert!(!error.may_have_applied() && !error.is_transient());
        assert_eq!((error.attempts(), error.requests()), (0, 1));
        assert_eq!(seen.methods(), ["GET"]);
    }
}

/// An answer that is no object must not pass for a map that was never written: the write of that
/// has no version, and replaces everything.
#[test]
fn an_answer_that_is_no_object_is_not_an_empty_map() {
    for answer in ["[]", r#" [{"iban":"x"},"3"]"#, "null", "true", "\"6\"", "7"] {
        for update in [
            Update::secure(ID).set("a", "b"),
            Update::custom(ID, "r-1").set("a", "b"),
            update(),
        ] {
            let (result, seen) = play_one(
                scripts![[Act::ReadRequest, respond(200, answer), Act::WaitClientClose]],
                &update,
            );
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol, "{answer}: {error}");
            assert_eq!(seen.methods(), ["GET"], "{answer}");
        }
    }
}

/// Nor must an object that speaks of something else, or whose version cannot be read.
#[test]
fn a_strange_object_is_not_a_map_that_was_never_written() {
    for answer in [
        r#"{"status":"ok"}"#,
        r#"{"error":"maintenance"}"#,
        r#"{"version":null,"id":1}"#,
        r#"{"attributes":{},"version":true}"#,
        r#"{"attributes":{},"version":""}"#,
        r#"{"attributes":{},"version":"a b"}"#,
        r#"{"attributes":{"other":"x"}}"#,
    ] {
        let (result, seen) = play_one(
            scripts![[Act::ReadRequest, respond(200, answer), Act::WaitClientClose]],
            &Update::secure(ID).set("a", "b"),
        );
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{answer}: {error}");
        assert_eq!(seen.methods(), ["GET"], "{answer}");
    }
}

/// The status decides, not the body that it came with.
#[test]
fn an_error_whose_body_breaks_is_still_that_error() {
    let cut = |status: u16| {
        raw(&format!(
            "HTTP/1.1 {status} X\r\nContent-Length: 100\r\n\r\n{{\"mess"
        ))
    };
    for (status, kind) in [
        (400, ErrorKind::InvalidInput),
        (403, ErrorKind::Forbidden),
        (404, ErrorKind::NotFound),
        (412, ErrorKind::Conflict),
        (413, ErrorKind::PayloadTooLarge),
    ] {
        let (result, seen) = play_one(
            scripts![[Act::ReadRequest, cut(status), Act::Close]],
            &direct(),
        );
        let error = result.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(error.http_status(), Some(status));
        assert!(!error.may_have_applied());
        assert_eq!((error.attempts(), error.requests()), (1, 1));
        seen.assert_same_writes("6");
    }
    // This one may be the platform giving up half-way.
    let (result, seen) = play_one(
        scripts![
            [Act::ReadRequest, cut(502), Act::Close],
            then(&[&write_ok(), &kept()]),
        ],
        &direct(),
    );
    assert_eq!(result.unwrap().attempts, 2);
    seen.assert_same_writes("6");
}

/// The answer may be lost with the connection, so what the client makes of it is either; the write
/// is not applied, and is sent again.
#[test]
fn a_429_before_the_request_was_read_leads_to_another_attempt() {
    let throttle = Act::Respond {
        status: 429,
        headers: vec![
            ("Retry-After", "1".to_owned()),
            // Or the client may find the connection alive for one request more.
            ("Connection", "close".to_owned()),
        ],
        body: "{}".to_owned(),
    };
    for early in [
        vec![throttle.clone(), Act::Close],
        vec![Act::ReadHead, throttle.clone(), Act::Close],
        vec![Act::ReadHead, throttle, Act::Reset],
    ] {
        let (result, seen) = play_one(scripts![early, then(&[&write_ok(), &kept()])], &direct());
        let receipt = result.unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!((receipt.attempts, receipt.requests), (2, 2));
        seen.assert_same_writes("6");
        assert_eq!(seen.sleeps, 1);
        assert_eq!(seen.metrics.rate_limited + seen.metrics.transport_errors, 1);
        assert_eq!(seen.report.connections, 2);
    }
}

#[test]
fn a_connection_that_was_closed_while_idle_costs_nothing() {
    let wire = Wire::start(scripts![
        then(&[&read_ok(), &write_ok(), &[Act::Close]]),
        then(&[
            &[Act::ReadRequest, respond(200, r#"{"version":"8"}"#)],
            &kept(),
        ]),
    ]);
    let client = builder(&wire.url()).build().unwrap();
    client.update(&update()).unwrap();
    wire.wait_closed(0);
    let receipt = client.update(&update()).unwrap();
    assert_eq!((receipt.attempts, receipt.requests), (1, 1));
    assert_eq!(receipt.version.as_deref(), Some("8"));
    assert_eq!(client.metrics().transport_errors, 0);
    drop(client);
    let report = wire.finish();
    report.assert_clean();
    assert_eq!(methods(&report.requests), ["GET", "PATCH", "PATCH"]);
    assert_eq!(report.requests[2].header("if-match"), Some("\"7\""));
    assert_eq!(report.connections, 2);
}

#[test]
fn a_kept_connection_that_is_closed_on_the_next_request_is_replaced() {
    // A warm write meets it: sent again with the version that the first write returned.
    let (results, seen) = play(
        scripts![
            then(&[&read_ok(), &write_ok(), &[Act::ReadRequest, Act::Close]]),
            then(&[
                &[Act::ReadRequest, respond(200, r#"{"version":"8"}"#)],
                &kept(),
            ]),
        ],
        builder,
        |client| [client.update(&update()), client.update(&update())],
    );
    let second = &results[1].as_ref().unwrap();
    assert_eq!((second.attempts, second.requests), (2, 2));
    assert_eq!(second.outcome, Outcome::Applied);
    let writes = seen.writes();
    assert_eq!(writes[1].header("if-match"), Some("\"7\""));
    assert_eq!(writes[2].header("if-match"), Some("\"7\""));
    assert_eq!(writes[1].body, writes[2].body);
    assert_eq!(seen.report.connections, 2);
}

#[test]
fn where_nothing_listens_nothing_is_sent() {
    for (update, attempts) in [(update(), 0), (direct(), 4)] {
        let clock = ManualClock::new();
        let client = builder(&refused_url())
            .clock(clock.clone())
            .build()
            .unwrap();
        let error = client.update(&update).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connect);
        assert!(error.to_string().contains("refused"), "{error}");
        assert!(!error.may_have_applied() && error.is_transient());
        assert_eq!(error.http_status(), None);
        assert_eq!((error.attempts(), error.requests()), (attempts, 4));
        assert_eq!(clock.sleeps().len(), 3);
    }
}

#[test]
fn a_name_that_does_not_resolve_is_said_so() {
    let client = builder("http://nonexistent.invalid")
        .allow_http(true)
        .retry(RetryPolicy::default().with_max_attempts(1))
        .build()
        .unwrap();
    let error = client.update(&direct()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    let text = error.to_string();
    assert!(
        text.contains("nonexistent.invalid") && text.contains("does not resolve"),
        "{text}"
    );
    assert!(!error.may_have_applied() && error.is_transient());
    assert_eq!((error.attempts(), error.requests()), (1, 1));
}

#[test]
fn redirects_are_not_followed_and_get_no_credentials() {
    let elsewhere = Wire::start(Vec::new());
    for status in [301, 302, 303, 307, 308] {
        let redirect = Act::Respond {
            status,
            headers: vec![("Location", format!("{}/api", elsewhere.url()))],
            body: "moved".to_owned(),
        };
        let answer = [Act::ReadRequest, redirect, Act::WaitClientClose];
        for (update, writes) in [(update(), 0), (direct(), 1)] {
            let (result, seen) = play_one(scripts![answer], &update);
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
            assert_eq!(error.http_status(), Some(status));
            assert!(!error.may_have_applied());
            assert_eq!((error.attempts(), error.requests()), (writes, 1));
            assert_eq!(seen.report.requests.len(), 1);
        }
        // The login carries the client's secret.
        let wire = Wire::start(scripts![answer]);
        let client = Client::builder(
            Region::parse("eu-west-1").unwrap(),
            Credentials::new("id", "secret"),
        )
        .base_url(wire.url())
        .no_proxy()
        .build()
        .unwrap();
        let error = client.update(&update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        assert_eq!(error.http_status(), Some(status));
        assert_eq!(error.requests(), 0);
        drop(client);
        let report = wire.finish();
        report.assert_clean();
        assert_eq!(methods(&report.requests), ["POST"]);
    }
    assert_eq!(elsewhere.finish().connections, 0);
}

#[test]
fn interim_answers_are_passed_over() {
    let hint = raw("HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n");
    let together = raw(&format!(
        "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{WRITTEN}",
        WRITTEN.len()
    ));
    let (result, seen) = play_one(
        scripts![then(&[
            &[Act::ReadRequest, hint.clone(), hint.clone(), hint],
            &[respond(200, READ)],
            &[Act::ReadRequest, together],
            &kept(),
        ])],
        &update(),
    );
    let receipt = result.unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!((receipt.attempts, receipt.requests), (1, 2));
    assert_eq!(receipt.version.as_deref(), Some("7"));
    assert_eq!(seen.report.connections, 1);
}

#[test]
fn a_lost_login_is_tried_again() {
    let token = r#"{"access_token":"fresh","token_type":"bearer","expires_in":86400}"#;
    for (name, fault, _) in unanswered() {
        eprintln!("{name}");
        let (result, seen) = play(
            scripts![
                fault,
                then(&[
                    &[Act::ReadRequest, respond(200, token)],
                    &read_ok(),
                    &write_ok(),
                    &kept(),
                ]),
            ],
            |url| {
                let limits = if stalls(&fault) { SHORT } else { SHORT * 100 };
                builder_of(url, Credentials::new("id", "secret"))
                    .timeouts(Timeouts::default().with_response(limits))
            },
            |client| client.update(&update()),
        );
        let receipt = result.unwrap();
        assert_eq!((receipt.attempts, receipt.requests), (1, 2));
        assert_eq!(
            seen.report.requests.last().unwrap().header("authorization"),
            Some("Bearer fresh")
        );
        assert_eq!(seen.report.connections, 2);
    }
}

/// A certificate authority of the test's own, and what it signed for one name.
struct Authority {
    pem: String,
    key: rcgen::KeyPair,
    params: rcgen::CertificateParams,
}

impl Authority {
    fn new() -> Authority {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, key, params }
    }

    fn server(&self, name: &str) -> rustls::ServerConfig {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let issuer = rcgen::Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
        rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap()
    }
}

/// A server of https, one connection after the other: enough for a client on one thread.
struct Https {
    address: SocketAddr,
    state: Arc<HttpsState>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct HttpsState {
    stopping: AtomicBool,
    connections: Mutex<usize>,
    /// Method, path and `Authorization`.
    requests: Mutex<Vec<(String, String, String)>>,
}

impl Https {
    fn start(config: rustls::ServerConfig) -> Https {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(HttpsState::default());
        let theirs = Arc::clone(&state);
        let config = Arc::new(config);
        let acceptor = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if theirs.stopping.load(Ordering::SeqCst) {
                    return;
                }
                *theirs.connections.lock().unwrap() += 1;
                // It ends with the client's closing, or with a handshake that fails.
                let _ = theirs.serve(stream, &config);
            }
        });
        Https {
            address,
            state,
            acceptor: Some(acceptor),
        }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    fn connections(&self) -> usize {
        *self.state.connections.lock().unwrap()
    }
}

impl Drop for Https {
    fn drop(&mut self) {
        self.state.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl HttpsState {
    fn serve(
        &self,
        stream: TcpStream,
        config: &Arc<rustls::ServerConfig>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let connection = rustls::ServerConnection::new(Arc::clone(config))?;
        let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
        loop {
            let (mut line, mut authorization, mut length) = (String::new(), String::new(), 0);
            stream.read_line(&mut line)?;
            let mut words = line.split(' ').map(str::to_owned);
            let (Some(method), Some(path)) = (words.next(), words.next()) else {
                return Ok(());
            };
            loop {
                let mut field = String::new();
                stream.read_line(&mut field)?;
                let Some((name, value)) = field.trim_end().split_once(": ") else {
                    break;
                };
                match name.to_ascii_lowercase().as_str() {
                    "authorization" => authorization = value.to_owned(),
                    "content-length" => length = value.parse()?,
                    _ => {}
                }
            }
            stream.read_exact(&mut vec![0; length])?;
            let body = match method.as_str() {
                "POST" => r#"{"access_token":"over-tls","expires_in":86400}"#,
                "GET" => READ,
                _ => WRITTEN,
            };
            self.requests
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((method, path, authorization));
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.get_mut().write_all(answer.as_bytes())?;
        }
    }
}

#[test]
fn https_works_with_the_right_root() {
    let authority = Authority::new();
    let server = Https::start(authority.server("localhost"));
    let client = builder_of(&server.url(), Credentials::new("id", "secret"))
        .root_certificates(authority.pem.as_str())
        .build()
        .unwrap();
    let receipt = client.update(&update()).unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!((receipt.attempts, receipt.requests), (1, 2));
    assert_eq!(receipt.version.as_deref(), Some("7"));
    assert_eq!(client.update(&update()).unwrap().requests, 1);
    drop(client);
    assert_eq!(server.connections(), 1);
    let requests = server.state.requests.lock().unwrap();
    let (read, bearer) = ("/api/v2/conversations/c-1", "Bearer over-tls");
    let write = "/api/v2/conversations/c-1/attributes";
    assert_eq!(
        *requests,
        [
            ("POST", "/oauth/token", "Basic aWQ6c2VjcmV0"),
            ("GET", read, bearer),
            ("PATCH", write, bearer),
            ("PATCH", write, bearer),
        ]
        .map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned()))
    );
}

#[test]
fn a_certificate_that_is_not_trusted_is_final_and_nothing_is_sent() {
    let (authority, other) = (Authority::new(), Authority::new());
    // An authority we do not trust; one that we do, for another name; and the built-in roots.
    for (name, server_name, root) in [
        ("another authority", "localhost", Some(&other)),
        ("another name", "elsewhere.example", Some(&authority)),
        ("built-in roots", "localhost", None),
    ] {
        eprintln!("{name}");
        for (update, writes) in [(update(), 0), (direct(), 1)] {
            let server = Https::start(authority.server(server_name));
            let clock = ManualClock::new();
            let mut builder = builder(&server.url()).clock(clock.clone());
            if let Some(root) = root {
                builder = builder.root_certificates(root.pem.as_str());
            }
            let client = builder.build().unwrap();
            let error = client.update(&update).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Connect);
            let text = error.to_string();
            assert!(
                text.contains("not trusted") && text.contains("root_certificates"),
                "{text}"
            );
            assert!(!error.may_have_applied() && !error.is_transient());
            assert_eq!((error.attempts(), error.requests()), (writes, 1));
            assert!(clock.sleeps().is_empty());
            drop(client);
            assert_eq!(server.connections(), 1);
            assert!(server.state.requests.lock().unwrap().is_empty());
        }
    }
}

/// The only connect that takes long on loopback: the other side never says hello.
#[test]
fn connecting_that_takes_too_long_sends_nothing() {
    let wire = Wire::start(vec![vec![Act::WaitClientClose]; 2]);
    let client = builder(&wire.url().replace("http:", "https:"))
        .timeouts(Timeouts::default().with_connect(SHORT))
        .retry(RetryPolicy::default().with_max_attempts(2))
        .clock(ManualClock::new())
        .build()
        .unwrap();
    let error = client.update(&direct()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(error.to_string().contains("too long"), "{error}");
    assert!(!error.may_have_applied() && error.is_transient());
    assert_eq!((error.attempts(), error.requests()), (2, 2));
    drop(client);
    let report = wire.finish();
    report.assert_clean();
    assert!(report.requests.is_empty());
}

/// The limit that a deadline sets is of another kind to ureq than those of the phases.
#[test]
fn a_request_near_the_deadline_gets_what_is_left_of_it() {
    let policy = RetryPolicy::default().with_max_attempts(1);
    let (result, seen) = play(
        scripts![[Act::ReadRequest, Act::WaitClientClose]],
        |url| builder(url).retry(policy.with_deadline(SHORT)),
        |client| client.update(&direct()),
    );
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.may_have_applied());
    seen.assert_same_writes("6");

    // Shorter than the limits of all phases together: connections are kept all the same.
    let (result, seen) = play(
        scripts![then(&[&read_ok(), &write_ok(), &kept()])],
        |url| builder(url).retry(policy.with_deadline(Duration::from_secs(20))),
        |client| client.update(&update()),
    );
    assert_eq!(result.unwrap().outcome, Outcome::Applied);
    assert_eq!(seen.report.connections, 1);
}

/// A host that only a proxy can know.
const BEHIND: &str = "http://api.example.test";

/// A proxy that plays the API itself once it is asked for a tunnel to it.
fn tunnel(then_play: &[Act]) -> Vec<Act> {
    let opened = raw("HTTP/1.1 200 Connection established\r\n\r\n");
    then(&[&[Act::ReadRequest, opened], then_play])
}

#[test]
fn a_proxy_carries_requests_to_other_hosts() {
    let proxy = Wire::start(scripts![tunnel(&then(&[&read_ok(), &write_ok(), &kept()]))]);
    let with_user = proxy.url().replace("http://", "http://user:pass@");
    let client = builder(BEHIND)
        .allow_http(true)
        .proxy(with_user)
        .build()
        .unwrap();
    let receipt = client.update(&update()).unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    assert_eq!((receipt.attempts, receipt.requests), (1, 2));
    drop(client);
    let report = proxy.finish();
    report.assert_clean();
    assert_eq!(methods(&report.requests), ["CONNECT", "GET", "PATCH"]);
    let [connect, read, write] = &report.requests[..] else {
        unreachable!()
    };
    assert_eq!(connect.path, "api.example.test:80");
    assert_eq!(
        connect.header("proxy-authorization"),
        Some("Basic dXNlcjpwYXNz")
    );
    assert_eq!(connect.header("authorization"), None);
    for request in [read, write] {
        assert_eq!(request.header("proxy-authorization"), None);
        assert_eq!(request.header("authorization"), Some("Bearer token"));
        assert_eq!(request.header("host"), Some("api.example.test"));
    }
    assert_eq!(report.connections, 1);
}

#[test]
fn loopback_never_goes_through_a_proxy() {
    let proxy = Wire::start(Vec::new());
    let names = ["127.0.0.1", "localhost", "api.localhost."];
    for name in names {
        let wire = Wire::start(scripts![then(&[&read_ok(), &write_ok(), &kept()])]);
        let url = wire.url().replace("127.0.0.1", name);
        let client = builder(&url)
            .proxy(proxy.url())
            .clock(ManualClock::new())
            .build()
            .unwrap();
        match client.update(&update()) {
            Ok(receipt) => assert_eq!(receipt.outcome, Outcome::Applied),
            // Not every resolver knows all of localhost's names.
            Err(error) => assert!(error.to_string().contains("does not resolve"), "{error}"),
        }
    }
    assert_eq!(proxy.finish().connections, 0);
}

#[test]
fn a_proxy_that_refuses_lets_nothing_through() {
    let refusal = [
        Act::ReadRequest,
        respond(407, r#"{"error":"who are you?"}"#),
        Act::WaitClientClose,
    ];
    let proxy = Wire::start(vec![refusal.to_vec(); 4]);
    let client = builder(BEHIND)
        .allow_http(true)
        .proxy(proxy.url())
        .clock(ManualClock::new())
        .build()
        .unwrap();
    let error = client.update(&direct()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    assert!(error.to_string().contains("proxy"), "{error}");
    assert!(!error.may_have_applied());
    assert_eq!((error.attempts(), error.requests()), (4, 4));
    drop(client);
    let report = proxy.finish();
    report.assert_clean();
    assert_eq!(methods(&report.requests), ["CONNECT"; 4]);

    // Nobody may look for the fault at the API when it is the proxy that is down.
    let client = builder(BEHIND)
        .allow_http(true)
        .proxy(refused_url())
        .clock(ManualClock::new())
        .build()
        .unwrap();
    let error = client.update(&direct()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
    assert!(error.to_string().contains("proxy"), "{error}");
    assert!(!error.may_have_applied());
}

const CHILD: &str = "GENESYS_ATTRIBUTES_TEST_LOOPBACK";

/// The environment is the process's, so this runs itself once more as a process of its own.
#[test]
fn the_proxy_of_the_environment_is_used_except_for_loopback() {
    let from_environment = |url: &str| {
        Client::builder(
            Region::parse("eu-west-1").unwrap(),
            Credentials::access_token("token"),
        )
        .base_url(url)
        .allow_http(true)
        .build()
        .unwrap()
    };
    if let Ok(loopback) = std::env::var(CHILD) {
        for url in [BEHIND, &loopback] {
            let receipt = from_environment(url).update(&update()).unwrap();
            assert_eq!(receipt.outcome, Outcome::Applied);
        }
        return;
    }
    for variable in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "http_proxy"] {
        eprintln!("{variable}");
        let served = then(&[&read_ok(), &write_ok(), &kept()]);
        let proxy = Wire::start(scripts![tunnel(&served)]);
        let api = Wire::start(scripts![served]);
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .arg("wire_faults::the_proxy_of_the_environment_is_used_except_for_loopback")
            .arg("--exact");
        for (name, _) in std::env::vars_os() {
            if name
                .to_string_lossy()
                .to_ascii_lowercase()
                .ends_with("_proxy")
            {
                child.env_remove(name);
            }
        }
        let child = child
            .env(variable, proxy.url())
            .env(CHILD, api.url())
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&child.stdout).into_owned();
        assert!(child.status.success(), "{told}");
        assert!(told.contains("1 passed"), "{told}");
        let (proxy, api) = (proxy.finish(), api.finish());
        proxy.assert_clean();
        api.assert_clean();
        assert_eq!(methods(&proxy.requests), ["CONNECT", "GET", "PATCH"]);
        assert_eq!(methods(&api.requests), ["GET", "PATCH"]);
    }
}
