//! Which of the files of one run are the same file, whatever they are called: one of two purposes
//! would spoil the other.

use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The files of one run.
#[derive(Default)]
pub(crate) struct Files(Vec<Used>);

struct Used {
    name: &'static str,
    written: bool,
    identity: Identity,
}

#[derive(PartialEq, Eq)]
enum Identity {
    /// Device and number: the same for hard links.
    Inode(u64, u64),
    /// A file that is not there yet, or a system without such numbers.
    Path(PathBuf),
}

impl Files {
    pub(crate) fn read(self, name: &'static str, path: Option<&Path>) -> Result<Files, String> {
        self.add(name, path, false)
    }

    pub(crate) fn written(self, name: &'static str, path: Option<&Path>) -> Result<Files, String> {
        self.add(name, path, true)
    }

    fn add(self, name: &'static str, path: Option<&Path>, written: bool) -> Result<Files, String> {
        match path.and_then(identity) {
            Some(identity) => self.check(Used {
                name,
                written,
                identity,
            }),
            None => Ok(self),
        }
    }

    /// Standard output and standard error, where they go to a file, and standard input where it is
    /// read.
    pub(crate) fn streams(self, stdin: bool) -> Result<Files, String> {
        let mut files = self;
        for (name, wanted, written) in [
            ("standard input", stdin, false),
            ("standard output", true, true),
            ("standard error", true, true),
        ] {
            if wanted && let Some(identity) = stream(name) {
                files = files.check(Used {
                    name,
                    written,
                    identity,
                })?;
            }
        }
        Ok(files)
    }

    fn check(mut self, new: Used) -> Result<Files, String> {
        for other in &self.0 {
            // Both may go to one log.
            let streams = (other.name, new.name) == ("standard output", "standard error");
            if other.identity == new.identity && (other.written || new.written) && !streams {
                return Err(format!(
                    "{} and {} are the same file: give each a file of its own",
                    other.name, new.name
                ));
            }
        }
        self.0.push(new);
        Ok(self)
    }
}

fn identity(path: &Path) -> Option<Identity> {
    match std::fs::metadata(path) {
        Ok(metadata) => of_metadata(&metadata, || path.canonicalize().ok()),
        // Not there yet: its folder is.
        Err(_) => {
            let name = path.file_name()?;
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new(".")).canonicalize().ok()?;
            Some(Identity::Path(folder.join(name)))
        }
    }
}

/// Only regular files are spoilt by a second purpose.
#[cfg(unix)]
fn of_metadata(metadata: &Metadata, _: impl Fn() -> Option<PathBuf>) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;
    metadata
        .is_file()
        .then(|| Identity::Inode(metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn of_metadata(metadata: &Metadata, path: impl Fn() -> Option<PathBuf>) -> Option<Identity> {
    metadata.is_file().then(path)?.map(Identity::Path)
}

#[cfg(unix)]
fn stream(name: &str) -> Option<Identity> {
    use std::os::fd::AsFd;
    let copy = match name {
        "standard input" => io::stdin().as_fd().try_clone_to_owned(),
        "standard output" => io::stdout().as_fd().try_clone_to_owned(),
        _ => io::stderr().as_fd().try_clone_to_owned(),
    };
    let metadata = File::from(copy.ok()?).metadata().ok()?;
    of_metadata(&metadata, || None)
}

#[cfg(not(unix))]
fn stream(_: &str) -> Option<Identity> {
    None
}

/// Whether a path means what standard input reads: `-`, or another name of the same pipe or file.
pub(crate) fn is_standard_input(path: &Path) -> bool {
    path.as_os_str() == "-" || is_same_as_stdin(path)
}

#[cfg(unix)]
fn is_same_as_stdin(path: &Path) -> bool {
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    let stdin = io::stdin().as_fd().try_clone_to_owned();
    let stdin = stdin.and_then(|copy| File::from(copy).metadata());
    let at = |data: Metadata| (data.dev(), data.ino());
    match (stdin, std::fs::metadata(path)) {
        (Ok(stdin), Ok(found)) => at(stdin) == at(found),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_same_as_stdin(_: &Path) -> bool {
    false
}

/// Who may read a file that is put in place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Readers {
    /// Whoever the system's defaults allow.
    Anybody,
    /// Its owner; of a file that is there already, whoever may read it now.
    Owner,
}

/// Puts a file in its place in one step, so that a reader sees the old one or the new one whole.
pub(crate) fn replace(
    path: &Path,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    put(path, Readers::Anybody, content)
}

/// The same for what others should not read.
pub(crate) fn replace_private(
    path: &Path,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    put(path, Readers::Owner, content)
}

fn put(
    path: &Path,
    readers: Readers,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    // What is no regular file (a device, a pipe) cannot be replaced.
    let present = std::fs::metadata(path).ok();
    if present.as_ref().is_some_and(|data| !data.is_file()) {
        let mut out = io::BufWriter::new(File::options().write(true).open(path)?);
        content(&mut out)?;
        return out.flush();
    }
    // A link goes on pointing to the file.
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let draft = draft_of(path)?;
    let written = new_file(&draft, readers, present.as_ref()).and_then(|file| {
        let mut out = io::BufWriter::new(file);
        content(&mut out)?;
        out.flush()
    });
    let placed = written.and_then(|()| std::fs::rename(&draft, path));
    if placed.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    placed
}

/// Whether [`replace`] could put a file there, as far as can be told before.
pub(crate) fn replaceable(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|data| !data.is_file()) {
        return File::options().write(true).open(path).map(drop);
    }
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if path.exists() {
        File::options().append(true).open(path)?;
    }
    let draft = draft_of(path)?;
    new_file(&draft, Readers::Owner, None)?;
    std::fs::remove_file(&draft)
}

fn draft_of(path: &Path) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.tmp", std::process::id()));
    Ok(path.with_file_name(hidden))
}

#[cfg(unix)]
fn new_file(path: &Path, readers: Readers, present: Option<&Metadata>) -> io::Result<File> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    if readers == Readers::Owner {
        options.mode(0o600);
    }
    let file = options.open(path)?;
    if let (Readers::Owner, Some(data)) = (readers, present) {
        file.set_permissions(std::fs::Permissions::from_mode(data.permissions().mode()))?;
    }
    Ok(file)
}

#[cfg(not(unix))]
fn new_file(path: &Path, _: Readers, _: Option<&Metadata>) -> io::Result<File> {
    File::create(path)
}
