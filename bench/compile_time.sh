#!/usr/bin/env bash
# Prints what it costs to compile against squat, as a Markdown table.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bench/compile_time.sh [COMPILER...]

Compiles a file that only includes <squat/squat.hpp>, the quickstart from headers alone and over squat::compiled, and,
where there is nvcc, a CUDA cache of one head_dim and width. Prints a Markdown table of CPU seconds (user and system,
the least of three runs) for each compiler (default: g++ and clang++, as far as they are there).
EIGEN=FOLDER in the environment names Eigen's headers (default: /usr/include/eigen3).
TEXT
}

case ${1:-} in --help | -h) usage; exit 0 ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
eigen=${EIGEN:-/usr/include/eigen3}
compilers=("$@")
if [ $# = 0 ]; then
  for name in g++ clang++; do command -v $name >/dev/null && compilers+=("$name"); done
fi

# The least CPU time of three runs.
cost() {
  local least='' run
  TIMEFORMAT='%U %S'
  for _ in 1 2 3; do
    run=$({ time "$@" >/dev/null; } 2>&1 | awk '{ printf "%.1f", $1 + $2 }')
    if [ -z "$least" ] || awk "BEGIN { exit !($run < $least) }"; then least=$run; fi
  done
  echo "$least"
}

echo '#include <squat/squat.hpp>' >"$work/include.cpp"
flags=(-std=c++20 -I"$root/include" -isystem "$eigen" -c -o "$work/object.o")
quickstart=$root/examples/quickstart/main.cpp

echo "$(uname -m), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)"
echo
echo '| compiler | include alone, -O0 | include alone, -O2 | quickstart, -O2 -march=native | over squat::compiled |'
echo '|---|---|---|---|---|'
for compiler in "${compilers[@]}"; do
  printf '| %s | %s | %s | %s | %s |\n' "$($compiler --version | head -1)" \
    "$(cost "$compiler" "${flags[@]}" -O0 "$work/include.cpp")" \
    "$(cost "$compiler" "${flags[@]}" -O2 "$work/include.cpp")" \
    "$(cost "$compiler" "${flags[@]}" -O2 -march=native "$quickstart")" \
    "$(cost "$compiler" "${flags[@]}" -O2 -DSQUAT_COMPILED "$quickstart")"
done
if command -v nvcc >/dev/null; then
  echo
  echo "A .cu with one head_dim and width, $(nvcc --version | sed -n 's/.*\(release [0-9.]*\).*/nvcc \1/p'), sm_90, -O2:" \
    "$(cost nvcc "${flags[@]}" -arch=sm_90 -O2 -DEIGEN_NO_CUDA "$root/tests/packaging/cuda_consumer/main.cu")"
fi
