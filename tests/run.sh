#!/usr/bin/env bash
# All checks: formatting, lints, every test. Installs the peers that the tests talk to first.
# Without SCANSIDE_REQUIRE_PEERS and SCANSIDE_REQUIRE_DATA, a test whose peer or data is missing says SKIPPED.
set -euo pipefail
cd "$(dirname "$0")/.."
tests/setup-peers.sh
# NVIDIA's libraries by themselves: their tests say SKIPPED without them, and SCANSIDE_REQUIRE_NVIDIA makes that a failure.
tests/setup-nvidia.sh || echo "SKIPPED: NVIDIA's libraries could not be fetched (tests/setup-nvidia.sh)" >&2
cargo fmt --check
# With what trains on a GPU; libtorch itself is not needed for that (tests/cuda.sh runs it).
# Nothing of what is linted is run, so the C libraries that come with it need not be optimised.
CFLAGS=-O0 cargo clippy --release --all-targets --features cuda,tch/doc-only -- -D warnings
# The base weights once, so that tests in parallel find them in the cache.
cargo run --release --quiet -- weights fetch
# With the output of passing tests, so that what was skipped is seen.
cargo test --release -- --show-output
