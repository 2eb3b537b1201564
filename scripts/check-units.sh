#!/usr/bin/env bash
# Lets systemd check muster's units, where systemd-analyze is installed.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

if ! command -v systemd-analyze >/dev/null 2>&1; then
    echo "skipped: systemd-analyze is not installed"
    exit 0
fi
# The check wants the programs to exist; here they need not.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for unit in packaging/systemd/*.service; do
    sed -E "s|^(Exec[A-Za-z]*=[-+!@]*)/[^ ]*|\1$(command -v true)|; s/^User=.*|^Group=.*//" \
        "$unit" >"$work/$(basename "$unit")"
done
# Warnings end with 0; any word about our own units is a failure.
said=$(systemd-analyze verify --man=no "$work"/*.service 2>&1) || true
said=$(grep -F "$work" <<<"$said" || true)
if [ -n "$said" ]; then
    printf 'error: systemd finds fault with packaging/systemd:\n%s\n' "$said" >&2
    exit 1
fi
