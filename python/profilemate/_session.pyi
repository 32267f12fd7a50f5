"""A session as a notebook sees it. Loaded when somebody opens one, never inside vLLM."""

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

class SessionError(Exception):
    """A session, or something in it, that is not there or cannot be read; the message is one sentence."""

class Table:
    """A table of a session, in memory. Other libraries take it through the Arrow PyCapsule interface."""

    @property
    def name(self) -> str:
        """The table's name."""
    @property
    def columns(self) -> list[str]:
        """The names of its columns, in the order of the CSV file."""
    def __len__(self) -> int: ...
    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...
    def __arrow_c_schema__(self) -> object: ...
    def to_pandas(self) -> Any:
        """The table as a pandas `DataFrame`, with nothing but pandas."""
    def _raw_columns(self) -> list[tuple[str, str, Any, bytes | None, list[str] | None]]: ...
    def _repr_html_(self) -> str: ...

class Session:
    """A session: one launch of vLLM, as it was recorded up to the moment it was opened."""

    @property
    def path(self) -> Path:
        """The session's folder."""
    @property
    def id(self) -> str:
        """The name of the folder without `session_`."""
    @property
    def tables(self) -> list[str]:
        """The names of its tables."""
    @property
    def metadata(self) -> dict[str, Any]:
        """The content of `metadata.json`."""
    @property
    def summaries(self) -> dict[str, dict[str, Any]]:
        """All summaries by name: what stands in the JSON files beside the tables."""
    def table(self, name: str) -> Table:
        """A table, by name. The first time, the raw logs are read for it."""
    def summary(self, name: str) -> dict[str, Any]:
        """One summary, by name, such as `forward_pass` or `breakdown`."""
    def __getitem__(self, name: str) -> Table: ...
    def __contains__(self, name: object) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    def _repr_html_(self) -> str: ...

def open_session(path: str | PathLike[str] | None = None) -> Session:
    """Opens a session: the folder that `profilemate run` named, or by default the newest in the output folder."""
