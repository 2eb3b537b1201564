#!/usr/bin/env bash
# Builds what is measured and measures it: one table on standard output.
#   bench.sh [ARGUMENT...]      (those of `muster-fleet-sim bench`)
# Only the programs are built, so that nothing that tests want is in them.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

read -ra features < <(scripts/features.sh --package 2>/dev/null) || true
"${CARGO:-cargo}" build --quiet --release --locked --bins \
    --package muster-cli --package muster-agent --package muster-bot --package muster-fleet-sim "${features[@]}"
exec "$(scripts/bin-dir.sh release)/muster-fleet-sim" bench "$@"
