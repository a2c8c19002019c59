//! The process that made a thing, which a forked child must not use.

use crate::error::{Error, ErrorKind, Result};

/// The process that something was made in.
///
/// A forked child has copies of its parent's connections, and of locks that no thread of the child
/// will ever free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process(u32);

impl Process {
    pub(crate) fn current() -> Process {
        Process(std::process::id())
    }

    /// False in a forked child of the process that made it.
    pub(crate) fn is_current(self) -> bool {
        self == Process::current()
    }

    /// Refuses to go on in a forked child.
    pub(crate) fn check(self) -> Result<()> {
        if self.is_current() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Config,
            "made before a fork: make a client in each process, after the fork",
        ))
    }
}
