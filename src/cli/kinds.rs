//! What an output file that is there already must be: a file of another kind would be spoilt.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::{Map, Value};

/// How much of a file is looked at.
const LONGEST: u64 = 1 << 20;

/// What a file is written as.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Audit,
    Results,
    /// Lines of an input.
    Input,
    Metrics,
    DeadLetters,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Audit => "an audit file",
            Kind::Results => "a results file",
            Kind::Input => "an input of a batch",
            Kind::Metrics => "a metrics file of this program",
            Kind::DeadLetters => "a file of dead letters",
        }
    }

    /// True if a file of this kind may begin with this line.
    fn begins_with(self, line: &[u8]) -> bool {
        let record: Option<Map<String, Value>> = serde_json::from_slice(line).ok();
        let has = |name: &str| {
            record
                .as_ref()
                .is_some_and(|fields| fields.contains_key(name))
        };
        // The only record of a program that died while it wrote.
        let is_torn = record.is_none() && line.starts_with(b"{\"") && !line.ends_with(b"\n");
        match self {
            Kind::Audit => has("phase") || is_torn,
            Kind::Results => has("line") && has("status") || is_torn,
            Kind::Input => {
                let header = String::from_utf8_lossy(line);
                has("conversationId") && !has("phase") && !has("status")
                    || record.is_none() && header.contains("conversationId")
            }
            Kind::Metrics => line.starts_with(b"# HELP genesys_attributes_"),
            Kind::DeadLetters => line.starts_with(b"{\"record\":"),
        }
    }
}

/// Refuses a file of another kind. What is not there, is empty or is no regular file will do.
pub(crate) fn check(option: &str, path: Option<&Path>, kind: Kind) -> Result<(), String> {
    let Some(path) = path.filter(|path| path.metadata().is_ok_and(|data| data.is_file())) else {
        return Ok(());
    };
    // A file that may be written and not read is found out when it is opened.
    let Ok(file) = File::open(path) else {
        return Ok(());
    };
    let mut line = Vec::new();
    let read = BufReader::new(file.take(LONGEST)).read_until(b'\n', &mut line);
    if read.is_err() || line.is_empty() || kind.begins_with(&line) {
        return Ok(());
    }
    Err(format!(
        "the file {} of {option} is there already, and is not {}: name another file",
        path.display(),
        kind.name()
    ))
}
