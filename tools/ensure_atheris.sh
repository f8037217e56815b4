#!/bin/sh
# Makes sure that there is atheris for `make hostile`, in a folder under build/, which git ignores. It is built for some
# Pythons only: where it cannot be installed, one line says what will be skipped.
set -eu

python=${1:?the Python that will import it}
folder=build/atheris

[ -e "$folder/.ready" ] && exit 0
echo "Installing atheris for fuzzing by coverage"
rm -rf "$folder"
if "$python" -m pip -qq --disable-pip-version-check install --only-binary :all: --target "$folder" "atheris>=3" 2>/dev/null; then
    touch "$folder/.ready"
else
    rm -rf "$folder"
    echo "There is no atheris for this Python and system: fuzzing by coverage is skipped, hypothesis does it alone." >&2
fi
