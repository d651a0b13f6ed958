#!/bin/sh
# The Python package from a clone: builds and installs it beside transformers, and runs its tests. What is missing comes from
# Debian or Ubuntu and from PyPI. Where there are a GPU and nvcc, the package has kernels for that GPU, too.
#
# usage: run.sh [--native] [FOLDER]     FOLDER: of the virtual environment; default build/python. --native: without transformers
set -eu
native=false
case ${1:-} in
  -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit ;;
  --native) native=true; shift ;;
esac
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$here/../..
folder=${1:-$root/build/python}
. "$root/cmake/packages.sh"
install_packages g++ cmake ninja-build libeigen3-dev python3-dev python3-venv
python3 -m venv "$folder"
if nvidia-smi -L >/dev/null 2>&1; then
  architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
  [ "$architecture" != 90 ] || architecture=90a  # with Hopper's matrix instructions
  set -- -C cmake.define.CMAKE_CUDA_ARCHITECTURES="$architecture-real"
else
  set -- -C cmake.define.SQUAT_KV_CUDA=OFF --extra-index-url https://download.pytorch.org/whl/cpu
fi
if $native; then
  "$folder/bin/pip" install -q "$@" "$here"
else
  "$folder/bin/pip" install -q "$@" "$here[transformers]"
fi
"$folder/bin/python" "$root/tests/transformers/native_test.py"
$native || "$folder/bin/python" "$root/tests/transformers/models_test.py"
