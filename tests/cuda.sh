#!/bin/sh
# The tests of training through libtorch (feature `cuda`), on the CPU: libtorch 2.11 from PyPI (about 3 GB, under .peers), a C++ compiler, and
# some ten minutes. On a machine with an NVIDIA GPU it also times a training step there beside PyTorch's. Not part of tests/run.sh,
# which checks only that the code compiles.
set -eu
cd "$(dirname "$0")/.."
venv=.peers/torch
[ -x $venv/bin/python ] || python3 -m venv $venv
$venv/bin/python -m pip install -q torch==2.11.0 numpy
LIBTORCH=$($venv/bin/python -c 'import os, torch; print(os.path.dirname(torch.__file__))')
export LIBTORCH
cargo test --release --features cuda --lib -- torch --show-output
if [ -n "${MOBILE_SAM:-}" ] && nvidia-smi >/dev/null 2>&1; then
    cargo run --release --features cuda -- bench train-step --device cuda --size 448 --steps 40 --mobile-sam "$MOBILE_SAM" \
        --python $venv/bin/python
else
    echo "SKIPPED: no step was timed on a GPU: nvidia-smi finds none, or MOBILE_SAM names no folder mobile_sam of MobileSAM's sources"
fi
