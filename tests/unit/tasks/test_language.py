"""The language task: its text, its windows, and what its model may see."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from outlast.tasks import TaskError, load_task
from outlast.tasks.language import TOKENS, encode, split

SMALL = {"context": 8, "batchSize": 4, "width": 16, "layers": 2, "heads": 2}


def task(seed: int = 0, **args: object):  # type: ignore[no-untyped-def]
    return load_task("outlast.tasks.language", {**SMALL, **args}, seed)


def test_characters_become_tokens() -> None:
    assert encode("\n ~é\t").tolist() == [0, 1, 95, ord("?") - 31, ord("?") - 31]


def test_windows_share_one_character_and_the_last_tenth_is_for_the_test() -> None:
    train, test = split(torch.arange(50), 4)
    assert train[:2].tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]
    assert (len(train), test.tolist()) == (11, [[45, 46, 47, 48, 49]])


def test_a_text_shorter_than_a_window_has_none() -> None:
    assert [list(part.shape) for part in split(torch.arange(4), 8)] == [[0, 9], [0, 9]]


def test_targets_are_the_characters_that_follow() -> None:
    inputs, targets = task().batch(3)
    assert (inputs.shape, targets.shape) == ((4, 8), (4, 8))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_no_score_depends_on_a_later_character(norm: str) -> None:
    loaded = task(norm=norm, dropout=0.0)
    model = loaded.model()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
        inputs, _ = loaded.batch(0)
        changed = inputs.clone()
        changed[:, 5:] = 7
        assert torch.allclose(model(inputs)[:, :5], model(changed)[:, :5], atol=1e-6)
        assert not torch.allclose(model(inputs)[:, 5:], model(changed)[:, 5:], atol=1e-3)


@pytest.mark.parametrize(("norm", "layers"), [("layer", 5), ("none", 0)])
def test_the_norm_is_there_or_not(norm: str, layers: int) -> None:
    model = task(norm=norm).model()
    assert sum(isinstance(m, torch.nn.LayerNorm) for m in model.modules()) == layers


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_it_learns(norm: str) -> None:
    loaded = task(norm=norm)
    model = loaded.model()
    before = loaded.evaluate(model, 50)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for index in range(80):
        optimizer.zero_grad()
        loaded.loss(model, loaded.batch(index)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = loaded.evaluate(model, 50)
    assert before["loss"] > 0.9 * math.log(TOKENS)
    assert after["loss"] < 3.6
    assert after["accuracy"] > 0.12 > before["accuracy"]
    assert after["samples"] == 50


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    text = tmp_path / "ab.txt"
    text.write_text("ab" * 200)
    inputs, targets = task(text=str(text)).batch(0)
    assert set(inputs.flatten().tolist()) == {ord("a") - 31, ord("b") - 31}
    assert torch.equal(inputs == ord("a") - 31, targets == ord("b") - 31)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"norm": "batch"}, "neither 'layer' nor 'none'"),
        ({"width": 10, "heads": 4}, "split over 4 heads"),
        ({"context": 0}, "context: 0 is too small"),
        ({"dropout": 1.0}, "not in 0"),
        ({"text": "/nowhere/at/all.txt"}, "cannot be read"),
        ({"text": 3}, "is no path"),
        ({"batchSize": 10**6}, "give a longer text"),
    ],
)
def test_what_makes_no_sense_is_refused(args: dict[str, object], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        task(**args)
