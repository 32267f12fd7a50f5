//! The kernels, loaded into the context that vLLM works in.

use super::calls::{self, DeviceCalls, Kernel};
use super::{DevicePointer, LaunchShape, PinnedMemory};
use crate::driver::{Context, Driver, Failure, Stream};
use core::ffi::{CStr, c_void};
use thiserror::Error;

/// A kernel of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Function {
    /// `profilemate_set_step_word(StepWord*, u32 valid_tokens, u32 stamp_row)`
    SetStepWord,
    /// `profilemate_stamp(const StepWord*, u64* ring, u32 slots, u32 slot)`
    Stamp,
    /// `profilemate_read_clock(u64* out)`
    ReadClock,
    /// `profilemate_count_experts(const StepWord*, u64* counters, const void* chosen, u32 rows, u32 shape, u32 experts,
    /// u32 first_row, u32 first_token)`
    CountExperts,
    /// `profilemate_count_weights(const StepWord*, u64* bins, const void* weights, u32 rows, u32 shape, u32 first_row,
    /// u32 first_token)`
    CountWeights,
}

macro_rules! ptx {
    ($name:literal) => {
        match CStr::from_bytes_with_nul(concat!(include_str!($name), "\0").as_bytes()) {
            Ok(text) => text,
            Err(_) => panic!("PTX has no NUL in it"),
        }
    };
}

/// Every module and its kernels, in the order of [`Function`].
const MODULES: &[(&CStr, &[&CStr])] = &[
    (ptx!("step_word.ptx"), &[c"profilemate_set_step_word"]),
    (ptx!("stamp.ptx"), &[c"profilemate_stamp", c"profilemate_read_clock"]),
    (ptx!("count_experts.ptx"), &[c"profilemate_count_experts", c"profilemate_count_weights"]),
];

/// Number of kernels.
const FUNCTIONS: usize = 5;

/// Why device code cannot be used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// The driver lacks functions that are needed.
    #[error("the CUDA driver lacks functions that device code needs")]
    OldDriver,
    /// No context is current on the calling thread.
    #[error("no CUDA context is current")]
    NoContext,
    /// A graph is being captured.
    #[error("a CUDA graph is being captured")]
    Capturing,
    /// More memory than there may be.
    #[error("{bytes} bytes are more than the {most} that there may be")]
    TooLarge {
        /// Bytes that were asked for.
        bytes: usize,
        /// Most that there may be.
        most: usize,
    },
    /// The driver returned an error.
    #[error("the CUDA driver cannot {what} (error {})", failure.0)]
    Driver {
        /// What was to be done.
        what: &'static str,
        /// The error.
        failure: Failure,
    },
}

/// Names what was to be done when the driver failed.
pub(crate) fn to<T>(what: &'static str, result: Result<T, Failure>) -> Result<T, DeviceError> {
    result.map_err(|failure| DeviceError::Driver { what, failure })
}

/// The kernels of ours, and a stream beside vLLM's.
#[derive(Debug, Clone)]
pub struct DeviceCode {
    pub(crate) driver: &'static Driver,
    pub(crate) calls: &'static DeviceCalls,
    pub(crate) context: Context,
    kernels: [Kernel; FUNCTIONS],
    /// Of ours: nothing on it waits for vLLM's work unless it is told to.
    pub(crate) side: Stream,
}

impl DeviceCode {
    /// Loads the code into the context that is current on this thread. `stream` is the one that vLLM launches on.
    ///
    /// To be called before graphs are captured: memory is allocated, code is compiled and loaded, which breaks a capture.
    ///
    /// # Errors
    /// What is missing, or what the driver said. Nothing of vLLM's has changed then.
    pub fn load(driver: &'static Driver, stream: Stream) -> Result<Self, DeviceError> {
        let calls = calls::of(driver).ok_or(DeviceError::OldDriver)?;
        let context = to("tell the current context", driver.current_context())?;
        if context.is_none() {
            return Err(DeviceError::NoContext);
        }
        if to("tell whether a graph is being captured", driver.is_capturing(stream))? {
            return Err(DeviceError::Capturing);
        }
        let mut kernels = Vec::with_capacity(FUNCTIONS);
        for (ptx, names) in MODULES {
            let module = to("load our code", calls.load_module(ptx))?;
            for name in *names {
                kernels.push(to("find a kernel of ours", calls.kernel(module, name))?);
            }
        }
        let Ok(kernels) = kernels.try_into() else { unreachable!("MODULES lists every function") };
        let side = to("make a stream", calls.create_stream())?;
        let code = Self { driver, calls, context, kernels, side };
        code.run_once()?;
        Ok(code)
    }

    /// Launches a kernel that touches nothing of vLLM's: a driver that loads code lazily does it now, and not in a capture.
    fn run_once(&self) -> Result<(), DeviceError> {
        let pinned = PinnedMemory::allocate(self, size_of::<u64>())?;
        let mut out = pinned.on_device();
        // SAFETY: the kernel takes one pointer, to a u64 of ours.
        to("launch a kernel of ours", unsafe {
            self.launch(Function::ReadClock, LaunchShape::ONE_THREAD, self.side, &mut [(&raw mut out).cast()])
        })
    }

    /// Whether what is launched on the stream goes into a graph that is being captured.
    ///
    /// # Errors
    /// What the driver said.
    pub fn is_capturing(&self, stream: Stream) -> Result<bool, Failure> {
        self.driver.is_capturing(stream)
    }

    /// Launches a kernel: onto the stream, or into the graph that is being captured from it.
    ///
    /// # Safety
    /// The parameters are as many as the kernel has and of its types ([`Function`]), and pointers are to memory on the GPU
    /// that stays as long as any graph that this goes into.
    pub(crate) unsafe fn launch(
        &self,
        function: Function,
        shape: LaunchShape,
        stream: Stream,
        parameters: &mut [*mut c_void],
    ) -> Result<(), Failure> {
        // SAFETY: by the caller's promise.
        unsafe { self.calls.launch(self.kernels[function as usize], shape, stream, parameters) }
    }
}

/// A parameter of a kernel, as the driver takes it.
pub(crate) fn parameter<T>(value: &mut T) -> *mut c_void {
    std::ptr::from_mut(value).cast()
}

/// The type of device pointers is that of `CUdeviceptr`.
const _: () = assert!(size_of::<DevicePointer>() == 8);
