#!/bin/sh
# Makes sure that `make acceptance` has what it needs and `make test` does not: Node, nginx, haproxy and curl from the
# system's packages, where that needs no password; clients, other people's and ours, in folders of their own under
# build/, which git ignores. What is there already is left alone.
set -eu

python=${1:?the Python to make a virtual environment with}
folder=build/acceptance
sdk_version=1.8.3

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
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

# On Debian a server's package starts it at once, unless this file forbids it for the time being.
without_starting() {
    policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then
        "$@"
        return
    fi
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod +x "$policy"
    status=0
    "$@" || status=$?
    as_root rm -f "$policy"
    return $status
}

missing=
for pair in node:nodejs npm:npm nginx:nginx haproxy:haproxy curl:curl; do
    command -v "${pair%%:*}" >/dev/null || [ -x "/usr/sbin/${pair%%:*}" ] || missing="$missing ${pair##*:}"
done
if [ -n "$missing" ]; then
    echo "Installing$missing for the acceptance tests"
    # shellcheck disable=SC2086  # a list of words
    if ! { command -v apt-get >/dev/null &&
        quietly as_root apt-get update -q &&
        without_starting quietly as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -q -y --no-install-recommends $missing; }; then
        echo "The acceptance tests need$missing. Install them (Debian, Ubuntu: sudo apt-get install$missing)" >&2
        echo "and try again." >&2
        exit 1
    fi
fi

if ! [ -e "$folder/sdk/.ready-$sdk_version" ]; then
    echo "Installing the inference-sdk in an environment of its own"
    rm -rf "$folder/sdk"
    "$python" -m venv "$folder/sdk"
    quietly "$folder/sdk/bin/python" -m pip -qq --disable-pip-version-check install "inference-sdk==$sdk_version"
    touch "$folder/sdk/.ready-$sdk_version"
fi

# What torch writes upstream's decoder for browsers with.
if ! "$python" -c "import onnx" 2>/dev/null; then
    echo "Installing onnx"
    quietly "$python" -m pip -qq --disable-pip-version-check install onnx
fi

# Only what a program that calls a server needs: no torch, and nothing of the services.
if ! [ -e "$folder/client/.ready" ] || [ pyproject.toml -nt "$folder/client/.ready" ]; then
    echo "Installing our client in an environment of its own"
    rm -rf "$folder/client"
    "$python" -m venv "$folder/client"
    quietly "$folder/client/bin/python" -m pip -qq --disable-pip-version-check install -e '.[client]'
    touch "$folder/client/.ready"
fi

# node finds packages in node_modules/ of the folders above a script, so each set is put where its scripts are copied.
for set in tests/acceptance/browser_decoder examples/node; do
    target=$folder/${set##*/}
    if ! [ -e "$target/.ready" ] || [ "$set/package.json" -nt "$target/.ready" ]; then
        echo "Installing the packages of $set"
        mkdir -p "$target"
        cp "$set/package.json" "$target/"
        quietly npm install --prefix "$target" --silent --no-package-lock --no-audit --no-fund
        touch "$target/.ready"
    fi
done
