#!/bin/sh
# Makes sure that there is a Chromium for the tests of the demo page. Installs it from the system's packages where that
# needs no password; otherwise one line says what to do. With WITHOUT_CHROMIUM=1 those tests are left out instead.
set -eu

here=$(dirname "$0")
[ -z "$("$here/find_chromium.sh")" ] || exit 0
[ -z "${WITHOUT_CHROMIUM:-}" ] || exit 0

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

install_chromium() {
    if command -v apt-get >/dev/null && may_be_root; then
        quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q &&
            quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium
    elif command -v dnf >/dev/null && may_be_root; then
        quietly as_root dnf install -q -y chromium
    elif command -v apk >/dev/null && may_be_root; then
        quietly as_root apk add -q chromium
    else
        return 1
    fi
}

echo "Installing Chromium for the tests"
if ! install_chromium || [ -z "$("$here/find_chromium.sh")" ]; then
    echo "The demo page is tested in Chromium. Install it (Debian: sudo apt-get install chromium), name another with" \
        "CHROMIUM=PATH, or leave those tests out with WITHOUT_CHROMIUM=1." >&2
    exit 1
fi
