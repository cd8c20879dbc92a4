#!/usr/bin/env bash
# What OHIF shows of a segmentation: uploads a folder of DICOM (a series and its SEG) to a real Orthanc, opens the study in
# OHIF in a headless Chromium, loads the SEG, holds what is drawn on every slice against the SEG's own bits and colours, and
# takes a picture. Fails where OHIF draws anything else. Everything listens on loopback.
#
#   tests/ohif/screenshot.sh FOLDER PICTURE.png
#
# docs/evidence/ohif-phantom-seg.png was made by
#   scanside phantom --out ph --seed 3 && scanside segment ph/series --out result
#   mkdir both && cp ph/series/*.dcm result/seg.dcm both/ && tests/ohif/screenshot.sh both docs/evidence/ohif-phantom-seg.png
#
# Fetches OHIF and playwright-core from npm once, into OHIF_CACHE (default ~/.cache/scanside/ohif).
set -euo pipefail
if [ $# -ne 2 ]; then
    echo "usage: $0 FOLDER PICTURE.png" >&2
    exit 2
fi
folder=$1 picture=$2
here=$(cd "$(dirname "$0")" && pwd)
cache=${OHIF_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/scanside/ohif}
ohif=3.13.2 playwright=1.65.1

# The packages alone: OHIF's is a finished build, so none of its dependencies is needed.
fetch() { # NAME VERSION DIR
    [ -f "$cache/$3/.complete-$2" ] && return
    rm -rf "${cache:?}/$3" && mkdir -p "$cache/$3"
    (cd "$cache/$3" && tgz=$(npm pack --silent "$1@$2" | tail -1) && tar xzf "$tgz" --strip-components=1 && rm "$tgz")
    touch "$cache/$3/.complete-$2"
}
fetch @ohif/app "$ohif" app
fetch playwright-core "$playwright" playwright-core

work=$(mktemp -d)
orthanc=
cleanup() {
    if [ -n "$orthanc" ]; then kill "$orthanc" 2>/dev/null || true; wait "$orthanc" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap cleanup EXIT

port=$(node -e 'const s=require("net").createServer().listen(0,"127.0.0.1",()=>{console.log(s.address().port);s.close()})')
plugin=/usr/share/orthanc/plugins/libOrthancDicomWeb.so
if [ ! -e "$plugin" ]; then
    echo "no $plugin; tests/setup-peers.sh installs it" >&2
    exit 1
fi
cat >"$work/orthanc.json" <<JSON
{"StorageDirectory": "$work/storage", "IndexDirectory": "$work/storage", "Plugins": ["$plugin"],
 "HttpPort": $port, "RemoteAccessAllowed": false, "AuthenticationEnabled": false, "DicomServerEnabled": false,
 "DicomWeb": {"Enable": true, "Root": "/dicom-web/", "EnableWado": true, "Host": "127.0.0.1", "Ssl": false,
  "StudiesMetadata": "Full", "SeriesMetadata": "Full"}}
JSON
program=$(command -v Orthanc || echo /usr/sbin/Orthanc)
"$program" "$work/orthanc.json" >"$work/orthanc.log" 2>&1 &
orthanc=$!
for _ in $(seq 300); do
    curl -sf "http://127.0.0.1:$port/system" >/dev/null && break
    sleep 0.2
done
curl -sf "http://127.0.0.1:$port/system" >/dev/null || { cat "$work/orthanc.log" >&2; exit 1; }
count=0
while IFS= read -r -d '' file; do
    if curl -sf --data-binary "@$file" -H 'Expect:' "http://127.0.0.1:$port/instances" >/dev/null; then count=$((count + 1)); fi
done < <(find "$folder" -type f -print0)
echo "$count objects in Orthanc"
node "$here/screenshot.mjs" "$cache" "http://127.0.0.1:$port" "$picture"
