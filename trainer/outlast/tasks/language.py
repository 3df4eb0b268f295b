"""A small causal transformer that learns to write English, character by character, with or without LayerNorm.

The text needs no download: the Python language reference that every CPython brings along for `help()`
(`pydoc_data.topics`, some 460,000 characters). It is the same for the same release of Python; workers and evaluator of
a job must run the same one, as they must run the same torch. Its last tenth is the test data.

    characters [n, context] ─▶ embedding + position ─▶ layers × (attention, MLP; residual) ─▶ scores [n, context, 96]

`training.args` (defaults): `context` 64 characters · `batchSize` 16 · `width` 64, `layers` 2, `heads` 4 (0.1 million
parameters) · `dropout` 0 · `norm` "layer", or "none": then every branch begins as nothing, so that depth does not blow
up the signal · `text` a file of your own to learn from (UTF-8; anything but printable ASCII and line ends becomes one
character).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlast.tasks.base import Batch, Evaluation, Permutations, Task, TaskError, read_args

FIRST, LAST = 32, 126  # printable ASCII: tokens 1 … 95; a line's end is such a character too: 0
TOKENS = LAST - FIRST + 2
UNKNOWN = ord("?")
TEST_SHARE = 10  # one in so many characters, at the end
EVALUATION_BATCH = 64
DEFAULTS: dict[str, Any] = {
    "context": 64,
    "batchSize": 16,
    "width": 64,
    "layers": 2,
    "heads": 4,
    "dropout": 0.0,
    "norm": "layer",
    "text": None,
}


class Language(Task):
    """Predict the next character. A sample is a window of `context` characters; windows do not overlap."""

    def __init__(self, args: Mapping[str, Any], seed: int) -> None:
        super().__init__(args, seed)
        self.options = read_args(args, DEFAULTS, "outlast.tasks.language")
        _check(self.options)
        self.train, self.test = split(encode(read_text(self.options["text"])), self.options["context"])
        if len(self.train) < self.options["batchSize"] or len(self.test) == 0:
            raise TaskError(
                f"training.args.text: it gives {len(self.train)} windows of {self.options['context']} characters to "
                f"train on and {len(self.test)} to test; give a longer text, or a smaller context or batchSize"
            )
        self.permutations = Permutations(len(self.train), self.options["batchSize"], seed)

    def model(self) -> nn.Module:
        o = self.options
        return Transformer(o["context"], o["width"], o["layers"], o["heads"], o["dropout"], o["norm"])

    def batches_per_epoch(self) -> int:
        return self.permutations.per_epoch

    def batch(self, index: int) -> Batch:
        """(int64 `[batchSize, context]`: characters, the same one further on: what follows each)."""
        windows = self.train[self.permutations.batch(index)]
        return windows[:, :-1], windows[:, 1:]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy a character, in nats."""
        inputs, targets = batch
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    def evaluate(self, model: nn.Module, samples: int | None) -> Evaluation:
        """Share of characters foreseen, and mean loss a character, over the first `samples` test windows."""
        windows = self.test if samples is None else self.test[:samples]
        was_training = model.training
        model.eval()
        correct, total = 0, 0.0
        try:
            with torch.no_grad():
                for chunk in torch.split(windows, EVALUATION_BATCH):
                    scores, targets = model(chunk[:, :-1]).flatten(0, 1), chunk[:, 1:].flatten()
                    correct += int((scores.argmax(1) == targets).sum())
                    total += float(F.cross_entropy(scores, targets, reduction="sum"))
        finally:
            model.train(was_training)
        count = len(windows) * self.options["context"]
        return Evaluation(accuracy=correct / count, loss=total / count, samples=len(windows))


class Transformer(nn.Module):
    """Characters int64 `[n, t ≤ context]` to scores `[n, t, TOKENS]` for the character after each."""

    def __init__(self, context: int, width: int, layers: int, heads: int, dropout: float, norm: str) -> None:
        super().__init__()
        self.token = nn.Embedding(TOKENS, width)
        self.position = nn.Parameter(torch.zeros(context, width))
        self.blocks = nn.Sequential(*(Block(width, heads, dropout, norm) for _ in range(layers)))
        self.norm = _norm(norm, width)
        self.head = nn.Linear(width, TOKENS)
        nn.init.normal_(self.token.weight, std=0.02 if norm == "layer" else 0.5)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, characters: Tensor) -> Tensor:
        hidden = self.token(characters) + self.position[: characters.shape[1]]  # [n, t, width]
        scores: Tensor = self.head(self.norm(self.blocks(hidden)))
        return scores


class Block(nn.Module):
    """Causal self-attention and an MLP, each added to what goes in. `[n, t, width]` to the same."""

    def __init__(self, width: int, heads: int, dropout: float, norm: str) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = _norm(norm, width), _norm(norm, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        if norm == "none":
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(cast(nn.Linear, self.mlp[2]).weight)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = (
            part.view(n, t, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).split(width, dim=2)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # [n, heads, t, width / heads]
        x = x + self._drop(self.out(attended.transpose(1, 2).reshape(n, t, width)))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def _norm(norm: str, width: int) -> nn.Module:
    return nn.LayerNorm(width) if norm == "layer" else nn.Identity()


def read_text(path: str | None) -> str:
    """The file's text, or Python's own. Raises `TaskError`."""
    if path is not None:
        try:
            return Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TaskError(f"training.args.text: {path!r} cannot be read as UTF-8 text: {error}") from error
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise TaskError(
            "this Python has no pydoc_data.topics (the text of its help()); install the whole standard library, or "
            "name a file in training.args.text"
        ) from error
    return "\n".join(topics[name] for name in sorted(topics))


def encode(text: str) -> Tensor:
    """int64 `[characters]`: tokens 1 … 95 for printable ASCII, 0 for the end of a line, "?" for all else."""
    raw = torch.frombuffer(bytearray(text.encode("ascii", errors="replace")), dtype=torch.uint8).long()
    newline = raw == ord("\n")
    known = (raw >= FIRST) & (raw <= LAST)
    return torch.where(known, raw, UNKNOWN).sub_(FIRST - 1).masked_fill_(newline, 0)


def split(tokens: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """(training, test) windows, int64 `[n, context + 1]` each; a window's last character begins the next one."""
    border = len(tokens) - len(tokens) // TEST_SHARE
    return _windows(tokens[:border], context), _windows(tokens[border:], context)


def _windows(tokens: Tensor, context: int) -> Tensor:
    if len(tokens) <= context:
        return tokens.new_empty((0, context + 1))
    return tokens.unfold(0, context + 1, context).contiguous()


def _check(options: Mapping[str, Any]) -> None:
    for name in ("context", "batchSize", "width", "layers", "heads"):
        if options[name] < 1:
            raise TaskError(f"training.args.{name}: {options[name]} is too small; use 1 or more")
    if options["width"] % options["heads"]:
        raise TaskError(
            f"training.args.width: {options['width']} cannot be split over {options['heads']} heads; use a multiple"
        )
    if not 0 <= options["dropout"] < 1:
        raise TaskError(f"training.args.dropout: {options['dropout']} is not in 0 … 1; use for instance 0.1")
    if options["norm"] not in ("layer", "none"):
        raise TaskError(f"training.args.norm: {options['norm']!r} is neither 'layer' nor 'none'")
    if options["text"] is not None and not isinstance(options["text"], str):
        raise TaskError(f"training.args.text: {options['text']!r} is no path; name a text file")
