//! How far a log was delivered, in a file that is replaced in one step.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::failed;
use crate::error::{Error, ErrorKind, Result};
use crate::report::audit::AuditRecord;
use crate::report::audit::parts::{
    Head, Place, beside, open_lock, private, siblings, sync_folder, try_lock,
};
use crate::util::random::unique_name;

/// A place in a log, up to which it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub(super) struct Mark {
    /// A hash of the file's first line; `None` while it has none.
    pub(super) first: Option<u64>,
    /// Which part of the log the file is, where its first record says so.
    pub(super) place: Option<Place>,
    /// Everything before is read.
    pub(super) offset: u64,
    /// The line that ends there.
    pub(super) last: Option<Tail>,
}

impl Mark {
    pub(super) fn beginning(head: Head) -> Mark {
        Mark {
            first: head.first,
            place: head.place,
            offset: 0,
            last: None,
        }
    }
}

/// The end of a line, by which it is known again: the file may have been cut or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tail {
    pub(super) hash: u64,
    pub(super) bytes: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Cursor {
    pub(super) version: u32,
    /// Everything before is delivered.
    pub(super) mark: Mark,
    /// The first lines of other parts that are not to be read, where no number tells it.
    pub(super) left: Vec<u64>,
    /// The intents before the mark without an outcome. They are kept whole, since the file that
    /// holds them may be gone when they are settled.
    pub(super) pending: Vec<Pending>,
    /// The settled and delivered writes whose outcome is still to be read.
    pub(super) told: Vec<String>,
}

/// An intent without an outcome.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Pending {
    /// The log says that its writer has gone.
    orphan: bool,
    /// No process writes the log. It is not saved, since the next run may find a writer.
    #[serde(skip)]
    unwritten: bool,
    /// Another write on top of the same version was applied, so this one was not.
    pub(super) superseded: bool,
    /// When this run first found it without a writer.
    #[serde(skip)]
    pub(super) since: Option<Instant>,
    pub(super) record: AuditRecord,
}

impl Pending {
    pub(super) fn new(record: AuditRecord) -> Pending {
        Pending {
            orphan: false,
            unwritten: false,
            superseded: false,
            since: None,
            record,
        }
    }

    pub(super) fn is_orphan(&self) -> bool {
        self.orphan || self.unwritten
    }

    /// Notes that its writer has gone, as the log says or the lock shows. False if that was known.
    pub(super) fn orphaned(&mut self, by_log: bool) -> bool {
        let was_known = self.is_orphan();
        self.orphan |= by_log;
        self.unwritten = true;
        !was_known
    }
}

const VERSION: u32 = 3;

impl Cursor {
    pub(super) fn at(mark: Mark, left: Vec<u64>) -> Cursor {
        Cursor {
            version: VERSION,
            mark,
            left,
            pending: Vec::new(),
            told: Vec::new(),
        }
    }

    /// The cursor in a file; `None` where there is none yet.
    pub(super) fn read(path: &Path) -> Result<Option<Cursor>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("the cursor", path, "read", e)),
        };
        let cursor = serde_json::from_slice::<Cursor>(&bytes).ok();
        match cursor.filter(|cursor| cursor.version == VERSION) {
            Some(cursor) => Ok(Some(cursor)),
            None => Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "{} is no cursor of this version: give another file; without one the log is \
                     forwarded from its beginning",
                    path.display()
                ),
            )),
        }
    }

    /// Replaces the file: a crash leaves the old one or the new one.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let draft = beside(path, &format!(".{}.tmp", unique_name()));
        let write = || -> io::Result<()> {
            // A new file: a link that others planted is not followed.
            let mut file = private().write(true).create_new(true).open(&draft)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()?;
            drop(file);
            std::fs::rename(&draft, path)?;
            sync_folder(path)
        };
        write().map_err(|e| {
            let _ = std::fs::remove_file(&draft);
            failed("the cursor", path, "written", e)
        })
    }
}

/// Locks a cursor; `None` while another forwarder has it. Drafts of forwarders that were killed are
/// removed.
pub(super) fn lock(cursor: &Path) -> Result<Option<File>> {
    let file =
        open_lock(cursor).map_err(|e| failed("the lock of the cursor", cursor, "opened", e))?;
    if !try_lock(&file) {
        return Ok(None);
    }
    for other in siblings(cursor).unwrap_or_default() {
        if other.extension().is_some_and(|ending| ending == "tmp") {
            let _ = std::fs::remove_file(other);
        }
    }
    Ok(Some(file))
}
