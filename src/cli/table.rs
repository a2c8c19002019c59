//! Every command and option once: the parser, the help, the completions and the man page are all
//! made from these tables.

/// One option.
pub(crate) struct Opt {
    pub(crate) long: &'static str,
    pub(crate) short: Option<char>,
    /// The placeholder of its value, for an option that takes one.
    pub(crate) value: Option<&'static str>,
    pub(crate) help: &'static str,
}

/// One command.
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    /// What follows the name, in the usage line.
    pub(crate) usage: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) about: &'static str,
    pub(crate) groups: &'static [Group],
}

pub(crate) struct Group {
    pub(crate) title: &'static str,
    pub(crate) options: &'static [Opt],
}

impl Spec {
    pub(crate) fn options(&self) -> impl Iterator<Item = &'static Opt> + use<> {
        let groups: &'static [Group] = self.groups;
        groups.iter().flat_map(|group| group.options)
    }
}

const fn flag(long: &'static str, help: &'static str) -> Opt {
    Opt {
        long,
        short: None,
        value: None,
        help,
    }
}

const fn with(long: &'static str, value: &'static str, help: &'static str) -> Opt {
    Opt {
        long,
        short: None,
        value: Some(value),
        help,
    }
}

const fn short(letter: char, long: &'static str, help: &'static str) -> Opt {
    Opt {
        long,
        short: Some(letter),
        value: None,
        help,
    }
}

const ADDRESS: Group = Group {
    title: "What is addressed (default: the conversation itself, which is then said)",
    options: &[
        with(
            "participant",
            "WHO",
            "a participant: customer, purpose:NAME or a participant id",
        ),
        flag("secure", "the secure attributes"),
        with("custom", "RECORD", "a record of custom attributes"),
        with(
            "schema",
            "ID",
            "with --custom: create the record with this schema if it is absent",
        ),
        flag(
            "conversation",
            "the conversation itself, through the conversation-level endpoint, which today's \
             public API does not offer",
        ),
    ],
};

const CHANGE: Group = Group {
    title: "What is written",
    options: &[
        with("if-version", "V", "write only on this version"),
        flag(
            "skip-unchanged",
            "read first, and do not write what is in place",
        ),
        with("remove", "KEY", "remove a key (secure attributes)"),
        flag("unlocked", "with --secure: no read, no lock"),
        flag("dry-run", "read, show what would change, and write nothing"),
    ],
};

const CARE: Group = Group {
    title: "Care",
    options: &[
        flag(
            "verify",
            "after a write read back until the values are there",
        ),
        flag(
            "refuse-ended",
            "fail instead of warn where a read shows that the conversation has ended",
        ),
    ],
};

const CHECKS: Group = Group {
    title: "Checks",
    options: &[with(
        "schema-file",
        "FILE",
        "check keys and values by the schema in FILE as well, as JSON; before anything is sent",
    )],
};

const INPUT: Group = Group {
    title: "Input",
    options: &[
        flag(
            "csv",
            "the input is CSV with a header row: conversationId and, where wanted, participant, \
             target, record, schema, ifVersion, skipUnchanged and unlocked; every other column \
             is an attribute of text, or of JSON where its header ends in ':'; an empty cell \
             sets nothing; attr:NAME is the attribute NAME whatever it resembles",
        ),
        with(
            "delimiter",
            "CHAR",
            "the input is CSV whose cells are separated by this character, such as ';', or tab; \
             --csv alone is ','",
        ),
        with(
            "shard",
            "I/N",
            "take only the lines of part I of N: those whose conversation id has an FNV-1a hash \
             (64 bits) of I-1 modulo N",
        ),
    ],
};

const OUTCOMES: Group = Group {
    title: "Outcomes",
    options: &[
        with(
            "results",
            "FILE",
            "write the outcomes there instead of standard output",
        ),
        flag(
            "resume",
            "go on with the results file: run what has no final outcome in it yet",
        ),
        flag(
            "retry-failed",
            "with --resume: also what failed for good; such lines may have been corrected",
        ),
        with(
            "failed",
            "FILE",
            "write the input lines that failed or were skipped there, as input for a next run; \
             a file of that name is replaced at the end",
        ),
        with(
            "metrics",
            "FILE",
            "write metrics there as Prometheus text, every 15 s and at the end",
        ),
        flag(
            "exit-zero",
            "failed and skipped lines do not make the exit status 1",
        ),
    ],
};

const COURSE: Group = Group {
    title: "Course",
    options: &[
        with("workers", "N", "updates at the same time (default 8)"),
        with("stop-after", "N", "stop after N failed lines"),
        with(
            "max-outage",
            "SECONDS",
            "how long the platform may be out of reach before the batch stops (default 600)",
        ),
        flag("dry-run", "check and count; nothing is sent or written"),
        flag(
            "diff",
            "read, and print for each line what would change; nothing is written",
        ),
    ],
};

