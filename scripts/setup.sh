#!/usr/bin/env bash
# Makes sure that this machine has what muster is built and tested with, and is
# silent when it has. Installs missing Debian packages by itself; never touches
# the Rust toolchain, but says what to do about it.
#
#   setup.sh rust  [COMPONENT...]   cargo only (and components like clippy)
#   setup.sh build [COMPONENT...]   and a C compiler and nats-server
#   setup.sh test  [COMPONENT...]   and what the end-to-end tests call, virtual
#                                   machines among it
#
# Ends with 2 when something is missing that it cannot install.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
PATH="$PATH:$HOME/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin"

# The oldest nats-server that muster works with.
NATS_MINIMUM=2.9.0
RUST_MINIMUM=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)

fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    [ "$#" -eq 0 ] || printf '%s\n' "$@" >&2
    exit 2
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# at_least MINIMUM VERSION
at_least() {
    [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]
}

# "cargo 1.95.0 (...)" and "nats-server: v2.9.10" alike.
version_of() {
    "$1" --version 2>/dev/null | grep -oE '[0-9]+\.[0-9]+(\.[0-9]+)?' | head -n 1
}

nats_ok() {
    has nats-server && at_least "$NATS_MINIMUM" "$(version_of nats-server)"
}

check_rust() {
    local component
    has "${CARGO:-cargo}" || fail \
        "Rust is not installed. muster needs $RUST_MINIMUM or newer; install it with rustup:" \
        "  see https://rustup.rs, then open a new shell and try again"
    at_least "$RUST_MINIMUM" "$(version_of "${CARGO:-cargo}")" || fail \
        "Rust $(version_of "${CARGO:-cargo}") is too old, muster needs $RUST_MINIMUM or newer:" \
        "  rustup update stable     (Debian's own rustc is older; see https://rustup.rs)"
    for component in "$@"; do
        local tool=$component
        [ "$component" = clippy ] && tool=cargo-clippy
        [ "$component" = rustfmt ] && tool=cargo-fmt
        has "$tool" || fail "\`$component\` is not installed; do: rustup component add $component"
    done
}

# Debian package for each thing that is missing; one a line.
missing_packages() {
    has cc || echo gcc
    # The C library's headers come with gcc only as a recommendation.
    if [ ! -e /usr/include/stdlib.h ]; then echo libc6-dev; fi
    has make || echo make
    nats_ok || echo nats-server
    if [ "$what" = test ]; then
        # The end-to-end tests ask as a user would, cut networks and shift clocks.
        has curl || echo curl
        has script || echo bsdutils
        has ip || echo iproute2
        has faketime || echo faketime
        has nft || echo nftables
    fi
}

# What some tests use where it is to be had; without it they are skipped, and
# scripts/test.sh says which.
wanted_packages() {
    has puppet || echo puppet-agent
    has inspircd || echo inspircd
    has atheme-services || echo atheme-services
    has ngircd || echo ngircd
    has dnf || echo dnf
    if ! { has rpm && has rpmbuild; }; then echo rpm; fi
    has createrepo_c || echo createrepo-c
}

# The same for virtual machines: a libvirt and a QEMU of the tests' own, and
# what a guest's disk is made with.
machine_packages() {
    has libvirtd || echo libvirt-daemon-system
    [ -e /usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so ] || echo libvirt-daemon-driver-qemu
    has virsh || echo libvirt-clients
    pkg-config --exists libvirt libvirt-qemu 2>/dev/null || printf '%s\n' libvirt-dev pkg-config
    has dnsmasq || echo dnsmasq-base
    has qemu-system-x86_64 || echo qemu-system-x86
    has qemu-img || echo qemu-utils
    has ping || echo iputils-ping
    has haproxy || echo haproxy
    # A link to busybox may be of a busybox that needs libraries.
    dpkg -s busybox-static >/dev/null 2>&1 || echo busybox-static
    has syslinux || echo syslinux
    [ -e /usr/lib/syslinux/mbr/mbr.bin ] || echo syslinux-common
    has mcopy || echo mtools
    has mkfs.ext4 || echo e2fsprogs
}

