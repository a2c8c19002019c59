//! What an update costs: requests, connections, and the bytes that go out.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use genesys_attributes::clock::ManualClock;
use genesys_attributes::{
    Client, ClientBuilder, Credentials, ErrorKind, Outcome, RateLimit, Region, RetryPolicy, Update,
};

use crate::server::{Req, Resp, Server};

fn builder(url: &str) -> ClientBuilder {
    Client::builder(
        Region::parse("eu-west-1").unwrap(),
        Credentials::new("id", "secret"),
    )
    .base_url(url)
    .no_proxy()
    .rate_limit(RateLimit::unlimited())
    .clock(ManualClock::new())
}

fn update(id: &str) -> Update {
    Update::conversation(id)
        .set("customer.tier", "premium")
        .set("routing.score", 85)
}

/// How often each kind of request came.
#[derive(Default)]
struct Counts {
    tokens: AtomicUsize,
    reads: AtomicUsize,
    writes: AtomicUsize,
}

impl Counts {
    fn get(&self) -> (usize, usize, usize) {
        let of = |count: &AtomicUsize| count.load(Ordering::SeqCst);
        (of(&self.tokens), of(&self.reads), of(&self.writes))
    }
}

/// A platform that locks: every write must carry the version of the one before, or fails the test.
fn platform() -> (Server, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    let theirs = Arc::clone(&counts);
    let versions: Mutex<HashMap<String, u64>> = Mutex::default();
    let server = Server::start(move |request| {
        let count = |count: &AtomicUsize| count.fetch_add(1, Ordering::SeqCst);
        if request.method == "POST" {
            count(&theirs.tokens);
            return token();
        }
        let path = request.path.strip_suffix("/attributes");
        let mut versions = versions.lock().unwrap();
        let version = versions
            .entry(path.unwrap_or(request.path).to_owned())
            .or_insert(6);
        if request.method == "GET" {
            count(&theirs.reads);
            return Resp::json(200, format!(r#"{{"version":{version}}}"#));
        }
        count(&theirs.writes);
        if request.header("if-match") != Some(&format!("\"{version}\"")) {
            return Resp::json(412, r#"{"message":"changed in between"}"#);
        }
        *version += 1;
        Resp::json(200, format!(r#"{{"version":{version}}}"#))
    });
    (server, counts)
}

fn token() -> Resp {
    Resp::json(
        200,
        r#"{"access_token":"abc.def","token_type":"bearer","expires_in":86400}"#,
    )
}

#[test]
fn update_costs_two_requests_cold_one_warm_on_the_wire() {
    let (server, counts) = platform();
    let client = builder(&server.url()).build().unwrap();
    assert_eq!(server.connections(), 0, "build() must not connect");

    let cold = client.update(&update("c-1")).unwrap();
    assert_eq!((cold.attempts, cold.requests), (1, 2));
    assert_eq!(cold.previous_version.as_deref(), Some("6"));
    assert_eq!(cold.version.as_deref(), Some("7"));
    assert_eq!(counts.get(), (1, 1, 1));

    let warm = client.update(&update("c-1")).unwrap();
    assert_eq!((warm.attempts, warm.requests), (1, 1));
    assert_eq!(warm.previous_version.as_deref(), Some("7"));
    assert_eq!(counts.get(), (1, 1, 2));

    // Another conversation is cold, and a clone as warm as the client it is from.
    let other = client.update(&update("c-2")).unwrap();
    assert_eq!((other.attempts, other.requests), (1, 2));
    let cloned = client.clone().update(&update("c-1")).unwrap();
    assert_eq!((cloned.attempts, cloned.requests), (1, 1));
    assert_eq!(counts.get(), (1, 2, 4));
    assert_eq!(client.metrics().requests, 6);
    assert_eq!(client.metrics().token_refreshes, 1);
    assert_eq!(server.connections(), 1);
}

#[test]
fn version_cache_disabled_makes_updates_cold_on_the_wire() {
    let (server, counts) = platform();
    let client = builder(&server.url()).version_cache(0).build().unwrap();
    for _ in 0..3 {
        let receipt = client.update(&update("c-1")).unwrap();
        assert_eq!((receipt.attempts, receipt.requests), (1, 2));
    }
    assert_eq!(counts.get(), (1, 3, 3));
    assert_eq!(server.connections(), 1);
}

#[test]
fn warm_updates_reuse_one_connection() {
    let (server, counts) = platform();
    let client = builder(&server.url()).build().unwrap();
    for n in 0..101 {
        let receipt = client.update(&update("c-1")).unwrap();
        assert_eq!(receipt.version, Some((7 + n).to_string()));
    }
    assert_eq!(counts.get(), (1, 1, 101));
    assert_eq!(server.connections(), 1);
}

#[test]
fn threads_open_at_most_one_connection_each() {
    const THREADS: usize = 16;
    const EACH: usize = 50;
    let (server, counts) = platform();
    let client = builder(&server.url()).build().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let client = client.clone();
            scope.spawn(move || {
                for n in 0..EACH {
                    let receipt = client.update(&update(&format!("c-{thread}-{n}"))).unwrap();
                    assert_eq!((receipt.attempts, receipt.requests), (1, 2));
                }
            });
        }
    });
    // The login's connection is one of them, and all threads share its token.
    assert_eq!(counts.get(), (1, THREADS * EACH, THREADS * EACH));
    let opened = server.connections();
    assert!((1..=THREADS).contains(&opened), "{opened} connections");

    // A second round needs no more: all were kept.
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let client = client.clone();
            scope.spawn(move || {
                for n in 0..EACH {
                    let receipt = client.update(&update(&format!("c-{thread}-{n}"))).unwrap();
                    assert_eq!((receipt.attempts, receipt.requests), (1, 1));
                }
            });
        }
    });
    assert!(server.connections() <= THREADS);
    assert_eq!(client.metrics().transport_errors, 0);
}

