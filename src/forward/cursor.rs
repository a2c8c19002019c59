//! How far a log was delivered, in a file that is replaced in one step.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{beside, failed};
use crate::error::{Error, ErrorKind, Result};
use crate::report::audit::AuditRecord;
use crate::report::audit::file::private;
use crate::report::audit::parts::{Identity, Part, is_unwritten, sync_folder};

/// Up to where a log was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub(super) struct Mark {
    /// Device and inode of the file in which it is.
    pub(super) file: Option<Identity>,
    /// A hash of that file's first line, once there is one.
    pub(super) first: Option<u64>,
    /// Everything before is read.
    pub(super) offset: u64,
    /// The line that ends there.
    pub(super) last: Option<Tail>,
}

impl Mark {
    pub(super) fn beginning(part: &Part) -> Mark {
        Mark {
            file: part.identity,
            first: part.first,
            offset: 0,
            last: None,
        }
    }
}

/// The end of a line, by which it is known again: what stands there may be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tail {
    pub(super) hash: u64,
    pub(super) bytes: u64,
    /// When its record was made, in milliseconds since 1970; 0 for what is no record.
    pub(super) at: u64,
}

/// The files that are not read any more: those that were read to their end, and those that were
/// renamed before the first run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Left(Vec<Known>);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    first: u64,
    #[serde(with = "crate::util::date::text")]
    began: SystemTime,
}

impl Left {
    /// So many are remembered, the latest ones; one that is older than they all counts as left.
    const MOST: usize = 256;

    pub(super) fn add(&mut self, first: Option<u64>, began: Option<SystemTime>) {
        let (Some(first), Some(began)) = (first, began) else {
            return;
        };
        let at = self.0.partition_point(|known| known.began <= began);
        self.0.insert(at, Known { first, began });
        if self.0.len() > Left::MOST {
            self.0.remove(0);
        }
    }

    pub(super) fn holds(&self, first: u64, began: SystemTime) -> bool {
        let is_older = || {
            let oldest = self.0.first();
            self.0.len() == Left::MOST && oldest.is_some_and(|oldest| began < oldest.began)
        };
        self.0.iter().any(|known| known.first == first) || is_older()
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct Cursor {
    version: u32,
    /// Everything before is delivered.
    pub(super) mark: Mark,
    pub(super) left: Left,
    /// The intents before it that have no outcome yet. The file that they are in may be gone when
    /// they are settled, so they are kept whole.
    pub(super) pending: Vec<Pending>,
    /// What was settled and delivered, and whose outcome is still to be read.
    pub(super) told: Vec<String>,
}

/// An intent without an outcome.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Pending {
    /// Its writer has gone: the log says so.
    orphan: bool,
    /// Its writer has gone: nobody has this log's files. Another run may have more of them.
    #[serde(skip)]
    unwritten: bool,
    /// Another write on top of the same version was applied, so this one was not.
    pub(super) superseded: bool,
    pub(super) record: AuditRecord,
}

impl Pending {
    pub(super) fn new(record: AuditRecord) -> Pending {
        Pending {
            orphan: false,
            unwritten: false,
            superseded: false,
            record,
        }
    }

    pub(super) fn is_orphan(&self) -> bool {
        self.orphan || self.unwritten
    }

    /// Its writer has gone, as the log says or the locks show; `false` where that was known.
    pub(super) fn orphaned(&mut self, by_log: bool) -> bool {
        let was_known = self.is_orphan();
        self.orphan |= by_log;
        self.unwritten = true;
        !was_known
    }
}

const VERSION: u32 = 2;

impl Cursor {
    /// The cursor of what is done.
    pub(super) fn at(mark: Mark, left: &Left, pending: &[Pending], told: &[String]) -> Cursor {
        Cursor {
            version: VERSION,
            mark,
            left: left.clone(),
            pending: pending.to_vec(),
            told: told.to_vec(),
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
        let draft = beside(path, ".tmp");
        let write = || -> io::Result<()> {
            let mut file = private()
                .write(true)
                .create(true)
                .truncate(true)
                .open(&draft)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()?;
            std::fs::rename(&draft, path)?;
            sync_folder(path)
        };
        write().map_err(|e| failed("the cursor", path, "written", e))
    }
}

/// One forwarder a cursor. The lock is on a file beside it, since the cursor itself is replaced.
pub(super) fn lock(cursor: &Path) -> Result<File> {
    let path = beside(cursor, ".lock");
    let open = private()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    let file = open.map_err(|e| failed("the cursor's lock", &path, "opened", e))?;
    match is_unwritten(&file) {
        true => Ok(file),
        false => Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "another forwarder uses the cursor {}, or its folder has no locks: wait for it, or \
                 give this one another",
                cursor.display()
            ),
        )),
    }
}
