#!/usr/bin/env bash
# Fetches the library that draws the report's charts into the repository, as it is published, and checks that it is that.
# For another version, change the two lines below and run it again: scripts/vendor_uplot.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VERSION=1.6.32
# `npm view uplot@VERSION dist.integrity`
INTEGRITY=sha512-KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==

target=crates/output/src/html/vendor/uplot
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
(cd "$work" && npm pack --silent "uplot@$VERSION" >/dev/null)
found="sha512-$(openssl dgst -sha512 -binary "$work/uplot-$VERSION.tgz" | base64 -w0)"
if [ "$found" != "$INTEGRITY" ]; then
    echo "uplot $VERSION is not what it was: expected $INTEGRITY, got $found" >&2
    exit 1
fi
tar -xzf "$work/uplot-$VERSION.tgz" -C "$work"
mkdir -p "$target"
cp "$work/package/LICENSE" "$work/package/dist/uPlot.iife.min.js" "$work/package/dist/uPlot.min.css" "$target/"
chmod 644 "$target"/*
printf 'uPlot %s, from npm (https://github.com/leeoniya/uPlot), unchanged; fetched by scripts/vendor_uplot.sh\n%s\n' \
    "$VERSION" "$INTEGRITY" >"$target/VERSION"
(cd "$target" && sha256sum LICENSE uPlot.iife.min.js uPlot.min.css >SHA256SUMS)
