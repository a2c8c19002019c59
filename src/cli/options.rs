//! Every command and option, once. The parser, the help, the completions and the man page are
//! made from these types. The first paragraph of a comment is the help, the rest is for the man
//! page.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand};
use clap_complete::Shell;
use serde::de::IgnoredAny;
use serde_json::json;

use super::files::is_standard_input;
use super::words;

/// Headings that each command's help lists in one line, since all commands share them.
pub(crate) const SHARED: [&str; 3] = [SETTINGS, AUDIT, OUTPUT];

const AUDIT: &str = "Audit";
const CHANGE: &str = "Change";
const DELIVERY: &str = "Delivery";
const INPUT: &str = "Input";
const OUTPUT: &str = "Output";
const RESULTS: &str = "Results";
const RUN: &str = "Run";
const SETTINGS: &str = "Settings";
const TARGET: &str = "Target";

/// Changes attributes on Genesys Cloud conversations safely.
#[derive(Parser)]
#[command(name = "genesys-attributes", version, propagate_version = true)]
#[command(disable_help_flag = true, disable_version_flag = true)]
#[command(
    disable_help_subcommand = true,
    override_usage = "genesys-attributes COMMAND [OPTIONS]"
)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[arg(skip)]
    pub(crate) client: ClientOptions,
    /// Print results as JSON, and messages as JSON lines
    ///
    /// Each line on standard error then has `level`, `type` and `message`, the `causes` of an
    /// error, and the fields of its type.
    #[arg(long, global = true, help_heading = OUTPUT)]
    pub(crate) json: bool,
    /// Print only errors on standard error
    #[arg(short, long, global = true, help_heading = OUTPUT)]
    pub(crate) quiet: bool,
    /// Log each request
    #[arg(short, long, global = true, help_heading = OUTPUT)]
    pub(crate) verbose: bool,
    /// Print this help
    #[arg(short, long, global = true, help_heading = OUTPUT, action = ArgAction::HelpShort)]
    help: Option<bool>,
    /// Print the version
    #[arg(short = 'V', long, global = true, help_heading = OUTPUT, action = ArgAction::Version)]
    version: Option<bool>,
}

