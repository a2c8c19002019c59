//! The help, the man page and the completions.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::options::{Options, SHARED};

/// What an exit status means.
struct Exit {
    status: &'static str,
    short: &'static str,
    meaning: &'static str,
    /// The commands that end with it; all if it is empty.
    commands: &'static [&'static str],
}

const EXITS: [Exit; 13] = [
    Exit {
        status: "0",
        short: "done",
        meaning: "all is done, in place or valid",
        commands: &[],
    },
    Exit {
        status: "1",
        short: "failed",
        meaning: "an update or a line failed, was skipped or would be refused (batch --exit-zero: 0)",
        commands: &[
            "update",
            "get",
            "participants",
            "batch",
            "validate",
            "forward",
            "check",
        ],
    },
    Exit {
        status: "2",
        short: "usage",
        meaning: "the command line, the settings or a file is wrong, or a file or standard output \
                  can't be written",
        commands: &[],
    },
    Exit {
        status: "3",
        short: "refused",
        meaning: "credentials or a permission are missing; or a batch stopped early: \
                  --stop-after, nothing permitted, or the endpoint is not offered",
        commands: &["update", "get", "participants", "batch", "forward", "check"],
    },
    Exit {
        status: "4",
        short: "no reader",
        meaning: "a batch stopped early: standard output was closed",
        commands: &["batch"],
    },
    Exit {
        status: "5",
        short: "throttled",
        meaning: "the platform asks to wait longer than the client waits; repeat the command \
                  after the time that the error names",
        commands: &["update", "get", "participants", "batch", "check"],
    },
    Exit {
        status: "6",
        short: "unreachable",
        meaning: "the platform can't be reached or keeps failing; repeat the command later",
        commands: &["update", "get", "participants", "batch", "forward", "check"],
    },
    Exit {
        status: "7",
        short: "audit lost",
        meaning: "the updates were made, but audit records were lost",
        commands: &["update", "batch"],
    },
    Exit {
        status: "8",
        short: "in use",
        meaning: "another forwarder uses the cursor: it goes on, and there is nothing to do",
        commands: &["forward"],
    },
    Exit {
        status: "9",
        short: "no receiver",
        meaning: "the receiver took no event for --max-outage; repeat the command later",
        commands: &["forward"],
    },
    Exit {
        status: "129",
        short: "SIGHUP",
        meaning: "SIGHUP stopped the command; repeat it later",
        commands: &["batch", "forward"],
    },
    Exit {
        status: "130",
        short: "SIGINT",
        meaning: "SIGINT stopped the command; repeat it later",
        commands: &["batch", "forward"],
    },
    Exit {
        status: "143",
        short: "SIGTERM",
        meaning: "SIGTERM stopped the command; repeat it later",
        commands: &["batch", "forward"],
    },
];

const ENVIRONMENT: [&str; 4] = [
    "GENESYS_CLOUD_REGION, GENESYS_CLOUD_CLIENT_ID, GENESYS_CLOUD_CLIENT_SECRET",
    "or GENESYSCLOUD_REGION with GENESYSCLOUD_ACCESS_TOKEN, or with",
    "   GENESYSCLOUD_OAUTHCLIENT_ID and GENESYSCLOUD_OAUTHCLIENT_SECRET",
    "GENESYS_CLOUD_BASE_URL for a sandbox or gateway, and GENESYS_CLOUD_LOGIN_URL",
];

fn exits_of(command: &str) -> impl Iterator<Item = &'static Exit> {
    let has = move |exit: &&Exit| exit.commands.is_empty() || exit.commands.contains(&command);
    EXITS.iter().filter(has)
}

pub(crate) fn version() -> String {
    format!("genesys-attributes {}\n", env!("CARGO_PKG_VERSION"))
}