#[test]
fn max_idle_connections_one_keeps_one() {
    let (server, _) = platform();
    let client = builder(&server.url())
        .max_idle_connections(1)
        .build()
        .unwrap();
    for n in 0..10 {
        client.update(&update(&format!("c-{n}"))).unwrap();
    }
    assert_eq!(server.connections(), 1);
}

#[test]
fn error_answer_with_body_keeps_connection() {
    let round = AtomicU64::new(0);
    let body = format!(r#"{{"message":"{}","code":"x"}}"#, "long ".repeat(10_000));
    let statuses = [400, 401, 403, 404, 409, 412, 413, 429, 500, 503];
    let server = Server::start(move |request| match request.method {
        "POST" => token(),
        "GET" => Resp::json(200, r#"{"version":"6"}"#),
        _ => {
            let at = round.fetch_add(1, Ordering::SeqCst) as usize;
            Resp::json(statuses[at % statuses.len()], body.clone()).header("Retry-After", "0")
        }
    });
    let client = builder(&server.url())
        .retry(
            RetryPolicy::default()
                .with_max_attempts(1)
                .with_max_conflicts(0),
        )
        .build()
        .unwrap();
    let mut writes = 0;
    while writes < 40 {
        let error = client.update(&update("c-1")).unwrap_err();
        assert!(error.http_status().is_some(), "{error}");
        writes += error.attempts();
    }
    assert_eq!(client.metrics().transport_errors, 0);
    assert_eq!(server.connections(), 1);
    assert_eq!(server.panics(), 0);
}

/// The same when the errors are settled by trying again.
#[test]
fn retries_reuse_connection() {
    for status in [412, 429, 500, 401] {
        let round = AtomicUsize::new(0);
        let server = Server::start(move |request| match request.method {
            "POST" => token(),
            "GET" => Resp::json(200, r#"{"version":"6"}"#),
            _ if round.fetch_add(1, Ordering::SeqCst) == 0 => {
                Resp::json(status, r#"{"message":"once"}"#).header("Retry-After", "3")
            }
            _ => Resp::json(200, r#"{"version":"7"}"#),
        });
        let client = builder(&server.url()).build().unwrap();
        let receipt = client.update(&update("c-1")).unwrap();
        assert_eq!(receipt.outcome, Outcome::Applied);
        assert_eq!(receipt.attempts, 2);
        assert_eq!(receipt.requests, if status == 412 { 4 } else { 3 });
        assert_eq!(server.connections(), 1);
    }
}

#[test]
fn login_refused_keeps_connection() {
    let server = Server::start(|_| Resp::json(503, r#"{"message":"later"}"#));
    let client = builder(&server.url()).build().unwrap();
    let error = client.update(&update("c-1")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Server);
    assert_eq!(server.requests(), 4);
    assert_eq!(server.connections(), 1);
}

#[test]
fn connection_close_from_server_is_obeyed() {
    let server = Server::start(|request| {
        let answer = match request.method {
            "POST" => token(),
            _ => Resp::json(200, r#"{"version":"6"}"#),
        };
        answer.header("Connection", "close")
    });
    let client = builder(&server.url()).build().unwrap();
    client.update(&update("c-1")).unwrap();
    client.update(&update("c-1")).unwrap();
    assert_eq!(server.connections(), server.requests());
    assert_eq!(client.metrics().transport_errors, 0);
}

/// A request as text: the first line, the header fields in alphabetical order, and the body.
fn text(request: &Req) -> String {
    let mut fields: Vec<String> = request
        .headers()
        .map(|(name, value)| format!("{}: {value}", name.to_ascii_lowercase()))
        .collect();
    fields.sort();
    format!(
        "{} {}\n{}\n\n{}",
        request.method,
        request.path,
        fields.join("\n"),
        String::from_utf8_lossy(request.body)
    )
}

/// A platform that writes down what it gets.
fn recorded(work: impl FnOnce(&str)) -> Vec<String> {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let theirs = Arc::clone(&seen);
    let server = Server::start(move |request| {
        theirs.lock().unwrap().push(text(request));
        match request.method {
            "POST" => token(),
            "GET" => Resp::json(
                200,
                r#"{"version":"6","attributes":{"a":"b"},"customAttributes":{},
                    "divisions":["d-1"],
                    "participants":[{"id":"p-1","purpose":"external"}]}"#,
            ),
            _ => Resp::json(200, r#"{"version":"7"}"#),
        }
    });
    work(&server.url());
    let seen = seen.lock().unwrap().clone();
    let host = server.url().replace("http://", "host: ");
    seen.iter()
        .map(|text| text.replace(&host, "host: HOST"))
        .collect()
}

/// Byte for byte: no `Expect`, no `Accept-Encoding`, no chunks, no content type without content.
#[test]
fn conversation_update_wire_form() {
    let requests = recorded(|url| {
        let client = builder(url).build().unwrap();
        client.update(&update("c-1")).unwrap();
    });
    let agent = concat!("user-agent: genesys-attributes/", env!("CARGO_PKG_VERSION"));
    let body = concat!(
        r#"{"attributes":{"customer.tier":"premium","routing.score":85},"#,
        r#""metadata":{"source":"external-integration","#,
        r#""timestamp":"2026-01-01T00:00:00.000Z"}}"#
    );
    assert_eq!(
        requests,
        [
            format!(
                "POST /oauth/token\n\
                 accept: application/json\n\
                 authorization: Basic aWQ6c2VjcmV0\n\
                 content-length: 29\n\
                 content-type: application/x-www-form-urlencoded\n\
                 host: HOST\n\
                 {agent}\n\n\
                 grant_type=client_credentials"
            ),
            format!(
                "GET /api/v2/conversations/c-1\n\
                 accept: application/json\n\
                 authorization: Bearer abc.def\n\
                 host: HOST\n\
                 {agent}\n\n"
            ),
            format!(
                "PATCH /api/v2/conversations/c-1/attributes\n\
                 accept: application/json\n\
                 authorization: Bearer abc.def\n\
                 content-length: {}\n\
                 content-type: application/json\n\
                 host: HOST\n\
                 if-match: \"6\"\n\
                 {agent}\n\n\
                 {body}",
                body.len()
            ),
        ]
    );
}

/// The other targets carry their lock in the body, if they have one, and no `If-Match`.
#[test]
fn other_targets_wire_form() {
    let requests = recorded(|url| {
        let client = builder(url).build().unwrap();
        for update in [
            Update::participant("c-1", "customer"),
            Update::participant("c-1", "p-1"),
            Update::secure("c-1"),
            Update::secure("c-1").unlocked(),
            Update::custom("c-1", "r-1"),
        ] {
            client.update(&update.set("tier", "gold")).unwrap();
        }
    });
    let first = |text: &String| {
        let fields: Vec<&str> = text
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(": "))
            .map(|(name, _)| name)
            .collect();
        assert!(!fields.contains(&"if-match"), "{text}");
        assert!(!fields.contains(&"expect"), "{text}");
        let has_content = !text.starts_with("GET");
        assert_eq!(fields.contains(&"content-type"), has_content, "{text}");
        assert_eq!(fields.contains(&"content-length"), has_content, "{text}");
        let (line, body) = (text.lines().next().unwrap(), text.split("\n\n").nth(1));
        format!("{line} {}", body.unwrap()).trim().to_owned()
    };
    let lines: Vec<String> = requests.iter().skip(1).map(first).collect();
    let conversation = "/api/v2/conversations/c-1";
    let gold = r#"{"attributes":{"tier":"gold"}}"#;
    assert_eq!(
        lines,
        [
            format!("GET {conversation}"),
            format!("PATCH {conversation}/participants/p-1/attributes {gold}"),
            format!("PATCH {conversation}/participants/p-1/attributes {gold}"),
            format!("GET {conversation}/secureattributes"),
            format!(
                "PUT {conversation}/secureattributes {}",
                r#"{"attributes":{"a":"b","tier":"gold"},"version":6}"#
            ),
            format!("PATCH {conversation}/secureattributes {gold}"),
            format!("GET {conversation}/customattributes/r-1"),
            format!(
                "PATCH {conversation}/customattributes {}",
                r#"{"id":"r-1","divisions":["d-1"],"version":6,"customAttributes":{"tier":"gold"}}"#
            ),
        ]
    );
}

#[test]
fn settings_wire_form() {
    let requests = recorded(|url| {
        let client = builder(&format!("{url}/gateway/"))
            .login_url(format!("{url}/login"))
            .user_agent("crm-sync/2")
            .metadata_source("crm")
            .build()
            .unwrap();
        client.update(&update("c-1")).unwrap();
    });
    let [login, read, write] = &requests[..] else {
        panic!("{requests:?}")
    };
    assert!(login.starts_with("POST /login/oauth/token\n"), "{login}");
    assert!(
        read.starts_with("GET /gateway/api/v2/conversations/c-1\n"),
        "{read}"
    );
    assert!(
        write.starts_with("PATCH /gateway/api/v2/conversations/c-1/attributes\n"),
        "{write}"
    );
    assert!(write.contains(r#""metadata":{"source":"crm","#), "{write}");
    for request in &requests {
        assert!(request.contains("\nuser-agent: crm-sync/2\n"), "{request}");
    }
}
