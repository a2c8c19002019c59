//! What comes from outside, as bytes: the entry points of the fuzzers in `fuzz/`. Beyond "nothing
//! panics" each one asserts what must hold for any bytes. The corpora are replayed by `cargo test`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use crate::batch::BatchOutcome;
use crate::client::settings::Settings;
use crate::error::{Error, ErrorKind};
use crate::forward::{EnvelopeLines, Forwarder};
use crate::http::Response;
use crate::http::address;
use crate::http::region::Region;
use crate::report::audit::AuditRecord;
use crate::report::event::UpdateEvent;
use crate::report::metrics::Metrics;
use crate::session::auth::{Credentials, granted};
use crate::session::problem;
use crate::store::{Change, Participant, Target, TargetState};
use crate::update::Update;
use crate::util::date;
use crate::util::sync::Cancel;
use crate::values::attributes::{Attributes, ValidationLimits};
use crate::values::schema::Schema;
use crate::values::version;

/// A text that ends up in a log line or a terminal: one line, and not without end.
fn fit_to_print(error: &Error) {
    let text = error.to_string();
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert!(text.len() < 40_000, "{} bytes", text.len());
    assert!(!text.is_empty());
    // It may name a key, and is JSON all the same.
    let json = serde_json::to_value(error).expect("an error is JSON");
    assert_eq!(json["kind"], error.kind().name());
}

fn targets() -> Vec<Target> {
    let mut unlocked = Target::secure("c-1");
    unlocked.set_unlocked();
    let mut created = Target::custom("c-1", "crm-1");
    created.set_schema("s-1".to_owned());
    vec![
        Target::conversation("c-1"),
        Target::participant("c-1", Participant::customer()),
        Target::participant("c-1", Participant::purpose("agent")),
        Target::participant("c-1", Participant::id("p-1")),
        Target::secure("c-1"),
        unlocked,
        Target::custom("c-1", "crm-1"),
        created,
    ]
}

/// Attributes of any JSON, on every kind of target; the text as a schema, too.
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
    let limits = ValidationLimits::default();
    for target in targets() {
        let of = |attributes: &Attributes| {
            let pairs = attributes.clone().into_iter();
            pairs.fold(Update::new(target.clone()), |update, (key, value)| {
                update.set(key, value)
            })
        };
        let update = of(&attributes);
        match update.checked(&limits, schema.as_ref().ok()) {
            Ok(written) => {
                assert!(!written.is_empty());
                assert_eq!(written.len(), attributes.len());
                // What is written is valid itself, and written as it is.
                let again = of(&written);
                let twice = again.checked(&limits, None).expect("normalized is valid");
                assert_eq!(written, twice);
            }
            Err(error) => {
                fit_to_print(&error);
                assert!(
                    !error.violations().is_empty() || error.kind() == ErrorKind::PayloadTooLarge
                );
            }
        }
    }
}

/// A status, a header field and a body, as answers to reads, writes and logins.
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
    let set: Attributes = [("tier".to_owned(), Value::from("premium-gold"))]
        .into_iter()
        .collect();
    let change = Change {
        set: &set,
        remove: &[],
        source: "fuzzer",
        timestamp: "2026-01-01T00:00:00.000Z",
    };
    for target in targets() {
        let failed = problem::error_of_kind(
            problem::kind_of(response.status()),
            &response,
            &target.description(),
            None,
            &[&set],
        );
        fit_to_print(&failed);
        assert!(!failed.to_string().contains("premium-gold"));
        target.is_conflict(&response);
        match target.parse(&response) {
            Ok(state) => {
                let confirmed = target.version_written(&state, &response);
                for version in state.version.iter().chain(&confirmed) {
                    assert!(version::is_version(version), "{version:?}");
                }
                state.holds(&set, &[]);
                if target.known(state.version.clone()).is_none() || target.is_locked() {
                    write(&target, &change, &state);
                }
            }
            Err(failure) => fit_to_print(&failure.error),
        }
    }
    match granted(&response, None) {
        Ok((token, life)) => {
            assert!(Credentials::access_token(token).check().is_ok());
            assert!((1..=172_800).contains(&life.as_secs()));
        }
        Err(error) => fit_to_print(&error),
    }
}

fn write(target: &Target, change: &Change<'_>, state: &TargetState) {
    match target.write(change, state) {
        Ok(write) => {
            assert!(write.path.starts_with("/api/v2/conversations/c-1"));
            assert!(write.path.bytes().all(|b| b.is_ascii_graphic()));
            let value = write.if_match.unwrap_or_default();
            assert!(value.bytes().all(|b| b >= b' ' && b != 127), "{value:?}");
            serde_json::from_slice::<Value>(&write.body).expect("a body is JSON");
        }
        Err(error) => fit_to_print(&error),
    }
}

/// `Retry-After`, HTTP dates and RFC 3339.
pub fn dates(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let now = UNIX_EPOCH + Duration::from_secs(1_767_225_600);
    for now in [UNIX_EPOCH, now] {
        if let Some(wait) = date::retry_after(text, now) {
            assert!(wait <= Duration::from_secs(86_400));
        }
    }
    if let Some(time) = date::parse_rfc3339(text) {
        let written = date::rfc3339(time);
        let again = date::parse_rfc3339(&written).expect("what is written can be read");
        assert!(time.duration_since(again).expect("cut, not moved") < Duration::from_millis(1));
    }
}

