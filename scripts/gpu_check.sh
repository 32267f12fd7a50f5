#!/usr/bin/env bash
# The GPU checks, on a GPU host without network: unpacks vLLM and runs what is named, one check after the other.
#
#   scripts/gpu_check.sh PACK MODELS OUT CHECK...
#
# PACK    folder with vllm.tar.xz.part* and SHA256SUMS (a vLLM packed for this host)
# MODELS  folder with model folders without weights: llama-8b, qwen3-30b-a3b-8l; those of scripts/make_gpu_models.py are made in it
# OUT     folder for results (JSON lines) and logs
# CHECK   see the list below, with how many seconds each may take. None: only unpacks vLLM and makes models.
#
# The host has Python with the torch that this vLLM was built for. Our extension module and program must have been built
# and put into python/profilemate (scripts/stage_native.sh). Several queues at once, one per GPU: scripts/gpu_queues.sh.
#
# From the environment: CHECK_SECONDS, after which any check is ended, instead of its own; END_AT, seconds since the epoch by
# which everything is over: a check gets what is left, and none begins with less than 75 s. A check is told to end 25 s
# before it is killed, and says then what it has measured. LAST_BEGIN, seconds after which it begins nothing more by itself
# (50 before its end). PAIRS of runs in a cost check (28 at batch 64, 12 at 256), METRICS_PAIRS and PROFILER_PAIRS, the same
# with vLLM's own metrics (0) and with torch.profiler (2 at batch 64); CYCLES of blocks (60 to 120).
# RESULT_CHARACTERS of a line of results are printed (3000). QUEUE: a name for caches of its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
pack=${1:?PACK} models=${2:?MODELS} out=${3:?OUT}
shift 3
mkdir -p "$out"
site=/tmp/profilemate-vsite
if [[ ! -e $site/.complete ]]; then
    mkdir -p "$site"
    (cd "$pack" && sha256sum --quiet -c SHA256SUMS)
    cat "$pack"/vllm.tar.xz.part* | tar -C "$site" -xJf -
    python3 -m compileall -q -j 0 "$site" >/dev/null 2>&1 || true
    touch "$site/.complete"
fi
export PYTHONPATH=$site/vsite${PYTHONPATH:+:$PYTHONPATH}
caches=/tmp/profilemate-caches${QUEUE:+-$QUEUE}
export VLLM_CACHE_ROOT=$caches/vllm TRITON_CACHE_DIR=$caches/triton TORCHINDUCTOR_CACHE_DIR=$caches/inductor
export VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_USE_FLASHINFER_SAMPLER=0
export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 VLLM_LOGGING_LEVEL=WARNING
{
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader || true
    nvidia-smi | grep -o 'CUDA Version: [0-9.]*' || true
    echo "CUDA_VISIBLE_DEVICES ${CUDA_VISIBLE_DEVICES-all}"
    lscpu | grep -E '^(Model name|CPU\(s\)|Thread|Hypervisor|L[0-9]|NUMA)' || true
    taskset -cp $$ || true
    free -g | sed -n 2p
    uname -r
    python3 -c 'import sys, torch, triton; print("python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__)'
    sha256sum python/profilemate/_native.abi3.so python/profilemate/_bin/profilemate
} >"$out/machine.txt" 2>&1 || true
llama=$models/llama-8b moe=$models/qwen3-30b-a3b-8l
results=$out/results.jsonl
(
    flock 9
    python3 scripts/make_gpu_models.py "$models" >/dev/null
) 9>/tmp/profilemate-models.lock

# made NAME: the folder of a model of scripts/make_models.py.
made() {
    local folder=/tmp/profilemate-models
    mkdir -p "$folder"
    (
        flock 9
        [[ -d $folder/$1 ]] || python3 scripts/make_models.py "$folder" "$1" >&2
    ) 9>/tmp/profilemate-models.lock
    echo "$folder/$1"
}

# Check → seconds that it may take, its start (60 to 105 s) included.
declare -A seconds_of=(
    [truth-v2]=200 [truth-v2-piecewise]=170 [truth-v2-eager]=170 [truth-v1]=200 [truth-v1-eager]=170
    [server-cost-64]=280 [server-cost-256]=280
    [cost-64]=240 [cost-256]=240 [cost-64-lightweight]=200 [cost-64-blocks]=180 [cost-256-blocks]=220
    [moe-exact]=180 [moe-deepseek]=190 [moe-cost]=210 [moe-cost-48]=280
    [layers-llama]=160 [layers-llama-v1]=160 [layers-moe]=190 [layers-cost]=200 [device-code]=60
    [two-gpus]=200 [data-parallel]=220 [expert-parallel]=220
    [encoder-whisper]=180 [encoder-qwen3vl]=200 [encoder-qwen3vl-v1]=200 [encoder-qwen3vl-graphs]=200
    [sampling]=190 [sampling-v1]=190 [memory]=120 [session]=160
)

