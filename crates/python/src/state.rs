//! The recorder of this process, and what its hooks share.

use crate::extract::gpu_memory;
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
}

impl Lane {
    const EMPTY: Self =
        Self { step: 0, value: 0, padded_tokens: 0, descriptor: 0, forward_begin: 0, seen: 0, next_step: 0 };
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

/// Everything that is one per process.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) cuda: Option<Cuda>,
    /// Steps that began on a GPU so far: threads know by it whether they have asked for their stream in this one.
    pub(crate) steps_begun: u64,
    /// String id of "forward" in the log of this epoch.
    pub(crate) forward_name: (u32, u32),
    pub(crate) writer: Option<Writer>,
    /// Grows whenever a log is opened: ids of strings are good for one log.
    pub(crate) epoch: u32,
    pub(crate) lanes: [Lane; LANES],
    pub(crate) label: Label,
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
    cuda: None,
    steps_begun: 0,
    forward_name: (0, 0),
    epoch: 0,
    lanes: [Lane::EMPTY; LANES],
    label: Label::Work,
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
