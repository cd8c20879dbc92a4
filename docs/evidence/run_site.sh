#!/bin/sh
# One site's adapter, as `scanside train` makes it from five labelled slices of five subjects on all cores: its time and memory, its
# accuracy on 16 unseen subjects, its SegEx calibrated and held against the truth, and other vendors' thighs without labels.
# Reads ../shared/data (or $1); writes tables and curves beside this script (aggregates, no names of labelled subjects) and pictures of
# other vendors' volumes to $WORK alone. The data are not part of the project. Needs python3 with SimpleITK and pydicom (SCANSIDE_PYTHON).
# Usage: [WORK=dir] docs/evidence/run_site.sh [data]
set -eu
cd "$(dirname "$0")/../.."
data=$(cd "${1:-../shared/data}" && pwd)
work=${WORK:-$(mktemp -d)}
python=${SCANSIDE_PYTHON:-python3}
mkdir -p "$work/subjects" "$work/vendors"
cargo build --release --quiet
run=target/release/scanside
commit=$(git rev-parse --short HEAD)
for f in "$data"/thigh_oai_ufats/*.tar.xz; do
    [ -d "$work/subjects/$(basename "$f" .tar.xz)" ] || tar -xJf "$f" -C "$work/subjects"
done
site=$work/site-nine
$run experiment manifest --plan docs/evidence/experiments.toml --subjects "$work/subjects" --arm shipped --slices 5 --out "$site"
# An adapter that a former run left in $WORK is evaluated as it is; the same seed would make the same one.
[ -f "$site.safetensors" ] ||
    $run train --manifest "$site.toml" --settings "$site-settings.toml" --out "$site.safetensors" --no-evaluation | tee "$site.log"
took=$(sed -n 's/^trained in //p' "$site.log")
set -- --fact "command=docs/evidence/run_site.sh" --fact "commit=$commit"
$run evaluate --manifest "$site.toml" --adapter "$site.safetensors" --out docs/evidence/site-nine --aggregates "$@" \
    --title "Nine structures from five labelled slices, 16 unseen subjects" --fact "training=$took" --prompts automatic,true-box
$run segex calibrate --manifest "$site.toml" --adapter "$site.safetensors" --out "$site-calibrated.safetensors"
$run segex validate --manifest "$site.toml" --adapter "$site-calibrated.safetensors" --out docs/evidence/segex "$@"
{
    echo 'note = "other vendors, no labels"'
    for f in "$data"/thigh_unlabelled_nifti/*.nii.gz; do
        name=$(basename "$f" .nii.gz)
        case $name in *mask*) continue ;; esac
        [ -d "$work/vendors/$name" ] || "$python" docs/evidence/nifti_to_dicom.py "$f" "$work/vendors/$name"
        printf '\n[[volume]]\nname = "%s"\nimages = "%s"\nuse = "unlabelled"\n' "$name" "$work/vendors/$name"
    done
} > "$work/vendors.toml"
$run survey --manifest "$work/vendors.toml" --adapter "$site-calibrated.safetensors" --out "$work/vendors/survey" --pictures "$@" \
    --title "Other vendors' thighs, without labels"
cp "$work/vendors/survey.md" docs/evidence/vendors.md
for f in "$work"/vendors/survey-*.svg; do
    cp "$f" "docs/evidence/vendors-${f##*survey-}"
done