impl Options {
    /// Collects the options of the command that make the client.
    pub(crate) fn with_client(mut self) -> Options {
        let (source, guards, checks) = match &self.command {
            Command::Update(change) => (Some(&change.source), Some(&change.guards), None),
            Command::Get(asked) => (Some(&asked.source), None, None),
            Command::Participants(asked) => (Some(&asked.source), None, None),
            Command::Batch(batch) => (Some(&batch.source), Some(&batch.guards), None),
            Command::Validate(asked) => {
                self.client.source.named = asked.named.clone();
                (None, None, Some(&asked.checks))
            }
            Command::Forward(asked) => (Some(&asked.source), None, None),
            Command::Check(source) => (Some(source), None, None),
            Command::Status(_)
            | Command::Sandbox(_)
            | Command::Completions { .. }
            | Command::Man => (None, None, None),
        };
        let checks = guards.map(|guards| &guards.checks).or(checks).cloned();
        self.client = ClientOptions {
            source: source.cloned().unwrap_or(self.client.source),
            guards: guards.cloned().unwrap_or_default(),
            checks: checks.unwrap_or_default(),
        };
        self
    }
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Set or remove attributes of one conversation
    ///
    /// KEY=TEXT sets text; KEY:=JSON sets a number, true or false. KEY=@FILE and KEY:=@FILE take
    /// the value from a file and KEY=@- from standard input, without the line end at its end:
    /// other users of the machine can see the words of a command. Text that begins with @ is
    /// written as KEY:='"@..."'.
    #[command(
        override_usage = "genesys-attributes update CONVERSATION TARGET KEY=TEXT KEY:=JSON ...",
        after_help = "genesys-attributes update ID --participant customer tier=premium score:=85\n\
                      genesys-attributes update ID --secure iban=@iban.txt --audit audit.jsonl"
    )]
    Update(Box<Change>),
    /// Print the attributes and the version as JSON
    #[command(
        override_usage = "genesys-attributes get CONVERSATION TARGET [OPTIONS]",
        after_help = "genesys-attributes get ID --participant customer\n\
                      genesys-attributes get ID --custom crm-1 --settings client.json"
    )]
    Get(Box<Get>),
    /// Print who takes part in a conversation, or did
    #[command(
        override_usage = "genesys-attributes participants CONVERSATION [OPTIONS]",
        after_help = "genesys-attributes participants ID\n\
                      genesys-attributes participants ID --json"
    )]
    Participants(Box<Participants>),
    /// Run many updates: JSON lines or CSV in, JSON lines out
    ///
    /// Updates of one conversation run in the order of the input. The first SIGINT, SIGTERM or
    /// SIGHUP lets the requests in flight end; a second one stops at once. With --results, the
    /// same command with --resume continues later; --retry-failed and --retry-changed also run
    /// lines that failed for good.
    #[command(
        override_usage = "genesys-attributes batch [FILE or -] [OPTIONS]",
        after_help = "genesys-attributes batch updates.jsonl --results done.jsonl --resume\n\
                      genesys-attributes batch --csv rows.csv --participant customer --dry-run"
    )]
    Batch(Box<Batch>),
    /// Print the lines of an input that would be refused
    #[command(
        override_usage = "genesys-attributes validate [FILE or -] [OPTIONS]",
        after_help = "genesys-attributes validate updates.jsonl\n\
                      genesys-attributes validate --csv rows.csv --schema-file schema.json"
    )]
    Validate(Box<Validate>),
    /// Count the outcomes of a batch, also while it runs
    ///
    /// Also counts what a resume would run. With the input of the batch as FILE, the lines
    /// without any outcome are counted too.
    #[command(
        override_usage = "genesys-attributes status RESULTS [FILE] [OPTIONS]",
        after_help = "genesys-attributes status done.jsonl\n\
                      genesys-attributes status done.jsonl updates.jsonl --json"
    )]
    Status(Box<Status>),
    /// Send the changes in an audit file to a webhook or a queue
    ///
    /// Reads the audit file from where the last run ended, and delivers an event for every change
    /// that was applied, in order and at least once. The audit file must have been written with
    /// --audit-values. The summary, with --json too, goes to standard error. The first SIGINT,
    /// SIGTERM or SIGHUP ends it after the delivery under way: with --follow that is success.
    #[command(
        override_usage = "genesys-attributes forward AUDIT-FILE [OPTIONS]",
        after_help = "genesys-attributes forward audit.jsonl --url https://crm.example/hook --follow\n\
                      genesys-attributes forward audit.jsonl --stdout | kcat -P -t attributes"
    )]
    Forward(Box<Forward>),
    /// Log in, and print whose credentials they are
    #[command(
        override_usage = "genesys-attributes check [OPTIONS]",
        after_help = "genesys-attributes check\n\
                      genesys-attributes check --credentials client.env --json"
    )]
    Check(Source),
    /// Run a stand-in for the platform on a port of this machine
    ///
    /// Prints the variables that a shell sets to use it, and keeps nothing when it ends.
    #[command(
        override_usage = "genesys-attributes sandbox [OPTIONS]",
        after_help = "genesys-attributes sandbox\n\
                      genesys-attributes sandbox --port 9000 --fault conflict=3 --latency 50"
    )]
    Sandbox(Sandbox),
    /// Print the completions for a shell
    ///
    /// To be sourced, or put where the shell looks for them.
    #[command(
        override_usage = "genesys-attributes completions SHELL",
        after_help = "genesys-attributes completions bash >genesys-attributes\n\
                      genesys-attributes completions zsh >_genesys-attributes"
    )]
    Completions {
        #[arg(value_name = "SHELL", help_heading = INPUT, help = "The shell")]
        shell: Shell,
    },
    /// Print the man page
    #[command(
        override_usage = "genesys-attributes man",
        after_help = "genesys-attributes man | man -l -\n\
                      genesys-attributes man >genesys-attributes.1"
    )]
    Man,
}

/// What the client is made from.
#[derive(Default)]
pub(crate) struct ClientOptions {
    pub(crate) source: Source,
    pub(crate) guards: Guards,
    pub(crate) checks: Checks,
}

