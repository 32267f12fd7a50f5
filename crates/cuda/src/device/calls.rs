//! The functions of the CUDA driver that device code needs.
//!
//! Names, types and meanings: CUDA Driver API reference, "Module Management", "Memory Management", "Execution Control",
//! "Stream Management", "Context Management". Those with a version in their name have had it since CUDA 4.

use crate::driver::{Context, Driver, Event, Failure, Handle, Stream, UNKNOWN, check};
use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::num::NonZeroUsize;

/// `CU_STREAM_NON_BLOCKING`: nothing on it waits for the default stream, or the other way round.
const STREAM_NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const EVENT_DISABLE_TIMING: c_uint = 2;
/// `CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP`: the GPU may write there.
const HOST_PORTABLE_AND_MAPPED: c_uint = 1 | 2;

/// An address on the GPU (`CUdeviceptr`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct DevicePointer(pub u64);

/// A module of device code (`CUmodule`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Module(usize);

/// A kernel (`CUfunction`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel(usize);

type LaunchKernel = unsafe extern "C" fn(
    Handle,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    Handle,
    *mut *mut c_void,
    *mut *mut c_void,
) -> c_int;

/// The functions, all of them found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeviceCalls {
    module_load_data: unsafe extern "C" fn(*mut Handle, *const c_void) -> c_int,
    module_get_function: unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> c_int,
    mem_alloc: unsafe extern "C" fn(*mut u64, usize) -> c_int,
    mem_host_alloc: unsafe extern "C" fn(*mut *mut c_void, usize, c_uint) -> c_int,
    mem_host_get_device_pointer: unsafe extern "C" fn(*mut u64, *mut c_void, c_uint) -> c_int,
    memset: unsafe extern "C" fn(u64, u8, usize, Handle) -> c_int,
    copy_to_host: unsafe extern "C" fn(*mut c_void, u64, usize, Handle) -> c_int,
    launch_kernel: LaunchKernel,
    stream_create: unsafe extern "C" fn(*mut Handle, c_uint, c_int) -> c_int,
    stream_wait_event: unsafe extern "C" fn(Handle, Handle, c_uint) -> c_int,
    context_set_current: unsafe extern "C" fn(Handle) -> c_int,
    event_create: unsafe extern "C" fn(*mut Handle, c_uint) -> c_int,
    /// Of CUDA 11.7 and newer.
    stream_write_value: Option<unsafe extern "C" fn(Handle, u64, u64, c_uint) -> c_int>,
}

impl DeviceCalls {
    /// Looks the functions up. `None`: one of them is missing.
    #[expect(clippy::missing_transmute_annotations, reason = "the type is that of the field")]
    pub(crate) fn find(symbol: impl Fn(&CStr) -> *mut c_void) -> Option<Self> {
        macro_rules! function {
            ($name:literal) => {{
                let function = symbol($name);
                if function.is_null() {
                    return None;
                }
                // SAFETY: the driver exports this name with the type of the field it is put in (CUDA Driver API).
                unsafe { std::mem::transmute::<*mut c_void, _>(function) }
            }};
        }
        Some(Self {
            module_load_data: function!(c"cuModuleLoadData"),
            module_get_function: function!(c"cuModuleGetFunction"),
            mem_alloc: function!(c"cuMemAlloc_v2"),
            mem_host_alloc: function!(c"cuMemHostAlloc"),
            mem_host_get_device_pointer: function!(c"cuMemHostGetDevicePointer_v2"),
            memset: function!(c"cuMemsetD8Async"),
            copy_to_host: function!(c"cuMemcpyDtoHAsync_v2"),
            launch_kernel: function!(c"cuLaunchKernel"),
            stream_create: function!(c"cuStreamCreateWithPriority"),
            stream_wait_event: function!(c"cuStreamWaitEvent"),
            context_set_current: function!(c"cuCtxSetCurrent"),
            event_create: function!(c"cuEventCreate"),
            stream_write_value: {
                let function = symbol(c"cuStreamWriteValue64_v2");
                // SAFETY: null is `None`, and else the driver exports this name with this type (CUDA Driver API).
                unsafe { std::mem::transmute::<*mut c_void, Option<_>>(function) }
            },
        })
    }

    /// Loads PTX into the current context; the driver compiles it for the GPU at hand.
    pub(crate) fn load_module(&self, ptx: &CStr) -> Result<Module, Failure> {
        let mut module = std::ptr::null_mut();
        // SAFETY: a valid pointer and terminated text.
        check(unsafe { (self.module_load_data)(&raw mut module, ptx.as_ptr().cast()) })?;
        Ok(Module(module as usize))
    }

    /// A kernel of a module.
    pub(crate) fn kernel(&self, module: Module, name: &CStr) -> Result<Kernel, Failure> {
        let mut kernel = std::ptr::null_mut();
        // SAFETY: a module of ours, which is never unloaded, a valid pointer and a terminated name.
        check(unsafe { (self.module_get_function)(&raw mut kernel, module.0 as Handle, name.as_ptr()) })?;
        Ok(Kernel(kernel as usize))
    }

