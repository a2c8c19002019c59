//! The command line: words in, options out. Nothing is opened or sent here, and no message holds
//! more of the words than the names of options and keys: anything else may be a value.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use genesys_attributes::Update;
use lexopt::Arg;

use super::help;
use super::options::{
    Assignment, Batch, Change, ClientOptions, Command, Forward, Given, Input, Mode, Options,
    Parsed, Shard,
};
use super::table::{COMMANDS, Opt, Spec, nearest};

type Result<T> = std::result::Result<T, String>;

/// Whether JSON is asked for, also where the words cannot be understood.
pub(crate) fn wants_json(args: &[OsString]) -> bool {
    args.iter()
        .take_while(|arg| *arg != "--")
        .any(|arg| arg == "--json")
}

/// How to ask for help with what the words name.
pub(crate) fn help_for(args: &[OsString]) -> String {
    let mut words = args.iter().filter_map(|arg| arg.to_str());
    let spec = words.find_map(|word| COMMANDS.iter().find(|spec| spec.name == word));
    match spec {
        Some(spec) => format!("genesys-attributes {} --help", spec.name),
        None => "genesys-attributes --help".into(),
    }
}

pub(crate) fn parse(args: Vec<OsString>) -> Result<Parsed> {
    let mut words = Words::read(args)?;
    if words.has("version") {
        return Ok(Parsed::Text(format!(
            "genesys-attributes {}\n",
            env!("CARGO_PKG_VERSION")
        )));
    }
    let asked = words.values.first().is_some_and(|word| word == "help");
    if asked {
        words.values.remove(0);
    }
    let named = (!words.values.is_empty()).then(|| words.values.remove(0));
    if asked || words.has("help") {
        let spec = named.as_deref().map(spec_of).transpose()?;
        return Ok(Parsed::Text(spec.map_or_else(help::overview, help::of)));
    }
    let Some(name) = named else {
        return Err(format!("give a command: {}", command_names()));
    };
    let spec = spec_of(&name)?;
    words.check(spec)?;
    let command = match spec.name {
        "update" => Command::Update(Box::new(change(&mut words)?)),
        "get" => {
            let (update, target_given) = addressed(&mut words)?;
            words.no_more("get takes one conversation")?;
            Command::Get {
                target: update.target().clone(),
                target_given,
            }
        }
        "batch" => Command::Batch(Box::new(batch(&mut words)?)),
        "forward" => Command::Forward(Box::new(forward(&mut words)?)),
        "validate" => Command::Validate(input(&mut words)?),
        "status" => {
            if words.values.is_empty() {
                return Err("status needs the results file of a batch".into());
            }
            let results = PathBuf::from(words.values.remove(0));
            let input = if words.values.is_empty() {
                None
            } else {
                Some(input(&mut words)?)
            };
            Command::Status { results, input }
        }
        "completions" => {
            let shell = words.values.pop().filter(|_| words.values.is_empty());
            let text = shell.and_then(|shell| help::completions(shell.to_str()?));
            return text
                .map(Parsed::Text)
                .ok_or_else(|| "give one shell: bash, zsh or fish".into());
        }
        "man" => {
            words.no_more("man takes no argument")?;
            return Ok(Parsed::Text(help::man()));
        }
        _ => {
            words.no_more("check takes no argument")?;
            Command::Check
        }
    };
    Ok(Parsed::Run(Box::new(Options {
        command,
        client: client(&mut words)?,
        json: words.has("json"),
        quiet: words.has("quiet"),
        verbose: words.has("verbose"),
    })))
}

fn command_names() -> String {
    let names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
    names.join(", ")
}

fn spec_of(word: &OsStr) -> Result<&'static Spec> {
    let given = word.to_str().unwrap_or_default();
    if let Some(spec) = COMMANDS.iter().find(|spec| spec.name == given) {
        return Ok(spec);
    }
    let meant = nearest(given, COMMANDS.iter().map(|spec| spec.name));
    Err(format!(
        "unknown command{}: use {}",
        did_you_mean(meant, ""),
        command_names()
    ))
}

fn did_you_mean(name: Option<&str>, prefix: &str) -> String {
    name.map_or_else(String::new, |name| {
        format!(" (did you mean {prefix}{name}?)")
    })
}

