#!/bin/sh
# Fetches NVIDIA's own lean TensorRT runtimes from PyPI into .peers/nvidia/VERSION, for tests/tensorrt_nvidia.rs. They are used where they
# lie and never part of the project. Their licence is NVIDIA's. Usage: tests/setup-nvidia.sh [platform], by default this machine's.
set -eu
cd "$(dirname "$0")/.."
platform=${1:-$(uname -m)}
[ -x .venv/bin/python ] || python3 -m venv .venv
for version in 10.16.1.11 11.4.0.106; do
    dir=.peers/nvidia/$platform/$version
    [ -e "$dir/done" ] && continue
    rm -rf "$dir" && mkdir -p "$dir"
    .venv/bin/python -m pip download -q --no-deps --only-binary :all: --platform "manylinux_2_28_$platform" --platform "manylinux_2_35_$platform" \
        -d "$dir" "tensorrt-lean-cu13-libs==$version"
    .venv/bin/python -m zipfile -e "$dir"/*.whl "$dir"
    rm "$dir"/*.whl
    touch "$dir/done"
done
