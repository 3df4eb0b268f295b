"""Before a run starts: what must be refused, what is ignored, and everything its parts will share (RunConfig)."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from outlast.api.config import ServerAddress
from outlast.api.job import TrainingJob
from outlast.api.spec import JobSpec
from outlast_operator.local.directory import RunConfig, RunDirectory
from outlast_operator.local.kills import Kill, check_kill, check_order
from outlast_operator.local.redis import RedisMissing, find_redis_server, redis_url
from outlast_operator.local.template import LocalTemplate, local_template
from outlast_operator.planner.turn import server_names
from outlast_operator.runtime.redis import redis_run_id

REDIS_PATIENCE_S = 3.0


@dataclass(frozen=True)
class Options:
    kills: Sequence[Kill] = ()
    transport: str = "unix"
    run_dir: Path | None = None
    checkpoint_on_interrupt: bool = False


def check(job: TrainingJob, kills: Sequence[Kill]) -> None:
    """Raise `KillError` or `RedisMissing` for what could not work, before anything of the run is started."""
    spec = job.spec
    check_order(kills)
    for kill in kills:
        check_kill(kill, spec.servers.shards, spec.servers.replicas, spec.workers.replicas, spec.own_redis)
    if spec.own_redis:
        find_redis_server()
    url = spec.recovery.buffer.url
    if spec.traits.buffered and url is not None and not _answers(url):
        raise RedisMissing(
            f"spec.recovery.buffer.url: no Redis answers at {_without_password(url)} within {REDIS_PATIENCE_S:g} s; "
            "start it, correct the url or its password, or leave url out: the run then starts its own Redis"
        )


def _answers(url: str) -> bool:
    deadline = time.monotonic() + REDIS_PATIENCE_S
    while redis_run_id(url, timeout_s=REDIS_PATIENCE_S) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=host))


def _evaluator_template(spec: JobSpec) -> LocalTemplate:
    if spec.evaluator.template:
        return local_template(spec.evaluator.template)
    return replace(local_template(spec.workers.template), argv=None)  # it runs another program than workers do


def ignored_fields(spec: JobSpec) -> list[str]:
    """What the spec says that only pods can do."""
    found = [
        f"spec.{at}.{path}"
        for at, template in spec.templates.items()
        if at != "recovery.buffer.template"
        for path in local_template(template).ignored
    ]
    if spec.recovery.buffer.template:
        found.append("spec.recovery.buffer.template")
    if spec.training.source.config_map is not None:
        found.append("spec.training.source.configMap")
    if spec.recovery.checkpoint.volume is not None and _host_path(spec) is None:
        found.append("spec.recovery.checkpoint.volume (a hostPath would be used)")
    if spec.recovery.checkpoint.claim is not None:
        found.append("spec.recovery.checkpoint.claim (directories of the run are used)")
    if spec.security.tls.secret_name is not None:
        found.append("spec.security.tls")
    return found


def _host_path(spec: JobSpec) -> str | None:
    path = ((spec.recovery.checkpoint.volume or {}).get("hostPath") or {}).get("path")
    return str(path) if path else None


def cuda_present() -> bool:
    """Whether workers could use CUDA, asked without touching it: a process that has cannot fork any more."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def make_config(job: TrainingJob, job_dir: Path, directory: RunDirectory, options: Options) -> RunConfig:
    """Addresses, secrets and folders of a new run."""
    spec = job.spec
    shards = [server_names(spec, shard) for shard in range(spec.servers.shards)]
    names = [name for shard in shards for name in shard]
    if options.transport == "tcp":
        addresses = [f"tcp:127.0.0.1:{port}" for port in _free_ports(len(names))]
    else:
        addresses = [f"unix:{directory.socket(name)}" for name in names]
    claim = spec.recovery.checkpoint.claim
    address_of = dict(zip(names, addresses, strict=True))
    url = None
    if spec.traits.buffered:
        url = spec.recovery.buffer.url or redis_url(directory.socket("redis"))
    return RunConfig(
        job=job.name,
        job_uid=str(uuid.uuid4()),
        token=secrets.token_hex(16),
        spec=spec.to_json(),
        servers=tuple(tuple(ServerAddress(name, address_of[name]) for name in shard) for shard in shards),
        job_dir=str(job_dir),
        t_start=time.monotonic(),
        redis_url=url,
        redis_started_here=url is not None and spec.recovery.buffer.url is None,
        checkpoint_dir=_host_path(spec),
        own_checkpoint_dirs=claim is not None and not claim.shared,
        exec_workers=cuda_present(),
        templates={
            "server": local_template(spec.servers.template).to_json(),
            "worker": local_template(spec.workers.template).to_json(),
            "evaluator": _evaluator_template(spec).to_json(),
        },
    )


def _free_ports(count: int) -> list[int]:
    """Ports below those that the kernel gives to outgoing connections: a worker that dials a dead server's port would
    sooner or later be given that very port, connect to itself, and keep the server's replacement from listening."""
    try:
        lowest_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        lowest_ephemeral = 32768
    candidates = list(range(max(1024, lowest_ephemeral - 16384), lowest_ephemeral))
    random.shuffle(candidates)
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for port in candidates:
            if len(found) == count:
                return found
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(port)
    raise OSError(
        f"{count} free TCP ports are needed below {lowest_ephemeral}, {len(found)} were found; use unix sockets"
    )
