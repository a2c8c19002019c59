//! The program's files as bytes: the entry points of the fuzzers in `fuzz/`. Beyond "nothing panics"
//! each one asserts what must hold for any bytes. The corpora are replayed by `cargo test`.

use std::io::{BufReader, Cursor, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::csv::{Columns, Rows};
use super::digest::Digest;
use super::records::{Line, Lines};
use super::results::Results;
use super::{client, sniff};

/// A text of ours about a line: one line, and not without end.
fn fit_to_print(text: &str) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert!(text.len() < 20_000, "{} bytes", text.len());
    assert!(!text.is_empty());
}

/// A row: line, digest, text and cells.
type Found = (u64, u64, Vec<u8>, Result<Vec<String>, String>);

/// The rows of a CSV, read with a buffer of this size.
fn rows(data: &[u8], buffer: usize) -> Vec<Found> {
    let mut source = BufReader::with_capacity(buffer, data);
    let mut rows = Rows::new();
    let mut found = Vec::new();
    while let Some(row) = rows.next(&mut source, true).expect("bytes can be read") {
        found.push((row.line, row.digest.value(), row.raw, row.cells));
    }
    found
}

/// CSV, whole and in pieces.
pub fn csv(mut data: &[u8]) {
    // csv-core drops a byte order mark only where it comes in one piece, as it does from files.
    while let Some(rest) = data.strip_prefix(b"\xEF\xBB\xBF") {
        data = rest;
    }
    let found = rows(data, 1 << 16);
    for buffer in [1, 7] {
        assert_eq!(found, rows(data, buffer));
    }
    let lines = data.iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
    let mut last = 0;
    for (line, digest, raw, cells) in &found {
        assert!(
            *line > last && *line <= lines,
            "{line} after {last} of {lines}"
        );
        last = *line;
        assert_eq!(*digest, Digest::of(raw));
        if let Err(problem) = cells {
            fit_to_print(problem);
        }
    }
    let mut rows = found.into_iter().filter_map(|(_, _, _, cells)| cells.ok());
    let Some(header) = rows.next() else {
        return;
    };
    match Columns::of(&header) {
        Ok(columns) => {
            for cells in rows {
                match columns.update(&cells) {
                    Ok(update) => assert!(!update.target().conversation_id().is_empty()),
                    Err(problem) => fit_to_print(&problem),
                }
            }
        }
        Err(problem) => fit_to_print(&problem),
    }
}

fn lines(data: &[u8], buffer: usize) -> Vec<Line> {
    let source = Cursor::new(data.to_vec());
    let source = Box::new(BufReader::with_capacity(buffer, source));
    Lines::json(source, None).wanted(|_| true).collect()
}

/// JSON lines, whole and in pieces; the same bytes as the beginning of an input, and as a file of
/// credentials.
pub fn batch_lines(data: &[u8]) {
    let whole = lines(data, 1 << 16);
    for buffer in [1, 7] {
        let pieces = lines(data, buffer);
        assert_eq!(whole.len(), pieces.len());
        for (a, b) in whole.iter().zip(&pieces) {
            assert_eq!((a.number, a.digest), (b.number, b.digest));
            assert_eq!(a.update, b.update);
        }
    }
    for line in &whole {
        if let Err(problem) = &line.update {
            fit_to_print(problem);
        }
    }
    for csv in [false, true] {
        for whole in [false, true] {
            if let Err(problem) = sniff::check(data, whole, csv) {
                fit_to_print(&problem);
            }
        }
    }
    if let Ok(text) = std::str::from_utf8(data) {
        match client::settings(text, "credentials") {
            Ok((_, warnings)) => warnings.iter().for_each(|warning| fit_to_print(warning)),
            Err(problem) => fit_to_print(&problem),
        }
    }
}

/// A results file, resumed over an input of three lines: what can be resumed once can be resumed
/// again.
pub fn results(data: &[u8]) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("ga-results-{}-{number}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let mut file = std::fs::File::create(&path).expect("a file is made");
    file.write_all(data).expect("the file is written");
    drop(file);
    let _removed = Removed(path.clone());
    const INPUT: &[u8] = b"{\"conversationId\":\"c-1\",\"attributes\":{\"a\":1}}\n\
        {\"conversationId\":\"c-1\",\"attributes\":{\"a\":2}}\n\
        {\"conversationId\":\"c-2\",\"attributes\":{\"a\":3}}\n";
    let input = || {
        let source = BufReader::new(Cursor::new(INPUT));
        Ok(Lines::json(Box::new(source), None))
    };
    for retry_failed in [false, true] {
        let opened = Results::open(&path, true, None, true).expect("it can be opened");
        let mut results = opened.expect("it is there");
        let mut past = match results.past() {
            Ok(past) => past,
            Err(problem) => return fit_to_print(&problem),
        };
        if let Err(problem) = results.take_up(&mut past, retry_failed, input) {
            return fit_to_print(&problem);
        }
    }
}

struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
type Entry = fn(&[u8]);

/// The entry points by the names of their corpora.
#[cfg(test)]
const ALL: [(&str, Entry); 3] = [
    ("csv", csv),
    ("batch_lines", batch_lines),
    ("results", results),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_corpora_of_the_program_find_nothing() {
        for (name, entry) in ALL {
            let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join("fuzz/corpus")
                .join(name);
            let mut inputs = 0;
            for file in std::fs::read_dir(&folder).expect("the corpus is there") {
                let path = file.expect("a file").path();
                let data = std::fs::read(&path).expect("the input can be read");
                if std::panic::catch_unwind(|| entry(&data)).is_err() {
                    panic!("{} found something", path.display());
                }
                inputs += 1;
            }
            assert!(inputs >= 5, "{name}: {inputs}");
            println!("{name}: {inputs} inputs");
        }
    }
}
