#!/bin/sh
# Runs docs/evidence/experiments.toml on ../shared/data (or $1) and writes docs/evidence/experiments.md. Goes on where it was
# stopped; results are docs/evidence/runs/*.json (cases numbered, aggregates and figures only). The data are no part of the project.
# On a machine with an NVIDIA GPU: DEVICE=cuda JOBS=15, with LIBTORCH set (docs/adapt.md); CUDA's multi-process service (nvidia-cuda-mps-control -d)
# lets the runs share the GPU.
# Usage: [WORK=dir] [JOBS=2] [DEVICE=cpu] docs/evidence/run_experiments.sh [data] [more options of `scanside experiment run`]
set -eu
cd "$(dirname "$0")/../.."
data=$(cd "${1:-../shared/data}" && pwd)
[ $# -gt 0 ] && shift
work=${WORK:-$(mktemp -d)}
mkdir -p "$work/subjects"
device=${DEVICE:-cpu}
if [ "$device" = cpu ]; then cargo build --release --quiet; else cargo build --release --quiet --features cuda; fi
for f in "$data"/thigh_oai_ufats/*.tar.xz; do
    [ -d "$work/subjects/$(basename "$f" .tar.xz)" ] || tar -xJf "$f" -C "$work/subjects"
done
cp target/release/scanside "$work/scanside"
# One process per core, each on one thread: faster than one process on all.
export RAYON_NUM_THREADS=1
job=0
while [ $job -lt "${JOBS:-2}" ]; do
    "$work/scanside" experiment run --plan docs/evidence/experiments.toml --subjects "$work/subjects" --out docs/evidence/runs \
        --work "$work/runs" --device "$device" --commit "$(git rev-parse --short HEAD)" "$@" &
    job=$((job + 1))
done
wait
"$work/scanside" experiment report --plan docs/evidence/experiments.toml --runs docs/evidence/runs --out docs/evidence/experiments
