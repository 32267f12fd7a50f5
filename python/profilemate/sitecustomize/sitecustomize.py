"""Runs at the start of every Python process that has this folder on PYTHONPATH.

It puts one finder in front of the import system, which does nothing until a module of vLLM is imported, and then runs
the `sitecustomize` that Python would have run without us. It makes no file, prints nothing and loads nothing else.
"""

# The import system itself: `importlib.util` and `importlib.machinery` offer the same names, but importing them loads
# half a dozen modules, in every Python process of the machine's user.
import _frozen_importlib
import _frozen_importlib_external
import os
import sys


def _package_folder() -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _load_package() -> None:
    """Makes `profilemate` importable from where this file lies, whatever environment this process runs in."""
    if "profilemate" in sys.modules:
        return
    folder = _package_folder()
    spec = _frozen_importlib_external.spec_from_file_location(
        "profilemate", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is not where it was")
    module = _frozen_importlib.module_from_spec(spec)
    sys.modules["profilemate"] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop("profilemate", None)
        raise


class _LazySettings(type):
    def __getattr__(cls, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        _load_package()
        from profilemate.settings import legacy_value

        return legacy_value(name)


class ProfilingConfig(metaclass=_LazySettings):
    """The settings under the first generation's names, such as `ProfilingConfig.ENABLE_CPU_TIMING`."""


def _attach() -> None:
    _load_package()
    from profilemate import importhook

    importhook.install()


def _chain() -> None:
    """Runs the `sitecustomize` that ours shadows, as `site` would have: what it raises, `site` reports."""
    here = os.path.dirname(os.path.abspath(__file__))

    def is_here(folder: str) -> bool:
        try:
            return os.path.samefile(folder or os.curdir, here)
        except OSError:
            return False

    folders = [folder for folder in sys.path if not is_here(folder)]
    spec = _frozen_importlib_external.PathFinder.find_spec("sitecustomize", folders)
    if spec is None or spec.loader is None:
        return
    module = _frozen_importlib.module_from_spec(spec)
    # Scripts may ask either of us for our settings.
    vars(module)["ProfilingConfig"] = ProfilingConfig
    ours = sys.modules.get("sitecustomize")
    sys.modules["sitecustomize"] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if ours is not None:
            sys.modules["sitecustomize"] = ours
        raise


def _complain(text: str) -> None:
    try:
        sys.stderr.write(f"profilemate: {text}\n")
    except Exception:
        # Closed, or a pipe that nobody reads: there is nobody to tell.
        return


try:
    _attach()
except Exception as error:
    # Whatever is wrong with us is no business of the program that starts here, unless it runs vLLM.
    _complain(f"cannot attach ({type(error).__name__}: {error}); nothing is recorded")
_chain()
