//! What must never be shown: the client's secret, tokens, a proxy's password, and the values of
//! attributes. Distinctive ones go through everything that can happen to an update, and are then
//! looked for in whatever this crate logged, and in every text that its types print.
//!
//! One file, since all of it is about one collection of planted secrets and one search for them.

use std::cell::RefCell;
use std::error::Error as _;
use std::fmt::Debug;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};

use genesys_attributes::audit::{AuditMode, AuditRecord, AuditSink, JsonLines, LogSink};
use genesys_attributes::clock::ManualClock;
use genesys_attributes::error::Sent;
use genesys_attributes::http::{Method, Request, Response, TransportError};
use genesys_attributes::{
    Client, ClientBuilder, Credentials, Error, ErrorKind, Outcome, RateLimit, Region, RetryPolicy,
    Update,
};
use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::server::{Req, Resp, Server};
use crate::wire::{Act, Wire, refused_url, respond};

/// One of each that no other test has. The number is among the attributes' values too.
const SECRET: &str = "client-secret-Zq81vX";
const TOKEN: &str = "access-token-Hw52kT";
const PASSWORD: &str = "proxy-password-Jc07mB";
const VALUE: &str = "attribute-value-Lr36nD";
const OLD_VALUE: &str = "value-before-Ys94fG";
const NUMBER: u64 = 918_273_645;
/// `id:` and the secret, as the login carries them.
const BASIC: &str = "aWQ6Y2xpZW50LXNlY3JldC1acTgxdlg";

const HIDDEN: [&str; 7] = [
    SECRET,
    TOKEN,
    PASSWORD,
    VALUE,
    OLD_VALUE,
    "918273645",
    BASIC,
];

/// Keeps what this crate logs, from all tests of this binary.
struct Capture;

static LOGGED: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());

impl Log for Capture {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("genesys_attributes")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = format!("{} {}", record.target(), record.args());
            LOGGED.lock().unwrap().push((record.level(), line));
            ON_LOG.with_borrow(|hook| {
                if let Some(hook) = hook {
                    hook(record);
                }
            });
        }
    }

    fn flush(&self) {}
}

type OnLog = Box<dyn Fn(&Record<'_>)>;

thread_local! {
    /// What the logger does on this thread with a line of this crate.
    static ON_LOG: RefCell<Option<OnLog>> = const { RefCell::new(None) };
}

/// From now on the logger runs this for each line of this thread.
pub fn on_log(hook: impl Fn(&Record<'_>) + 'static) {
    capture();
    ON_LOG.with_borrow_mut(|slot| *slot = Some(Box::new(hook)));
}

fn capture() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Capture).expect("this binary's only logger");
        log::set_max_level(LevelFilter::Trace);
    });
}

/// The lines about one conversation or host, after a look that none of all lines tells a secret.
#[track_caller]
fn logged(about: &str) -> Vec<(Level, String)> {
    // Each line is searched once: the rest of the suite logs a lot.
    static SEARCHED: AtomicUsize = AtomicUsize::new(0);
    let fresh = {
        let lines = LOGGED.lock().unwrap();
        let from = SEARCHED.swap(lines.len(), Ordering::SeqCst);
        lines[from..].to_vec()
    };
    for (_, line) in &fresh {
        assert_hides(line);
    }
    let lines = LOGGED.lock().unwrap();
    let found = lines.iter().filter(|(_, line)| line.contains(about));
    found.cloned().collect()
}

#[track_caller]
fn assert_hides(text: &str) {
    for hidden in HIDDEN {
        assert!(!text.contains(hidden), "{hidden} is in {text}");
    }
}

#[track_caller]
fn assert_debug_hides(thing: &impl Debug) {
    assert_hides(&format!("{thing:?}\n{thing:#?}"));
}

/// An error's every text.
#[track_caller]
fn assert_error_hides(error: &Error) {
    assert_debug_hides(error);
    assert_hides(&format!("{error} {error:#}"));
    assert_hides(&serde_json::to_string(error).unwrap());
    assert_debug_hides(&error.violations());
    let mut source = error.source();
    while let Some(cause) = source {
        assert_hides(&format!("{cause} {cause:?} {cause:#?}"));
        source = cause.source();
    }
}

fn login() -> Credentials {
    Credentials::new("id", SECRET)
}

