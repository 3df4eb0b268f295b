"""`status.record`: the operator's memory of a job, in one string that names its format.

Rules. (1) FORMAT:DATA. Format 1 is JSON without what equals its default, zlib, base64: a few lines on a terminal
where the plain text was a wall. Format 0 had neither prefix nor compression, and is read still. (2) What is left out
takes its default when it is read. So a change of a default of status.py makes a new format; the spec keeps all of its
fields, because its defaults belong to the API. (3) A record that cannot be read is never taken for an empty one: the
job would start from nothing beside its own pods. The reader raises `UnreadableRecord`, and no action follows.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass
from typing import Any

from outlast.api import codec
from outlast.api.errors import SpecError
from outlast.api.job import read_spec
from outlast.api.spec import JobSpec
from outlast_operator.planner.status import JobStatus

Json = dict[str, Any]
FORMAT = 1
LONGEST_BYTES = 16 << 20  # of the JSON: far beyond what a status may hold, far below what a forged one could swell to


class UnreadableRecord(Exception):
    """The job carries a memory that this release cannot read; the message says which, and what to do."""


@dataclass(frozen=True)
class Record:
    """What stands in `status.record`."""

    status: JobStatus
    spec: JobSpec | None = None  # as it was in force last: what a spec that is not valid leaves in force

    def to_text(self) -> str:
        spec = None if self.spec is None else self.spec.to_json()
        plain = json.dumps(
            {"status": codec.to_json(self.status, without="resource_version", lean=True), "spec": spec},
            separators=(",", ":"),
        )
        return f"{FORMAT}:{base64.b64encode(zlib.compress(plain.encode(), 9)).decode()}"


def read_record(job: Json) -> Record:
    """The memory that the job carries; an empty one where there is none, with the job's resource version.

    Raises `UnreadableRecord`.
    """
    version = str(job["metadata"]["resourceVersion"])
    shown = job.get("status") or {}
    text = shown.get("record")
    if not text:
        if shown.get("views"):
            raise _unreadable(job, "is missing, though the status shows views")
        return Record(JobStatus(resource_version=version))
    raw = _decode(job, str(text))
    try:
        return Record(JobStatus.from_json(_with_former_timers(raw["status"]), version), _spec(raw))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unreadable(job, f"has wrong content ({error!r})") from error


def out_of_force(job: Json, message: str) -> UnreadableRecord:
    """For a job that trains by a spec which this release refuses, as it does the one that is written now: to show that
    alone would throw its memory away."""
    return _unreadable(job, f"was made for a spec that this release refuses, and so is the present one: {message}")


def _spec(raw: Json) -> JobSpec | None:
    try:
        return None if raw.get("spec") is None else read_spec(raw["spec"])
    except SpecError:
        return None  # written by another release: what stands in the job counts


def _with_former_timers(status: Json) -> Json:
    """An older operator, whose job goes on under this one, kept two states among its timers."""
    since = status.get("since", {})
    return {"t_waiting": since.get("waiting"), "stopping": "stopping" in since, **status}


# --- formats ----------------------------------------------------------------------------------------------------------


def _decode(job: Json, text: str) -> Json:
    format_, _, data = ("0", "", text) if text.startswith("{") else text.partition(":")
    if format_ not in ("0", str(FORMAT)):
        raise _unreadable(job, f"has format {format_[:20]!r}")
    try:
        plain = data if format_ == "0" else _inflate(data)
        raw = json.loads(plain)
        if not isinstance(raw, dict):
            raise ValueError(f"a {type(raw).__name__} where an object should be")
    except (ValueError, zlib.error) as error:
        raise _unreadable(job, f"has format {format_} and is damaged ({error})") from error
    return raw


def _inflate(data: str) -> bytes:
    """Raises `ValueError` or `zlib.error`."""
    stream = zlib.decompressobj()
    plain = stream.decompress(base64.b64decode(data, validate=True), LONGEST_BYTES)
    if not stream.eof:
        raise ValueError("it is too short or too long")
    return plain


def _unreadable(job: Json, what: str) -> UnreadableRecord:
    meta = job["metadata"]
    return UnreadableRecord(
        f"{meta.get('namespace', 'default')}/{meta['name']}: status.record {what}; this operator reads formats 0 to "
        f"{FORMAT}. Run the release that wrote it or a newer one, or restore the status from a backup; else delete the "
        "job and create it again. Until then the operator leaves the job as it is"
    )
