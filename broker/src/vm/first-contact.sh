#!/bin/sh
# Written by muster: makes this machine a node, once, with the invite on the
# disk that it was given. The invite is taken from there once it was used.
set -eu
dir=$(mktemp -d)
trap 'umount "$dir" 2>/dev/null || :; rmdir "$dir" 2>/dev/null || :' EXIT
mount -o ro -L CIDATA "$dir"
. "$dir/muster.env"
MUSTER_ENROLL_URL=$(printf '%s' "$MUSTER_BROKERS" | tr ' ' ',')
MUSTER_ENROLL_TOKEN=$MUSTER_TOKEN
export MUSTER_ENROLL_URL MUSTER_ENROLL_TOKEN
tries=0
until muster-agent enroll; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || exit 1
    sleep 3
done
systemctl enable --now muster-agent
