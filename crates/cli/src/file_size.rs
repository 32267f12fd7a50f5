//! SIGXFSZ: whoever makes a file larger than `ulimit -f` allows is ended by it, unless it is ignored: then writing fails, and
//! that can be said.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

static WAS_DEFAULT: AtomicBool = AtomicBool::new(false);

/// Ignores the signal in this process from here on.
pub(crate) fn ignore_signal() {
    // SAFETY: no handler is installed, so none can run.
    let before = unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    WAS_DEFAULT.store(before == libc::SIG_DFL, Ordering::Relaxed);
}

/// The signal is again as this process found it. Safe between fork and exec.
pub(crate) fn restore_signal() {
    if WAS_DEFAULT.load(Ordering::Relaxed) {
        // SAFETY: the default is no handler.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_DFL) };
    }
}

/// Has a command find the signal as this process found it.
pub(crate) fn restore_signal_in(command: &mut Command) {
    // SAFETY: what runs between fork and exec reads an atomic word and makes one system call.
    unsafe {
        command.pre_exec(|| {
            restore_signal();
            Ok(())
        });
    }
}
