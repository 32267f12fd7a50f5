"""Keeps the raw logs of a session that was recorded elsewhere as a golden one.

    python scripts/keep_session.py SESSION TO [OLD=NEW...]

Heads lose the room for text that is not there, as scripts/record_golden_sessions.sh does it, and in their texts every
OLD becomes NEW: what a path says of the machine. Segments are copied as they are, and have no text.
"""

from __future__ import annotations

import shutil
import struct
import sys
import zlib
from pathlib import Path

# See FORMAT.md.
TEXT_USED = 256
TEXT_OFFSET = 12288
ENTRY_HEADER = struct.Struct("<IIII")
ALIGNMENT = 8


def kept_head(head: bytes, replacements: list[tuple[bytes, bytes]]) -> bytes:
    (used,) = struct.unpack_from("<Q", head, TEXT_USED)
    text = bytearray()
    at = TEXT_OFFSET
    while at < TEXT_OFFSET + used:
        length, kind, checksum, _ = ENTRY_HEADER.unpack_from(head, at)
        at += ENTRY_HEADER.size
        entry = head[at : at + length]
        if zlib.crc32(entry) != checksum:
            raise SystemExit("a text in a head is damaged: such a session is no golden one")
        at += -(-length // ALIGNMENT) * ALIGNMENT
        for old, new in replacements:
            entry = entry.replace(old, new)
        text += ENTRY_HEADER.pack(len(entry), kind, zlib.crc32(entry), 0) + entry
        text += bytes(-len(entry) % ALIGNMENT)
    kept = bytearray(head[:TEXT_OFFSET]) + text
    struct.pack_into("<Q", kept, TEXT_USED, len(text))
    return bytes(kept)


def main() -> None:
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    session, to = Path(sys.argv[1]) / "raw", Path(sys.argv[2]) / "raw"
    pairs = [argument.encode().partition(b"=") for argument in sys.argv[3:]]
    to.mkdir(parents=True)
    for path in sorted(session.iterdir()):
        if path.suffix == ".head":
            (to / path.name).write_bytes(kept_head(path.read_bytes(), [(old, new) for old, _, new in pairs]))
        elif path.suffix == ".seg":
            shutil.copyfile(path, to / path.name)
    for path in to.iterdir():
        path.chmod(0o644)
    print(sum(path.stat().st_size for path in to.iterdir()), "bytes")


if __name__ == "__main__":
    main()
