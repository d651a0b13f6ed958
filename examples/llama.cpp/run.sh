#!/bin/sh
# Our codings in a model that stock llama.cpp runs, from a clone: installs what is missing, fetches llama.cpp's source, builds
# its library and squat-llama-perplexity, and prints what each coding does to the model's predictions.
set -eu

usage() {
  cat <<'TEXT'
usage: sh examples/llama.cpp/run.sh [MODEL [TEXT-FILE]] [ARGUMENTS...]

MODEL is a GGUF file, or the name of a model that `sh examples/run.sh --help` lists (default: smollm2). TEXT-FILE's default is
one that every Debian machine has. ARGUMENTS go to squat-llama-perplexity:
  --windows N  --length N  --prompt N   which part of the text (default: 2, 1536, 512)
  --codings SPEC,SPEC,...               our codings
  --types NAME,NAME,...                 types of llama.cpp's own caches beside them (default: q8_0,q5_1,q4_0,iq4_nl)
  --threads N                           of llama.cpp

Packages come from Debian or Ubuntu (as root or with sudo), llama.cpp's source from the PyPI package llama-cpp-python, whose
sum is checked. Both and the model stay in build/. LLAMA_CPP=FOLDER in the environment takes another source.
TEXT
}

case ${1:-} in --help | -h) usage; exit 0 ;; esac
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build/llama.cpp
model=smollm2 text=/usr/share/common-licenses/GPL-3
case ${1:--} in -*) ;; *) model=$1; shift ;; esac
case ${1:--} in -*) ;; *) text=$1; shift ;; esac

. "$root/cmake/packages.sh"
install_packages cmake ninja-build g++ libeigen3-dev libcli11-dev libfmt-dev
if [ ! -f "$model" ]; then
  . "$root/examples/models.sh"
  fetch_model "$model" "$root/build/examples/model"
fi

source=${LLAMA_CPP:-$build/source}
if [ -z "${LLAMA_CPP:-}" ]; then
  . "$root/examples/llama.cpp/source.sh"
  fetch_source "$source"
fi

cmake -S "$root/examples/llama.cpp" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DLLAMA_CPP="$source" \
  -DSQUAT_INSTRUCTION_SETS=native
cmake --build "$build" --target squat-llama-perplexity
# A thread of OpenMP that waits for another spins for long, unless told otherwise.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"
exec "$build/squat-llama-perplexity" "$model" "$text" "$@"
