#!/bin/sh
# squat as llama.cpp's own memory, from a clone: installs what is missing, fetches llama.cpp's source, patches and builds it,
# and holds it against llama.cpp's own caches.
set -eu

usage() {
  cat <<'TEXT'
usage: sh examples/llama.cpp/memory/run.sh [build | check | bench] [MODEL [TEXT-FILE]]

  build   llama-cli, llama-server, llama-bench, llama-perplexity and llama-completion in build/llama-squat/bin, in which
          -ctk and -ctv take squat2, squat3, squat4, squat8 and squat16
  check   (the default) builds, and compares squat16 with llama.cpp's f16: perplexity, answers of a server of four slots,
          a saved slot, a context that is shifted; prints perplexities of the other widths
  bench   builds, and runs llama-bench: tokens/s behind 0, 4,096 and 16,384 tokens

MODEL is a GGUF file, or the name of a model that `sh examples/run.sh --help` lists (default: smollm2). TEXT-FILE's default is
one that every Debian machine has. Packages come from Debian or Ubuntu (as root or with sudo), llama.cpp's source from the
PyPI package llama-cpp-python, whose sum is checked. All stays in build/.
TEXT
}

root=$(cd "$(dirname "$0")/../../.." && pwd)
what=check model=smollm2 text=/usr/share/common-licenses/GPL-3
case ${1:-} in --help | -h) usage; exit 0 ;; build | check | bench) what=$1; shift ;; esac
model=${1:-$model} text=${2:-$text}

. "$root/cmake/packages.sh"
. "$root/examples/llama.cpp/source.sh"
install_packages cmake ninja-build g++ libeigen3-dev patch python3
fetch_source "$root/build/llama.cpp/source"

# A source of its own, patched anew where the patch is another one.
build=$root/build/llama-squat
patch=$root/examples/llama.cpp/memory/llama.cpp.patch
if ! cmp -s "$patch" "$build/source/applied.patch"; then
  rm -rf "$build/source"
  mkdir -p "$build"
  cp -R "$root/build/llama.cpp/source" "$build/source"
  patch --quiet --strip 1 --directory "$build/source" <"$patch"
  cp "$patch" "$build/source/applied.patch"
fi
cmake -S "$build/source" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DSQUAT="$root" -DSQUAT_INSTRUCTION_SETS=native \
  -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF \
  -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF
cmake --build "$build" --target llama-cli llama-server llama-bench llama-perplexity llama-completion
[ "$what" != build ] || exit 0
[ "$what" != check ] || cmake --build "$build" --target llama-quantize llama-squat-check

if [ ! -f "$model" ]; then
  . "$root/examples/models.sh"
  fetch_model "$model" "$root/build/examples/model"
fi
# A thread of OpenMP that waits for another spins for long, unless told otherwise.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"
if [ "$what" = bench ]; then
  for type in f16 q8_0 q4_0 squat2 squat4; do
    "$build/bin/llama-bench" -m "$model" -p 0 -n 64 -d 0,4096,16384 -fa 1 -ctk $type -ctv $type -o md
  done
  exit 0
fi
exec python3 "$root/examples/llama.cpp/memory/check.py" "$build/bin" "$model" "$text"
