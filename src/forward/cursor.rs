//! How far a log was delivered, in a file that is replaced in one step.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{beside, failed};
use crate::audit::AuditRecord;
use crate::audit::file::{Identity, private};
use crate::error::{Error, ErrorKind, Result};

/// Which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub(super) struct Place {
    /// Device and inode.
    pub(super) file: Option<Identity>,
    /// A hash of the first line, once there is one.
    pub(super) first: Option<u64>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Cursor {
    version: u32,
    /// The file in which it stands.
    pub(super) place: Place,
    /// Everything before is delivered.
    pub(super) offset: u64,
    /// The intents before it that have no outcome yet. The file that they are in may be gone when
    /// they are settled, so they are kept whole.
    pub(super) pending: Vec<Pending>,
}

/// An intent without an outcome.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Pending {
    /// The file that it is in, whose writer may still live.
    pub(super) log: Option<Identity>,
    /// Another write on top of the same version was applied, so this one was not.
    pub(super) superseded: bool,
    pub(super) record: AuditRecord<'static>,
}

const VERSION: u32 = 1;

impl Cursor {
    /// The cursor of what is done.
    pub(super) fn at((place, offset): (Place, u64), pending: &[Pending]) -> Cursor {
        Cursor {
            version: VERSION,
            place,
            offset,
            pending: pending.to_vec(),
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
                    "{} is no cursor of this program: give another file; without one the log is \
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

/// The new name reaches the disk as well.
#[cfg(unix)]
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
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
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "another forwarder uses the cursor {}: wait for it, or give this one another",
                cursor.display()
            ),
        )),
        Err(std::fs::TryLockError::Error(e)) => Err(failed("the cursor's lock", &path, "taken", e)),
    }
}
