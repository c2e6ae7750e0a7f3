//! A mapped file: which of its parts are holes, and what happens when it shrinks while it is
//! mapped.
//!
//! The kernel answers a read of a page that is no longer in the file with SIGBUS, which ends a
//! process that has not asked for it. Here it puts zeroes in the page's place and remembers the
//! file: whoever has read asks before believing what it computed. Faults elsewhere go where they
//! went before.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Once, OnceLock};

use libc::{c_int, c_void, off_t, siginfo_t};
use memmap2::{Advice, UncheckedAdvice};
use rustix::fs::fadvise;

use crate::error::LoadError;

/// Mapped files of a process that are watched. Those beyond are mapped all the same, and a fault
/// in them ends the process, as it would without us.
const N_WATCHED_MAX: usize = 4096;

/// Parts with data that are remembered of a file; one of more has no holes, as far as we know.
const N_EXTENTS_MAX: usize = 1 << 16;

/// Bytes of a hole's ends that are looked at: blocks of a disk have 64 KiB at most.
const N_END_BYTES_MAX: u64 = 128 << 10;

/// What a large page of memory holds, where systems that we run on have them.
const LARGE_PAGE_BYTES: usize = 2 << 20;

/// A file in memory, read-only.
pub struct MappedFile {
    map: memmap2::Mmap,
    /// The same file, for those who take its bytes elsewhere.
    file: File,
    path: String,
    /// Of tensors' values, by whatever way.
    n_bytes_read: AtomicU64,
    /// Ascending parts that are no holes; `None` where the system does not tell.
    extents: Option<Vec<Range<u64>>>,
    watched_idx: Option<usize>,
    /// Whether faults in the mapping fetch large pages; set when that is first wanted.
    has_large_pages: OnceLock<bool>,
}

/// Where a watched mapping lies; nowhere where `end` is 0.
struct Watched {
    is_taken: AtomicBool,
    begin: AtomicUsize,
    end: AtomicUsize,
    is_broken: AtomicBool,
}

static WATCHED: [Watched; N_WATCHED_MAX] = [const {
    Watched {
        is_taken: AtomicBool::new(false),
        begin: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        is_broken: AtomicBool::new(false),
    }
}; N_WATCHED_MAX];

/// What SIGBUS did before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

impl MappedFile {
    pub(super) fn open(file: File, path: String) -> io::Result<MappedFile> {
        // SAFETY: the mapping is read-only and nothing in this program writes to the file. A file
        // that others truncate is noticed, see above; one that others rewrite in place is for the
        // operator to prevent, as with every program that maps its weights.
        let map = unsafe { memmap2::Mmap::map(&file) }?;
        let extents = extents(&file, map.len() as u64);
        let watched_idx = watch(map.as_ptr().addr(), map.len());
        let n_bytes_read = AtomicU64::new(0);
        let has_large_pages = OnceLock::new();
        Ok(MappedFile { map, file, path, n_bytes_read, extents, watched_idx, has_large_pages })
    }

    /// Reads what lies at `offset` into `out`, not through the mapping: no page of it becomes
    /// resident, and a page that is not in memory costs no fault.
    ///
    /// # Errors
    /// The file cannot be read, or is shorter than it was.
    pub(super) fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), LoadError> {
        self.read_of(&self.file, offset, out)
    }

    /// The same through `file`, which is this one opened again.
    pub(super) fn read_of(
        &self,
        file: &File,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), LoadError> {
        self.count(out.len());
        file.read_exact_at(out, offset).map_err(|source| {
            let path = self.path.clone();
            match source.kind() {
                io::ErrorKind::UnexpectedEof => LoadError::Shrank { path },
                _ => LoadError::Read { path, source },
            }
        })
    }

    /// The same file, even where its name is another's by now, with a place of its own up to which
    /// the system has read ahead. `None` where there is no way to it, which only costs time.
    pub(super) fn open_again(&self) -> Option<File> {
        let again = File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd())).ok()?;
        let _ = fadvise(&again, 0, None, rustix::fs::Advice::Sequential);
        Some(again)
    }

    /// Has the system fetch `range` from the disk in large pages, if it has them, and waits until
    /// most of it is there. What it reads ahead of reads starts with the smallest pages wherever
    /// they jump, and readers of slices jump. A fault where large pages are asked for brings two at
    /// once (Linux since 5.18, on file systems that have them), whatever the disk's read-ahead is
    /// set to. Later reads take from large pages several times as fast. What fails here only costs
    /// time, and a file that shrank is found by who reads it.
    pub(super) fn fetch(&self, range: Range<usize>) {
        let end = range.end.min(self.map.len());
        let ask = || self.map.advise(Advice::HugePage).is_ok();
        if range.start >= end || !*self.has_large_pages.get_or_init(ask) {
            return;
        }
        let first = range.start / LARGE_PAGE_BYTES * LARGE_PAGE_BYTES;
        for page in (first..end).step_by(LARGE_PAGE_BYTES) {
            // A byte of it, without a signal where the file has lost it.
            let _ = self.map.advise_range(Advice::PopulateRead, page.max(range.start), 1);
        }
        let n_bytes = (end - first).next_multiple_of(LARGE_PAGE_BYTES);
        self.forget(first..first + n_bytes);
    }

    /// Takes `range`, and what shares its pages, out of the mapping's resident memory.
    pub(super) fn forget(&self, range: Range<usize>) {
        let n_bytes = range.end.min(self.map.len()).saturating_sub(range.start);
        if n_bytes == 0 {
            return;
        }
        let how = UncheckedAdvice::DontNeed;
        // SAFETY: what is taken out of a read-only mapping of a file is there again, from the
        // file, when somebody looks at it.
        let _ = unsafe { self.map.unchecked_advise_range(how, range.start, n_bytes) };
    }

    /// Counts values that are read.
    pub(super) fn count(&self, n_bytes: usize) {
        self.n_bytes_read.fetch_add(n_bytes as u64, Ordering::Relaxed);
    }

    /// How many were counted.
    pub(super) fn n_bytes_read(&self) -> u64 {
        self.n_bytes_read.load(Ordering::Relaxed)
    }

    /// Whether all bytes of `range` are zeroes that the disk does not hold, but for the ends, which
    /// lie in a block of the disk with others' bytes. What is small is simply read.
    pub(crate) fn is_hole(&self, range: Range<u64>) -> bool {
        let Some(extents) = &self.extents else { return false };
        if range.end - range.start <= N_END_BYTES_MAX {
            return false;
        }
        let first = extents.partition_point(|extent| extent.end <= range.start);
        let mut n_left = N_END_BYTES_MAX;
        for extent in extents[first..].iter().take_while(|extent| extent.start < range.end) {
            let (begin, end) = (extent.start.max(range.start), extent.end.min(range.end));
            let Some(left) = n_left.checked_sub(end - begin) else { return false };
            n_left = left;
            if self.map[begin as usize..end as usize].iter().any(|&byte| byte != 0) {
                return false;
            }
        }
        true
    }

    /// Whether the file still had all bytes that were read of it.
    ///
    /// # Errors
    /// It lost some, or could not be read, and zeroes were read in their place.
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        let is_broken = |idx: usize| WATCHED[idx].is_broken.load(Ordering::Acquire);
        match self.watched_idx.is_some_and(is_broken) {
            true => Err(LoadError::Shrank { path: self.path.clone() }),
            false => Ok(()),
        }
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        let Some(idx) = self.watched_idx else { return };
        let watched = &WATCHED[idx];
        watched.end.store(0, Ordering::Release);
        watched.is_broken.store(false, Ordering::Release);
        watched.is_taken.store(false, Ordering::Release);
    }
}