const DELIVERY: Group = Group {
    title: "Delivery",
    options: &[
        with(
            "url",
            "URL",
            "POST each event there: https, or http on loopback",
        ),
        flag(
            "stdout",
            "print each event as a line of JSON instead, for a queue's producer",
        ),
        with(
            "secret-file",
            "FILE",
            "sign with the secrets in FILE (whsec_..., one a line); may be given more than once",
        ),
        with(
            "header",
            "NAME=@FILE",
            "send a header field with the value in FILE; may be given more than once",
        ),
        with(
            "cursor",
            "FILE",
            "where to go on (default: the audit file's name with .cursor)",
        ),
        with(
            "dead-letters",
            "FILE",
            "append what the receiver refuses for good there, as JSON lines",
        ),
        with(
            "max-attempts",
            "N",
            "give an event up after N attempts (default: never)",
        ),
        flag("follow", "wait for more, until SIGINT or SIGTERM"),
        flag(
            "settle",
            "log in, and read what became of writes whose program died",
        ),
        flag(
            "secure-values",
            "with the values of secure attributes too, where the audit file holds them",
        ),
        with(
            "metrics",
            "FILE",
            "write metrics there as Prometheus text, every 15 s and at the end",
        ),
    ],
};

const SETTINGS: Group = Group {
    title: "Settings",
    options: &[
        with(
            "credentials",
            "FILE",
            "take the settings from FILE (NAME=VALUE lines; - is standard input), not from the \
             environment",
        ),
        with(
            "settings",
            "FILE",
            "take all settings of the client from FILE, as JSON (- is standard input)",
        ),
        with(
            "rate",
            "PER_MINUTE",
            "API requests a minute at most (default 300; 0 for no limit)",
        ),
    ],
};

const AUDIT: Group = Group {
    title: "Audit",
    options: &[
        with(
            "audit",
            "FILE",
            "append audit records to FILE, as JSON lines",
        ),
        flag(
            "audit-strict",
            "with --audit: nothing is written whose record cannot be",
        ),
        flag(
            "audit-values",
            "with --audit: values too, but those of secure attributes",
        ),
    ],
};

const OUTPUT: Group = Group {
    title: "Output",
    options: &[
        flag(
            "json",
            "results as JSON, and everything on standard error as JSON lines",
        ),
        short('q', "quiet", "only errors on standard error"),
        short('v', "verbose", "say what is sent"),
        short('h', "help", "this text"),
        short('V', "version", "the version"),
    ],
};

/// Every command, in the order of the help.
pub(crate) const COMMANDS: &[Spec] = &[
    Spec {
        name: "update",
        usage: "CONVERSATION KEY=TEXT KEY:=JSON ...",
        summary: "One update",
        about: "Sets attributes. KEY=TEXT sets text; KEY:=JSON a number, true or false. \
                KEY=@FILE and KEY:=@FILE take the value from a file and KEY=@- from standard \
                input, without the line end at its end: other users of the machine can see what \
                stands in a command line. Text that begins with @ is written as KEY:='\"@...\"'.",
        groups: &[ADDRESS, CHANGE, CHECKS, CARE, SETTINGS, AUDIT, OUTPUT],
    },
    Spec {
        name: "get",
        usage: "CONVERSATION",
        summary: "Print the attributes and the version as JSON",
        about: "Prints the attributes and the version as JSON.",
        groups: &[ADDRESS, SETTINGS, OUTPUT],
    },
    Spec {
        name: "batch",
        usage: "[FILE or -]",
        summary: "Run many updates: JSON lines or CSV in, JSON lines out",
        about: "Runs one update for each line of the input, those of one conversation in order. \
                The first SIGINT or SIGTERM lets what is in flight end, a second one stops at \
                once; with --results the same command with --resume goes on later.",
        groups: &[
            INPUT, CHECKS, OUTCOMES, COURSE, CARE, SETTINGS, AUDIT, OUTPUT,
        ],
    },
    Spec {
        name: "validate",
        usage: "[FILE or -]",
        summary: "Read what batch would, send nothing, and print what would be refused",
        about: "Reads what batch would, sends nothing, and prints the lines that would be \
                refused.",
        groups: &[INPUT, CHECKS, OUTPUT],
    },
    Spec {
        name: "status",
        usage: "RESULTS [FILE]",
        summary: "Count the outcomes of a batch, also while it runs",
        about: "Counts the outcomes in a results file, and what a resume would run. With the \
                input of the batch as FILE, its lines without any outcome are counted too.",
        groups: &[
            Group {
                title: "Input",
                options: &[
                    flag("csv", "FILE is CSV"),
                    with(
                        "delimiter",
                        "CHAR",
                        "FILE is CSV with this character between its cells",
                    ),
                ],
            },
            OUTPUT,
        ],
    },
    Spec {
        name: "forward",
        usage: "AUDIT-FILE",
        summary: "Send the changes in an audit file to a webhook or a queue",
        about: "Reads the audit file from where the last run ended, and delivers an event for \
                every change that was applied, in order and at least once. The audit file must \
                have been written with --audit-values. The summary, with --json too, goes to \
                standard error. A first SIGINT or SIGTERM ends it after the delivery under way: \
                with --follow that is success.",
        groups: &[DELIVERY, SETTINGS, OUTPUT],
    },
    Spec {
        name: "check",
        usage: "",
        summary: "Are the settings complete, does the login work, who am I, until when",
        about: "Logs in and asks the platform whose token it is.",
        groups: &[SETTINGS, OUTPUT],
    },
    Spec {
        name: "completions",
        usage: "bash|zsh|fish",
        summary: "Print the completions for a shell",
        about: "Prints the completions for a shell, to be sourced or put where the shell looks \
                for them.",
        groups: &[OUTPUT],
    },
    Spec {
        name: "man",
        usage: "",
        summary: "Print the man page",
        about: "Prints the man page, in man's own format: genesys-attributes man | man -l -",
        groups: &[OUTPUT],
    },
];

