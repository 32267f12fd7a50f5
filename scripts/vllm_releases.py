"""The Python sources of released vLLMs, without installing or downloading one.

`uv` says where the wheel of a release lies (with the index that it is configured for), and of a wheel's hundreds of
megabytes only the files that are asked for are read, by range requests. What was read once is kept in a cache.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from profilemate.vllm_source import Sources

#: Enough for the head of a member and, mostly, all of it.
_REQUEST_BYTES = 1 << 17
_TIMEOUT_SECONDS = 60


def default_cache() -> Path:
    """Where sources are kept."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "profilemate" / "vllm-sources"


class Releases:
    """Finds releases and reads their sources."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def newest(self, requirement: str) -> tuple[str, str] | None:
        """The newest release that fulfils a requirement such as `vllm==0.20.*`, and where its wheel is."""
        lock = _uv(requirement)
        if lock is None:
            return None
        version = re.search(r'^version = "([^"]+)"', lock, re.MULTILINE)
        wheels = re.findall(r'url = "([^"]+\.whl)"', lock)
        # All wheels of a release have the same Python in them.
        wheels.sort(key=lambda url: "x86_64" not in url)
        if version is None or not wheels:
            sys.exit(f"failed: uv gives no wheel for {requirement}")
        return version[1], wheels[0]

    def minors(self, first: str) -> dict[str, str]:
        """The last release of each minor version from `first` to the newest, and where its wheel is."""
        newest = self.newest("vllm")
        if newest is None:
            sys.exit("failed: uv finds no release of vLLM")
        major, last = (int(part) for part in newest[0].split(".")[:2])
        wanted = [f"vllm=={major}.{minor}.*" for minor in range(int(first.split(".")[1]), last + 1)]
        with ThreadPoolExecutor(max_workers=8) as pool:
            return dict(release for release in pool.map(self.newest, wanted) if release is not None)

    def sources(self, version: str, wheel: str | None = None) -> Sources:
        """The sources of a release. `wheel`: where it is, if that is known."""
        return Sources(_Wheel(self, self.cache / version, version, wheel).read)


class _Wheel:
    def __init__(self, releases: Releases, folder: Path, version: str, url: str | None) -> None:
        self._releases, self._folder, self._version, self._url = releases, folder, version, url
        self._names: frozenset[str] | None = None
        self._archive: zipfile.ZipFile | None = None

    def read(self, module: str) -> bytes | None:
        """The source of a module."""
        path = module.replace(".", "/")
        for name in (f"{path}.py", f"{path}/__init__.py"):
            if name in self._members():
                return self._member(name)
        return None

    def _members(self) -> frozenset[str]:
        if self._names is None:
            listing = self._folder / "members.json"
            if not listing.is_file():
                names = [name for name in self._open().namelist() if name.endswith(".py")]
                _write(listing, json.dumps(names).encode())
            self._names = frozenset(json.loads(listing.read_bytes()))
        return self._names

    def _member(self, name: str) -> bytes:
        file = self._folder / name
        if not file.is_file():
            _write(file, self._open().read(name))
        return file.read_bytes()

    def _open(self) -> zipfile.ZipFile:
        if self._archive is None:
            if self._url is None:
                found = self._releases.newest(f"vllm=={self._version}")
                if found is None:
                    sys.exit(f"failed: uv finds no vLLM {self._version}")
                self._url = found[1]
            remote: io.RawIOBase = _RemoteFile(self._url)
            self._archive = zipfile.ZipFile(io.BufferedReader(remote, _REQUEST_BYTES))
        return self._archive


class _RemoteFile(io.RawIOBase):
    """A file on a server, read by range requests."""

    def __init__(self, url: str) -> None:
        self._url, self._position = url, 0
        _, length = self._request(0, 0)
        self._length = length

    def _request(self, first: int, last: int) -> tuple[bytes, int]:
        request = urllib.request.Request(self._url, headers={"Range": f"bytes={first}-{last}"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
            length = (answer.headers.get("Content-Range") or "").rpartition("/")[2]
            if not length.isdigit():
                sys.exit("failed: the package index does not answer range requests")
            return answer.read(), int(length)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        return self._position

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        last = min(self._position + len(buffer), self._length) - 1
        if last < self._position:
            return 0
        content, _ = self._request(self._position, last)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def _uv(requirement: str) -> str | None:
    """A lock of one requirement alone; `None` if nothing fulfils it."""
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is None:
        sys.exit("failed: uv is not there; `make venv` installs it")
    command = [uv, "pip", "compile", "--quiet", "--no-deps", "--no-header", "--format", "pylock.toml", "-"]
    # The newest that some Python can install, not the newest for this one.
    command[3:3] = ["--universal", "--python-version", "3.12"]
    done = subprocess.run(command, input=f"{requirement}\n", capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout
    if "no solution" in done.stderr.lower():
        return None
    sys.exit(f"failed: uv cannot look up {requirement}:\n{done.stderr.strip()}")


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(content)
    partial.replace(file)
