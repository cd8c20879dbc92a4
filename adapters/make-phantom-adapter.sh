#!/bin/sh
# Makes adapters/thigh-phantom.safetensors, the adapter that the demo uses: trained on phantoms alone, so it says nothing
# about patients. Same program, same base weights, same file. Usage: adapters/make-phantom-adapter.sh [steps]
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
    echo 'note = "synthetic thigh phantoms only; not for patients"'
    echo 'structures = ["VL", "VM", "VI", "RF"]'
    # 16 subjects, three slices each: both legs, so 96 labelled leg slices.
    i=0
    while [ $i -lt 16 ]; do
        printf '\n[[volume]]\nname = "phantom %d"\nphantom = %d\nslices = [%d, %d, %d]\n' \
            $((1000 + i)) $((1000 + i)) $((i % 5)) $((5 + i % 5)) $((10 + i % 5))
        i=$((i + 1))
    done
    for seed in 2000 2001 2002; do
        printf '\n[[volume]]\nname = "phantom %d"\nphantom = %d\nuse = "test"\n' $seed $seed
    done
} > "$work/phantoms.toml"
cargo build --release --quiet
run=target/release/scanside
$run train --manifest "$work/phantoms.toml" --out "$work/thigh-phantom.safetensors" --name thigh-phantom \
    --steps "${1:-600}" --seed 1 --no-evaluation
mv "$work/thigh-phantom.safetensors" adapters/thigh-phantom.safetensors
$run evaluate --manifest "$work/phantoms.toml" --adapter adapters/thigh-phantom.safetensors \
    --out "$work/table" --aggregates --title "The shipped phantom adapter on unseen phantoms"
mv "$work/table.md" docs/evidence/phantom-adapter.md
mv "$work/table.json" docs/evidence/phantom-adapter.json
