#!/usr/bin/env bash
# Licences, advisories, bans and sources of the dependencies (deny.toml), where
# cargo-deny is installed.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
cargo=${CARGO:-cargo}

if ! "$cargo" deny --version >/dev/null 2>&1; then
    echo "skipped: cargo-deny is not installed"
    exit 0
fi
"$cargo" deny --workspace check --hide-inclusion-graph
