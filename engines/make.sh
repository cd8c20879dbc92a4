#!/bin/sh
# Makes every engine's ONNX graphs from the base weights and checks their sha256 against the manifests.
# Usage: engines/make.sh [--out DIR] [--record]
#   --out DIR   keep the files, in DIR/ENGINE/PRECISION/; without it they are only hashed
#   --record    write the hashes into the manifests instead of checking them, after the network or a recipe was changed on purpose
# SCANSIDE names the program; without it, it is built.
set -eu
cd "$(dirname "$0")/.."
out= record=
while [ $# -gt 0 ]; do
    case $1 in
    --out) out=${2:?--out needs a folder} && shift 2 ;;
    --record) record=1 && shift ;;
    *) echo "usage: engines/make.sh [--out DIR] [--record]" >&2 && exit 2 ;;
    esac
done
if [ -z "${SCANSIDE:-}" ]; then
    cargo build --release --quiet
    SCANSIDE=target/release/scanside
fi
for manifest in engines/*/manifest.toml; do
    engine=$(dirname "$manifest")
    name=$(basename "$engine")
    set -- export --engine "$engine"
    [ -z "$out" ] || set -- "$@" --out "$out/$name"
    if [ -n "$record" ]; then
        hashes=$("$SCANSIDE" "$@")
        kept=$(sed '/^\[sha256\]$/q' "$manifest")
        printf '%s\n%s\n' "$kept" "$hashes" > "$manifest"
        echo "$name: recorded"
    else
        "$SCANSIDE" "$@" --check > /dev/null
        echo "$name: every graph has the manifest's sha256"
    fi
done
