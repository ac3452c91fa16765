#!/bin/sh
# keep_ptxas_report.sh nvcc ARGUMENT...: compiles, and saves ptxas's report on the kernels as
# OBJECT.ptxas, which tests/emulation/test_launch_limits.py reads.
object=
previous=
for argument; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
case $object in
*.o) ;;
*) exec "$@" ;;  # not a compilation
esac
"$@" 2>"$object.ptxas"
code=$?
grep -v -e '^ptxas info' -e 'bytes stack frame' "$object.ptxas" >&2
exit $code
