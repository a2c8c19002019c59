//! Takes records out of a source: lines of JSON, or rows of CSV with the line breaks in their quotes.

use std::io::{self, BufRead};

/// The longest record that is kept. A longer one is read to its end, and its beginning kept.
pub(crate) const LONGEST: usize = 1 << 20;

/// One record as it was read.
pub(crate) struct Piece {
    /// Its text without the line end; only the beginning of one that is longer than [`LONGEST`].
    pub(crate) text: Vec<u8>,
    /// Its whole length in bytes without the line end.
    pub(crate) length: u64,
    /// The lines that it takes, as an editor counts them.
    pub(crate) lines: u64,
    /// False for the last record of a source without a line end.
    pub(crate) ended: bool,
    /// True if the source ended inside of quotes.
    pub(crate) unclosed: bool,
}

/// Where a byte of a CSV stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    CellStart,
    Plain,
    Quoted,
    /// After a quote in a quoted cell: a second one is a quote of the text.
    AfterQuote,
}

impl Place {
    fn after(self, byte: u8, delimiter: u8) -> Place {
        match (self, byte) {
            (Place::Quoted, b'"') => Place::AfterQuote,
            (Place::Quoted, _) | (Place::AfterQuote | Place::CellStart, b'"') => Place::Quoted,
            _ if byte == delimiter => Place::CellStart,
            _ => Place::Plain,
        }
    }
}

/// The next record, or `None` at the end of the source. With a delimiter it is a row of CSV.
pub(crate) fn next(
    source: &mut (impl BufRead + ?Sized),
    delimiter: Option<u8>,
) -> io::Result<Option<Piece>> {
    let mut piece = Piece {
        text: Vec::new(),
        length: 0,
        lines: 0,
        ended: false,
        unclosed: false,
    };
    let mut place = Place::CellStart;
    while !piece.ended {
        let buffer = source.fill_buf()?;
        if buffer.is_empty() {
            break;
        }
        let end = match delimiter {
            None => buffer.iter().position(|byte| *byte == b'\n'),
            Some(delimiter) => buffer.iter().position(|byte| {
                let is_end = *byte == b'\n' && place != Place::Quoted;
                place = place.after(*byte, delimiter);
                is_end
            }),
        };
        let used = end.map_or(buffer.len(), |at| at + 1);
        let chunk = &buffer[..used];
        piece.ended = end.is_some();
        piece.length += used as u64;
        piece.lines += chunk.iter().filter(|byte| **byte == b'\n').count() as u64;
        // Room for a line end of two bytes.
        let room = (LONGEST + 2).saturating_sub(piece.text.len());
        piece.text.extend_from_slice(&chunk[..used.min(room)]);
        source.consume(used);
    }
    if piece.length == 0 {
        return Ok(None);
    }
    piece.unclosed = !piece.ended && place == Place::Quoted;
    piece.lines += u64::from(!piece.ended);
    piece.length -= u64::from(piece.ended);
    // All of it is there, unless it is too long.
    if piece.text.len() as u64 >= piece.length {
        piece.text.truncate(piece.length as usize);
        if piece.text.pop_if(|byte| *byte == b'\r').is_some() {
            piece.length -= 1;
        }
    }
    Ok(Some(piece))
}

impl Piece {
    pub(crate) fn is_blank(&self) -> bool {
        self.text.trim_ascii().is_empty() && !self.is_too_long()
    }

    pub(crate) fn is_too_long(&self) -> bool {
        self.length > LONGEST as u64
    }
}
