#!/usr/bin/env bash
# Builds Kubernetes from Debian's source package, where no registry or download site may be asked: once, into $STATE,
# in five to eight minutes of two cores. Run again, it finds the binaries and returns at once.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

COMMANDS=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy)
BUILD=$STATE/build

is_built() {
  local name
  for name in "${COMMANDS[@]}" pause; do [ -x "$BINARIES/$name" ] || return 1; done
}

fetch_source() { # prints nothing; leaves the source tree in $BUILD/kubernetes-*
  mkdir -p "$BUILD/lists/partial" "$BUILD/parts"
  # The source entries that belong to the machine's own Debian entries; its apt configuration stays as it is.
  # shellcheck disable=SC2016 # the variables are apt's
  apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' | sort -u |
    sed 's|^|deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] |' >"$BUILD/parts/source.list"
  local options=(-o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$BUILD/parts"
    -o "Dir::State::Lists=$BUILD/lists" -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update -qq
  (cd "$BUILD" && apt-get "${options[@]}" source --download-only -qq kubernetes >/dev/null 2>&1) ||
    fail "Debian's source package kubernetes could not be fetched: this machine's apt sources have none (Debian 12 does)"
  (cd "$BUILD" && tar xzf kubernetes_*.orig.tar.gz)
}

mend_source() { # tree
  # json-iterator with reflect2 1.0.1 crashes the API server under Go 1.18 and later: Debian's package has 1.0.2.
  rm -rf "$1/vendor/github.com/modern-go/reflect2"
  cp -r /usr/share/gocode/src/github.com/modern-go/reflect2 "$1/vendor/github.com/modern-go/"
}

compile() { # tree, into directory
  local into=$2 flags="" package
  export GOPATH=$BUILD/gopath GOCACHE=$BUILD/gocache CGO_ENABLED=0 GOTOOLCHAIN=local
  mkdir -p "$GOPATH/src/k8s.io" "$into"
  ln -sfn "$1" "$GOPATH/src/k8s.io/kubernetes"
  cd "$GOPATH/src/k8s.io/kubernetes"
  # OpenAPI definitions and conversions are generated, not shipped.
  KUBE_GIT_VERSION=v$KUBERNETES_VERSION make generated_files >"$BUILD/generate.log" 2>&1 ||
    fail "generating code failed; see $BUILD/generate.log"
  for package in k8s.io/kubernetes/vendor/k8s.io/{component-base/version,client-go/pkg/version}; do
    flags="$flags -X $package.gitVersion=v$KUBERNETES_VERSION -X $package.gitMajor=1 -X $package.gitMinor=20"
    flags="$flags -X $package.gitTreeState=clean"
  done
  GO111MODULE=off go build -trimpath -ldflags "-s -w $flags" -o "$into/" "${COMMANDS[@]/#/k8s.io/kubernetes/cmd/}" \
    >"$BUILD/compile.log" 2>&1 || fail "compiling failed; see $BUILD/compile.log"
  gcc -Os -Wall -static -DVERSION="$KUBERNETES_VERSION" -o "$into/pause" build/pause/linux/pause.c
  strip "$into/pause"
}

is_built && exit 0
mkdir -p "$STATE"
exec 8>"$STATE/build.lock"
flock 8 # two at once: the second waits, then finds the binaries
is_built && exit 0

started=$SECONDS
say "building Kubernetes $KUBERNETES_VERSION from Debian's source package, once: five to ten minutes on two cores"
apt_install golang-go make gcc libc6-dev rsync jq dpkg-dev golang-github-modern-go-reflect2-dev
rm -rf "$BUILD"
fetch_source
tree=$(echo "$BUILD"/kubernetes-*/)
[ -f "$tree/cmd/kubelet/kubelet.go" ] || fail "the source package did not unpack into one tree: $tree"
grep -q "really$KUBERNETES_VERSION\|_$KUBERNETES_VERSION" <(ls "$BUILD"/kubernetes_*.dsc) ||
  fail "Debian carries $(cd "$BUILD" && ls kubernetes_*.dsc), not $KUBERNETES_VERSION, for which this script is made"
mend_source "${tree%/}"
compile "${tree%/}" "$BUILD/out"
rm -rf "$BINARIES"
mv "$BUILD/out" "$BINARIES" # complete or absent
rm -rf "$BUILD"
say "built in $((SECONDS - started)) s: $BINARIES"
