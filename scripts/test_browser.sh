#!/usr/bin/env bash
# Opens the pages of sessions in Chromium and checks what must hold of them (tests/browser/check.mjs), and their timelines in
# the Perfetto UI (tests/browser/timeline.mjs), which is among the test tools of the virtual environment.
#
#   scripts/test_browser.sh [VENV]        # default: .venv
#
# What is missing is installed: Chromium and Node.js by apt-get where that is allowed, the JavaScript packages into
# tests/browser/node_modules.
# CHROMIUM=PROGRAM names another browser; PICTURES=FOLDER keeps the pictures; PROFILEMATE_NO_BROWSER=1 leaves it all out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh
venv=${1:-.venv}

if [ "${PROFILEMATE_NO_BROWSER:-0}" = 1 ]; then
    say "PROFILEMATE_NO_BROWSER=1: pages are not opened in a browser"
    exit 0
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
log="$work/log"

browser() {
    local name
    for name in "${CHROMIUM:-chromium}" chromium-browser google-chrome; do
        command -v "$name" && return
    done
    return 1
}
missing=()
browser >/dev/null || missing+=(chromium)
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)
if [ "${#missing[@]}" -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "pages are checked in a browser, and ${missing[*]} cannot be found: install it, name a browser with CHROMIUM=PROGRAM," \
            "or set PROFILEMATE_NO_BROWSER=1 to go without this check"
    fi
    say "installing ${missing[*]}"
    logged "$log" apt-get update
    logged "$log" apt-get install -y --no-install-recommends "${missing[@]}"
fi
chromium="$(browser)" || fail "there is no Chromium after installing it: name one with CHROMIUM=PROGRAM"

lock=tests/browser/package-lock.json
installed=tests/browser/node_modules/.package-lock.json
if [ ! -e "$installed" ] || [ "$lock" -nt "$installed" ]; then
    say "installing the JavaScript packages of the check"
    logged "$log" npm --prefix tests/browser ci --no-audit --no-fund
    touch "$installed"
fi

say "making pages and timelines"
logged "$log" cargo run --locked -p profilemate-output --example report_pages -- "$work/pages"
pictures="${PICTURES:-$work/pictures}"
mkdir -p "$pictures"
say "opening them in $("$chromium" --version 2>/dev/null)"
node tests/browser/check.mjs "$chromium" "$pictures" "$work"/pages/*.html
ui="$(PYTHONPATH=tests "$venv/bin/python" -c 'from support.trace_processor import perfetto_ui; print(perfetto_ui())')"
say "opening timelines in the Perfetto UI"
node tests/browser/timeline.mjs "$chromium" "$ui" "$pictures" "$work"/pages/*.pftrace
