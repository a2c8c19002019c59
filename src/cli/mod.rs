//! The program: what each command does, and how it ends.

pub(crate) mod args;
pub(crate) mod options;
pub(crate) mod screen;

mod batch;
mod client;
mod commands;
mod csv;
mod diff;
mod digest;
mod ending;
mod files;
mod forward;
mod help;
mod kinds;
mod profile;
mod progress;
mod records;
mod rehearsal;
mod sandbox;
mod signals;
mod sniff;
mod source;
mod split;
mod status;
mod summary;
mod ticks;
mod words;

use std::io::{self, Write};
use std::process::ExitCode;

use genesys_attributes::{Error, ErrorKind};
use serde::Serialize;

use options::{Command, Options};

/// The exit status; `help::EXITS` says what each means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    Failed,
    Usage,
    /// Credentials or a permission are missing, or a batch stopped early.
    Refused,
    OutputClosed,
    RateLimited,
    Outage,
    AuditLost,
    /// Another forwarder is at work.
    InUse,
    /// The receiver of a forwarder took nothing for too long.
    NoReceiver,
    /// The status for the signal that came.
    Signal(u8),
    /// Nobody reads what is printed any more, which is no failure.
    BrokenPipe,
}

impl Exit {
    pub(crate) fn code(self) -> ExitCode {
        ExitCode::from(self.status())
    }

    pub(crate) fn status(self) -> u8 {
        match self {
            Exit::Done | Exit::BrokenPipe => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Refused => 3,
            Exit::OutputClosed => 4,
            Exit::RateLimited => 5,
            Exit::Outage => 6,
            Exit::AuditLost => 7,
            Exit::InUse => 8,
            Exit::NoReceiver => 9,
            Exit::Signal(status) => status,
        }
    }
}

/// Why a command ends without its result.
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    message: String,
    causes: Vec<String>,
    /// The library's error, for machines.
    error: Option<Box<Error>>,
}

impl Failure {
    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure {
            exit: Exit::Usage,
            message: message.into(),
            causes: Vec::new(),
            error: None,
        }
    }

    /// Says why on standard error, unless nobody is to be told.
    pub(crate) fn report(&self) {
        let more = match &self.error {
            _ if self.exit == Exit::BrokenPipe => return,
            Some(error) => serde_json::to_value(error).unwrap_or_default(),
            None => serde_json::json!({ "kind": "usage" }),
        };
        screen::failure(&self.message, &self.causes, more);
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        // What is refused before anything is sent is the command line's or the settings' fault.
        let unsent = error.requests() == 0 && error.http_status().is_none();
        let exit = match error.kind() {
            ErrorKind::Config => Exit::Usage,
            ErrorKind::InvalidInput | ErrorKind::PayloadTooLarge if unsent => Exit::Usage,
            ErrorKind::Auth | ErrorKind::Forbidden => Exit::Refused,
            ErrorKind::RateLimited => Exit::RateLimited,
            ErrorKind::Connect | ErrorKind::Timeout | ErrorKind::Transport | ErrorKind::Server => {
                Exit::Outage
            }
            _ => Exit::Failed,
        };
        let mut causes = Vec::new();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        Failure {
            exit,
            message: error.to_string(),
            causes,
            error: Some(Box::new(error)),
        }
    }
}

type Run = Result<Exit, Failure>;

pub(crate) fn run(options: &Options) -> Run {
    match &options.command {
        Command::Update(change) => commands::update(options, change),
        Command::Get(asked) => commands::get(options, asked),
        Command::Participants(asked) => commands::participants(options, asked),
        Command::Batch(batch) if batch.dry_run || batch.diff => rehearsal::rehearse(options, batch),
        Command::Batch(batch) => batch::run(options, batch),
        Command::Forward(asked) => forward::run(options, asked),
        Command::Validate(asked) => commands::validate(options, &asked.input),
        Command::Status(asked) => status::status(asked, options.json),
        Command::Check(_) => commands::check(options),
        Command::Completions { shell } => print(&help::completions(*shell)),
        Command::Sandbox(asked) => sandbox::run(asked),
        Command::Man => print(&help::man()),
    }
}

/// Prints text that ends a command, without what a terminal would obey.
pub(crate) fn print(text: &str) -> Run {
    print_raw(&screen::clean(text))
}

/// A closed pipe ends the command quietly.
fn print_raw(text: &str) -> Run {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Exit::Done),
        Err(error) => Err(closed(&error, Exit::BrokenPipe)),
    }
}

fn print_json(value: &impl Serialize) -> Run {
    print_raw(&(screen::json_text(value, true) + "\n"))
}

/// Standard output cannot be written; `exit` is how it ends when its reader has gone.
fn closed(error: &io::Error, exit: Exit) -> Failure {
    let exit = match error.kind() {
        io::ErrorKind::BrokenPipe => exit,
        _ => Exit::Usage,
    };
    Failure {
        exit,
        message: format!("standard output cannot be written: {error}"),
        causes: Vec::new(),
        error: None,
    }
}
