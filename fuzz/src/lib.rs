//! What comes from outside, as bytes: the entry points of the fuzzers, all on the public API. Beyond "nothing panics"
//! each one asserts what must hold for any bytes. `cargo test` replays the corpora.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use genesys_attributes::audit::AuditRecord;
use genesys_attributes::batch::BatchOutcome;
use genesys_attributes::clock::ManualClock;
use genesys_attributes::forward::{EnvelopeLines, Forwarder};
use genesys_attributes::http::{Method, Request, Response, Transport};
use genesys_attributes::testing::Platform;
use genesys_attributes::validate::Schema;
use genesys_attributes::webhook::Webhook;
use genesys_attributes::{
    Attributes, Cancel, Client, ClientBuilder, Credentials, Error, ErrorKind, Metrics, Participant,
    Region, RetryPolicy, Settings, Target, Update, UpdateEvent,
};
use serde_json::Value;

/// A text that ends up in a log line or a terminal: one line, and not without end.
fn fit_to_print(error: &Error) {
    let text = error.to_string();
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert!(text.len() < 40_000, "{} bytes", text.len());
    assert!(!text.is_empty());
    let json = serde_json::to_value(error).expect("an error is JSON");
    assert_eq!(json["kind"], error.kind().name());
}

/// An update of each kind of target.
fn updates() -> Vec<Update> {
    vec![
        Update::conversation("c-1"),
        Update::participant("c-1", "customer"),
        Update::participant("c-1", Participant::purpose("agent")),
        Update::participant("c-1", Participant::id("c-1-agent")),
        Update::secure("c-1"),
        Update::secure("c-1").unlocked(),
        Update::custom("c-1", "crm-1"),
        Update::custom("c-1", "crm-1").schema("s-1"),
    ]
}

/// Attributes of any JSON, on every kind of target; the text as a schema, too. The platform takes what is valid.
pub fn validation(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (schema, text) = match text.split_once('\0') {
        Some((schema, text)) => (Schema::from_json(schema), text),
        None => (Schema::from_json(text), text),
    };
    if let Err(error) = &schema {
        fit_to_print(error);
    }
    let Ok(attributes) = serde_json::from_str::<Attributes>(text) else {
        return;
    };
    let platform = Platform::new();
    platform.add_conversation("c-1");
    let mut builder = platform.client_builder();
    if let Ok(schema) = schema {
        builder = builder.schema(schema);
    }
    let client = builder.build().expect("good settings");
    for update in updates() {
        let pairs = attributes.clone().into_iter();
        let update = pairs.fold(update, |update, (key, value)| update.set(key, value));
        let checked = client.validate(&update);
        if let Err(error) = &checked {
            fit_to_print(error);
            let explained = error.kind() == ErrorKind::PayloadTooLarge;
            assert!(explained || !error.violations().is_empty());
        }
        let before = platform.writes().len();
        let written = client.update(&update);
        match checked {
            Err(_) => assert!(written.is_err() && platform.writes().len() == before),
            // A record that is not there yet needs a schema's id; what is larger than 512,000 bytes, the platform refuses.
            Ok(()) if written.is_err() => {
                let kind = written.expect_err("seen").kind();
                assert!(
                    matches!(kind, ErrorKind::NotFound | ErrorKind::PayloadTooLarge),
                    "{kind}: {update:?}"
                );
            }
            Ok(()) => {
                // What is written is valid itself.
                let sent = platform.writes().pop().expect("it was written").sent;
                let again = Update::new(update.target().clone());
                let again = sent
                    .into_iter()
                    .fold(again, |all, (key, value)| all.set(key, value));
                again.validate().expect("normalized is valid");
            }
        }
    }
}

/// A client that waits for nothing, with this transport.
fn client(credentials: Credentials, transport: impl Transport + 'static) -> Client {
    let region = Region::parse("us-east-1").expect("a region");
    Client::builder(region, credentials)
        .base_url("http://127.0.0.1:1")
        .transport(transport)
        .clock(ManualClock::new())
        .retry(
            RetryPolicy::default()
                .with_max_attempts(2)
                .with_max_conflicts(1),
        )
        .build()
        .expect("good settings")
}

