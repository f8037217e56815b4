#!/bin/sh
# Installs torch: tools/install_torch.sh PYTHON [PIP OPTION]...
#
#   TORCH=cpu    the CPU build. On macOS that is the only one. On Linux the default package carries several GB of CUDA
#                libraries and the CPU build is a version of its own, "+cpu". pip looks for it where it is configured to
#                look, and at TORCH_INDEX if that is set: PyTorch's "Get Started" page shows the address of its CPU
#                index. Where there is none, the default package is installed after all: it runs on a CPU as well.
#   TORCH=cuda   the default package, or what TORCH_INDEX has for another release of CUDA.
#
# The version is exact: a range would let pip prefer the newest CUDA build over a CPU build that lies at hand.
set -eu

VERSION=2.13.0

python=$1
shift

pip_install() {
    "$python" -m pip -qq --disable-pip-version-check install "$@"
}

case "${TORCH:=cpu}" in
cpu | cuda) ;;
*)
    echo "TORCH must be cpu or cuda, not '$TORCH'." >&2
    exit 2
    ;;
esac

echo "Installing torch $VERSION ($TORCH)"
index=${TORCH_INDEX:+--extra-index-url $TORCH_INDEX}
if [ "$(uname -s)" != Linux ]; then
    pip_install "$@" "torch==$VERSION"
elif [ "$TORCH" = cuda ]; then
    # "===" is this very version, and no "+cpu" that lies at hand; but an index for CUDA has a "+cu..." of its own.
    if [ -n "$index" ]; then equal="=="; else equal="==="; fi
    pip_install "$@" --upgrade $index "torch$equal$VERSION"
elif ! pip_install "$@" $index "torch==$VERSION+cpu" 2>/dev/null; then
    echo "pip finds no CPU build of torch: installing the default one, several GB with CUDA on most machines." >&2
    echo "To have the small one, stop this and give the address of PyTorch's CPU index as TORCH_INDEX=..." >&2
    echo "(choose Pip and CPU on https://pytorch.org/get-started/locally/ to see it)." >&2
    pip_install "$@" "torch==$VERSION"
fi
