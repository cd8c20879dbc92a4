#!/usr/bin/env bash
# Builds the appliance's program (without the training host) for arm64 on an x86-64 Debian or Ubuntu: cross/build.sh [--std-from-source]
#
# The standard library comes from rustup where the target can be added; otherwise, and always with --std-from-source, it is built from
# Debian's rust-src of the compiler's version (cross/std-from-source.sh). No CUDA is needed: TensorRT is opened at run time.
. "$(dirname "$0")/lib.sh"

from_source=${CROSS_STD_FROM_SOURCE:-}
case "${1:-}" in
--std-from-source) from_source=1 ;;
"") ;;
*) die "usage: cross/build.sh [--std-from-source]" ;;
esac
packages gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libc6-dev-arm64-cross binutils
sysroot=
if [ -n "$from_source" ]; then
    sysroot=$(cross/std-from-source.sh)
elif ! rustup target add $TRIPLE >/dev/null 2>&1; then
    say "rustup cannot add $TRIPLE: its standard library is built from source"
    sysroot=$(cross/std-from-source.sh)
fi
mkdir -p "$CROSS"
# For cross/test.sh, which must build with the same flags.
echo "$sysroot" >"$CROSS/sysroot"
arm64_environment "$sysroot"
program=$(build_program arm64 aarch64-linux-gnu-gcc --no-default-features --target $TRIPLE)
aarch64-linux-gnu-readelf -h "$program" | grep -q AArch64 || die "$program is no arm64 program"
check_glibc "$program"
if grep -aqF -e "$PWD/" -e "$HOME/.cargo/" "$program"; then
    say "note: $program names folders of this machine"
fi
echo "$program"
