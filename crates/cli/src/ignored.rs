//! Signals that this process was started with as ignored, as by `nohup`, or by a shell that puts it into the background.

use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

/// Whether this process ignores the signal.
pub(crate) fn is_ignored(signal: i32) -> bool {
    let mut found = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call writes the present one to where it is told, and all zeros are one.
    unsafe {
        libc::sigaction(signal, ptr::null(), found.as_mut_ptr()) == 0
            && found.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Has a command ignore the signals.
pub(crate) fn ignore_in(command: &mut Command, signals: Vec<i32>) {
    // SAFETY: what runs between fork and exec makes system calls and nothing else.
    unsafe {
        command.pre_exec(move || {
            for signal in &signals {
                libc::signal(*signal, libc::SIG_IGN);
            }
            Ok(())
        });
    }
}
