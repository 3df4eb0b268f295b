"""What all models of the spec share: strictness, spelling, nulls, quantities, and the patterns with their names.

Rules. (1) YAML is camelCase, Python snake_case; unknown fields are errors. (2) Nothing is converted: "3" is not 3, as
the API server sees it too. (3) A null in a field that has no meaning for null counts as left out, as the API server
prunes it before it fills in defaults. (4) `to_json()` holds every field, defaults included; reading it gives the
same object.
"""

from __future__ import annotations

import re
import types
from fractions import Fraction
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel

LARGEST_COUNT = 2**31 - 1
LARGEST_EXACT = 2**53 - 1  # the largest whole number that every JSON reader keeps exact
LEAST_BYTES = 2**20

DNS_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"
IMPORT_PATH = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$"
REDIS_URL = r"^(redis|rediss|unix)://.+$"
CURRENCY = r"^[A-Z]{3}$"
MANAGER = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?/[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$"
QUANTITY = r"^[0-9]+(\.[0-9]+)?(k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"

PATTERNS = {
    DNS_LABEL: "a DNS label (lower-case letters, digits and '-', beginning with a letter)",
    DNS_SUBDOMAIN: "the name of a Kubernetes object (lower-case letters, digits, '-' and '.')",
    IMPORT_PATH: "an import path such as outlast.tasks.fashion_mnist; a file goes into training.script",
    REDIS_URL: "a Redis URL such as redis://host:6379/0 (redis, rediss or unix)",
    CURRENCY: "a currency code such as USD",
    MANAGER: "a controller's name such as outlast.dev/operator",
}

_MULTIPLIERS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_MULTIPLIERS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}


def parse_quantity(value: Any) -> Any:
    """`"4Gi"` -> 4294967296 bytes, rounded down; what is no string passes through. Raises `ValueError` for others."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?", value)
    if match is None:
        raise ValueError(f'"{value}" is not a quantity of bytes; write for example 512Mi, 4Gi or 4294967296')
    return int(Fraction(match[1]) * _MULTIPLIERS[match[2] or ""])


def _off_is_null(value: float) -> float | None:
    return value or None


def _quantity_is(relation: str, limit: int) -> str:
    """CEL: `self`, a string, is a quantity in this relation to the limit."""
    return f"quantity(self).compareTo(quantity('{limit}')) {relation} 0"


Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
Seconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
# How often something happens. 0 is read as null, never: `kubectl apply` drops a null, and the default takes its place.
EveryUpdates = Annotated[int, Field(ge=0, le=LARGEST_COUNT), AfterValidator(_off_is_null)]
EverySeconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False), AfterValidator(_off_is_null)]
Amount = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Bytes = Annotated[
    int,
    BeforeValidator(parse_quantity),
    Field(ge=LEAST_BYTES, le=LARGEST_EXACT),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": QUANTITY,  # of a string,
            "minimum": LEAST_BYTES,  # and of a number
            "maximum": LARGEST_EXACT,
            "x-kubernetes-int-or-string": True,
            "x-kubernetes-validations": [
                {
                    "rule": f"type(self) != string || {_quantity_is('>=', LEAST_BYTES)} && "
                    f"{_quantity_is('<=', LARGEST_EXACT)}",
                    "message": f"is too small or too large; use {LEAST_BYTES} or more, {LARGEST_EXACT} or less",
                }
            ],
        }
    ),
]
ObjectName = Annotated[str, Field(pattern=DNS_SUBDOMAIN, max_length=253)]
OpaqueObject = Annotated[
    dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})
]


def takes_null(annotation: Any) -> bool:
    """Whether null is a value of this field (and not a way to leave it out)."""
    if get_origin(annotation) is Annotated:
        return takes_null(get_args(annotation)[0])
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


class FieldsModel(BaseModel):
    """A part of the spec: immutable, strict, camelCase outside and snake_case inside."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        alias_generator=to_camel,
        validate_by_name=True,  # for code that builds specs; documents are read by alias alone (job.py)
        validate_by_alias=True,
        use_attribute_docstrings=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        dropped = {
            key
            for name, info in cls.model_fields.items()
            if not takes_null(info.annotation)
            for key in (name, info.alias)
            if key in raw and raw[key] is None
        }
        return {key: value for key, value in raw.items() if key not in dropped}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, camelCase, defaults filled in."""
        return self.model_dump(mode="json", by_alias=True)