fn builder(url: &str, credentials: Credentials) -> ClientBuilder {
    capture();
    Client::builder(Region::parse("eu-west-1").unwrap(), credentials)
        .base_url(url)
        .no_proxy()
        .rate_limit(RateLimit::unlimited())
        // By the manual clock, there is time for hundreds.
        .retry(RetryPolicy::default().with_max_conflicts(2))
        .clock(ManualClock::new())
}

fn update(id: &str) -> Update {
    Update::conversation(id)
        .set("tier", VALUE)
        .set("score", NUMBER)
}

/// One of every kind of target. The conversation's values are written twice, cold and warm.
fn updates(id: &str) -> Vec<Update> {
    let with_values = |update: Update| update.set("tier", VALUE).set("score", NUMBER);
    vec![
        update(id),
        update(id),
        update(id).skip_unchanged(),
        with_values(Update::participant(id, "customer")),
        with_values(Update::participant(id, "p-1")),
        with_values(Update::secure(id)).remove("old"),
        with_values(Update::secure(id)).unlocked(),
        with_values(Update::custom(id, "r-1")),
    ]
}

fn token() -> Resp {
    Resp::json(
        200,
        format!(r#"{{"access_token":"{TOKEN}","token_type":"bearer","expires_in":86400}}"#),
    )
}

/// Every read of every target, with values in it.
fn read() -> Resp {
    let values = format!(r#"{{"tier":"{OLD_VALUE}","old":"{OLD_VALUE}"}}"#);
    Resp::json(
        200,
        format!(
            r#"{{"version":"6","state":"terminated","attributes":{values},
                 "customAttributes":{values},
                 "participants":[{{"id":"p-1","purpose":"customer","attributes":{values}}}]}}"#
        ),
    )
}

/// The platform: logs in, reads, and answers writes by echoing the values.
fn platform(write: impl Fn(&Req) -> Resp + Send + Sync + 'static) -> Server {
    Server::start(move |request| match request.method {
        "POST" => token(),
        "GET" => read(),
        _ => write(request),
    })
}

fn echo(request: &Req) -> Resp {
    let body = String::from_utf8_lossy(request.body).into_owned();
    Resp::json(200, body)
}

/// A writer that can be read while the sink has it.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

#[test]
fn retry_is_logged_in_one_line_with_its_number_and_its_reason() {
    let server = Server::start(|request| match request.method {
        "POST" => token(),
        _ => Resp::json(503, "{}"),
    });
    let client = builder(&server.url(), login()).build().unwrap();
    let update = Update::participant("secrets-attempts", "p-1").set("tier", VALUE);
    client.update(&update).unwrap_err();
    let lines = logged("secrets-attempts");
    let warned = lines.iter().filter(|(level, _)| *level == Level::Warn);
    let warned = Vec::from_iter(warned.map(|(_, line)| line));
    assert_eq!(warned.len(), 3, "{warned:?}");
    for (number, line) in (2..).zip(warned) {
        let attempt = format!(" answered 503; attempt {number} of 4, again in ");
        let (_, wait) = line
            .split_once(&attempt)
            .unwrap_or_else(|| panic!("{line}"));
        assert!(wait.len() <= "99.9 ms".len(), "{line}");
    }
}

#[test]
fn leak_search_finds_planted_secrets() {
    assert!(NUMBER.to_string() == HIDDEN[5] && NUMBER < 1_000_000_000);
    capture();
    log::trace!(target: "genesys_attributes::test", "a line of {}", "the-search");
    assert_eq!(
        logged("the-search"),
        [(
            Level::Trace,
            "genesys_attributes::test a line of the-search".to_owned()
        )]
    );
    for hidden in HIDDEN {
        let found = std::panic::catch_unwind(|| assert_hides(&format!("x{hidden}y")));
        assert!(found.is_err());
    }
    // The login really is what is looked for.
    let server = Server::start(|request| {
        assert!(request.header("authorization").unwrap().contains(BASIC));
        Resp::empty(401)
    });
    let client = builder(&server.url(), login()).build().unwrap();
    client.update(&update("x")).unwrap_err();
    assert_eq!((server.requests(), server.panics()), (1, 0));
}

