#!/usr/bin/env bash
# Builds the extension modules and the program in release mode and puts them into python/profilemate, where a source tree
# that is carried to another machine finds them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${CARGO_TARGET_DIR:-target}
cargo build --release -p profilemate-python -p profilemate-notebook -p profilemate-cli
cp "$target/release/lib_native.so" python/profilemate/_native.abi3.so
cp "$target/release/lib_session.so" python/profilemate/_session.abi3.so
cp "$target/release/profilemate" python/profilemate/_bin/profilemate
