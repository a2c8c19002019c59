//! The input as bytes: a file, or what a pipe or a terminal gives.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Seek, Write};
use std::sync::Arc;

use super::options::Input;
use super::records::Lines;
use super::{screen, sniff};

/// How much is read at once. The format is told by the first bytes of that many.
const BUFFER: usize = 1 << 16;

/// The input, opened once: each reading is of this file, whatever its name means by then.
pub(crate) struct Opened<'a> {
    pub(crate) input: &'a Input,
    file: Arc<File>,
    /// Where a reading begins. `None` for a pipe or a terminal, which can be read only once.
    start: Option<u64>,
    /// Its size when it was opened.
    size: u64,
}

impl<'a> Opened<'a> {
    /// Opens the input and, if it is a file, checks its format.
    pub(crate) fn of(input: &'a Input) -> Result<Opened<'a>, String> {
        let unreadable = |e| format!("the input {} cannot be read: {e}", name(input));
        let file = match &input.file {
            Some(path) => File::open(path),
            None => standard_input(),
        };
        let mut file = file.map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.is_dir() {
            return Err(unreadable(io::Error::other("it is a directory")));
        }
        // Standard input may begin in the middle of a file.
        let start = match metadata.is_file() {
            true => Some(file.stream_position().map_err(unreadable)?),
            false => None,
        };
        let opened = Opened {
            input,
            file: Arc::new(file),
            start,
            size: metadata.len(),
        };
        if start.is_some() {
            opened.lines()?;
        } else if opened.file.is_terminal() {
            let format = match input.format.delimiter() {
                Some(_) => "a CSV, its header row first,",
                None => "JSON lines, one update each,",
            };
            screen::note(&format!(
                "reading {format} from this terminal; Ctrl-D on a line of its own ends the input"
            ));
        }
        Ok(opened)
    }

    /// Copies a pipe into an unnamed file, so that it can be read more than once.
    pub(crate) fn spool(&mut self) -> Result<(), String> {
        if self.start.is_some() {
            return Ok(());
        }
        let kept = tempfile::tempfile().and_then(|mut kept| {
            self.size = io::copy(&mut self.reader(), &mut kept)?;
            kept.flush().map(|()| kept)
        });
        let kept = kept.map_err(|e| {
            format!(
                "the input {} cannot be kept in {} for a second reading: {e}",
                self.name(),
                std::env::temp_dir().display()
            )
        })?;
        (self.file, self.start) = (Arc::new(kept), Some(0));
        Ok(())
    }

    fn reader(&self) -> Reader {
        Reader {
            file: self.file.clone(),
            at: self.start,
            over: false,
        }
    }

    /// Reads it from its beginning: its lines, once its format is what was said.
    pub(crate) fn lines(&self) -> Result<Lines, String> {
        let unusable = |problem| format!("the input {} cannot be used: {problem}", self.name());
        let mut source = BufReader::with_capacity(BUFFER, self.reader());
        let start = source
            .fill_buf()
            .map_err(|e| format!("the input {} cannot be read: {e}", self.name()))?;
        // A file gives as much at once as there is. Of a pipe only what is there is looked at:
        // more may be long in coming.
        let whole = self.start.is_some() && start.len() < BUFFER;
        sniff::check(start, whole, self.input.format.delimiter()).map_err(unusable)?;
        let watched = self.start.map(|_| (self.file.clone(), self.size));
        Lines::new(Box::new(source), self.input, watched).map_err(unusable)
    }

    pub(crate) fn name(&self) -> String {
        name(self.input)
    }

    /// About how many lines there are to run, if that can be known without waiting for them.
    pub(crate) fn count(&self) -> Option<u64> {
        self.start?;
        let mut lines = self.lines().ok()?;
        let count = std::iter::from_fn(|| lines.next_record()).count() as u64;
        Some(self.input.shard.map_or(count, |shard| count / shard.count))
    }
}

fn name(input: &Input) -> String {
    match &input.file {
        Some(path) => path.display().to_string(),
        None => "from standard input".into(),
    }
}

#[cfg(unix)]
fn standard_input() -> io::Result<File> {
    std::os::fd::AsFd::as_fd(&io::stdin())
        .try_clone_to_owned()
        .map(File::from)
}

#[cfg(windows)]
fn standard_input() -> io::Result<File> {
    std::os::windows::io::AsHandle::as_handle(&io::stdin())
        .try_clone_to_owned()
        .map(File::from)
}

/// One reading of the file. It has a place of its own, so that two readings do not move each other.
struct Reader {
    file: Arc<File>,
    at: Option<u64>,
    /// A terminal gives more after its end: one Ctrl-D is enough.
    over: bool,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.over || buffer.is_empty() {
            return Ok(0);
        }
        let read = loop {
            let read = match self.at {
                Some(at) => read_at(&self.file, buffer, at),
                None => (&*self.file).read(buffer),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.over = read == 0;
        self.at = self.at.map(|at| at + read as u64);
        Ok(read)
    }
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, at)
}

#[cfg(windows)]
fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a terminal does it after a Ctrl-D.
    #[test]
    fn nothing_is_read_after_the_end() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"one\n").unwrap();
        let mut reader = Reader {
            file: Arc::new(file.reopen().unwrap()),
            at: None,
            over: false,
        };
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        file.write_all(b"two\n").unwrap();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one\n");
    }

    #[test]
    fn readings_of_one_file_do_not_move_each_other() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"{\"conversationId\":1}\n{\"b\":2}\n")
            .unwrap();
        let input = Input {
            file: Some(file.path().to_owned()),
            ..Input::default()
        };
        let opened = Opened::of(&input).unwrap();
        let (mut one, mut two) = (opened.lines().ok().unwrap(), opened.lines().ok().unwrap());
        for number in 1..=2 {
            for lines in [&mut one, &mut two] {
                assert_eq!(lines.next_record().unwrap().number, number);
            }
        }
        assert_eq!(opened.count(), Some(2));
    }
}
