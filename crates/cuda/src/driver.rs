//! The few functions of the CUDA driver that are needed, taken from the library that the process has loaded.
//!
//! Names and meanings: CUDA Driver API reference, "Event Management" and "Stream Management"; what device code needs
//! (`device/calls.rs`) is looked up by itself, so that a driver without it can time steps all the same.

use crate::device::DeviceCalls;
use core::ffi::{CStr, c_float, c_int, c_uint, c_void};
use std::num::NonZeroUsize;
use std::sync::OnceLock;

/// A stream, as the driver knows it (`CUstream`); null is the default stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream(pub usize);

/// An event, as the driver knows it (`CUevent`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event(pub(crate) NonZeroUsize);

/// A context, as the driver knows it (`CUcontext`); 0 = none is current.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Context(usize);

impl Context {
    pub(crate) fn handle(self) -> Handle {
        self.0 as Handle
    }

    pub(crate) fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// An error code of the driver (`CUresult`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure(pub i32);

/// `CUDA_ERROR_NOT_READY`: the GPU has not passed the event yet.
pub(crate) const NOT_READY: Failure = Failure(600);

/// `CUDA_ERROR_UNKNOWN`: stands for an answer that makes no sense.
pub(crate) const UNKNOWN: Failure = Failure(999);

/// `CU_EVENT_DEFAULT`: timing is on, waiting would spin.
const EVENT_DEFAULT: c_uint = 0;
/// `CU_STREAM_CAPTURE_STATUS_NONE`.
const CAPTURE_STATUS_NONE: c_int = 0;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
const CAPTURE_MODE_RELAXED: c_int = 2;

pub(crate) type Handle = *mut c_void;

impl Event {
    pub(crate) fn handle(self) -> Handle {
        self.0.get() as Handle
    }
}

/// The driver library of this process.
#[expect(clippy::struct_field_names, reason = "fields are named as the functions of the driver")]
#[derive(Debug, Clone, Copy)]
pub struct Driver {
    context_get_current: unsafe extern "C" fn(*mut Handle) -> c_int,
    event_create: unsafe extern "C" fn(*mut Handle, c_uint) -> c_int,
    event_destroy: unsafe extern "C" fn(Handle) -> c_int,
    event_record: unsafe extern "C" fn(Handle, Handle) -> c_int,
    event_query: unsafe extern "C" fn(Handle) -> c_int,
    event_elapsed_time: unsafe extern "C" fn(*mut c_float, Handle, Handle) -> c_int,
    stream_is_capturing: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    thread_exchange_stream_capture_mode: unsafe extern "C" fn(*mut c_int) -> c_int,
    driver_get_version: unsafe extern "C" fn(*mut c_int) -> c_int,
    /// What device code needs; `None` = this driver lacks something of it.
    device: Option<DeviceCalls>,
}

pub(crate) fn check(code: c_int) -> Result<(), Failure> {
    if code == 0 { Ok(()) } else { Err(Failure(code)) }
}

impl Driver {
    /// The driver, if this process has loaded one. A process that loads it later gets it then.
    pub fn loaded() -> Option<&'static Self> {
        static DRIVER: OnceLock<Driver> = OnceLock::new();
        if DRIVER.get().is_none()
            && let Some(driver) = Self::find()
        {
            return Some(DRIVER.get_or_init(|| driver));
        }
        DRIVER.get()
    }

    #[expect(clippy::missing_transmute_annotations, reason = "the type is that of the field")]
    fn find() -> Option<Self> {
        // SAFETY: dlopen with RTLD_NOLOAD loads nothing and runs nothing; it takes a reference on a library that is
        // there. The reference is never given back, so the functions stay.
        let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
        if library.is_null() {
            return None;
        }
        macro_rules! function {
            ($name:literal) => {{
                // SAFETY: a terminated name, and a library that stays loaded.
                let function = unsafe { libc::dlsym(library, $name.as_ptr()) };
                if function.is_null() {
                    return None;
                }
                // SAFETY: the driver exports this name with the type of the field it is put in (CUDA Driver API).
                unsafe { std::mem::transmute::<*mut c_void, _>(function) }
            }};
        }
        Some(Self {
            context_get_current: function!(c"cuCtxGetCurrent"),
            event_create: function!(c"cuEventCreate"),
            event_destroy: function!(c"cuEventDestroy_v2"),
            event_record: function!(c"cuEventRecord"),
            event_query: function!(c"cuEventQuery"),
            event_elapsed_time: function!(c"cuEventElapsedTime"),
            stream_is_capturing: function!(c"cuStreamIsCapturing"),
            thread_exchange_stream_capture_mode: function!(c"cuThreadExchangeStreamCaptureMode"),
            driver_get_version: function!(c"cuDriverGetVersion"),
            device: DeviceCalls::find(|name: &CStr| {
                // SAFETY: a terminated name, and a library that stays loaded.
                unsafe { libc::dlsym(library, name.as_ptr()) }
            }),
        })
    }

