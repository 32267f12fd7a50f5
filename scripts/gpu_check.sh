#!/usr/bin/env bash
# The GPU checks, on a GPU host without network: unpacks vLLM and runs what is named.
#
#   scripts/gpu_check.sh PACK MODELS OUT CHECK...
#
# PACK    folder with vllm.tar.xz.part* and SHA256SUMS (a vLLM packed for this host)
# MODELS  folder with model folders without weights: llama-8b, qwen3-30b-a3b-8l; those of scripts/make_gpu_models.py are made in it
# OUT     folder for results (JSON lines) and logs
# CHECK   truth-v2 truth-v2-piecewise truth-v2-eager truth-v1 truth-v1-eager cost-64 cost-256 cost-64-lightweight two-gpus
#         moe-exact moe-deepseek moe-cost moe-cost-48
#         sampling sampling-v1 memory
#         device-code layers-llama layers-llama-v1 layers-moe layers-cost (stamps inside of forward passes)
#         session (records one, with its raw logs, into OUT)
#         encoder-whisper encoder-qwen3vl encoder-qwen3vl-v2 encoder-qwen3vl-graphs (make their models themselves)
#
# The host has Python with the torch that this vLLM was built for. Our extension module and program must have been built
# and put into python/profilemate (scripts/stage_native.sh).
#
# From the environment: CHECK_SECONDS, after which a check is ended without a result (280); PAIRS of runs in a cost check
# (28 at batch 64, 12 at 256), METRICS_PAIRS and PROFILER_PAIRS, the same with vLLM's own metrics (0) and with torch.profiler
# (2 at batch 64); LAST_BEGIN, seconds after which a check begins no further pair or round (60 before CHECK_SECONDS).
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
export VLLM_CACHE_ROOT=/tmp/profilemate-vllm-cache TRITON_CACHE_DIR=/tmp/profilemate-triton-cache
export VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_USE_FLASHINFER_SAMPLER=0
export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 VLLM_LOGGING_LEVEL=WARNING
seconds=${CHECK_SECONDS:-280}
until=(--seconds "${LAST_BEGIN:-$((seconds - 60))}")
beside=(--vllm-metrics-pairs "${METRICS_PAIRS:-0}")
{
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader || true
    nvidia-smi | grep -o 'CUDA Version: [0-9.]*' || true
    lscpu | grep -E '^(Model name|CPU\(s\)|Thread|Hypervisor|L[0-9])' || true
    free -g | sed -n 2p
    uname -r
    python3 -c 'import sys, torch, triton; print("python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__)'
    sha256sum python/profilemate/_native.abi3.so python/profilemate/_bin/profilemate
} >"$out/machine.txt" 2>&1
llama=$models/llama-8b moe=$models/qwen3-30b-a3b-8l
results=$out/results.jsonl
python3 scripts/make_gpu_models.py "$models" >/dev/null

check() {
    local name=$1
    shift
    echo "== $name ($(date +%T))"
    if timeout "$seconds" "$@" >"$out/$name.log" 2>&1; then
        grep '^RESULT' "$out/$name.log" | cut -c1-3000
    else
        echo "FAILED with $?"
        tail -n 25 "$out/$name.log"
    fi
}

# made NAME: the folder of a model of scripts/make_models.py.
made() {
    local folder=/tmp/profilemate-models
    mkdir -p "$folder"
    [[ -d $folder/$1 ]] || python3 scripts/make_models.py "$folder" "$1" >&2
    echo "$folder/$1"
}

