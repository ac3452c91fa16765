#!/bin/sh
# keep_ptxas_report.sh nvcc ARGUMENT...: compiles, and keeps what ptxas says about the kernels beside
# the object, in OBJECT.ptxas. tests/emulation/test_launch_limits.py reads it.
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
