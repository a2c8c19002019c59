//! The command line: words in, options out. Nothing is opened or sent here.

use std::ffi::OsString;
use std::path::PathBuf;

use genesys_attributes::{Target, Update};
use lexopt::prelude::*;

/// What a command line asks for.
pub(crate) enum Parsed {
    Help(String),
    Run(Box<Options>),
}

/// The options of every command.
pub(crate) struct Options {
    pub(crate) command: Command,
    pub(crate) credentials: Option<PathBuf>,
    pub(crate) rate: Option<u32>,
    pub(crate) audit: Option<PathBuf>,
    pub(crate) json: bool,
    pub(crate) verbose: bool,
}

pub(crate) enum Command {
    Update(Update),
    Get(Target),
    Batch(Batch),
    Validate(Input),
    Check,
}

/// Where updates come from.
pub(crate) struct Input {
    /// `None` is standard input.
    pub(crate) file: Option<PathBuf>,
    pub(crate) csv: bool,
}

pub(crate) struct Batch {
    pub(crate) input: Input,
    pub(crate) results: Option<PathBuf>,
    pub(crate) resume: bool,
    pub(crate) retry_failed: bool,
    pub(crate) workers: usize,
    pub(crate) stop_after: Option<u64>,
    pub(crate) dry_run: bool,
}

const HELP: &str = "\
Changes attributes on Genesys Cloud conversations safely.

Usage:
  genesys-attributes update CONVERSATION KEY=TEXT KEY:=JSON ... [OPTIONS]
  genesys-attributes get CONVERSATION [OPTIONS]
  genesys-attributes batch [FILE or -] [OPTIONS]
  genesys-attributes validate [FILE or -] [--csv]
  genesys-attributes check

Commands:
  update      One update. KEY=TEXT sets text, KEY:=JSON a number, true or false.
  get         Prints the attributes and the version as JSON.
  batch       Runs many updates: JSON lines in, JSON lines out.
  validate    Reads what batch would, sends nothing, and says what would be refused.
  check       Are the settings complete, does the login work, who am I, until when.

What update and get address (default: the conversation itself):
  --participant WHO   customer, purpose:NAME or a participant id
  --secure            the secure attributes
  --custom RECORD     a record of custom attributes
  --schema ID         with --custom: create the record if it is absent

Options of update:
  --if-version V      write only on this version
  --skip-unchanged    read first, and do not write what is in place
  --remove KEY        remove a key (secure attributes)
  --unlocked          with --secure: no read, no lock

Options of batch:
  --csv               the input is CSV with a header row: the columns conversationId and
                      (optional) participant; every other column is an attribute of text, or of
                      JSON where its header ends in ':'; an empty cell sets nothing
  --results FILE      write the outcomes there instead of standard output
  --resume            go on with FILE: run what has no final outcome in it yet
  --retry-failed      with --resume: also what failed for good
  --workers N         updates at the same time (default 8)
  --stop-after N      stop after N failed lines
  --dry-run           check and count, send nothing

Options of all commands:
  --credentials FILE  take the settings from FILE (NAME=VALUE lines), not from the environment
  --rate PER_MINUTE   API requests a minute at most (default 300; 0 for no limit)
  --audit FILE        append audit records to FILE, as JSON lines
  --json              results as JSON; the summary, and errors of the
                      library's, as JSON on standard error
  -v, --verbose       say what is sent
  -h, --help          this text
  -V, --version       the version

Settings (environment, or the file of --credentials); secrets are never arguments:
  GENESYS_CLOUD_REGION, GENESYS_CLOUD_CLIENT_ID, GENESYS_CLOUD_CLIENT_SECRET
  or GENESYSCLOUD_REGION with GENESYSCLOUD_ACCESS_TOKEN, or with
     GENESYSCLOUD_OAUTHCLIENT_ID and GENESYSCLOUD_OAUTHCLIENT_SECRET
  GENESYS_CLOUD_BASE_URL for a sandbox or gateway

Exit status:
  0  everything is applied (or valid)
  1  something failed, was skipped or would be refused
  2  wrong usage or settings, or input or results that cannot be read or written
  3  batch stopped early: --stop-after, credentials refused, or nothing permitted
  4  batch stopped early: standard output was closed
  5  batch stopped early: the platform asks to wait for longer than 180 s; resume later
";

pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Parsed, String> {
    parse_words(lexopt::Parser::from_args(args)).map_err(|error| match error {
        lexopt::Error::Custom(message) => message.to_string(),
        other => other.to_string(),
    })
}

/// Every option once, as it was written; which go with which command is sorted out afterwards.
#[derive(Default)]
struct Words {
    values: Vec<OsString>,
    participant: Option<String>,
    secure: bool,
    custom: Option<String>,
    schema: Option<String>,
    if_version: Option<String>,
    skip_unchanged: bool,
    remove: Vec<String>,
    unlocked: bool,
    csv: bool,
    results: Option<PathBuf>,
    resume: bool,
    retry_failed: bool,
    workers: Option<usize>,
    stop_after: Option<u64>,
    dry_run: bool,
    /// The names of the options above that were given.
    given: Vec<&'static str>,
}

fn parse_words(mut parser: lexopt::Parser) -> Result<Parsed, lexopt::Error> {
    let mut words = Words::default();
    let mut credentials = None;
    let mut rate = None;
    let mut audit = None;
    let (mut json, mut verbose) = (false, false);
    while let Some(arg) = parser.next()? {
        let name = match arg {
            Value(value) => {
                words.values.push(value);
                continue;
            }
            Short('h') | Long("help") => return Ok(Parsed::Help(HELP.to_owned())),
            Short('V') | Long("version") => {
                let version = concat!("genesys-attributes ", env!("CARGO_PKG_VERSION"), "\n");
                return Ok(Parsed::Help(version.to_owned()));
            }
            Short('v') | Long("verbose") => {
                verbose = true;
                continue;
            }
            Long("json") => {
                json = true;
                continue;
            }
            Long("credentials") => {
                credentials = Some(PathBuf::from(parser.value()?));
                continue;
            }
            Long("rate") => {
                rate = Some(number(&mut parser, "--rate")?);
                if rate > Some(1_000_000) {
                    return Err("--rate must be at most 1000000, or 0 for no limit".into());
                }
                continue;
            }
            Long("audit") => {
                audit = Some(PathBuf::from(parser.value()?));
                continue;
            }
            Long("participant") => {
                words.participant = Some(parser.value()?.string()?);
                "--participant"
            }
            Long("secure") => {
                words.secure = true;
                "--secure"
            }
            Long("custom") => {
                words.custom = Some(parser.value()?.string()?);
                "--custom"
            }
            Long("schema") => {
                words.schema = Some(parser.value()?.string()?);
                "--schema"
            }
            Long("if-version") => {
                words.if_version = Some(parser.value()?.string()?);
                "--if-version"
            }
            Long("skip-unchanged") => {
                words.skip_unchanged = true;
                "--skip-unchanged"
            }
            Long("remove") => {
                words.remove.push(parser.value()?.string()?);
                "--remove"
            }
            Long("unlocked") => {
                words.unlocked = true;
                "--unlocked"
            }
            Long("csv") => {
                words.csv = true;
                "--csv"
            }
            Long("results") => {
                words.results = Some(PathBuf::from(parser.value()?));
                "--results"
            }
            Long("resume") => {
                words.resume = true;
                "--resume"
            }
            Long("retry-failed") => {
                words.retry_failed = true;
                "--retry-failed"
            }
            Long("workers") => {
                words.workers = Some(number(&mut parser, "--workers")?);
                "--workers"
            }
            Long("stop-after") => {
                words.stop_after = Some(number(&mut parser, "--stop-after")?);
                "--stop-after"
            }
            Long("dry-run") => {
                words.dry_run = true;
                "--dry-run"
            }
            _ => return Err(arg.unexpected()),
        };
        words.given.push(name);
    }
    if words.values.first().is_some_and(|word| word == "help") {
        return Ok(Parsed::Help(HELP.to_owned()));
    }
    Ok(Parsed::Run(Box::new(Options {
        command: command(words)?,
        credentials,
        rate,
        audit,
        json,
        verbose,
    })))
}

fn number<N: std::str::FromStr>(
    parser: &mut lexopt::Parser,
    option: &str,
) -> Result<N, lexopt::Error> {
    let text = parser.value()?.string()?;
    text.parse()
        .map_err(|_| format!("{option} takes a number, not {text:?}").into())
}

