#!/bin/sh
# The whole way of an adapter against a running service: five labels, train, evaluate, bundle, two signatures, sideload, shadow, probation,
# committed, a series served by it, back, forth, and the answer to the training host. On phantoms with few steps, which says nothing about
# patients; with a folder of data ($1, as docs/evidence/run_site.sh reads it) on five labelled slices of five subjects and other subjects'
# series, with the shipped settings unless STEPS is given.
# With WORK of an earlier run it takes that one's adapter and evaluation.
# Usage: [STEPS=n] [WORK=dir] [SCANSIDE=program] tests/sideload/journey.sh [data]
set -eu
cd "$(dirname "$0")/../.."
data=${1:+$(cd "$1" && pwd)}
work=${WORK:-$(mktemp -d)}
mkdir -p "$work"
run=${SCANSIDE:-target/release/scanside}
say() { printf '\n== %s\n' "$*"; }

say "five labels"
if [ -n "$data" ]; then
    mkdir -p "$work/subjects"
    for f in "$data"/thigh_oai_ufats/*.tar.xz; do
        [ -d "$work/subjects/$(basename "$f" .tar.xz)" ] || tar -xJf "$f" -C "$work/subjects"
    done
    $run experiment manifest --plan docs/evidence/experiments.toml --subjects "$work/subjects" --arm shipped --slices 5 --out "$work/site"
    set -- --settings "$work/site-settings.toml" ${STEPS:+--steps "$STEPS"}
    # Series of subjects whose labels were not used.
    awk '/^images/ { i = $3 } /^use = "test"/ { gsub(/"/, "", i); print i }' "$work/site.toml" | head -n 4 > "$work/series"
else
    {
        echo 'note = "phantoms"'
        echo 'structures = ["VL", "VM"]'
        for n in 1 2 3 4 5; do
            printf '\n[[volume]]\nname = "phantom %d"\nphantom = %d\nslices = [%d]\n' $((1000 + n)) $((1000 + n)) $((3 * n - 1))
        done
        printf '\n[[volume]]\nname = "phantom 2000"\nphantom = 2000\nuse = "test"\n'
    } > "$work/site.toml"
    cat > "$work/site-settings.toml" <<TOML
input_size = 224
coarse_size = 0
pseudo_steps = 0
prompting = { crops = 0 }
TOML
    set -- --settings "$work/site-settings.toml" --steps "${STEPS:-60}"
    : > "$work/series"
    for n in 1 2 3 4; do
        [ -d "$work/phantom-$n" ] || $run phantom --seed $((3000 + n)) --out "$work/phantom-$n" > /dev/null
        echo "$work/phantom-$n/series" >> "$work/series"
    done
fi

say "train and evaluate"
[ -f "$work/site.safetensors" ] ||
    $run train --manifest "$work/site.toml" --out "$work/site.safetensors" --name site --release 2 --seed 1 --no-evaluation "$@"
[ -f "$work/evaluation.json" ] ||
    $run evaluate --manifest "$work/site.toml" --adapter "$work/site.safetensors" --prompts automatic --out "$work/evaluation" --aggregates

say "keys, root, bundle, two signatures"
year=$(date -u +%Y)
if [ ! -d "$work/roots" ]; then
    mkdir -p "$work/keys"
    for k in anna ben cora; do $run keys generate "$work/keys/$k"; done
    $run keys root make --roots "$work/roots" --root-key "$work/keys/anna.pub.pem" --root-key "$work/keys/ben.pub.pem" \
        --release-key "$work/keys/anna.pub.pem" --release-key "$work/keys/cora.pub.pem" --expires $((year + 5))-01-01
    for k in anna ben; do $run keys root sign --roots "$work/roots" --key "$work/keys/$k.pem"; done
fi
$run bundle make --adapter "$work/site.safetensors" --evidence "$work/evaluation.json" --roots "$work/roots" --version 2 \
    --expires $((year + 1))-12-31 --note "journey" --out "$work/site-2.bundle"
for k in anna cora; do $run bundle sign "$work/site-2.bundle" --key "$work/keys/$k.pem"; done
$run bundle inspect "$work/site-2.bundle"

say "a box with the phantom adapter, and its archive"
cat > "$work/box.toml" <<TOML
[station]
listen = "127.0.0.1:0"
[storage]
state_dir = "$work/state"
min_free_mb = 64
[[modality]]
ae_title = "MR1"
[series]
quiet_seconds = 2
# Short stages, and gates that a first adapter against the phantom's passes: what they ask for at a site stands in docs/sideload.md.
[sideload]
shadow_series = 1
shadow_least_dice = 0.0
shadow_lost_score = 100
probation_series = 1
probation_least_verdict = "D"
most_slowdown = 0
TOML
$run serve -c "$work/box.toml" > "$work/serve.out" 2> "$work/serve.log" &
service=$!
trap 'kill $service 2> /dev/null || true' EXIT
until grep -q '^ready on' "$work/serve.out"; do
    kill -0 $service || { cat "$work/serve.log"; exit 1; }
    sleep 0.2
done
address=$(sed -n 's/^ready on //p' "$work/serve.out")
# A person types the fingerprint from the training host's paper.
paper=$($run keys root show --roots "$work/roots" | sed -n 's/.*fingerprint \([0-9a-f ]*\).*/\1/p')
$run keys trust "$work/roots/1.root.json" --fingerprint "$paper" -c "$work/box.toml"

# Waits until a word stands in what a command prints; 30 minutes are a hang.
await() {
    want=$1
    shift
    n=0
    until "$@" 2> /dev/null | grep -q "$want"; do
        n=$((n + 1))
        [ $n -lt 9000 ] || { echo "never: $want"; "$@"; cat "$work/serve.log"; exit 1; }
        sleep 0.2
    done
}
served=0
serve() {
    served=$((served + 1))
    # The images alone: beside a subject's lie its labels.
    find "$(sed -n "${served}p" "$work/series")" -type f ! -path '*/NRRD/*' -exec $run send --from MR1 "$address" {} +
    await "^done $served\$" jobs_done
    $run status -c "$work/box.toml" | sed -n 's/^ *[0-9]*  [0-9.]*  \(generation.*\)/  result: \1/p' | head -n 1
}
jobs_done() { echo "done $($run status -c "$work/box.toml" --json | grep -c '"state": "done"')"; }
adapters() { $run adapters -c "$work/box.toml" "$@" || true; }

say "sideload"
$run sideload "$work/site-2.bundle" -c "$work/box.toml"
await 'site 2 .*shadow' adapters
say "shadow"
serve
await 'site 2 .*probation' adapters
say "probation"
serve
await 'site 2 .*committed' adapters
say "a series served by the committed release"
serve
adapters
say "back, and forth again"
$run adapters -c "$work/box.toml" rollback --by journey
serve
$run adapters -c "$work/box.toml" rollback 2 --by journey
say "the answer to the training host"
rm -f "$work/answer.json"
$run adapters -c "$work/box.toml" export "$work/answer.json"
$run evaluate --feedback "$work/answer.json"
say "done; everything lies in $work"
