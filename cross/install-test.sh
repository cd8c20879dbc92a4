#!/usr/bin/env bash
# Installs the package in a Debian root that is not booted, runs the program there, and takes it out again: cross/install-test.sh arm64|amd64
#
# Quick under emulation; what needs systemd running is cross/boot-test.sh's. The packages of cross/package.sh (revisions 1 and 2) must lie in
# target/cross.
. "$(dirname "$0")/lib.sh"

architecture=${1:?usage: cross/install-test.sh arm64|amd64}
[ "$architecture" = "$(dpkg --print-architecture)" ] || emulation
base=$(debian_root "$architecture")
root=$(mktemp -d "$CROSS/install-$architecture.XXXXXX")
chmod 755 "$root"
trap 'as_root rm -rf "$root"' EXIT
as_root tar -x -f "$base" -C "$root" --exclude=./dev/*
for revision in 1 2; do copy_package "$architecture" $revision "$root/$revision.deb"; done
# What runs inside; the first thing that is not so ends it (but set -e passes over what begins with "!").
as_root tee "$root/claims.sh" >/dev/null <<'EOF'
set -eux
dpkg -i /1.deb
# What the next boot does, since none is running.
systemd-tmpfiles --create scanside.conf
scanside --version
scanside validate
[ "$(systemctl is-enabled scanside)" = enabled ]
[ "$(stat -c '%a %U:%G' /etc/scanside/scanside.toml)" = "640 root:scanside" ]
[ "$(stat -c '%a %U' /var/lib/scanside)" = "700 scanside" ]
echo '# the site' >>/etc/scanside/scanside.toml
touch /var/lib/scanside/state
dpkg -i /2.deb
grep -q '# the site' /etc/scanside/scanside.toml
dpkg -r scanside
[ ! -e /usr/bin/scanside ]
[ -e /var/lib/scanside/state ]
grep -q '# the site' /etc/scanside/scanside.toml
dpkg --purge scanside
[ ! -e /etc/scanside ]
[ ! -e /var/lib/scanside ]
set +x
echo "INSTALL-TEST END: installed, upgraded, removed and purged on $(uname -m)"
EOF
log="$CROSS/install-$architecture.log"
# With /proc, which systemd-tmpfiles needs, mounted for this alone.
# shellcheck disable=SC2016
as_root unshare --mount sh -c 'mount -t proc proc "$1/proc" && exec chroot "$1" /bin/bash /claims.sh' sh "$root" >"$log" 2>&1 || {
    tail -5 "$log" >&2
    die "not shown; see $log"
}
grep '^INSTALL-TEST END:' "$log" || die "the test did not get to its end; see $log"
