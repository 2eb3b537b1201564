#!/usr/bin/env bash
# Builds what is measured and measures it: one table on standard output.
#   bench.sh [ARGUMENT...]      (those of `muster-fleet-sim bench`)
# Each program is built for itself, so that no feature that only tests want is
# in it.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

for package in muster-cli muster-agent muster-fleet-sim; do
    "${CARGO:-cargo}" build --quiet --release --locked --package "$package" --bins
done
exec "$(scripts/bin-dir.sh release)/muster-fleet-sim" bench "$@"
