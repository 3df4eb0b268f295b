"""Reading a TrainingJob, with everything that is wrong reported at once, and writing it.

Rules. (1) What is accepted here is what the API server accepts with the generated CRD: the same fields, limits,
defaults and cross-field rules (rules.py). (2) `SpecError` holds all errors, not the first: fields that are wrong are
set aside and the cross-field rules that do not read them are still checked. (3) `to_json` is canonical: camelCase,
defaults filled in, quantities in bytes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from outlast.api.base import PATTERNS
from outlast.api.document import read_document
from outlast.api.errors import (
    FieldError,
    Location,
    SpecError,
    SpecWarning,
    describe,
    dotted,
    likeliest,
    show,
    unknown_field,
)
from outlast.api.rules import broken_rules, half_missing, name_error
from outlast.api.spec import JobSpec
from outlast.api.spec_warnings import warnings_for

API_VERSION = "outlast.dev/v1alpha1"
KIND = "TrainingJob"
_TOP = ("apiVersion", "kind", "metadata", "spec", "status")


def read_spec(raw: Any) -> JobSpec:
    """A `spec` (camelCase) as an object. Raises `SpecError` with everything that is wrong in it."""
    spec, errors = _decode(raw)
    if spec is None or errors:
        raise SpecError(errors)
    return spec


@dataclass(frozen=True)
class _Problem:
    """An error of one field: where it is (within the spec), and which field its author meant, if it is unknown."""

    location: Location
    error: FieldError
    meant: Location | None = None


def _decode(raw: Any) -> tuple[JobSpec | None, list[FieldError]]:
    """The spec if it is valid, and all that is wrong with it if not."""
    try:
        spec: JobSpec | None = JobSpec.model_validate(raw, by_alias=True, by_name=False)
        problems: list[_Problem] = []
    except ValidationError as error:
        problems = [_translate(detail) for detail in error.errors()]
        spec = _salvage(raw, [problem.location for problem in problems])
    errors = [problem.error for problem in problems]
    if spec is not None:
        errors += broken_rules(spec, [at for p in problems for at in (p.location, p.meant) if at is not None])
    return spec, errors


def _translate(detail: Any) -> _Problem:
    """One of pydantic's errors in our words."""
    location: Location = detail["loc"]
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    path = dotted(("spec", *location))
    if kind in ("extra_forbidden", "invalid_key"):
        siblings = _fields_at(JobSpec, location[:-1])
        meant = likeliest(str(location[-1]), siblings, _everywhere(JobSpec))
        error = FieldError(path, value, unknown_field(siblings, meant))
        if meant is None:
            return _Problem(location, error)
        absolute = meant.startswith("spec.")
        return _Problem(location, error, tuple(meant.split(".")[1:]) if absolute else (*location[:-1], meant))
    if kind == "missing":
        if (pair := half_missing(dotted(location[:-1]))) is not None:
            return _Problem(location[:-1], FieldError(dotted(("spec", *location[:-1])), value, pair.message))
        value = None
    return _Problem(location, FieldError(path, value, describe(kind, value, context, detail["msg"], PATTERNS)))


def _salvage(raw: Any, wrong: list[Location]) -> JobSpec | None:
    """The spec without what is wrong in it (defaults instead), so that the rules can be checked; None: hopeless."""
    pruned = copy.deepcopy(raw)
    for _ in range(8):  # an object that lacks something now is pruned in the next round: at most the depth of the spec
        if not isinstance(pruned, dict) or () in wrong:
            return None
        for location in wrong:
            _remove(pruned, location)
        try:
            return JobSpec.model_validate(pruned, by_alias=True, by_name=False)
        except ValidationError as error:
            wrong = [d["loc"][:-1] if d["type"] == "missing" else d["loc"] for d in error.errors()]
    return None


def _remove(tree: Any, location: Location) -> None:
    """Delete what stands at the location; an element of a list takes the whole list with it."""
    path = list(takewhile(lambda part: isinstance(part, str), location))
    for part in path[:-1]:
        tree = tree.get(part) if isinstance(tree, dict) else None
    if isinstance(tree, dict) and path:
        tree.pop(path[-1], None)


