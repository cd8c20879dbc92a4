#!/usr/bin/env bash
# Builds the Debian package: cross/package.sh [amd64|arm64] [--revision N] [--no-build]
#
# Prints its path. --no-build takes the program that cross/build.sh or an earlier call made; --revision is Debian's (1).
. "$(dirname "$0")/lib.sh"

architecture=$(dpkg --print-architecture)
revision=1
build=1
while [ $# -gt 0 ]; do
    case "$1" in
    amd64 | arm64) architecture=$1 ;;
    --revision) revision=${2:?--revision needs a number} && shift ;;
    --no-build) build= ;;
    *) die "usage: cross/package.sh [amd64|arm64] [--revision N] [--no-build]" ;;
    esac
    shift
done
packages binutils dpkg-dev lintian python3
CARGO_DEB="$CROSS/tools/bin/cargo-deb"
# The version that the metadata in Cargo.toml were tested with.
cargo_deb_version=3.8.0
if ! "$CARGO_DEB" --version 2>/dev/null | grep -qF "$cargo_deb_version"; then
    say "building cargo-deb $cargo_deb_version"
    # It compresses twenty megabytes once: the time to optimise it fully never comes back.
    CARGO_TARGET_DIR="$CROSS/tools/build" CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 cargo install --quiet --locked --root "$CROSS/tools" "cargo-deb@$cargo_deb_version" >&2
    rm -rf "$CROSS/tools/build"
fi

program="$PROGRAMS/scanside-$architecture"
if [ "$architecture" = arm64 ]; then
    triple=$TRIPLE
    strip=aarch64-linux-gnu-strip
    [ -z "$build" ] || cross/build.sh >/dev/null
    emulation
else
    triple=x86_64-unknown-linux-gnu
    strip="strip"
    # With the training host, which amd64 machines can be: the ordinary build but for its last step.
    [ -z "$build" ] || build_program amd64 gcc >/dev/null
fi
[ -e "$program" ] || die "$program is missing: leave out --no-build"

# What the package says it depends on must be true of the program.
check_glibc "$program"
allowed='libc.so.6 libm.so.6 libgcc_s.so.1 ld-linux-aarch64.so.1 ld-linux-x86-64.so.2'
for library in $(objdump -p "$program" | awk '$1 == "NEEDED" { print $2 }'); do
    case " $allowed " in
    *" $library "*) ;;
    *) die "the program needs $library, which the package's Depends (Cargo.toml) does not name" ;;
    esac
done
grep -q "^depends = \"libc6 (>= $GLIBC_MOST), libgcc-s1\b" Cargo.toml || die "Cargo.toml's depends and GLIBC_MOST=$GLIBC_MOST of cross/lib.sh differ"

stage="$CROSS/stage"
rm -rf "$stage"
mkdir -p "$stage"
"$strip" -o "$stage/scanside" "$program"
QEMU_LD_PREFIX=/usr/aarch64-linux-gnu "$program" manual --out "$stage/share"
date=$(git log -1 --format=%cD 2>/dev/null || date -R)
SOURCE_DATE_EPOCH=$(date -d "$date" +%s)
export SOURCE_DATE_EPOCH
cat >"$stage/changelog" <<EOF
scanside ($VERSION-$revision) unstable; urgency=medium

  * Version $VERSION; changelog.gz says what changed and why.

 -- Scanside maintainers <maintainers@scanside.invalid>  $date
EOF
cat >"$stage/copyright" <<EOF
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: scanside

Files: *
Copyright: 2026 The Scanside authors
License: Apache-2.0 or MIT
Comment: The libraries inside the program, each with its licence and authors, are in LICENCES.gz beside this file, and as a CycloneDX
 list in sbom.cdx.json. NOTICES.md names the origin of the base weights, which are not in this package, and of the adapter.

License: Apache-2.0
 On Debian systems the full text is in /usr/share/common-licenses/Apache-2.0.

License: MIT
$(sed -e '1,/^$/d' -e 's/^$/./' -e 's/^/ /' LICENSE-MIT)
EOF
cross/notices.py --target "$triple" --licences "$stage/LICENCES" --sbom "$stage/sbom.cdx.json"
gzip -9n "$stage/LICENCES"

package=$(package_path "$architecture" "$revision")
rm -f "$package"
"$CARGO_DEB" --quiet --no-build --no-strip --target "$triple" --deb-revision "$revision" --output "$package" >&2
dpkg-deb -f "$package" Architecture | grep -qx "$architecture" || die "$package is not for $architecture"
# Errors alone fail: what lintian warns of besides concerns uploads to Debian. A later revision differs in its number alone.
[ "$revision" != 1 ] || lintian --fail-on error --allow-root "$package" >&2 || die "lintian found errors in $package"
say "$(du -h "$package" | cut -f1) $(basename "$package")"
echo "$package"
