#!/bin/sh
# A decode over two GPUs of this machine: nccl_test.sh PROGRAM compares with one cache, nccl_test.sh PROGRAM graph by steps
# that are captured and replayed; nccl_test.sh PROGRAM dies kills a rank, which the other has to report within its time limit.
set -eu
program=$1 what=${2-}
if [ "$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')" -lt 2 ]; then
  echo "skipped: two GPUs are needed"
  exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
set -- --ranks 2 --address "$folder/address" --sequences 3 --tokens 3000 --time-limit 5

if [ "$what" = graph ]; then set -- "$@" --graph; fi
if [ "$what" != dies ]; then
  "$program" "$@" --rank 1 --steps 300 --check &
  "$program" "$@" --rank 0 --steps 300 --check
  wait $!
  exit
fi

"$program" "$@" --rank 1 --steps 1000000 &
other=$!
(sleep 15 && kill -KILL $other) &
begin=$(date +%s)
status=0
"$program" "$@" --rank 0 --steps 1000000 2>"$folder/output" || status=$?
cat "$folder/output"
if [ $status != 1 ] || ! grep -q '^rank 0: no word from the other ranks for 5' "$folder/output"; then
  echo "exit status $status, and 1 was expected, with a word of rank 1's silence"
  exit 1
fi
if [ $(($(date +%s) - begin)) -gt 60 ]; then
  echo "that took too long"
  exit 1
fi