/// Where region, credentials and settings come from.
#[derive(Args, Clone, Default)]
pub(crate) struct Source {
    /// Take the variables from FILE, not the environment
    ///
    /// The file has NAME=VALUE lines; - is standard input.
    #[arg(long, value_name = "FILE", help_heading = SETTINGS)]
    pub(crate) credentials: Option<PathBuf>,
    /// Take the login from a profile in ~/.gc/config.toml
    ///
    /// The profiles of the platform's own command line: environment, client_credentials and
    /// client_secret or access_token, and proxy_*.
    #[arg(long, value_name = "NAME", help_heading = SETTINGS, conflicts_with = "credentials")]
    pub(crate) profile: Option<String>,
    #[command(flatten)]
    pub(crate) named: SettingsFile,
    /// Show this certificate to servers that ask for one: PEM
    #[arg(long, value_name = "FILE", help_heading = SETTINGS, requires = "client_key")]
    pub(crate) client_certificate: Option<PathBuf>,
    /// The key of --client-certificate: PEM, without a passphrase
    #[arg(long, value_name = "FILE", help_heading = SETTINGS, requires = "client_certificate")]
    pub(crate) client_key: Option<PathBuf>,
    /// API requests a minute (300); 0 for no limit
    #[arg(long, value_name = "PER_MINUTE", help_heading = SETTINGS)]
    #[arg(value_parser = words::number::<u32>(0, 1_000_000))]
    pub(crate) rate: Option<u32>,
    /// Give an update up after this time (300)
    ///
    /// Waits for the rate limit before its first request do not count.
    #[arg(long, value_name = "SECONDS", help_heading = SETTINGS)]
    #[arg(value_parser = words::number::<u64>(1, 86_400))]
    pub(crate) timeout: Option<u64>,
}

impl Source {
    /// True if one of its files is standard input.
    pub(crate) fn reads_stdin(&self) -> bool {
        let mut files = [&self.credentials, &self.named.settings]
            .into_iter()
            .flatten();
        files.any(|path| is_standard_input(path))
    }
}

/// The file of the client's settings.
#[derive(Args, Clone, Default)]
pub(crate) struct SettingsFile {
    /// Take the settings of the client from FILE, as JSON
    ///
    /// - is standard input. Beside --credentials or --profile it must not say who logs in.
    #[arg(long, value_name = "FILE", help_heading = SETTINGS)]
    pub(crate) settings: Option<PathBuf>,
}

/// What the caller checks beside the platform.
#[derive(Args, Clone, Default)]
pub(crate) struct Checks {
    /// Check keys and values by the schema in FILE
    ///
    /// The schema is JSON. It is checked beside the platform's limits and a schema of the
    /// settings, before anything is sent.
    #[arg(long, value_name = "FILE", help_heading = RUN)]
    pub(crate) schema_file: Option<PathBuf>,
}

/// What guards and records the writes.
#[derive(Args, Clone, Default)]
pub(crate) struct Guards {
    #[command(flatten)]
    pub(crate) checks: Checks,
    /// Refuse a conversation that has ended
    ///
    /// Without it, a read that finds the conversation ended is a warning.
    #[arg(long, help_heading = RUN)]
    pub(crate) refuse_ended: bool,
    /// After a write, read until the values are there
    #[arg(long, help_heading = RUN)]
    pub(crate) verify: bool,
    /// Append audit records to FILE, as JSON lines
    #[arg(long, value_name = "FILE", help_heading = AUDIT, value_parser = words::output)]
    pub(crate) audit: Option<PathBuf>,
    /// Write nothing whose audit record can't be written
    #[arg(long, help_heading = AUDIT)]
    pub(crate) audit_strict: bool,
    /// Record the values too, except secure ones
    #[arg(long, help_heading = AUDIT)]
    pub(crate) audit_values: bool,
}

/// Which of a conversation's stores is addressed.
#[derive(Args, Clone, Default)]
#[group(multiple = false)]
pub(crate) struct Which {
    /// A participant: customer, purpose:NAME or an id
    #[arg(long, value_name = "WHO", help_heading = TARGET, value_parser = words::who)]
    pub(crate) participant: Option<String>,
    /// The secure attributes
    #[arg(long, help_heading = TARGET)]
    pub(crate) secure: bool,
    /// A record of custom attributes
    #[arg(long, value_name = "RECORD", help_heading = TARGET)]
    pub(crate) custom: Option<String>,
    /// The conversation itself; not in today's public API
    ///
    /// Uses the conversation-level endpoint, which the platform does not offer to its public
    /// clients.
    #[arg(long, help_heading = TARGET)]
    pub(crate) conversation: bool,
}

