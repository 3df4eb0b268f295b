"""Names for pods: watches Services and Endpoints, keeps dnsmasq's file of hosts, and makes dnsmasq read it anew.

    SERVICE.NAMESPACE.svc.cluster.local            the Service's address, or its pods' where it is headless
    HOSTNAME.SERVICE.NAMESPACE.svc.cluster.local   a pod that has a hostname, behind a headless Service

Needs nothing but the standard library: it runs beside the cluster, before anything is installed. A change is in the
file and known to dnsmasq within milliseconds of the API server's event. A watch that ends (the API server restarts)
begins again with a list, so that no change is missed; until then the names stay as they were.
"""

import argparse
import base64
import http.client
import json
import os
import re
import signal
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOMAIN = "svc.cluster.local"
RETRY_S = 0.2  # after a broken watch
WATCH_S = 300  # after which the API server ends a watch; a dead connection is noticed a little later


class Api:
    """Lists and watches, with the client certificate of a kubeconfig that `write_kubeconfig` wrote."""

    def __init__(self, kubeconfig: Path) -> None:
        text = kubeconfig.read_text()

        def field(name: str) -> str:
            found = re.search(rf"{name}: \"?([^\s\",}}]+)", text)
            if found is None:
                raise SystemExit(f"dns: {kubeconfig} has no {name}; write it with `make cluster`")
            return found.group(1)

        self.address = field("server").removeprefix("https://")
        self.tls = ssl.create_default_context(cadata=base64.b64decode(field("certificate-authority-data")).decode())
        with tempfile.NamedTemporaryFile(suffix=".pem") as pem:  # the ssl module reads keys from files alone
            pem.write(base64.b64decode(field("client-certificate-data")) + base64.b64decode(field("client-key-data")))
            pem.flush()
            self.tls.load_cert_chain(pem.name)

    def get(self, path: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPSConnection(self.address, context=self.tls, timeout=WATCH_S + 10)
        connection.request("GET", path)
        response = connection.getresponse()
        if response.status != 200:
            raise OSError(f"GET {path}: {response.status} {response.read(200)!r}")
        return response


class Names:
    """What is known of Services and Endpoints, and the file made from it."""

    def __init__(self, hosts: Path, dnsmasq_pid: Path) -> None:
        self.hosts, self.dnsmasq_pid = hosts, dnsmasq_pid
        self.lock = threading.Lock()
        self.objects: dict[str, dict[tuple[str, str], Any]] = {"services": {}, "endpoints": {}}
        self.written = ""

    def replace(self, kind: str, items: list[Any]) -> None:
        with self.lock:
            self.objects[kind] = {_key(item): item for item in items}
            self._write()

    def change(self, kind: str, event: Any) -> None:
        with self.lock:
            if event["type"] == "DELETED":
                self.objects[kind].pop(_key(event["object"]), None)
            else:
                self.objects[kind][_key(event["object"])] = event["object"]
            self._write()

    def _write(self) -> None:
        text = "".join(f"{address} {name}\n" for address, name in sorted(self._lines()))
        if text == self.written:
            return
        new = self.hosts.with_suffix(".new")
        new.write_text(text)
        new.rename(self.hosts)
        self.written = text
        os.kill(int(self.dnsmasq_pid.read_text().split()[0]), signal.SIGHUP)

    def _lines(self) -> Iterator[tuple[str, str]]:
        for (namespace, name), service in self.objects["services"].items():
            domain = f"{name}.{namespace}.{DOMAIN}"
            address = service["spec"].get("clusterIP")
            if address != "None":
                if address:
                    yield address, domain
                continue
            for pod in _addresses(self.objects["endpoints"].get((namespace, name), {})):
                yield pod["ip"], domain
                if pod.get("hostname"):
                    yield pod["ip"], f"{pod['hostname']}.{domain}"


def _key(item: Any) -> tuple[str, str]:
    return item["metadata"]["namespace"], item["metadata"]["name"]


def _addresses(endpoints: Any) -> Iterator[Any]:
    for subset in endpoints.get("subsets") or []:
        yield from subset.get("addresses") or []


def follow(api: Api, names: Names, kind: str) -> None:
    """List, then watch, for ever. Raises what is no matter of the connection."""
    while True:
        try:
            listed = json.load(api.get(f"/api/v1/{kind}"))
            names.replace(kind, listed["items"])
            version = listed["metadata"]["resourceVersion"]
            for line in api.get(f"/api/v1/{kind}?watch=1&resourceVersion={version}&timeoutSeconds={WATCH_S}"):
                event = json.loads(line)
                if event["type"] == "ERROR":  # too old a version: list again
                    break
                names.change(kind, event)
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            print(f"dns: {kind}: {error}; again in {RETRY_S} s", file=sys.stderr, flush=True)
            time.sleep(RETRY_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--kubeconfig", "--hosts", "--dnsmasq-pid"):
        parser.add_argument(option, type=Path, required=True)
    options = parser.parse_args()
    api, names = Api(options.kubeconfig), Names(options.hosts, options.dnsmasq_pid)

    def run(kind: str) -> None:
        try:
            follow(api, names, kind)
        finally:
            os._exit(1)  # one thread's end is the process's: `up` starts it again

    threading.Thread(target=run, args=("services",), daemon=True).start()
    run("endpoints")


if __name__ == "__main__":
    main()
