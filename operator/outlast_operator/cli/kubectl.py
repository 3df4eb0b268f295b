"""`kubectl outlast`: show the state of a TrainingJob, hand over its head, read its logs, fetch its report, check
that an operator serves a namespace.

kubectl runs `kubectl-outlast` from PATH and passes on everything after `outlast`.
Exit codes: 0 done, 1 failed (standard error says why), 2 bad arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlast.process.exit_codes import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from outlast_operator.kubernetes.client import Client

Json = dict[str, Any]


def make_parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-n", "--namespace", metavar="NS", help="the job's namespace (default: kubectl's current one)")
    common.add_argument("--context", metavar="NAME", help="a context of the kubeconfig")
    common.add_argument("--kubeconfig", metavar="FILE", help="default: KUBECONFIG, else ~/.kube/config")
    parser = argparse.ArgumentParser(
        prog="kubectl outlast", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    status = commands.add_parser("status", parents=[common], help="the state of a job; without a name, of all jobs")
    status.add_argument("job", metavar="JOB", nargs="?")
    status.add_argument("--json", action="store_true", help="the status as the operator wrote it")
    status.set_defaults(run=show_status)

    promote = commands.add_parser(
        "promote", parents=[common], help="planned switchover: the head hands over and leaves"
    )
    promote.add_argument("job", metavar="JOB")
    promote.add_argument("--shard", type=int, default=0, metavar="N")
    promote.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="seconds to wait for the next head (default 60)"
    )
    promote.add_argument("--no-wait", action="store_true", help="do not wait for the next head")
    promote.set_defaults(run=promote_head)

    logs = commands.add_parser("logs", parents=[common], help="the log of one process: server-0, worker-1, redis, head")
    logs.add_argument("job", metavar="JOB")
    logs.add_argument("process", metavar="PROCESS", nargs="?", default="head", help="default: head, of shard 0")
    logs.add_argument("-f", "--follow", action="store_true", help="follow: print lines as they are written")
    logs.add_argument("--tail", type=int, metavar="LINES", help="the last lines only")
    logs.add_argument("-p", "--previous", action="store_true", help="of the previous pod")
    logs.set_defaults(run=print_logs)

    report = commands.add_parser(
        "report", parents=[common], help="the job so far as JSON, in the fields of report.json"
    )
    report.add_argument("job", metavar="JOB")
    report.add_argument("-o", "--output", type=Path, metavar="FILE", help="write it there")
    report.set_defaults(run=print_report)

    check = commands.add_parser("check", parents=[common], help="whether an operator serves the namespace")
    check.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="seconds to wait for its answer (default 60)"
    )
    check.set_defaults(run=check_operator)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point of the console script `kubectl-outlast`; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    try:
        from outlast_operator.kubernetes.client import Client, JobError
        from outlast_operator.kubernetes.cluster.api import ApiError
    except ModuleNotFoundError as error:
        print(f"kubectl outlast: {error}; in the repository: pip install '.[operator]'", file=sys.stderr)
        return EXIT_BAD_INPUT
    try:
        client = Client.connect(arguments.namespace, arguments.context, arguments.kubeconfig)
        run: Callable[[Client, argparse.Namespace], int] = arguments.run
        return run(client, arguments)
    except ApiError as error:
        print(f"kubectl outlast: {error.message}", file=sys.stderr)
        return EXIT_FAILED
    except (JobError, TimeoutError, RuntimeError, OSError) as error:
        print(f"kubectl outlast: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


# --- commands ---------------------------------------------------------------------------------------------------------


def show_status(client: Client, arguments: argparse.Namespace) -> int:
    if arguments.job is None:
        jobs = client.jobs()
        if arguments.json:
            print(json.dumps([{"name": j["metadata"]["name"], **_shown(j)} for j in jobs]))
        else:
            print("\n".join(job_line(job) for job in jobs) or f"no TrainingJobs in namespace {client.namespace}")
        return EXIT_OK
    job = client.get(arguments.job)
    if arguments.json:
        print(json.dumps(_shown(job)))
    else:
        print("\n".join(status_lines(job, client.pods(arguments.job))))
    return EXIT_OK


def check_operator(client: Client, arguments: argparse.Namespace) -> int:
    from outlast_operator.kubernetes.check import time_to_take_up

    took_s = time_to_take_up(client, arguments.timeout)
    print(f"an operator serves namespace {client.namespace}: a suspended TrainingJob got its status in {took_s:.1f} s")
    return EXIT_OK


def promote_head(client: Client, arguments: argparse.Namespace) -> int:
    from outlast_operator.kubernetes.client import process_of, view_of

    epoch = view_of(client.status(arguments.job), arguments.shard).get("epoch", 0)
    began = time.monotonic()
    pod = client.promote(arguments.job, arguments.shard)
    print(f"{process_of(pod)} (pod {pod['metadata']['name']}) hands over and leaves")
    if arguments.no_wait:
        return EXIT_OK
    status = client.wait_promoted(arguments.job, arguments.shard, epoch, arguments.timeout)
    view, took_s = view_of(status, arguments.shard), time.monotonic() - began
    head = view["members"][0]["name"]
    print(f"{head} is head of shard {arguments.shard} in epoch {view['epoch']}, {took_s:.1f} s later")
    return EXIT_OK


def print_logs(client: Client, arguments: argparse.Namespace) -> int:
    process = arguments.process
    if process == "head":
        views = client.status(arguments.job).get("views") or []
        if not views or not views[0].get("members"):
            print(f"kubectl outlast: {arguments.job} has no head yet; name a process, as server-0", file=sys.stderr)
            return EXIT_FAILED
        process = views[0]["members"][0]["name"]
    for line in client.logs(arguments.job, process, arguments.follow, arguments.tail, arguments.previous):
        print(line, flush=arguments.follow)
    return EXIT_OK


def print_report(client: Client, arguments: argparse.Namespace) -> int:
    text = json.dumps(client.report(arguments.job), indent=2) + "\n"
    if arguments.output is None:
        sys.stdout.write(text)
    else:
        arguments.output.write_text(text)
        print(arguments.output)
    return EXIT_OK


# --- words ------------------------------------------------------------------------------------------------------------


def job_line(job: Json) -> str:
    """One job in one line."""
    spec, status = job.get("spec") or {}, job.get("status") or {}
    strategy = (spec.get("recovery") or {}).get("strategy", "")
    version, failovers = status.get("version", 0), status.get("failoverCount", 0)
    words = [f"{job['metadata']['name']}: {status.get('state', 'Pending')}", strategy, f"version {version:,}"]
    if status.get("waiting"):
        words.insert(1, f"waits: {status['waiting']}")
    if (accuracy := (status.get("progress") or {}).get("accuracy")) is not None:
        words.append(f"accuracy {accuracy:.3f}")
    words.append(f"{failovers} failover{'' if failovers == 1 else 's'}")
    return ", ".join(word for word in words if word)


def status_lines(job: Json, pods: Sequence[Json]) -> list[str]:
    """Everything worth knowing of one job, top down: state, chains, workers, what does not hold, the ledger."""
    status = job.get("status") or {}
    lines = [job_line(job)]
    progress = status.get("progress") or {}
    if progress.get("percent") is not None:
        eta = f", {progress['etaSeconds']:.0f} s left" if progress.get("etaSeconds") is not None else ""
        lines.append(f"progress   {progress['percent']:.0f} %{eta}")
    lines += [chain_line(view, pods) for view in status.get("views") or ()]
    workers = status.get("workers") or {}
    wanted = ((job.get("spec") or {}).get("workers") or {}).get("replicas")
    lines.append(f"workers    {workers.get('ready', 0)} of {wanted} run")
    if gradients := status.get("gradients"):
        lines.append("gradients  " + ", ".join(f"{number:,} {fact}" for fact, number in sorted(gradients.items())))
    if cost := status.get("cost"):
        currency = ((job.get("spec") or {}).get("cost") or {}).get("currency", "")
        lines.append(
            "cost       " + ", ".join(f"{amount:.2f} {part}" for part, amount in cost.items()) + f" {currency}"
        )
    lines += problem_lines(status)
    lines += [failover_line(f) for f in (status.get("failovers") or ())[-5:]]
    return lines


def chain_line(view: Json, pods: Sequence[Json]) -> str:
    """`shard 0    server-1 (head, mnist-server-1-x7k2p) > server-2 > joining server-0   epoch 4`."""
    names = {_process(pod): pod["metadata"]["name"] for pod in pods if not pod["metadata"].get("deletionTimestamp")}
    chain = []
    for i, member in enumerate(view.get("members") or ()):
        pod = names.get(member["name"], "no pod")
        chain.append(f"{member['name']} ({'head, ' if i == 0 else ''}{pod})")
    chain += [f"joining {member['name']}" for member in view.get("joining") or ()]
    rollbacks = f", {view['history']} rolled back" if view.get("history") else ""
    return (
        f"shard {view.get('shard', 0):<4} {' > '.join(chain) or 'no member'}   epoch {view.get('epoch', 0)}{rollbacks}"
    )


def problem_lines(status: Json) -> list[str]:
    """Conditions that are not as one would wish, with what they say."""
    wished = {"Ready": "True", "PrimaryAvailable": "True", "ReplicationHealthy": "True", "BufferHealthy": "True",
              "CheckpointAvailable": "True", "Failed": "False", "FailoverInProgress": "False", "SpecAccepted": "True",
              "Suspended": "False", "PodsReady": "True", "EvaluationHealthy": "True",
              "NetworkOpen": "True"}  # fmt: skip
    if status.get("state") == "Succeeded":
        return []
    bad = [c for c in status.get("conditions") or () if c["status"] not in (wished.get(c["type"]), "Unknown")]
    return [
        f"{'!':<10} {c['type']} is {c['status']}: {c.get('message') or c['reason']}" for c in bad if c["type"] in wished
    ]


def failover_line(failover: Json) -> str:
    """One line of the ledger."""
    from outlast_operator.kubernetes.job_report import seconds

    detected, update = seconds(failover.get("detectedTime")), seconds(failover.get("firstUpdateTime"))
    role = f" ({failover['role']})" if failover.get("role") else ""
    when = str(failover.get("detectedTime", "?")).partition(".")[0].replace("T", " ")
    words = f"lost       {when}  {failover.get('target')}{role}: {failover.get('cause')}"
    if detected is not None and update is not None:
        words += f", next update {update - detected:.2f} s later"
    gradients = failover.get("gradients") or {}
    told = ", ".join(f"{number} {fact}" for fact, number in gradients.items() if number)
    return words + (f", {told}" if told else "")


def _shown(job: Json) -> Json:
    """The status without what is for the operator alone."""
    return {key: value for key, value in (job.get("status") or {}).items() if key != "record"}


def _process(pod: Json) -> str:
    from outlast_operator.kubernetes.client import process_of

    return process_of(pod)


if __name__ == "__main__":
    sys.exit(main())
