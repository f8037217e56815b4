#!/bin/sh
# Runs buf: the one on the PATH, otherwise one from npm in build/, which git ignores. Where there is neither, as in a
# closed network, it says so and succeeds: the protos are checked again wherever there is one.
set -eu

: "${BUF_VERSION:?is set by the Makefile}"

if command -v buf >/dev/null; then
    exec buf "$@"
fi

folder=build/buf-$BUF_VERSION
program=$folder/node_modules/.bin/buf
if ! [ -x "$program" ]; then
    mkdir -p "$folder"
    if ! command -v npm >/dev/null || ! npm install --silent --no-save --no-package-lock --no-audit --no-fund \
        --prefix "$folder" "@bufbuild/buf@$BUF_VERSION" >/dev/null 2>&1; then
        echo "SKIPPED: buf $1 (there is no buf here, and npm cannot install it)" >&2
        exit 0
    fi
fi
exec "$program" "$@"
