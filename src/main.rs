//! The program: a thin shell over the library.
#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::disallowed_methods,
        clippy::expect_used,
        clippy::panic,
        clippy::unwrap_used
    )
)]

/// As the standard library's, but nobody reading them is no reason to panic.
macro_rules! eprint {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = write!(std::io::stderr(), $($text)*);
    }};
}
macro_rules! eprintln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod cli {
    pub(crate) mod args;
    pub(crate) mod commands;
    pub(crate) mod input;
    pub(crate) mod progress;
    pub(crate) mod results;
}

use std::process::ExitCode;

use cli::args::{self, Parsed};
use cli::commands::{self, Failure};

fn main() -> ExitCode {
    let mut as_json = false;
    let exit = match args::parse(std::env::args_os().skip(1)) {
        Ok(Parsed::Help(text)) => commands::print(&text),
        Ok(Parsed::Run(options)) => {
            log_to_stderr(options.verbose);
            as_json = options.json;
            commands::run(&options)
        }
        Err(problem) => Err(Failure::usage(format!(
            "{problem}\nTry 'genesys-attributes --help'."
        ))),
    };
    match exit {
        Ok(exit) => exit.code(),
        Err(failure) => {
            failure.tell(as_json);
            failure.exit.code()
        }
    }
}

/// Warnings by default, or what `RUST_LOG` says, but never ureq's own records: at its trace level
/// it writes down whole requests, the token among them.
fn log_to_stderr(verbose: bool) {
    use std::io::Write;

    let default = if verbose { "debug" } else { "warn" };
    let env = env_logger::Env::default().default_filter_or(default);
    env_logger::Builder::from_env(env)
        .format(|out, record| {
            if record.target().starts_with("ureq") {
                return Ok(());
            }
            writeln!(
                out,
                "{}: {}",
                record.level().as_str().to_lowercase(),
                record.args()
            )
        })
        .init();
}
