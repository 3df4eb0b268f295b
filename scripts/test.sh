#!/usr/bin/env bash
# Runs the tests. With arguments: one run of pytest, as they say. Without: everything, in two runs. First what needs no
# cluster, some at a time (pytest-xdist); then the tests over an API server and end to end, one after another, for they
# measure.
#
# What those have to build first and find in the cache afterwards (Kubernetes, images) is built during the first run, at
# the lowest priority. Where that fails they try again themselves, and say why.
# The last line counts both runs together. The exit code is 0 if both passed and a test was run.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=.venv/bin/python
[ $# = 0 ] || exec "$python" -m pytest "$@"

mkdir -p build
log=build/prepare-cluster.log
# Short: the sockets of local runs lie below it, and a socket's path has 107 characters at most.
work=$(mktemp -d /tmp/ot.XXXX)
counts=$work/counts
export OUTLAST_TEST_COUNTS=$counts
builder=""

finish() {
  local status=$?
  [ -z "$builder" ] || kill -- "-$builder" 2>/dev/null
  if [ $status = 0 ]; then rm -rf "$work"; else echo "What the tests wrote is in $work." >&2; fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT # pytest tells of it and ends; nothing is to follow
trap 'exit 143' TERM

prepare_cluster() { # needs nobody's attention: its words go to $log
  set -m # a process group of its own, which can be ended as a whole
  { nice -n 19 scripts/cluster/cluster.sh prepare && nice -n 19 scripts/cluster/images.sh; } >"$log" 2>&1 </dev/null &
  builder=$!
  set +m
}

[ "${OUTLAST_SKIP_E2E:-0}" != 0 ] || [ -n "${OUTLAST_E2E_KUBECONFIG:-}" ] || prepare_cluster

# One thread of torch each: several tests share the cores already.
OMP_NUM_THREADS=1 "$python" -m pytest tests --ignore tests/apiserver --ignore tests/e2e \
  --numprocesses auto --maxprocesses 4 --dist worksteal --basetemp "$work/1"
first=$?
[ -z "$builder" ] || wait "$builder" || echo "The cluster could not be prepared ($log); its tests try again." >&2
builder=""

"$python" -m pytest tests/apiserver tests/e2e --basetemp "$work/2"
second=$?

tally=0
awk '{ passed += $1; failed += $2; skipped += $3 }
  END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped; exit !(passed && !failed) }' "$counts" || tally=1
[ $tally = 0 ] && [ $first = 0 ] && [ $second = 0 ]
