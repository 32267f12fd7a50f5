"""The session that this process belongs to: its name, this process's log, and the facts about the process."""

from __future__ import annotations

import atexit
import enum
import gc
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from profilemate import _native
from profilemate.hooks import Attached, HookSpec
from profilemate.settings import LAYER_TIMING, PROFILERS, settings

#: Folder of the session; children inherit it and join.
SESSION_VARIABLE = "PROFILEMATE_SESSION"
#: Set by the launcher: it makes the tables.
COLLECTOR_VARIABLE = "PROFILEMATE_COLLECTOR"

#: What is attached in this process.
ATTACHED = Attached()

#: How long vLLM's start may wait for the collector's.
COLLECTOR_SECONDS = 1

#: Kept, because Python complains of a process that is forgotten while it runs.
_slow_collectors: list[Any] = []
_roles: set[tuple[str, int, int]] = set()
_failed = False


def choose() -> str:
    """The session folder. The first process of a launch names it and exports the name; nothing is made yet."""
    folder = os.environ.get(SESSION_VARIABLE)
    if not folder:
        # Children and the collector may work in other folders.
        folder = os.path.join(os.path.abspath(settings()["output_dir"]), _native.new_session_name())
        os.environ[SESSION_VARIABLE] = folder
    return folder


def take_role(role: str, rank: int, data_parallel_rank: int, vllm_config: Any = None) -> None:
    """This process does a job of vLLM's: opens its log, or notes the job in the one it has."""
    global _failed
    if _failed or ((role, rank, data_parallel_rank) in _roles and _native.is_open()):
        return
    if _native.is_open():
        _native.add_role(role, rank, data_parallel_rank)
    else:
        try:
            _open(role, rank, data_parallel_rank)
        except OSError as error:
            _failed = True
            _native.say(f"{error}; this process is not recorded, and vLLM is not affected")
            return
    _roles.add((role, rank, data_parallel_rank))
    _note_config(vllm_config)


def _open(role: str, rank: int, data_parallel_rank: int) -> None:
    values = settings()
    folder = choose()
    made = _native.sessions_folder_ready(folder)
    _native.open(folder, role, rank, data_parallel_rank, values["segment_bytes"], values["max_bytes"])
    _native.set_debug_interval(values["debug_interval"] if values["debug"] else 0)
    _close_at_exit()
    _note_process()
    if values["cpu_timing"] and _native.on_garbage_collection not in gc.callbacks:
        # A forked child has its parent's.
        gc.callbacks.append(_native.on_garbage_collection)
    if values["nvtx"]:
        _use_nvtx()
    if values["verbose"]:
        profilers = ", ".join(name for name in PROFILERS if values[name])
        _native.say(f"[{os.getpid()}] {role}-{rank} records {profilers} to {folder} (timing: wall)")
    if made and COLLECTOR_VARIABLE not in os.environ:
        _start_collector(folder)


def _use_nvtx() -> None:
    """Has torch's binding of NVTX make the ranges. vLLM has imported torch long before a log is opened."""
    nvtx: Any = getattr(getattr(sys.modules.get("torch"), "_C", None), "_nvtx", None)
    if hasattr(nvtx, "rangePushA") and hasattr(nvtx, "rangePop"):
        _native.use_nvtx(nvtx.rangePushA, nvtx.rangePop)
    else:
        _native.say("nvtx is on, but this torch has no NVTX; there are no ranges")