/// The words, sorted into options and the rest.
struct Words {
    options: Vec<(&'static Opt, Option<OsString>)>,
    values: Vec<OsString>,
}

impl Words {
    fn read(args: Vec<OsString>) -> Result<Words> {
        let mut parser = lexopt::Parser::from_args(args);
        let mut words = Words {
            options: Vec::new(),
            values: Vec::new(),
        };
        let known = || COMMANDS.iter().flat_map(Spec::options);
        loop {
            let last = words.options.last().map(|(option, _)| option.long);
            let option = match parser.next() {
                Ok(None) => return Ok(words),
                Ok(Some(Arg::Value(value))) => {
                    words.values.push(value);
                    continue;
                }
                Ok(Some(Arg::Long(name))) => known().find(|o| o.long == name).ok_or_else(|| {
                    let meant = nearest(name, known().map(|o| o.long));
                    let shown = if is_name(name) {
                        format!(" --{name}")
                    } else {
                        String::new()
                    };
                    format!("unknown option{shown}{}", did_you_mean(meant, "--"))
                })?,
                Ok(Some(Arg::Short(letter))) => known()
                    .find(|o| o.short == Some(letter))
                    .ok_or_else(|| format!("unknown option -{}", letter.escape_default()))?,
                // Of all that lexopt may complain about, only this can happen here.
                Err(_) => {
                    return Err(match last {
                        Some(name) => format!("--{name} takes no value"),
                        None => "an option is given a value that it does not take".into(),
                    });
                }
            };
            let value = match option.value {
                None => None,
                Some(placeholder) => Some(
                    parser
                        .value()
                        .map_err(|_| format!("--{} needs a value: {placeholder}", option.long))?,
                ),
            };
            words.options.push((option, value));
        }
    }

    /// Refuses options of other commands.
    fn check(&self, spec: &Spec) -> Result<()> {
        for (option, _) in &self.options {
            if !spec.options().any(|known| known.long == option.long) {
                return Err(format!("--{} does not go with {}", option.long, spec.name));
            }
        }
        for once in ["participant", "custom", "schema", "if-version", "shard"] {
            if self
                .options
                .iter()
                .filter(|(option, _)| option.long == once)
                .count()
                > 1
            {
                return Err(format!("--{once} is given more than once"));
            }
        }
        Ok(())
    }

    fn has(&self, name: &str) -> bool {
        self.options.iter().any(|(option, _)| option.long == name)
    }

    /// The last value of an option.
    fn value(&self, name: &str) -> Option<&OsStr> {
        let mut found = self.options.iter().rev();
        found
            .find(|(option, _)| option.long == name)
            .and_then(|(_, value)| value.as_deref())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.value(name).map(PathBuf::from)
    }

    fn text(&self, name: &str) -> Result<Option<String>> {
        self.value(name)
            .map(|value| {
                let text = value.to_str().map(str::to_owned);
                text.ok_or_else(|| format!("the value of --{name} is not valid UTF-8"))
            })
            .transpose()
    }

    fn number(&self, name: &str, least: u64, most: u64) -> Result<Option<u64>> {
        self.value(name)
            .map(|value| {
                value
                    .to_str()
                    .and_then(|text| text.parse().ok())
                    .filter(|number| (least..=most).contains(number))
                    .ok_or_else(|| format!("--{name} takes a number from {least} to {most}"))
            })
            .transpose()
    }