#[test]
fn update_applied_leaks_nothing() {
    let server = platform(echo);
    let kept = Shared::default();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let events = Arc::clone(&seen);
    let id = "secrets-success";
    for audited in [true, false] {
        let mut builder = builder(&server.url(), login());
        builder = match audited {
            true => builder.audit(JsonLines::new(kept.clone())),
            false => builder.audit(LogSink),
        };
        let events = Arc::clone(&events);
        let client = builder
            .on_update(move |event| events.lock().unwrap().push(event.clone()))
            .build()
            .unwrap();
        for update in updates(id) {
            let receipt = client.update(&update).unwrap();
            assert_eq!(receipt.outcome, Outcome::Applied);
            assert!(!receipt.audit_failed);
        }
        assert_debug_hides(&client);
    }
    let audit = kept.text();
    assert_hides(&audit);
    assert_eq!(audit.lines().count(), 2 * updates(id).len());
    assert!(
        audit.contains(r#""updatedKeys":["score","tier"]"#),
        "{audit}"
    );

    let logged = logged(id);
    for level in [Level::Warn, Level::Info, Level::Debug] {
        assert!(
            logged.iter().any(|(l, _)| *l == level),
            "nothing at {level}"
        );
    }
    let of_audit = logged.iter().filter(|(_, line)| {
        line.starts_with("genesys_attributes::audit") && line.contains("updatedKeys")
    });
    assert_eq!(of_audit.count(), 2 * updates(id).len());

    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 2 * updates(id).len());
    for event in seen.iter() {
        assert_debug_hides(&event.audit());
        assert_hides(&serde_json::to_string(&event.audit()).unwrap());
        if event.target.name() == "secure" {
            assert_debug_hides(event);
            assert_hides(&serde_json::to_string(event).unwrap());
            assert_hides(&event.webhook_payload().to_string());
            assert_eq!(event.updated_keys(), ["score", "tier"]);
            assert!(event.attributes.is_empty());
        } else {
            assert_eq!(event.attributes["tier"], VALUE);
        }
    }
}

/// Values are told where they are asked for; those of secure attributes only in events, never in
/// the audit trail.
#[test]
fn audit_values_asked_for_still_hide_secure_values() {
    let server = platform(echo);
    let kept = Shared::default();
    let client = builder(&server.url(), login())
        .audit(JsonLines::new(kept.clone()))
        .audit_values(true)
        .build()
        .unwrap();
    let events = client.subscribe(64);
    let secure = || {
        [
            Update::secure("c").set("tier", VALUE).set("score", NUMBER),
            Update::secure("c").set("tier", VALUE).unlocked(),
        ]
    };
    for update in secure() {
        client.update(&update).unwrap();
        let delivery = events.try_recv().unwrap();
        assert_debug_hides(&delivery);
        assert_hides(&serde_json::to_string(&*delivery.event).unwrap());
    }
    assert_hides(&kept.text());

    let kept = Shared::default();
    let client = builder(&server.url(), login())
        .audit(JsonLines::new(kept.clone()))
        .audit_values(true)
        .secure_values_in_events(true)
        .build()
        .unwrap();
    let events = client.subscribe(64);
    for update in secure() {
        client.update(&update).unwrap();
        let delivery = events.try_recv().unwrap();
        assert_eq!(delivery.attributes["tier"], VALUE);
        assert_debug_hides(&delivery.audit());
    }
    assert_hides(&kept.text());
    client.update(&update("c")).unwrap();
    assert!(kept.text().contains(VALUE));
}

