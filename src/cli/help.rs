//! The help, the man page and the completions, made from the table.

use std::fmt::Write as _;

use super::table::{COMMANDS, EXITS, Opt, SETTINGS_HELP, Spec};

const WIDTH: usize = 80;

/// `text` in lines of the width, each after the first indented.
fn wrapped(text: &str, indent: usize) -> String {
    let mut out = String::new();
    let mut column = indent;
    for word in text.split_ascii_whitespace() {
        let length = word.chars().count();
        if column > indent {
            if column + 1 + length > WIDTH {
                let _ = write!(out, "\n{:indent$}", "");
                column = indent;
            } else {
                out.push(' ');
                column += 1;
            }
        }
        out.push_str(word);
        column += length;
    }
    out
}

fn shown(option: &Opt) -> String {
    let mut text = match option.short {
        Some(letter) => format!("-{letter}, --{}", option.long),
        None => format!("--{}", option.long),
    };
    if let Some(value) = option.value {
        let _ = write!(text, " {value}");
    }
    text
}

fn row(name: &str, text: &str) -> String {
    const COLUMN: usize = 24;
    let text = wrapped(text, COLUMN);
    if name.len() + 4 > COLUMN {
        format!("  {name}\n{:COLUMN$}{text}\n", "")
    } else {
        format!("  {name:<width$}{text}\n", width = COLUMN - 2)
    }
}

fn exits() -> String {
    let rows = EXITS
        .iter()
        .map(|(status, meaning)| format!("  {status:>3}  {}\n", wrapped(meaning, 7)));
    format!("Exit status:\n{}", rows.collect::<String>())
}

/// The help of all.
pub(crate) fn overview() -> String {
    let mut out = String::from(
        "Changes attributes on Genesys Cloud conversations safely.\n\nUsage: genesys-attributes \
         COMMAND [OPTIONS]\n\nCommands:\n",
    );
    for spec in COMMANDS {
        let _ = writeln!(out, "  genesys-attributes {} {}", spec.name, spec.usage);
        let _ = writeln!(out, "      {}", wrapped(spec.summary, 6));
    }
    out += "\nOptions: genesys-attributes COMMAND --help\n\n";
    out += "Settings (environment, or the file of --credentials); secrets are never arguments:\n";
    for line in SETTINGS_HELP {
        let _ = writeln!(out, "  {line}");
    }
    out + "\n" + &exits()
}

/// The help of one command.
pub(crate) fn of(spec: &Spec) -> String {
    let mut out = format!(
        "Usage: genesys-attributes {} {} [OPTIONS]\n\n{}\n",
        spec.name,
        spec.usage,
        wrapped(spec.about, 0)
    )
    .replace("  [OPTIONS]", " [OPTIONS]");
    for group in spec.groups {
        let _ = write!(out, "\n{}:\n", wrapped(group.title, 0));
        for option in group.options {
            out += &row(&shown(option), option.help);
        }
    }
    out + "\n" + &exits()
}

/// The man page.
pub(crate) fn man() -> String {
    let plain = |text: &str| {
        let text = text.replace('\\', "\\e").replace('-', "\\-");
        // A line that begins with a dot or a quote would be a request.
        match text.starts_with(['.', '\'']) {
            true => format!("\\&{text}"),
            false => text,
        }
    };
    let mut out = format!(
        ".TH GENESYS\\-ATTRIBUTES 1 \"\" \"genesys\\-attributes {}\" \"\"\n.SH NAME\n\
         genesys\\-attributes \\- change attributes on Genesys Cloud conversations safely\n\
         .SH SYNOPSIS\n",
        plain(env!("CARGO_PKG_VERSION"))
    );
    for spec in COMMANDS {
        // A line that begins with a space would break the paragraph.
        let usage = format!("{} [OPTIONS]", spec.usage);
        let _ = writeln!(
            out,
            ".B genesys\\-attributes {}\n{}\n.br",
            plain(spec.name),
            plain(usage.trim_start())
        );
    }
    out += ".SH COMMANDS\n";
    for spec in COMMANDS {
        let _ = writeln!(out, ".SS {}\n{}", plain(spec.name), plain(spec.about));
        for group in spec.groups {
            let _ = writeln!(out, ".P\n{}:", plain(group.title));
            for option in group.options {
                let _ = writeln!(
                    out,
                    ".TP\n.B {}\n{}",
                    plain(&shown(option)),
                    plain(option.help)
                );
            }
        }
    }
    out += ".SH ENVIRONMENT\n";
    for line in SETTINGS_HELP {
        let _ = writeln!(out, "{}\n.br", plain(line.trim_start()));
    }
    out += ".SH EXIT STATUS\n";
    for (status, meaning) in EXITS {
        let _ = writeln!(out, ".TP\n.B {status}\n{}", plain(meaning));
    }
    out
}

/// The completions for a shell.
pub(crate) fn completions(shell: &str) -> Option<String> {
    match shell {
        "bash" => Some(bash()),
        "zsh" => Some(zsh()),
        "fish" => Some(fish()),
        _ => None,
    }
}

fn names() -> String {
    let names: Vec<&str> = COMMANDS.iter().map(|spec| spec.name).collect();
    names.join(" ")
}

fn takes_file(option: &Opt) -> bool {
    option.value == Some("FILE")
}

