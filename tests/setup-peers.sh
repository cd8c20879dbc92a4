#!/bin/sh
# Installs the real peers that the tests talk to: Debian packages, and Python packages into .venv. (tests/ohif needs chromium,
# nodejs and npm besides; it makes evidence and is not part of the test run.)
set -eu
cd "$(dirname "$0")/.."
if [ "$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi
packages="dcmtk orthanc orthanc-dicomweb dicom3tools python3-venv systemd"
need=
for p in $packages; do dpkg -s "$p" >/dev/null 2>&1 || need="$need $p"; done
if [ -n "$need" ]; then
    $sudo apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $need
fi
[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -m pip install -q -r tests/requirements.txt
