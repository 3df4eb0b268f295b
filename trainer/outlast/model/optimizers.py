"""The optimizers that a server can run, by name, and how a worker's optimizer is compared with the spec's.

`torch.optim` does the arithmetic, on one flat tensor a param group: fused where torch has a fused CPU kernel, never
foreach, which is several times slower on a single flat tensor.
"""

from __future__ import annotations

from typing import Any

import torch

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
}
# What may differ between groups and is compared; other arguments of torch.optim must keep their defaults.
_COMPARED: dict[str, tuple[str, ...]] = {
    "SGD": ("lr", "momentum", "dampening", "weight_decay", "nesterov"),
    "Adam": ("lr", "betas", "eps", "weight_decay", "amsgrad"),
    "AdamW": ("lr", "betas", "eps", "weight_decay", "amsgrad"),
}


class OptimizerMismatch(ValueError):
    """The job's spec and the worker's code name different optimizers."""


def spec_description(spec: Any) -> dict[str, Any]:
    """What `spec.training.optimizer` asks for: {"name", "defaults"} with torch's argument names."""
    defaults: dict[str, Any] = {"lr": spec.lr}
    if spec.name == "SGD":
        defaults.update(momentum=spec.momentum, weight_decay=spec.weight_decay, nesterov=spec.nesterov)
    else:
        defaults.update(betas=list(spec.betas), eps=spec.eps, weight_decay=spec.weight_decay)
    return {"name": spec.name, "groups": [_complete(spec.name, defaults)]}


def _complete(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """All compared arguments, torch's defaults filled in, as JSON values."""
    cls: Any = OPTIMIZERS[name]
    reference = cls([torch.zeros(1)], lr=1e-3).param_groups[0]
    merged = {key: given.get(key, reference[key]) for key in _COMPARED[name]}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in merged.items()}


def describe(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A worker's optimizer as {"name", "groups": [{lr, …}, …]}. Raises `OptimizerMismatch` for an unknown class."""
    name = type(optimizer).__name__
    if OPTIMIZERS.get(name) is not type(optimizer):
        raise OptimizerMismatch(
            f"servers cannot run {type(optimizer).__module__}.{name}; use one of torch.optim's {', '.join(OPTIMIZERS)}"
        )
    for group in optimizer.param_groups:
        if group.get("maximize"):
            raise OptimizerMismatch("maximize=True is not supported; negate the loss instead")
    return {"name": name, "groups": [_complete(name, group) for group in optimizer.param_groups]}


def check_agreement(spec: dict[str, Any], code: dict[str, Any]) -> None:
    """Raise `OptimizerMismatch`, showing both, unless the code's first group is what the spec says."""
    if spec["name"] == code["name"] and spec["groups"][0] == code["groups"][0]:
        return

    def show(description: dict[str, Any]) -> str:
        arguments = ", ".join(f"{k}={v}" for k, v in description["groups"][0].items())
        return f"{description['name']}({arguments})"

    raise OptimizerMismatch(
        f"spec.training.optimizer asks for {show(spec)}, the code builds {show(code)}; make the two agree"
    )


def build(description: dict[str, Any], groups: list[torch.Tensor]) -> torch.optim.Optimizer:
    """Build the described optimizer over flat tensors, one a group; an empty tensor stands for "none of it here"."""
    arguments = [
        {"params": [tensor], **{k: tuple(v) if isinstance(v, list) else v for k, v in group.items()}}
        for tensor, group in zip(groups, description["groups"], strict=True)
    ]
    cls: Any = OPTIMIZERS[description["name"]]
    built: torch.optim.Optimizer = cls(arguments, lr=1e-3, foreach=False, fused=_fuses(groups))
    return built


def _fuses(groups: list[torch.Tensor]) -> bool:
    return all(g.numel() > 0 and g.device.type in ("cpu", "cuda") for g in groups)
