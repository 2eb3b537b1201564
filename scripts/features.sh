#!/usr/bin/env bash
# Prints the flags with which cargo builds what this machine can build beyond
# the rest: the program that links libvirt, where libvirt's headers are.
#   features.sh               for `--workspace`
#   features.sh --package     for packages that are named by `-p`
# Without the headers it prints nothing, and says so on standard error.
set -euo pipefail

if pkg-config --exists libvirt libvirt-qemu 2>/dev/null; then
    [ "${1:-}" != --package ] || printf -- '-p muster-libvirt '
    printf -- '--features muster-libvirt/libvirt\n'
else
    echo "SKIPPED: the program for virtual machines (muster-libvirt): libvirt's headers are not on this machine (Debian: libvirt-dev and pkg-config)" >&2
fi