/// What a line of an input may say about its target.
#[derive(serde::Deserialize)]
struct Named {
    target: Option<IgnoredAny>,
    participant: Option<IgnoredAny>,
    record: Option<IgnoredAny>,
}

impl Which {
    /// Gives a record that names no target this one.
    pub(crate) fn name_in(&self, record: String) -> String {
        let fields = match (&self.participant, &self.custom) {
            (Some(who), _) => json!({ "target": "participant", "participant": who }),
            (_, Some(record)) => json!({ "target": "custom", "record": record }),
            _ if self.secure => json!({ "target": "secure" }),
            _ if self.conversation => json!({ "target": "conversation" }),
            _ => return record,
        };
        // A record that can't be read is told as such later.
        match serde_json::from_str::<Named>(&record) {
            Ok(Named {
                target: None,
                participant: None,
                record: None,
            }) => {}
            _ => return record,
        }
        // Its own text stays as it is, to the last digit.
        let fields = fields.to_string();
        let opened = fields.trim_end_matches('}');
        match record.split_once('{') {
            Some((before, rest)) if rest.trim_start().starts_with('}') => {
                format!("{before}{opened}{rest}")
            }
            Some((before, rest)) => format!("{before}{opened},{rest}"),
            None => record,
        }
    }
}

/// A conversation and which of its stores.
#[derive(Args)]
pub(crate) struct Address {
    #[arg(value_name = "CONVERSATION", hide_short_help = true, value_parser = words::conversation)]
    #[arg(help = "The conversation's id")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) which: Which,
}

/// One update.
#[derive(Args)]
pub(crate) struct Change {
    #[command(flatten)]
    pub(crate) address: Address,
    /// With --custom: create an absent record with it
    #[arg(long, value_name = "ID", help_heading = TARGET)]
    pub(crate) schema: Option<String>,
    #[arg(
        value_name = "KEY=TEXT",
        hide_short_help = true,
        help = "The attributes to set"
    )]
    pub(crate) words: Vec<OsString>,
    /// Remove a key (secure attributes); may be repeated
    #[arg(long, value_name = "KEY", help_heading = CHANGE)]
    pub(crate) remove: Vec<String>,
    /// Write only on this version
    #[arg(long, value_name = "V", help_heading = CHANGE)]
    pub(crate) if_version: Option<String>,
    /// Read first; write only if a value differs
    #[arg(long, help_heading = CHANGE)]
    pub(crate) skip_unchanged: bool,
    /// With --secure: write without a read and a lock
    #[arg(long, help_heading = CHANGE)]
    pub(crate) unlocked: bool,
    /// Read, print what would change, write nothing
    #[arg(long, help_heading = RUN)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) guards: Guards,
    #[command(flatten)]
    pub(crate) source: Source,
}

#[derive(Args)]
pub(crate) struct Get {
    #[command(flatten)]
    pub(crate) address: Address,
    #[command(flatten)]
    pub(crate) source: Source,
}

/// How the lines of an input are written.
#[derive(Args, Clone, Default)]
pub(crate) struct Format {
    /// The input is CSV with a header row
    ///
    /// Its columns are conversationId and, where wanted, participant, target, record, schema,
    /// ifVersion, skipUnchanged and unlocked; every other column is an attribute of text, or of
    /// JSON where its header ends in ':'. An empty cell sets nothing. attr:NAME is the attribute
    /// NAME, even if NAME is a column above.
    #[arg(long, help_heading = INPUT)]
    pub(crate) csv: bool,
    /// CSV with CHAR or tab between its cells [--csv: ,]
    #[arg(long, value_name = "CHAR", help_heading = INPUT, value_parser = words::delimiter)]
    pub(crate) delimiter: Option<u8>,
}

impl Format {
    /// The character between the cells of a CSV; `None` is JSON lines.
    pub(crate) fn delimiter(&self) -> Option<u8> {
        self.delimiter.or(self.csv.then_some(b','))
    }
}

