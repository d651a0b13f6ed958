#!/bin/sh
# run_for.sh FLAG EMULATOR PROGRAM [ARGUMENTS...]: runs a program for machines whose /proc/cpuinfo has FLAG, through
# the emulator on others. Exits with 77 where neither can.
flag=$1 emulator=$2
shift 2
if grep -qw "$flag" /proc/cpuinfo; then exec "$@"; fi
case $flag in
  avx512*) echo "skipped: this machine has no $flag, and qemu does not know it"; exit 77 ;;
esac
if [ -z "$emulator" ]; then echo "skipped: this machine has no $flag, and qemu-x86_64 is not there"; exit 77; fi
exec "$emulator" -cpu max "$@"
