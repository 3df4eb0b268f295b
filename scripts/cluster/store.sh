# shellcheck shell=bash
# Images for the nodes, stored once; to be sourced after lib.sh and programs.sh.
#
# containerd unpacks an image of 3 GB in 75 s, to 6 GB more. So that is done once, in $STATE/store, by a containerd that
# runs for that alone. A node that is made gets copies of its databases, hard links to its blobs, and a symbolic link in
# place of each unpacked layer: next to no time and disk, and as little to remove. That is safe, for nothing writes to a
# blob or a layer again: a container writes to a layer of its own. An image that comes while nodes run goes into the store
# first, and from there into each of them: a link for each new layer, then an import that finds all of it present.

STORE=$STATE/store
SYSTEM_IMAGES=$STATE/system-images # archives of the programs that run as pods
export CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1 # ctr warns of control groups of version 1 at every call
SNAPSHOTTER=io.containerd.snapshotter.v1.overlayfs
PAUSE_IMAGE=registry.k8s.io/pause:3.10

make_system_image() { # program, image, user, entrypoint... -- more files...
  local program=$1 archive
  archive=$SYSTEM_IMAGES/$(basename "$(folder_of "$program")").tar
  [ ! -f "$archive" ] || return 0
  mkdir -p "$SYSTEM_IMAGES"
  rm -f "$SYSTEM_IMAGES/$program"-v*.tar
  python3 "$SCRIPTS/static_image.py" "$archive.new" "${@:2}"
  mv "$archive.new" "$archive"
}

make_system_images() { # /bin/busybox: for the scripts of the provisioner's helper pods
  local pause coredns provisioner
  pause=$(folder_of pause) coredns=$(folder_of coredns) provisioner=$(folder_of local-path-provisioner)
  make_system_image pause "$PAUSE_IMAGE" 65535:65535 /pause -- "$pause/pause"
  make_system_image coredns docker.io/coredns/coredns:1 65532:65532 /coredns -- "$coredns/coredns"
  make_system_image local-path-provisioner docker.io/rancher/local-path-provisioner:v0 0:0 /local-path-provisioner -- \
    "$provisioner/local-path-provisioner" /bin/busybox:/bin/{sh,mkdir,rm}
}

store_ctr() { "$(folder_of containerd)/ctr" -a "$STORE/containerd.sock" -n k8s.io "$@"; }

fill_store() { # archive...: into the store, those that are not there
  local archive missing=() started
  for archive; do [ "$STORE/archives/${archive##*/}" -nt "$archive" ] || missing+=("$archive"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  open_store
  for archive in "${missing[@]}"; do
    started=$SECONDS
    store_ctr images import "$archive" >"$STORE/import.log" 2>&1 ||
      { close_store; fail "containerd could not import $archive; see $STORE/import.log"; }
    say "unpacked ${archive##*/} in $((SECONDS - started)) s"
  done
  list_layers >"$STORE/layers.new"
  mv "$STORE/layers.new" "$STORE/layers"
  for archive in "${missing[@]}"; do touch "$STORE/archives/${archive##*/}"; done
  close_store
}

open_store() {
  local start_of_collection=1s n
  # What no image refers to any more is removed, but not from under a running node.
  for n in $(seq "$NODES"); do ! is_running "node-$n" || start_of_collection=24h; done
  mkdir -p "$STORE"/{root,archives}
  cat >"$STORE/containerd.toml" <<TOML
version = 3
root = "$STORE/root"
state = "$STORE/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing", "io.containerd.nri.v1.nri"]
[grpc]
  address = "$STORE/containerd.sock"
[plugins."io.containerd.gc.v1.scheduler"]
  startup_delay = "$start_of_collection"
  mutation_threshold = 0
TOML
  spawn containerd-store "$(folder_of containerd)/containerd" --config "$STORE/containerd.toml"
  wait_for 30 "the containerd of the image store" store_ctr version
}

