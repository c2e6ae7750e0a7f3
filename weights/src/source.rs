//! Where a checkpoint's bytes come from: a mapped file, or bytes that are part of the program.

mod mapped;

use std::borrow::Cow;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::{fmt, path};

use crate::error::LoadError;

pub use mapped::MappedFile;

/// Bytes of a file that is read whole (everything but shards) at most.
const SIDE_FILE_BYTES_MAX: u64 = 256 << 20;

/// Read-only bytes, cheap to clone.
#[derive(Clone)]
pub enum Bytes {
    /// A mapped file.
    Mapped(Arc<MappedFile>),
    /// Part of the program.
    Static(&'static [u8]),
    /// Nowhere: of a checkpoint that was planned, not written. For runs that compute nothing.
    Absent {
        /// How many there would be.
        n_bytes: usize,
    },
}

impl Bytes {
    /// All of them.
    ///
    /// # Panics
    /// If they are absent.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
            Bytes::Absent { n_bytes } => panic!("{n_bytes} bytes of a checkpoint without data"),
        }
    }

    /// Whether there is nothing to be read.
    pub fn is_absent(&self) -> bool {
        matches!(self, Bytes::Absent { .. })
    }

    /// Whether all bytes of `range` are zeroes that no disk holds: then they need not be read.
    pub fn is_hole(&self, range: Range<usize>) -> bool {
        match self {
            Bytes::Mapped(file) => file.is_hole(range.start as u64..range.end as u64),
            Bytes::Static(_) | Bytes::Absent { .. } => false,
        }
    }

    /// Copies what lies at `offset` into `out`, straight from the file where there is one: nothing
    /// of it stays resident.
    ///
    /// # Errors
    /// The file cannot be read, or is shorter than it was when it was opened.
    ///
    /// # Panics
    /// If they are absent.
    pub fn read_at(&self, offset: usize, out: &mut [u8]) -> Result<(), LoadError> {
        match self {
            Bytes::Mapped(file) => file.read_at(offset as u64, out),
            Bytes::Static(_) | Bytes::Absent { .. } => {
                out.copy_from_slice(&self.as_slice()[offset..offset + out.len()]);
                Ok(())
            }
        }
    }

    /// Has the system bring `range` into its memory as readers like it best, before it is read.
    pub fn fetch(&self, range: Range<usize>) {
        if let Bytes::Mapped(file) = self {
            file.fetch(range);
        }
    }

    /// Has the system take `range` out of this process's memory: it may keep it in its own, and
    /// brings it back for who reads it again.
    pub fn forget(&self, range: Range<usize>) {
        if let Bytes::Mapped(file) = self {
            file.forget(range);
        }
    }

    /// A way of one's own to them.
    pub fn reader(&self) -> Reader {
        let file = match self {
            Bytes::Mapped(file) => file.open_again(),
            Bytes::Static(_) | Bytes::Absent { .. } => None,
        };
        Reader { bytes: self.clone(), file }
    }

    /// A number by which clones of the same bytes know each other; `None` where there are none.
    pub fn id(&self) -> Option<usize> {
        match self {
            Bytes::Mapped(_) | Bytes::Static(_) => Some(self.as_slice().as_ptr().addr()),
            Bytes::Absent { .. } => None,
        }
    }

    /// Bytes of values that were taken out of the file: read, or decoded where they are mapped.
    pub(crate) fn n_bytes_read(&self) -> u64 {
        match self {
            Bytes::Mapped(file) => file.n_bytes_read(),
            Bytes::Static(_) | Bytes::Absent { .. } => 0,
        }
    }

    /// Counts values that were decoded where they are mapped.
    pub(crate) fn count(&self, n_bytes: usize) {
        if let Bytes::Mapped(file) = self {
            file.count(n_bytes);
        }
    }

    /// Whether all that was read of them was there. Mapped files may shrink meanwhile.
    ///
    /// # Errors
    /// The file, if it lost bytes: zeroes were read in their place.
    pub fn check(&self) -> Result<(), LoadError> {
        match self {
            Bytes::Mapped(file) => file.check(),
            Bytes::Static(_) | Bytes::Absent { .. } => Ok(()),
        }
    }

    /// How many.
    pub fn n_bytes(&self) -> usize {
        match self {
            Bytes::Absent { n_bytes } => *n_bytes,
            Bytes::Mapped(_) | Bytes::Static(_) => self.as_slice().len(),
        }
    }
}

/// One who reads long runs of a file, one after the other, while others read elsewhere in it: the
/// system reads ahead of each. What it fetches so lies in memory in long pieces too, from which
/// later reads take it several times as fast as from the single pages that it is asked for ahead
/// (`MADV_WILLNEED`) or finds out of order.
pub struct Reader {
    bytes: Bytes,
    file: Option<File>,
}

impl Reader {
    /// Whether it reads these.
    pub fn is_of(&self, bytes: &Bytes) -> bool {
        self.bytes.id() == bytes.id()
    }

