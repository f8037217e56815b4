#!/bin/sh
# Makes sure that there are promtool and prometheus for `make operate`. From Debian's package they are unpacked into
# build/prometheus, which needs no root, and not installed, which would start a Prometheus as a service.
set -eu
cd "$(dirname "$0")/.."

unpacked=build/prometheus/usr/bin
has_both() { command -v promtool >/dev/null && command -v prometheus >/dev/null; }

has_both && exit 0
[ -x "$unpacked/promtool" ] && [ -x "$unpacked/prometheus" ] && exit 0

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

# A folder of its own, which apt's unprivileged user may write to.
download() {
    folder=$(mktemp -d)
    chmod 755 "$folder"
    if ! (cd "$folder" && apt-get download -q prometheus); then
        # The lists of packages may be old, or not there at all.
        may_be_root && as_root apt-get update -q && (cd "$folder" && apt-get download -q prometheus) || return 1
    fi
    mkdir -p build/prometheus
    dpkg -x "$folder"/prometheus_*.deb build/prometheus
    rm -rf "$folder"
}

get_it() {
    if command -v apt-get >/dev/null && command -v dpkg >/dev/null; then
        download && [ -x "$unpacked/promtool" ]
    elif command -v apk >/dev/null && may_be_root; then
        as_root apk add -q prometheus && has_both
    elif command -v brew >/dev/null; then
        brew install -q prometheus && has_both
    else
        return 1
    fi
}

echo "Fetching promtool and prometheus for the tests"
log=$(mktemp)
if ! get_it >"$log" 2>&1 </dev/null; then
    tail -n 5 "$log" >&2
    rm -f "$log"
    echo "make operate needs promtool and prometheus. Put both on the PATH (Debian, Ubuntu: package prometheus)." >&2
    exit 1
fi
rm -f "$log"