/// A status, a header field (dates among them) and a body, as answers to reads, writes and logins.
pub fn answers(data: &[u8]) {
    let [status, flags, rest @ ..] = data else {
        return;
    };
    const STATUS: [u16; 24] = [
        200, 201, 202, 204, 301, 302, 400, 401, 403, 404, 405, 408, 409, 410, 412, 413, 415, 422,
        428, 429, 500, 502, 503, 504,
    ];
    let mut parts = rest.splitn(2, |byte| *byte == b'\n');
    let field = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let body = parts.next().unwrap_or_default();
    let names = ["etag", "retry-after", "inin-correlation-id", "content-type"];
    let mut response = Response::new(STATUS[usize::from(*status) % STATUS.len()])
        .with_header(names[usize::from(*flags) % names.len()], field)
        .with_body(body);
    if *flags & 0x80 != 0 {
        response = response.with_broken_body("scripted");
    }
    let is_write = |method| matches!(method, Method::Patch | Method::Put);
    for asked in [Method::Get, Method::Patch, Method::Post] {
        let answer = response.clone();
        // The others are answered as the platform does.
        let platform = Platform::new();
        platform.add_conversation("c-1");
        let transport = move |request: &Request| {
            let method = request.method();
            if let Some(body) = request.body().filter(|_| is_write(method)) {
                serde_json::from_slice::<Value>(body).expect("a body is JSON");
            }
            let scripted = method == asked || is_write(method) && is_write(asked);
            match scripted {
                true => Ok(answer.clone()),
                false => platform.send(request),
            }
        };
        let client = client(Credentials::new(ID, SECRET), transport);
        for update in updates() {
            match client.update(&update.set("tier", "premium-gold")) {
                Ok(receipt) => {
                    for version in receipt.version.iter().chain(&receipt.previous_version) {
                        assert!(!version.is_empty(), "{receipt:?}");
                        assert!(!version.chars().any(char::is_control), "{version:?}");
                    }
                }
                Err(error) => {
                    fit_to_print(&error);
                    assert!(!error.to_string().contains("premium-gold"));
                }
            }
        }
        if let Err(error) = client.verify_credentials() {
            fit_to_print(&error);
        }
    }
}

const ID: &str = genesys_attributes::testing::CLIENT_ID;
const SECRET: &str = genesys_attributes::testing::CLIENT_SECRET;

/// Regions, domains, base URLs, webhook URLs, header fields and secrets, identifiers.
pub fn addresses(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let built = |builder: ClientBuilder| match builder.build() {
        Ok(_) => true,
        Err(error) => {
            fit_to_print(&error);
            false
        }
    };
    let token = || Credentials::access_token("token");
    for region in [Region::parse(text), Region::custom(text)] {
        match region {
            Ok(region) => {
                assert_eq!(region.api_url(), format!("https://api.{}", region.domain()));
                assert!(built(Client::builder(region, token())));
            }
            Err(error) => fit_to_print(&error),
        }
    }
    for allow_http in [false, true] {
        let region = Region::parse("us-east-1").expect("a region");
        let builder = Client::builder(region, token())
            .base_url(text)
            .allow_http(allow_http);
        if built(builder) {
            assert!(!text.trim().contains([' ', '\n']));
            let lower = text.trim().to_ascii_lowercase();
            let plain = lower.starts_with("http://127.")
                || lower.starts_with("http://[::1]")
                || lower.contains("localhost");
            assert!(
                lower.starts_with("https://") || allow_http || plain,
                "{text:?}"
            );
        }
    }
    if let Err(error) = Webhook::new(text) {
        fit_to_print(&error);
    }
    let hook = || Webhook::new("http://127.0.0.1:1/hook").expect("a webhook to loopback");
    let (name, value) = text.split_once(':').unwrap_or((text, ""));
    if let Err(error) = hook().header(name, value) {
        fit_to_print(&error);
    }
    if let Err(error) = hook().secret(text) {
        fit_to_print(&error);
    }
    let who = Participant::from(text);
    assert_eq!(
        who.to_string(),
        Participant::from(who.to_string()).to_string()
    );
    // Whatever is asked for is the path of one conversation.
    let paths = Arc::new(AtomicU64::new(0));
    let counted = paths.clone();
    let client = client(token(), move |request: &Request| {
        let path = request
            .url()
            .strip_prefix("http://127.0.0.1:1")
            .expect("this base");
        assert!(path.starts_with("/api/v2/conversations/"), "{path:?}");
        assert!(path.bytes().all(|b| b.is_ascii_graphic()), "{path:?}");
        assert!(
            !path.contains(['?', '#']) && !path.contains(".."),
            "{path:?}"
        );
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(404))
    });
    for target in [
        Target::conversation(text),
        Target::participant(text, who),
        Target::custom("c-1", text),
    ] {
        let error = client.read(&target).expect_err("nothing is there");
        fit_to_print(&error);
    }
    assert!(paths.load(Ordering::Relaxed) <= 3);
}

