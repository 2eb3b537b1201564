#!/usr/bin/env bash
# Prints the directory in which cargo puts muster's programs.
#   bin-dir.sh [PROFILE DIRECTORY]     (debug, or release)
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
target=$("${CARGO:-cargo}" metadata --no-deps --format-version 1 |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
if [ -z "$target" ]; then
    echo "error: cargo does not say where it builds" >&2
    exit 1
fi
printf '%s/%s\n' "$target" "${1:-debug}"
