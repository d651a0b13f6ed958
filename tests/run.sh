#!/bin/sh
# Installs what is missing, builds the library's tests and runs every one of them.
set -eu

usage() {
  cat <<'TEXT'
usage: sh tests/run.sh [--compiler CXX] [--debug] [--sanitize | --sanitize-threads] [--no-native] [--only FOLDER]
                       [--build-dir DIR] [CTEST ARGUMENTS...]

Installs missing packages (Debian, Ubuntu; as root or with sudo), builds the tests, and runs them with ctest.
  --compiler CXX    the C++ compiler (default: $CXX, or g++)
  --debug           with assertions and for a debugger; squat::compiled for this machine alone, and no benchmarks
  --sanitize        with the address and undefined behaviour sanitizers and assertions; no CUDA either
  --sanitize-threads  the same with the thread sanitizer, for --only parallel
  --no-native       for the compiler's default instruction set instead of this machine's
  --only FOLDER     builds and runs the tests of one folder: allocation, cache, coding, cpu, cuda, engine, model,
                    parallel, reliability, serve
  --build-dir DIR   default: build/COMPILER[-debug][-sanitize[-threads]][-baseline]
  --help            this text
Further arguments go to ctest. SQUAT_LONG_TESTS=1 in the environment runs tests that have a long form in it.

For example:
  sh tests/run.sh                                        everything
  sh tests/run.sh -R '^cache/'                           builds everything, runs the tests of one folder
  sh tests/run.sh --debug --only cache -R Truncate       a few tests of one folder, to step through
  sh tests/run.sh --compiler clang++ --sanitize          what runs on the host, under sanitizers
  sh tests/run.sh --only cuda                            the CUDA backend, where there are nvcc and a GPU
TEXT
}

cd "$(dirname "$0")/.."
compiler=${CXX:-g++} type=Release sanitize=OFF native=ON only= build=
while [ $# -gt 0 ]; do
  case $1 in
    --compiler) compiler=${2:?--compiler needs a name}; shift 2 ;;
    --debug) type=Debug; shift ;;
    --sanitize) sanitize=ON; shift ;;
    --sanitize-threads) sanitize=thread; shift ;;
    --no-native) native=OFF; shift ;;
    --only) only=${2:?--only needs a folder}; shift 2 ;;
    --build-dir) build=${2:?--build-dir needs a folder}; shift 2 ;;
    --help | -h) usage; exit 0 ;;
    *) break ;;
  esac
done
if [ -z "$build" ]; then
  build=build/$(basename "$compiler")
  [ $type = Debug ] && build=$build-debug
  [ $sanitize = ON ] && build=$build-sanitize
  [ $sanitize = thread ] && build=$build-sanitize-threads
  [ $native = OFF ] && build=$build-baseline
fi

begin=$(date +%s)
. cmake/packages.sh
install_packages cmake ninja-build g++ libeigen3-dev libgtest-dev libbenchmark-dev libcli11-dev libfmt-dev libicu-dev \
  nlohmann-json3-dev libcpp-httplib-dev pkg-config
# For the NEON kernels; without them their test says that it is skipped.
install_packages g++-aarch64-linux-gnu qemu-user || echo "no AArch64 compiler or emulator to be had"
# For the server's clients.
install_packages curl python3-venv || echo "no curl or virtual environments to be had"
# For contexts that are split over ranks.
install_packages libopenmpi-dev openmpi-bin || echo "no MPI to be had"
install_packages iproute2 || echo "no network namespaces to be had"
# For the reader of snapshots in Python.
install_packages python3-numpy || echo "no NumPy to be had"
# For the reference of public headers.
install_packages doxygen || echo "no doxygen to be had"
case $compiler in
  *clang*) install_packages clang libomp-dev
           [ $sanitize != OFF ] && ! ls /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.asan-*.a >/dev/null 2>&1 &&
             install_packages "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev" ;;
esac

# Benchmarks, and CUDA sources wherever nvcc is there, are compiled once: sanitizers see what tests run on the host, over
# the kernels of this machine.
if [ $sanitize != OFF ]; then
  once="-DSQUAT_BUILD_CUDA=OFF -DSQUAT_BUILD_BENCHMARKS=OFF -DSQUAT_INSTRUCTION_SETS=native"
elif [ $type = Debug ]; then
  once="-DSQUAT_BUILD_BENCHMARKS=OFF -DSQUAT_INSTRUCTION_SETS=native -DENGINE_CUDA_WIDTHS=2_2"
else
  once="-DENGINE_CUDA_WIDTHS=2_2 -DSQUAT_BENCH_CUDA_WIDTHS=2"
fi

# Without a GPU nothing runs on one: PTX that is not optimised is enough, but for the layout that is compiled for two.
unoptimised=
if ! nvidia-smi -L >/dev/null 2>&1; then
  once="$once -DCMAKE_CUDA_ARCHITECTURES=90-virtual"
  unoptimised='-O0 -DNDEBUG -Xcicc=-O0'
fi

installed=$(date +%s)
# shellcheck disable=SC2086
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=$type -DCMAKE_CXX_COMPILER="$compiler" \
  -DSQUAT_SANITIZE=$sanitize -DSQUAT_NATIVE=$native $once ${unoptimised:+"-DCMAKE_CUDA_FLAGS_RELEASE=$unoptimised"}
cmake --build "$build" ${only:+--target "${only}_tests"}
built=$(date +%s)
status=0
# Suites of a folder's program have a capital letter; folders also have tests of other programs.
ctest --test-dir "$build" --output-on-failure -j "$(nproc)" ${only:+-R "^$only/[A-Z]"} "$@" || status=$?
echo "$build: packages $((installed - begin)) s, build $((built - installed)) s, tests $(($(date +%s) - built)) s"
exit $status
