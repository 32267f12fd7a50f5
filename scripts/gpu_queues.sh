#!/usr/bin/env bash
# Several queues of GPU checks at once, one per GPU, that all end in time.
#
#   scripts/gpu_queues.sh PACK MODELS OUT [CHECK...] -- CHECK... -- CHECK...
#
# The checks in front of the first -- have all GPUs, one after the other (those of two GPUs belong there). Then each list
# behind a -- is a queue on a GPU of its own, with its share of the processors and caches and ports of its own. Names of
# checks, and what the environment may say besides: scripts/gpu_check.sh.
#
# OUT gets results.jsonl, with the results of all, and results.tar.gz, with logs too. A `session` that was recorded is in
# sessions.tar.gz.
#
# From the environment: LIMIT, seconds after which everything is over and packed (570).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
pack=${1:?PACK} models=${2:?MODELS} out=${3:?OUT}
shift 3
# Packing takes seconds.
export END_AT=$(($(date +%s) + ${LIMIT:-570} - 10)) RESULT_CHARACTERS=${RESULT_CHARACTERS:-700}
work=$(mktemp -d /tmp/profilemate-queues.XXXXXX)
mkdir -p "$out"

first=()
while (($#)) && [[ $1 != -- ]]; do
    first+=("$1")
    shift
done
queues=()
while (($#)); do
    shift
    queue=
    while (($#)) && [[ $1 != -- ]]; do
        queue+="$1 "
        shift
    done
    queues+=("$queue")
done

# shellcheck disable=SC2329  # called by the trap
pack_results() {
    local sessions
    find "$work" -name results.jsonl -exec cat {} + >"$out/results.jsonl" 2>/dev/null || true
    tar -C "$work" --exclude='session_*' -czf "$out/results.tar.gz" . || true
    mapfile -t sessions < <(cd "$work" && find . -mindepth 2 -maxdepth 2 -name 'session_*')
    if ((${#sessions[@]})); then
        tar -C "$work" -czf "$out/sessions.tar.gz" "${sessions[@]}" || true
    fi
}
trap pack_results EXIT

# Unpacks and makes models, for all.
scripts/gpu_check.sh "$pack" "$models" "$work/all" "${first[@]}" 2>&1

# The processors, those of a NUMA node and of a core beside each other.
mapfile -t processors < <(lscpu -p=CPU,CORE,NODE | grep -v '^#' | sort -t, -k3,3n -k2,2n -k1,1n | cut -d, -f1)
share=$((${#queues[@]} > 0 ? ${#processors[@]} / ${#queues[@]} : 0))
running=()
for gpu in "${!queues[@]}"; do
    mine=$(IFS=, && echo "${processors[*]:gpu * share:share}")
    read -ra checks <<<"${queues[$gpu]}"
    (
        export CUDA_VISIBLE_DEVICES=$gpu QUEUE=gpu$gpu VLLM_PORT=$((21000 + 2000 * gpu)) MASTER_PORT=$((22000 + 2000 * gpu))
        taskset -c "$mine" scripts/gpu_check.sh "$pack" "$models" "$work/gpu$gpu" "${checks[@]}" 2>&1 | sed -u "s/^/gpu$gpu: /"
    ) &
    running+=($!)
done
code=0
for process in "${running[@]}"; do
    wait "$process" || code=$?
done
exit "$code"
