//! Lines that wait to run again: the first ones in memory, the rest in a file without a name.

use std::collections::VecDeque;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Seek, Write};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::update::Update;
use crate::util::random::unique_name;

use super::item::{Line, Mark};

/// So much stays in memory.
const MAX_BYTES: usize = 1 << 20;

pub(super) struct Spool<T> {
    lines: VecDeque<Line<T>>,
    bytes: usize,
    file: Option<BufWriter<File>>,
    /// The tags of the lines in the file.
    tags: VecDeque<T>,
}

/// A line as the file has it.
#[derive(Serialize, Deserialize)]
struct Kept {
    number: u64,
    mark: Mark,
    update: std::result::Result<Update, Error>,
}

fn failed(error: impl Display) -> Error {
    let text = format!("the lines that run again cannot be kept in a temporary file: {error}");
    Error::new(ErrorKind::Config, text)
}

impl<T> Spool<T> {
    pub(super) fn new() -> Spool<T> {
        Spool {
            lines: VecDeque::new(),
            bytes: 0,
            file: None,
            tags: VecDeque::new(),
        }
    }

    pub(super) fn push(&mut self, line: Line<T>) -> Result<()> {
        let bytes = line.update.as_ref().map_or(0, Update::approximate_size);
        self.bytes = self.bytes.saturating_add(size_of::<Line<T>>() + bytes);
        if self.bytes <= MAX_BYTES {
            self.lines.push_back(line);
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self
                .file
                .insert(BufWriter::new(nameless().map_err(failed)?)),
        };
        let kept = Kept {
            number: line.number,
            mark: line.mark,
            update: line.update,
        };
        serde_json::to_writer(&mut *file, &kept).map_err(failed)?;
        self.tags.push_back(line.tag);
        file.write_all(b"\n").map_err(failed)
    }

    /// The lines, in order.
    pub(super) fn read(self) -> Result<impl Iterator<Item = Result<Line<T>>>> {
        let file = match self.file {
            None => None,
            Some(file) => {
                let mut file = file.into_inner().map_err(failed)?;
                file.rewind().map_err(failed)?;
                Some(BufReader::with_capacity(1 << 16, file))
            }
        };
        let kept = file.into_iter().flat_map(|file| {
            let lines = serde_json::Deserializer::from_reader(file);
            lines.into_iter::<Kept>()
        });
        let rest = kept.zip(self.tags).map(|(kept, tag)| {
            let kept = kept.map_err(failed)?;
            Ok(Line {
                number: kept.number,
                tag,
                update: kept.update,
                mark: kept.mark,
            })
        });
        Ok(self.lines.into_iter().map(Ok).chain(rest))
    }
}

/// A new file for its owner alone, whose name is removed at once.
fn nameless() -> io::Result<File> {
    let path = std::env::temp_dir().join(format!(".genesys-attributes-{}", unique_name()));
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_memory_come_back_as_they_were() {
        let update = |n: u64| match n % 5 {
            0 => Err(Error::new(ErrorKind::InvalidInput, format!("wrong {n}"))),
            1 => Ok(Update::secure(format!("c-{n}"))
                .set("a", "x".repeat(100))
                .verify()),
            2 => Ok(Update::custom("c", "r").set("n", n).skip_unchanged()),
            3 => Ok(Update::conversation("c").set("n", n).if_version("7")),
            _ => Ok(Update::participant("c", "customer").set("n", "\u{2028}\n\"")),
        };
        let mut spool = Spool::new();
        for n in 0..20_000 {
            let line = Line::read((n, n, update(n))).unwrap();
            spool.push(line).unwrap();
        }
        assert!(spool.lines.len() < 10_000 && !spool.tags.is_empty());
        let mut next = 0;
        for line in spool.read().unwrap() {
            let line = line.unwrap();
            assert_eq!((line.number, line.tag), (next, next));
            let expected = Line::read((next, (), update(next))).unwrap();
            assert_eq!(line.mark.digest, expected.mark.digest);
            assert_eq!(
                format!("{:?}", line.update),
                format!("{:?}", expected.update)
            );
            next += 1;
        }
        assert_eq!(next, 20_000);
    }
}
