"""ProfileMate: a flight recorder for vLLM.

In a notebook: `profilemate.open_session()` reads a session that was recorded.
"""

__version__ = "0.1.0"
__all__ = ["Session", "SessionError", "Table", "__version__", "open_session"]

# This module is imported inside vLLM, too, where what reads sessions has no place: it is loaded when it is asked for.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._session import Session, SessionError, Table, open_session
else:

    def __getattr__(name):
        if name.startswith("_") or name not in __all__:
            raise AttributeError(f"module 'profilemate' has no attribute '{name}'")
        from . import _session

        return getattr(_session, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
