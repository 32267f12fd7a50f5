//! `profilemate._native`: what Python needs of the recorder, inside vLLM's processes.
//!
//! [`hook`] is the object that stands in for a vLLM method; [`calls`] are the functions that probes call;
//! [`extract`] reads vLLM's objects where every step must, as [`extractor`] asks it to; [`experts`] counts what routers chose; [`state`]
//! is the one recorder of the process. Everything here runs with the GIL held, which makes its holder the one writer.

mod calls;
mod device;
mod experts;
mod extract;
mod extractor;
mod failure;
mod garbage;
mod gpu;
mod hook;
mod layers;
mod names;
mod nvtx;
mod state;

use pyo3::prelude::*;

/// The recorder of ProfileMate.
#[pymodule]
mod _native {
    #[pymodule_export]
    use crate::calls::{
        add_role, close, command_line, cuda_counters, cuda_driver_version, encoder_input, fact, is_open, limits,
        new_session_name, open, say, sessions_folder_ready, set_debug_interval, settings, statistics, ticks,
        use_cuda, without_secrets, worker_step, write_span,
    };
    #[pymodule_export]
    use crate::device::{load_device_code, use_step_word};
    #[pymodule_export]
    use crate::experts::{
        count_expert_weights, count_experts, experts_failed, join_experts, launch_expert_counts, watch_experts,
    };
    #[pymodule_export]
    use crate::extract::gpu_memory::{gpu_memory_allocated, watch_gpu_memory};
    #[pymodule_export]
    use crate::extract::kv_cache::{KvCacheCollector, KvCacheCollectorBeside};
    #[pymodule_export]
    use crate::extract::requests::{hash_request_ids, request_preempted};
    #[pymodule_export]
    use crate::extract::sampling::watch_sampling;
    #[pymodule_export]
    use crate::extract::scheduler::SchedulerBooks;
    #[pymodule_export]
    use crate::extract::worker::Dispatch;
    #[pymodule_export]
    use crate::extractor::{Extractor, extract};
    #[pymodule_export]
    use crate::garbage::on_garbage_collection;
    #[pymodule_export]
    use crate::layers::bind_layers;
    #[pymodule_export]
    use crate::nvtx::use_nvtx;
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::failure::silence_panics();
        // Python has none where the descriptor was closed when it began.
        if module.py().import("sys")?.getattr("__stderr__")?.is_none() {
            profilemate_record::be_silent();
        }
        module.add("PanicException", module.py().get_type::<pyo3::panic::PanicException>())?;
        module.add("Hook", crate::hook::make_type(module.py())?)?;
        for (name, function) in crate::extractor::EXTRACTORS {
            module.add(*name, Extractor::new(name, *function))?;
        }
        module.add("STEP", crate::extract::STEP)?;
        module.add("BOOKS", crate::extract::BOOKS)?;
        for (name, value) in crate::hook::CONSTANTS {
            module.add(*name, *value)?;
        }
        for (name, value) in [
            ("STAMP_ALL_REDUCE", crate::layers::ALL_REDUCE),
            ("STAMP_ALL_GATHER", crate::layers::ALL_GATHER),
            ("STAMP_REDUCE_SCATTER", crate::layers::REDUCE_SCATTER),
            ("SECTION_ENDS", crate::layers::SECTION_ENDS),
        ] {
            module.add(name, value)?;
        }
        module.add("EMPTY_INTERVAL", crate::layers::EMPTY_INTERVAL)?;
        module.add("COLLECTIVE_PAIRS", crate::layers::COLLECTIVE_PAIRS)?;
        Ok(())
    }
}