def _submodel(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _submodel(arg))), None)


def _fields_at(cls: type[BaseModel], location: Location) -> list[str]:
    """The camelCase names of the fields known at a place in the spec."""
    model: type[BaseModel] | None = cls
    for part in location:
        if model is None:
            return []
        info = next((info for info in model.model_fields.values() if info.alias == part), None)
        model = _submodel(info.annotation) if info else None
    return [] if model is None else [info.alias or name for name, info in model.model_fields.items()]


def _everywhere(cls: type[BaseModel], prefix: str = "spec") -> dict[str, list[str]]:
    """Every field's name -> the paths at which a field of that name exists."""
    found: dict[str, list[str]] = {}
    for name, info in cls.model_fields.items():
        path = f"{prefix}.{info.alias or name}"
        found.setdefault(info.alias or name, []).append(path)
        model = _submodel(info.annotation)
        for key, paths in (_everywhere(model, path) if model else {}).items():
            found.setdefault(key, []).extend(paths)
    return found


class TrainingJob:
    """A named job: `name`, `namespace`, `spec`, `warnings`; the rest of its `metadata`, and `status`, as they came."""

    def __init__(
        self,
        name: str,
        spec: JobSpec,
        namespace: str = "default",
        metadata: Mapping[str, Any] | None = None,
        status: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.namespace = namespace
        self.spec = spec
        self.metadata = dict(metadata or {})
        self.status = dict(status or {})
        self.warnings: list[SpecWarning] = warnings_for(spec)

    def __repr__(self) -> str:
        return f"TrainingJob({self.namespace}/{self.name}, {self.spec.recovery.strategy})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrainingJob) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # it holds dictionaries

    @staticmethod
    def load(source: str | Path | Mapping[str, Any]) -> TrainingJob:
        """Read a job from a file, from YAML text (a string with a line break or a brace), or from a dictionary.

        Raises `SpecError` with everything that is wrong, also when the file cannot be read or is no YAML.
        """
        raw = dict(source) if isinstance(source, Mapping) else read_document(source, KIND)
        errors = _envelope_errors(raw)
        spec: JobSpec | None = None
        if "spec" in raw and raw["spec"] is not None:
            spec, spec_errors = _decode(raw["spec"])
            errors += spec_errors
        if spec is None or errors:
            raise SpecError(errors)
        metadata = raw["metadata"]
        return TrainingJob(
            metadata["name"], spec, metadata.get("namespace") or "default", metadata, raw.get("status") or {}
        )

    def to_json(self) -> dict[str, Any]:
        """The whole object in canonical form; without `status`, which is written apart."""
        metadata = {**self.metadata, "name": self.name, "namespace": self.namespace}
        return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": self.spec.to_json()}


def _envelope_errors(raw: Mapping[str, Any]) -> list[FieldError]:
    """What is wrong outside `spec`."""
    errors = []
    for field, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
        value = raw.get(field)
        if value is None:
            errors.append(FieldError(field, None, f"missing; write {field}: {expected}"))
        elif value != expected:
            errors.append(FieldError(field, value, f"{show(value)} is not {expected}; this version reads no other"))
    elsewhere = _everywhere(JobSpec)
    for key in [key for key in raw if key not in _TOP]:
        meant = likeliest(str(key), _TOP, elsewhere)
        errors.append(FieldError(str(key), raw[key], unknown_field(_TOP, meant)))
    metadata = raw.get("metadata")
    if not isinstance(metadata, dict):
        fact = "missing" if metadata is None else f"{show(metadata)} is not an object"
        errors.append(FieldError("metadata", metadata, f"{fact}; write metadata: {{name: my-job}}"))
    elif (problem := name_error(metadata.get("name"))) is not None:
        errors.append(FieldError("metadata.name", metadata.get("name"), problem))
    elif not isinstance(metadata.get("namespace"), str | None):
        value = metadata["namespace"]
        errors.append(FieldError("metadata.namespace", value, f"{show(value)} is not a string; put it in quotes"))
    if raw.get("spec") is None:
        errors.append(FieldError("spec", None, "missing; it needs spec.training at least"))
    return errors
