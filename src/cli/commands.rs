//! The commands of one update or none, and the check of an input.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};

use genesys_attributes::{Client, Error, ErrorKind, Identity, Target, TargetKind, Update};
use serde::Serialize;
use serde_json::Value;

use super::client::Config;
use super::diff::diff;
use super::files::Files;
use super::options::{Change, Get, Input, Options, Participants};
use super::records::Lines;
use super::source::Opened;
use super::summary::many;
use super::words::{Assignment, Given};
use super::{Exit, Failure, Run, closed, print, print_json, screen};

/// The most that is read as one value.
const MAX_VALUE: u64 = 1 << 20;

/// What the client is made from, once no file has two purposes. `values`: what else is read.
fn config<'a>(options: &'a Options, values: &[Assignment]) -> Result<Config<'a>, Failure> {
    let client = &options.client;
    let from_stdin = client.source.reads_stdin();
    if from_stdin
        && values
            .iter()
            .any(|a| matches!(a.value, Given::StandardInput))
    {
        return Err(Failure::usage(
            "standard input can give a value or the settings, not both",
        ));
    }
    let config = Config::read(options)?;
    let mut files = config.files()?;
    for assignment in values {
        if let Given::File(path) = &assignment.value {
            files = files
                .read("the file of a value", Some(path))
                .map_err(Failure::usage)?;
        }
    }
    files.streams(from_stdin).map_err(Failure::usage)?;
    config.check_audit()?;
    Ok(config)
}

pub(crate) fn update(options: &Options, change: &Change) -> Run {
    let mut update = change.update().map_err(Failure::usage)?;
    let assignments = change.assignments().map_err(Failure::usage)?;
    let config = config(options, &assignments)?;
    for assignment in &assignments {
        let value = value_of(assignment).map_err(Failure::usage)?;
        update = update.set(assignment.key.as_str(), value);
    }
    // What is wrong with the update is told without any settings.
    config.checker()?.validate(&update)?;
    if change.dry_run {
        return show_diff(options, &config.reader()?, &update);
    }
    let receipt = match config.client(1)?.update(&update) {
        Ok(receipt) => receipt,
        Err(error) if error.kind() == ErrorKind::Audit => {
            // As in a batch: what cannot be written is a setting that is wrong.
            let mut failure = Failure::from(error);
            failure.exit = Exit::Usage;
            return Err(failure);
        }
        Err(error) => return Err(error.into()),
    };
    let shown = match options.json {
        true => print_json(&receipt),
        false => print(&format!("{receipt}\n")),
    };
    if let Err(failure) = shown {
        // Else it would look as if nothing had been written.
        screen::error(&format!("the update was made: {}", receipt.outcome));
        return Err(failure);
    }
    if receipt.audit_failed {
        screen::error("the update was made, but its audit record was lost");
        return Ok(Exit::AuditLost);
    }
    Ok(Exit::Done)
}

fn value_of(assignment: &Assignment) -> Result<Value, String> {
    let key = &assignment.key;
    let text = match &assignment.value {
        Given::Text(text) => text.clone(),
        Given::File(path) => {
            // The name may be a value that begins with @.
            let read = File::open(path).and_then(|file| limited(&file));
            read.map_err(|e| {
                format!(
                    "the file for {key:?} cannot be read: {e} (text that begins with @ is written \
                     as KEY:='\"@...\"')"
                )
            })?
        }
        Given::StandardInput => limited(io::stdin().lock())
            .map_err(|e| format!("the value of {key:?} cannot be read from standard input: {e}"))?,
    };
    match assignment.is_json {
        true => {
            serde_json::from_str(&text).map_err(|_| format!("the value of {key:?} is not JSON"))
        }
        false => Ok(Value::from(text)),
    }
}