# use NAME SECONDS: `command` is that of a check.
use() {
    local name=$1 until=(--seconds "${LAST_BEGIN:-$(($2 - 50))}") put=(--label "$1" --json "$results")
    local gpu=benches/gpu
    case $name in
    truth-v2) command=("$gpu/truth.py" "$llama" --rounds 5 "${until[@]}") ;;
    truth-v2-piecewise) command=("$gpu/truth.py" "$llama" --tokens 128 --prompt 300 "${until[@]}") ;;
    truth-v2-eager) command=("$gpu/truth.py" "$llama" --eager --rounds 2 "${until[@]}") ;;
    truth-v1) command=("$gpu/truth.py" "$moe" --v1 --tokens 4096 --prompt 2000 --rounds 8 "${until[@]}") ;;
    truth-v1-eager) command=("$gpu/truth.py" "$moe" --v1 --eager --rounds 2 "${until[@]}") ;;
    server-cost-64) command=("$gpu/server_cost.py" "$llama" --batch 64 --pairs "${PAIRS:-30}" "${until[@]}") ;;
    server-cost-256) command=("$gpu/server_cost.py" "$llama" --batch 256 --pairs "${PAIRS:-30}" "${until[@]}") ;;
    cost-64)
        command=("$gpu/cost.py" "$llama" --batch 64 --pairs "${PAIRS:-28}" --vllm-metrics-pairs "${METRICS_PAIRS:-0}"
            --profiler-pairs "${PROFILER_PAIRS:-2}" "${until[@]}")
        ;;
    cost-256)
        command=("$gpu/cost.py" "$llama" --batch 256 --output-length 128 --pairs "${PAIRS:-12}"
            --vllm-metrics-pairs "${METRICS_PAIRS:-0}" --profiler-pairs "${PROFILER_PAIRS:-0}" "${until[@]}")
        ;;
    # Steps of a running batch with our hooks and without, in turn: of decodes alone, and much less noisy.
    cost-64-blocks) command=("$gpu/cost.py" "$llama" --batch 64 --cycles "${CYCLES:-120}" "${until[@]}") ;;
    cost-256-blocks) command=("$gpu/cost.py" "$llama" --batch 256 --cycles "${CYCLES:-40}" "${until[@]}") ;;
    cost-64-lightweight)
        command=("$gpu/cost.py" "$llama" --batch 64 --pairs "${PAIRS:-28}" --timing lightweight "${until[@]}")
        ;;
    moe-exact) command=("$gpu/moe.py" exact "$moe" "${until[@]}") ;;
    # Its experts are those of DeepSeek-V3: sigmoids, groups, a correction bias, a shared expert.
    moe-deepseek) command=("$gpu/moe.py" exact "$models/glm4-moe-8l" "${until[@]}") ;;
    moe-cost) command=("$gpu/moe.py" cost "$moe" --cycles "${CYCLES:-100}" "${until[@]}") ;;
    moe-cost-48)
        command=("$gpu/moe.py" cost "$models/qwen3-30b-a3b-48l" --cycles "${CYCLES:-60}" --gpu-memory 0.92
            --output-length 512 --counters-only "${until[@]}")
        ;;
    layers-llama) command=("$gpu/layers.py" truth "$llama") ;;
    layers-llama-v1) command=("$gpu/layers.py" truth "$llama" --v1) ;;
    layers-moe) command=("$gpu/layers.py" truth "$moe" --v1) ;;
    layers-cost) command=("$gpu/layers.py" cost "$llama" --cycles "${CYCLES:-100}" "${until[@]}") ;;
    device-code) command=("$gpu/device_code.py" --session "$out/device-code/session_20260101_000000_000000") ;;
    two-gpus) command=("$gpu/two_gpus.py" "$llama") ;;
    data-parallel) command=("$gpu/several_ranks.py" "$moe" --data-parallel 2) ;;
    expert-parallel) command=("$gpu/several_ranks.py" "$moe" --tensor-parallel 2 --expert-parallel) ;;
    encoder-whisper) command=("$gpu/encoder.py" "$(made whisper-medium)" whisper --rounds 2 "${until[@]}") ;;
    encoder-qwen3vl) command=("$gpu/encoder.py" "$(made qwen3vl-4b)" qwen3vl --rounds 2 "${until[@]}") ;;
    encoder-qwen3vl-v1) command=("$gpu/encoder.py" "$(made qwen3vl-4b)" qwen3vl --v1 --rounds 2 "${until[@]}") ;;
    encoder-qwen3vl-graphs)
        command=("$gpu/encoder.py" "$(made qwen3vl-4b)" qwen3vl --encoder-graphs --rounds 2 "${until[@]}")
        ;;
    sampling) command=("$gpu/sampling.py" "$llama" "${until[@]}") ;;
    sampling-v1) command=("$gpu/sampling.py" "$llama" --v1 "${until[@]}") ;;
    memory) command=("$gpu/memory.py" "$llama") ;;
    # Its session, with raw logs, goes into OUT.
    session) command=("$gpu/record_session.py" "$llama" "$out") && return ;;
    esac
    command+=("${put[@]}")
}

for name in "$@"; do
    if [[ -z ${seconds_of[$name]-} ]]; then
        echo "no such check: $name; there are ${!seconds_of[*]}" >&2
        exit 2
    fi
done
for name in "$@"; do
    seconds=${CHECK_SECONDS:-${seconds_of[$name]}}
    if [[ -n ${END_AT-} ]]; then
        left=$((END_AT - $(date +%s)))
        if ((left < 75)); then
            echo "== $name is left out: $left s are left"
            continue
        fi
        seconds=$((seconds < left ? seconds : left))
    fi
    use "$name" "$seconds"
    echo "== $name ($(date +%T), $seconds s)"
    begin=$SECONDS code=0
    # Its processes are a group of their own, and all of them are told to end.
    timeout -k 25 "$((seconds - 25))" python3 "${command[@]}" >"$out/$name.log" 2>&1 || code=$?
    grep '^RESULT' "$out/$name.log" | cut -c1-"${RESULT_CHARACTERS:-3000}" || true
    echo "== $name: $((SECONDS - begin)) s, exit code $code"
    if ((code != 0)); then
        tail -n 25 "$out/$name.log" | cut -c1-300
    fi
done