    /// As [`Bytes::read_at`].
    ///
    /// # Errors
    /// The file cannot be read, or is shorter than it was when it was opened.
    ///
    /// # Panics
    /// If they are absent.
    pub fn read_at(&self, offset: usize, out: &mut [u8]) -> Result<(), LoadError> {
        match (&self.bytes, &self.file) {
            (Bytes::Mapped(mapped), Some(file)) => mapped.read_of(file, offset as u64, out),
            (bytes, _) => bytes.read_at(offset, out),
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.n_bytes())
    }
}

/// A set of named files.
#[derive(Debug)]
pub(crate) enum Source {
    /// A directory.
    Dir(PathBuf),
    /// Files that are part of the program.
    Embedded { name: String, files: &'static [(&'static str, &'static [u8])] },
}

impl Source {
    /// The file's path, for messages.
    pub(crate) fn path(&self, file: &str) -> String {
        match self {
            Source::Dir(dir) => dir.join(file).display().to_string(),
            Source::Embedded { name, .. } => format!("{name}/{file}"),
        }
    }

    /// The whole's name, for messages.
    pub(crate) fn name(&self) -> String {
        match self {
            Source::Dir(dir) => dir.display().to_string(),
            Source::Embedded { name, .. } => name.clone(),
        }
    }

    /// The content of a small file, `None` if there is no such file.
    pub(crate) fn read(&self, file: &str) -> Result<Option<Cow<'_, [u8]>>, LoadError> {
        self.check_name(file)?;
        let dir = match self {
            Source::Embedded { .. } => return Ok(self.embedded(file).map(Cow::Borrowed)),
            Source::Dir(dir) => dir,
        };
        let path = dir.join(file);
        let n_bytes = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LoadError::Read { path: self.path(file), source }),
        };
        if n_bytes > SIDE_FILE_BYTES_MAX {
            let n_bytes_max = SIDE_FILE_BYTES_MAX;
            return Err(LoadError::TooLarge { path: self.path(file), n_bytes, n_bytes_max });
        }
        let content = fs::read(&path);
        let content =
            content.map_err(|source| LoadError::Read { path: self.path(file), source })?;
        Ok(Some(Cow::Owned(content)))
    }

    /// A file's bytes without reading them, `None` if there is no such file.
    pub(crate) fn map(&self, file: &str) -> Result<Option<Bytes>, LoadError> {
        self.check_name(file)?;
        let dir = match self {
            Source::Embedded { .. } => return Ok(self.embedded(file).map(Bytes::Static)),
            Source::Dir(dir) => dir,
        };
        let opened = match File::open(dir.join(file)) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LoadError::Read { path: self.path(file), source }),
        };
        let map = MappedFile::open(opened, self.path(file));
        let map = map.map_err(|source| LoadError::Read { path: self.path(file), source })?;
        Ok(Some(Bytes::Mapped(Arc::new(map))))
    }

    /// Names of all files, sorted; folders are none.
    pub(crate) fn file_names(&self) -> Result<Vec<String>, LoadError> {
        let mut names = match self {
            Source::Embedded { files, .. } => {
                files.iter().map(|(name, _)| (*name).to_owned()).collect()
            }
            Source::Dir(dir) => {
                let failed = |source| LoadError::Read { path: self.name(), source };
                let entries = fs::read_dir(dir).map_err(failed)?;
                let mut names = Vec::new();
                for entry in entries {
                    let entry = entry.map_err(failed)?;
                    if !entry.path().is_dir() {
                        names.push(entry.file_name().to_string_lossy().into_owned());
                    }
                }
                names
            }
        };
        names.sort_unstable();
        Ok(names)
    }

    fn embedded(&self, file: &str) -> Option<&'static [u8]> {
        match self {
            Source::Dir(_) => None,
            Source::Embedded { files, .. } => {
                files.iter().find(|(name, _)| *name == file).map(|(_, bytes)| *bytes)
            }
        }
    }

    pub(crate) fn check_name(&self, file: &str) -> Result<(), LoadError> {
        let mut components = path::Path::new(file).components();
        let is_plain = matches!(components.next(), Some(path::Component::Normal(_)))
            && components.next().is_none()
            && !file.ends_with('/');
        if is_plain {
            return Ok(());
        }
        Err(LoadError::FileName { path: self.name(), name: file.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_opened() {
        let source = Source::Embedded { name: "m".to_owned(), files: &[("a.json", b"{}")] };
        assert_eq!(source.read("a.json").unwrap().unwrap().as_ref(), b"{}");
        assert!(source.read("b.json").unwrap().is_none());
        for name in ["", ".", "..", "/a.json", "../a.json", "x/a.json", "a.json/", "./a.json"] {
            let error = source.read(name).unwrap_err().to_string();
            assert!(error.contains("not a plain file name"), "{name}: {error}");
        }
    }
}
