#!/bin/sh
# Installs what is missing, builds the library's tests and runs every one of them.
set -eu

usage() {
  cat <<'TEXT'
usage: sh tests/run.sh [--compiler CXX] [--sanitize] [--no-native] [--build-dir DIR] [CTEST ARGUMENTS...]

Installs missing packages (Debian, Ubuntu; as root or with sudo), builds the tests, and runs them with ctest.
  --compiler CXX    the C++ compiler (default: $CXX, or g++)
  --sanitize        with the address and undefined behaviour sanitizers
  --no-native       for the compiler's default instruction set instead of this machine's
  --build-dir DIR   default: build/COMPILER[-sanitize][-baseline]
  --help            this text
Further arguments go to ctest, for example: -R cache
SQUAT_LONG_TESTS=1 in the environment runs tests that have a long form in it.
TEXT
}

cd "$(dirname "$0")/.."
compiler=${CXX:-g++} sanitize=OFF native=ON build=
while [ $# -gt 0 ]; do
  case $1 in
    --compiler) compiler=${2:?--compiler needs a name}; shift 2 ;;
    --sanitize) sanitize=ON; shift ;;
    --no-native) native=OFF; shift ;;
    --build-dir) build=${2:?--build-dir needs a folder}; shift 2 ;;
    --help | -h) usage; exit 0 ;;
    *) break ;;
  esac
done
if [ -z "$build" ]; then
  build=build/$(basename "$compiler")
  [ $sanitize = ON ] && build=$build-sanitize
  [ $native = OFF ] && build=$build-baseline
fi

begin=$(date +%s)
. cmake/packages.sh
install_packages cmake ninja-build g++ libeigen3-dev libgtest-dev libbenchmark-dev libcli11-dev libfmt-dev libicu-dev
# For the NEON kernels; without them their test says that it is skipped.
install_packages g++-aarch64-linux-gnu qemu-user || echo "no AArch64 compiler or emulator to be had"
case $compiler in
  *clang*) install_packages clang libomp-dev
           [ $sanitize = ON ] && ! ls /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.asan-*.a >/dev/null 2>&1 &&
             install_packages "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev" ;;
esac

# Benchmarks, and CUDA sources wherever nvcc is there, are compiled once: sanitizers see what tests run on the host, over
# the kernels of this machine.
if [ $sanitize = ON ]; then
  once="-DSQUAT_BUILD_CUDA=OFF -DSQUAT_BUILD_BENCHMARKS=OFF -DSQUAT_INSTRUCTION_SETS=native"
else
  once="-DLLAMA_CUDA_WIDTHS=2_2 -DSQUAT_BENCH_CUDA_WIDTHS=2"
fi

installed=$(date +%s)
# shellcheck disable=SC2086
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER="$compiler" \
  -DSQUAT_SANITIZE=$sanitize -DSQUAT_NATIVE=$native $once
cmake --build "$build"
built=$(date +%s)
status=0
ctest --test-dir "$build" --output-on-failure -j "$(nproc)" "$@" || status=$?
echo "$build: packages $((installed - begin)) s, build $((built - installed)) s, tests $(($(date +%s) - built)) s"
exit $status
