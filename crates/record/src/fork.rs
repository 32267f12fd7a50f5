//! Forks: a forked child shares its parent's mappings and lock, and must touch neither.
//!
//! A handler that runs in the child (`pthread_atfork`) counts the fork and closes the child's copy of the lock's
//! descriptor, so the lock ends with the parent (the head is mapped through another one, since a mapping keeps what it
//! was made through open, in the child too). A [`crate::Writer`] compares the count with the one it was opened
//! under and writes nothing once they differ; the child opens a log of its own.

use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

static FORKS: AtomicU32 = AtomicU32::new(0);

/// Descriptors of locked heads in this process; -1 = free. A process has one log, tests a few.
static LOCKS: [AtomicI32; 16] = [const { AtomicI32::new(-1) }; 16];

/// How often this process is a forked child of the process that loaded us.
#[inline]
pub fn generation() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    for lock in &LOCKS {
        let descriptor = lock.swap(-1, Ordering::Relaxed);
        if descriptor >= 0 {
            // SAFETY: close is async-signal-safe; the descriptor is the child's copy of one that only we use.
            unsafe { libc::close(descriptor) };
        }
    }
}

/// Has forked children let go of this descriptor.
pub(crate) fn watch(descriptor: i32) {
    static REGISTER: Once = Once::new();
    REGISTER.call_once(|| {
        // SAFETY: the handler does async-signal-safe things only. The library that holds it is never unloaded
        // (CPython does not unload extension modules).
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
    for lock in &LOCKS {
        if lock.compare_exchange(-1, descriptor, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            return;
        }
    }
}

/// The descriptor is about to be closed here (or was never watched: -1).
pub(crate) fn forget(descriptor: i32) {
    if descriptor < 0 {
        return;
    }
    for lock in &LOCKS {
        if lock.compare_exchange(descriptor, -1, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            return;
        }
    }
}
