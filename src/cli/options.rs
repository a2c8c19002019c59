//! What a command line asks for, in types.

use std::path::PathBuf;

use genesys_attributes::{Target, Update};

/// What a command line asks for.
pub(crate) enum Parsed {
    /// Text to print.
    Text(String),
    Run(Box<Options>),
}

pub(crate) struct Options {
    pub(crate) command: Command,
    pub(crate) client: ClientOptions,
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    pub(crate) verbose: bool,
}

/// What the client is made from.
#[derive(Default)]
pub(crate) struct ClientOptions {
    pub(crate) credentials: Option<PathBuf>,
    pub(crate) settings: Option<PathBuf>,
    pub(crate) rate: Option<u32>,
    pub(crate) audit: Option<PathBuf>,
    pub(crate) audit_strict: bool,
    pub(crate) audit_values: bool,
    pub(crate) refuse_ended: bool,
    pub(crate) schema_file: Option<PathBuf>,
}

pub(crate) enum Command {
    Forward(Box<Forward>),
    Update(Box<Change>),
    Get {
        target: Target,
        target_given: bool,
    },
    Batch(Box<Batch>),
    Validate(Input),
    Status {
        results: PathBuf,
        input: Option<Input>,
    },
    Check,
}

/// One update, whose values may still have to be read from files.
pub(crate) struct Change {
    pub(crate) update: Update,
    pub(crate) assignments: Vec<Assignment>,
    /// Whether an option named the target.
    pub(crate) target_given: bool,
    pub(crate) dry_run: bool,
    pub(crate) verify: bool,
}

pub(crate) struct Assignment {
    pub(crate) key: String,
    pub(crate) is_json: bool,
    pub(crate) value: Given,
}

/// Where a value comes from.
pub(crate) enum Given {
    Text(String),
    File(PathBuf),
    StandardInput,
}

/// Where updates come from.
#[derive(Clone)]
pub(crate) struct Input {
    /// `None` is standard input.
    pub(crate) file: Option<PathBuf>,
    /// The character between the cells of a CSV; `None` is JSON lines.
    pub(crate) delimiter: Option<u8>,
    pub(crate) shard: Option<Shard>,
}

/// Part `index` (from 0) of `count`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) index: u64,
    pub(crate) count: u64,
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.count)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Run,
    /// Checks and counts; no network.
    DryRun,
    /// Reads, and shows what would change.
    Diff,
}

pub(crate) struct Batch {
    pub(crate) input: Input,
    pub(crate) results: Option<PathBuf>,
    pub(crate) resume: bool,
    pub(crate) retry_failed: bool,
    pub(crate) failed: Option<PathBuf>,
    pub(crate) metrics: Option<PathBuf>,
    pub(crate) exit_zero: bool,
    pub(crate) workers: usize,
    pub(crate) stop_after: Option<u64>,
    pub(crate) max_outage: u64,
    pub(crate) mode: Mode,
    pub(crate) verify: bool,
}

/// What `forward` is asked for.
#[derive(Default)]
pub(crate) struct Forward {
    pub(crate) log: PathBuf,
    /// `None` is standard output.
    pub(crate) url: Option<String>,
    pub(crate) secret_files: Vec<PathBuf>,
    /// Names, and the files of their values.
    pub(crate) headers: Vec<(String, PathBuf)>,
    pub(crate) cursor: Option<PathBuf>,
    pub(crate) dead_letters: Option<PathBuf>,
    pub(crate) max_attempts: Option<u32>,
    pub(crate) follow: bool,
    pub(crate) settle: bool,
    pub(crate) secure_values: bool,
    pub(crate) metrics: Option<PathBuf>,
}