/// Where updates come from.
#[derive(Args, Clone, Default)]
pub(crate) struct Input {
    /// The input; `None` is standard input.
    #[arg(value_name = "FILE", hide_short_help = true)]
    #[arg(help = "The input; - or none for standard input")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) format: Format,
    /// The target of lines that name none.
    #[command(flatten)]
    pub(crate) which: Which,
    /// Take only part I of N of the conversations
    ///
    /// Part I has the lines whose conversation id has an FNV-1a hash (64 bits) of I-1 modulo N.
    #[arg(long, value_name = "I/N", help_heading = INPUT, value_parser = shard)]
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

/// Part I of N.
fn shard(text: &str) -> Result<Shard, String> {
    text.split_once('/')
        .and_then(|(index, count)| Some((index.parse::<u64>().ok()?, count.parse::<u64>().ok()?)))
        .filter(|(index, count)| (1..=*count).contains(index) && *count <= 1_000_000)
        .map(|(index, count)| Shard {
            index: index - 1,
            count,
        })
        .ok_or_else(|| "takes I/N, such as 2/4: part 2 of 4".into())
}

#[derive(Args)]
pub(crate) struct Batch {
    #[command(flatten)]
    pub(crate) input: Input,
    /// Write outcomes to FILE, not standard output
    #[arg(long, value_name = "FILE", help_heading = RESULTS, value_parser = words::output)]
    pub(crate) results: Option<PathBuf>,
    /// Run the lines without a final outcome in FILE
    #[arg(long, requires = "results", help_heading = RESULTS)]
    pub(crate) resume: bool,
    /// With --resume: run failed lines again too
    ///
    /// Those that failed for good; they may have been corrected in the input.
    #[arg(long, requires = "resume", help_heading = RESULTS)]
    pub(crate) retry_failed: bool,
    /// With --resume: run failed lines again if they changed
    ///
    /// Only those that failed for good and have been corrected in the input since.
    #[arg(long, requires = "resume", conflicts_with = "retry_failed", help_heading = RESULTS)]
    pub(crate) retry_changed: bool,
    /// Write failed and skipped input lines to FILE
    ///
    /// FILE can be the input of a next run. The later lines of their conversations follow, so
    /// that a next run puts no older value over a newer one.
    #[arg(long, value_name = "FILE", help_heading = RESULTS, value_parser = words::output)]
    pub(crate) failed: Option<PathBuf>,
    /// Write metrics to FILE (Prometheus) every 15 s
    #[arg(long, value_name = "FILE", help_heading = RESULTS, value_parser = words::output)]
    pub(crate) metrics: Option<PathBuf>,
    /// End with status 0 although lines failed
    #[arg(long, help_heading = RESULTS)]
    pub(crate) exit_zero: bool,
    /// Updates at the same time
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = RUN)]
    #[arg(value_parser = words::number::<usize>(1, 1_024))]
    pub(crate) workers: usize,
    /// Stop after N failed lines
    #[arg(long, value_name = "N", help_heading = RUN)]
    #[arg(value_parser = words::number::<u64>(1, u64::MAX))]
    pub(crate) stop_after: Option<u64>,
    /// Stop when an outage lasts longer
    #[arg(long, value_name = "SECONDS", default_value_t = 600, help_heading = RUN)]
    #[arg(value_parser = words::number::<u64>(0, 31_536_000))]
    pub(crate) max_outage: u64,
    /// Check and count; send and write nothing
    #[arg(long, help_heading = RUN)]
    pub(crate) dry_run: bool,
    /// Read, print what would change, write nothing
    #[arg(long, conflicts_with = "dry_run", help_heading = RUN)]
    pub(crate) diff: bool,
    #[command(flatten)]
    pub(crate) guards: Guards,
    #[command(flatten)]
    pub(crate) source: Source,
}

#[derive(Args)]
pub(crate) struct Validate {
    #[command(flatten)]
    pub(crate) input: Input,
    #[command(flatten)]
    pub(crate) checks: Checks,
    #[command(flatten)]
    pub(crate) named: SettingsFile,
}

#[derive(Args)]
pub(crate) struct Status {
    #[arg(
        value_name = "RESULTS",
        hide_short_help = true,
        help = "The results file of a batch"
    )]
    pub(crate) results: PathBuf,
    #[arg(
        value_name = "FILE",
        hide_short_help = true,
        help = "The input of that batch"
    )]
    pub(crate) file: Option<PathBuf>,
    /// List the lines that failed or were skipped
    ///
    /// Each with its message, as JSON lines with --json. The exit status is 1 if there are some.
    #[arg(long)]
    pub(crate) failed: bool,
    #[command(flatten)]
    pub(crate) format: Format,
}

