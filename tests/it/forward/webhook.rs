//! The webhook: header fields, signatures, statuses, addresses.

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use genesys_attributes::forward::Forwarder;
use genesys_attributes::http::{Method, Request, Response, TransportError};
use genesys_attributes::webhook::Webhook;
use genesys_attributes::{Cancel, ErrorKind, UpdateEvent};
use serde_json::Value;

use super::*;
use crate::memory::Memory;
use crate::server::{Resp, Server};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// What a receiver saw of a request.
#[derive(Clone, Debug)]
struct Posted {
    headers: Vec<(String, String)>,
    body: String,
}

impl Posted {
    fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<(Vec<Posted>, VecDeque<Response>)>>);

impl Receiver {
    fn answer(&self, response: Response) {
        lock(&self.0).1.push_back(response);
    }

    fn posted(&self) -> Vec<Posted> {
        lock(&self.0).0.clone()
    }

    fn webhook(&self) -> Webhook {
        let receiver = self.clone();
        let send = move |request: &Request| -> Result<Response, TransportError> {
            assert_eq!(request.method(), Method::Post);
            let mut state = lock(&receiver.0);
            state.0.push(Posted {
                headers: request
                    .headers()
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect(),
                body: String::from_utf8(request.body().unwrap().to_vec()).unwrap(),
            });
            Ok(state.1.pop_front().unwrap_or_else(|| Response::new(204)))
        };
        Webhook::new("https://crm.example/hook?key=url-5ecret")
            .unwrap()
            .transport(send)
    }
}

fn now() -> SystemTime {
    SystemTime::now()
}

/// The vector of the specification's reference implementations.
#[test]
fn webhook_signature_by_the_published_vector() {
    // The envelope of the vector is no event; a sink takes any body.
    struct Fixed(Webhook);
    impl Sink for Fixed {
        fn hand_over(&mut self, envelope: &Envelope<'_>) -> Result<(), Undelivered> {
            let mut vector = *envelope;
            vector.id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
            vector.body = br#"{"test": 2432232314}"#;
            self.0.hand_over(&vector)
        }
    }
    let receiver = Receiver::default();
    let clock = ManualClock::starting_at(UNIX_EPOCH + Duration::from_secs(1_614_265_330));
    let webhook = receiver.webhook().clock(clock).secret(SECRET).unwrap();
    let folder = Folder::new("vector");
    folder.append("audit.jsonl", applied(1));
    let sink = Fixed(webhook.secret(OTHER).unwrap());
    let report = Forwarder::new(folder.log(), sink).run(&Cancel::new());
    assert_eq!(report.unwrap().delivered, 1);
    let posted = &receiver.posted()[0];
    assert_eq!(
        posted.header("webhook-id"),
        Some("msg_p5jXN8AQM9LWM0D4loKWxJek")
    );
    assert_eq!(posted.header("webhook-timestamp"), Some("1614265330"));
    let signatures: Vec<&str> = posted
        .header("webhook-signature")
        .unwrap()
        .split(' ')
        .collect();
    assert_eq!(
        signatures[0],
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    );
    assert_eq!(signatures.len(), 2);
    assert_ne!(signatures[0], signatures[1]);
}

/// What is sent verifies with the published library of another language.
#[test]
fn webhook_signatures_verify_with_the_reference_library() {
    const SCRIPT: &str = "
import json, sys
from standardwebhooks import Webhook
for line in sys.stdin:
    posted = json.loads(line)
    for secret in posted['secrets']:
        Webhook(secret).verify(posted['body'], posted['headers'])
    try:
        Webhook(posted['secrets'][0]).verify(posted['body'] + ' ', posted['headers'])
        sys.exit('a changed body verified')
    except Exception as error:
        if 'signature' not in str(error): raise
print('verified')
";
    let python = std::env::var("STANDARDWEBHOOKS_PYTHON").unwrap_or("python3".into());
    let has = Command::new(&python)
        .args(["-c", "import standardwebhooks"])
        .output();
    if !has.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: {python} has no package standardwebhooks (pip install it)");
        return;
    }
    let (folder, receiver) = (Folder::new("reference"), Receiver::default());
    let mut odd = record(2, "outcome", "applied");
    odd["attributes"] = json!({ "name": "Zoë \u{1F600} \"quoted\" \\ \n" });
    folder.append("audit.jsonl", applied(1) + &line(&odd));
    receiver.answer(Response::new(503));
    let webhook = receiver
        .webhook()
        .secret(SECRET)
        .unwrap()
        .secret(OTHER)
        .unwrap();
    let mut forwarder =
        Forwarder::new(folder.log(), webhook).clock(ManualClock::starting_at(now()));
    assert_eq!(forwarder.run(&Cancel::new()).unwrap().delivered, 2);
    let lines: String = receiver
        .posted()
        .iter()
        .map(|posted| {
            let headers: serde_json::Map<String, Value> = posted
                .headers
                .iter()
                .map(|(name, value)| (name.clone(), value.clone().into()))
                .collect();
            line(&json!({ "secrets": [SECRET, OTHER], "body": posted.body, "headers": headers }))
        })
        .collect();
    folder.append("posted", lines);
    let output = Command::new(&python)
        .args(["-c", SCRIPT])
        .stdin(File::open(folder.path("posted")).unwrap())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
}

