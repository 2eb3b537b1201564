#!/usr/bin/env bash
# Builds the programs and runs all tests: with cargo-nextest where it is
# installed, else with cargo test, and the examples in the documentation.
# `make test` calls this after scripts/setup.sh. Arguments go to the test runner.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
cargo=${CARGO:-cargo}

read -ra features < <(scripts/features.sh) || true

# The end-to-end tests start the real programs; cargo does not know that.
"$cargo" build --workspace --bins "${features[@]}"
MUSTER_BIN_DIR=$(scripts/bin-dir.sh)
export MUSTER_BIN_DIR

# A snapshot that differs is a failure, never a question or a new file.
export INSTA_UPDATE=no INSTA_FORCE_PASS=0

# A test that needs what this machine has not writes here why it did nothing.
# What is named in MUSTER_TESTS_REQUIRE fails instead.
MUSTER_TESTS_SKIPPED=$(mktemp)
export MUSTER_TESTS_SKIPPED
trap 'rm -f "$MUSTER_TESTS_SKIPPED"' EXIT

if "$cargo" nextest --version >/dev/null 2>&1; then
    "$cargo" nextest run --workspace "${features[@]}" "$@"
else
    # The documentation's examples follow for both runners.
    "$cargo" test --workspace --lib --bins --tests --examples "${features[@]}" "$@"
fi
"$cargo" test --workspace --doc --quiet "${features[@]}"

for program in puppet dnf rpmbuild createrepo_c; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null 2>&1 ||
        echo "SKIPPED: the tests that need $program, which is not on this machine"
done
if [ -s "$MUSTER_TESTS_SKIPPED" ]; then
    echo "SKIPPED: $(wc -l <"$MUSTER_TESTS_SKIPPED") tests that need what is not on this machine:"
    sort "$MUSTER_TESTS_SKIPPED" | sed 's/^/    /'
fi
