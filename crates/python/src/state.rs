//! The recorder of this process, and what its hooks share.

use crate::device::Device;
use crate::experts::Experts;
use crate::extract::gpu_memory;
use crate::extract::scheduler::SchedulerBooks;
use crate::garbage::Collection;
use profilemate_cuda::{ReaderThread, Timer};
use profilemate_format::record::{FLAG_RAISED, Label, Payload, Record, Span};
use profilemate_record::Writer;
use pyo3::prelude::*;
use std::cell::UnsafeCell;

/// Which part of vLLM a hook belongs to: each has a current step of its own, because one process may hold several.
pub(crate) const LANES: usize = 4;
/// Lane of the engine core.
pub(crate) const ENGINE: usize = 1;
/// Lane of the worker.
pub(crate) const WORKER: usize = 2;

/// What a lane is working on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lane {
    /// Current step; 0 = none.
    pub(crate) step: u64,
    /// Value of the step: for a worker `num_tokens | num_seqs << 32`.
    pub(crate) value: u64,
    /// Tokens with padding; 0 = unknown.
    pub(crate) padded_tokens: u32,
    /// String id of the descriptor of the batch; 0 = unknown.
    pub(crate) descriptor: u32,
    /// When the forward pass began, where its beginning and end are in two functions; 0 = it did not.
    pub(crate) forward_begin: u64,
    /// Step that was scheduled since a step-closing hook was entered, else the first that was updated; 0 = none.
    pub(crate) seen: u64,
    /// Step that the scheduler puts together, or will next; 0 = the first.
    pub(crate) next_step: u64,
    /// Calls of this step that are timed by themselves, so far.
    pub(crate) calls: u32,
    /// Steps of a worker so far.
    pub(crate) steps: u64,
    /// Whether this step is one of those in which calls are timed that are timed in some steps only.
    pub(crate) is_sampled: bool,
}

impl Lane {
    const EMPTY: Self = Self {
        step: 0,
        value: 0,
        padded_tokens: 0,
        descriptor: 0,
        forward_begin: 0,
        seen: 0,
        next_step: 0,
        calls: 0,
        steps: 0,
        is_sampled: false,
    };
}

/// A batch that the scheduler of this process has put together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Batch {
    /// Address of its `SchedulerOutput`; 0 = none.
    output: usize,
    pub(crate) step: u64,
    /// As in [`Lane::value`].
    pub(crate) size: u64,
}

/// The batches that are under way in this process, newest first asked: what they are need not be read again.
///
/// An entry is good from the end of `Scheduler.schedule` to the beginning of `Scheduler.update_from_output` of its batch.
/// In between the engine holds the object, so that no other one can have its address.
#[derive(Debug)]
pub(crate) struct Batches {
    newest: usize,
    all: [Batch; Self::MOST],
}

impl Batches {
    /// As many as a batch queue (pipeline parallel ranks + 1) usually holds; of more, the oldest are read again.
    const MOST: usize = 8;

    const NONE: Self = Self { newest: 0, all: [Batch { output: 0, step: 0, size: 0 }; Self::MOST] };

    pub(crate) fn add<T>(&mut self, output: *mut T, step: u64, size: u64) {
        // An older one with this address is gone.
        self.take(output);
        self.newest = (self.newest + 1) % Self::MOST;
        self.all[self.newest] = Batch { output: output as usize, step, size };
    }

    #[inline]
    fn place<T>(&self, output: *mut T) -> Option<usize> {
        (0..Self::MOST)
            .map(|age| (self.newest + Self::MOST - age) % Self::MOST)
            .find(|place| self.all[*place].output == output as usize)
    }

    /// The batch at this address.
    #[inline]
    pub(crate) fn find<T>(&self, output: *mut T) -> Option<Batch> {
        self.place(output).map(|place| self.all[place])
    }

    /// The batch at this address, which is under way no more.
    #[inline]
    pub(crate) fn take<T>(&mut self, output: *mut T) -> Option<Batch> {
        let place = self.place(output)?;
        let found = self.all[place];
        self.all[place].output = 0;
        Some(found)
    }
}

/// Timing on a GPU, where there is one.
#[derive(Debug)]
pub(crate) struct Cuda {
    pub(crate) timer: Timer,
    /// The thread that reads what the timer's marks recorded.
    pub(crate) reader: ReaderThread,
    /// Failures that are noted in the log.
    pub(crate) noted_failures: u64,
    /// `torch._C._cuda_getCurrentRawStream`, and its argument.
    pub(crate) stream_function: Py<PyAny>,
    pub(crate) device: Py<PyAny>,
}

