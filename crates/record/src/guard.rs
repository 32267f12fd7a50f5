//! Keeps a bus error in a mapped file of ours from ending the host.
//!
//! A store to a page of a shared mapping that has no file behind it any more is SIGBUS: somebody cut the file short (a log
//! rotation that copies and truncates, a shell's `>`, a clean-up of `/tmp`), or the file system could not keep its promise
//! of space (one that copies on write, a network file system, a broken disk). No check before the store helps, for the file
//! may shrink right behind it, and Linux has no lock that keeps the owner of a file from it.
//!
//! So a handler for SIGBUS looks whether the address is in a mapping of ours. If it is, the whole mapping is replaced by
//! memory of the process, the store is done again and succeeds, and the keeper says once what happened. Everything else
//! goes to whoever handled SIGBUS before, in the same way as if we were not there: another handler is called, and where there
//! was none the process ends by the same signal, at the same instruction.
//!
//! A handler that is installed after ours takes its place. Python's `faulthandler` then writes its report, and sends the
//! signal again to the handler that it found, which is ours: the process goes on. One that does not pass signals on ends the
//! process as it would end it without us.

use core::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

/// Mappings that can be guarded at a time. A log has four at most: its head and three segments.
const MOST: usize = 64;

/// A slot of [`REGIONS`] that is being filled.
const CLAIMED: usize = 1;

/// `MADV_POPULATE_WRITE` (Linux 5.14): fails with EFAULT where a store would be a bus error.
const MADV_POPULATE_WRITE: c_int = 23;

/// A mapping. Atomic words, since the handler may run at any moment and takes no lock.
struct Region {
    /// First byte; 0 = the slot is free.
    base: AtomicUsize,
    length: AtomicUsize,
    /// Whether memory stands where the file was.
    lost: AtomicBool,
}

static REGIONS: [Region; MOST] =
    [const { Region { base: AtomicUsize::new(0), length: AtomicUsize::new(0), lost: AtomicBool::new(false) } };
        MOST];

/// What handled SIGBUS before us: `sa_sigaction` and `sa_flags` of sigaction(2).
static PREVIOUS: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);
static PREVIOUS_FLAGS: AtomicI32 = AtomicI32::new(0);

/// A mapping is guarded for as long as this lives. It must end before the mapping does.
#[derive(Debug)]
pub(crate) struct Guard {
    /// `None` = there was no slot: then it is not guarded.
    slot: Option<usize>,
}

impl Guard {
    /// Guards `length` bytes from `base`.
    pub(crate) fn new(base: usize, length: usize) -> Self {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(install);
        let slot = REGIONS.iter().position(|region| {
            region.base.compare_exchange(0, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok()
        });
        if let Some(slot) = slot {
            let region = &REGIONS[slot];
            region.length.store(length, Ordering::Relaxed);
            region.lost.store(false, Ordering::Relaxed);
            region.base.store(base, Ordering::Release);
        }
        Self { slot }
    }

    /// Whether the file behind the mapping was taken away, and what is stored there is lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.slot.is_some_and(|slot| REGIONS[slot].lost.load(Ordering::Relaxed))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            REGIONS[slot].base.store(0, Ordering::Release);
        }
    }
}

fn install() {
    // SAFETY: all zero is a value of these plain types, and sigaction reads and writes them through valid pointers. What
    // was there is known before ours can be called, and once more from the exchange itself.
    unsafe {
        let (mut ours, mut before): (libc::sigaction, libc::sigaction) = (std::mem::zeroed(), std::mem::zeroed());
        let remember = |before: &libc::sigaction| {
            PREVIOUS_FLAGS.store(before.sa_flags, Ordering::Relaxed);
            PREVIOUS.store(before.sa_sigaction, Ordering::Release);
        };
        if libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before) != 0 {
            return;
        }
        remember(&before);
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_bus_error;
        ours.sa_sigaction = handler as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        if libc::sigaction(libc::SIGBUS, &raw const ours, &raw mut before) == 0 {
            remember(&before);
        }
    }
}

/// The handler. It makes system calls only, as a handler must.
extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid `info`; errno is this thread's own, and is as it was when the handler returns.
    unsafe {
        let errno = *libc::__errno_location();
        let is_fault = (*info).si_code > 0;
        let mended = if is_fault {
            mend_at((*info).si_addr() as usize)
        } else {
            // A handler that was installed after ours sends on what it was called for, without the address.
            (*info).si_pid() == libc::getpid() && mend_all()
        };
        if !mended {
            pass_on(signal, info, context, is_fault);
        }
        *libc::__errno_location() = errno;
    }
}

/// Replaces the mapping of ours that has this address. `false`: none has.
fn mend_at(address: usize) -> bool {
    REGIONS.iter().any(|region| {
        let base = region.base.load(Ordering::Acquire);
        let length = region.length.load(Ordering::Relaxed);
        base > CLAIMED && (base..base + length).contains(&address) && replace(region, base, length)
    })
}

/// Replaces every mapping of ours in which a store would fail. `false`: there is none.
fn mend_all() -> bool {
    let mut mended = false;
    for region in &REGIONS {
        let base = region.base.load(Ordering::Acquire);
        let length = region.length.load(Ordering::Relaxed);
        if base <= CLAIMED {
            continue;
        }
        // SAFETY: the range is a mapping of ours; the advice changes nothing that is stored there.
        let fails = unsafe {
            libc::madvise(base as *mut c_void, length, MADV_POPULATE_WRITE) != 0
                && *libc::__errno_location() == libc::EFAULT
        };
        mended |= fails && replace(region, base, length);
    }
    mended
}

fn replace(region: &Region, base: usize, length: usize) -> bool {
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED);
    // SAFETY: the range is a whole mapping of ours, which stays mapped, now to memory.
    let replaced = unsafe { libc::mmap(base as *mut c_void, length, access, kind, -1, 0) };
    region.lost.store(true, Ordering::Relaxed);
    replaced != libc::MAP_FAILED
}

/// Does what would have happened without us.
///
/// # Safety
/// As the kernel calls a handler.
unsafe fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void, is_fault: bool) {
    let previous = PREVIOUS.load(Ordering::Acquire);
    match previous {
        libc::SIG_IGN if !is_fault => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: all zero is the default action. A fault happens again when we return, and then ends the process (the
            // kernel lets nobody ignore one); a signal that was sent is sent again.
            unsafe {
                let default: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, &raw const default, null_mut());
                if !is_fault {
                    libc::raise(signal);
                }
            }
        }
        _ if PREVIOUS_FLAGS.load(Ordering::Relaxed) & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            // SAFETY: by the flag it is a function of this type, and it gets what the kernel gave us.
            unsafe { std::mem::transmute::<usize, Handler>(previous)(signal, info, context) };
        }
        _ => {
            // SAFETY: without the flag it is a function of the signal's number alone.
            unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(previous)(signal) };
        }
    }
}
