#!/usr/bin/env bash
# Records the golden sessions that are of real vLLM runs on the CPU, and vLLM's own log of two of them, anew.
#
#   scripts/record_golden_sessions.sh [VENV [SESSION...]]      # default: .venv, and all
#
# .venv is set up if it is not; another one is taken as it is, with the vLLM and the ProfileMate in it. Snapshots of what is
# made of the sessions change with every recording: write them anew with `INSTA_UPDATE=always cargo test --workspace`, and
# look at the differences before they are committed. Everything runs in one folder with a plain name, since command
# lines and the path of the model are recorded.
set -euo pipefail
# Background jobs get process groups of their own, and react to SIGINT as they would in a terminal.
set -m
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

[[ $# -gt 0 ]] || scripts/setup_venv.sh .venv
venv=$(cd "${1:-.venv}" && pwd)
sessions=("${@:2}")
((${#sessions[@]})) || sessions=(real_decode real_prefill real_preempting real_experts real_vision real_sampling)
repository=$PWD
golden=$repository/crates/session/tests/golden/v1
logs=$repository/crates/import/tests/logs
place=/tmp/profilemate-golden
start_limit_seconds=900
stop_limit_seconds=120

server=
clean_up() {
    [[ -z $server ]] || kill -KILL -- "-$server" 2>/dev/null || true
    rm -rf "$place"
}
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir "$place" 2>/dev/null || fail "$place is there already: another recording runs, or was cut off (then remove it)"
trap clean_up EXIT

# The interpreter and vLLM's command under names that say nothing of this machine.
ln -s "$venv" "$place/venv"
mkdir "$place/bin" "$place/sessions"
cat >"$place/bin/vllm" <<PYTHON
#!$place/venv/bin/python
import os
import sys

from vllm.entrypoints.cli.main import main

if __name__ == "__main__":
    # vLLM's log goes where nothing that ProfileMate says comes into it.
    log = os.open(os.environ["GOLDEN_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.exit(main())
PYTHON
chmod +x "$place/bin/vllm"
cp scripts/golden_load.py "$place/load.py"
"$place/venv/bin/python" scripts/make_models.py "$place" tiny-llama tiny-glm4moe tiny-qwen3vl >/dev/null
mv "$place/tiny-llama" "$place/model"
mv "$place/tiny-qwen3vl" "$place/vision-model"

unset "${!PROFILEMATE_@}" "${!VLLM_@}" PYTHONPATH
export PATH=$place/bin:$place/venv/bin:$PATH
export VLLM_CPU_KVCACHE_SPACE=1 # GiB, of main memory
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
export PROFILEMATE_OUTPUT_DIR=$place/sessions PROFILEMATE_SEGMENT_BYTES=16K
cd "$place"

show_end() {
    printf -- '--- the end of %s:\n' "$1" >&2
    tail -n 30 "$1" >&2
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

# serve NAME LOAD OPTION...: a server, its load, and Ctrl-C.
serve() {
    local name=$1 load=$2 log=$place/$1.log port
    shift 2
    port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    GOLDEN_LOG=$log profilemate run -- vllm serve "$place/model" --load-format dummy --dtype float32 --enforce-eager \
        --host 127.0.0.1 --port "$port" --enable-logging-iteration-details "$@" >"$place/run.log" 2>&1 &
    server=$!
    healthy() { python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$port/health', timeout=5)" 2>/dev/null; }
    wait_until "$start_limit_seconds" healthy || { show_end "$log"; fail "the server did not come up"; }
    python -S load.py "$load" "$port" "$place/model"
    kill -INT "$server"
    gone() { ! kill -0 "$server" 2>/dev/null; }
    wait_until "$stop_limit_seconds" gone || gone || { show_end "$log"; fail "the server did not stop"; }
    wait "$server" || true
    server=
    keep "$name"
    # Without what is said of this machine and of every route.
    mkdir -p "$logs"
    grep -vF -e "$HOME" -e "$venv" -e "$place/venv" -e ' Route: ' -e mq_connect_ip "$log" >"$logs/$name.log"
    only_neutral "$logs/$name.log"
}

# only_neutral FILE...: fails if anything in them tells where they were made.
only_neutral() {
    local word
    for word in "$repository" "$venv" "$HOME"; do
        if grep -lF -- "$word" "$@"; then
            fail "'$word' is in there"
        fi
    done
}

# keep NAME: moves the raw logs of the only session there is to their place in the repository.
keep() {
    local session to=$golden/$1
    session=$(find "$place/sessions" -mindepth 1 -maxdepth 1 -type d -name 'session_*')
    [[ -d $session ]] || fail "not one session in $place/sessions: $session"
    rm -rf "$to"
    mkdir -p "$to/raw"
    cp "$session"/raw/*.head "$session"/raw/*.seg "$to/raw/"
    # Heads have room for text that is not there.
    python - "$to"/raw/*.head <<'PYTHON'
import os, struct, sys
for path in sys.argv[1:]:
    with open(path, "rb") as head:
        head.seek(256)
        (used,) = struct.unpack("<Q", head.read(8))
    os.truncate(path, 12288 + used)
PYTHON
    chmod 0644 "$to"/raw/*
    rm -rf "$session"
    only_neutral "$to"/raw/*
    say "$1: $(du -sb "$to/raw" | cut -f 1) bytes in $(find "$to/raw" -type f | wc -l) files"
}

for session in "${sessions[@]}"; do
    say "recording $session"
    case $session in
    real_decode)
        serve real_decode decode --max-model-len 1024 --max-num-seqs 32 --max-num-batched-tokens 512
        ;;
    real_prefill | real_sampling)
        VLLM_ENABLE_V1_MULTIPROCESSING=0 profilemate run -- python load.py "${session#real_}" "$place/model" \
            >"$place/offline.log" 2>&1 || { show_end "$place/offline.log"; fail "the offline run failed"; }
        keep "$session"
        ;;
    real_experts)
        # Several intervals in a short run; a function is given to vLLM.
        VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_ALLOW_INSECURE_SERIALIZATION=1 \
            PROFILEMATE_MOE_COSELECTION=1 PROFILEMATE_MOE_WEIGHTS=1 PROFILEMATE_MOE_INTERVAL_SECONDS=3 \
            profilemate run -- python load.py experts "$place/tiny-glm4moe" \
            >"$place/experts.log" 2>&1 || { show_end "$place/experts.log"; fail "the offline run failed"; }
        keep real_experts
        ;;
    real_vision)
        VLLM_ENABLE_V1_MULTIPROCESSING=0 profilemate run -- python load.py vision "$place/vision-model" \
            >"$place/vision.log" 2>&1 || { show_end "$place/vision.log"; fail "the offline run failed"; }
        keep real_vision
        ;;
    real_preempting)
        serve real_preempting preempting --max-model-len 512 --max-num-seqs 8 --max-num-batched-tokens 192 \
            --num-gpu-blocks-override 12
        ;;
    *) fail "no session is called '$session'" ;;
    esac
done