/// Parts of the file with data, as the system tells them.
fn extents(file: &File, n_bytes: u64) -> Option<Vec<Range<u64>>> {
    let seek = |from: u64, whence: c_int| -> Option<u64> {
        // SAFETY: the descriptor is the file's, and nobody reads at its position.
        let found = unsafe { libc::lseek(file.as_raw_fd(), from as off_t, whence) };
        u64::try_from(found).ok()
    };
    let mut extents = Vec::new();
    let mut end = 0;
    while end < n_bytes {
        let Some(begin) = seek(end, libc::SEEK_DATA) else {
            // No data from here on; anything else than that is no answer.
            let is_all = io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO);
            return is_all.then_some(extents);
        };
        end = seek(begin, libc::SEEK_HOLE)?;
        if extents.len() == N_EXTENTS_MAX || end <= begin {
            return None;
        }
        extents.push(begin..end);
    }
    Some(extents)
}

/// Has faults in the mapping noticed from here on.
fn watch(begin: usize, n_bytes: usize) -> Option<usize> {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(install);
    let is_free = |watched: &Watched| !watched.is_taken.swap(true, Ordering::AcqRel);
    let idx = WATCHED.iter().position(is_free)?;
    WATCHED[idx].begin.store(begin, Ordering::Release);
    WATCHED[idx].end.store(begin + n_bytes, Ordering::Release);
    Some(idx)
}

fn install() {
    // SAFETY: a `sigaction` of zeroes is one; both structs outlive the calls. The handler does
    // only what a handler may: atomics, and one system call. `BEFORE` is set before the handler
    // can run, so that it never waits for it.
    unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGBUS, ptr::null(), &mut before);
        let _ = BEFORE.set(before);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
    }
}

/// Runs on the thread that read.
extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands a valid `info` to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() }.addr();
    let holds = |watched: &&Watched| {
        let end = watched.end.load(Ordering::Acquire);
        (watched.begin.load(Ordering::Acquire)..end).contains(&address)
    };
    if let Some(watched) = WATCHED.iter().find(holds)
        && replace(address, watched.end.load(Ordering::Acquire))
    {
        watched.is_broken.store(true, Ordering::Release);
        return;
    }
    // Nobody's mapping: back to what was before, which the fault then meets again.
    if let Some(before) = BEFORE.get() {
        // SAFETY: it is what `sigaction` gave us.
        unsafe { libc::sigaction(signal, before, ptr::null_mut()) };
    }
    let _ = context;
}

/// Puts zeroes from the page of `address` to `end`: behind a file's end all pages are gone.
fn replace(address: usize, end: usize) -> bool {
    // SAFETY: asks for a number.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let begin = address / page_bytes * page_bytes;
    // SAFETY: the pages are of a mapping of ours, which lives as long as it is watched; its bytes
    // are only ever read, and zeroes are as good as any.
    let mapped = unsafe {
        libc::mmap(
            ptr::with_exposed_provenance_mut(begin),
            end - begin,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}
