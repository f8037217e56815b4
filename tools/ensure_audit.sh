#!/bin/sh
# Makes sure that there are the tools of `make audit` and `make sbom`, in an environment of their own under build/, which
# git ignores: they look at .venv, and must not be found in it.
set -eu

python=${1:?the Python to make a virtual environment with}
folder=build/audit

[ -e "$folder/.ready" ] && exit 0
echo "Installing pip-audit and cyclonedx-bom in an environment of their own"
rm -rf "$folder"
"$python" -m venv "$folder"
"$folder/bin/python" -m pip -qq --disable-pip-version-check install "pip-audit>=2.10" "cyclonedx-bom>=7.3"
touch "$folder/.ready"
