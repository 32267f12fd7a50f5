//! `profilemate._native`: what Python needs of the recorder, inside vLLM's processes.
//!
//! [`hook`] is the object that stands in for a vLLM method; [`calls`] are the functions that probes call;
//! [`extract`] reads vLLM's objects where every step must; [`state`]
//! is the one recorder of the process. Everything here runs with the GIL held, which makes its holder the one writer.

mod calls;
mod extract;
mod failure;
mod garbage;
mod gpu;
mod hook;
mod state;

use pyo3::prelude::*;

/// The recorder of ProfileMate.
#[pymodule]
mod _native {
    #[pymodule_export]
    use crate::calls::{
        add_role, close, cuda_counters, cuda_driver_version, fact, is_open, limits, new_session_name, open,
        sessions_folder_ready, set_debug_interval, settings, statistics, ticks, use_cuda, worker_step, write_span,
    };
    #[pymodule_export]
    use crate::extract::front_end::{after_process_outputs, before_process_outputs, before_processor_add_request};
    #[pymodule_export]
    use crate::extract::gpu_memory::{gpu_memory_allocated, watch_gpu_memory};
    #[pymodule_export]
    use crate::extract::kv_cache::KvCacheCollector;
    #[pymodule_export]
    use crate::extract::requests::{before_add_request, before_free_request, hash_request_ids, request_preempted};
    #[pymodule_export]
    use crate::extract::sampling::{
        before_grammar_bitmask, before_sample, before_sample_v2, before_sampler_add_request, watch_sampling,
    };
    #[pymodule_export]
    use crate::extract::scheduler::{
        SchedulerBooks, after_schedule, after_update_from_output, before_update_from_output,
    };
    #[pymodule_export]
    use crate::extract::worker::{Dispatch, before_execute_model};
    #[pymodule_export]
    use crate::garbage::on_garbage_collection;
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::failure::silence_panics();
        module.add("Hook", crate::hook::make_type(module.py())?)?;
        module.add("STEP", crate::extract::STEP)?;
        module.add("BOOKS", crate::extract::BOOKS)?;
        for (name, value) in crate::hook::CONSTANTS {
            module.add(*name, *value)?;
        }
        Ok(())
    }
}
