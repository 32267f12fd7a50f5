#!/usr/bin/env bash
# Fuzzes every parser, one after the other: `scripts/fuzz.sh [TARGET...]`.
#
# Needs cargo-fuzz (`cargo install cargo-fuzz`), a nightly toolchain and a C++ compiler. Of the environment: RUNS, executions
# of each target (10000000); SECONDS_EACH, which ends a target earlier (0 = never); COMPARES=1, with which libFuzzer is told what
# values are compared with, which finds its way into new code sooner and is five to ten times as slow; FUZZ_FOLDER, where it builds
# and works (a new folder, removed afterwards). It ends with a table of what ran. What was found is in fuzz/artifacts; what is
# worth keeping goes to fuzz/corpus, which `cargo test -p profilemate-fuzz` runs from then on.
#
# Without a sanitizer: what is fuzzed is safe Rust, in which overflows and debug assertions are checked.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../fuzz"

runs=${RUNS:-10000000}
seconds=${SECONDS_EACH:-0}
if [[ -z ${FUZZ_FOLDER:-} ]]; then
    FUZZ_FOLDER=$(mktemp -d)
    trap 'rm -rf "$FUZZ_FOLDER"' EXIT
fi
targets=("$@")
if [[ $# == 0 ]]; then
    mapfile -t targets < <(cargo +nightly fuzz list)
fi
flags=(--sanitizer none)
[[ ${COMPARES:-0} == 1 ]] || flags+=(--no-trace-compares)
CARGO_TARGET_DIR=$FUZZ_FOLDER/target nice cargo +nightly fuzz build "${flags[@]}"
programs=$FUZZ_FOLDER/target/$(rustc -vV | sed -n 's/^host: //p')/release

declare -A longest=([record]=64 [condition]=256 [command_line]=256 [settings]=512 [vllm_log_line]=1024 [segment]=1024
    [head]=2048 [vllm_log]=4096)
failed=0
table=$FUZZ_FOLDER/table.md
echo '| target | executions | seconds | per second | inputs kept | edges | peak memory, MB | found |' >"$table"
echo '| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |' >>"$table"
for target in "${targets[@]}"; do
    found=$FUZZ_FOLDER/corpus/$target
    log=$FUZZ_FOLDER/$target.log
    mkdir -p "$found" "artifacts/$target"
    began=$SECONDS
    verdict=nothing
    if ! nice "$programs/$target" "$found" "corpus/$target" -runs="$runs" -max_total_time="$seconds" \
        -max_len="${longest[$target]:-8192}" -timeout=20 -rss_limit_mb=2048 -artifact_prefix="artifacts/$target/" \
        -print_final_stats=1 >"$log" 2>&1; then
        verdict='see artifacts'
        failed=1
    fi
    statistic() { sed -n "s/^stat::$1: *//p" "$log"; }
    took=$((SECONDS - began))
    # Few and small inputs that together reach everything, however often.
    mkdir -p "$FUZZ_FOLDER/kept/$target"
    nice "$programs/$target" -set_cover_merge=1 -use_counters=0 "$FUZZ_FOLDER/kept/$target" "corpus/$target" "$found" \
        >"$log.merge" 2>&1
    rm -rf "corpus/$target"
    cp -r "$FUZZ_FOLDER/kept/$target" "corpus/$target"
    edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -1)
    executions=$(statistic number_of_executed_units)
    echo "| $target | ${executions:-?} | $took | $((${executions:-0} / (took > 0 ? took : 1))) |" \
        "$(find "corpus/$target" -type f | wc -l) | ${edges:-?} | $(statistic peak_rss_mb) | $verdict |" >>"$table"
    tail -1 "$table" >&2
done
cat "$table"
exit "$failed"
