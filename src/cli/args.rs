//! The command line: words in, options out. Nothing is opened or sent here. No message holds more
//! of the words than the names of options: anything else may be a value.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, FromArgMatches};
use genesys_attributes::Update;

use super::help;
use super::options::{Address, Change, Command, Options, Which};
use super::words::{Assignment, Given, assignment};

type Result<T> = std::result::Result<T, String>;

/// What a command line asks for.
pub(crate) enum Parsed {
    /// Text to print.
    Text(String),
    Run(Box<Options>),
}

/// True if JSON is asked for, also where the words cannot be understood.
pub(crate) fn wants_json(words: &[OsString]) -> bool {
    let mut options = words.iter().take_while(|word| *word != "--");
    options.any(|word| word == "--json")
}

pub(crate) fn parse(mut words: Vec<OsString>) -> Result<Parsed> {
    if words.first().is_some_and(|word| word == "help") {
        words.remove(0);
        words.push("--help".into());
    }
    let matches: ArgMatches = match help::program().try_get_matches_from(&words) {
        Ok(matches) => matches,
        Err(error) => {
            return match error.kind() {
                ErrorKind::DisplayHelp => Ok(Parsed::Text(error.to_string())),
                ErrorKind::DisplayVersion => Ok(Parsed::Text(help::version())),
                _ => Err(explained(&error, &words)),
            };
        }
    };
    let mut options =
        Options::from_arg_matches(&matches).map_err(|error| explained(&error, &words))?;
    match &mut options.command {
        Command::Batch(batch) => batch.input.file.take_if(|path| path.as_os_str() == "-"),
        Command::Validate(asked) => asked.input.file.take_if(|path| path.as_os_str() == "-"),
        _ => None,
    };
    Ok(Parsed::Run(Box::new(options.with_client())))
}

/// A wrong command line in our own words: clap's hold the values.
fn explained(error: &clap::Error, words: &[OsString]) -> String {
    let program = help::program();
    let command = words.iter().find_map(|word| program.find_subcommand(word));
    let name = command.map_or("genesys-attributes", |command| command.get_name());
    // Names of options and placeholders, as they are defined here.
    let named = |kind| match error.get(kind) {
        Some(ContextValue::String(name)) => first_word(name),
        Some(ContextValue::Strings(names)) => {
            let names: Vec<String> = names.iter().map(|name| first_word(name)).collect();
            names.join(" and ")
        }
        _ => String::new(),
    };
    let option = || named(ContextKind::InvalidArg);
    let meant = |kind| match named(kind) {
        near if near.is_empty() => near,
        near => format!(" (did you mean {near}?)"),
    };
    let problem = match error.kind() {
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            format!("give a command: {}", help::command_names())
        }
        ErrorKind::InvalidSubcommand => format!(
            "unknown command{}: use {}",
            meant(ContextKind::SuggestedSubcommand),
            help::command_names()
        ),
        ErrorKind::UnknownArgument => unknown(&program, name, &option()).unwrap_or_else(|shown| {
            format!("unknown option{shown}{}", meant(ContextKind::SuggestedArg))
        }),
        ErrorKind::ArgumentConflict => match (option(), named(ContextKind::PriorArg)) {
            (one, other) if one == other || other.is_empty() => {
                format!("{one} is given more than once: give it once")
            }
            (one, other) => format!("{one} does not go with {other}: leave one of them out"),
        },
        ErrorKind::MissingRequiredArgument => {
            let missing = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::Strings(names)) => names.join(" and "),
                _ => option(),
            };
            let missing = missing.replace(['<', '>'], "").replace('|', " or ");
            match missing.starts_with("--") {
                true => format!("{name} with these options needs {missing}"),
                false => format!("{name} needs {missing}"),
            }
        }
        ErrorKind::TooManyValues => format!("{} takes no value", option()),
        ErrorKind::ValueValidation => {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            format!(
                "{} {}",
                option(),
                cause.unwrap_or_else(|| "has a wrong value".into())
            )
        }
        ErrorKind::InvalidValue => match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(values)) if !values.is_empty() => {
                let option = option().replace(['<', '>'], "");
                format!("{option} is one of {}", values.join(", "))
            }
            _ => format!("{} needs a value", option()),
        },
        ErrorKind::InvalidUtf8 => {
            let at = words.iter().position(|word| word.to_str().is_none());
            format!("word {} is not valid UTF-8", at.map_or(0, |at| at + 1))
        }
        _ => "the command line can't be understood".to_owned(),
    };
    match command {
        Some(_) => format!("{problem}\nTry 'genesys-attributes {name} --help'."),
        None => format!("{problem}\nTry 'genesys-attributes --help'."),
    }
}

