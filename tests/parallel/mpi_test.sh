#!/bin/sh
# A decode over MPI ranks of this machine: mpi_test.sh MPIEXEC PROGRAM RANKS runs it and compares with one cache;
# mpi_test.sh MPIEXEC PROGRAM RANKS dies kills a rank, which the others have to report within their time limit.
set -eu
mpiexec=$1 program=$2 ranks=$3 dies=${4-}
# Open MPI's words for: as root, as in a container; more ranks than cores; none of them bound to one.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_hwloc_base_binding_policy=none
if ! timeout 60 "$mpiexec" -n "$ranks" true; then
  echo "skipped: $mpiexec starts no programs on this machine"
  exit 77
fi

if [ -z "$dies" ]; then
  exec "$mpiexec" -n "$ranks" "$program" --tokens 3000 --steps 20 --check
fi

# Open MPI ends the ranks that are left, unless it is told not to. Each leaves its exit status in a file.
export OMPI_MCA_orte_enable_recovery=1 OMPI_MCA_orte_abort_on_non_zero_status=0
status=$(mktemp -d)
trap 'rm -rf "$status"' EXIT
begin=$(date +%s)
# shellcheck disable=SC2016
timeout 100 "$mpiexec" -n "$ranks" sh -c '
  status=$1
  shift
  "$@"
  echo $? >"$status/$OMPI_COMM_WORLD_RANK"' sh "$status" \
  "$program" --tokens 1000 --steps 20 --time-limit 3 --kill-rank 1 --kill-step 5 2>&1 | tee "$status/output" || true
took=$(($(date +%s) - begin))

failed=0
rank=0
while [ $rank -lt "$ranks" ]; do
  expected=1
  [ $rank = 1 ] && expected=137  # of SIGKILL
  found=$(cat "$status/$rank" 2>/dev/null || echo none)
  if [ "$found" != $expected ]; then echo "rank $rank: exit status $found instead of $expected"; failed=1; fi
  if [ $rank != 1 ] && ! grep -q "^rank $rank: no word from the other ranks for 3" "$status/output"; then
    echo "rank $rank did not say that another is gone"
    failed=1
  fi
  rank=$((rank + 1))
done
if [ $took -gt 60 ]; then echo "that took $took s"; failed=1; fi
exit $failed
