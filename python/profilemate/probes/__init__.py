"""The probes: one file per component of vLLM. Each lists its hooks in `HOOKS`."""

from __future__ import annotations

from profilemate.hooks import HookSpec
from profilemate.probes import (
    cuda_graphs,
    encoder,
    engine_core,
    front_end,
    model_runner,
    model_runner_v2,
    requests,
    scheduler,
    worker,
)

#: Every hook, in the order in which they are attached where several are in one module.
HOOKS: tuple[HookSpec, ...] = (
    *front_end.HOOKS,
    *engine_core.HOOKS,
    *scheduler.HOOKS,
    *requests.HOOKS,
    *worker.HOOKS,
    *model_runner.HOOKS,
    *model_runner_v2.HOOKS,
    *cuda_graphs.HOOKS,
    *encoder.HOOKS,
)