/// Every refusal, of every target, with a body and without.
#[test]
fn update_refused_leaks_nothing() {
    let refusals = [
        (400, r#"{"message":"malformed","code":"bad.request"}"#),
        (401, r#"{"message":"no","code":"bad.credentials"}"#),
        (
            403,
            r#"{"message":"missing [a:b:c]","code":"missing.any.permissions"}"#,
        ),
        (404, "<html>not here</html>"),
        (409, "{}"),
        (412, "{}"),
        (413, "{}"),
        (418, "{}"),
        (429, "{}"),
        (500, "{}"),
    ];
    for (status, body) in refusals {
        // The values come back where they are no message.
        let answer =
            format!(r#"{{"attributes":{{"tier":"{VALUE}","score":{NUMBER}}},"x":{body:?}}}"#);
        for body in [body.to_owned(), answer, VALUE.to_owned(), String::new()] {
            let server =
                platform(move |_| Resp::json(status, body.clone()).header("Retry-After", "999"));
            let id = format!("secrets-refused-{status}");
            let kept = Shared::default();
            let client = builder(&server.url(), login())
                .audit(JsonLines::new(kept.clone()))
                .build()
                .unwrap();
            for update in updates(&id) {
                let error = client.update(&update).unwrap_err();
                assert_error_hides(&error);
                assert_eq!(error.http_status(), Some(status));
            }
            assert_hides(&kept.text());
            assert!(kept.text().contains(r#""status":"failed""#));
            assert!(!logged(&id).is_empty());
        }
    }
}

#[test]
fn login_refused_or_unusable_leaks_nothing() {
    for (status, body) in [
        (
            400,
            r#"{"error":"invalid_client","description":"x"}"#.to_owned(),
        ),
        (
            400,
            r#"{"error":"invalid_request","description":"rate limit exceeded"}"#.to_owned(),
        ),
        (
            401,
            r#"{"error":"invalid_client","error_description":"y"}"#.to_owned(),
        ),
        (403, String::new()),
        (404, "<html>".to_owned()),
        (500, "{}".to_owned()),
        // Tokens that cannot be used.
        (200, format!("access_token={TOKEN}")),
        (200, format!(r#"{{"access_token":["{TOKEN}"]}}"#)),
        (200, format!(r#"{{"access_token":"{TOKEN}\n"}}"#)),
        (200, format!(r#"{{"access_token":"{TOKEN}""#)),
        (200, format!(r#"["{TOKEN}"]"#)),
        (200, format!(r#""{TOKEN}""#)),
        (200, format!(r#"{{"token":"{TOKEN}"}}"#)),
        (307, format!(r#"{{"access_token":"{TOKEN}"}}"#)),
    ] {
        let told = body.clone();
        let server = Server::start(move |request| {
            assert_eq!(request.path, "/oauth/token");
            Resp::json(status, body.clone()).header("Retry-After", "999")
        });
        let client = builder(&server.url(), login()).build().unwrap();
        // The second is told of the first one's failure.
        for _ in 0..2 {
            let error = client.update(&update("c")).unwrap_err();
            assert_error_hides(&error);
            assert_eq!(error.http_status(), Some(status), "{told}: {error}");
        }
        let error = client.verify_credentials().unwrap_err();
        assert_error_hides(&error);
        assert_eq!(server.panics(), 0);
        assert!(!logged(&server.url()).is_empty());
    }
}

/// A given token that the platform refuses, and one that it takes.
#[test]
fn given_token_update_leaks_nothing() {
    for status in [200, 401, 403] {
        let server = Server::start(move |request| match request.method {
            "GET" => read(),
            _ => Resp::json(status, "{}"),
        });
        let client = builder(&server.url(), Credentials::access_token(TOKEN))
            .audit(LogSink)
            .build()
            .unwrap();
        let id = format!("secrets-given-{status}");
        match client.update(&update(&id)) {
            Ok(_) => assert_eq!(status, 200),
            Err(error) => assert_error_hides(&error),
        }
        assert_debug_hides(&client);
        assert!(!logged(&id).is_empty());
    }
}

/// What a network does wrong while it carries values.
#[test]
fn wire_faults_leak_nothing() {
    let part = format!(r#"{{"version":"6","attributes":{{"tier":"{OLD_VALUE}""#);
    let cut = format!("HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{part}");
    let chunk = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{OLD_VALUE}\r\n{OLD_VALUE}\r\n"
    );
    let header = format!("HTTP/1.1 200 OK\r\nContent-Length: {OLD_VALUE}\r\n\r\n");
    let status = format!("HTTP/1.1 {VALUE} {VALUE}\r\n\r\n");
    for answer in [
        "",
        "HTTP/1.1 200 OK\r\nX: ",
        VALUE,
        cut.as_str(),
        chunk.as_str(),
        header.as_str(),
        status.as_str(),
    ] {
        let fault = vec![
            Act::ReadRequest,
            Act::Write(answer.as_bytes().to_vec()),
            Act::Close,
        ];
        // Of the read, and of the write.
        for update in [
            update("secrets-fault"),
            update("secrets-fault").if_version("6"),
        ] {
            let wire = Wire::start(vec![fault.clone(); 4]);
            let kept = Shared::default();
            let client = builder(&wire.url(), Credentials::access_token(TOKEN))
                .audit(JsonLines::new(kept.clone()))
                .build()
                .unwrap();
            match client.update(&update) {
                Ok(receipt) => assert_eq!(receipt.version, None, "{answer}"),
                Err(error) => assert_error_hides(&error),
            }
            assert_hides(&kept.text());
            drop(client);
            assert!(wire.finish().errors.is_empty());
        }
    }
    // And a body that is whole, but nothing that can be used.
    for (body, reads) in [
        (part.as_str(), 4),
        (VALUE, 4),
        (&format!(r#"["{VALUE}"]"#), 1),
    ] {
        let mut script = vec![[Act::ReadRequest, respond(200, body)]; reads].concat();
        script.push(Act::WaitClientClose);
        let wire = Wire::start(vec![script]);
        let client = builder(&wire.url(), Credentials::access_token(TOKEN))
            .build()
            .unwrap();
        let error = client.update(&update("secrets-fault")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert_error_hides(&error);
        drop(client);
        wire.finish().assert_clean();
    }
    let client = builder(&refused_url(), login()).build().unwrap();
    assert_error_hides(&client.update(&update("secrets-refused")).unwrap_err());

    let logged = logged("secrets-fault");
    for level in [Level::Warn, Level::Debug] {
        assert!(
            logged.iter().any(|(l, _)| *l == level),
            "nothing at {level}"
        );
    }
}

#[test]
fn hook_panic_and_audit_failure_leak_nothing() {
    struct Broken;
    impl AuditSink for Broken {
        fn record(&self, record: &AuditRecord) -> io::Result<()> {
            assert_debug_hides(record);
            Err(io::Error::other("the disk is full"))
        }
    }
    struct Panicking;
    impl AuditSink for Panicking {
        fn record(&self, _: &AuditRecord) -> io::Result<()> {
            panic!("with {VALUE} and {TOKEN}")
        }
    }
    let server = platform(echo);
    let id = "secrets-hooks";
    let hooked = |builder: ClientBuilder| {
        builder
            .on_update(|event| panic!("with {:?}, {VALUE} and {TOKEN}", event.attributes))
            .build()
            .unwrap()
    };
    let clients = [
        hooked(builder(&server.url(), login()).audit(Broken)),
        hooked(builder(&server.url(), login()).audit(Panicking)),
    ];
    for client in clients {
        for update in updates(id) {
            let receipt = client.update(&update).unwrap();
            assert!(receipt.audit_failed);
            assert_eq!(receipt.hook_panics, 1);
        }
    }
    let logged = logged(id);
    assert!(
        logged
            .iter()
            .any(|(_, line)| line.contains("hook panicked"))
    );
    let lines = LOGGED.lock().unwrap().clone();
    assert!(
        lines
            .iter()
            .any(|(_, line)| line.contains("the disk is full"))
    );
    assert!(lines.iter().any(|(_, line)| line.contains("sink panicked")));

    let strict = |builder: ClientBuilder| builder.audit_mode(AuditMode::Strict).build().unwrap();
    for client in [
        strict(builder(&server.url(), login()).audit(Broken)),
        strict(builder(&server.url(), login()).audit(Panicking)),
    ] {
        let error = client.update(&update(id)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Audit);
        assert_error_hides(&error);
    }
}

/// A transport that looks at what it is given.
#[test]
fn request_and_response_debug_hide_contents() {
    let looking = |answer: fn(&Request) -> Result<Response, TransportError>| {
        move |request: &Request| {
            assert_debug_hides(request);
            let authorization = request
                .headers()
                .find(|(name, _)| *name == "Authorization")
                .map(|(_, value)| value.to_owned())
                .unwrap();
            let answer = match request.method() {
                Method::Post => {
                    assert!(authorization.contains(BASIC));
                    let body = format!(r#"{{"access_token":"{TOKEN}"}}"#);
                    Ok(Response::new(200).with_body(body))
                }
                _ => {
                    assert!(authorization.contains(TOKEN));
                    answer(request)
                }
            };
            assert_debug_hides(&answer);
            answer
        }
    };
    let answer = |_: &Request| -> Result<Response, TransportError> {
        Ok(Response::new(200)
            .with_header("ETag", "\"6\"")
            .with_body(format!(
                r#"{{"version":"6","attributes":{{"tier":"{OLD_VALUE}"}}}}"#
            )))
    };
    let client = builder("http://127.0.0.1:1", login())
        .transport(looking(answer))
        .build()
        .unwrap();
    client.update(&update("c")).unwrap();

    let lost = |_: &Request| -> Result<Response, TransportError> {
        let error = Error::new(ErrorKind::Transport, "lost");
        Err(TransportError::new(error, Sent::Maybe))
    };
    let client = builder("http://127.0.0.1:1", login())
        .transport(looking(lost))
        .build()
        .unwrap();
    let error = client.update(&update("c").if_version("6")).unwrap_err();
    assert!(error.may_have_applied());
    assert_error_hides(&error);

    // A panic carries them.
    let panics = |request: &Request| -> Result<Response, TransportError> {
        let body = request.body().map(String::from_utf8_lossy);
        panic!("with {body:?} and {TOKEN}")
    };
    let client = builder("http://127.0.0.1:1", login())
        .transport(looking(panics))
        .build()
        .unwrap();
    let error = client.update(&update("c").if_version("6")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.may_have_applied());
    assert_error_hides(&error);
}

#[test]
fn violations_describe_values_without_showing_them() {
    let long = VALUE.repeat(100);
    let number: f64 = "918273645.5".parse().unwrap();
    let update = Update::conversation("c")
        .set("long", long.as_str())
        .set("list", vec![VALUE])
        .set("object", serde_json::json!({ VALUE: NUMBER }))
        .set("fraction", number)
        .set("negative", -918_273_645)
        .set("large", NUMBER * 10_000)
        .set("huge", 9.182_736_45e300);
    let error = update.validate().unwrap_err();
    assert_eq!(error.violations().len(), 7, "{error}");
    assert_error_hides(&error);
    for update in [
        Update::participant("c", "p")
            .set("a", vec![VALUE])
            .set("b", number),
        Update::secure("c").set("a", vec![VALUE]).remove("a"),
        Update::custom("c", "r").set("a", VALUE.repeat(1 << 16)),
    ] {
        assert_error_hides(&update.validate().unwrap_err());
    }
}

#[test]
fn settings_debug_hides_secrets() {
    let given = Credentials::access_token(TOKEN);
    for credentials in [login(), given] {
        assert_debug_hides(&credentials);
        let url = format!("http://user:{PASSWORD}@127.0.0.1:1");
        let builder = builder("http://127.0.0.1:1", credentials).proxy(url.as_str());
        assert_debug_hides(&builder);
        assert_debug_hides(&builder.build().unwrap());
    }
    // Settings that are wrong.
    let host = format!("user:{PASSWORD}@example.test");
    for (builder, setting) in [
        (
            builder("http://127.0.0.1:1", login()).proxy(format!("socks5://{host}")),
            "proxy",
        ),
        (
            builder("http://127.0.0.1:1", login()).proxy(format!("not a proxy {host}")),
            "proxy",
        ),
        (builder(&format!("https://{host}"), login()), "base_url"),
        (
            builder("http://127.0.0.1:1", login()).login_url(format!("https://{host}")),
            "login_url",
        ),
        (
            builder(
                "http://127.0.0.1:1",
                Credentials::new("id", format!("{SECRET}\n")),
            ),
            "client secret",
        ),
        (
            builder(
                "http://127.0.0.1:1",
                Credentials::access_token(format!("{TOKEN} ")),
            ),
            "access token",
        ),
        (
            builder("http://127.0.0.1:1", login()).root_certificates(format!(
                "-----BEGIN CERTIFICATE-----\n{PASSWORD}\n-----END CERTIFICATE-----\n"
            )),
            "root_certificates",
        ),
    ] {
        assert_debug_hides(&builder);
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(setting), "{error}");
        assert_error_hides(&error);
    }
    // From the environment.
    for base_url in ["", "https://user:proxy-password-Jc07mB@example.test"] {
        let builder = ClientBuilder::from_variables(|name| {
            Ok(Some(match name {
                "GENESYS_CLOUD_REGION" => "eu-west-1".to_owned(),
                "GENESYS_CLOUD_CLIENT_SECRET" => SECRET.to_owned(),
                "GENESYS_CLOUD_BASE_URL" => base_url.to_owned(),
                _ => "id".to_owned(),
            }))
        });
        let builder = builder.unwrap();
        assert_debug_hides(&builder);
        match builder.build() {
            Ok(client) => assert_debug_hides(&client),
            Err(error) => assert_error_hides(&error),
        }
    }
}

/// The password goes to the proxy, and into nothing that anybody reads.
#[test]
fn proxy_refusing_leaks_no_password() {
    let wire = Wire::start(vec![
        vec![
            Act::ReadRequest,
            respond(407, "{}"),
            Act::WaitClientClose
        ];
        4
    ]);
    let client = builder("http://secrets-proxied.test", login())
        .allow_http(true)
        .proxy(wire.url().replace("//", &format!("//user:{PASSWORD}@")))
        .build()
        .unwrap();
    let error = client.update(&update("c")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert_error_hides(&error);
    drop(client);
    let report = wire.finish();
    report.assert_clean();
    assert!(report.requests[0].header("proxy-authorization").is_some());
    assert!(!logged("secrets-proxied.test").is_empty());
}
