#!/bin/sh
# VL and VM of one subject (9014209) from five labelled slices, tested on its other ten slices: optimistic, one subject.
# Reads ../shared/data (or $1), writes tables (aggregates only) beside this script. The data are not part of the project.
# Usage: docs/evidence/run_first_adapter.sh [data]
set -eu
cd "$(dirname "$0")/../.."
data=$(cd "${1:-../shared/data}" && pwd)
seed=${SEED:-1}
work=${WORK:-$(mktemp -d)}
mkdir -p "$work"
cargo build --release --quiet
run=target/release/scanside
commit=$(git rev-parse --short HEAD)
[ -d "$work/9014209" ] || tar -xJf "$data/thigh_oai_ufats/9014209.tar.xz" -C "$work"

cat > "$work/first-adapter-vlvm.toml" <<TOML
note = "VL and VM, five slices of one subject"
structures = ["VL", "VM"]
[[volume]]
images = "$work/9014209"
labels = "$data/thigh_vlvm_oai_9014209/123456.seg.nrrd"
map = { "Vastus Lateralis" = "VL", "Vastus Medialis" = "VM" }
side = "right"
slices = [1, 4, 7, 10, 13]
use = "both"
TOML
adapter="$work/first-adapter-vlvm.safetensors"
# An adapter that a former run left in $WORK is evaluated as it is; the same seed would make the same one.
[ -f "$adapter" ] ||
    $run train --manifest "$work/first-adapter-vlvm.toml" --out "$adapter" --seed "$seed" --no-evaluation
$run evaluate --manifest "$work/first-adapter-vlvm.toml" --adapter "$adapter" --out docs/evidence/first-adapter-vlvm --aggregates \
    --title "VL and VM from five labelled slices, the other ten slices of the same subject (optimistic)" \
    --fact "command=docs/evidence/run_first_adapter.sh" --fact "commit=$commit" --prompts automatic,true-box,zero-shot
