#!/bin/sh
# A decode over MPI ranks that reach each other over TCP alone, as those of two machines do: namespaces_test.sh MPIEXEC PROGRAM
# starts one in each of two network namespaces with addresses of their own. Needs root, iproute2 and Open MPI.
set -eu
mpiexec=$1 program=$2
skip() {
  echo "skipped: $1"
  exit 77
}
[ "$(id -u)" = 0 ] || skip 'network namespaces need root'
command -v ip >/dev/null || skip 'no iproute2 (Debian: iproute2)'
"$mpiexec" --version | grep -qE 'OpenRTE|Open MPI' || skip "$mpiexec is not Open MPI's"

first=squat_$$_a second=squat_$$_b
folder=$(mktemp -d)
clean_up() {
  ip netns del $first 2>/dev/null || true
  ip netns del $second 2>/dev/null || true
  rm -rf "$folder"
}
trap clean_up EXIT
ip netns add $first 2>"$folder/error" || skip "$(cat "$folder/error")"
ip netns add $second
ip link add squat_a netns $first type veth peer name squat_b netns $second 2>"$folder/error" || skip "$(cat "$folder/error")"
ip -n $first address add 192.0.2.1/24 dev squat_a
ip -n $second address add 192.0.2.2/24 dev squat_b
for side in "$first squat_a" "$second squat_b"; do
  ip -n "${side% *}" link set lo up
  ip -n "${side% *}" link set "${side#* }" up
done

# What Open MPI calls in the place of ssh: AGENT HOST COMMAND.
cat >"$folder/agent" <<AGENT
#!/bin/sh
echo "started at \$1" >>"$folder/started"
shift
exec ip netns exec $second unshare --uts sh -c "hostname second; \$*"
AGENT
chmod +x "$folder/agent"

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_btl=tcp,self OMPI_MCA_btl_tcp_if_include=192.0.2.0/24 OMPI_MCA_oob_tcp_if_include=192.0.2.0/24
export OMPI_MCA_plm_rsh_agent="$folder/agent" OMPI_MCA_plm_rsh_no_tree_spawn=1
received() { ip netns exec $second cat /proc/net/dev | sed -n 's/^ *squat_b: *\([0-9]*\).*/\1/p'; }
before=$(received)
ip netns exec $first unshare --uts sh -c 'hostname first; exec "$@"' sh timeout 100 "$mpiexec" --host 192.0.2.1:1,192.0.2.2:1 -n 2 \
  "$program" --tokens 3000 --steps 20 --check
bytes=$(($(received) - before))
cat "$folder/started"
echo "the second rank has received $bytes bytes"
# What the first hands over in 20 steps: a head's lse and 128 channels, of 32 heads.
[ "$bytes" -gt $((20 * 32 * (4 + 2 * 128))) ]