#[test]
fn webhook_repeat_has_the_same_id_and_body() {
    let (folder, receiver) = (Folder::new("same-id"), Receiver::default());
    folder.append("audit.jsonl", applied(1));
    receiver.answer(Response::new(500));
    let webhook = receiver
        .webhook()
        .header("Authorization", "Bearer hook-t0ken\n")
        .unwrap();
    let mut forwarder = Forwarder::new(folder.log(), webhook).clock(ManualClock::new());
    let report = forwarder.run(&Cancel::new()).unwrap();
    assert_eq!((report.delivered, report.repeated), (1, 1));
    let posted = receiver.posted();
    assert_eq!(posted[0].header("webhook-id"), Some("u-1"));
    assert_eq!(
        posted[0].header("webhook-id"),
        posted[1].header("webhook-id")
    );
    assert_eq!(posted[0].body, posted[1].body);
    assert_eq!(posted[0].header("authorization"), Some("Bearer hook-t0ken"));
    assert_eq!(posted[0].header("content-type"), Some("application/json"));
    assert_eq!(posted[0].header("webhook-signature"), None);
}

#[test]
fn webhook_answers_by_status() {
    for status in [400, 413, 415, 422] {
        let (folder, receiver) = (Folder::new("final"), Receiver::default());
        folder.append("audit.jsonl", applied(1));
        receiver.answer(Response::new(status).with_body("x".repeat(500)));
        let mut forwarder = Forwarder::new(folder.log(), receiver.webhook());
        let report = forwarder.run(&Cancel::new()).unwrap();
        assert_eq!((report.delivered, report.dead), (0, 1), "{status}");
        assert_eq!(receiver.posted().len(), 1, "{status}");
        let letter: Value = serde_json::from_str(&folder.read("audit.jsonl.dead")).unwrap();
        assert_eq!(letter["status"], status);
        assert_eq!(letter["body"].as_str().map(str::len), Some(200));
    }
    for status in [301, 302, 307, 402, 408, 409, 425, 429, 500, 501, 503] {
        let (folder, receiver) = (Folder::new("again"), Receiver::default());
        folder.append("audit.jsonl", applied(1));
        receiver.answer(Response::new(status).with_header("Location", "http://127.0.0.1:1/"));
        let mut forwarder =
            Forwarder::new(folder.log(), receiver.webhook()).clock(ManualClock::new());
        let report = forwarder.run(&Cancel::new()).unwrap();
        assert_eq!(
            (report.delivered, report.dead, report.repeated),
            (1, 0, 1),
            "{status}"
        );
    }
}

/// The receiver is there, and its address or the credentials are wrong: nothing is lost.
#[test]
fn webhook_answers_that_concern_the_receiver_make_no_dead_letters() {
    for status in [301, 308, 401, 403, 404, 405, 407, 410] {
        let (folder, receiver) = (Folder::new("receiver"), Receiver::default());
        folder.append("audit.jsonl", applied(1) + &applied(2));
        for _ in 0..20 {
            receiver.answer(Response::new(status));
        }
        let mut ending = Forwarder::new(folder.log(), receiver.webhook())
            .clock(ManualClock::new())
            .max_attempts(1)
            .max_outage(Duration::from_secs(1));
        let error = ending.run(&Cancel::new()).unwrap_err();
        assert_eq!(error.http_status(), Some(status), "{error}");
        assert!(!folder.path("audit.jsonl.dead").exists(), "{status}");
        let mut again = Forwarder::new(folder.log(), receiver.webhook()).clock(ManualClock::new());
        let report = again.run(&Cancel::new()).unwrap();
        assert_eq!((report.delivered, report.dead), (2, 0), "{status}");
    }
}

/// A page of a gateway, larger than what is read of an answer.
#[test]
fn webhook_refusal_with_a_large_body_shows_its_beginning() {
    let folder = Folder::new("large");
    folder.append("audit.jsonl", applied(1));
    let receiver = Server::start(|_| Resp::json(400, format!("<html>{}", "y".repeat(90_000))));
    let webhook = Webhook::new(receiver.url()).unwrap();
    let report = Forwarder::new(folder.log(), webhook).run(&Cancel::new());
    assert_eq!(report.unwrap().dead, 1);
    let letter: Value = serde_json::from_str(&folder.read("audit.jsonl.dead")).unwrap();
    let body = letter["body"].as_str().unwrap();
    assert!(body.starts_with("<html>y") && body.len() == 200, "{body}");
}

