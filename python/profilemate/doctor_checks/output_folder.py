"""Whether sessions can be recorded in the output folder: the calls of the recorder, made there once.

(`crates/record/src/mapping.rs`, `writer.rs`)
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_BYTES = 1 << 16

#: File systems of another machine: the part of the name before a dot.
_REMOTE = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "ceph",
    "lustre",
    "gpfs",
    "beegfs",
    "glusterfs",
    "9p",
    "virtiofs",
    "fuse",
}


@dataclass
class OutputFolder:
    """What was found."""

    path: str
    #: Whether it is there; if not, the folder above it was looked at.
    exists: bool
    file_system: str | None = None
    mounted_at: str | None = None
    free_bytes: int | None = None
    #: What does not work there, in one sentence.
    problem: str | None = None
    notes: list[str] = field(default_factory=list)

    def line(self) -> str:
        """In one line."""
        where = f"{self.path}{'' if self.exists else ' (will be made)'}"
        if self.file_system is not None:
            where += f": {self.file_system} mounted at {self.mounted_at}"
        if self.free_bytes is not None:
            where += f", {self.free_bytes / (1 << 30):.1f} GiB free"
        return f"{where}: {self.problem or 'files can be made, mapped, locked and renamed'}"


def examine(path: str, max_bytes: int) -> OutputFolder:
    """Makes, maps, locks and renames a file there, and removes it again."""
    folder = Path(path).absolute()
    found = OutputFolder(str(folder), folder.is_dir())
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    found.mounted_at, found.file_system = mount_of(there, Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    space = os.statvfs(there)
    found.free_bytes = space.f_bavail * space.f_frsize
    found.problem = _try(there)
    if found.problem is None:
        found.notes = notes_of(found, max_bytes)
    return found


def mount_of(path: Path, mountinfo: str) -> tuple[str | None, str | None]:
    """Where the file system of a path is mounted, and its type. (proc_pid_mountinfo(5))"""
    real, best = path.resolve(), None
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        mounted_at = fields.split(" ")[4].encode().decode("unicode_escape")
        # The last one that was mounted at a place lies on top.
        if real.is_relative_to(mounted_at) and (best is None or len(mounted_at) >= len(best[0])):
            best = mounted_at, rest.split(" ")[0]
    return best if best is not None else (None, None)


def _try(there: Path) -> str | None:
    if not there.is_dir():
        return f"{there} is no folder"
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".profilemate-doctor-", dir=there))
    except OSError as error:
        return f"no folder can be made in it ({error.strerror})"
    try:
        file = scratch / "log.new"
        with file.open("w+b") as log:
            steps: list[tuple[str, Callable[[], object]]] = [
                ("space cannot be reserved in a file", lambda: _reserve(log.fileno())),
                ("a file cannot be mapped and written through the mapping", lambda: _map(log.fileno())),
                ("files cannot be locked", lambda: _lock(file)),
                ("files cannot be renamed", lambda: file.rename(scratch / "log")),
            ]
            for what, step in steps:
                if reason := _reason_against(step):
                    return f"{what} ({reason})"
    except OSError as error:
        return f"no file can be made in it ({error.strerror})"
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return None


def _reason_against(step: Callable[[], object]) -> str | None:
    try:
        step()
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def _reserve(descriptor: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, _BYTES)
    except OSError as error:
        # The recorder writes zeros there.
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        os.pwrite(descriptor, bytes(_BYTES), 0)


def _map(descriptor: int) -> None:
    words = b"profilemate doctor"
    with mmap.mmap(descriptor, _BYTES, mmap.MAP_SHARED) as mapping:
        mapping[_BYTES - len(words) :] = words
        if os.pread(descriptor, len(words), _BYTES - len(words)) != words:
            raise ValueError("what is written through it does not show in the file")


def _lock(file: Path) -> None:
    with file.open("rb") as writer, file.open("rb") as reader:
        fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(reader, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        raise ValueError("a lock keeps nobody out")


def notes_of(found: OutputFolder, max_bytes: int) -> list[str]:
    """What should be known of a folder that works."""
    kind = (found.file_system or "").partition(".")[0]
    notes = []
    if kind in ("tmpfs", "ramfs"):
        notes.append(
            f"{found.path} lies in memory ({found.file_system}): raw logs take up to {_size(max_bytes)} of it for "
            "each process (max_bytes), count towards a container's limit, and are gone after a restart"
        )
    elif kind in _REMOTE:
        notes.append(
            f"{found.path} lies on another machine ({found.file_system}): it works, but what the kernel writes goes "
            "over the network; a local output_dir is better, and the collector has to run on this machine"
        )
    elif kind in ("overlay", "aufs"):
        notes.append(
            f"{found.path} lies in the container's own layer ({found.file_system}): sessions are gone with the "
            "container: mount a folder there to keep them"
        )
    if found.free_bytes is not None and found.free_bytes < max_bytes:
        notes.append(
            f"{found.path} has less free space than one process's raw log may take ({_size(max_bytes)}, max_bytes): "
            "records are lost, and counted, when it is full"
        )
    return notes


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"
