"""Attaches our hooks to vLLM, once per process, whichever route comes first.

Routes: the folder `sitecustomize/` on PYTHONPATH (the launcher puts it there), or vLLM's own plugins
(`vllm.general_plugins`), which every process of vLLM loads. Both end in the same finder: a hook is put in place when
the module that holds its function is imported, or at once if it was imported before.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from types import ModuleType

from profilemate import _native, importhook


@lru_cache(maxsize=1)
def target_modules() -> frozenset[str]:
    """The modules of vLLM that hold a function we hook."""
    from profilemate.probes import HOOKS

    return frozenset(module for spec in HOOKS for module in spec.modules())


@lru_cache(maxsize=1)
def _is_wanted() -> bool:
    """Whether to record in this process. The first call reads the settings and names the session."""
    from profilemate import session
    from profilemate.settings import settings

    if not settings()["enable"]:
        importhook.uninstall()
        return False
    session.choose()
    return True


def module_imported(module: ModuleType) -> None:
    """Attaches the hooks of a module that was just imported. Nothing that goes wrong here reaches the import."""
    try:
        if _is_wanted():
            _attach(module)
    except (Exception, _native.PanicException) as error:
        _native.say(f"cannot attach to {module.__name__} ({type(error).__name__}: {error}); vLLM is not affected")


def _attach(module: ModuleType) -> None:
    from profilemate import session
    from profilemate.probes import HOOKS
    from profilemate.settings import settings

    values = settings()
    for spec in HOOKS:
        if module.__name__ not in spec.modules():
            continue
        if spec.profilers and not any(values[profiler] for profiler in spec.profilers):
            continue
        if spec.timing is not None and values["timing"] != spec.timing:
            continue
        place = session.ATTACHED.attach(spec, module)
        session.note_hook(spec)
        if place is not None and values["verbose"]:
            _native.say(f"[{os.getpid()}] {spec.name} attached to {place}")


def plugin() -> None:
    """Entry point of `vllm.general_plugins`: attaches if recording was asked for.

    Having ProfileMate installed is not asking for it: the switch is (`PROFILEMATE_ENABLE=1`), or a session that a
    parent process began.
    """
    from profilemate.session import SESSION_VARIABLE
    from profilemate.settings import settings

    try:
        if importhook.is_installed():
            return
        values = settings()
        asked_for = values["enable"] and (values["enable_is_set"] or SESSION_VARIABLE in os.environ)
        if not asked_for:
            return
        importhook.install()
        for name in target_modules():
            module = sys.modules.get(name)
            if module is not None:
                module_imported(module)
    except (Exception, _native.PanicException) as error:
        _native.say(f"cannot attach ({type(error).__name__}: {error}); nothing is recorded")
