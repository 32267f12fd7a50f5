#!/usr/bin/env bash
# Runs what can be run of the recorder and the log's format under tools that see what tests do not: Miri, AddressSanitizer,
# ThreadSanitizer, valgrind. Says what is missing where one is not there. Builds into a folder that it deletes.
#
#   scripts/sanitize.sh [miri] [address] [thread] [valgrind]      (all of them by default)
#
# Ends with 1 if one found something, and with 0 if all that are here are clean.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/lib.sh

TARGET=x86_64-unknown-linux-gnu
# Not among them: what counts memory or instructions, forbids system calls, or starts hundreds of processes.
RECORDER=(bounds:: fork:: golden:: host:: liveness:: truncated::)
CARGO_TARGET_DIR=$(mktemp -d "${TMPDIR:-/tmp}/sanitize.XXXXXX")
export CARGO_TARGET_DIR
trap 'rm -rf "$CARGO_TARGET_DIR"' EXIT
result=0

nightly() { rustc +nightly --version >/dev/null 2>&1; }
component() { rustup component list --toolchain nightly 2>/dev/null | grep -q "^$1.*(installed)"; }
missing() { printf '%-10s MISSING: %s\n' "$1" "$2"; }

# run NAME COMMAND...: one tool, and what came of it.
run() {
    local name=$1
    shift
    say "$name: $*"
    if "$@"; then
        printf '%-10s CLEAN\n' "$name"
    else
        printf '%-10s FAILED\n' "$name"
        result=1
    fi
}

miri() {
    nightly || { missing miri "rustup toolchain install nightly"; return; }
    component miri || { missing miri "rustup component add miri --toolchain nightly"; return; }
    # Miri is a thousand times slower than the processor; tests of properties run with few cases.
    run miri env MIRIFLAGS=-Zmiri-disable-isolation PROPTEST_CASES="${PROPTEST_CASES:-4}" \
        cargo +nightly miri test -p profilemate-format
}

address() {
    nightly || { missing address "rustup toolchain install nightly"; return; }
    run address env RUSTFLAGS=-Zsanitizer=address ASAN_OPTIONS=handle_sigbus=0:detect_leaks=0 \
        cargo +nightly test --target "$TARGET" -p profilemate-record --test recorder -- "${RECORDER[@]}"
}

thread() {
    nightly || { missing thread "rustup toolchain install nightly"; return; }
    component rust-src || { missing thread "rustup component add rust-src --toolchain nightly"; return; }
    # A mapping that is replaced while another thread stores to it counts as written by both; what is stored there is lost
    # either way, so tests of files that are cut short are left out.
    run thread env RUSTFLAGS=-Zsanitizer=thread TSAN_OPTIONS=die_after_fork=0:handle_sigbus=0 \
        cargo +nightly test -Zbuild-std --target "$TARGET" -p profilemate-record --test recorder -- \
        "${RECORDER[@]}" --skip truncated::
    run thread env RUSTFLAGS=-Zsanitizer=thread TSAN_OPTIONS=die_after_fork=0 \
        cargo +nightly test -Zbuild-std --target "$TARGET" -p profilemate-cuda --test timer
}

memcheck() {
    command -v valgrind >/dev/null || { missing valgrind "apt-get install valgrind"; return; }
    local program
    # Valgrind hides the part of the kernel that rustix would read the clock through.
    program=$(RUSTFLAGS=--cfg=rustix_use_libc \
        cargo test -q -p profilemate-record --test recorder --no-run --message-format=json |
        sed -n 's/.*"executable":"\([^"]*recorder[^"]*\)".*/\1/p' | tail -n 1)
    # What valgrind's process inherits to children it does not follow.
    run valgrind valgrind -q --error-exitcode=9 --sigill-diagnostics=no "$program" --test-threads=1 "${RECORDER[@]}"
}

for tool in "${@:-miri address thread valgrind}"; do
    # shellcheck disable=SC2086  # the default is several words
    for each in $tool; do
        case $each in
            miri) miri ;;
            address) address ;;
            thread) thread ;;
            valgrind) memcheck ;;
            *) fail "no such tool: $each" ;;
        esac
    done
done
exit "$result"
