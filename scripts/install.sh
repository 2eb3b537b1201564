#!/usr/bin/env bash
# Installs what was built: `make install PREFIX=/usr/local [DESTDIR=...]`.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

PREFIX=${PREFIX:-/usr/local}
case $PREFIX in
    /*) ;;
    *)
        echo "error: PREFIX must be an absolute path, not \`$PREFIX\`" >&2
        exit 2
        ;;
esac
root=${DESTDIR:-}$PREFIX
bins=$(scripts/bin-dir.sh "${CARGO_PROFILE:-release}")

# What tests use to stop a program at a place must not be in what people run
# (see the crate muster-checkpoint; packages are built by name, with `-p`).
for program in muster muster-agent muster-bot; do
    if grep -q MUSTER_CHECKPOINTS "$bins/$program"; then
        echo "error: $bins/$program was built for tests; build it with \`cargo build --release --bins -p muster-cli -p muster-agent -p muster-bot\`" >&2
        exit 1
    fi
done

install -d "$root/bin" "$root/lib/systemd/system" "$root/lib/sysusers.d" "$root/share/doc/muster"
install -m 0755 "$bins/muster" "$bins/muster-agent" "$bins/muster-bot" "$root/bin/"
installed="muster, muster-agent and muster-bot"
# For hypervisors; the agent looks for it beside itself. It is there where it
# was built with libvirt.
if [ -n "$(scripts/features.sh 2>/dev/null)" ] && [ -x "$bins/muster-libvirt" ]; then
    install -m 0755 "$bins/muster-libvirt" "$root/bin/"
    installed="muster, muster-agent, muster-libvirt and muster-bot"
else
    echo "without muster-libvirt, which a hypervisor's agent needs: it is built where libvirt's headers are (Debian: libvirt-dev)"
fi
install -m 0644 packaging/sysusers.d/muster.conf "$root/lib/sysusers.d/"
install -m 0644 LICENSE "$root/share/doc/muster/"
for unit in packaging/systemd/*.service; do
    name=$(basename "$unit")
    # Units name places below the prefix; `|` cannot be in it.
    sed "s|/usr/local/|${PREFIX//|/}/|g" "$unit" >"$root/lib/systemd/system/$name"
    chmod 0644 "$root/lib/systemd/system/$name"
done
echo "installed $installed into $root/bin, their units into $root/lib/systemd/system"
