#!/usr/bin/env bash
# Runs the appliance's tests as arm64 programs under qemu-user, and lets DCMTK on this machine talk to the arm64 program. After
# cross/build.sh. What trains, what only reads tables, and what needs minutes of emulated arithmetic is left to the native run.
# Usage: cross/test.sh [--units]; with --units the library's unit tests too, for which it is compiled once more.
. "$(dirname "$0")/lib.sh"

units=
case "${1:-}" in
--units) units=--lib ;;
"") ;;
*) die "usage: cross/test.sh [--units]" ;;
esac

[ -e "$CROSS/sysroot" ] || die "cross/build.sh comes first"
packages dcmtk jq xz-utils
emulation
arm64_environment "$(cat "$CROSS/sysroot")"

### The project's own tests
# What takes seconds under emulation: bytes that come in, state, geometry, both sides of the vector units; and NVIDIA's own arm64 libraries.
tests/setup-nvidia.sh aarch64 || say "SKIPPED: NVIDIA's arm64 libraries could not be fetched (tests/setup-nvidia.sh)"
tests=(${units:+"$units"} --test receive_dcmtk --test receive_durable --test receive_hostile --test codecs_dcmtk --test series_real --test tensorrt_nvidia)
skipped=(
    # They train or run whole networks.
    --skip model:: --skip pipeline:: --skip adapter:: --skip segex:: --skip daemon::drift --skip engine::tensorrt
    --skip cli::engine --skip image::phantom
    # TensorRT-RTX is not made for arm64.
    --skip nvidias_parser_and_builder_take_our_graphs
    # Measures this process's memory, which is the emulator's here.
    --skip a_pdu_that_claims_a_gigabyte_and_a_half_is_aborted
)
cargo test --release --locked --no-default-features --target $TRIPLE "${tests[@]}" -- "${skipped[@]}"

### The program and DCMTK
program="$PROGRAMS/scanside-arm64"
dir=$(mktemp -d)
server=
finish() {
    # Not by TERM: it may have begun to segment, and an emulated slice takes minutes.
    [ -z "$server" ] || kill -KILL "$server" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$dir"
}
trap finish EXIT
cat >"$dir/scanside.toml" <<EOF
[station]
listen = "127.0.0.1:0"
[storage]
state_dir = "$dir/state"
min_free_mb = 16
[[modality]]
ae_title = "MR1"
EOF
archive=../shared/data/thigh_oai_ufats/9001695.tar.xz
mkdir "$dir/series"
if [ -e "$archive" ]; then
    what="a real series"
    tar -xJf "$archive" -C "$dir" --exclude=NRRD
    find "$dir/9001695" -maxdepth 1 -type f -exec mv {} "$dir/series/" \;
elif [ -n "${SCANSIDE_REQUIRE_DATA:-}" ]; then
    die "required data is missing: $archive"
else
    say "SKIPPED: no real series at $archive; a phantom takes its place"
    what="a phantom's series"
    "$program" phantom --out "$dir/phantom" >/dev/null
    mv "$dir"/phantom/series/* "$dir/series/"
fi
files=("$dir"/series/*)
[ ${#files[@]} = 15 ] || die "15 slices expected, ${#files[@]} found"
"$program" serve -c "$dir/scanside.toml" >"$dir/out" 2>"$dir/log" &
server=$!
for _ in $(seq 600); do
    grep -q '^ready on' "$dir/out" && break
    kill -0 $server 2>/dev/null || die "the arm64 program ended: $(cat "$dir/log")"
    sleep 0.5
done
port=$(sed -n 's/^ready on 127.0.0.1:\([0-9]*\).*/\1/p' "$dir/out")
[ -n "$port" ] || die "the arm64 program does not listen: $(cat "$dir/log")"
echoscu -aet MR1 -aec SCANSIDE 127.0.0.1 "$port" || die "no C-ECHO from the arm64 program"
say "the arm64 program answers DCMTK's C-ECHO"
! echoscu -aet STRANGER -aec SCANSIDE 127.0.0.1 "$port" 2>/dev/null || die "the arm64 program let a stranger in"
dcmsend -aet MR1 -aec SCANSIDE 127.0.0.1 "$port" "${files[@]}" || die "dcmsend failed: $(cat "$dir/log")"
# The rows were committed before dcmsend was answered.
"$program" status --json -c "$dir/scanside.toml" >"$dir/status"
jq -e --argjson n ${#files[@]} '([.open[].pending] + [.jobs[].instances] | add) == $n' "$dir/status" >/dev/null ||
    die "the arm64 program does not have the ${#files[@]} objects: $(cat "$dir/status")"
# Files as they came: the bytes of the pixels of each are in the spool.
[ "$(find "$dir/state/spool/objects" -type f | wc -l)" = ${#files[@]} ] || die "the spool has not ${#files[@]} files"
say "the arm64 program took $what of ${#files[@]} slices from DCMTK's dcmsend, all of them durable"
