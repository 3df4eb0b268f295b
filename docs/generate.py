"""Writes the generated parts of the documentation; `--check` only says whether they are up to date.

    python docs/generate.py [--check]

reference/trainingjob.md comes as a whole from the typed spec (outlast.api.spec). In other pages and in the README only
the lines between `<!-- generated: NAME -->` and `<!-- end -->` are written. tests/unit/test_docs.py fails when anything
is stale.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlast.api.base import PATTERNS, QUANTITY
from outlast.api.job import API_VERSION, KIND
from outlast.api.rules import RULES
from outlast.api.spec import JobSpec
from outlast.api.spec_fields import Recovery
from outlast.api.strategy import STRATEGIES, TABLE, Traits, default_replicas
from outlast.process import metrics as trainer_metrics
from outlast.wire import frames as messages
from outlast_operator.kubernetes import metrics as operator_metrics
from outlast_operator.kubernetes import rights as operator_rights

DOCS = Path(__file__).resolve().parent
Schema = dict[str, Any]

TABLE_HEAD = ("| field | value | default | |", "|---|---|---|---|")
HEADING = f"""# {KIND}

<!-- Generated from the typed spec by docs/generate.py (`make docs`). Do not edit. -->

`apiVersion: {API_VERSION}`, `kind: {KIND}`, short name `tjob`. Every field of `spec`, from the same classes that
check a job: `outlast validate` and the cluster's API server accept the same jobs, with the same defaults. Unknown
fields are errors. A field without a default that is not marked *required* may be left out, or be null.

The smallest job:

```yaml
apiVersion: {API_VERSION}
kind: {KIND}
metadata:
  name: smallest
spec:
  training:
    task: outlast.tasks.fashion_mnist
    stopAfter: {{epochs: 1}}
```
"""

RULES_INTRODUCTION = (
    "The API server and `outlast validate` hold a job to these, in the same words. A field's name in italics stands "
    "for its value."
)


@dataclass(frozen=True)
class Section:
    """One object of the spec: its path, what it is, and its fields in the order of the classes."""

    path: str
    description: str
    schema: Schema


def sections(root: Schema, schema: Schema, path: str = "spec", description: str = "") -> Iterator[Section]:
    """The objects of the spec, depth first, parents before children."""
    yield Section(path, description or schema.get("description", ""), schema)
    for name, field in schema["properties"].items():
        child = resolve(root, field)
        if "properties" in child:
            yield from sections(root, child, f"{path}.{name}", field.get("description", ""))


def resolve(root: Schema, field: Schema) -> Schema:
    """The schema behind a reference or an optional value."""
    options = [option for option in field.get("anyOf", []) if option.get("type") != "null"]
    if "x-kubernetes-int-or-string" not in field and len(options) == 1:
        return resolve(root, options[0])
    if "$ref" in field:
        found: Schema = root["$defs"][field["$ref"].rsplit("/", 1)[-1]]
        return found
    return field


def trainingjob() -> str:
    root = JobSpec.model_json_schema(by_alias=True)
    lines = [HEADING]
    for section in sections(root, root, description="The job: what to train, on which servers and workers, and how."):
        lines += [
            f"## {section.path}",
            "",
            section.description,
            "",
            "| field | value | default | |",
            "|---|---|---|---|",
        ]
        required = section.schema.get("required", [])
        for name, field in section.schema["properties"].items():
            lines.append(row(root, section, name, field, name in required))
        lines.append("")
    return "\n".join([*lines, *rules(), ""])


def rules() -> list[str]:
    """What must hold between fields; in a message, a field in braces stands for its value."""
    lines = ["## Rules between fields", "", RULES_INTRODUCTION, ""]
    lines += ["| field | a job that breaks the rule is told |", "|---|---|"]
    for rule in RULES:
        message = re.sub(r"\{([\w.]+)\}", r"*\1*", rule.message).replace("|", "\\|")
        lines.append(f"| `{'.'.join(filter(None, ('spec', rule.at)))}` | {message} |")
    return lines


def row(root: Schema, section: Section, name: str, field: Schema, required: bool) -> str:
    inner = resolve(root, field)
    if "properties" in inner:
        shown = f"[`{name}`](#{(section.path + '.' + name).lower().replace('.', '')})"
        value, default = "object", ""
    else:
        shown, value, default = f"`{name}`", describe(inner), default_of(field)
    if required and not inner.get("x-outlast-optional") and not field.get("x-outlast-optional"):
        default = "*required*"
    cells = (shown, value, default, field.get("description", ""))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def default_of(field: Schema) -> str:
    value = field.get("x-outlast-default", field.get("default"))
    if value is None:
        return ""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def describe(schema: Schema) -> str:
    """What may be written there: `Tail`, `Head` · whole number, 1 or more · …"""
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    if schema.get("pattern") == QUANTITY:
        return "bytes: a whole number, or a quantity such as `512Mi`"
    pattern = PATTERNS.get(schema.get("pattern", ""))
    if pattern:
        return pattern
    kind = schema.get("type")
    if kind == "array":
        return f"list of {describe(schema['items'])}"
    words = {"integer": "whole number", "number": "number", "boolean": "`true` or `false`", "string": "text"}
    return words.get(str(kind), "object") + limits(schema)


def limits(schema: Schema) -> str:
    """`, 1 to 64`; bounds that only keep numbers exact are left out."""
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if high is not None and high >= 10**6:
        high = None
    text = f", above {above:g}" if above is not None and above is not True else ""
    if low is not None and high is not None and not below:
        return f", {low:g} to {high:g}"
    text += f", {low:g} or more" if low is not None else ""
    if below is not None:
        text += f", below {high if below is True else below:g}"
    elif high is not None:
        text += f", at most {high:g}"
    return text


def frames() -> str:
    lines = ["| op | number |", "|---|---|"]
    return "\n".join(lines + [f"| {op.name} | {op.value} |" for op in messages.Op])


def constants() -> str:
    rows = {
        "magic": f"`{messages.MAGIC.decode()}`",
        "protocol version": str(messages.PROTOCOL_VERSION),
        "header": f"{messages.HEADER_BYTES} bytes, its crc32 included",
        "meta": f"at most {messages.META_LIMIT} bytes",
        "data types": ", ".join(f"{d.name} = {d.value}" for d in messages.DType),
        "flags": ", ".join(f"{f.name} = {f.value}" for f in messages.Flag),
    }
    return "\n".join(["| | |", "|---|---|"] + [f"| {name} | {value} |" for name, value in rows.items()])


def metrics() -> str:
    families = operator_metrics.FAMILIES | trainer_metrics.FAMILIES
    lines = ["| metric | type | meaning |", "|---|---|---|"]
    return "\n".join(lines + [f"| `{name}` | {type_} | {text} |" for name, (type_, text) in sorted(families.items())])


def rights() -> str:
    """What the operator may do, for what, and what degrades without it."""
    return "\n".join(operator_rights.table())


def strategies() -> str:
    """What the loss of a server costs with each strategy: the README's table."""
    lines = [
        "| strategy | servers per shard | a push is acknowledged when | after the loss of a server | gradients lost "
        "| workers in the outage | consistency |",
        "|---|---|---|---|---|---|---|",
    ]
    default = Recovery.model_fields["strategy"].default
    for name in STRATEGIES:
        rows = {consistency: row for (strategy, consistency), row in TABLE.items() if strategy == name}
        fullest = next(row for row in rows.values() if not row.barrier)
        shown = f"`{name}` (default)" if name == default else f"`{name}`"
        alike = [f"`{c}`" for c, row in rows.items() if row.buffer == fullest.buffer]
        other = [f"`{c}` (gradients are never buffered)" for c, row in rows.items() if row.buffer != fullest.buffer]
        cells = (shown, str(default_replicas(name)), *promise(fullest), ", ".join(alike + other))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def promise(row: Traits) -> tuple[str, str, str, str]:
    """In words: acknowledged when, after a loss, gradients lost, workers in the outage."""
    waits = "wait, then resend what was not acknowledged"
    if row.through_buffer:
        lost = "none, within what Redis's durability setting keeps"
        return "Redis has it", "any server rebuilds from snapshot and log", lost, "keep computing"
    if not row.chained:
        restores = "a new server restores the newest complete checkpoint"
        return "the server has applied it", restores, "at most those since that checkpoint", waits
    tail = "every member of the chain has applied it, the tail last"
    joins = "the successor becomes head, a fresh replica joins at the tail"
    lost = "none acknowledged, while one caught-up replica lives"
    if row.diverts:
        return (
            f"{tail}, or Redis has it while no head answers",
            f"{joins}; the head drains Redis",
            lost,
            "keep computing",
        )
    return tail, joins, lost, waits


BLOCKS = {"strategies": strategies, "frames": frames, "constants": constants, "metrics": metrics, "rights": rights}


def pages() -> dict[Path, str]:
    """Every page with generated parts -> its text as it should be."""
    found = {DOCS / "reference" / "trainingjob.md": trainingjob()}
    for page in (DOCS.parent / "README.md", *DOCS.rglob("*.md")):
        if "<!-- generated:" in (text := page.read_text(encoding="utf-8")):
            found[page] = re.sub(
                r"(<!-- generated: (\w+) -->\n).*?(?=<!-- end -->)",
                lambda match: f"{match[1]}{BLOCKS[match[2]]()}\n",
                text,
                flags=re.DOTALL,
            )
    return found


def main() -> int:
    stale = {
        page: text for page, text in pages().items() if not page.exists() or page.read_text(encoding="utf-8") != text
    }
    for page, text in stale.items():
        if "--check" in sys.argv[1:]:
            print(f"{page.relative_to(DOCS.parent)} is stale; run `make docs`")
        else:
            page.write_text(text, encoding="utf-8")
            print(f"wrote {page.relative_to(DOCS.parent)}")
    return 1 if stale and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
