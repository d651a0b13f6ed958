#!/bin/sh
# Decode steps of contexts split over the GPUs of this machine, one to all of them, plain and captured: split_context.sh
# PROGRAM, of examples/parallel, prints a line of JSON for each, and fails where outputs are not one cache's.
set -eu
program=$1
gpus=$(nvidia-smi -L | grep -c '^GPU')
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failed=0
for workload in '1 262144' '1 1048576' '16 16384'; do
  # shellcheck disable=SC2086
  set -- $workload
  ranks=1
  while [ "$ranks" -le "$gpus" ]; do
    run="$program --ranks $ranks --address $folder/$1x$2-$ranks --sequences $1 --tokens $2 --check --graph"
    rank=$((ranks - 1))
    while [ "$rank" -gt 0 ]; do
      $run --rank "$rank" &
      rank=$((rank - 1))
    done
    $run || failed=1
    wait
    ranks=$((2 * ranks))
  done
done
exit $failed
