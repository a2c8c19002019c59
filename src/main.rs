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

mod cli;

use std::ffi::OsString;
use std::process::ExitCode;

use cli::args::{self, Parsed};
use cli::{Failure, screen};

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut as_json = args::wants_json(&words);
    screen::configure(as_json, false);
    let exit = match args::parse(words) {
        Ok(Parsed::Text(text)) => cli::print(&text),
        Ok(Parsed::Run(options)) => {
            as_json = options.json;
            screen::configure(options.json, options.quiet);
            log_to_screen(options.verbose, options.quiet);
            cli::run(&options)
        }
        Err(problem) => Err(Failure::usage(problem)),
    };
    match exit {
        Ok(exit) => exit.code(),
        Err(failure) => {
            failure.report(as_json);
            failure.exit.code()
        }
    }
}

/// Warnings by default, or what `RUST_LOG` says, but never ureq's own records: at its trace level
/// it writes down whole requests, the token among them.
fn log_to_screen(verbose: bool, quiet: bool) {
    let default = match (verbose, quiet) {
        (true, _) => "debug",
        (false, true) => "error",
        (false, false) => "warn",
    };
    let env = env_logger::Env::default().default_filter_or(default);
    env_logger::Builder::from_env(env)
        .format(|_, record| {
            // Written there, so that it keeps clear of the progress.
            if !record.target().starts_with("ureq") {
                screen::log(record.level(), &record.args().to_string());
            }
            Ok(())
        })
        .init();
}
