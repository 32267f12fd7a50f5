"""Calls back when a module of vLLM has been imported.

Loaded into every Python process that has us on its path, so it imports nothing, `typing` included.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


def complain(text: str) -> None:
    """Says a line on stderr, where there is one. For failures of what says all others, our native module among them."""
    try:
        sys.stderr.write(f"profilemate: {text}\n")
    except Exception:
        # Closed, or a pipe that nobody reads: there is nobody to tell.
        return


class _Loader:
    """Stands in for a loader, for one import of one module."""

    def __init__(self, loader: Loader, loaded: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._loaded = loaded

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module never sees us: `inspect` and `torch` read its source through its loader.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._loaded(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class Finder:
    """Finds nothing: it asks the other finders, and has a module's loader call back for the modules we hook."""

    def __init__(self) -> None:
        self._finding: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith("vllm") or name in self._finding:
            return None
        try:
            from profilemate import attach

            if name not in attach.target_modules():
                return None
        except Exception as error:
            uninstall()
            complain(f"cannot attach ({type(error).__name__}: {error}); nothing is recorded")
            return None
        self._finding.add(name)
        try:
            spec = self._ask_the_others(name, path, target)
        finally:
            self._finding.discard(name)
        if spec is None or spec.loader is None or not hasattr(spec.loader, "exec_module"):
            return None
        spec.loader = _Loader(spec.loader, attach.module_imported)  # type: ignore[assignment]
        return spec

    def _ask_the_others(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in list(sys.meta_path):
            find_spec = getattr(finder, "find_spec", None)
            if finder is self or find_spec is None:
                continue
            spec: ModuleSpec | None = find_spec(name, path, target)
            if spec is not None:
                return spec
        return None


def is_installed() -> bool:
    """Whether our finder is in place."""
    return any(isinstance(finder, Finder) for finder in sys.meta_path)


def install() -> None:
    """Puts our finder in front, once."""
    if not is_installed():
        sys.meta_path.insert(0, Finder())


def uninstall() -> None:
    """Takes our finder out again."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Finder)]
