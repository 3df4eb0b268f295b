#!/usr/bin/env bash
# Makes .venv ready: everything `outlast run`, the tests and the checks need. Called by every target of the Makefile.
#
# - Ready already (the stamp agrees): returns in a fraction of a second.
# - Stale (pyproject.toml or constraints.txt changed): installs what is missing, in place.
# - Half made, moved or broken (an interrupted run, another Python, another path): thrown away and made anew.
#
# The machine's own Python is left alone (PEP 668), and so is its pip configuration: indexes, proxies, certificates.
# As root on Debian it installs the packages python3-venv and dataset-fashion-mnist; OUTLAST_APT=no forbids that.
# PYTHON=/path/to/python3 chooses the interpreter; the first of python3, python3.13, .12, .11 that is new enough is used.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
stamp=$venv/.outlast-ready      # written last: what this environment was made from
marker=$venv/.outlast-changing  # there while pip is changing the environment
log=$venv/setup.log
dataset=/usr/share/datasets/fashion-mnist
cd "$root"
unset PYTHONHOME PYTHONPATH

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

fingerprint() { { cat pyproject.toml constraints.txt; printf '%s\n' "$venv"; } | sha256sum | cut -d' ' -f1; }

is_ready() {
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint)" ] && [ ! -e "$marker" ] && [ -x "$venv/bin/outlast" ] &&
    "$venv/bin/python" -c '
import importlib.util, sys
needed = "outlast outlast_operator outlast_bench torch torchvision kopf pytest".split()
sys.exit(not all(map(importlib.util.find_spec, needed)))
' 2>/dev/null
}

apt_install() { # package: quietly, and only where it is ours to do
  [ "$(id -u)" = 0 ] && [ "${OUTLAST_APT:-yes}" != no ] && command -v apt-get >/dev/null || return 1
  local options=(-qq -y --no-install-recommends -o DPkg::Lock::Timeout=60 -o Acquire::Retries=1)
  say "installing the Debian package $1"
  DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "$1" >/dev/null 2>&1 ||
    { apt-get update -qq >/dev/null 2>&1 &&
      DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "$1" >/dev/null 2>&1; }
}

find_python() { # prints the first interpreter that is new enough; apt may have to bring one
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$candidate" && return
  done
  return 1
}

can_make_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

make_venv() {
  local python
  python=$(find_python) || { [ -z "${PYTHON:-}" ] && apt_install python3-venv && python=$(find_python); } ||
    fail "${PYTHON:-PATH} has no Python of version 3.11 or later; install one, or name it: make PYTHON=/path/to/python3"
  can_make_venv "$python" || { apt_install python3-venv && can_make_venv "$python"; } ||
    fail "$("$python" --version) cannot make virtual environments: its modules venv and ensurepip are missing." \
      "On Debian and Ubuntu: sudo apt-get install python3-venv. Or name another Python: make PYTHON=/path/to/python3"
  say "making .venv with $("$python" --version)"
  rm -rf "$venv"
  "$python" -m venv "$venv"
}

is_usable() { # whole enough, and in its own place, to be brought up to date
  [ ! -e "$marker" ] && grep -qsF "$venv/bin/python" "$venv/bin/pip" &&
    "$venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

install() {
  local first=""
  [ -e "$stamp" ] || first=" (torch makes this some gigabytes and minutes the first time)"
  touch "$marker"
  say "installing packages into .venv$first; log: .venv/setup.log"
  if PIP_USER=0 PYTHONUNBUFFERED=1 "$venv/bin/python" -m pip install --no-input --disable-pip-version-check \
    --progress-bar off -c constraints.txt -e '.[local,operator,dev]' 2>&1 | tee "$log" |
    sed -unE 's/^ *(Downloading|Using cached) ([^ ]+\.(whl|tar\.gz)) \(([0-9.]+ [MG]B)\).*/setup:   \2 (\4)/p; s/^Installing collected.*/setup: unpacking/p' >&2
  then
    rm -f "$marker"
  else
    rm -f "$marker" # pip puts back what it replaced; only an interruption leaves the marker and so a new environment
    tail -n 15 "$log" >&2
    fail "pip could not install the packages (above; whole log: .venv/setup.log). Fix the cause and run make again."
  fi
  "$venv/bin/python" -c 'import outlast, outlast_operator, outlast_bench' ||
    fail "the packages are installed but do not import (above); try: make distclean, then again"
}

offer_dataset() { # without it torchvision downloads the images when a task first needs them
  if [ ! -e "$dataset" ] && [ ! -e "$venv/.outlast-dataset-tried" ]; then
    touch "$venv/.outlast-dataset-tried"
    apt_install dataset-fashion-mnist || say "no Debian package dataset-fashion-mnist here: torchvision will download the images"
  fi
}

is_ready && { offer_dataset; exit 0; }

# Two makes at once: the second waits, then finds everything ready.
if command -v flock >/dev/null; then
  exec 9>"$root/.venv.lock"
  flock 9
  is_ready && exit 0
fi
started=$SECONDS
is_usable || make_venv
install
offer_dataset
fingerprint >"$stamp"
say "ready after $((SECONDS - started)) s"
