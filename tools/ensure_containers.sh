#!/bin/sh
# Makes sure that containers can be built and run here, for `make compose-test`: podman with runc and what its networks
# need, and debootstrap for base images where no registry is at hand. Installs what is missing from the system's packages
# and says so; where that cannot be done, one line says what to do.
set -eu

PACKAGES="podman runc iptables netavark aardvark-dns debootstrap debian-archive-keyring ca-certificates"

fail() {
    echo "make compose-test $1" >&2
    exit 1
}

[ "$(uname -s)" = Linux ] || fail "runs Linux containers and needs a Linux machine."
# Without root, podman reaches neither the containers' networks nor their processes as these tests do.
[ "$(id -u)" -eq 0 ] || fail "runs containers as root: try it with sudo."

is_complete() {
    for program in podman runc iptables debootstrap; do
        command -v "$program" >/dev/null || return 1
    done
    # These two are not on the PATH.
    for program in netavark aardvark-dns; do
        [ -x "/usr/lib/podman/$program" ] || [ -x "/usr/libexec/podman/$program" ] || return 1
    done
}

is_complete && exit 0
command -v apt-get >/dev/null || fail "needs $PACKAGES: install them, and try again."

echo "Installing for the containers, by apt-get: $PACKAGES"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
# Another apt-get may be at work: it is waited for.
if ! { apt-get update -q && apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 $PACKAGES; } \
    >"$log" 2>&1 </dev/null || ! is_complete; then
    tail -n 5 "$log" >&2
    fail "needs $PACKAGES, which apt-get did not install."
fi
