# What the scripts of this folder share: where things lie, saying what is done, getting Debian packages, and the environment of an
# arm64 build. Sourced, not run; the working directory is then the project's.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TRIPLE=aarch64-unknown-linux-gnu
# JetPack 6 is Ubuntu 22.04 (glibc 2.35); JetPack 7 has 2.39, JetPack 5 (2.31) is not supported.
GLIBC_MOST=2.34
# Everything that these scripts make, but for the ordinary build; what is built with other settings than the packages' goes elsewhere.
CROSS="$PWD/target/${CROSS_FOLDER:-cross}"
# The arm64 build has a folder of its own, so that it can go on beside an ordinary one.
ARM64_OUTPUT="$CROSS/arm64"
# The packages' programs, put aside as soon as they are linked: cargo links its own anew for every test.
PROGRAMS="$CROSS/programs"
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)

say() { printf '%s\n' "$*" >&2; }
die() {
    printf 'cross: %s\n' "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Installs the Debian packages that are not there yet.
packages() {
    local missing=()
    for p in "$@"; do
        dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing+=("$p")
    done
    [ ${#missing[@]} = 0 ] && return
    say "installing: ${missing[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
        die "apt could not install: ${missing[*]}"
}

# arm64 programs run as if they were native ones: the kernel hands them to qemu, inside other roots too (flag F).
emulation() {
    local entry=/proc/sys/fs/binfmt_misc/qemu-aarch64
    packages qemu-user-static
    [ -e /proc/sys/fs/binfmt_misc/register ] || as_root mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc ||
        die "the kernel has no binfmt_misc: arm64 programs cannot be run here"
    if [ ! -e $entry ]; then
        # The file ends with the flags; F opens qemu now, so that it need not exist in the other root.
        as_root sh -c "tr -d '\n' < /usr/lib/binfmt.d/qemu-aarch64.conf > /proc/sys/fs/binfmt_misc/register" ||
            die "qemu-aarch64 could not be registered with binfmt_misc"
    fi
    grep -q '^flags:.*F' $entry || die "$entry lacks flag F: remove it (echo -1 > $entry) and run this again"
}

# The environment of cargo for arm64; $1 is a sysroot, or empty where rustup has the target.
arm64_environment() {
    local flags=""
    [ -z "$1" ] || flags="--sysroot $1 --remap-path-prefix $1=/rust-sysroot"
    # No path of the building machine stays in the program.
    flags="$flags --remap-path-prefix $PWD=/scanside --remap-path-prefix ${CARGO_HOME:-$HOME/.cargo}=/cargo"
    # Checks of ours deny what only users' newer compilers may warn of.
    [ -z "${CROSS_DENY_WARNINGS:-}" ] || flags="$flags -D warnings"
    export CARGO_TARGET_DIR="$ARM64_OUTPUT"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="$flags"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu"
    # What the program under test starts itself, itself included, goes through binfmt_misc and needs the libraries too.
    export QEMU_LD_PREFIX=/usr/aarch64-linux-gnu
}

# Builds the program of a package and prints its path: $1 is the architecture, $2 the C compiler, the rest are options of cargo. The
# libraries are those of the ordinary build; only the last step differs (cross/hypot.c).
build_program() {
    local architecture=$1 compiler=$2 object made
    shift 2
    object="$CROSS/hypot-$("$compiler" -dumpmachine).o"
    mkdir -p "$CROSS"
    "$compiler" -O2 -fno-builtin -c cross/hypot.c -o "$object"
    made=$(cargo rustc --release --locked --bin scanside --message-format=json-render-diagnostics "$@" -- -C link-arg="$object" |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)
    [ -n "$made" ] || die "the program for $architecture could not be built"
    mkdir -p "$PROGRAMS"
    cp "$made" "$PROGRAMS/scanside-$architecture"
    echo "$PROGRAMS/scanside-$architecture"
}

# Fails where a program asks for a newer C library than the oldest system that it is for.
check_glibc() {
    local newest
    newest=$(objdump -T "$1" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1)
    [ -n "$newest" ] || die "$1 names no GLIBC version: is it a dynamic program?"
    [ "$(printf '%s\n' "${newest#GLIBC_}" "$GLIBC_MOST" | sort -V | tail -1)" = "$GLIBC_MOST" ] ||
        die "$1 needs $newest ($(objdump -T "$1" | awk -v v="($newest)" '$5 == v || $4 == v { printf "%s ", $NF }')), but GLIBC_$GLIBC_MOST is the most that the package's Depends allow"
    say "$(basename "$1"): $newest at most"
}

# The mirror that this machine uses for Debian already.
debian_mirror() {
    local mirror
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk '$1 == "Debian" && $2 == "Debian" { print $3; exit }')
    echo "${mirror:-http://deb.debian.org/debian/}"
}

# A private state of apt for one suite and architecture, which is neither installed from nor left behind on the machine; sets the array
# private_apt to the options that use it.
private_apt() { # suite architecture
    packages debian-archive-keyring
    local state="$CROSS/apt-$1-$2" mirror
    mirror=$(debian_mirror)
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
    : >"$state/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $1 main" >"$state/sources.list"
    private_apt=(-o "Dir::State=$state" -o "Dir::State::lists=$state/lists" -o "Dir::State::status=$state/status"
        -o "Dir::Cache=$state/cache" -o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=-
        -o APT::Sandbox::User=root -o "APT::Architecture=$2" -o "APT::Architectures=$2")
    apt-get "${private_apt[@]}" update -qq >&2 || die "the lists of $1 cannot be read from $mirror"
}

# A Debian root with systemd as a tar archive, made once; prints its path.
debian_root() { # architecture
    local base="$CROSS/roots/$1.tar"
    packages mmdebstrap
    mkdir -p "$CROSS/roots"
    if [ ! -s "$base" ]; then
        say "making a root of Debian for $1"
        as_root mmdebstrap --quiet --arch="$1" --variant=minbase --include=systemd-sysv,dbus,dcmtk,jq,procps \
            bookworm "${base%.tar}.part.tar" "$(debian_mirror)" >&2 || die "no root of Debian for $1"
        mv -f "${base%.tar}.part.tar" "$base"
    fi
    echo "$base"
}

# Where the package of an architecture and revision lies.
package_path() { echo "$CROSS/scanside_$VERSION-$2_$1.deb"; }

# Copies the package of an architecture and revision, which cross/package.sh must have made, to a place in a root.
copy_package() { # architecture revision place
    local package
    package=$(package_path "$1" "$2")
    [ -e "$package" ] || die "$package is missing: cross/package.sh $1 [--revision 2]"
    as_root cp "$package" "$3"
}
