#!/bin/sh
# One call that tells all that is to be known of a GPU with TensorRT: builds, parity, times, adapter swaps, overlap.
#
#   engines/gpu-check.sh SCANSIDE LIBRARY_FOLDER OUT [options of `scanside engine check-gpu`]
#
# e.g. engines/gpu-check.sh ./scanside /usr/lib/aarch64-linux-gnu out --set model.weights=mobile_sam.safetensors
# Each part runs in a process of its own with a limit, so that one that crashes or hangs costs itself only. BUDGET (seconds, default 150) is
# for all of them; what is left over is said to be left out; PATIENCE multiplies each part's own limit. The report is OUT/report.md and OUT/report.json, and is printed.
set -u
if [ $# -lt 3 ]; then sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; fi
scanside=$1 library=$2 out=$3
shift 3
mkdir -p "$out" || exit 1
# TensorRT opens its builder's resources by name. The peers keep their own libraries: this folder's may be others of the same name.
path=$library${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
begun=$(date +%s) budget=${BUDGET:-150}
part() { # name, limit
    left=$((budget - $(date +%s) + begun))
    limit=$(($2 * ${PATIENCE:-1}))
    [ "$limit" -lt "$left" ] || limit=$left
    if [ "$limit" -lt 2 ]; then
        printf '{"part": "%s", "seconds": null, "left_out": "no time was left of %s s"}\n' "$1" "$budget" > "$out/$1.json"
        return
    fi
    libraries=$path
    [ "$1" != peers ] || libraries=${LD_LIBRARY_PATH:-}
    LD_LIBRARY_PATH=$libraries timeout -k 2 "$limit" "$scanside" engine check-gpu --part "$1" --out "$out" --set "engine.library=$library" $options 2>> "$out/log.txt"
    code=$?
    case $code in
        0 | 1) ;;
        *) printf '{"part": "%s", "seconds": null, "error": "the process ended with code %s (124: after %s s)"}\n' "$1" "$code" "$limit" \
            > "$out/$1.json" ;;
    esac
    echo "$1: code $code, $(($(date +%s) - begun)) s so far" >&2
}
# Options have no spaces within: they are paths and numbers.
options="$*"
part gpu 20
for precision in fp32 fp16; do
    part build-$precision 70
    part parity-$precision 40
    part latency-$precision 30
done
part swaps 30
part overlap 20
part series 40
part peers 40
part merged 60
for what in build parity latency; do part $what-int8 40; done
exec "$scanside" engine check-gpu --part report --out "$out"
