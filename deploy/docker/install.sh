#!/bin/sh
# install-requirements VARIANT NAME: into /venv what requirements/NAME.txt and requirements/NAME-VARIANT.txt name, in the
# versions of constraints.txt. VARIANT cpu takes PyTorch without CUDA; cuda the wheels of PyPI, which bring it.
set -eu
variant=$1 name=$2
case $variant in
cpu) index=--extra-index-url=https://download.pytorch.org/whl/cpu ;; # its +cpu versions come before PyPI's
cuda) index= ;;
*)
    echo "VARIANT=$variant is unknown; choose cpu or cuda." >&2
    exit 2
    ;;
esac
set -- "--requirement=requirements/$name.txt"
[ ! -e "requirements/$name-$variant.txt" ] || set -- "$@" "--requirement=requirements/$name-$variant.txt"
# pyvips has no wheel; it is Python that finds pyvips-binary, and needs no compiler.
pip --python /venv/bin/python install --only-binary=:all: --no-binary=pyvips --constraint=constraints.txt \
    ${index:+"$index"} "$@"
pip --python /venv/bin/python check