/// The settings, as the help shows them.
pub(crate) const SETTINGS_HELP: &[&str] = &[
    "GENESYS_CLOUD_REGION, GENESYS_CLOUD_CLIENT_ID, GENESYS_CLOUD_CLIENT_SECRET",
    "or GENESYSCLOUD_REGION with GENESYSCLOUD_ACCESS_TOKEN, or with",
    "   GENESYSCLOUD_OAUTHCLIENT_ID and GENESYSCLOUD_OAUTHCLIENT_SECRET",
    "GENESYS_CLOUD_BASE_URL for a sandbox or gateway",
];

/// The variables that settings may be given by.
pub(crate) const VARIABLES: &[&str] = &[
    "GENESYS_CLOUD_REGION",
    "GENESYS_CLOUD_CLIENT_ID",
    "GENESYS_CLOUD_CLIENT_SECRET",
    "GENESYS_CLOUD_BASE_URL",
    "GENESYSCLOUD_REGION",
    "GENESYSCLOUD_OAUTHCLIENT_ID",
    "GENESYSCLOUD_OAUTHCLIENT_SECRET",
    "GENESYSCLOUD_ACCESS_TOKEN",
];

/// What each exit status means.
pub(crate) const EXITS: &[(&str, &str)] = &[
    ("0", "everything is in place (or valid)"),
    (
        "1",
        "something failed, was skipped or would be refused (batch --exit-zero: 0)",
    ),
    (
        "2",
        "the command line, the settings or a file is wrong, or a file or standard output cannot \
         be written",
    ),
    (
        "3",
        "batch stopped early: --stop-after, credentials or login refused, nothing permitted, or \
         the endpoint is not offered",
    ),
    ("4", "batch stopped early: standard output was closed"),
    (
        "5",
        "batch stopped early: the platform asks to wait for longer than is waited for; resume \
         when the time that is said has passed",
    ),
    (
        "6",
        "batch stopped early: an outage lasted longer than --max-outage; resume later",
    ),
    (
        "7",
        "the updates were made, but records of the audit were lost",
    ),
    (
        "130",
        "batch, or forward without --follow, was stopped by SIGINT; resume later",
    ),
    (
        "143",
        "batch, or forward without --follow, was stopped by SIGTERM; resume later",
    ),
];

/// The name that is meant, if one is near enough.
pub(crate) fn nearest(
    given: &str,
    names: impl IntoIterator<Item = &'static str>,
) -> Option<&'static str> {
    let near = names
        .into_iter()
        .map(|name| (distance(given, name), name))
        .min_by_key(|(distance, _)| *distance);
    near.filter(|(distance, name)| *distance <= name.len().max(3) / 3)
        .map(|(_, name)| name)
}

/// How many letters must be put in, left out, changed or swapped with their neighbour to make one
/// word of the other.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let changed = last[j] + usize::from(a[i] != b[j]);
            let mut least = changed.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(a.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn option_of_one_name_takes_a_value_everywhere_or_nowhere() {
        let mut seen = HashMap::new();
        for option in COMMANDS.iter().flat_map(Spec::options) {
            let takes = option.value.is_some();
            assert_eq!(
                *seen.entry(option.long).or_insert(takes),
                takes,
                "{}",
                option.long
            );
        }
    }

    #[test]
    fn nearest_name_is_found_and_a_far_one_is_not() {
        let names = || COMMANDS.iter().map(|command| command.name);
        for (given, near) in [
            ("bacth", Some("batch")),
            ("updat", Some("update")),
            ("chekc", Some("check")),
            ("frobnicate", None),
            ("", None),
        ] {
            assert_eq!(nearest(given, names()), near, "{given}");
        }
        assert_eq!(distance("ifversoin", "ifversion"), 1);
        assert_eq!(distance("", "abc"), 3);
    }
}
