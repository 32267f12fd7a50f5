#!/usr/bin/env python3
"""Makes the PTX of the device code (crates/cuda/src/device/*.cu) with NVRTC, or checks that it belongs to its source.

    scripts/build_device_code.py            write NAME.ptx beside each NAME.cu
    scripts/build_device_code.py --check    fail if a .ptx does not belong to its source

The PTX is kept in the repository and embedded by `crates/cuda`: building ProfileMate needs no CUDA. Its first line has
the SHA-256 of the source (with what it includes), so that a check needs no CUDA either; where there is an NVRTC, of the
same version as the PTX was made with, the check compiles again and compares. With nvJitLink, the PTX is compiled
for some GPUs to see that it is sound.

The driver compiles PTX for the GPU at hand. A driver takes no PTX of a newer version than its own, so the version that
NVRTC writes is lowered to one that the oldest drivers for vLLM's CUDA have; the code uses nothing that is newer
(nvJitLink tells).
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "crates" / "cuda" / "src" / "device"
#: The oldest that NVRTC 13 knows; drivers compile it for all that came after.
ARCHITECTURE = "compute_75"
#: PTX of CUDA 11.0, the oldest with what we use.
PTX_VERSION = "7.0"
#: GPUs that the PTX is compiled for, to see that it is sound.
CHECKED = ("sm_75", "sm_80", "sm_90", "sm_100")


def load(name: str) -> ctypes.CDLL | None:
    """A library of CUDA: the system's, or the one that torch's packages bring."""
    found = [Path(folder, "nvidia", "cu13", "lib", name) for folder in sys.path if folder]
    path = next((str(path) for path in found if path.exists()), name)
    try:
        return ctypes.CDLL(path)
    except OSError:
        return None


def source_of(file: Path) -> str:
    """The source with what it includes, in one text."""
    lines = []
    for line in file.read_text().splitlines():
        included = re.fullmatch(r'#include "(.+)"', line)
        lines.append(source_of(file.parent / included[1]).rstrip("\n") if included else line)
    return "\n".join(lines) + "\n"


def compile_ptx(nvrtc: ctypes.CDLL, name: str, source: str) -> str:
    """Compiles with NVRTC; the PTX, without comments."""
    program = ctypes.c_void_p()

    def check(code: int, what: str) -> None:
        if code != 0:
            sys.exit(f"{name}: {what} failed with {code}")

    text = source.encode()
    check(
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name.encode(), 0, None, None), "nvrtcCreateProgram"
    )
    options = [f"--gpu-architecture={ARCHITECTURE}".encode(), b"--std=c++17", b"--fmad=true"]
    code = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    if code != 0:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        sys.exit(f"{name} does not compile:\n{log.value.decode()}")
    check(nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size)), "nvrtcGetPTXSize")
    ptx = ctypes.create_string_buffer(size.value)
    check(nvrtc.nvrtcGetPTX(program, ptx), "nvrtcGetPTX")
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    lines = [line.rstrip() for line in ptx.value.decode().splitlines()]
    kept = [line for line in lines if line and not line.startswith("//")]
    return re.sub(r"(?m)^\.version .*$", f".version {PTX_VERSION}", "\n".join(kept)) + "\n"


def version_of(nvrtc: ctypes.CDLL) -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def check_sound(name: str, ptx: str) -> None:
    """Compiles the PTX for some GPUs, where nvJitLink is at hand."""
    linker = load("libnvJitLink.so.13")
    if linker is None:
        return
    for gpu in CHECKED:
        handle = ctypes.c_void_p()
        options = (ctypes.c_char_p * 1)(f"-arch={gpu}".encode())
        code = linker.nvJitLinkCreate(ctypes.byref(handle), 1, options)
        data = ptx.encode() + b"\0"
        # NVJITLINK_INPUT_PTX
        code = code or linker.nvJitLinkAddData(handle, 2, data, ctypes.c_size_t(len(data)), name.encode())
        code = code or linker.nvJitLinkComplete(handle)
        if code != 0:
            size = ctypes.c_size_t()
            linker.nvJitLinkGetErrorLogSize(handle, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value + 1)
            linker.nvJitLinkGetErrorLog(handle, log)
            sys.exit(f"{name} is not sound for {gpu} ({code}): {log.value.decode()}")
        linker.nvJitLinkDestroy(ctypes.byref(handle))


def head_of(digest: str, version: str) -> str:
    return f"// source sha256 {digest} NVRTC {version} {ARCHITECTURE}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes or checks the PTX of the device code")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail if a file is not what it should be"
    )
    check = parser.parse_args().check
    # NVRTC looks for it by name, which finds it when it is loaded already.
    load("libnvrtc-builtins.so.13.0")
    nvrtc = load("libnvrtc.so.13")
    if nvrtc is None and not check:
        sys.exit("there is no libnvrtc.so.13 (CUDA 13, or torch's package nvidia-cuda-nvrtc)")
    for file in sorted(FOLDER.glob("*.cu")):
        source, target = source_of(file), file.with_suffix(".ptx")
        digest = hashlib.sha256(source.encode()).hexdigest()
        if check:
            text = target.read_text() if target.exists() else ""
            if digest not in text.partition("\n")[0]:
                sys.exit(f"{target.name} does not belong to {file.name}: run scripts/build_device_code.py")
            if nvrtc is None or head_of(digest, version_of(nvrtc)) != text.partition("\n")[0] + "\n":
                print(f"{target.name}: belongs to its source; not compiled again")
                continue
        assert nvrtc is not None
        whole = head_of(digest, version_of(nvrtc)) + compile_ptx(nvrtc, file.name, source)
        if not whole.isascii():
            sys.exit(f"{target.name} is not ASCII, which drivers refuse")
        check_sound(target.name, whole)
        if not check:
            target.write_text(whole)
        elif whole != target.read_text():
            sys.exit(f"{target.name} is not what {file.name} gives: run scripts/build_device_code.py")
        print(f"{target.name}: {'is what its source gives' if check else 'written'}")


if __name__ == "__main__":
    main()
