"""What a local run takes from a pod template, and what it must ignore. Pure.

A pod template speaks of images, volumes and nodes. Of all that, local processes have an environment and a command;
the rest is named to the user once, so that nobody believes it took effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class LocalTemplate:
    """`argv` is None for the built-in program of the role; `ignored` are paths below the template."""

    env: dict[str, str] = field(default_factory=dict)
    argv: list[str] | None = None
    ignored: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(raw: Mapping[str, Any] | None) -> LocalTemplate:
        return LocalTemplate(**raw) if raw else LocalTemplate()


def local_template(template: Mapping[str, Any] | None) -> LocalTemplate:
    """Read a PodTemplateSpec: `env` (plain values) and `command` + `args` of the role's container, as in a cluster: the
    one that is named `outlast`, else the first."""
    template = template or {}
    ignored = [key for key in template if key not in ("spec",)]
    pod = template.get("spec") or {}
    ignored += [f"spec.{key}" for key in pod if key != "containers"]
    containers = pod.get("containers") or []
    ours = next((i for i, c in enumerate(containers) if c and c.get("name") == "outlast"), 0)
    ignored += [f"spec.containers[{i}]" for i in range(len(containers)) if i != ours]
    if not containers:
        return LocalTemplate(ignored=ignored)
    container = containers[ours] or {}
    at = f"spec.containers[{ours}]"
    ignored += [f"{at}.{key}" for key in container if key not in ("name", "env", "command", "args")]
    env: dict[str, str] = {}
    for i, variable in enumerate(container.get("env") or []):
        if "valueFrom" in variable:
            ignored.append(f"{at}.env[{i}] ({variable.get('name')}: valueFrom)")
        else:
            env[str(variable["name"])] = str(variable.get("value", ""))
    command = [str(word) for word in container.get("command") or []]
    arguments = [str(word) for word in container.get("args") or []]
    if arguments and not command:
        ignored.append(f"{at}.args (without command)")
    return LocalTemplate(env=env, argv=[*command, *arguments] if command else None, ignored=ignored)