/// The name in "--workers <N>".
fn first_word(shown: &str) -> String {
    shown.split(' ').next().unwrap_or_default().to_owned()
}

/// What is wrong with a word that no option is, or how to show its name.
fn unknown(
    program: &clap::Command,
    command: &str,
    typed: &str,
) -> std::result::Result<String, String> {
    let Some(long) = typed.strip_prefix("--") else {
        if typed.starts_with('-') {
            let shown = typed.len() == 2 && typed.ends_with(|c: char| c.is_ascii_alphabetic());
            return Err(format!(" {}", if shown { typed } else { "" }));
        }
        let usage = program.find_subcommand(command).map(help::usage);
        let usage = usage.unwrap_or_default();
        return Ok(format!("there are too many words: the command is {usage}"));
    };
    let has = |command: &clap::Command| command.get_opts().any(|o| o.get_long() == Some(long));
    if program.get_subcommands().any(has) {
        return Ok(match program.find_subcommand(command) {
            Some(known) if !has(known) => format!("--{long} does not go with {command}"),
            Some(_) => format!("--{long} stands before {command}: put it after"),
            None => format!("--{long} stands before a command: put it after"),
        });
    }
    // A word that a person would give an option, rather than a value.
    let is_name = long.len() <= 24 && long.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    Err(match is_name {
        true => format!(" --{long}"),
        false => String::new(),
    })
}

impl Which {
    /// An update of this store without any attribute; `None` where no option names one.
    pub(crate) fn update(&self, conversation: &str) -> Option<Update> {
        match (&self.participant, &self.custom) {
            (Some(who), _) => Some(Update::participant(conversation, who)),
            (_, Some(record)) => Some(Update::custom(conversation, record)),
            _ if self.secure => Some(Update::secure(conversation)),
            _ => self
                .conversation
                .then(|| Update::conversation(conversation)),
        }
    }
}

impl Address {
    /// An update of it without any attribute.
    pub(crate) fn update(&self) -> Result<Update> {
        self.which.update(&self.id).ok_or_else(|| {
            "no target is given: name one by --participant WHO, --secure, --custom RECORD or \
             --conversation"
                .into()
        })
    }
}

impl Change {
    /// The update without the attributes that are set.
    pub(crate) fn update(&self) -> Result<Update> {
        let mut update = self.address.update()?;
        if self.unlocked {
            if !self.address.which.secure {
                return Err("--unlocked needs --secure".into());
            }
            update = update.unlocked();
        }
        if let Some(schema) = &self.schema {
            if self.address.which.custom.is_none() {
                return Err("--schema needs --custom RECORD".into());
            }
            update = update.schema(schema);
        }
        for key in &self.remove {
            update = update.remove(key);
        }
        if let Some(version) = &self.if_version {
            update = update.if_version(version);
        }
        if self.skip_unchanged {
            update = update.skip_unchanged();
        }
        Ok(match self.guards.verify {
            true => update.verify(),
            false => update,
        })
    }