/// Everything that is one per process. What each call needs lies in front.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct State {
    pub(crate) writer: Option<Writer>,
    /// Grows whenever a log is opened: ids of strings are good for one log.
    pub(crate) epoch: u32,
    pub(crate) label: Label,
    pub(crate) lanes: [Lane; LANES],
    /// Scheduler that was asked for last, and its books.
    pub(crate) books: Option<(usize, Py<SchedulerBooks>)>,
    pub(crate) batches: Batches,
    /// Requests that have ended.
    pub(crate) freed: u64,
    /// Steps that began on a GPU so far: threads know by it whether they have asked for their stream in this one.
    pub(crate) steps_begun: u64,
    pub(crate) cuda: Option<Cuda>,
    /// Code of ours on the GPU.
    pub(crate) device: Option<Device>,
    /// Counters of experts, where a model has some.
    pub(crate) experts: Option<Experts>,
    /// String id of "forward" in the log of this epoch.
    pub(crate) forward_name: (u32, u32),
    /// Python's garbage collector at work.
    pub(crate) collection: Collection,
    /// Whether the mix of each batch is recorded, see [`crate::extract::sampling`].
    pub(crate) samples: bool,
    /// Sequences that a grammar restricts in the batch that is sampled next.
    pub(crate) restricted: u32,
    /// What samples GPU memory.
    pub(crate) gpu_memory: Option<gpu_memory::Watch>,
    /// Requests that were numbered.
    pub(crate) requests: u64,
    /// Key of the hash that stands for ids of requests; `None` = they stand for themselves.
    pub(crate) id_key: Option<[u64; 2]>,
    /// Print every N-th record; 0 = none.
    pub(crate) debug_interval: u64,
    pub(crate) debug_count: u64,
}

struct GilCell(UnsafeCell<State>);

// SAFETY: reached only through `with`, which takes proof that the GIL is held. The module is built for the limited API,
// which free-threaded builds of CPython do not load.
unsafe impl Sync for GilCell {}

static STATE: GilCell = GilCell(UnsafeCell::new(State {
    writer: None,
    epoch: 0,
    label: Label::Work,
    lanes: [Lane::EMPTY; LANES],
    books: None,
    batches: Batches::NONE,
    freed: 0,
    steps_begun: 0,
    cuda: None,
    device: None,
    experts: None,
    forward_name: (0, 0),
    collection: Collection::NONE,
    samples: false,
    restricted: 0,
    gpu_memory: None,
    requests: 0,
    id_key: None,
    debug_interval: 0,
    debug_count: 0,
}));

/// Runs `f` on the state. `f` must not run Python code: that could come back here. It must not make Python objects either: that may
/// start the garbage collector, which calls [`crate::garbage`] and finalizers.
#[inline]
pub(crate) fn with<R>(_gil: Python<'_>, f: impl FnOnce(&mut State) -> R) -> R {
    // SAFETY: the GIL is held, and `f` neither releases it nor comes back (see above), so this is the only reference.
    f(unsafe { &mut *STATE.0.get() })
}

/// A span that is about to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SpanRecord {
    pub(crate) name: u32,
    pub(crate) context: u32,
    pub(crate) begin: u64,
    pub(crate) end: u64,
    pub(crate) step: u64,
    pub(crate) value_a: u64,
    pub(crate) value_b: u64,
    pub(crate) label: Label,
    pub(crate) raised: bool,
    pub(crate) overhead_ticks: u32,
}

impl State {
    /// Whether there is a log to write to.
    #[inline]
    pub(crate) fn is_recording(&self) -> bool {
        self.writer.as_ref().is_some_and(Writer::is_ours)
    }

    /// Whether calls that are timed in some steps only are timed now.
    #[inline]
    pub(crate) fn is_sampled(&self) -> bool {
        self.lanes[WORKER].is_sampled && self.label == Label::Work
    }

    /// A number that no other request of this process has.
    pub(crate) fn next_request(&mut self) -> u64 {
        self.requests += 1;
        self.requests
    }

    /// Id of a string in the log; 0 without one.
    #[inline]
    pub(crate) fn intern(&mut self, text: &str) -> u32 {
        self.writer.as_mut().map_or(0, |writer| writer.intern(text))
    }

    /// Writes a span.
    #[inline]
    pub(crate) fn write_span(&mut self, span: &SpanRecord) {
        self.write(&Record {
            ticks: span.begin,
            step: span.step,
            label: span.label,
            flags: if span.raised { FLAG_RAISED } else { 0 },
            name: span.name,
            payload: Payload::Span(Span {
                duration_ticks: span.end.wrapping_sub(span.begin),
                value_a: span.value_a,
                value_b: span.value_b,
                context: span.context,
                overhead_ticks: span.overhead_ticks,
            }),
        });
    }

    /// Writes a record.
    #[inline]
    pub(crate) fn write(&mut self, record: &Record) {
        if let Some(writer) = &mut self.writer {
            writer.push(record);
            if self.debug_interval != 0 {
                self.debug_line(record);
            }
        }
    }

    #[cold]
    fn debug_line(&mut self, record: &Record) {
        self.debug_count += 1;
        if self.debug_count.is_multiple_of(self.debug_interval) {
            crate::failure::line(&format!(
                "event {}: step {} {:?}",
                self.debug_count, record.step, record.payload
            ));
        }
    }
}