def _start_collector(folder: str) -> None:
    """Starts the process that makes the tables; it outlives vLLM, however that ends."""
    import subprocess

    program = Path(__file__).parent / "_bin" / "profilemate"
    later = f"the recording goes on, and `profilemate export {folder}` makes its tables"
    try:
        # It leaves this process's family at once, so it is neither waited for nor killed with it.
        starting = subprocess.Popen(
            [str(program), "collect", "--detach", folder],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
        code = starting.wait(COLLECTOR_SECONDS)
    except subprocess.TimeoutExpired:
        # On a busy machine it comes later. To kill it would be to wait for its end, which may not come either.
        _slow_collectors.append(starting)
        _native.say(f"{program} has not started after {COLLECTOR_SECONDS} s; {later} if it never does")
        return
    except (OSError, subprocess.SubprocessError) as error:
        _native.say(f"cannot start {program} ({error}); {later}")
        return
    if code != 0:
        _native.say(f"cannot start {program} (it ended with {code}); {later}")


def _close_at_exit() -> None:
    """A log that is closed says that its process ended in order. It is whole without that, too."""
    atexit.register(_native.close)
    if "multiprocessing.util" in sys.modules:
        # Children of multiprocessing leave without atexit, but run these.
        from multiprocessing import util

        util.Finalize(None, _native.close, exitpriority=-100)


def _after_fork_in_child() -> None:
    global _failed
    _roles.clear()
    _failed = False


os.register_at_fork(after_in_child=_after_fork_in_child)


def note_hook(spec: HookSpec) -> None:
    """Notes in the log where a hook is attached, or why not."""
    if not _native.is_open():
        return
    places = ATTACHED.places.get(spec.name)
    if places:
        _native.fact(f"hook:{spec.name}", ", ".join(places))
    elif spec.name in ATTACHED.absent and not spec.optional:
        _native.fact(f"hook:{spec.name}", f"absent: {ATTACHED.absent[spec.name]}")


def attach(spec: HookSpec, module: ModuleType) -> None:
    """Attaches a hook that is not attached by itself, in a module that is there."""
    ATTACHED.attach(spec, module)
    note_hook(spec)


def hook_override(spec: HookSpec, owner: type, method: str) -> None:
    """Hooks a method where the class of an object at hand defines it, unless that is hooked already."""
    function = getattr(owner, method, None)
    definer = next((base for base in owner.__mro__ if method in vars(base)), None)
    if definer is None or isinstance(function, _native.Hook):
        return
    place = f"{definer.__module__}:{definer.__qualname__}.{method}"
    override = replace(
        spec, name=f"{spec.name} ({definer.__qualname__})", places=(place,), group=spec.group or spec.name
    )
    ATTACHED.attach(override, sys.modules[definer.__module__])
    note_hook(override)


def note_profiler(profiler: str, state: str) -> None:
    """Notes whether a profiler works in this process: `on`, or `could not attach: …`."""
    if settings()[profiler]:
        _native.fact(f"profiler:{profiler}", state)


def note_profiler_needs(profiler: str, hook: str) -> None:
    """A profiler works in this process if this hook is attached."""
    if hook in ATTACHED.places:
        note_profiler(profiler, "on")
    else:
        reason = ATTACHED.absent.get(hook, f"{hook} was not found")
        note_profiler(profiler, f"could not attach: {reason}")


def _note_process() -> None:
    from profilemate.probes import HOOKS

    values = settings()
    if not values[LAYER_TIMING]:
        _native.fact(f"profiler:{LAYER_TIMING}", "off")
    for profiler in PROFILERS:
        _native.fact(f"flag:{profiler}", "1" if values[profiler] else "0")
        if not values[profiler]:
            _native.fact(f"profiler:{profiler}", "off")
    _native.fact("flag:cuda_events_enabled", "1" if values["timing"] == "events" else "0")
    _native.fact("timing_mode", "wall")
    _native.fact("python_version", sys.version.split()[0])
    for module in ("vllm", "torch"):
        version = getattr(sys.modules.get(module), "__version__", None)
        if version is not None:
            _native.fact(f"{module}_version", str(version))
    for spec in HOOKS:
        note_hook(spec)


#: Settings of vLLM that advice is about, by the part of its configuration that has them. What a version does not have
#: is left out. The names are those of `vllm/config/`, and of its command line.
_SETTINGS = {
    "model_config": ("enforce_eager", "max_model_len", "generation_config", "max_logprobs"),
    "cache_config": (
        "gpu_memory_utilization",
        "cache_dtype",
        "enable_prefix_caching",
        "num_gpu_blocks_override",
        "kv_cache_memory_bytes",
        "kv_offloading_size",
    ),
    "scheduler_config": (
        "async_scheduling",
        "policy",
        "max_num_seqs",
        "max_num_active_seqs",
        "max_num_batched_tokens",
    ),
    "parallel_config": (
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "data_parallel_size",
        "enable_expert_parallel",
        "enable_eplb",
        "numa_bind",
        "_api_process_count",
    ),
    "compilation_config": ("cudagraph_mode", "max_cudagraph_capture_size"),
    "speculative_config": ("method", "num_speculative_tokens"),
}


def _note_config(vllm_config: Any) -> None:
    model = getattr(getattr(vllm_config, "model_config", None), "model", None)
    if isinstance(model, str):
        # It may be a URL.
        _native.fact("model", _native.without_secrets(model))
    for part, names in _SETTINGS.items():
        config = getattr(vllm_config, part, None)
        for name in names:
            value = getattr(config, name, None)
            if isinstance(value, enum.Enum):
                value = value.name
            # Anything else is not a setting as somebody would write it.
            if isinstance(value, bool | int | float | str):
                _native.fact(f"setting:{name.lstrip('_')}", str(value))


def note_command() -> None:
    """Notes how this process was started."""
    words = [str(word).encode("utf-8", "replace").decode() for word in getattr(sys, "orig_argv", sys.argv)]
    _native.fact("command", _native.command_line(words))


def _cuda() -> Any:
    """`torch.cuda`, if torch is there and has a GPU that it uses in this process; else `None`."""
    torch = sys.modules.get("torch")
    if torch is None or not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return None
    return torch.cuda


def use_device_code() -> str | None:
    """Has our code loaded into the GPU's context, unless it is. Returns why it cannot be used, if so.

    To be called before vLLM captures graphs. The answer is in the log, too.
    """
    cuda = _cuda()
    if cuda is None:
        return "there is no GPU"
    stream_function = getattr(sys.modules["torch"]._C, "_cuda_getCurrentRawStream", None)
    if stream_function is None:
        return "torch does not tell its stream"
    reason = _native.load_device_code(stream_function, cuda.current_device())
    _native.fact("device_code", "on" if reason is None else f"could not load: {reason}")
    return reason


def use_device() -> None:
    """Notes which GPU torch uses in this process and has steps timed on it; never makes torch initialise one."""
    cuda = _cuda()
    if cuda is None:
        return
    values = settings()
    device = cuda.current_device()
    _native.fact("gpu_name", str(cuda.get_device_name(device)))
    _native.fact("gpu_count", str(cuda.device_count()))
    driver = _native.cuda_driver_version()
    if driver is not None:
        _native.fact("gpu_driver", f"CUDA {driver}")
    if not any(
        values[profiler] for profiler in ("forward_pass_timing", "encoder_decoder_timing", "sampling_timing")
    ):
        return
    if values["timing"] == "lightweight":
        _native.fact("timing_mode", "lightweight")
        return
    stream_function = getattr(sys.modules["torch"]._C, "_cuda_getCurrentRawStream", None)
    if stream_function is not None and _native.use_cuda(stream_function, device, values["cuda_event_batch_size"]):
        _native.fact("timing_mode", "events")
    else:
        _native.say(
            "no CUDA events here; forward passes are timed by the wall clock (timing_mode in metadata.json)"
        )
