//! Refuses one file for two purposes, whatever it is called, and puts files in their place in one
//! step.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use same_file::Handle;
use tempfile::NamedTempFile;

/// The files of one run.
#[derive(Default)]
pub(crate) struct Files(Vec<Used>);

struct Used {
    name: &'static str,
    written: bool,
    identity: Identity,
}

#[derive(PartialEq)]
enum Identity {
    /// A file that is there: hard links to it are the same.
    Open(Handle),
    /// A file that is not there yet, or may not be read.
    Path(PathBuf),
}

impl Files {
    pub(crate) fn read(self, name: &'static str, path: Option<&Path>) -> Result<Files, String> {
        self.add(name, path.and_then(identity), false)
    }

    pub(crate) fn written(self, name: &'static str, path: Option<&Path>) -> Result<Files, String> {
        if path == Some(Path::new("-")) {
            return Err(format!(
                "{name} cannot be -, which is no file here: give the name of a file"
            ));
        }
        self.add(name, path.and_then(identity), true)
    }

    /// Standard output and standard error, and standard input if it is read.
    pub(crate) fn streams(self, stdin: bool) -> Result<Files, String> {
        let regular = |handle: io::Result<Handle>| {
            let handle = handle.ok()?;
            let is_file = handle.as_file().metadata().ok()?.is_file();
            is_file.then_some(Identity::Open(handle))
        };
        let input = stdin.then(|| regular(Handle::stdin())).flatten();
        self.add("standard input", input, false)?
            .add("standard output", regular(Handle::stdout()), true)?
            .add("standard error", regular(Handle::stderr()), true)
    }

    fn add(
        mut self,
        name: &'static str,
        identity: Option<Identity>,
        written: bool,
    ) -> Result<Files, String> {
        let Some(identity) = identity else {
            return Ok(self);
        };
        for other in &self.0 {
            // Both streams may go to one log.
            let streams = (other.name, name) == ("standard output", "standard error");
            if other.identity == identity && (other.written || written) && !streams {
                return Err(format!(
                    "{} and {name} are the same file: give each a file of its own",
                    other.name
                ));
            }
        }
        self.0.push(Used {
            name,
            written,
            identity,
        });
        Ok(self)
    }
}

/// Only regular files are spoilt by a second purpose.
fn identity(path: &Path) -> Option<Identity> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    match path.metadata() {
        Ok(data) if !data.is_file() => None,
        Ok(_) => Some(match Handle::from_path(path) {
            Ok(handle) => Identity::Open(handle),
            Err(_) => Identity::Path(path.canonicalize().ok()?),
        }),
        Err(_) => Some(Identity::Path(
            folder.canonicalize().ok()?.join(path.file_name()?),
        )),
    }
}

/// True if a path means what standard input reads: `-`, or another name of the same file.
pub(crate) fn is_standard_input(path: &Path) -> bool {
    // A pipe that is opened may wait for its writer: only a regular file is compared.
    let is_file = path.metadata().is_ok_and(|data| data.is_file());
    let same = || Some(Handle::from_path(path).ok()? == Handle::stdin().ok()?);
    let names = ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"].map(Path::new);
    names.contains(&path) || is_file && same() == Some(true)
}

/// The mode of a new file for every reader that the system's defaults allow.
const EVERY_READER: u32 = 0o666;
const OWNER: u32 = 0o600;

/// Puts a file in its place in one step: a reader sees the old one or the new one whole.
pub(crate) fn replace(
    path: &Path,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    put(path, EVERY_READER, content)
}

/// The same; a new file is for its owner only.
pub(crate) fn replace_private(
    path: &Path,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    put(path, OWNER, content)
}

fn put(
    path: &Path,
    mode: u32,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    // A device or a pipe cannot be replaced.
    if path.metadata().is_ok_and(|data| !data.is_file()) {
        return write(File::options().write(true).open(path)?, content);
    }
    // A link goes on pointing to the file.
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let draft = draft_of(path, mode)?;
    write(draft.as_file(), content)?;
    draft.persist(path)?;
    Ok(())
}

fn write(
    file: impl Write,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = BufWriter::new(file);
    content(&mut out)?;
    out.flush()
}

/// Tells before a run whether [`replace`] could put a file there.
pub(crate) fn replaceable(path: &Path) -> io::Result<()> {
    let exists = path.metadata().is_ok();
    if exists {
        File::options().append(true).open(path)?;
    }
    if path.metadata().is_ok_and(|data| !data.is_file()) {
        return Ok(());
    }
    draft_of(
        &path.canonicalize().unwrap_or_else(|_| path.to_owned()),
        OWNER,
    )?
    .close()
}

/// A new file beside the one that it will replace, with that one's permissions.
fn draft_of(path: &Path, mode: u32) -> io::Result<NamedTempFile> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let mut builder = tempfile::Builder::new();
    builder.prefix(".genesys-attributes-").suffix(".tmp");
    if let Some(permissions) = permissions(mode) {
        builder.permissions(permissions);
    }
    let draft = builder.tempfile_in(folder.unwrap_or(Path::new(".")))?;
    if let Ok(present) = path.metadata() {
        draft.as_file().set_permissions(present.permissions())?;
    }
    Ok(draft)
}

#[cfg(unix)]
fn permissions(mode: u32) -> Option<Permissions> {
    Some(std::os::unix::fs::PermissionsExt::from_mode(mode))
}

#[cfg(not(unix))]
fn permissions(_: u32) -> Option<Permissions> {
    None
}
