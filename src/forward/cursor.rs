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
    Head, Part, Place, beside, open_lock, private, siblings, sync_folder, try_lock,
};
use crate::report::receipt::Status;
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
            ..Mark::default()
        }
    }

    pub(super) fn end_of(part: &Part) -> Mark {
        Mark {
            offset: part.length,
            ..Mark::beginning(part.head.clone())
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
    version: u32,
    /// Everything before is delivered.
    pub(super) mark: Mark,
    /// The intents before the mark without an outcome. They are kept whole, since the file that
    /// holds them may be gone when they are settled.
    pub(super) pending: Vec<Pending>,
}

/// An intent without an outcome.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) record: AuditRecord,
    /// The log says that its writer has gone.
    pub(super) orphan: bool,
    /// Another write on top of the same version was applied, so this one was not.
    pub(super) superseded: bool,
    /// When this run first found it without a writer. It is not saved: another log may have one.
    #[serde(skip)]
    pub(super) since: Option<Instant>,
    /// When and why a read of its target did not tell what became of it.
    #[serde(skip)]
    pub(super) unknown: Option<(Instant, String)>,
    /// The status of its outcome as a read of its target tells it, and whether it may have been
    /// applied all the same. It holds if the log, read to its end after that, says nothing else.
    #[serde(skip)]
    pub(super) verdict: Option<(Status, bool)>,
}

impl Pending {
    pub(super) fn new(record: AuditRecord) -> Pending {
        Pending {
            record,
            orphan: false,
            superseded: false,
            since: None,
            unknown: None,
            verdict: None,
        }
    }

    /// True if its writer has gone.
    pub(super) fn is_orphan(&self) -> bool {
        self.orphan || self.since.is_some()
    }
}

const VERSION: u32 = 3;

impl Cursor {
    pub(super) fn new(mark: Mark, pending: Vec<Pending>) -> Cursor {
        Cursor {
            version: VERSION,
            mark,
            pending,
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
