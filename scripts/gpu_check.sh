#!/usr/bin/env bash
# The GPU checks, on a GPU host without network: unpacks vLLM and runs what is named.
#
#   scripts/gpu_check.sh PACK MODELS OUT CHECK...
#
# PACK    folder with vllm.tar.xz.part* and SHA256SUMS (a vLLM packed for this host)
# MODELS  folder with model folders without weights: llama-8b, qwen3-30b-a3b-8l
# OUT     folder for results (JSON lines) and logs
# CHECK   truth-v2 truth-v2-piecewise truth-v2-eager truth-v1 truth-v1-eager cost-64 cost-256 cost-64-lightweight two-gpus
#
# The host has Python with the torch that this vLLM was built for. Our extension module and program must have been built
# and put into python/profilemate (scripts/stage_native.sh).
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
llama=$models/llama-8b moe=$models/qwen3-30b-a3b-8l
results=$out/results.jsonl

check() {
    local name=$1
    shift
    echo "== $name ($(date +%T))"
    if timeout "${CHECK_SECONDS:-280}" "$@" >"$out/$name.log" 2>&1; then
        grep '^RESULT' "$out/$name.log" | cut -c1-3000
    else
        echo "FAILED with $?"
        tail -n 25 "$out/$name.log"
    fi
}

for name in "$@"; do
    case $name in
    truth-v2) check "$name" python3 benches/gpu/truth.py "$llama" --label "$name" --json "$results" ;;
    truth-v2-piecewise)
        check "$name" python3 benches/gpu/truth.py "$llama" --label "$name" --tokens 128 --prompt 300 --json "$results"
        ;;
    truth-v2-eager) check "$name" python3 benches/gpu/truth.py "$llama" --label "$name" --eager --rounds 2 --json "$results" ;;
    truth-v1) check "$name" python3 benches/gpu/truth.py "$moe" --label "$name" --v1 --tokens 4096 --prompt 2000 --json "$results" ;;
    truth-v1-eager) check "$name" python3 benches/gpu/truth.py "$moe" --label "$name" --v1 --eager --rounds 2 --json "$results" ;;
    cost-64) check "$name" python3 benches/gpu/cost.py "$llama" --label "$name" --batch 64 --pairs 28 --profiler-pairs 2 --json "$results" ;;
    cost-256) check "$name" python3 benches/gpu/cost.py "$llama" --label "$name" --batch 256 --output-length 128 --pairs 12 --json "$results" ;;
    cost-64-lightweight)
        PROFILEMATE_TIMING=lightweight check "$name" \
            python3 benches/gpu/cost.py "$llama" --label "$name" --batch 64 --pairs 28 --json "$results"
        ;;
    two-gpus) check "$name" python3 benches/gpu/two_gpus.py "$llama" --json "$results" ;;
    *) echo "no such check: $name" >&2 && exit 2 ;;
    esac
done
