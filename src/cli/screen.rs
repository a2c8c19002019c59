//! Standard error, which everybody shares: messages, each on a line of its own, and the one line
//! that moves. Nobody reading it is no reason to fail, so what cannot be written is dropped.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

/// How progress can be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// A line that is drawn again and again.
    Redrawn,
    /// A terminal that cannot draw a line again: a new line now and then.
    Plain,
    /// Nobody is watching.
    None,
}

/// How many different warnings are held back at one time.
const MAX_FOLDED: usize = 32;

struct Screen {
    json: bool,
    quiet: bool,
    /// What the moving line shows now, for drawing it again below a message.
    line: Option<String>,
    /// Warnings that were shown once, and how many like them came since.
    folded: Vec<(String, u64)>,
    folding: bool,
}

static SCREEN: Mutex<Screen> = Mutex::new(Screen {
    json: false,
    quiet: false,
    line: None,
    folded: Vec::new(),
    folding: false,
});

fn screen() -> MutexGuard<'static, Screen> {
    SCREEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the command line asks for.
pub(crate) fn configure(json: bool, quiet: bool) {
    let mut screen = screen();
    screen.json = json;
    screen.quiet = quiet;
}

/// How progress can be shown here.
pub(crate) fn style() -> Style {
    let screen = screen();
    let dumb = || std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    match io::stderr().is_terminal() && !screen.json && !screen.quiet {
        false => Style::None,
        true if dumb() => Style::Plain,
        true => Style::Redrawn,
    }
}

/// The width of the terminal, in columns.
pub(crate) fn width() -> usize {
    let size = terminal_size::terminal_size_of(io::stderr());
    size.map_or(80, |(width, _)| usize::from(width.0).max(10))
}

impl Screen {
    /// Writes whole lines above the moving line.
    fn put(&mut self, text: &str) {
        let mut out = String::new();
        if self.line.is_some() {
            out.push_str("\r\x1b[K");
        }
        out.push_str(text);
        out.push('\n');
        if let Some(line) = &self.line {
            out.push_str(line);
        }
        let mut err = io::stderr().lock();
        let _ = err.write_all(out.as_bytes()).and_then(|()| err.flush());
    }

    fn message(&mut self, level: &str, text: &str) {
        if self.quiet && level != "error" {
            return;
        }
        if self.json {
            return self.record(level, "message", text, &[], Value::Null);
        }
        let text = &clean(text);
        match level {
            "info" | "error" => self.put(&format!("genesys-attributes: {text}")),
            _ => self.put(&format!("{level}: {text}")),
        }
    }

    /// One line of JSON: every one has the same first fields.
    fn record(&mut self, level: &str, kind: &str, text: &str, causes: &[String], more: Value) {
        let text = text.replace('\n', " ");
        let mut record = match more {
            Value::Object(fields) => fields,
            _ => serde_json::Map::new(),
        };
        record.insert("level".into(), level.into());
        record.insert("type".into(), kind.into());
        record.insert("message".into(), text.into());
        record.insert("causes".into(), causes.into());
        self.put(&json_text(&record, false));
    }

    fn tell_folded(&mut self) {
        for (shape, more) in std::mem::take(&mut self.folded) {
            if more > 0 {
                self.message("warn", &format!("{more} more like: {shape}"));
            }
        }
    }
}

/// One note for whoever runs the program.
pub(crate) fn note(text: &str) {
    screen().message("info", text);
}

/// One warning.
pub(crate) fn warn(text: &str) {
    screen().message("warn", text);
}

/// Something that failed.
pub(crate) fn error(text: &str) {
    screen().message("error", text);
}

/// Why a command fails. `more` has the fields of the error for machines.
pub(crate) fn failure(text: &str, causes: &[String], more: Value) {
    let mut screen = screen();
    if screen.json {
        return screen.record("error", "error", text, causes, more);
    }
    let causes = causes.iter().map(|cause| format!("\n  because: {cause}"));
    let text = format!("{text}{}", causes.collect::<String>());
    screen.message("error", &text);
}

