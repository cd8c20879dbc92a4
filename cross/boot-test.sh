#!/usr/bin/env bash
# Installs the package in a booted Debian and shows what is claimed of it: cross/boot-test.sh [amd64|arm64] [--machine]
#
# systemd-nspawn boots a fresh root with systemd as its first process, cross/boot-claims.sh runs inside and prints one line per claim;
# this fails when one is not shown. The packages of cross/package.sh (revisions 1 and 2) must lie in target/cross. On an x86-64 machine the
# arm64 root runs under qemu-user: there system call filter, credentials and private networks have no effect, in the amd64 root they have. With --machine an arm64 kernel
# boots the same root in an emulated machine, where everything has its effect; slower.
. "$(dirname "$0")/lib.sh"

architecture=${1:-amd64}
case "$architecture ${2:-}" in
"amd64 ") mode=full machine= ;;
"arm64 ") mode=quick machine= ;;
"arm64 --machine") mode=machine machine=1 ;;
*) die "usage: cross/boot-test.sh [amd64|arm64 [--machine]]" ;;
esac
packages systemd-container xz-utils
native=$(dpkg --print-architecture)
[ "$architecture" = "$native" ] || emulation
weights="${SCANSIDE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/scanside}/mobile_sam.safetensors"
[ -e "$weights" ] || die "the base weights are missing: scanside weights fetch"

base=$(debian_root "$architecture")
root=$(mktemp -d "$CROSS/boot-$architecture.XXXXXX")
chmod 755 "$root"
trap 'as_root rm -rf "$root"' EXIT
as_root tar -x -f "$base" -C "$root" --exclude=./dev/*
as_root mkdir -p "$root/boot-test"
for revision in 1 2; do copy_package "$architecture" $revision "$root/boot-test/$revision.deb"; done
as_root cp "$weights" "$root/boot-test/mobile_sam.safetensors"
as_root cp cross/boot-claims.sh "$root/boot-test/"
# Phantoms take minutes under emulation: this machine's own program makes them where it was built (cross/package.sh).
if [ "$architecture" != "$native" ] && [ -e "$PROGRAMS/scanside-$native" ]; then
    for seed in 1 2 3; do
        as_root "$PROGRAMS/scanside-$native" phantom --seed $seed --out "$root/boot-test/p$seed" >/dev/null
    done
fi
# A signed release of the phantom's adapter, by keys that live as long as this test.
if [ "$mode" = full ]; then
    program="$PROGRAMS/scanside-$native"
    release=$(mktemp -d)
    year=$(date -u +%Y)
    for key in anna ben; do "$program" keys generate "$release/$key" >&2; done
    "$program" keys root make --roots "$release/roots" --root-key "$release/anna.pub.pem" --root-key "$release/ben.pub.pem" \
        --release-key "$release/anna.pub.pem" --release-key "$release/ben.pub.pem" --expires $((year + 5))-01-01 >&2
    for key in anna ben; do "$program" keys root sign --roots "$release/roots" --key "$release/$key.pem" >&2; done
    "$program" bundle make --adapter adapters/thigh-phantom.safetensors --evidence docs/evidence/phantom-adapter.json \
        --roots "$release/roots" --version 2 --expires $((year + 1))-12-31 --note "boot test" --out "$release/adapter.bundle" >&2
    for key in anna ben; do "$program" bundle sign "$release/adapter.bundle" --key "$release/$key.pem" >&2; done
    "$program" keys root show --roots "$release/roots" | sed -n 's/.*fingerprint \([0-9a-f ]*\).*/\1/p' >"$release/fingerprint"
    as_root cp "$release/fingerprint" "$release/adapter.bundle" "$release/roots/1.root.json" "$root/boot-test/"
    rm -rf "$release"
fi
echo "$mode" | as_root tee "$root/boot-test/mode" >/dev/null
as_root tee "$root/etc/systemd/system/boot-test.service" >/dev/null <<EOF
[Unit]
Description=The claims about the package
DefaultDependencies=no
After=basic.target dbus.service
SuccessAction=$([ -n "$machine" ] && echo poweroff-force || echo exit-force)
FailureAction=$([ -n "$machine" ] && echo poweroff-force || echo exit-force)
[Service]
Type=oneshot
ExecStart=/bin/bash /boot-test/boot-claims.sh
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
TimeoutStartSec=infinity
EOF
as_root mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
as_root ln -s ../boot-test.service "$root/etc/systemd/system/multi-user.target.wants/"
as_root ln -sf /dev/null "$root/etc/systemd/system/console-getty.service"

log="$CROSS/boot-$architecture${machine:+-machine}.log"
in_container() {
    # A network of its own with loopback alone: ports of this machine are neither used nor seen. A mount namespace with a /run of its own:
    # nspawn wants it in memory, which not every machine has.
    # shellcheck disable=SC2016
    as_root timeout 2400 unshare --mount sh -c 'mount -t tmpfs tmpfs /run && exec systemd-nspawn --quiet --boot --register=no \
        --keep-unit --console=read-only --private-network --machine="$1" -D "$2"' sh "scanside-$architecture-$$" "$root"
}
in_machine() {
    packages qemu-system-arm cpio
    private_apt bookworm arm64
    local kernel dir="$CROSS/kernel"
    kernel=$(apt-cache "${private_apt[@]}" depends linux-image-cloud-arm64 | awk '$1 == "Depends:" { print $2; exit }')
    [ -n "$kernel" ] || die "Debian's lists name no linux-image-cloud-arm64"
    rm -rf "$dir"
    mkdir -p "$dir"
    (cd "$dir" && apt-get "${private_apt[@]}" download -qq "$kernel") || die "$kernel cannot be fetched"
    dpkg-deb -x "$dir"/*.deb "$dir"
    # The root is the initial file system, unpacked into memory.
    as_root ln -sf lib/systemd/systemd "$root/init"
    (cd "$root" && as_root find . -print0 | as_root cpio --null --create --format=newc --quiet) >"$dir/root.cpio"
    # qemu exits with 0 whatever happens inside; the console tells.
    timeout 2400 qemu-system-aarch64 -M virt -cpu cortex-a72 -accel tcg,thread=multi -smp 2 -m 3072 -nic none -nographic -no-reboot \
        -kernel "$dir"/boot/vmlinuz-* -initrd "$dir/root.cpio" -append "console=ttyAMA0 rdinit=/init quiet systemd.log_color=0 panic=-1"
    rm -rf "$dir"
}
if [ -n "$machine" ]; then run=in_machine; else run=in_container; fi
$run </dev/null 2>&1 | sed -u 's/\r//g' | tee "$log" | grep --line-buffered -aE '^(CLAIM|BOOT-TEST|    \| )' || true
grep -aq '^BOOT-TEST END:' "$log" || die "the system did not get to its end; see $log"
grep -aq '^BOOT-TEST END: .* 0 not shown' "$log" || die "claims are not shown; see $log"