fn unique(wanted: impl Fn(&Opt) -> bool) -> Vec<&'static str> {
    let options = COMMANDS.iter().flat_map(Spec::options);
    let mut names: Vec<&str> = options.filter(|o| wanted(o)).map(|o| o.long).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn bash() -> String {
    let alternatives = |names: Vec<&str>| {
        let names: Vec<String> = names.iter().map(|name| format!("--{name}")).collect();
        names.join("|")
    };
    let mut cases = String::new();
    for spec in COMMANDS {
        let options: Vec<String> = spec.options().map(|o| format!("--{}", o.long)).collect();
        let _ = writeln!(
            cases,
            "        {}) options=\"{}\" ;;",
            spec.name,
            options.join(" ")
        );
    }
    format!(
        "# bash completion of genesys-attributes\n\
         _genesys_attributes() {{\n    \
             local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} options=\n    \
             case $before in\n        \
                 {files}) COMPREPLY=($(compgen -f -- \"$word\")); return ;;\n        \
                 {values}) return ;;\n    \
             esac\n    \
             if [ \"$COMP_CWORD\" -eq 1 ]; then\n        \
                 COMPREPLY=($(compgen -W \"{names} help\" -- \"$word\")); return\n    \
             fi\n    \
             case ${{COMP_WORDS[1]}} in\n{cases}    esac\n    \
             if [ \"${{COMP_WORDS[1]}}\" = help ]; then\n        \
                 COMPREPLY=($(compgen -W \"{names}\" -- \"$word\"))\n    \
             elif [ \"${{COMP_WORDS[1]}}\" = completions ] && [[ $word != -* ]]; then\n        \
                 COMPREPLY=($(compgen -W \"bash zsh fish\" -- \"$word\"))\n    \
             elif [[ $word == -* ]]; then\n        \
                 COMPREPLY=($(compgen -W \"$options\" -- \"$word\"))\n    \
             else\n        \
                 COMPREPLY=($(compgen -f -- \"$word\"))\n    \
             fi\n\
         }}\n\
         complete -o filenames -F _genesys_attributes genesys-attributes\n",
        files = alternatives(unique(takes_file)),
        values = alternatives(unique(|o| o.value.is_some() && !takes_file(o))),
        names = names(),
    )
}

/// Text inside of single quotes and, for zsh, inside of a description in brackets.
fn quoted(text: &str) -> String {
    text.replace('\'', "'\\''")
        .replace('[', "\\[")
        .replace(']', "\\]")
        .replace(':', "\\:")
}

fn zsh() -> String {
    let mut commands = String::new();
    let mut cases = String::new();
    for spec in COMMANDS {
        let _ = writeln!(commands, "        '{}:{}'", spec.name, quoted(spec.summary));
        let _ = writeln!(
            cases,
            "        {})\n            _arguments -s \\",
            spec.name
        );
        for option in spec.options() {
            let help = quoted(option.help);
            let value = match option.value {
                None => String::new(),
                Some("FILE") => ":file:_files".to_owned(),
                Some(value) => format!(":{}: ", quoted(value)),
            };
            // Those that may be given more than once.
            let star = if option.long == "remove" { "*" } else { "" };
            let _ = writeln!(
                cases,
                "                '{star}--{}[{help}]{value}' \\",
                option.long
            );
        }
        let rest = match spec.name {
            "completions" => "'*:shell:(bash zsh fish)'",
            _ => "'*:file:_files'",
        };
        let _ = writeln!(cases, "                {rest} ;;");
    }
    format!(
        "#compdef genesys-attributes\n\
         _genesys_attributes() {{\n    \
             local -a commands\n    \
             commands=(\n{commands}    )\n    \
             if (( CURRENT == 2 )); then\n        \
                 _describe command commands\n        \
                 return\n    \
             fi\n    \
             local command=$words[2]\n    \
             words=(\"${{words[@]:1}}\")\n    \
             (( CURRENT-- ))\n    \
             case $command in\n{cases}    esac\n\
         }}\n\
         if [ \"$funcstack[1]\" = _genesys_attributes ]; then\n    \
             _genesys_attributes \"$@\"\n\
         else\n    \
             compdef _genesys_attributes genesys-attributes\n\
         fi\n"
    )
}

fn fish() -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
    let mut out = String::from("# fish completion of genesys-attributes\n");
    for spec in COMMANDS {
        let _ = writeln!(
            out,
            "complete -c genesys-attributes -n __fish_use_subcommand -f -a {} -d '{}'",
            spec.name,
            quoted(spec.summary)
        );
        for option in spec.options() {
            let short = option
                .short
                .map_or_else(String::new, |c| format!(" -s {c}"));
            let value = match option.value {
                None => "",
                Some("FILE") => " -r -F",
                Some(_) => " -x",
            };
            let _ = writeln!(
                out,
                "complete -c genesys-attributes -n '__fish_seen_subcommand_from {}' -l {}{short}{value} -d '{}'",
                spec.name,
                option.long,
                quoted(option.help)
            );
        }
    }
    out + "complete -c genesys-attributes -n '__fish_seen_subcommand_from completions' -f -a 'bash zsh fish'\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_fits_80_columns_and_has_every_option() {
        for spec in COMMANDS {
            let text = of(spec);
            for line in text.lines() {
                assert!(line.chars().count() <= WIDTH, "{}: {line}", spec.name);
            }
            for option in spec.options() {
                assert!(text.contains(&format!("--{}", option.long)));
            }
        }
        for line in overview().lines() {
            assert!(line.chars().count() <= 82, "{line}");
        }
    }

    #[test]
    fn completions_and_man_page_have_every_option_and_status() {
        let man = man();
        for shell in ["bash", "zsh", "fish"] {
            let text = completions(shell).unwrap();
            for spec in COMMANDS {
                assert!(text.contains(spec.name), "{shell}: {}", spec.name);
                for option in spec.options() {
                    assert!(text.contains(option.long), "{shell}: {}", option.long);
                    assert!(man.contains(&option.long.replace('-', "\\-")));
                }
            }
        }
        for (status, _) in EXITS {
            assert!(man.contains(&format!(".B {status}\n")));
        }
    }
}