    /// The attributes that are set.
    pub(crate) fn assignments(&self) -> Result<Vec<Assignment>> {
        let mut found: Vec<Assignment> = Vec::new();
        for (index, word) in self.words.iter().enumerate() {
            let new = assignment(index + 1, word)?;
            if found.iter().any(|other| other.key == new.key) {
                return Err(format!("{:?} is set more than once: set it once", new.key));
            }
            found.push(new);
        }
        let from_stdin = |a: &&Assignment| a.value == Given::StandardInput;
        match found.iter().filter(from_stdin).count() > 1 {
            true => Err("only one value can be read from standard input".into()),
            false => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &str = "DE89370400440532013000";

    fn refused(words: &[&str]) -> String {
        match parse(words.iter().map(OsString::from).collect()) {
            Err(text) => text,
            Ok(_) => panic!("{words:?} is taken"),
        }
    }

    /// One command line for each kind of error that clap knows.
    #[test]
    fn each_kind_of_error_says_what_is_wrong_and_no_value() {
        for (words, why) in [
            (&["get", "c", "--secure", VALUE][..], "too many words"),
            (
                &["batch", "--iban=DE89370400440532013000"],
                "unknown option --iban",
            ),
            (&["batch", "--DE89370400440532013000"], "unknown option\n"),
            (&["batch", "--wrokers", VALUE], "did you mean --workers?"),
            (
                &["get", VALUE, "--secure", "--results", VALUE],
                "--results does not go with get",
            ),
            (
                &["--workers", VALUE, "batch"],
                "--workers stands before batch",
            ),
            (
                &["batch", "--workers", VALUE],
                "--workers takes a number from 1 to 1024",
            ),
            (&["batch", "--shard", VALUE], "--shard takes I/N"),
            (
                &["forward", VALUE, "--stdout", "--header", VALUE],
                "--header takes NAME=@FILE",
            ),
            (&["completions", VALUE], "SHELL is one of bash"),
            (&["batch", VALUE, "--results"], "--results needs a value"),
            (
                &["batch", "--resume=DE89370400440532013000"],
                "--resume takes no value",
            ),
            (
                &["update", VALUE, "--secure", "--custom", VALUE],
                "--secure does not go with --custom",
            ),
            (
                &["batch", "--results", VALUE, "--results", VALUE],
                "--results is given more than once",
            ),
            (&["batch", "-qq"], "--quiet is given more than once"),
            (&["update"], "update needs CONVERSATION"),
            (&["batch", VALUE, "--resume"], "needs --results FILE"),
            (&["forward"], "forward needs AUDIT-FILE"),
            (&[], "give a command: update, get"),
            (&[VALUE], "unknown command: use update, get"),
            (&["updaet", VALUE], "did you mean update?"),
        ] {
            let text = refused(words);
            assert!(text.contains(why), "{words:?}: {text}");
            assert!(!text.contains("DE89"), "{words:?}: {text}");
            assert!(text.contains(" --help'."), "{words:?}: {text}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn word_that_is_not_utf8_is_named_by_its_number() {
        use std::os::unix::ffi::OsStringExt;
        let bad = OsString::from_vec(b"DE89\xff".to_vec());
        let words = vec!["get".into(), bad, "--secure".into()];
        let text = parse(words).err().unwrap_or_default();
        assert!(
            text.starts_with("word 2 is not valid UTF-8") && !text.contains("DE89"),
            "{text}"
        );
    }

    /// Whatever a value looks like, no option shows it.
    #[test]
    fn no_option_of_any_command_shows_its_value() {
        let mut program = help::program();
        program.build();
        for command in program.get_subcommands() {
            for option in command.get_opts() {
                let long = format!("--{}", option.get_long().unwrap_or_default());
                for words in [
                    vec![
                        command.get_name().to_owned(),
                        format!("{long}={VALUE}"),
                        VALUE.into(),
                    ],
                    vec![
                        command.get_name().to_owned(),
                        long.clone(),
                        VALUE.into(),
                        long,
                        VALUE.into(),
                    ],
                ] {
                    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
                    if let Err(text) = parse(words.clone()) {
                        assert!(!text.contains("DE89"), "{words:?}: {text}");
                    }
                }
            }
        }
    }
}