/// It would fail again, and hold up what comes after.
#[test]
fn webhook_id_that_is_no_header_field_goes_to_the_dead_letters() {
    for id in ["a\nb", "a b", "\u{e9}", ""] {
        let (folder, receiver) = (Folder::new("id"), Receiver::default());
        let mut odd = record(1, "outcome", "applied");
        odd["id"] = id.into();
        folder.append("audit.jsonl", line(&odd) + &applied(2));
        let report = Forwarder::new(folder.log(), receiver.webhook()).run(&Cancel::new());
        let report = report.unwrap();
        assert_eq!((report.delivered, report.dead), (1, 1), "{id:?}");
        assert!(folder.read("audit.jsonl.dead").contains("webhook-id"));
    }
}

#[test]
fn webhook_retry_after_is_waited_out() {
    for (status, text, seconds) in [(429, "7", 7), (503, "Thu, 01 Jan 2026 00:10:00 GMT", 600)] {
        let (folder, receiver) = (Folder::new("after"), Receiver::default());
        folder.append("audit.jsonl", applied(1));
        receiver.answer(Response::new(status).with_header("Retry-After", text));
        let clock = ManualClock::new();
        let webhook = receiver.webhook().clock(clock.clone());
        let told = Arc::new(AtomicU64::new(0));
        let count = told.clone();
        let mut forwarder = Forwarder::new(folder.log(), webhook)
            .clock(clock.clone())
            .on_progress(move |_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        assert_eq!(forwarder.run(&Cancel::new()).unwrap().delivered, 1);
        // Whoever watches the lag hears of it meanwhile.
        assert!(told.load(Ordering::Relaxed) >= seconds / 5);
        let waited: Duration = clock.sleeps().iter().sum();
        assert!(waited >= Duration::from_secs(seconds), "{waited:?}");
        assert!(waited <= Duration::from_secs(seconds + 1), "{waited:?}");
    }
}

#[test]
fn webhook_settings_that_are_wrong_are_named() {
    for (url, says) in [
        ("", "not a URL"),
        ("crm.example/hook", "no scheme"),
        ("http://crm.example/hook", "in the clear"),
        ("ftp://crm.example/", "another scheme"),
        ("https://user:pw@crm.example/", "user name"),
        ("https://crm.example/#x", "fragment"),
        ("https://crm.example:99999/", "port"),
        ("https:///hook", "host"),
    ] {
        let error = Webhook::new(url).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(says), "{url}: {error}");
        assert!(!error.to_string().contains("pw"), "{error}");
    }
    for url in [
        "http://127.0.0.1:9/x?y=1",
        "http://localhost/",
        "https://crm.example/x?y=z",
    ] {
        assert!(Webhook::new(url).is_ok(), "{url}");
    }
    for secret in [
        "",
        "whsec_",
        "whsec_no base64!",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS",
    ] {
        let error = Webhook::new("http://localhost/")
            .unwrap()
            .secret(secret)
            .unwrap_err();
        assert!(error.to_string().contains("base64"), "{error}");
        assert!(!error.to_string().contains("MfKQ"), "{error}");
    }
    for (name, value) in [
        ("X A", "1"),
        ("", "1"),
        ("Webhook-Id", "1"),
        ("X", "a\r\nY: b"),
        ("X", ""),
    ] {
        let webhook = Webhook::new("http://localhost/").unwrap();
        let error = webhook.header(name, value).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{name}: {error}");
    }
}

#[test]
fn webhook_secrets_are_in_no_debug_text_and_no_error() {
    let receiver = Receiver::default();
    receiver.answer(Response::new(404));
    let webhook = receiver.webhook().secret(SECRET).unwrap();
    let webhook = webhook.header("X-Key", "header-5ecret").unwrap();
    let event = an_event();
    let error = webhook.deliver(&event).unwrap_err();
    assert_eq!(
        (error.kind(), error.http_status()),
        (ErrorKind::NotFound, Some(404))
    );
    assert!(!error.is_transient());
    for text in [
        format!("{webhook:?}"),
        format!("{error:?}"),
        error.to_string(),
    ] {
        assert!(text.contains("crm.example"), "{text}");
        for secret in ["5ecret", "MfKQ"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    webhook.deliver(&event).unwrap();
    assert_eq!(
        receiver.posted()[1].body,
        event.webhook_payload().to_string()
    );
}

fn an_event() -> UpdateEvent {
    let memory = Memory::new();
    let client = memory.builder().build().unwrap();
    let events = client.subscribe(1);
    let update = genesys_attributes::Update::conversation("c-1").set("tier", "gold");
    let _ = client.update(&update).unwrap();
    (*events.try_recv().unwrap().event).clone()
}
