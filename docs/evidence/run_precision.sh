#!/bin/sh
# Dice that FP16 and INT8 cost on real, unseen subjects, with an adapter trained on others of the same source, on the embedded engine
# and on ONNX Runtime. Reads ../shared/data (or $1); writes docs/evidence/precision.{md,json} (aggregates only). The data and the
# adapter are not part of the project. Needs python3 with onnxruntime (SCANSIDE_PYTHON, default .venv/bin/python).
# The adapter is run_site.sh's where $WORK has it; otherwise a quicker one: fewer steps, no pseudo-labels.
# Usage: [WORK=dir] [VOLUMES=4] [CROPS=0] docs/evidence/run_precision.sh [data]
set -eu
cd "$(dirname "$0")/../.."
data=$(cd "${1:-../shared/data}" && pwd)
work=${WORK:-$(mktemp -d)}
python=${SCANSIDE_PYTHON:-.venv/bin/python}
mkdir -p "$work/subjects"
if [ -z "${SCANSIDE:-}" ]; then
    cargo build --release --quiet
    SCANSIDE=target/release/scanside
fi
for f in "$data"/thigh_oai_ufats/*.tar.xz; do
    [ -d "$work/subjects/$(basename "$f" .tar.xz)" ] || tar -xJf "$f" -C "$work/subjects"
done
site=$work/site-nine
$SCANSIDE experiment manifest --plan docs/evidence/experiments.toml --subjects "$work/subjects" --arm shipped --slices 5 --out "$site"
if [ ! -f "$site.safetensors" ]; then
    # Precision is compared volume by volume, so that an adapter of fewer steps serves: 280 in the main phase, no pseudo-labels.
    sed -e 's/^steps = .*/steps = 280/' -e 's/^pseudo_steps = .*/pseudo_steps = 0/' "$site-settings.toml" > "$site-quick.toml"
    $SCANSIDE train --manifest "$site.toml" --settings "$site-quick.toml" --out "$site.safetensors" --no-evaluation
fi
$SCANSIDE bench precision --manifest "$site.toml" --adapter "$site.safetensors" --python "$python" \
    --recipe phantoms=engines/mobile-sam-448/recipe.toml --volumes "${VOLUMES:-4}" --crops "${CROPS:-0}" --out docs/evidence/precision \
    --fact "command=docs/evidence/run_precision.sh" --fact "commit=$(git rev-parse --short HEAD)"
