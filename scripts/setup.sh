#!/usr/bin/env bash
# Makes sure that this machine has what muster is built and tested with, and is
# silent when it has. Installs missing Debian packages by itself; never touches
# the Rust toolchain, but says what to do about it.
#
#   setup.sh rust  [COMPONENT...]   cargo only (and components like clippy)
#   setup.sh build [COMPONENT...]   and a C compiler and nats-server
#   setup.sh test  [COMPONENT...]   and what the end-to-end tests call
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

install_packages() {
    local sudo=() had_nats=yes had_puppet=yes chat=() server
    has nats-server || had_nats=no
    has puppet || had_puppet=no
    for server in inspircd atheme-services ngircd; do
        has "$server" || chat+=("$server")
    done
    if [ "$(id -u)" -ne 0 ]; then
        has sudo || fail "these packages are missing, and there is no sudo to install them: $*" \
            "  as root: apt-get install $*"
        sudo=(sudo)
        # Without a terminal nobody can type a password: fail, do not wait.
        [ -t 0 ] || sudo=(sudo -n)
    fi
    echo "installing: $*" >&2
    local apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y)
    "${apt[@]}" update >&2 || fail "apt-get update failed" \
        "  install these by hand, then try again: $*"
    "${apt[@]}" install --no-install-recommends "$@" >&2 || fail \
        "apt-get could not install: $*" \
        "  install them by hand, then try again"
    # The package starts a server of its own on port 4222, open to everybody.
    # muster starts the servers that it needs by itself.
    if [ "$had_nats" = no ] && has systemctl && [ -d /run/systemd/system ]; then
        echo "switching off the nats-server service that the package started: muster runs its own" >&2
        "${sudo[@]}" systemctl disable --now --quiet nats-server.service >&2 || true
    fi
    # Servers of chat networks that would listen on this machine.
    for server in "${chat[@]}"; do
        if has "$server" && has systemctl && [ -d /run/systemd/system ]; then
            "${sudo[@]}" systemctl disable --now --quiet "$server.service" >&2 || true
        fi
    done
    # Puppet's would look for a master.
    if [ "$had_puppet" = no ] && has puppet && has systemctl && [ -d /run/systemd/system ]; then
        "${sudo[@]}" systemctl disable --now --quiet puppet.service >&2 || true
    fi
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

check_wanted() {
    local wanted
    mapfile -t wanted < <(wanted_packages)
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
        if [ "$what" = test ]; then check_wanted; fi
        ;;
    *) fail "usage: setup.sh [rust|build|test] [COMPONENT...]" ;;
esac
