//! The made-up driver (`fake/fake_cuda.c`), for the tests of this crate.
#![allow(dead_code, reason = "each test file uses a part of it")]

use profilemate_cuda::Driver;
use std::ffi::{CString, c_char, c_int, c_long};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

macro_rules! fake {
    ($($name:ident($($argument:ident: $kind:ty),*) $(-> $result:ty)?;)*) => {
        #[derive(Clone, Copy)]
        pub(crate) struct Fake { $($name: unsafe extern "C" fn($($kind),*) $(-> $result)?),* }
        impl Fake {
            fn load() -> Self {
                let folder = tempfile::tempdir().unwrap();
                let library = folder.path().join("libcuda.so.1");
                let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake/fake_cuda.c");
                let compiled = std::process::Command::new("cc")
                    .args(["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread", "-Wl,-soname,libcuda.so.1", "-o"])
                    .arg(&library)
                    .arg(source)
                    .status()
                    .unwrap();
                assert!(compiled.success());
                let path = CString::new(library.as_os_str().as_bytes()).unwrap();
                // SAFETY: a library of ours, which runs nothing when it is loaded.
                let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
                assert!(!handle.is_null());
                $(
                    // SAFETY: the library exports the function with this type.
                    let $name = unsafe {
                        let name = CString::new(concat!("fake_", stringify!($name))).unwrap();
                        let function = libc::dlsym(handle, name.as_ptr());
                        assert!(!function.is_null());
                        std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn($($kind),*) $(-> $result)?>(function)
                    };
                )*
                Self { $($name),* }
            }
            $(
                pub(crate) fn $name(&self $(, $argument: $kind)*) $(-> $result)? {
                    // SAFETY: the fake takes any value; strings are terminated.
                    unsafe { (self.$name)($($argument),*) }
                }
            )*
        }
    };
}

fake! {
    reset();
    advance(ns: u64);
    now() -> u64;
    launch(stream: usize, ns: u64);
    capture(stream: usize, on: c_int);
    context(id: usize);
    fail(name: *const c_char, code: c_int, after: c_long, count: c_long);
    calls(name: *const c_char) -> u64;
    host_calls(name: *const c_char) -> u64;
    broken_captures() -> u64;
    live_events() -> u64;
    all_events() -> u64;
    replay(stream: usize);
    gpu_clock(ahead: u64, rate: u64);
    launches(name: *const c_char) -> u64;
    gpu_bytes() -> u64;
    host_bytes() -> u64;
    branch_launches() -> u64;
}

pub(crate) static FAKE: OnceLock<Fake> = OnceLock::new();

/// The fake, to one test at a time: it is one driver for the process.
pub(crate) fn fake() -> (MutexGuard<'static, ()>, Fake, &'static Driver) {
    static LOCK: Mutex<()> = Mutex::new(());
    let guard = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let fake = *FAKE.get_or_init(|| {
        assert!(Driver::loaded().is_none(), "a real driver is loaded");
        Fake::load()
    });
    fake.reset();
    (guard, fake, Driver::loaded().expect("the fake is loaded"))
}
