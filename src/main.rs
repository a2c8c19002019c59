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
    screen::configure(args::wants_json(&words), false);
    let exit = match args::parse(words) {
        Ok(Parsed::Text(text)) => cli::print(&text),
        Ok(Parsed::Run(options)) => {
            screen::configure(options.json, options.quiet);
            log_to_screen(options.verbose, options.quiet);
            cli::run(&options)
        }
        Err(problem) => Err(Failure::usage(problem)),
    };
    match exit {
        Ok(exit) => exit.code(),
        Err(failure) => {
            failure.report();
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
    let asked = std::env::var("RUST_LOG").unwrap_or_default();
    let filters = match asked.split(',').all(is_filter) {
        true if !asked.trim().is_empty() => asked.as_str(),
        true => default,
        false => {
            screen::warn(
                "RUST_LOG is ignored: it must be a level such as debug, or TARGET=LEVEL, with \
                 commas between",
            );
            default
        }
    };
    env_logger::Builder::new()
        .parse_filters(filters)
        .format(|_, record| {
            // Written there, so that it keeps clear of the progress.
            if !record.target().starts_with("ureq") {
                screen::log(record.level(), &record.args().to_string());
            }
            Ok(())
        })
        .init();
}

/// True for a part of RUST_LOG that the logger takes without a word of its own on standard error.
fn is_filter(text: &str) -> bool {
    let level = match text.split_once('=') {
        Some((_, level)) => level,
        None if text.contains('/') => return false,
        None => return true,
    };
    level.trim().is_empty() || level.trim().parse::<log::LevelFilter>().is_ok()
}
