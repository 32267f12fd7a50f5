#!/usr/bin/env bash
# Runs the Rust tests: with cargo-nextest where it is installed (which leaves out the examples in the documentation,
# so cargo runs those), else with cargo alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace --locked
    cargo test --workspace --locked --doc
else
    cargo test --workspace --locked
fi