/// What a command did, in words or with the fields of `more`.
pub(crate) fn summary(text: &str, more: Value) {
    let mut screen = screen();
    match (screen.quiet, screen.json) {
        (true, _) => {}
        (_, true) => screen.record("info", "summary", text.trim_end(), &[], more),
        (_, false) => screen.message("info", text.trim_end()),
    }
}

/// Foreign text without what a terminal would obey.
pub(crate) fn clean(text: &str) -> String {
    let keeps = |c: char| matches!(c, '\n' | '\t') || !is_obeyed(c);
    text.chars()
        .map(|c| if keeps(c) { c } else { ' ' })
        .collect()
}

/// JSON in which such signs are escaped, those that JSON itself allows too.
pub(crate) fn json_text(value: &impl serde::Serialize, pretty: bool) -> String {
    let text = match pretty {
        true => serde_json::to_string_pretty(value),
        false => serde_json::to_string(value),
    };
    let mut out = String::new();
    for c in text.unwrap_or_default().chars() {
        match c != '\n' && is_obeyed(c) {
            true => out += &format!("\\u{:04x}", u32::from(c)),
            false => out.push(c),
        }
    }
    out
}

/// True for control signs, and those that turn the direction of text.
fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// One record of the log. While warnings are folded, those that differ only in ids and numbers are
/// shown once and then counted.
pub(crate) fn log(level: log::Level, text: &str) {
    let mut screen = screen();
    if level == log::Level::Warn && screen.folding {
        let shape = shape(text);
        if let Some((_, more)) = screen.folded.iter_mut().find(|(known, _)| *known == shape) {
            *more += 1;
            return;
        }
        if screen.folded.len() >= MAX_FOLDED {
            screen.tell_folded();
        }
        screen.folded.push((shape, 0));
    }
    screen.message(&level.as_str().to_lowercase(), text);
}

/// Words that hold a digit, and what a conversation is called, stand for what differs.
fn shape(text: &str) -> String {
    let mut before = "";
    let words = text.split(' ').map(|word| {
        let differs = word.bytes().any(|b| b.is_ascii_digit()) || before == "conversation";
        before = word;
        if differs { "…" } else { word }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// From now on equal warnings are folded.
pub(crate) fn fold() {
    screen().folding = true;
}

/// Tells how often the folded warnings came, and forgets them.
pub(crate) fn unfold() {
    screen().tell_folded();
}

/// Draws the moving line.
pub(crate) fn draw(line: &str) {
    let mut screen = screen();
    screen.line = Some(line.to_owned());
    let mut err = io::stderr().lock();
    let _ = write!(err, "\r\x1b[K{line}").and_then(|()| err.flush());
}

/// Takes the moving line away.
pub(crate) fn clear() {
    let mut screen = screen();
    if screen.line.take().is_some() {
        let mut err = io::stderr().lock();
        let _ = write!(err, "\r\x1b[K").and_then(|()| err.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_that_a_terminal_obeys_are_not_printed() {
        assert_eq!(
            clean("a\u{1b}[2J\u{9b}1m\u{202e}b\n\tc\r"),
            "a [2J 1m b\n\tc "
        );
        let value = serde_json::json!({ "name": "a\u{1b}[2J\u{9b}\u{7f}\u{202e}é" });
        let text = json_text(&value, true);
        assert!(!text.chars().any(|c| c != '\n' && is_obeyed(c)), "{text:?}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }

    #[test]
    fn warnings_of_one_shape_differ_in_ids_and_numbers() {
        let one = shape("conversation c-1 has ended at 10:00");
        assert_eq!(one, shape("conversation c-2 has ended at 11:30"));
        assert_eq!(one, shape("conversation abc has ended at 10:00"));
        assert_ne!(one, shape("conversation c-1 is closed at 10:00"));
    }
}