list_layers() { # layer, its parent or -, and the folder of its files; parents first
  local layer parent
  store_ctr snapshots rm probe 2>/dev/null || true
  store_ctr snapshots ls | awk '
    $NF == "Committed" { parent[$1] = NF == 3 ? $2 : "-" }
    function show(layer) {
      if (layer in shown) return
      if (parent[layer] != "-") show(parent[layer])
      shown[layer] = 1
      print layer, parent[layer]
    }
    END { for (layer in parent) show(layer) }' |
    while read -r layer parent; do
      echo "$layer $parent $(store_ctr snapshots view --target /x probe "$layer" | snapshot_folder)"
      store_ctr snapshots rm probe 2>/dev/null || true # containerd collects it itself now and then
    done
}

close_store() {
  stop containerd-store
  rm -rf "$STORE/state" "$STORE"/containerd.sock*
}

# --- nodes. A file in NODE/images, named like an archive and newer, says that the node has what is in it; in $STORE/archives
# that the store has.

link_store() { # node's folder: make its /var/lib/containerd
  local made=$1/containerd.new entry layer
  rm -rf "$1"/{containerd,containerd.new,images}
  mkdir -p "$made/$SNAPSHOTTER/snapshots"
  for entry in "$STORE/root"/*; do
    [ "${entry##*/}" = "$SNAPSHOTTER" ] || cp -al "$entry" "$made/"
  done
  for layer in "$STORE/root/$SNAPSHOTTER/snapshots"/*; do ln -s "$layer" "$made/$SNAPSHOTTER/snapshots/"; done
  while read -r entry; do
    cp -p --remove-destination "$STORE/root/$entry" "$made/$entry"
  done < <(cd "$STORE/root" && find . -path "./$SNAPSHOTTER/snapshots" -prune -o -name '*.db' -print)
  cp -r "$STORE/archives" "$1/images"
  mv "$made" "$1/containerd"
}

load_into_nodes() { # archive...: those that a running node has not got
  local archive n loading
  for archive; do
    loading=()
    for n in $(seq "$NODES"); do
      [ "$(node_folder "$n")/images/${archive##*/}" -nt "$archive" ] || ! is_running "node-$n" || {
        load_into_node "$n" "$archive" &
        loading+=($!)
      }
    done
    for n in "${loading[@]}"; do wait "$n" || fail "a node could not import $archive; see $RUN/log/load-*.log"; done
  done
}

load_into_node() { # N, archive: which is in the store
  local folder
  folder=$(node_folder "$1")
  wait_for 30 "containerd on node-$1" on_node "$1" ctr version
  link_layers "$1"
  link_blobs "$folder/containerd" # last: containerd removes now and then what no image refers to
  on_node "$1" ctr -n k8s.io images import --local "$2" >"$RUN/log/load-$1.log" 2>&1
  touch "$folder/images/${2##*/}"
}

link_blobs() { # folder of a node's containerd
  local blobs=io.containerd.content.v1.content/blobs
  cp -aln "$STORE/root/$blobs/." "$1/$blobs/"
}

# A layer is made as containerd itself does, prepare on its parent and commit, but for its files, which are the store's.
link_layers() { # N
  local folder known layer parent files target
  folder=$(node_folder "$1")
  known=$(on_node "$1" ctr -n k8s.io snapshots ls | awk '{ print $1 }')
  while read -r layer parent files; do
    ! grep -qxF "$layer" <<<"$known" || continue
    [ "$parent" != - ] || parent=
    target=$(on_node "$1" ctr -n k8s.io snapshots prepare --target /x "linking-$layer" ${parent:+"$parent"} | snapshot_folder)
    target=$folder/containerd/${target#/var/lib/containerd/}
    rmdir "$target"
    ln -s "$files" "$target"
    on_node "$1" ctr -n k8s.io snapshots commit "$layer" "linking-$layer"
  done <"$STORE/layers"
}

# Where the files of a snapshot lie, of the commands that would mount it: its own folder, or of a view its topmost layer.
snapshot_folder() { sed -nE 's/.*upperdir=([^, ]+).*/\1/p; t; s/.*lowerdir=([^:, ]+).*/\1/p; t; s/^mount -t bind ([^ ]+) .*/\1/p'; }
