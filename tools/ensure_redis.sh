#!/bin/sh
# Makes sure that there is a redis-server for the tests, which start their own. Installs it from the system's packages
# where that needs no password; otherwise one line says what to do.
set -eu

command -v redis-server >/dev/null && exit 0

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

quietly() {
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1 </dev/null; then
        tail -n 5 "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

install_redis() {
    if command -v apt-get >/dev/null && may_be_root; then
        quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q &&
            quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends redis-server
    elif command -v dnf >/dev/null && may_be_root; then
        quietly as_root dnf install -q -y redis
    elif command -v apk >/dev/null && may_be_root; then
        quietly as_root apk add -q redis
    elif command -v brew >/dev/null; then
        quietly brew install -q redis
    else
        return 1
    fi
}

echo "Installing redis-server for the tests"
if ! install_redis || ! command -v redis-server >/dev/null; then
    echo "The tests need redis-server. Install it (Debian, Ubuntu: sudo apt-get install redis-server) and try again." >&2
    exit 1
fi
