#!/usr/bin/env bash
# Builds Rust's standard library for arm64 out of Debian's rust-src of exactly the compiler's version, for machines on which rustup
# cannot download the target. Prints the sysroot that it made; the second call finds it made.
. "$(dirname "$0")/lib.sh"

version=$(rustc -V | cut -d' ' -f2)
sysroot="$CROSS/sysroot-$version"
library_dir="$sysroot/lib/rustlib/$TRIPLE/lib"
[ -e "$sysroot/.complete" ] && {
    echo "$sysroot"
    exit
}
packages gcc-aarch64-linux-gnu libc6-dev-arm64-cross xz-utils

suite=trixie-backports
say "the standard library's source: rust-src $version of $suite"
private_apt $suite amd64
exact=$(apt-cache "${private_apt[@]}" madison rust-src | awk -v v="$version" '{ split($3, a, "+") } a[1] == v { print $3; exit }')
[ -n "$exact" ] || die "Debian has no rust-src $version in $suite (it has: $(apt-cache "${private_apt[@]}" madison rust-src |
    awk '{ printf "%s ", $3 }')): use one of these compilers, or a machine on which rustup target add $TRIPLE works"
rm -rf "$CROSS/rust-src"
mkdir -p "$CROSS/rust-src"
(cd "$CROSS/rust-src" && apt-get "${private_apt[@]}" download -qq "rust-src=$exact" >&2) || die "rust-src $exact cannot be fetched"
dpkg-deb --fsys-tarfile "$CROSS"/rust-src/*.deb |
    tar -x -C "$CROSS/rust-src" --wildcards './usr/src/rustc-*/library' || die "rust-src $exact has no library folder"
source_root=$(echo "$CROSS"/rust-src/usr/src/rustc-*/library)
[ -f "$source_root/Cargo.toml" ] || die "rust-src $exact is laid out differently: no $source_root/Cargo.toml"

# An empty crate, so that cargo builds the library and nothing else.
empty="$CROSS/empty"
rm -rf "$empty"
mkdir -p "$empty/src"
printf '[package]\nname = "empty"\nversion = "0.0.0"\nedition = "2024"\n[workspace]\n' >"$empty/Cargo.toml"
: >"$empty/src/lib.rs"
say "building the standard library for $TRIPLE"
# Stable cargo builds the library only when told that it may; the project itself is then built without this.
(cd "$empty" && env -u RUSTFLAGS -u CARGO_TARGET_DIR RUSTC_BOOTSTRAP=1 __CARGO_TESTS_ONLY_SRC_ROOT="$source_root" \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="--remap-path-prefix $source_root=/rustc/library --remap-path-prefix ${CARGO_HOME:-$HOME/.cargo}=/cargo" \
    cargo build --release --quiet --target $TRIPLE -Zbuild-std=std,panic_unwind,proc_macro,test >&2) ||
    die "the standard library could not be built"
rm -rf "$sysroot"
mkdir -p "$library_dir"
cp "$empty/target/$TRIPLE/release/deps/"lib*.{rlib,rmeta} "$library_dir/"
rm -f "$library_dir"/libempty-*
touch "$sysroot/.complete"
rm -rf "$empty" "$CROSS/rust-src"
echo "$sysroot"