/// The program with its help.
pub(crate) fn program() -> Command {
    let program = Options::command().no_binary_name(true).term_width(80);
    let shared: Vec<Arg> = program
        .find_subcommand("update")
        .into_iter()
        .chain([&program])
        .flat_map(Command::get_arguments)
        .filter(|option| heading(option).is_some())
        .cloned()
        .collect();
    let overview = overview(&shared);
    program
        .mut_subcommands(with_help)
        .mut_args(|option| option.hide_short_help(true))
        .after_help(overview)
}

/// The heading of an option that all commands share.
fn heading(option: &Arg) -> Option<&str> {
    option
        .get_help_heading()
        .filter(|heading| SHARED.contains(heading))
}

/// Adds what follows the options: names of the shared ones, examples and exit statuses.
fn with_help(command: Command) -> Command {
    let mut shared = Vec::new();
    for title in SHARED {
        let options = command
            .get_opts()
            .filter(|option| heading(option) == Some(title));
        shared.extend(
            options
                .filter_map(Arg::get_long)
                .map(|long| format!("--{long}")),
        );
    }
    shared.extend(["--json", "--quiet", "--verbose"].map(str::to_owned));
    let mut text = format!(
        "More (genesys-attributes --help): {}\n\n",
        shared.join(", ")
    );
    for example in examples(&command).lines() {
        let _ = writeln!(text, "$ {example}");
    }
    let exits: Vec<String> = exits_of(command.get_name())
        .map(|exit| format!("{} {}", exit.status, exit.short))
        .collect();
    let _ = write!(text, "Exit status: {}", exits.join(", "));
    command
        .mut_args(|option| match heading(&option) {
            Some(_) => option.hide_short_help(true),
            None => option,
        })
        .after_help(text)
}

fn examples(command: &Command) -> String {
    let text = command.get_after_help().map(ToString::to_string);
    text.unwrap_or_default()
}

fn overview(shared: &[Arg]) -> String {
    let mut text = String::new();
    for title in SHARED {
        let _ = writeln!(text, "{title}:");
        for option in shared
            .iter()
            .filter(|option| heading(option) == Some(title))
        {
            let help = option.get_help().map(ToString::to_string);
            let _ = writeln!(
                text,
                "  {:<20}  {}",
                shown(option),
                help.unwrap_or_default()
            );
        }
    }
    text += "\nEnvironment, where neither --credentials nor --settings is given:\n";
    for line in ENVIRONMENT {
        let _ = writeln!(text, "  {line}");
    }
    text += "\nExit status:\n";
    for exit in &EXITS {
        let _ = writeln!(text, "  {:>3}  {}", exit.status, exit.short);
    }
    text.truncate(text.trim_end().len());
    text
}

fn shown(option: &Arg) -> String {
    let mut text = option
        .get_short()
        .map_or_else(String::new, |letter| format!("-{letter}, "));
    let _ = write!(text, "--{}", option.get_long().unwrap_or_default());
    for value in option
        .get_value_names()
        .filter(|_| option.get_action().takes_values())
        .into_iter()
        .flatten()
    {
        let _ = write!(text, " {value}");
    }
    text
}

/// The line that shows how a command is called.
pub(crate) fn usage(command: &Command) -> String {
    let usage = command.clone().render_usage().to_string();
    usage.trim_start_matches("Usage:").trim().to_owned()
}

pub(crate) fn command_names() -> String {
    let program = Options::command();
    let names: Vec<&str> = program.get_subcommands().map(Command::get_name).collect();
    names.join(", ")
}

/// The completions for a shell.
pub(crate) fn completions(shell: Shell) -> String {
    let mut text = Vec::new();
    clap_complete::generate(
        shell,
        &mut Options::command(),
        "genesys-attributes",
        &mut text,
    );
    String::from_utf8_lossy(&text).into_owned()
}

