"""Dataclasses as plain JSON values, and back, by their type hints.

Rules. (1) A key that a class does not know is ignored, at every depth: another release wrote it. (2) A field without a
key takes its default; `TypeError` where it has none. (3) Keys of dictionaries become what their hint says, tuples
become lists and back; other values are taken as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_json(value: Any, without: str = "", lean: bool = False) -> dict[str, Any]:
    """`without` this field, and if `lean` without those that equal their defaults, at every depth."""
    named = [(f, getattr(value, f.name)) for f in fields(value) if f.name != without]
    return {f.name: _plain(v, lean) for f, v in named if not lean or v != _default(f)}


def from_json(kind: type[T], raw: Mapping[str, Any]) -> T:
    return _reader(kind)(raw)  # type: ignore[arg-type, no-any-return]


def _plain(value: Any, lean: bool) -> Any:
    if value is None or isinstance(value, (str, int, float)):  # most are
        return value
    if is_dataclass(value):
        return to_json(value, lean=lean)
    if isinstance(value, dict):
        return {str(key): _plain(v, lean) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, lean) for v in value]
    raise TypeError(f"a {type(value).__name__} is no JSON value")


def _default(field: Field[Any]) -> Any:
    """A field's default; MISSING, which equals nothing, where it has none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


@cache
def _reader(hint: Any) -> Callable[[Any], Any]:
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        hints = get_type_hints(hint)
        read_field = {f.name: _reader(hints[f.name]) for f in fields(hint)}
        return lambda raw: hint(**{name: read(raw[name]) for name, read in read_field.items() if name in raw})
    if origin is tuple:
        read_item = _reader(args[0])
        return lambda raw: tuple(map(read_item, raw))
    if origin is dict:
        key, read_value = args[0], _reader(args[1])
        return lambda raw: {key(k): read_value(v) for k, v in raw.items()}
    if origin in (Union, UnionType) and NoneType in args:
        read_other = _reader(next(a for a in args if a is not NoneType))
        return lambda raw: None if raw is None else read_other(raw)
    return lambda raw: raw