/// Regions, domains, base URLs, webhook URLs, header fields and secrets, identifiers.
pub fn addresses(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for region in [Region::parse(text), Region::custom(text)] {
        match region {
            Ok(region) => {
                let url = address::base_url(&region.api_url(), false).expect("a region's URL");
                assert_eq!(address::host_of(&url), format!("api.{}", region.domain()));
            }
            Err(error) => fit_to_print(&error),
        }
    }
    for allow_http in [false, true] {
        if let Ok(url) = address::base_url(text, allow_http) {
            assert!(!address::host_of(&url).is_empty());
            assert!(!url.contains(['?', '#', ' ', '\n']));
            assert!(!address::host_and_port(&url).contains('@'));
            let secure = url.to_ascii_lowercase().starts_with("https://");
            assert!(secure || allow_http || address::is_loopback(address::host_of(&url)));
        }
    }
    let hook = crate::forward::webhook::Webhook::new("http://127.0.0.1:1/hook");
    let hook = hook.expect("a webhook to loopback");
    let (name, value) = text.split_once(':').unwrap_or((text, ""));
    if let Err(error) = hook.header(name, value) {
        fit_to_print(&error);
    }
    if let Err(why) = address::check_webhook(text) {
        assert!(!why.is_empty());
    }
    let _ = crate::util::base64::decode(text).map(|bytes| {
        let again = crate::util::base64::decode(&crate::util::base64::encode(&bytes));
        assert_eq!(again.as_deref(), Some(&bytes[..]));
    });
    let who = Participant::from(text);
    let shown = Participant::from(who.to_string());
    assert_eq!(who.is_id(), shown.is_id());
    for target in [
        Target::conversation(text),
        Target::participant(text, who),
        Target::custom("c-1", text),
    ] {
        match target.checked() {
            Ok(()) => {
                let path = target.read_path();
                assert!(path.starts_with("/api/v2/conversations/"));
                assert!(path.bytes().all(|b| b.is_ascii_graphic()), "{path:?}");
                assert!(!path.contains(['?', '#']) && !path.contains(".."));
            }
            Err(error) => fit_to_print(&error),
        }
    }
}

/// Records as JSON lines: updates, outcomes, events, audit records, metrics.
pub fn records(data: &[u8]) {
    if let Ok(update) = serde_json::from_slice::<Update>(data) {
        let written = serde_json::to_vec(&update).expect("an update is JSON");
        let again: Update = serde_json::from_slice(&written).expect("what is written can be read");
        // Numbers that are no 64-bit integers may lose their last bit without `float_roundtrip`.
        assert_eq!(update.target(), again.target());
        assert_eq!(update.removals(), again.removals());
        assert_eq!(update.attributes().len(), again.attributes().len());
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
        serde_json::from_slice::<AuditRecord>(&written).expect("what is written can be read");
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
        fields.get("rootCertificatesFile").is_some() || fields.pointer("/audit/file").is_some()
    };
    match Settings::from_json(text) {
        Ok(settings) if !serde_json::from_str(text).is_ok_and(|v| names_a_file(&v)) => {
            let client = settings.builder().and_then(crate::ClientBuilder::build);
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
    let (first, rest) = data.split_at(data.len() / 2);
    let cancel = Cancel::new();
    let mut delivered = 0;
    for part in [first, rest] {
        let mut bytes = std::fs::read(&log).unwrap_or_default();
        bytes.extend_from_slice(part);
        std::fs::write(&log, &bytes).expect("the file is written");
        let mut forwarder = Forwarder::new(&log, EnvelopeLines::new(std::io::sink()))
            .cursor(folder.0.join("cursor"));
        match forwarder.run(&cancel) {
            Ok(report) => delivered += report.delivered,
            Err(error) => fit_to_print(&error),
        }
    }
    // Nothing is forwarded that the file does not hold.
    let lines = data.split(|byte| *byte == b'\n').count() as u64;
    assert!(delivered <= lines, "{delivered} of {lines}");
    // The same bytes as the cursor of an empty log.
    std::fs::write(&log, b"").expect("the file is written");
    std::fs::write(folder.0.join("cursor"), data).expect("the cursor is written");
    let mut forwarder =
        Forwarder::new(&log, EnvelopeLines::new(std::io::sink())).cursor(folder.0.join("cursor"));
    if let Err(error) = forwarder.run(&cancel) {
        fit_to_print(&error);
    }
}

struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("ga-fuzzing-{}-{number}", std::process::id());
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
type Entry = fn(&[u8]);

/// The entry points by the names of their corpora.
#[cfg(test)]
const ALL: [(&str, Entry); 7] = [
    ("validation", validation),
    ("answers", answers),
    ("dates", dates),
    ("addresses", addresses),
    ("records", records),
    ("settings", settings),
    ("audit_file", audit_file),
];

/// Runs an entry point over its corpus in `fuzz/corpus`, and says how many inputs there were.
#[cfg(test)]
pub(crate) fn replay(name: &str, entry: fn(&[u8])) -> usize {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
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
    inputs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_corpora_find_nothing() {
        for (name, entry) in ALL {
            let inputs = replay(name, entry);
            assert!(inputs >= 5, "{name}: {inputs}");
            println!("{name}: {inputs} inputs");
        }
    }
}