/// The man page: one for all commands.
pub(crate) fn man() -> String {
    let mut page = Vec::new();
    let mut program = Options::command();
    program.build();
    let whole = Man::new(program.clone());
    // Writing to memory does not fail.
    let _ = whole.render_title(&mut page);
    let _ = whole.render_name_section(&mut page);
    let _ = whole.render_synopsis_section(&mut page);
    let _ = whole.render_description_section(&mut page);
    let _ = whole.render_options_section(&mut page);
    for command in program.get_subcommands() {
        let section = Man::new(command.clone().disable_help_flag(true));
        let mut text = Vec::new();
        let _ = section.render_synopsis_section(&mut text);
        let _ = section.render_description_section(&mut text);
        let _ = section.render_options_section(&mut text);
        let text = String::from_utf8_lossy(&text).replace(".SH ", ".SS ");
        let title = command.get_name().to_uppercase();
        let examples = roff(&examples(command));
        let exits: Vec<&str> = exits_of(command.get_name())
            .map(|exit| exit.status)
            .collect();
        let exits = exits.join(", ");
        page.extend_from_slice(
            format!(
                ".SH {title}\n{text}.SS EXAMPLES\n.nf\n{examples}\n.fi\n.SS EXIT STATUS\n{exits}\n"
            )
            .as_bytes(),
        );
    }
    let mut text = String::from_utf8_lossy(&page).into_owned();
    text += ".SH ENVIRONMENT\n";
    for line in ENVIRONMENT {
        let _ = writeln!(text, "{}\n.br", roff(line.trim_start()));
    }
    text += ".SH EXIT STATUS\n";
    for exit in &EXITS {
        let _ = writeln!(text, ".TP\n.B {}\n{}", exit.status, roff(exit.meaning));
    }
    text
}

/// Text that roff takes as it is.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use clap::{ArgAction, ValueEnum};

    use super::*;

    fn commands() -> Vec<Command> {
        let mut program = program();
        program.build();
        program.get_subcommands().cloned().collect()
    }

    #[test]
    fn help_of_each_command_fits_a_screen_and_names_every_option() {
        for mut command in commands() {
            let text = command.render_help().to_string();
            let name = command.get_name();
            let lines: Vec<&str> = text.lines().collect();
            assert!(
                lines.len() <= 42,
                "{name} has {} lines:\n{text}",
                lines.len()
            );
            for line in &lines {
                assert!(line.chars().count() <= 80, "{name}: {line}");
            }
            assert_eq!(
                lines.iter().filter(|line| line.starts_with("$ ")).count(),
                2,
                "{name}"
            );
            assert!(text.contains("Exit status: 0 "), "{name}");
            let most = ["help", "version"];
            for long in command.get_opts().filter_map(Arg::get_long) {
                assert!(
                    most.contains(&long) || text.contains(&format!("--{long}")),
                    "{name} {long}"
                );
            }
            for exit in exits_of(name) {
                assert!(text.contains(exit.status), "{name} {}", exit.status);
            }
        }
        let overview = program().render_help().to_string();
        for line in overview.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        for title in SHARED {
            assert!(overview.contains(&format!("\n{title}:\n  -")), "{overview}");
        }
    }

    #[test]
    fn completions_and_man_page_have_every_option_and_status() {
        let man = man();
        for exit in &EXITS {
            assert!(man.contains(&format!(".B {}\n", exit.status)));
        }
        for shell in Shell::value_variants() {
            let text = completions(*shell);
            for command in commands() {
                assert!(
                    text.contains(command.get_name()),
                    "{shell}: {}",
                    command.get_name()
                );
                for long in command.get_opts().filter_map(Arg::get_long) {
                    assert!(text.contains(long), "{shell}: {long}");
                    assert!(man.contains(&long.replace('-', "\\-")), "{long}");
                }
            }
        }
    }

    #[test]
    fn zsh_offers_again_what_may_be_repeated_and_nothing_else() {
        let text = completions(Shell::Zsh);
        for option in commands().iter().flat_map(Command::get_opts) {
            let long = option.get_long().unwrap_or_default();
            let repeated = matches!(option.get_action(), ArgAction::Append);
            assert_eq!(text.contains(&format!("*--{long}=")), repeated, "{long}");
            let help = option
                .get_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert_eq!(help.contains("may be repeated"), repeated, "{long}");
        }
    }
}