    /// The functions that device code needs, if this driver has all of them.
    pub(crate) fn device_calls(&self) -> Option<&DeviceCalls> {
        self.device.as_ref()
    }

    /// Version of CUDA that the driver supports: 1000 × major + 10 × minor.
    pub fn version(&self) -> Option<i32> {
        let mut version = 0;
        // SAFETY: the pointer is valid; the call needs no context.
        check(unsafe { (self.driver_get_version)(&raw mut version) }).ok()?;
        Some(version)
    }

    /// The context that is current on this thread.
    pub(crate) fn current_context(&self) -> Result<Context, Failure> {
        let mut context = std::ptr::null_mut();
        // SAFETY: the pointer is valid.
        check(unsafe { (self.context_get_current)(&raw mut context) })?;
        Ok(Context(context as usize))
    }

    /// A new event of the current context.
    pub(crate) fn create_event(&self) -> Result<Event, Failure> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the pointer is valid.
        check(unsafe { (self.event_create)(&raw mut event, EVENT_DEFAULT) })?;
        NonZeroUsize::new(event as usize).map(Event).ok_or(UNKNOWN)
    }

    /// Gives an event back.
    pub(crate) fn destroy_event(&self, event: Event) -> Result<(), Failure> {
        // SAFETY: an event of ours that nobody uses from here on.
        check(unsafe { (self.event_destroy)(event.handle()) })
    }

    /// Puts the event behind what was launched on the stream so far.
    pub(crate) fn record(&self, event: Event, stream: Stream) -> Result<(), Failure> {
        // SAFETY: an event of ours, and a stream that vLLM launches on at this moment.
        check(unsafe { (self.event_record)(event.handle(), stream.0 as Handle) })
    }

    /// Lets this thread ask for events while another one captures a graph.
    ///
    /// Without it, `cuEventQuery` on any thread breaks a capture that was begun in the global mode, as torch begins them:
    /// the query fails with 900, and the capture with 901 (seen on driver 580.159.04).
    pub(crate) fn leave_captures_alone(&self) -> Result<(), Failure> {
        let mut mode = CAPTURE_MODE_RELAXED;
        // SAFETY: the pointer is valid. The mode is this thread's alone; the call needs no context.
        check(unsafe { (self.thread_exchange_stream_capture_mode)(&raw mut mode) })
    }

    /// Whether the GPU has passed the event. Any thread may ask, with or without a current context.
    pub(crate) fn has_passed(&self, event: Event) -> Result<bool, Failure> {
        // SAFETY: an event of ours.
        match check(unsafe { (self.event_query)(event.handle()) }) {
            Ok(()) => Ok(true),
            Err(NOT_READY) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Milliseconds from one event to another, both passed. Resolution about half a microsecond. Any thread may ask, with
    /// or without a current context.
    pub(crate) fn elapsed_ms(&self, from: Event, to: Event) -> Result<f32, Failure> {
        let mut milliseconds = 0.0;
        // SAFETY: two events of ours and a valid pointer.
        check(unsafe { (self.event_elapsed_time)(&raw mut milliseconds, from.handle(), to.handle()) })?;
        Ok(milliseconds)
    }

    /// Whether what is launched on the stream goes into a graph that is being captured.
    pub(crate) fn is_capturing(&self, stream: Stream) -> Result<bool, Failure> {
        let mut status = CAPTURE_STATUS_NONE;
        // SAFETY: a stream that vLLM launches on at this moment, and a valid pointer.
        check(unsafe { (self.stream_is_capturing)(stream.0 as Handle, &raw mut status) })?;
        Ok(status != CAPTURE_STATUS_NONE)
    }
}
