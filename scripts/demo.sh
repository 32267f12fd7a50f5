#!/usr/bin/env bash
# Profiles a real vLLM server, from nothing: sets up a virtual environment with vLLM for the CPU, makes a tiny model,
# serves it under `profilemate run`, sends it load with vLLM's own benchmark client, stops it, and shows the tables.
#
#   scripts/demo.sh [VENV]        # default: .venv; everything else goes to .demo/
set -euo pipefail
# Background jobs get process groups of their own, and react to SIGINT as they would in a terminal.
set -m
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

venv=${1:-.venv}
demo=$PWD/.demo
model=$demo/models/tiny-llama
server_log=$demo/server.log
client_log=$demo/client.log
setup_log=$demo/setup.log
prompts=64
start_limit_seconds=600
stop_limit_seconds=120

export VLLM_CPU_KVCACHE_SPACE=1 # GiB, of main memory
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
export PROFILEMATE_OUTPUT_DIR=$demo/sessions

server=
stop_server() {
    [[ -n $server ]] || return 0
    kill -KILL -- "-$server" 2>/dev/null || true
    server=
}
trap stop_server EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

give_up() {
    printf 'failed: %s\n--- the end of %s:\n' "$1" "$2" >&2
    tail -n 30 "$2" >&2
    exit 1
}

# wait_until SECONDS COMMAND...: polls COMMAND until it succeeds; fails at the limit, or once the server is gone.
wait_until() {
    local limit=$1 start=$SECONDS
    shift
    until "$@"; do
        ((SECONDS - start < limit)) || return 1
        kill -0 "$server" 2>/dev/null || return 1
        sleep 0.5
    done
}

mkdir -p "$demo"
rm -rf "$demo/sessions"
: >"$server_log"
: >"$client_log"
: >"$setup_log"

scripts/setup_venv.sh "$venv"
bin=$(cd "$venv/bin" && pwd)
export PATH=$bin:$PATH
if [[ ! -d $model ]]; then
    say "making a tiny Llama with random weights"
    logged "$setup_log" "$bin/python" scripts/make_models.py "$demo/models" tiny-llama
fi

port=$("$bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
serve=(vllm serve "$model" --load-format dummy --enforce-eager --host 127.0.0.1 --port "$port"
    --max-model-len 1024 --max-num-seqs 32 --max-num-batched-tokens 512)
say "starting the server (one to three minutes on a small CPU):"
printf '    profilemate run -- vllm serve %s …\n' "${model#"$PWD/"}"
# vLLM's own log goes to a file, so that the terminal shows what ProfileMate says.
# shellcheck disable=SC2016  # for the inner shell
profilemate run -- bash -c 'log=$1; shift; exec "$@" >"$log" 2>&1' server "$server_log" "${serve[@]}" &
server=$!
healthy() { "$bin/python" -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$port/health', timeout=5)" 2>/dev/null; }
wait_until "$start_limit_seconds" healthy || give_up "the server did not come up" "$server_log"

say "sending it $prompts prompts with vllm bench serve"
PROFILEMATE_ENABLE=0 vllm bench serve --backend vllm --host 127.0.0.1 --port "$port" --model "$model" \
    --dataset-name random --random-input-len 200 --random-output-len 100 --num-prompts "$prompts" \
    --request-rate inf --ignore-eos >"$client_log" 2>&1 || give_up "the benchmark client failed" "$client_log"
sed -n '/Serving Benchmark Result/,/Total token throughput/p' "$client_log"

say "stopping the server with SIGINT, as Ctrl-C would"
kill -INT "$server"
gone() { ! kill -0 "$server" 2>/dev/null; }
wait_until "$stop_limit_seconds" gone || gone || give_up "the server did not stop" "$server_log"
code=0
wait "$server" || code=$?
server=
say "the server ended with exit code $code"

session=$(find "$PROFILEMATE_OUTPUT_DIR" -mindepth 1 -maxdepth 1 -type d -name 'session_*' | sort | tail -n 1)
[[ -n $session ]] || give_up "no session folder was made" "$server_log"
say "the first lines of each table in ${session#"$PWD/"}:"
for table in "$session"/*.csv; do
    printf '\n%s (%s rows)\n' "$(basename "$table")" "$(($(wc -l <"$table") - 1))"
    head -n 4 "$table" | cut -c "1-${COLUMNS:-160}"
done
printf '\n'
say "all of it: ${session#"$PWD/"}"
ls "$session"
