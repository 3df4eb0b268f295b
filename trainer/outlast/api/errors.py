"""What is wrong with a TrainingJob: every error at once, each with its path, in words that say what to write instead.

A line reads `PATH: FACT; REMEDY`, for example `spec.recovery.chain.ack: "Tial" is not one of Tail, Successor, Head`.
pydantic finds the errors of single fields; here they are put into our words, so that the same mistake reads the same
whichever library, or the API server, would have found it.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Location = tuple[str | int, ...]
Words = Callable[[Any, Mapping[str, Any]], str]


@dataclass(frozen=True)
class FieldError:
    """One mistake: where, what stands there, and what should."""

    path: str
    value: Any
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


@dataclass(frozen=True)
class SpecWarning:
    """Something legal that does not do what its author may expect."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class SpecError(ValueError):
    """A TrainingJob that cannot be used. `errors` holds all that is wrong; `str()` is one line for each."""

    def __init__(self, errors: Iterable[FieldError]) -> None:
        self.errors: list[FieldError] = list(errors)
        assert self.errors, "a SpecError without an error"
        super().__init__("\n".join(str(error) for error in self.errors))


def show(value: Any) -> str:
    """The value as YAML's author wrote it, more or less: JSON, at most 60 characters."""
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def dotted(location: Location) -> str:
    """`("spec", "betas", 0)` -> `spec.betas[0]`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def likeliest(name: str, siblings: Sequence[str], elsewhere: Mapping[str, Sequence[str]]) -> str | None:
    """The field that the author of an unknown one meant: a sibling's name, another place's whole path, or None.

    `siblings` are the fields known at that place; `elsewhere` maps every field's name to the paths it has in the spec.
    """
    plain = {sibling.lower(): sibling for sibling in siblings}
    squeezed = name.replace("_", "").replace("-", "").lower()
    near = difflib.get_close_matches(squeezed, plain, n=1, cutoff=0.7)
    if near:
        return plain[near[0]]
    paths = elsewhere.get(name, ())
    return paths[0] if len(paths) == 1 else None


def unknown_field(siblings: Sequence[str], meant: str | None) -> str:
    """Words for a field that does not exist; `meant` as `likeliest` gives it."""
    remedy = f"did you mean {meant}?" if meant else f"known here: {', '.join(siblings)}"
    return f"unknown field; {remedy}"


def _whole(value: Any, _: Mapping[str, Any]) -> str:
    quoted = isinstance(value, str) and value.strip().lstrip("+-").isdigit()
    return f"{show(value)} is not a whole number" + ("; write it without quotes" if quoted else "")


def _number(value: Any, _: Mapping[str, Any]) -> str:
    try:
        quoted = isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        quoted = False
    return f"{show(value)} is not a number" + ("; write it without quotes" if quoted else "")


def _string(value: Any, _: Mapping[str, Any]) -> str:
    scalar = isinstance(value, bool | int | float)
    return f"{show(value)} is not a string" + ("; put it in quotes" if scalar else "")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


# The words for each of pydantic's error types; the second argument is its context (`ctx`).
_WORDS: dict[str, Words] = {
    "missing": lambda v, c: "missing; it has no default",
    "int_type": _whole,
    "int_from_float": _whole,
    "float_type": _number,
    "finite_number": lambda v, c: f"{show(v)} is not a finite number",
    "bool_type": lambda v, c: f"{show(v)} is not true or false",
    "string_type": _string,
    "model_type": lambda v, c: f"{show(v)} is not an object",
    "model_attributes_type": lambda v, c: f"{show(v)} is not an object",
    "dict_type": lambda v, c: f"{show(v)} is not an object",
    "list_type": lambda v, c: f"{show(v)} is not a list",
    "tuple_type": lambda v, c: f"{show(v)} is not a list",
    "too_short": lambda v, c: f"{show(v)} is too short; give {_plural(c['min_length'], 'item')} or more",
    "too_long": lambda v, c: f"{show(v)} is too long; give {_plural(c['max_length'], 'item')} or fewer",
    "greater_than": lambda v, c: f"{show(v)} is too small; use more than {c['gt']:g}",
    "greater_than_equal": lambda v, c: f"{show(v)} is too small; use {c['ge']:.16g} or more",
    "less_than": lambda v, c: f"{show(v)} is too large; use less than {c['lt']:g}",
    "less_than_equal": lambda v, c: f"{show(v)} is too large; use {c['le']:.16g} or less",
    "string_too_short": lambda v, c: "is empty; write a value or leave the field out",
    "string_too_long": lambda v, c: f"{show(v)} is too long; use {_plural(c['max_length'], 'character')} or fewer",
    "value_error": lambda v, c: str(c["error"]),
}


def describe(kind: str, value: Any, context: Mapping[str, Any], message: str, patterns: Mapping[str, str]) -> str:
    """Our words for one pydantic error. `patterns` maps a regular expression to what it stands for."""
    if kind == "literal_error":
        return f"{show(value)} is not one of {context['expected'].replace(' or ', ', ').replace(chr(39), '')}"
    if kind == "string_pattern_mismatch":
        return f"{show(value)} is not {patterns[context['pattern']]}"
    words = _WORDS.get(kind)
    return words(value, context) if words else f"{show(value)}: {message}"
