//! Counters of experts on the GPU, and the kernels that add to them (`count_experts.cu`).
//!
//! Into a graph that is being captured the kernels go on a branch of their own: forked where the router has chosen, and joined behind
//! the experts, so that they run beside those. Outside of captures they go onto vLLM's stream.

use super::code::{parameter, to};
use super::{
    DeviceCode, DeviceError, DeviceMemory, DevicePointer, Function, LaunchShape, PinnedMemory, ReadBack, StepWord,
};
use crate::driver::{Event, Failure, Stream};
use core::ffi::c_void;

/// Threads of a block.
const THREADS: u32 = 256;

/// Cells that a block counts, as long as there are not too many blocks.
const CELLS_OF_A_BLOCK: u32 = 2048;

/// Most blocks: each adds what it counted to the same counters.
const MOST_BLOCKS: u32 = 32;

/// Most experts of a layer: as many words are in the shared memory that every GPU gives a block.
pub const MOST_EXPERTS: u32 = 48 * 1024 / 4;

/// What is counted: a matrix on the GPU, row by row without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cells {
    /// Its first cell.
    pub data: DevicePointer,
    /// Rows: tokens, with padding.
    pub rows: u32,
    /// Columns: experts that a token is sent to.
    pub columns: u16,
    /// First row of this process.
    pub first_row: u32,
    /// Which of the process's tokens that is.
    pub first_token: u32,
}

impl Cells {
    /// No row at all.
    const NONE: Self = Self { data: DevicePointer(0), rows: 0, columns: 1, first_row: 0, first_token: 0 };

    fn blocks(&self) -> u32 {
        self.rows.saturating_mul(self.columns.into()).div_ceil(CELLS_OF_A_BLOCK).clamp(1, MOST_BLOCKS)
    }
}

/// What a routing weight is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// 32-bit floating point.
    Float = 0,
    /// bfloat16.
    Bfloat16 = 1,
    /// 16-bit floating point.
    Half = 2,
}

/// Counters on the GPU. They begin at 0 and are never set back.
#[derive(Debug)]
pub struct ExpertCounters {
    /// For joining, whatever has become of device code since a fork.
    code: DeviceCode,
    memory: DeviceMemory,
    read_back: ReadBack,
    /// The branch in graphs that are captured.
    branch: Stream,
    forked: Event,
    counted: Event,
    is_forked: bool,
}

impl ExpertCounters {
    /// So many counters of 64 bits. Before graphs are captured: what a driver loads lazily is loaded here.
    ///
    /// # Errors
    /// More than device code may have, or what the driver said.
    pub fn new(code: &DeviceCode, word: &StepWord, words: usize, stream: Stream) -> Result<Self, DeviceError> {
        let mut counters = Self {
            code: code.clone(),
            memory: DeviceMemory::zeroed(code, words * size_of::<u64>(), stream)?,
            read_back: ReadBack::new(code, words * size_of::<u64>())?,
            branch: to("make a stream", code.calls.create_stream())?,
            forked: to("make an event", code.calls.create_plain_event())?,
            counted: to("make an event", code.calls.create_plain_event())?,
            is_forked: false,
        };
        let launched = counters.count_chosen(code, word, stream, 0, 1, &Cells::NONE, 4, false, false);
        to("launch a kernel of ours", launched)?;
        let launched = counters.count_weights(code, word, stream, 0, &Cells::NONE, Weight::Float, false);
        to("launch a kernel of ours", launched)?;
        Ok(counters)
    }

    fn at(&self, word: usize) -> DevicePointer {
        let bytes = word * size_of::<u64>();
        assert!(bytes < self.memory.bytes(), "no counter of ours");
        DevicePointer(self.memory.pointer().0 + bytes as u64)
    }