for name in "$@"; do
    truth=(python3 benches/gpu/truth.py --label "$name" --json "$results" "${until[@]}")
    encoder=(python3 benches/gpu/encoder.py --label "$name" --json "$results" "${until[@]}")
    cost=(python3 benches/gpu/cost.py "$llama" --label "$name" --json "$results" "${until[@]}")
    experts=(python3 benches/gpu/moe.py)
    of_experts=(--label "$name" --json "$results" --seconds "${LAST_BEGIN:-$((seconds - 60))}")
    layers=(python3 benches/gpu/layers.py --label "$name" --json "$results")
    case $name in
    truth-v2) check "$name" "${truth[@]}" "$llama" --rounds 5 ;;
    truth-v2-piecewise) check "$name" "${truth[@]}" "$llama" --tokens 128 --prompt 300 ;;
    truth-v2-eager) check "$name" "${truth[@]}" "$llama" --eager --rounds 2 ;;
    truth-v1) check "$name" "${truth[@]}" "$moe" --v1 --tokens 4096 --prompt 2000 --rounds 8 ;;
    truth-v1-eager) check "$name" "${truth[@]}" "$moe" --v1 --eager --rounds 2 ;;
    cost-64)
        check "$name" "${cost[@]}" --batch 64 --pairs "${PAIRS:-28}" "${beside[@]}" --profiler-pairs "${PROFILER_PAIRS:-2}"
        ;;
    cost-256)
        check "$name" "${cost[@]}" --batch 256 --output-length 128 --pairs "${PAIRS:-12}" "${beside[@]}" \
            --profiler-pairs "${PROFILER_PAIRS:-0}"
        ;;
    cost-64-lightweight) PROFILEMATE_TIMING=lightweight check "$name" "${cost[@]}" --batch 64 --pairs "${PAIRS:-28}" ;;
    moe-exact) check "$name" "${experts[@]}" exact "$moe" "${of_experts[@]}" ;;
    moe-deepseek) check "$name" "${experts[@]}" exact "$models/glm4-moe-8l" "${of_experts[@]}" ;;
    moe-cost) check "$name" "${experts[@]}" cost "$moe" "${of_experts[@]}" --pairs "${PAIRS:-28}" ;;
    moe-cost-48)
        check "$name" "${experts[@]}" cost "$models/qwen3-30b-a3b-48l" "${of_experts[@]}" --pairs "${PAIRS:-12}" \
            --gpu-memory 0.92 --output-length 128
        ;;
    device-code) check "$name" python3 benches/gpu/device_code.py --session "$out/device-code/session_20260101_000000_000000" --json "$results" ;;
    layers-llama) check "$name" "${layers[@]}" truth "$llama" ;;
    layers-llama-v1) check "$name" "${layers[@]}" truth "$llama" --v1 ;;
    layers-moe) check "$name" "${layers[@]}" truth "$moe" --v1 ;;
    layers-cost) check "$name" "${layers[@]}" cost "$llama" --rounds "${PAIRS:-16}" "${until[@]}" ;;
    two-gpus) check "$name" python3 benches/gpu/two_gpus.py "$llama" --json "$results" ;;
    encoder-whisper) check "$name" "${encoder[@]}" "$(made whisper-medium)" whisper ;;
    encoder-qwen3vl) check "$name" "${encoder[@]}" "$(made qwen3vl-4b)" qwen3vl ;;
    encoder-qwen3vl-v2) check "$name" "${encoder[@]}" "$(made qwen3vl-4b)" qwen3vl --v2 ;;
    encoder-qwen3vl-graphs) check "$name" "${encoder[@]}" "$(made qwen3vl-4b)" qwen3vl --encoder-graphs ;;
    sampling) check "$name" python3 benches/gpu/sampling.py "$llama" --label "$name" --json "$results" "${until[@]}" ;;
    sampling-v1)
        check "$name" python3 benches/gpu/sampling.py "$llama" --v1 --label "$name" --json "$results" "${until[@]}"
        ;;
    memory) check "$name" python3 benches/gpu/memory.py "$llama" --label "$name" --json "$results" ;;
    session) check "$name" python3 benches/gpu/record_session.py "$llama" "$out" ;;
    *) echo "no such check: $name" >&2 && exit 2 ;;
    esac
done
