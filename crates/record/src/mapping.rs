//! Files that are allocated in full before they are mapped.
//!
//! A sparse file would let a full disk kill the host: the kernel answers a store to a page it cannot allocate with
//! SIGBUS. So blocks are reserved first, and a file whose blocks cannot be reserved is never mapped. What may happen to a
//! file after that is the business of [`crate::guard`].

use crate::Error;
use crate::guard::Guard;
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, fchmod, open};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::ptr::NonNull;

/// A writable shared mapping of a whole file.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    length: usize,
    /// Ends before the mapping does.
    guard: ManuallyDrop<Guard>,
}

// SAFETY: the mapping is memory of the process, not of a thread. Who writes where is settled by `Writer` and `Keeper`.
unsafe impl Send for Mapping {}
// SAFETY: through a shared reference only atomics are reachable, and `write`, whose callers promise exclusiveness.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Makes `path` (which must not exist), reserves `length` bytes and maps them. Nothing is left behind on failure.
    pub(crate) fn create(path: &Path, length: usize) -> Result<(Self, OwnedFd), Error> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = open(path, flags, mode).map_err(|e| Error::file("make", path, e))?;
        // Whatever the host takes from the modes of its files: the collector has to read this one.
        let _ = fchmod(&file, mode);
        let mapped = reserve(&file, length)
            .map_err(|error| Error::file("reserve space for", path, error))
            .and_then(|()| Self::map(&file, length).map_err(|error| Error::file("map", path, error)));
        match mapped {
            Ok(mapping) => Ok((mapping, file)),
            Err(error) => {
                // It was made a moment ago and holds nothing.
                let _ = std::fs::remove_file(path);
                Err(error)
            }
        }
    }

    fn map(file: &OwnedFd, length: usize) -> Result<Self, Errno> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe { mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, file, 0)? };
        let base = NonNull::new(base.cast::<u8>()).ok_or(Errno::INVAL)?;
        let guard = ManuallyDrop::new(Guard::new(base.addr().get(), length));
        // Faults are taken here rather than on vLLM's threads. Older kernels do not know the advice; then they are not.
        // SAFETY: the range is the mapping made above.
        let _ = unsafe { madvise(base.as_ptr().cast(), length, Advice::LinuxPopulateWrite) };
        Ok(Self { base, length, guard })
    }

    /// First byte.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Whether somebody took the file away, so that memory stands in its place.
    pub(crate) fn is_lost(&self) -> bool {
        self.guard.is_lost()
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Safety
    /// Nobody else may write there at the same time.
    pub(crate) unsafe fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.length), "write past a mapping");
        // SAFETY: the range lies inside the mapping (asserted), and the caller promises that nobody else writes it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr().add(offset), bytes.len()) };
    }

    /// The aligned word at `offset`, which may be read and written by any thread.
    pub(crate) fn word(&self, offset: usize) -> &std::sync::atomic::AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.length, "no such word");
        // SAFETY: inside the mapping, aligned (mappings are page-aligned), and only ever used atomically.
        unsafe { std::sync::atomic::AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the only place that drops it. Behind it the addresses may be anybody's.
        unsafe { ManuallyDrop::drop(&mut self.guard) };
        // SAFETY: the range is ours and nobody uses it once its owner drops it.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
    }
}

fn reserve(file: &OwnedFd, length: usize) -> Result<(), Errno> {
    match rustix::io::retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, length as u64)) {
        // Some file systems (NFS 3, some overlays) cannot reserve; writing zeros takes the blocks just as well.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let zeros = vec![0; 1 << 16];
            let mut done = 0;
            while done < length {
                let part = &zeros[..zeros.len().min(length - done)];
                done += rustix::io::pwrite(file, part, done as u64)?;
            }
            Ok(())
        }
        other => other,
    }
}
