# shellcheck shell=bash
# buildah, and base images without a registry; to be sourced after lib.sh.

EPOCH=${SOURCE_DATE_EPOCH:-315532800} # of all files in images: 1980, the first that a zip file knows

has_docker() { command -v docker >/dev/null && docker info >/dev/null 2>&1; }

# Its own storage: what is built here is no image of the machine's user.
buildah() { command buildah --root "$STATE/containers" --runroot "$STATE/containers/run" --storage-driver overlay "$@"; }

buildah_build() { # tag, file, context, more arguments
  local settings=$STATE/pip.conf mounts path
  # The machine's way to packages holds while building, and stays out of the image.
  (umask 077 && python3 "$here/pip_settings.py" "$settings" >"$STATE/pip.mounts")
  mounts=(-v "$settings:/etc/pip.conf:ro")
  while read -r path; do mounts+=(-v "$path:$path:ro"); done <"$STATE/pip.mounts"
  # Files carry a time that is always the same: a layer of the same files is the same layer.
  buildah bud -q --layers --timestamp "$EPOCH" --isolation chroot --network host --cni-config-dir "$STATE/no-cni" "${mounts[@]}" \
    "${@:4}" -t "$1" -f "$2" "$3" >"$STATE/build-image.log" 2>&1 || { buildah rm --all >/dev/null; tail -n 30 "$STATE/build-image.log" >&2; fail "building $1 failed (above)"; }
  rm -f "$settings" "$STATE/pip.mounts"
}

ensure_bases() { # Dockerfile: every image that it begins with is there
  apt_install buildah debootstrap
  local base
  for base in $(sed -nE 's|^FROM +([^ ]+/[^ ]+).*|\1|p' "$1" | sort -u); do ensure_base "$base"; done
}

ensure_base() { # image
  buildah inspect --type image "$1" >/dev/null 2>&1 && return
  [ "${OUTLAST_REGISTRY:-yes}" = no ] || timeout 30 command buildah --root "$STATE/containers" --runroot "$STATE/containers/run" \
    --storage-driver overlay pull -q "$1" >/dev/null 2>&1 && return
  say "no registry answers: making $1 of Debian's packages"
  case $1 in
  docker.io/library/debian:bookworm-slim) debian_base "$1" ;;
  docker.io/library/python:3.11-slim-bookworm) python_base "$1" ;;
  *) fail "there is no recipe for the base image $1 without a registry; add one to $here/base_image.sh" ;;
  esac
}

debian_base() { # image
  local work=$STATE/debootstrap mirror
  # shellcheck disable=SC2016 # the variable is apt's
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Codename: bookworm' | head -n 1)
  rm -rf "$work"
  [ -n "$mirror" ] || fail "apt knows no mirror of Debian bookworm; name one in /etc/apt/sources.list.d and run apt-get update"
  debootstrap --variant=minbase --include=ca-certificates bookworm "$work" "$mirror" \
    >"$STATE/debootstrap.log" 2>&1 || fail "debootstrap failed; see $STATE/debootstrap.log"
  rm -rf "$work"/var/cache/apt/archives/*.deb "$work"/var/lib/apt/lists/* "$work"/usr/share/{doc,man,info}/* \
    "$work"/usr/share/locale/* "$work"/var/log/*.log
  local container
  container=$(buildah from scratch)
  buildah copy -q "$container" "$work" / >/dev/null
  buildah config --cmd /bin/bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
  buildah commit -q --rm --timestamp "$EPOCH" "$container" "$1" >/dev/null
  rm -rf "$work"
}

python_base() { # image
  local work
  work=$(mktemp -d -p "$STATE")
  ensure_base docker.io/library/debian:bookworm-slim
  cat >"$work/Dockerfile" <<'DOCKERFILE'
FROM docker.io/library/debian:bookworm-slim
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /usr/share/doc/* /usr/share/man/*
CMD ["python3"]
DOCKERFILE
  buildah_build "$1" "$work/Dockerfile" "$work"
  rm -rf "$work"
}
