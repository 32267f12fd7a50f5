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
