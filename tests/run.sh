#!/usr/bin/env bash
# All checks: formatting, lints, every test. Installs the peers that the tests talk to first.
# Without SCANSIDE_REQUIRE_PEERS and SCANSIDE_REQUIRE_DATA, a test whose peer or data is missing says SKIPPED.
set -euo pipefail
cd "$(dirname "$0")/.."
tests/setup-peers.sh
cargo fmt --check
cargo clippy --release --all-targets -- -D warnings
# The base weights once, so that tests in parallel find them in the cache.
cargo run --release --quiet -- weights fetch
cargo test --release
