//! Single words of a command line: what they mean, and errors that do not hold them.

use std::ffi::OsStr;
use std::path::PathBuf;

type Result<T> = std::result::Result<T, String>;

/// A number within bounds. The error does not hold it.
pub(crate) fn number<T: TryFrom<u64>>(
    least: u64,
    most: u64,
) -> impl Fn(&str) -> Result<T> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.parse().ok().filter(|n| (least..=most).contains(n));
        number
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| match most {
                u64::MAX => format!("takes a number from {least}"),
                _ => format!("takes a number from {least} to {most}"),
            })
    }
}

/// The character between the cells of a CSV.
pub(crate) fn delimiter(text: &str) -> Result<u8> {
    match text.as_bytes() {
        b"tab" | b"\\t" => Ok(b'\t'),
        [byte] if byte.is_ascii_punctuation() && *byte != b'"' || *byte == b'\t' => Ok(*byte),
        _ => Err("takes one character, such as ';', or the word tab".into()),
    }
}

/// A file that is written. Standard output is not one of them.
pub(crate) fn output(text: &str) -> Result<PathBuf> {
    match text {
        "-" => Err("cannot be -: name a file".into()),
        _ => Ok(PathBuf::from(text)),
    }
}

/// A fault of the sandbox, and how often it happens.
pub(crate) fn fault(text: &str) -> Result<(String, u64)> {
    let given = text.split_once('=').and_then(|(name, every)| {
        let every = every.parse().ok().filter(|every| *every > 0)?;
        ["conflict", "throttle", "lost"]
            .contains(&name)
            .then(|| (name.to_owned(), every))
    });
    given.ok_or_else(|| "takes conflict=N, throttle=N or lost=N: each N-th request".into())
}

/// An id becomes part of an address, and is shown. No id holds the sign of an attribute.
pub(crate) fn conversation(text: &str) -> Result<String> {
    match text.contains('=') {
        true => Err("looks like an attribute: give the conversation id before it".into()),
        false => Ok(text.to_owned()),
    }
}

/// The purpose or the id of a participant.
pub(crate) fn who(text: &str) -> Result<String> {
    match text.contains('=') {
        true => Err("looks like an attribute: give a purpose or an id".into()),
        false => Ok(text.to_owned()),
    }
}

/// `NAME=@FILE`: a value may be a secret, which other users could see in a command line.
pub(crate) fn header(word: &str) -> Result<(String, PathBuf)> {
    word.split_once("=@")
        .filter(|(name, file)| !name.is_empty() && !file.is_empty())
        .map(|(name, file)| (name.to_owned(), PathBuf::from(file)))
        .ok_or_else(|| "takes NAME=@FILE, a name and the file of its value".into())
}

/// One attribute, whose value may still have to be read from a file.
pub(crate) struct Assignment {
    pub(crate) key: String,
    pub(crate) is_json: bool,
    pub(crate) value: Given,
}

/// Where a value comes from.
#[derive(PartialEq)]
pub(crate) enum Given {
    Text(String),
    File(PathBuf),
    StandardInput,
}

pub(crate) fn assignment(number: usize, word: &OsStr) -> Result<Assignment> {
    // The word itself may be a value whose name was forgotten: only its number is told.
    let word = word
        .to_str()
        .ok_or_else(|| format!("attribute {number} is not valid UTF-8"))?;
    // The first '=' decides, so that text may hold any character.
    let (key, text) = word.split_once('=').ok_or_else(|| {
        format!("attribute {number} (after the conversation) is neither KEY=TEXT nor KEY:=JSON")
    })?;
    let (key, is_json) = match key.strip_suffix(':') {
        Some(key) => (key, true),
        None => (key, false),
    };
    let value = match text.strip_prefix('@') {
        Some("-") => Given::StandardInput,
        Some("") => return Err(format!("{key:?} is followed by =@, but by no file name")),
        Some(file) => Given::File(PathBuf::from(file)),
        None => Given::Text(text.to_owned()),
    };
    Ok(Assignment {
        key: key.to_owned(),
        is_json,
        value,
    })
}