/// Records as JSON lines: updates, outcomes, events, audit records, metrics.
pub fn records(data: &[u8]) {
    if let Ok(update) = serde_json::from_slice::<Update>(data) {
        let written = serde_json::to_vec(&update).expect("an update is JSON");
        let again: Update = serde_json::from_slice(&written).expect("what is written can be read");
        assert_eq!(update.target(), again.target());
        assert_eq!(update.removals(), again.removals());
        assert_eq!(update.attributes(), again.attributes());
        if let Err(error) = update.validate() {
            fit_to_print(&error);
        }
        // Debug holds keys and no values.
        let _ = format!("{update:?}");
    }
    if let Ok(outcome) = serde_json::from_slice::<BatchOutcome>(data) {
        let written = serde_json::to_vec(&outcome).expect("an outcome is JSON");
        let again: BatchOutcome = serde_json::from_slice(&written).expect("it can be read");
        assert_eq!((outcome.line, outcome.status), (again.line, again.status));
    }
    if let Ok(event) = serde_json::from_slice::<UpdateEvent>(data) {
        event.webhook_payload();
    }
    if let Ok(record) = serde_json::from_slice::<AuditRecord>(data) {
        let written = serde_json::to_vec(&record).expect("a record is JSON");
        let again: AuditRecord =
            serde_json::from_slice(&written).expect("what is written can be read");
        // Times are written in milliseconds.
        let cut = record.timestamp.duration_since(again.timestamp);
        assert!(cut.expect("cut, not moved").as_millis() == 0);
    }
    if let Ok(metrics) = serde_json::from_slice::<Metrics>(data) {
        assert!(metrics.to_prometheus().ends_with('\n'));
    }
}

/// Settings as JSON; no file that they name is opened.
pub fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let names_a_file = |fields: &Value| {
        let names = [
            "/rootCertificatesFile",
            "/clientCertificateFile",
            "/audit/file",
        ];
        names.iter().any(|name| fields.pointer(name).is_some())
    };
    match Settings::from_json(text) {
        Ok(settings) if !serde_json::from_str(text).is_ok_and(|v| names_a_file(&v)) => {
            let client = settings.builder().and_then(ClientBuilder::build);
            if let Err(error) = client {
                fit_to_print(&error);
                assert_eq!(error.kind(), ErrorKind::Config);
            }
        }
        Ok(_) => {}
        Err(error) => {
            fit_to_print(&error);
            assert_eq!(error.kind(), ErrorKind::Config);
        }
    }
}

/// An audit file, cut where the forwarder stopped before, and its cursor.
pub fn audit_file(data: &[u8]) {
    let folder = Folder::new();
    let log = folder.0.join("audit.jsonl");
    let cursor = folder.0.join("cursor");
    let run = || {
        let sink = EnvelopeLines::new(std::io::sink());
        let mut forwarder = Forwarder::new(&log, sink).cursor(&cursor);
        match forwarder.run(&Cancel::new()) {
            Ok(report) => report.delivered,
            Err(error) => {
                fit_to_print(&error);
                0
            }
        }
    };
    let (first, _) = data.split_at(data.len() / 2);
    let mut delivered = 0;
    for bytes in [first, data] {
        std::fs::write(&log, bytes).expect("the file is written");
        delivered += run();
    }
    // Nothing is forwarded that the file does not hold.
    let lines = data.split(|byte| *byte == b'\n').count() as u64;
    assert!(delivered <= lines, "{delivered} of {lines}");
    // The same bytes as the cursor of an empty log.
    std::fs::write(&log, b"").expect("the file is written");
    std::fs::write(&cursor, data).expect("the cursor is written");
    run();
}

/// A folder of its own, which goes away with it.
pub struct Folder(pub PathBuf);

impl Folder {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Folder {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("genesys-attributes-fuzz-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a folder is made");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The entry points by the names of their corpora.
    const ALL: [(&str, fn(&[u8])); 6] = [
        ("validation", validation),
        ("answers", answers),
        ("addresses", addresses),
        ("records", records),
        ("settings", settings),
        ("audit_file", audit_file),
    ];

    #[test]
    fn corpora_find_nothing() {
        for (name, entry) in ALL {
            let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join("corpus")
                .join(name);
            let mut inputs = 0;
            for file in std::fs::read_dir(&folder).expect("the corpus is there") {
                let path = file.expect("a file").path();
                let data = std::fs::read(&path).expect("the input can be read");
                if std::panic::catch_unwind(|| entry(&data)).is_err() {
                    panic!("{} found something", path.display());
                }
                inputs += 1;
            }
            assert!(inputs >= 5, "{name}: {inputs}");
        }
    }
}