    fn no_more(&self, message: &str) -> Result<()> {
        match self.values.is_empty() {
            true => Ok(()),
            false => Err(format!("{message}, but more words are given")),
        }
    }
}

fn forward(words: &mut Words) -> Result<Forward> {
    if words.values.is_empty() {
        return Err("forward takes one audit file: give its name".into());
    }
    let log = PathBuf::from(words.values.remove(0));
    words.no_more("forward takes one audit file")?;
    let (mut secret_files, mut headers) = (Vec::new(), Vec::new());
    for (option, value) in &words.options {
        match (option.long, value) {
            ("secret-file", Some(file)) => secret_files.push(PathBuf::from(file)),
            ("header", Some(word)) => headers.push(super::forward::header(word)?),
            _ => {}
        }
    }
    let url = words.text("url")?;
    match (&url, words.has("stdout")) {
        (None, false) => return Err("forward needs --url URL or --stdout".into()),
        (Some(_), true) => return Err("give only one of --url and --stdout".into()),
        (None, true) if !secret_files.is_empty() || !headers.is_empty() => {
            return Err("--secret-file and --header need --url URL".into());
        }
        _ => {}
    }
    let max_attempts = words.number("max-attempts", 1, u64::from(u32::MAX))?;
    Ok(Forward {
        log,
        url,
        secret_files,
        headers,
        cursor: words.path("cursor"),
        dead_letters: words.path("dead-letters"),
        max_attempts: max_attempts.map(|n| n as u32),
        follow: words.has("follow"),
        settle: words.has("settle"),
        secure_values: words.has("secure-values"),
        metrics: words.path("metrics"),
    })
}

/// Whether a word is one that a person would give an option, rather than a value.
fn is_name(word: &str) -> bool {
    word.len() <= 24 && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
}

fn client(words: &mut Words) -> Result<ClientOptions> {
    let options = ClientOptions {
        credentials: words.path("credentials"),
        settings: words.path("settings"),
        rate: words.number("rate", 0, 1_000_000)?.map(|rate| rate as u32),
        audit: words.path("audit"),
        audit_strict: words.has("audit-strict"),
        audit_values: words.has("audit-values"),
        refuse_ended: words.has("refuse-ended"),
        schema_file: words.path("schema-file"),
    };
    for name in ["audit-strict", "audit-values"] {
        if words.has(name) && options.audit.is_none() {
            return Err(format!("--{name} needs --audit FILE"));
        }
    }
    if options.credentials.is_some() && options.settings.is_some() {
        return Err("give only one of --credentials and --settings".into());
    }
    Ok(options)
}

fn batch(words: &mut Words) -> Result<Batch> {
    let batch = Batch {
        input: input(words)?,
        results: words.path("results"),
        resume: words.has("resume"),
        retry_failed: words.has("retry-failed"),
        failed: words.path("failed"),
        metrics: words.path("metrics"),
        exit_zero: words.has("exit-zero"),
        workers: words.number("workers", 1, 1_024)?.unwrap_or(8) as usize,
        stop_after: words.number("stop-after", 1, u64::MAX)?,
        max_outage: words.number("max-outage", 0, 31_536_000)?.unwrap_or(600),
        mode: match (words.has("dry-run"), words.has("diff")) {
            (true, true) => return Err("give only one of --dry-run and --diff".into()),
            (true, false) => Mode::DryRun,
            (false, true) => Mode::Diff,
            (false, false) => Mode::Run,
        },
        verify: words.has("verify"),
    };
    if batch.resume && batch.results.is_none() {
        return Err("--resume needs --results FILE".into());
    }
    if batch.retry_failed && !batch.resume {
        return Err("--retry-failed needs --resume".into());
    }
    Ok(batch)
}

fn input(words: &mut Words) -> Result<Input> {
    if words.values.len() > 1 {
        return Err("give one input file, or - for standard input".into());
    }
    let file = words.values.pop().filter(|name| name != "-");
    let shard = words.text("shard")?;
    let delimiter = words.text("delimiter")?;
    let delimiter = delimiter.as_deref().map(delimiter_of).transpose()?;
    Ok(Input {
        file: file.map(PathBuf::from),
        delimiter: delimiter.or(words.has("csv").then_some(b',')),
        shard: shard.as_deref().map(shard_of).transpose()?,
    })
}

fn delimiter_of(text: &str) -> Result<u8> {
    match text.as_bytes() {
        b"tab" | b"\\t" => Ok(b'\t'),
        [byte] if byte.is_ascii_punctuation() && *byte != b'"' || *byte == b'\t' => Ok(*byte),
        _ => Err("--delimiter takes one character, such as ';', or the word tab".into()),
    }
}

fn shard_of(text: &str) -> Result<Shard> {
    text.split_once('/')
        .and_then(|(index, count)| Some((index.parse::<u64>().ok()?, count.parse::<u64>().ok()?)))
        .filter(|(index, count)| (1..=*count).contains(index) && *count <= 1_000_000)
        .map(|(index, count)| Shard {
            index: index - 1,
            count,
        })
        .ok_or_else(|| "--shard takes I/N, such as 2/4: part 2 of 4".into())
}

/// The update that the address options make, without any attribute yet, and whether one of them
/// named its target.
fn addressed(words: &mut Words) -> Result<(Update, bool)> {
    if words.values.is_empty() {
        return Err("give a conversation id".into());
    }
    let conversation = words.values.remove(0);
    let conversation = conversation
        .to_str()
        .ok_or("the conversation id is not valid UTF-8")?;
    // It would be sent as part of an address, and shown. No id holds such a sign.
    if conversation.contains('=') {
        return Err(
            "the first word looks like an attribute: give the conversation id before it".into(),
        );
    }
    let (participant, custom) = (words.text("participant")?, words.text("custom")?);
    if participant.as_ref().is_some_and(|who| who.contains('=')) {
        return Err(
            "the value of --participant looks like an attribute: give a purpose or an id".into(),
        );
    }
    let given = [
        participant.is_some(),
        words.has("secure"),
        custom.is_some(),
        words.has("conversation"),
    ];
    if given.iter().filter(|given| **given).count() > 1 {
        return Err("give only one of --participant, --secure, --custom and --conversation".into());
    }
    let update = match (participant, custom) {
        (Some(who), _) => Update::participant(conversation, who),
        (_, Some(record)) => Update::custom(conversation, record),
        _ if words.has("secure") => Update::secure(conversation),
        _ => Update::conversation(conversation),
    };
    let update = match words.text("schema")? {
        Some(_) if !words.has("custom") => return Err("--schema needs --custom RECORD".into()),
        Some(schema) => update.schema(schema),
        None => update,
    };
    Ok((update, given.contains(&true)))
}

fn change(words: &mut Words) -> Result<Change> {
    let (mut update, target_given) = addressed(words)?;
    if words.has("unlocked") {
        if !words.has("secure") {
            return Err("--unlocked needs --secure".into());
        }
        update = update.unlocked();
    }
    for (option, value) in &words.options {
        if let ("remove", Some(key)) = (option.long, value) {
            let key = key
                .to_str()
                .ok_or("the value of --remove is not valid UTF-8")?;
            update = update.remove(key);
        }
    }
    if let Some(version) = words.text("if-version")? {
        update = update.if_version(version);
    }
    if words.has("skip-unchanged") {
        update = update.skip_unchanged();
    }
    let words_of = |(index, word): (usize, &OsString)| assignment(index + 1, word);
    let assignments = words.values.iter().enumerate().map(words_of);
    let assignments = assignments.collect::<Result<Vec<_>>>()?;
    let from_stdin = |a: &&Assignment| matches!(a.value, Given::StandardInput);
    if assignments.iter().filter(from_stdin).count() > 1 {
        return Err("only one value can be read from standard input".into());
    }
    Ok(Change {
        update,
        assignments,
        target_given,
        dry_run: words.has("dry-run"),
        verify: words.has("verify"),
    })
}

fn assignment(number: usize, word: &OsStr) -> Result<Assignment> {
    // The word itself may be a value whose name was forgotten: only its number is told.
    let word = word
        .to_str()
        .ok_or_else(|| format!("attribute {number} is not valid UTF-8"))?;
    // The first '=' decides, so that text may hold any character.
    let (key, text) = word.split_once('=').ok_or_else(|| {
        format!("attribute {number} (after the conversation) is neither KEY=TEXT nor KEY:=JSON")
    })?;
    let (key, is_json) = match key.strip_suffix(':') {
        Some(key) => (key, true),
        None => (key, false),
    };
    let value = match text.strip_prefix('@') {
        Some("-") => Given::StandardInput,
        Some("") => return Err(format!("{key:?} is followed by =@, but by no file name")),
        Some(file) => Given::File(PathBuf::from(file)),
        None => Given::Text(text.to_owned()),
    };
    Ok(Assignment {
        key: key.to_owned(),
        is_json,
        value,
    })
}