    /// Memory on the GPU, in the current context.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<DevicePointer, Failure> {
        let mut pointer = 0;
        // SAFETY: the pointer is valid.
        check(unsafe { (self.mem_alloc)(&raw mut pointer, bytes) })?;
        if pointer == 0 { Err(UNKNOWN) } else { Ok(DevicePointer(pointer)) }
    }

    /// Memory of the host that the GPU can write to: where it is here, and where it is to the GPU.
    pub(crate) fn allocate_host(&self, bytes: usize) -> Result<(NonZeroUsize, DevicePointer), Failure> {
        let mut here = std::ptr::null_mut();
        // SAFETY: the pointer is valid.
        check(unsafe { (self.mem_host_alloc)(&raw mut here, bytes, HOST_PORTABLE_AND_MAPPED) })?;
        let mut there = 0;
        // SAFETY: the pointer is valid, and the memory was just allocated as mapped.
        check(unsafe { (self.mem_host_get_device_pointer)(&raw mut there, here, 0) })?;
        let here = NonZeroUsize::new(here as usize).ok_or(UNKNOWN)?;
        Ok((here, DevicePointer(there)))
    }

    /// Zeroes memory on the GPU, in the order of the stream.
    ///
    /// # Safety
    /// So many bytes are there, and nothing of vLLM's is in them.
    pub(crate) unsafe fn zero(&self, to: DevicePointer, bytes: usize, stream: Stream) -> Result<(), Failure> {
        // SAFETY: by the caller's promise.
        check(unsafe { (self.memset)(to.0, 0, bytes, stream.0 as Handle) })
    }

    /// Copies from the GPU to pinned memory, in the order of the stream.
    ///
    /// # Safety
    /// So many bytes are on both sides, and nobody reads those here until the stream has passed the copy.
    pub(crate) unsafe fn copy_to_host(
        &self,
        to: *mut c_void,
        from: DevicePointer,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), Failure> {
        // SAFETY: by the caller's promise.
        check(unsafe { (self.copy_to_host)(to, from.0, bytes, stream.0 as Handle) })
    }

    /// Launches a kernel on a stream: into the graph, if the stream is being captured.
    ///
    /// # Safety
    /// The parameters are as many as the kernel has and of its types; the kernel touches only memory that is ours or lent.
    pub(crate) unsafe fn launch(
        &self,
        kernel: Kernel,
        shape: LaunchShape,
        stream: Stream,
        parameters: &mut [*mut c_void],
    ) -> Result<(), Failure> {
        let LaunchShape { blocks, threads, shared_bytes } = shape;
        // SAFETY: by the caller's promise; the driver copies the parameters before it returns.
        check(unsafe {
            (self.launch_kernel)(
                kernel.0 as Handle,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                shared_bytes,
                stream.0 as Handle,
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        })
    }

    /// Writes 64 bits to the GPU, in the order of the stream, and without a kernel. `None`: this driver has no such function.
    ///
    /// # Safety
    /// They are there, aligned to 8 bytes, and are ours.
    pub(crate) unsafe fn write_word(
        &self,
        to: DevicePointer,
        value: u64,
        stream: Stream,
    ) -> Option<Result<(), Failure>> {
        let function = self.stream_write_value?;
        // SAFETY: by the caller's promise. 0: `CU_STREAM_WRITE_VALUE_DEFAULT`.
        Some(check(unsafe { function(stream.0 as Handle, to.0, value, 0) }))
    }

    /// A stream that waits for no other, of the highest priority.
    pub(crate) fn create_stream(&self) -> Result<Stream, Failure> {
        let mut stream = std::ptr::null_mut();
        // Priorities that a device does not have are clamped to the nearest that it has.
        // SAFETY: the pointer is valid.
        check(unsafe { (self.stream_create)(&raw mut stream, STREAM_NON_BLOCKING, -100) })?;
        if stream.is_null() { Err(UNKNOWN) } else { Ok(Stream(stream as usize)) }
    }

    /// An event that takes no time.
    pub(crate) fn create_plain_event(&self) -> Result<Event, Failure> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the pointer is valid.
        check(unsafe { (self.event_create)(&raw mut event, EVENT_DISABLE_TIMING) })?;
        NonZeroUsize::new(event as usize).map(Event).ok_or(UNKNOWN)
    }

    /// What is launched on the stream from here on comes behind the event. The host does not wait.
    pub(crate) fn order_behind(&self, stream: Stream, event: Event) -> Result<(), Failure> {
        // SAFETY: a stream and an event of ours.
        check(unsafe { (self.stream_wait_event)(stream.0 as Handle, event.handle(), 0) })
    }

    /// Makes a context current on the calling thread, one of ours.
    pub(crate) fn set_current(&self, context: Context) -> Result<(), Failure> {
        // SAFETY: the context was current on vLLM's thread; a call with one that is gone is an error.
        check(unsafe { (self.context_set_current)(context.handle()) })
    }
}

/// How many threads run a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LaunchShape {
    /// Blocks, in one dimension.
    pub(crate) blocks: u32,
    /// Threads of a block, in one dimension.
    pub(crate) threads: u32,
    /// Bytes of shared memory of a block that the launch gives it.
    pub(crate) shared_bytes: u32,
}

impl LaunchShape {
    /// One thread.
    pub(crate) const ONE_THREAD: Self = Self { blocks: 1, threads: 1, shared_bytes: 0 };
}

/// The functions, of a driver that has them.
pub(crate) fn of(driver: &'static Driver) -> Option<&'static DeviceCalls> {
    driver.device_calls()
}
