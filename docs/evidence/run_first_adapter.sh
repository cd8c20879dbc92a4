#!/bin/sh
# The first adapter on real data, from five labelled slices each:
#   first-adapter-vlvm: VL and VM of one subject (9014209), tested on its other ten slices (optimistic: one subject);
#   first-adapter-oai:  nine structures from five subjects, one slice each, tested on all other subjects.
# Reads ../shared/data (or $1), writes tables (aggregates only) beside this script. The data are not part of the project.
# Usage: docs/evidence/run_first_adapter.sh [data] [vlvm|oai]
set -eu
cd "$(dirname "$0")/../.."
data=$(cd "${1:-../shared/data}" && pwd)
which=${2:-all}
steps=${STEPS:-500}
seed=${SEED:-1}
work=${WORK:-$(mktemp -d)}
mkdir -p "$work"
cargo build --release --quiet
run=target/release/scanside
commit=$(git rev-parse --short HEAD)
for f in "$data"/thigh_oai_ufats/*.tar.xz; do
    [ -d "$work/$(basename "$f" .tar.xz)" ] || tar -xJf "$f" -C "$work"
done

table() { # name title zero-shot
    # An adapter that a former run left in $WORK is evaluated as it is; the same seed would make the same one.
    [ -f "$work/$1.safetensors" ] ||
        $run train --manifest "$work/$1.toml" --out "$work/$1.safetensors" --steps "$steps" --seed "$seed" --no-evaluation
    # shellcheck disable=SC2086
    $run evaluate --manifest "$work/$1.toml" --adapter "$work/$1.safetensors" --out "docs/evidence/$1" --title "$2" --aggregates \
        --fact "command=docs/evidence/run_first_adapter.sh" --fact "commit=$commit" $3
}

if [ "$which" != oai ]; then
    cat > "$work/first-adapter-vlvm.toml" <<TOML
note = "VL and VM, five slices of one subject"
structures = ["VL", "VM"]
[[volume]]
images = "$work/9014209"
labels = "$data/thigh_vlvm_oai_9014209/123456.seg.nrrd"
map = { "Vastus Lateralis" = "VL", "Vastus Medialis" = "VM" }
side = "right"
slices = [1, 4, 7, 10, 13]
use = "both"
TOML
    table first-adapter-vlvm "VL and VM from five labelled slices, the other ten slices of the same subject" "--prompts automatic,true-box,zero-shot"
fi

if [ "$which" != vlvm ]; then
    {
        echo 'note = "nine structures, five slices of five subjects"'
        echo 'structures = ["RF", "VAS", "FEM", "GRA", "SAR", "ADD", "BF", "ST", "SM"]'
        map='map = { "1" = "RF", "2" = "VAS", "3" = "FEM", "4" = "GRA", "5" = "SAR", "6" = "ADD", "7" = "BF", "8" = "ST", "9" = "SM" }'
        n=0
        for f in "$data"/thigh_oai_ufats/*.tar.xz; do
            id=$(basename "$f" .tar.xz)
            printf '\n[[volume]]\nimages = "%s"\nlabels = "%s"\n%s\nside = "right"\n' \
                "$work/$id" "$work/$id/NRRD/$id-label.nrrd" "$map"
            # Every sixth subject gives one slice, from distal to proximal; fixed before any result was seen.
            if [ $((n % 6)) -eq 0 ] && [ $n -lt 30 ]; then
                echo "slices = [$((1 + n / 2))]"
            else
                echo 'use = "test"'
            fi
            n=$((n + 1))
        done
    } > "$work/first-adapter-oai.toml"
    table first-adapter-oai "Nine structures from five labelled slices of five subjects, on all other subjects" ""
fi
