#!/usr/bin/env bash
# Builds images with docker, or with buildah where docker does not answer, and gives them to the cluster if it is up.
#
#   images.sh                   operator, redis and trainer (for CPUs): what the end-to-end tests need
#   images.sh NAME...           of: operator redis trainer trainer-cuda; all
#   TORCH_INDEX=URL             for trainer: an index whose torch comes without CUDA
#
# Where no registry answers, the base images are made of Debian's packages and get the names that FROM asks for. An image
# whose inputs did not change is not built again: archives lie in $STATE/images under a digest of their inputs. Prints a
# line for each: its tag, and the archive's name.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"
. "$here/base_image.sh"
cd "$REPOSITORY"

VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
ARCHIVES=$STATE/images
CODE=(pyproject.toml constraints.txt README.md LICENSE trainer operator images/install.py images/without_cuda.py)

describe() { # name: sets tag, file, context, inputs, arguments
  context=. arguments=()
  case $1 in
  operator) tag=outlast/operator:$VERSION file=Dockerfile inputs=("${CODE[@]}") ;;
  trainer) tag=outlast/trainer:$VERSION file=images/trainer/Dockerfile inputs=("${CODE[@]}")
    arguments=(--build-arg "TORCH_INDEX=${TORCH_INDEX:-}") ;;
  trainer-cuda) tag=outlast/trainer:$VERSION-cuda file=images/trainer/Dockerfile inputs=("${CODE[@]}")
    arguments=(--build-arg DEVICE=cuda) ;;
  redis) tag=outlast/redis:$VERSION file=images/redis/Dockerfile context=images/redis inputs=() ;;
  *) fail "no image is called $1; there are operator, redis, trainer, trainer-cuda, and all" ;;
  esac
}

digest() { # file...: of names and contents, without what running leaves behind
  { printf '%s\n' "$tag" "${arguments[@]}"; find "$@" -type f ! -path '*/__pycache__/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; } |
    sha256sum | cut -c1-16
}

build_image() { # name: its archive, unless there is one of the same inputs
  local archive started=$SECONDS
  describe "$1"
  archive=$ARCHIVES/$1-$(digest "$file" "${inputs[@]}").tar
  if [ ! -f "$archive" ]; then
    say "building $tag"
    rm -f "$ARCHIVES/$1"-[0-9a-f]*.tar
    if has_docker; then
      docker build -q --network host "${arguments[@]}" -t "$tag" -f "$file" "$context" >/dev/null
      docker save -o "$archive.new" "$tag"
    else
      ensure_bases "$file"
      buildah_build "$tag" "$file" "$context" "${arguments[@]}"
      # This format's layers are not compressed: the nodes on this machine would decompress them again.
      buildah push -q "$tag" "docker-archive:$archive.new:docker.io/$tag"
    fi
    mv "$archive.new" "$archive"
    say "built $tag in $((SECONDS - started)) s, $(du -m "$archive" | cut -f1) MB"
  fi
  load "$archive"
  echo "$tag ${archive##*/}"
}

load() { # archive: into the cluster, if it is ours and up; else it is loaded when that comes up
  [ "$provider" = given ] || [ "$("$here/cluster.sh" is-up)" = no ] || "$here/cluster.sh" load "$1"
}

[ $# -gt 0 ] || set -- operator redis trainer
[ "$*" != all ] || set -- operator redis trainer trainer-cuda
for name; do describe "$name"; done
mkdir -p "$ARCHIVES"
provider=$("$here/cluster.sh" provider 2>/dev/null) || provider=given # no cluster here: nothing to load into
exec 8>"$STATE/images.lock"
flock 8
for name; do build_image "$name"; done
