#!/bin/sh
# Fetches NVIDIA's own libraries from PyPI into .peers/nvidia/PLATFORM/VERSION, for tests/tensorrt_nvidia.rs: the lean TensorRT runtimes,
# and on x86_64 TensorRT-RTX, whose ONNX parser and builder run without a GPU. They are used where they lie and never part of the
# project; their licence is NVIDIA's. Usage: tests/setup-nvidia.sh [platform], by default this machine's.
set -eu
cd "$(dirname "$0")/.."
platform=${1:-$(uname -m)}
[ -x .venv/bin/python ] || python3 -m venv .venv
packages="tensorrt-lean-cu13-libs==10.16.1.11 tensorrt-lean-cu13-libs==11.4.0.106"
[ "$platform" = x86_64 ] && packages="$packages tensorrt-rtx-cu13-libs==1.7.1.116"
for package in $packages; do
    version=${package##*=}
    dir=.peers/nvidia/$platform/$version
    [ -e "$dir/done" ] && continue
    rm -rf "$dir" && mkdir -p "$dir"
    .venv/bin/python -m pip download -q --no-deps --only-binary :all: --platform "manylinux_2_28_$platform" --platform "manylinux_2_35_$platform" \
        -d "$dir" "$package"
    .venv/bin/python -m zipfile -e "$dir"/*.whl "$dir"
    rm "$dir"/*.whl
    touch "$dir/done"
done