# Servers that a package would start, and that muster or its tests start by
# themselves where they need them.
SERVERS=(nats-server inspircd atheme-services ngircd puppet haproxy libvirtd virtlogd virtlockd)

# No server of a package that was just installed goes on running or starts
# with the machine: they would listen, some of them to everybody.
quiet() {
    local server unit
    for server in "$@"; do
        has "$server" || continue
        if has systemctl && [ -d /run/systemd/system ]; then
            for unit in "$server"{,-ro,-admin}.socket "$server.service"; do
                "${sudo[@]}" systemctl disable --now --quiet "$unit" >/dev/null 2>&1 || true
            done
        elif [ -x "/etc/init.d/$server" ]; then
            "${sudo[@]}" "/etc/init.d/$server" stop >/dev/null 2>&1 || true
        fi
    done
}

# What else apt-get must be told where these did not go in: a machine may have
# a newer qemu-utils (of Debian's backports), beside which there is no room for
# the QEMU of its release. Empty when that is not the obstacle.
obstacle() {
    local version have
    [[ " $* " == *" qemu-system-x86 "* ]] || return 0
    have=$(dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null) || return 0
    version=$(apt-cache policy qemu-system-x86 | sed -n 's/^ *Candidate: //p')
    if [ -n "$version" ] && [ "$version" != "$have" ] &&
        apt-get -q -y -s --no-remove install --no-install-recommends --allow-downgrades \
            "$@" "qemu-utils=$version" >/dev/null 2>&1; then
        printf '%s\n' --allow-downgrades "qemu-utils=$version"
    fi
}

install_packages() {
    local sudo=() new=() server more
    for server in "${SERVERS[@]}"; do
        has "$server" || new+=("$server")
    done
    if [ "$(id -u)" -ne 0 ]; then
        has sudo || fail "these packages are missing, and there is no sudo to install them: $*" \
            "  as root: apt-get install $*"
        sudo=(sudo)
        # Without a terminal nobody can type a password: fail, do not wait.
        [ -t 0 ] || sudo=(sudo -n)
    fi
    echo "installing: $*" >&2
    # What the machine has is left alone.
    local apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-remove)
    "${apt[@]}" update >&2 || fail "apt-get update failed" \
        "  install these by hand, then try again: $*"
    if ! "${apt[@]}" install --no-install-recommends "$@" >&2; then
        mapfile -t more < <(obstacle "$@")
        [ "${#more[@]}" -gt 0 ] && "${apt[@]}" install --no-install-recommends \
            "$@" "${more[@]}" >&2 || fail \
            "apt-get could not install: $*" \
            "  install them by hand, then try again"
    fi
    quiet "${new[@]}"
}

check_build() {
    local missing
    mapfile -t missing < <(missing_packages)
    if [ "${#missing[@]}" -eq 0 ]; then return 0; fi
    has apt-get || fail \
        "this machine lacks what muster is built and tested with, and it has no apt-get:" \
        "  install, by the names your system has for them: ${missing[*]}" \
        "  nats-server must be $NATS_MINIMUM or newer: https://github.com/nats-io/nats-server/releases"
    install_packages "${missing[@]}"
    nats_ok || fail \
        "nats-server ${NATS_MINIMUM} or newer is needed, this machine has $(version_of nats-server || echo none):" \
        "  https://github.com/nats-io/nats-server/releases has it as a single program; put it on the PATH"
    has cc || fail "there is still no C compiler (cc) on the PATH"
}

# check_wanted LIST: what one of the functions above names. One list that
# cannot be installed leaves the others alone.
check_wanted() {
    local wanted
    mapfile -t wanted < <("$1")
    [ "${#wanted[@]}" -gt 0 ] && has apt-get || return 0
    (install_packages "${wanted[@]}") || echo "going on without: ${wanted[*]}" >&2
}

what=${1:-build}
[ "$#" -eq 0 ] || shift
case $what in
    rust) check_rust "$@" ;;
    build | test)
        check_rust "$@"
        check_build
        if [ "$what" = test ]; then
            check_wanted wanted_packages
            check_wanted machine_packages
            if has apt-get; then scripts/guest-parts.sh || true; fi
        fi
        ;;
    *) fail "usage: setup.sh [rust|build|test] [COMPONENT...]" ;;
esac
