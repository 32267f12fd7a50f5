//! Which row belongs to which table, whatever the tables are written as.

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use profilemate_analysis::facts::{Facts, Profiler};
use profilemate_analysis::{Answers, Row};

use super::batch_utilization::BatchUtilization;
use super::cpu_timing::CpuOperations;
use super::cuda_graphs::{Captures, GraphUsage, Timeline};
use super::encoder_decoder::EncoderDecoder;
use super::forward_pass::ForwardPass;
use super::gpu_memory::GpuMemory;
use super::kv_cache::{KvEvictions, KvUsage};
use super::layers::{CollectiveTiming, LayerTiming};
use super::moe_experts::{Activation, Activations, Coselection, Imbalance, Pair, WeightBin, Weights};
use super::requests::{Lifecycles, RequestEvents};
use super::sampling::SamplingTiming;
use crate::Error;
use crate::arrow::Columns;
use crate::cells::{Column, Table};

/// What a table is called, and the folder in the session's that it is in; empty = the session's own.
#[derive(Debug, Clone, Copy)]
pub(super) struct TableName {
    pub(super) name: &'static str,
    pub(super) folder: &'static str,
}

/// Where the rows of one table go.
pub(super) trait Sink {
    /// Appends a row.
    fn row<T: Table>(&mut self, row: &T::Row<'_>) -> Result<(), Error>;
}

/// The tables of a session, each as long as its profiler was on and somebody wants it.
pub(super) struct RowTables<S> {
    forward: Option<S>,
    cpu: Option<S>,
    batch: Option<S>,
    captures: Option<S>,
    replays: Option<S>,
    graph_usage: Option<S>,
    lifecycles: Option<S>,
    request_events: Option<S>,
    kv_usage: Option<S>,
    kv_evictions: Option<S>,
    expert_activations: Option<S>,
    expert_coselection: Option<S>,
    expert_weights: Option<S>,
    expert_imbalance: Option<S>,
    encoder_decoder: Option<S>,
    sampling: Option<S>,
    gpu_memory: Option<S>,
    layers: Option<S>,
    collectives: Option<S>,
}

#[inline]
fn put<T: Table, S: Sink>(table: &mut Option<S>, row: &T::Row<'_>) -> Result<(), Error> {
    table.as_mut().map_or(Ok(()), |sink| sink.row::<T>(row))
}

impl<S: Sink> RowTables<S> {
    /// `make` is asked for each table that the session has.
    pub(super) fn create(
        facts: &Facts,
        mut make: impl FnMut(TableName, &'static [Column]) -> Result<Option<S>, Error>,
    ) -> Result<Self, Error> {
        fn table<T: Table, S>(
            is_there: bool,
            make: &mut impl FnMut(TableName, &'static [Column]) -> Result<Option<S>, Error>,
        ) -> Result<Option<S>, Error> {
            let name = TableName { name: T::NAME, folder: T::FOLDER };
            if is_there { make(name, T::COLUMNS) } else { Ok(None) }
        }
        let (graphs, requests) =
            (facts.is_on(Profiler::CudaGraphTracking), facts.is_on(Profiler::PreemptionTracking));
        let experts = facts.is_on(Profiler::MoeExpertTracking);
        Ok(Self {
            forward: table::<ForwardPass, S>(facts.is_on(Profiler::ForwardPassTiming), &mut make)?,
            cpu: table::<CpuOperations, S>(facts.is_on(Profiler::CpuTiming), &mut make)?,
            batch: table::<BatchUtilization, S>(facts.is_on(Profiler::BatchUtilizationTracking), &mut make)?,
            captures: table::<Captures, S>(graphs, &mut make)?,
            replays: table::<Timeline, S>(graphs, &mut make)?,
            graph_usage: table::<GraphUsage, S>(graphs, &mut make)?,
            lifecycles: table::<Lifecycles, S>(requests, &mut make)?,
            request_events: table::<RequestEvents, S>(requests, &mut make)?,
            kv_usage: table::<KvUsage, S>(facts.is_on(Profiler::KvCacheTracking), &mut make)?,
            kv_evictions: table::<KvEvictions, S>(facts.sees_evictions(), &mut make)?,
            expert_activations: table::<Activations, S>(experts, &mut make)?,
            expert_coselection: table::<Coselection, S>(experts && facts.moe_coselection, &mut make)?,
            expert_weights: table::<Weights, S>(experts && facts.moe_weights, &mut make)?,
            expert_imbalance: table::<Imbalance, S>(experts, &mut make)?,
            encoder_decoder: table::<EncoderDecoder, S>(facts.is_on(Profiler::EncoderDecoderTiming), &mut make)?,
            sampling: table::<SamplingTiming, S>(facts.is_on(Profiler::SamplingTiming), &mut make)?,
            gpu_memory: table::<GpuMemory, S>(facts.is_on(Profiler::GpuMemory), &mut make)?,
            layers: table::<LayerTiming, S>(facts.is_on(Profiler::LayerTiming), &mut make)?,
            collectives: table::<CollectiveTiming, S>(facts.is_on(Profiler::LayerTiming), &mut make)?,
        })
    }

    #[inline]
    pub(super) fn row(&mut self, row: &Row<'_>) -> Result<(), Error> {
        match row {
            Row::Forward(pass) => put::<ForwardPass, S>(&mut self.forward, pass),
            Row::Cpu(operation) => put::<CpuOperations, S>(&mut self.cpu, operation),
            Row::Batch(batch) => put::<BatchUtilization, S>(&mut self.batch, batch),
            Row::Capture(capture) => put::<Captures, S>(&mut self.captures, capture),
            Row::Replay(replay) => put::<Timeline, S>(&mut self.replays, replay),
            Row::Lifecycle(request) => put::<Lifecycles, S>(&mut self.lifecycles, request),
            Row::RequestEvent(event) => put::<RequestEvents, S>(&mut self.request_events, event),
            Row::KvUsage(usage) => put::<KvUsage, S>(&mut self.kv_usage, usage),
            Row::KvEviction(eviction) => put::<KvEvictions, S>(&mut self.kv_evictions, eviction),
            Row::ExpertInterval(interval) => put::<Imbalance, S>(&mut self.expert_imbalance, interval),
            Row::Component(timed) => put::<EncoderDecoder, S>(&mut self.encoder_decoder, timed),
            Row::Sampling(sampled) => put::<SamplingTiming, S>(&mut self.sampling, sampled),
            Row::GpuMemory(sample) => put::<GpuMemory, S>(&mut self.gpu_memory, sample),
            Row::Layer(interval) => put::<LayerTiming, S>(&mut self.layers, interval),
            Row::Collective(collective) => put::<CollectiveTiming, S>(&mut self.collectives, collective),
            Row::Step(_) | Row::Span(_) | Row::FirstToken(_) => Ok(()),
        }
    }

    /// The rows that are known at the end only.
    pub(super) fn rest(&mut self, answers: &Answers) -> Result<(), Error> {
        for usage in answers.cuda_graphs.iter().flat_map(|graphs| &graphs.usage) {
            put::<GraphUsage, S>(&mut self.graph_usage, usage)?;
        }
        for layer in answers.moe_experts.iter().flat_map(|experts| &experts.layers) {
            for activation in Activation::all(layer) {
                put::<Activations, S>(&mut self.expert_activations, &activation)?;
            }
            for pair in Pair::all(layer) {
                put::<Coselection, S>(&mut self.expert_coselection, &pair)?;
            }
            for bin in WeightBin::all(layer) {
                put::<Weights, S>(&mut self.expert_weights, &bin)?;
            }
        }
        Ok(())
    }

    pub(super) fn into_tables(self) -> impl Iterator<Item = S> {
        [
            self.forward,
            self.cpu,
            self.batch,
            self.captures,
            self.replays,
            self.graph_usage,
            self.lifecycles,
            self.request_events,
            self.kv_usage,
            self.kv_evictions,
            self.expert_activations,
            self.expert_coselection,
            self.expert_weights,
            self.expert_imbalance,
            self.encoder_decoder,
            self.sampling,
            self.gpu_memory,
            self.layers,
            self.collectives,
        ]
        .into_iter()
        .flatten()
    }
}

/// A table in memory.
#[derive(Debug, Clone)]
pub struct ArrowTable {
    /// Its name.
    pub name: &'static str,
    /// Its columns: 64-bit floating-point and whole numbers, booleans, texts, and texts by number where few are many times there.
    pub schema: SchemaRef,
    /// Its rows. A text keeps its number from batch to batch.
    pub batches: Vec<RecordBatch>,
}

impl ArrowTable {
    /// How many rows it has.
    pub fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
}

/// A table that is being gathered in memory.
pub(super) struct ArrowRows {
    name: &'static str,
    columns: Columns,
    batches: Vec<RecordBatch>,
}

impl ArrowRows {
    pub(super) fn new(name: &'static str, columns: &[Column]) -> Self {
        Self { name, columns: Columns::new(columns), batches: Vec::new() }
    }

    fn close_batch(&mut self) -> Result<(), Error> {
        let batch =
            self.columns.take().map_err(|error| Error::Columns { table: self.name, cause: error.to_string() })?;
        self.batches.push(batch);
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<ArrowTable, Error> {
        if !self.columns.is_empty() {
            self.close_batch()?;
        }
        Ok(ArrowTable { name: self.name, schema: self.columns.schema(), batches: self.batches })
    }
}

impl Sink for ArrowRows {
    #[inline]
    fn row<T: Table>(&mut self, row: &T::Row<'_>) -> Result<(), Error> {
        if self.columns.row::<T>(row) { self.close_batch() } else { Ok(()) }
    }
}
