#!/usr/bin/env bash
# What is claimed of the appliance's units and arm64 build, from a bare Debian: each step with its time. With --all also of the packages, of
# installing them and of the booted system, which takes too long for every change; a booted arm64 system is cross/boot-test.sh arm64.
# Without --all the compiler does not optimise, which takes a third of the time, emulated tests included: another program than the
# package's, so in a folder of its own.
# Usage: cross/ci.sh [--all]
case "${1:-}" in
--all) all=1 ;;
"")
    all=
    export CROSS_FOLDER=cross-quick CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_DEBUG=false
    ;;
*)
    echo "usage: cross/ci.sh [--all]" >&2
    exit 2
    ;;
esac
. "$(dirname "$0")/lib.sh"

export CROSS_STD_FROM_SOURCE=1 CROSS_DENY_WARNINGS=1
table=()
begun=$SECONDS
step() {
    local words=$1 start=$SECONDS
    shift
    say "### $words"
    "$@" || die "failed: $words"
    table+=("$(printf '%5d s  %s' $((SECONDS - start)) "$words")")
}
units() {
    packages systemd
    local dir unit said
    dir=$(mktemp -d)
    cp systemd/usr/lib/systemd/system/* "$dir/"
    # Verify looks for the program; any will do.
    sed -i 's#/usr/bin/scanside #/bin/true #' "$dir"/*.service
    # It exits with 0 on a misspelt key, so whatever it says counts.
    said=$(SYSTEMD_UNIT_PATH="$dir:" systemd-analyze verify --man=no "$dir"/* 2>&1 >/dev/null | grep -F scanside || true)
    [ -z "$said" ] || die "systemd-analyze verify: $said"
    for unit in "$dir"/*.service; do
        systemd-analyze security --offline=yes --threshold=20 "$unit" | tail -1
    done
    rm -rf "$dir"
}

sbom_valid() {
    packages python3-venv
    [ -x "$CROSS/venv/bin/python" ] || python3 -m venv "$CROSS/venv"
    "$CROSS/venv/bin/python" -m pip install --quiet 'cyclonedx-python-lib[json-validation]==11.*'
    "$CROSS/venv/bin/python" - "$CROSS/stage/sbom.cdx.json" <<'EOF'
import pathlib, sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
wrong = JsonStrictValidator(SchemaVersion.V1_5).validate_str(pathlib.Path(sys.argv[1]).read_text())
sys.exit(f"the SBOM is not CycloneDX 1.5: {wrong}" if wrong else 0)
EOF
}

step "units: verify, exposure under 2.0" units
step "standard library from source" cross/std-from-source.sh
step "arm64 program, its GLIBC symbols" cross/build.sh
step "arm64 tests and DCMTK under qemu" cross/test.sh ${all:+--units}
if [ -n "$all" ]; then
    step "arm64 package, lintian" cross/package.sh arm64 --no-build
    step "arm64 package, second revision" cross/package.sh arm64 --no-build --revision 2
    step "arm64 package in an arm64 root" cross/install-test.sh arm64
    step "amd64 package, lintian" cross/package.sh amd64
    step "amd64 package, second revision" cross/package.sh amd64 --no-build --revision 2
    step "SBOM against CycloneDX's schema" sbom_valid
    [ -e "${SCANSIDE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/scanside}/mobile_sam.safetensors" ] ||
        step "base weights" "$PROGRAMS/scanside-amd64" weights fetch
    step "amd64 package in a booted system" cross/boot-test.sh amd64
fi
say
printf '%s\n' "${table[@]}" "$(printf '%5d s  in all' $((SECONDS - begun)))" >&2