/// What `forward` is asked for.
#[derive(Args)]
#[command(group = ArgGroup::new("receiver").args(["url", "url_file", "stdout"]))]
pub(crate) struct Forward {
    #[arg(
        value_name = "AUDIT-FILE",
        hide_short_help = true,
        help = "The audit file"
    )]
    pub(crate) log: PathBuf,
    /// POST each event there: https, or http on loopback
    #[arg(long, value_name = "URL", help_heading = DELIVERY)]
    pub(crate) url: Option<String>,
    /// Read the URL from FILE: others can see --url
    #[arg(long, value_name = "FILE", help_heading = DELIVERY)]
    pub(crate) url_file: Option<PathBuf>,
    /// Print each event as a line of JSON
    #[arg(long, help_heading = DELIVERY)]
    pub(crate) stdout: bool,
    /// Sign with the secrets in FILE; may be repeated
    ///
    /// A secret is whsec_..., one a line.
    #[arg(long = "secret-file", value_name = "FILE", conflicts_with = "stdout")]
    #[arg(help_heading = DELIVERY)]
    pub(crate) secret_files: Vec<PathBuf>,
    /// Send a header field; may be repeated
    ///
    /// FILE holds its value: other users of the machine can see the words of a command.
    #[arg(long = "header", value_name = "NAME=@FILE", conflicts_with = "stdout")]
    #[arg(help_heading = DELIVERY, value_parser = words::header)]
    pub(crate) headers: Vec<(String, PathBuf)>,
    /// Where to continue [default: AUDIT-FILE.cursor]
    #[arg(long, value_name = "FILE", help_heading = DELIVERY, value_parser = words::output)]
    pub(crate) cursor: Option<PathBuf>,
    /// Append what the receiver refuses for good to FILE
    #[arg(long, value_name = "FILE", help_heading = DELIVERY, value_parser = words::output)]
    pub(crate) dead_letters: Option<PathBuf>,
    /// Give an event up after N attempts [default: never]
    #[arg(long, value_name = "N", help_heading = DELIVERY)]
    #[arg(value_parser = words::number::<u32>(1, u64::from(u32::MAX)))]
    pub(crate) max_attempts: Option<u32>,
    /// Stop when the receiver takes nothing for longer
    ///
    /// Without it an event is tried again without end.
    #[arg(long, value_name = "SECONDS", help_heading = DELIVERY)]
    #[arg(value_parser = words::number::<u64>(0, 31_536_000))]
    pub(crate) max_outage: Option<u64>,
    /// Wait for more events, until a signal comes
    #[arg(long, help_heading = DELIVERY)]
    pub(crate) follow: bool,
    /// Read what became of writes whose program died
    #[arg(long, help_heading = DELIVERY)]
    pub(crate) settle: bool,
    /// Deliver secure values too
    ///
    /// Where the audit file holds them.
    #[arg(long, help_heading = DELIVERY)]
    pub(crate) secure_values: bool,
    /// Write metrics to FILE (Prometheus) every 15 s
    #[arg(long, value_name = "FILE", help_heading = DELIVERY, value_parser = words::output)]
    pub(crate) metrics: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) source: Source,
}

#[derive(Args)]
pub(crate) struct Participants {
    #[arg(value_name = "CONVERSATION", hide_short_help = true, value_parser = words::conversation)]
    #[arg(help = "The conversation's id")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) source: Source,
}

#[derive(Args)]
pub(crate) struct Sandbox {
    /// Listen on this port; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8080, help_heading = RUN)]
    #[arg(value_parser = words::number::<u16>(0, 65_535))]
    pub(crate) port: u16,
    /// Only these conversations exist; may be repeated
    ///
    /// Without any, every conversation that a request names comes into being.
    #[arg(long = "id", value_name = "CONVERSATION", help_heading = RUN)]
    pub(crate) conversations: Vec<String>,
    /// Fail each N-th request; may be repeated
    ///
    /// conflict=N: another writer comes first; throttle=N: 429; lost=N: a write is applied, but
    /// answered 503.
    #[arg(long = "fault", value_name = "NAME=N", help_heading = RUN)]
    #[arg(value_parser = words::fault)]
    pub(crate) faults: Vec<(String, u64)>,
    /// Answer after this time
    #[arg(long, value_name = "MS", default_value_t = 0, help_heading = RUN)]
    #[arg(value_parser = words::number::<u64>(0, 600_000))]
    pub(crate) latency: u64,
}