/// Text without the end of its last line.
fn limited(source: impl Read) -> io::Result<String> {
    let mut text = String::new();
    source.take(MAX_VALUE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_VALUE {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    let bare = text.strip_suffix('\n').unwrap_or(&text);
    Ok(bare.strip_suffix('\r').unwrap_or(bare).to_owned())
}

fn show_diff(options: &Options, client: &Client, update: &Update) -> Run {
    let diff = diff(client, update)?;
    if options.json {
        return print_json(&diff);
    }
    let id = update.target().conversation_id();
    print(&format!(
        "{}: {id} ({}), nothing is written\n{}",
        diff.status,
        diff.target,
        diff.text()
    ))
}

pub(crate) fn get(options: &Options, asked: &Get) -> Run {
    let update = asked.address.update().map_err(Failure::usage)?;
    let target = update.target();
    let config = config(options, &[])?;
    let snapshot = config.reader()?.read(target)?;
    // These reads do not tell whether the conversation has ended.
    if !matches!(target.kind(), TargetKind::Secure | TargetKind::Custom) {
        return print_json(&snapshot);
    }
    let mut shown = serde_json::to_value(&snapshot).unwrap_or_default();
    if let Some(fields) = shown.as_object_mut() {
        fields.remove("conversationEnded");
    }
    print_json(&shown)
}

pub(crate) fn participants(options: &Options, asked: &Participants) -> Run {
    let client = config(options, &[])?.reader()?;
    let found = client.participants(&asked.id)?;
    if options.json {
        return print_json(&found);
    }
    let rows = found.iter().map(|one| {
        let of = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        let left = match (&one.end_time, one.active) {
            (_, true) => "active".into(),
            (end, false) => of(end),
        };
        let cells = [
            one.id.clone(),
            one.purpose.clone(),
            of(&one.connected_time),
            left,
            of(&one.name),
        ];
        cells.map(|cell| screen::clean(&cell))
    });
    let head = ["id", "purpose", "connected", "left", "name"].map(str::to_owned);
    let rows = Vec::from_iter(std::iter::once(head).chain(rows));
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths = [0, 1, 2, 3].map(width);
    let mut text = String::new();
    for [id, purpose, connected, left, name] in &rows {
        let [a, b, c, d] = widths;
        let _ = writeln!(
            text,
            "{id:a$}  {purpose:b$}  {connected:c$}  {left:d$}  {name}"
        );
    }
    print(&text)
}

/// What the bulk look-up of participants takes.
const BULK_PERMISSION: &str = "analytics:conversationDetail:view";

/// Whether the permission for the bulk look-up is there; `None` with the reason where the platform
/// did not tell.
#[derive(Serialize)]
struct BulkLookUp {
    permitted: Option<bool>,
    permission: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Error>,
}

impl BulkLookUp {
    /// Asks for a conversation that nobody has: one request. `None` where the settings make the
    /// client look nothing up, so that nothing was sent.
    fn of(client: &Client) -> Option<BulkLookUp> {
        let before = client.metrics().requests;
        let nobody = Target::participant("00000000-0000-4000-8000-000000000000", "customer");
        let (permitted, error) = match client.prefetch_participants([&nobody]) {
            Ok(_) => (Some(true), None),
            Err(error) if error.kind() == ErrorKind::Forbidden => (Some(false), None),
            Err(error) => (None, Some(error)),
        };
        (client.metrics().requests > before).then_some(BulkLookUp {
            permitted,
            permission: BULK_PERMISSION,
            error,
        })
    }

    fn in_words(&self) -> String {
        match (self.permitted, &self.error) {
            (Some(true), _) => format!("permitted ({BULK_PERMISSION})"),
            (_, Some(error)) => format!("unknown: {error}"),
            _ => format!(
                "not permitted: in a batch, `customer` and `external` take 2 requests instead of 1; \
                 grant {BULK_PERMISSION} to the OAuth client"
            ),
        }
    }
}

pub(crate) fn check(options: &Options) -> Run {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Checked {
        #[serde(flatten)]
        identity: Identity,
        #[serde(skip_serializing_if = "Option::is_none")]
        bulk_look_up: Option<BulkLookUp>,
    }

    let client = config(options, &[])?.reader()?;
    let identity = client.verify_credentials()?;
    let bulk_look_up = BulkLookUp::of(&client);
    if options.json {
        return print_json(&Checked {
            identity,
            bulk_look_up,
        });
    }
    let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".into());
    let bulk = match &bulk_look_up {
        Some(bulk) => bulk.in_words(),
        None => "not used with these settings".into(),
    };
    print(&format!(
        "The settings are complete and the login works.\n\
         organization: {} ({})\nOAuth client: {} ({})\ntoken until:  {}\nbulk look-up: {bulk}\n",
        or_unknown(&identity.organization_name),
        or_unknown(&identity.organization_id),
        or_unknown(&identity.client_name),
        or_unknown(&identity.client_id),
        or_unknown(&identity.expires_at.map(genesys_attributes::clock::rfc3339)),
    ))
}

pub(crate) fn validate(options: &Options, input: &Input) -> Run {
    if input.file.is_none() && options.client.source.reads_stdin() {
        return Err(Failure::usage(
            "standard input can be the input or the settings, not both",
        ));
    }
    Files::default()
        .read("the input", input.file.as_deref())
        .and_then(|files| {
            files.read(
                "--schema-file",
                options.client.checks.schema_file.as_deref(),
            )
        })
        .and_then(|files| files.streams(input.file.is_none()))
        .map_err(Failure::usage)?;
    let opened = Opened::of(input).map_err(Failure::usage)?;
    let lines = opened.lines().map_err(Failure::usage)?;
    let checker = Config::read(options)?.checker()?;
    let (valid, refused) = refusals(lines, &checker, |_| true)?;
    screen::summary(
        &format!(
            "{} {} valid, {refused} would be refused",
            many(valid, "line"),
            if valid == 1 { "is" } else { "are" }
        ),
        serde_json::json!({ "valid": valid, "refused": refused }),
    );
    Ok(if refused == 0 {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// Checks every wanted line without any network, and prints those that would be refused. Gives
/// how many would be sent and how many would be refused.
pub(crate) fn refusals(
    mut lines: Lines,
    checker: &Client,
    wanted: impl Fn(u64) -> bool,
) -> Result<(u64, u64), Failure> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Refused<'a> {
        line: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        conversation_id: Option<&'a str>,
        status: &'a str,
        error: Error,
    }

    let mut out = io::BufWriter::new(io::stdout().lock());
    let (mut valid, mut refused) = (0u64, 0u64);
    for line in lines.wanted(wanted) {
        let result = match &line.update {
            Ok(update) => checker.validate(update),
            Err(problem) => Err(problem.clone()),
        };
        let Err(error) = result else {
            valid += 1;
            continue;
        };
        refused += 1;
        let record = Refused {
            line: line.number,
            conversation_id: line
                .update
                .as_ref()
                .ok()
                .map(|update| update.target().conversation_id()),
            status: "failed",
            error,
        };
        let written = serde_json::to_writer(&mut out, &record)
            .map_err(io::Error::from)
            .and_then(|()| out.write_all(b"\n"));
        if let Err(error) = written {
            return Err(closed(&error, Exit::BrokenPipe));
        }
    }
    out.flush()
        .map_err(|error| closed(&error, Exit::BrokenPipe))?;
    lines.end()?;
    Ok((valid, refused))
}
