//! `forward`: from the audit file to a webhook or to standard output.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use genesys_attributes::clock::rfc3339;
use genesys_attributes::forward::{EnvelopeLines, ForwardReport, Forwarder};
use genesys_attributes::webhook::Webhook;
use genesys_attributes::{Error, ErrorKind};

use super::client::{Config, warn_of_readers};
use super::files::{Files, replace};
use super::kinds::{self, Kind};
use super::options::{Forward, Options};
use super::signals::Signals;
use super::{Exit, Failure, Run, screen};

/// How often metrics are written.
const METRICS_EVERY: Duration = Duration::from_secs(15);

/// Refuses one file for two purposes, before anything is written.
fn check_files(all: &Options, options: &Forward) -> Result<(), Failure> {
    let beside = |given: &Option<PathBuf>, ending: &str| {
        given.clone().unwrap_or_else(|| {
            let mut name = options.log.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        })
    };
    let cursor = beside(&options.cursor, ".cursor");
    let dead_letters = beside(&options.dead_letters, ".dead");
    let client = &all.client;
    let mut files = Files::default()
        .written("the audit file", Some(&options.log))
        .and_then(|files| files.written("--cursor", Some(&cursor)))
        .and_then(|files| files.written("--dead-letters", Some(&dead_letters)))
        .and_then(|files| files.written("--metrics", options.metrics.as_deref()))
        .and_then(|files| files.read("--settings", client.source.named.settings.as_deref()))
        .and_then(|files| files.read("--credentials", client.source.credentials.as_deref()));
    for path in &options.secret_files {
        files = files.and_then(|files| files.read("--secret-file", Some(path)));
    }
    files = files.and_then(|files| files.read("--url-file", options.url_file.as_deref()));
    for (_, path) in &options.headers {
        files = files.and_then(|files| files.read("--header", Some(path)));
    }
    let files = files.and_then(|files| files.streams(false));
    files
        .and_then(|_| kinds::check("--metrics", options.metrics.as_deref(), Kind::Metrics))
        .and_then(|()| kinds::check("--dead-letters", Some(&dead_letters), Kind::DeadLetters))
        .map_err(Failure::usage)
}

pub(crate) fn run(all: &Options, options: &Forward) -> Run {
    check_files(all, options)?;
    let config = Config::read(all)?;
    let mut forwarder = match options.stdout {
        true => Forwarder::new(&options.log, EnvelopeLines::new(io::stdout())),
        false => Forwarder::new(&options.log, webhook(options, &config)?),
    };
    if let Some(path) = &options.cursor {
        forwarder = forwarder.cursor(path);
    }
    if let Some(path) = &options.dead_letters {
        forwarder = forwarder.dead_letters(path);
    }
    if let Some(most) = options.max_attempts {
        forwarder = forwarder.max_attempts(most);
    }
    if options.settle {
        forwarder = forwarder.settle(config.reader()?);
    }
    if let Some(seconds) = options.max_outage {
        forwarder = forwarder.max_outage(Duration::from_secs(seconds));
    }
    // Cron starts the next one although the last one is at work: that is no error.
    if forwarder.is_in_use().map_err(failure)? {
        return Ok(Exit::InUse);
    }
    // Of a run that ends in an error nothing else is left.
    let last: Arc<Mutex<Option<ForwardReport>>> = Arc::default();
    let (told, metrics) = (last.clone(), options.metrics.clone());
    let mut written: Option<Instant> = None;
    let forwarder = forwarder.on_progress(move |report| {
        *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(report.clone());
        let Some(path) = &metrics else { return };
        #[allow(clippy::disallowed_methods)] // the program's own time
        let now = Instant::now();
        if written.is_none_or(|at| now.duration_since(at) >= METRICS_EVERY) {
            written = Some(now);
            if let Err(error) = write_metrics(path, report) {
                log::warn!("the metrics {} cannot be written: {error}", path.display());
            }
        }
    });
    let signals =
        Signals::catch().map_err(|e| setting("signals", format!("cannot be caught: {e}")))?;
    let mut forwarder = forwarder
        .follow(options.follow)
        .secure_values(options.secure_values);
    let ended = forwarder.run(&signals.cancel());
    let report = match &ended {
        Ok(report) => Some(report.clone()),
        Err(_) => last.lock().unwrap_or_else(PoisonError::into_inner).take(),
    };
    let mut metrics = Ok(());
    if let Some(report) = &report {
        if let Some(path) = &options.metrics {
            metrics = write_metrics(path, report);
        }
        tell(all, report);
    }
    let gave_up = report.as_ref().is_some_and(|report| report.gave_up);
    let report = ended.map_err(|error| match gave_up {
        true => Failure {
            exit: Exit::NoReceiver,
            ..error.into()
        },
        false => failure(error),
    })?;
    metrics.map_err(|e| setting("--metrics", format!("cannot be written: {e}")))?;
    Ok(match signals.caught() {
        // What was there is not all delivered, perhaps.
        Some((status, _)) if !options.follow => Exit::Signal(status),
        _ if report.dead == 0 && report.orphans.is_empty() => Exit::Done,
        _ => Exit::Failed,
    })
}