const ADDRESS: [&str; 4] = ["--participant", "--secure", "--custom", "--schema"];
const CHANGE: [&str; 4] = ["--if-version", "--skip-unchanged", "--remove", "--unlocked"];
const BATCH: [&str; 7] = [
    "--csv",
    "--results",
    "--resume",
    "--retry-failed",
    "--workers",
    "--stop-after",
    "--dry-run",
];

fn command(mut words: Words) -> Result<Command, lexopt::Error> {
    if words.values.is_empty() {
        return Err("give a command: update, get, batch, validate or check".into());
    }
    let name = words.values.remove(0).string()?;
    let allowed: Vec<&str> = match name.as_str() {
        "update" => [ADDRESS, CHANGE].concat(),
        "get" => ADDRESS.to_vec(),
        "batch" => BATCH.to_vec(),
        "validate" => vec!["--csv"],
        "check" => Vec::new(),
        _ => {
            return Err(format!(
                "unknown command {name:?}: use update, get, batch, validate or check"
            )
            .into());
        }
    };
    if let Some(stray) = words.given.iter().find(|given| !allowed.contains(given)) {
        return Err(format!("{stray} does not go with {name}").into());
    }
    match name.as_str() {
        "update" => Ok(Command::Update(update(words)?)),
        "get" => {
            let target = update_of(&mut words)?.target().clone();
            match words.values.first() {
                None => Ok(Command::Get(target)),
                Some(more) => Err(format!("get takes one conversation, not also {more:?}").into()),
            }
        }
        "batch" => {
            if words.resume && words.results.is_none() {
                return Err("--resume needs --results FILE".into());
            }
            if words.retry_failed && !words.resume {
                return Err("--retry-failed needs --resume".into());
            }
            if words.workers.is_some_and(|n| !(1..=1_024).contains(&n)) {
                return Err("--workers must be 1 to 1024".into());
            }
            if words.stop_after == Some(0) {
                return Err("--stop-after must be at least 1".into());
            }
            Ok(Command::Batch(Batch {
                results: words.results.take(),
                resume: words.resume,
                retry_failed: words.retry_failed,
                workers: words.workers.unwrap_or(8),
                stop_after: words.stop_after,
                dry_run: words.dry_run,
                input: input(words)?,
            }))
        }
        "validate" => Ok(Command::Validate(input(words)?)),
        _ => match words.values.first() {
            None => Ok(Command::Check),
            Some(more) => Err(format!("check takes no argument, but got {more:?}").into()),
        },
    }
}

fn input(mut words: Words) -> Result<Input, lexopt::Error> {
    if words.values.len() > 1 {
        return Err("give one input file, or - for standard input".into());
    }
    let file = words.values.pop().filter(|name| name != "-");
    Ok(Input {
        file: file.map(PathBuf::from),
        csv: words.csv,
    })
}

/// The update that the address options make, without any attribute yet.
fn update_of(words: &mut Words) -> Result<Update, lexopt::Error> {
    if words.values.is_empty() {
        return Err("give a conversation id".into());
    }
    let conversation = words.values.remove(0).string()?;
    let update = match (words.participant.take(), words.secure, words.custom.take()) {
        (None, false, None) => Update::conversation(conversation),
        (Some(who), false, None) => Update::participant(conversation, who),
        (None, true, None) => Update::secure(conversation),
        (None, false, Some(record)) => Update::custom(conversation, record),
        _ => return Err("give only one of --participant, --secure and --custom".into()),
    };
    Ok(match words.schema.take() {
        Some(schema) => update.schema(schema),
        None => update,
    })
}

fn update(mut words: Words) -> Result<Update, lexopt::Error> {
    let mut update = update_of(&mut words)?;
    for word in words.values {
        let word = word.string()?;
        // The first '=' decides, so that text may hold any character.
        let (key, text) = word
            .split_once('=')
            .ok_or_else(|| format!("{word:?} is neither KEY=TEXT nor KEY:=JSON"))?;
        update = match key.strip_suffix(':') {
            Some(key) => {
                let value: serde_json::Value = serde_json::from_str(text)
                    .map_err(|_| format!("the value of {key:?} is not JSON"))?;
                update.set(key, value)
            }
            None => update.set(key, text),
        };
    }
    for key in words.remove {
        update = update.remove(key);
    }
    if let Some(version) = words.if_version {
        update = update.if_version(version);
    }
    if words.skip_unchanged {
        update = update.skip_unchanged();
    }
    if words.unlocked {
        update = update.unlocked();
    }
    Ok(update)
}
