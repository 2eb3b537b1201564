#!/usr/bin/env bash
# Fetches what the guests of the tests are made of and is not installed on the
# machine that makes them: Debian's kernel for virtual machines, and the QEMU
# guest agent. Packages are downloaded and unpacked, never installed. Says
# nothing when they are there already.
#   guest-parts.sh            into the build directory, `guest/parts`
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

target=$(scripts/bin-dir.sh guest)
parts=$target/parts
[ ! -d "$parts" ] || exit 0

if [ "$(dpkg --print-architecture 2>/dev/null)" != amd64 ]; then
    echo "going on without a guest: one is made on Debian's amd64 only" >&2
    exit 1
fi
mkdir -p "$target"
work=$(mktemp -d "$target/parts.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The package without a version only names the newest one.
kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
if [ -z "$kernel" ]; then
    echo "going on without a guest: apt-get knows no linux-image-cloud-amd64" >&2
    exit 1
fi
echo "fetching $kernel and qemu-guest-agent for the guests of the tests" >&2
(cd "$work" && apt-get -q download "$kernel" qemu-guest-agent >&2)
for package in "$work"/*.deb; do
    dpkg-deb -x "$package" "$work/root"
done
release=${kernel#linux-image-}
mkdir -p "$work/parts/modules/lib/modules"
mv "$work/root/boot/vmlinuz-$release" "$work/parts/vmlinuz"
mv "$work/root/lib/modules/$release" "$work/parts/modules/lib/modules/"
mv "$work/root/usr/sbin/qemu-ga" "$work/parts/qemu-ga"
# What each module needs; a package that is installed makes this by itself.
busybox depmod -b "$work/parts/modules" "$release"
printf '%s\n' "$release" >"$work/parts/release"
# Whole, or not there. Another of these may have been faster.
mv -T "$work/parts" "$parts" 2>/dev/null || [ -d "$parts" ]