/// How an error of the forwarder ends the program.
fn failure(error: Error) -> Failure {
    match error.kind() {
        // A file cannot be read or written, or standard output. A receiver that cannot be reached
        // is tried again.
        ErrorKind::Audit | ErrorKind::Transport => Failure {
            exit: Exit::Usage,
            ..error.into()
        },
        _ => error.into(),
    }
}

fn webhook(options: &Forward, config: &Config) -> Result<Webhook, Failure> {
    let of_file = options.url_file.as_ref();
    let of_file = of_file
        .map(|path| text_of("--url-file", path))
        .transpose()?;
    let url = options.url.as_deref().or(of_file.as_deref().map(str::trim));
    let mut webhook = config.webhook(url)?.ok_or_else(|| {
        Failure::usage(
            "forward needs --url URL or --stdout (or --url-file FILE, or webhook.url in the settings)",
        )
    })?;
    for path in &options.secret_files {
        let text = text_of("--secret-file", path)?;
        let secrets: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .collect();
        if secrets.is_empty() {
            let problem = format!("{} is empty", path.display());
            return Err(setting("--secret-file", problem).into());
        }
        for secret in secrets {
            webhook = webhook.secret(secret)?;
        }
    }
    for (name, path) in &options.headers {
        webhook = webhook.header(name, &text_of("--header", path)?)?;
    }
    Ok(webhook)
}

fn text_of(option: &str, path: &Path) -> Result<String, Error> {
    let what = option.trim_start_matches("--").trim_end_matches("-file");
    warn_of_readers(path, what);
    std::fs::read_to_string(path)
        .map_err(|e| setting(option, format!("{} cannot be read: {e}", path.display())))
}

fn setting(name: &str, problem: String) -> Error {
    Error::new(ErrorKind::Config, format!("{name}: {problem}"))
}

/// The summary, on standard error: events may go to standard output.
fn tell(options: &Options, report: &ForwardReport) {
    if options.json {
        let fields = serde_json::to_value(report).unwrap_or_default();
        // An orphan is told also where only errors are.
        return match report.orphans.is_empty() {
            true => screen::summary("events were delivered", fields),
            false => screen::failure("writes have no outcome", &[], fields),
        };
    }
    let mut err = io::stderr().lock();
    for orphan in &report.orphans {
        let at = rfc3339(orphan.timestamp);
        let _ = writeln!(
            err,
            "without outcome: {} (conversation {}, {}, {at}): {}",
            orphan.id, orphan.conversation_id, orphan.target, orphan.why
        );
    }
    if options.quiet {
        return;
    }
    let mut line = format!(
        "delivered {}, repeated {}, dead {}, pending {}, lag {:.1} s",
        report.delivered,
        report.repeated,
        report.dead,
        report.pending,
        report.lag.as_secs_f64()
    );
    for (count, what) in [(report.settled, "settled"), (report.torn, "torn")] {
        if count > 0 {
            line += &format!(", {what} {count}");
        }
    }
    let _ = writeln!(err, "{line}");
}

/// Prometheus text, put in its place in one step.
fn write_metrics(path: &Path, report: &ForwardReport) -> io::Result<()> {
    let mut text = String::new();
    for (name, kind, value, help) in [
        (
            "delivered_total",
            "counter",
            report.delivered as f64,
            "Events delivered.",
        ),
        (
            "repeated_total",
            "counter",
            report.repeated as f64,
            "Deliveries tried again.",
        ),
        (
            "dead_total",
            "counter",
            report.dead as f64,
            "Events that went to the dead letters.",
        ),
        (
            "torn_total",
            "counter",
            report.torn as f64,
            "Lines skipped since they are no record.",
        ),
        (
            "settled_total",
            "counter",
            report.settled as f64,
            "Outcomes found after a crash.",
        ),
        (
            "pending",
            "gauge",
            report.pending as f64,
            "Intents without an outcome yet.",
        ),
        (
            "orphans",
            "gauge",
            report.orphans.len() as f64,
            "Intents whose process died before their outcome.",
        ),
        (
            "lag_seconds",
            "gauge",
            report.lag.as_secs_f64(),
            "Age of the oldest record not delivered.",
        ),
    ] {
        let name = format!("genesys_attributes_forward_{name}");
        text += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
    }
    replace(path, |out| out.write_all(text.as_bytes()))
}