    /// Counts experts of the layer whose counters begin at `at`: ids of `bytes` each, and pairs if they are counted.
    ///
    /// With `may_fork`, and while a graph is captured, the kernel goes on a branch, and the caller has to [`Self::join`] it; the cells
    /// have to stay until then. Returns whether there is such a branch.
    ///
    /// # Errors
    /// What the driver said.
    #[expect(clippy::too_many_arguments, reason = "what a matrix is, and where it is counted")]
    pub fn count_chosen(
        &mut self,
        code: &DeviceCode,
        word: &StepWord,
        stream: Stream,
        at: usize,
        experts: u32,
        cells: &Cells,
        bytes: u8,
        has_pairs: bool,
        may_fork: bool,
    ) -> Result<bool, Failure> {
        let mut counters = self.at(at);
        let mut word = word.pointer();
        let (mut data, mut rows, mut experts) = (cells.data, cells.rows, experts.min(MOST_EXPERTS));
        let mut shape = u32::from(cells.columns) | u32::from(bytes) << 16 | u32::from(has_pairs) << 24;
        let (mut first_row, mut first_token) = (cells.first_row, cells.first_token);
        let mut parameters = [
            parameter(&mut word),
            parameter(&mut counters),
            parameter(&mut data),
            parameter(&mut rows),
            parameter(&mut shape),
            parameter(&mut experts),
            parameter(&mut first_row),
            parameter(&mut first_token),
        ];
        let shape = LaunchShape { blocks: cells.blocks(), threads: THREADS, shared_bytes: experts * 4 };
        self.launch(code, Function::CountExperts, shape, stream, &mut parameters, may_fork)
    }

    /// Counts routing weights in the bins that begin at `at`; as [`Self::count_chosen`].
    ///
    /// # Errors
    /// What the driver said.
    #[expect(clippy::too_many_arguments, reason = "as above")]
    pub fn count_weights(
        &mut self,
        code: &DeviceCode,
        word: &StepWord,
        stream: Stream,
        at: usize,
        cells: &Cells,
        weight: Weight,
        may_fork: bool,
    ) -> Result<bool, Failure> {
        let mut bins = self.at(at);
        let mut word = word.pointer();
        let (mut data, mut rows) = (cells.data, cells.rows);
        let mut shape = u32::from(cells.columns) | (weight as u32) << 16;
        let (mut first_row, mut first_token) = (cells.first_row, cells.first_token);
        let mut parameters = [
            parameter(&mut word),
            parameter(&mut bins),
            parameter(&mut data),
            parameter(&mut rows),
            parameter(&mut shape),
            parameter(&mut first_row),
            parameter(&mut first_token),
        ];
        let shape = LaunchShape { blocks: cells.blocks(), threads: THREADS, shared_bytes: 0 };
        self.launch(code, Function::CountWeights, shape, stream, &mut parameters, may_fork)
    }

    /// The parameters are those of the function, and of memory that is ours or lent.
    fn launch(
        &mut self,
        code: &DeviceCode,
        function: Function,
        shape: LaunchShape,
        stream: Stream,
        parameters: &mut [*mut c_void],
        may_fork: bool,
    ) -> Result<bool, Failure> {
        if !may_fork || !code.driver.is_capturing(stream)? {
            // SAFETY: as above.
            unsafe { code.launch(function, shape, stream, parameters) }?;
            return Ok(false);
        }
        code.driver.record(self.forked, stream)?;
        code.calls.order_behind(self.branch, self.forked)?;
        // From here on the branch is a part of the capture, which does not end well unless it is joined.
        self.is_forked = true;
        // SAFETY: as above.
        unsafe { code.launch(function, shape, self.branch, parameters) }?;
        Ok(true)
    }

    /// Joins the branch, if there is one: what is captured on the stream from here on comes behind what it counts.
    ///
    /// # Errors
    /// What the driver said.
    pub fn join(&mut self, stream: Stream) -> Result<(), Failure> {
        if !std::mem::take(&mut self.is_forked) {
            return Ok(());
        }
        let Self { code, branch, counted, .. } = self;
        let join = || {
            code.driver.record(*counted, *branch)?;
            code.calls.order_behind(stream, *counted)
        };
        // A capture with a branch that is not joined fails, and with it the host: it is worth a second try.
        join().or_else(|_| join())
    }

    /// Whether a reading is under way.
    pub fn is_being_read(&self) -> bool {
        self.read_back.is_under_way()
    }

    /// Begins to read all counters, as they are when the GPU has done what was launched on the stream so far. Not while a reading is
    /// under way, or a graph is captured.
    ///
    /// # Errors
    /// What the driver said.
    pub fn begin_reading(&mut self, code: &DeviceCode, stream: Stream) -> Result<(), Failure> {
        let all = [(self.memory.pointer(), self.memory.bytes())];
        self.read_back.begin(code, stream, &all)
    }

    /// Whether the reading that was under way is done now.
    ///
    /// # Errors
    /// What the driver said; the reading is given up then.
    pub fn reading_is_done(&mut self, code: &DeviceCode) -> Result<bool, Failure> {
        Ok(self.read_back.done(code)?.is_some())
    }

    /// What was read, until the next reading begins.
    pub fn reading(&self) -> &PinnedMemory {
        self.read_back.memory()
    }
}
