#!/bin/sh
# Makes sure that there is a dnsmasq for `make faults`, which runs one of its own on loopback. Installs it from the
# system's packages where that needs no password; otherwise one line says what will be skipped.
set -eu

command -v dnsmasq >/dev/null && exit 0

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
}

may_be_root() {
    [ "$(id -u)" -eq 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }
}

# dnsmasq-base: the program alone, without a service that would take over this machine's names.
install_dnsmasq() {
    may_be_root || return 1
    if command -v apt-get >/dev/null; then
        as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q &&
            as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends dnsmasq-base
    elif command -v dnf >/dev/null; then
        as_root dnf install -q -y dnsmasq
    elif command -v apk >/dev/null; then
        as_root apk add -q dnsmasq
    else
        return 1
    fi
}

echo "Installing dnsmasq for the faults of DNS"
if ! install_dnsmasq >/dev/null 2>&1 </dev/null || ! command -v dnsmasq >/dev/null; then
    echo "Without dnsmasq F6 is skipped. Install it (Debian, Ubuntu: sudo apt-get install dnsmasq-base) to run it." >&2
fi
