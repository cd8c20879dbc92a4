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
# Small and quick, for trying out: one phase at 256 px. Every phantom slice could be labelled, so pseudo-labels have nothing to
# add, and phantoms vary less than patients.
cat > "$work/settings.toml" <<TOML
input_size = 256
coarse_size = 0
pseudo_steps = 0
prompting = { crops = 0 }
augmentation = { rotate = 0.15, scale = 0.10, shift = 0.04, elastic = 0.035, gamma = 0.25, bias = 0.15, noise = 0.05, blur = 0.2 }
TOML
cargo build --release --quiet
run=target/release/scanside
$run train --manifest "$work/phantoms.toml" --out "$work/thigh-phantom.safetensors" --name thigh-phantom \
    --settings "$work/settings.toml" --steps "${1:-800}" --seed 1 --no-evaluation
mv "$work/thigh-phantom.safetensors" adapters/thigh-phantom.safetensors
$run evaluate --manifest "$work/phantoms.toml" --adapter adapters/thigh-phantom.safetensors \
    --out "$work/table" --aggregates --title "The shipped phantom adapter on unseen phantoms"
mv "$work/table.md" docs/evidence/phantom-adapter.md
mv "$work/table.json" docs/evidence/phantom-adapter.json
