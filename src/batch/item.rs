//! What a batch reads: an update, the error of a line that is none, or nothing yet.

use std::io;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::update::Update;

/// An item of a batch's input: an [`Update`], or the error of a line that is none.
///
/// An input that may have to wait can give `Option`s: after a `None` the batch hands over outcomes
/// and asks again.
pub trait BatchItem {
    /// The update, or why there is none. The error should not hold values.
    ///
    /// # Errors
    ///
    /// The line's outcome is `failed` with this error, for good unless it
    /// [is transient](Error::is_transient).
    fn into_update(self) -> Result<Update>;

    /// True if the item may be cut short, as the last line of a file without a line end. With a
    /// journal it runs again when it has changed.
    fn is_partial(&self) -> bool {
        false
    }

    /// False if the input has nothing yet. The item is then dropped, and gets no line number.
    fn is_ready(&self) -> bool {
        true
    }
}

impl BatchItem for Update {
    fn into_update(self) -> Result<Update> {
        Ok(self)
    }
}

impl BatchItem for Result<Update, Error> {
    fn into_update(self) -> Result<Update> {
        self
    }
}

/// `None`: the input has nothing yet.
impl<B: BatchItem> BatchItem for Option<B> {
    fn into_update(self) -> Result<Update> {
        let nothing = || Err(Error::new(ErrorKind::Internal, "the input has nothing yet"));
        self.map_or_else(nothing, B::into_update)
    }

    fn is_partial(&self) -> bool {
        self.as_ref().is_some_and(B::is_partial)
    }

    fn is_ready(&self) -> bool {
        self.as_ref().is_some_and(B::is_ready)
    }
}

/// FNV-1a, 64 bits.
struct Digest(u64);

impl io::Write for Digest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The FNV-1a hash of what is written into it.
pub(super) fn hash(write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> u64 {
    let mut digest = Digest(0xCBF2_9CE4_8422_2325);
    // Hashing does not fail.
    let _ = write(&mut digest);
    digest.0
}

/// What a journal keeps of a line, beside its outcome.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Mark {
    /// Tells a changed line from an unchanged one: the hash of what the update writes, or of the
    /// error.
    pub(super) digest: u64,
    pub(super) is_partial: bool,
}

/// One item, as the batch runs it.
pub(super) struct Line<T> {
    pub(super) number: u64,
    pub(super) tag: T,
    pub(super) update: Result<Update>,
    pub(super) mark: Mark,
}

impl<T> Line<T> {
    /// `None` if the input has nothing yet.
    pub(super) fn read<U: BatchItem>((number, tag, item): (u64, T, U)) -> Option<Line<T>> {
        if !item.is_ready() {
            return None;
        }
        let is_partial = item.is_partial();
        let mut update = item.into_update();
        Some(Line {
            number,
            tag,
            mark: Mark {
                digest: digest(&mut update),
                is_partial,
            },
            update,
        })
    }
}

fn digest(item: &mut Result<Update>) -> u64 {
    match item {
        Ok(update) => {
            // These say how it is written, and may differ from one run to the next.
            let how = (update.verify, update.skip_unchanged);
            (update.verify, update.skip_unchanged) = (false, false);
            let digest = hash(|out| Ok(serde_json::to_writer(out, &*update)?));
            (update.verify, update.skip_unchanged) = how;
            digest
        }
        Err(error) => hash(|out| write!(out, "{error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_the_published_fnv_1a() {
        for (text, expected) in [
            ("", 0xCBF2_9CE4_8422_2325),
            ("a", 0xAF63_DC4C_8601_EC8C),
            ("foobar", 0x8594_4171_F739_67E8),
        ] {
            assert_eq!(hash(|out| out.write_all(text.as_bytes())), expected);
        }
    }

    #[test]
    fn digest_follows_what_is_written_and_not_how() {
        let of = |update: Update| digest(&mut Ok(update));
        let update = || Update::secure("c-1").set("a", "1");
        assert_eq!(of(update()), of(update().verify().skip_unchanged()));
        for other in [
            Update::secure("c-2").set("a", "1"),
            Update::conversation("c-1").set("a", "1"),
            update().set("a", "2"),
            update().set("b", "1"),
            update().remove("b"),
            update().if_version("7"),
            update().unlocked(),
        ] {
            assert_ne!(of(update()), of(other.clone()), "{other:?}");
        }
        let error = |text| digest(&mut Err(Error::new(ErrorKind::InvalidInput, text)));
        assert_eq!(error("no JSON"), error("no JSON"));
        assert_ne!(error("no JSON"), error("no object"));
    }
}
