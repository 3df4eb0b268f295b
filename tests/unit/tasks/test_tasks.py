"""Tasks: what they promise (determinism, random access, safe to fork) and how an import path becomes one."""

from __future__ import annotations

import gzip
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from outlast.evaluator import evaluate_weights
from outlast.tasks import Evaluation, Task, TaskError, load_task

TRAIN, TEST = 200, 40
PAPER_PARAMETERS = 813_258


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A FashionMNIST of 200 and 40 random images, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("OUTLAST_DATA", raising=False)
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for prefix, count in (("train", TRAIN), ("t10k", TEST)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return folder


def tasks_without_files() -> list[tuple[str, dict[str, object]]]:
    return [
        ("outlast.tasks.synthetic", {"parameters": 1000, "tensors": 3}),
        ("outlast.tasks.resnet", {"data": "patterns", "width": 0.125, "batchSize": 16}),
        ("outlast.tasks.resnet", {"data": "patterns", "width": 0.125, "batchSize": 16, "norm": "none"}),
        ("outlast.tasks.language", {"context": 16, "batchSize": 4, "width": 16, "heads": 2, "dropout": 0.1}),
    ]


def gradient(task: Task, index: int) -> list[torch.Tensor]:
    model = task.model()
    torch.manual_seed(index)
    task.loss(model, task.batch(index)).backward()  # type: ignore[no-untyped-call]
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(("path", "args"), tasks_without_files())
def test_the_same_seed_and_index_give_the_same_gradient(path: str, args: dict[str, object]) -> None:
    one, two = load_task(path, args, seed=3), load_task(path, args, seed=3)
    one.batch(11)  # what was asked before has no influence
    torch.rand(5)
    for a, b in zip(gradient(one, 7), gradient(two, 7), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("path", "args"), tasks_without_files())
def test_another_seed_gives_another_model(path: str, args: dict[str, object]) -> None:
    a, b = (load_task(path, args, seed).model().state_dict() for seed in (0, 1))
    assert any(not torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("path", "args"), tasks_without_files()[:2])
def test_training_makes_it_better(path: str, args: dict[str, object]) -> None:
    task = load_task(path, args, seed=0)
    model = task.model()
    before = task.evaluate(model, 200)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)  # momentum overshoots in some orders of addition
    for index in range(40):
        optimizer.zero_grad()
        task.loss(model, task.batch(index)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = task.evaluate(model, 200)
    assert after["accuracy"] > before["accuracy"] + 0.2
    assert after["loss"] < before["loss"]
    assert model.training


def test_fashion_mnist_is_the_papers_model(data_dir: Path) -> None:
    task = load_task("outlast.tasks.fashion_mnist", {"dataDir": str(data_dir)}, seed=0)
    model = task.model()
    assert sum(p.numel() for p in model.parameters()) == PAPER_PARAMETERS
    inputs, targets = task.batch(0)
    assert inputs.shape == (32, 1, 28, 28)
    assert inputs.dtype == torch.float32
    assert targets.shape == (32,)
    assert targets.dtype == torch.int64
    assert -1.0 <= float(inputs.min()) < -0.9 < 0.9 < float(inputs.max()) <= 1.0
    assert model(inputs).shape == (32, 10)
    assert float(model(inputs).detach().min()) < 0.0
    authors = load_task("outlast.tasks.fashion_mnist", {"dataDir": str(data_dir), "finalRelu": True}, seed=0).model()
    assert float(authors(inputs).detach().min()) == 0.0


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own(data_dir: Path) -> None:
    task = load_task("outlast.tasks.fashion_mnist", {"dataDir": str(data_dir), "batchSize": 20}, seed=5)
    per_epoch = task.batches_per_epoch()
    assert per_epoch == TRAIN // 20
    epochs = [torch.cat([task.batch(e * per_epoch + i)[0] for i in range(per_epoch)]).flatten(1) for e in range(2)]
    assert not torch.equal(epochs[0], epochs[1])
    for epoch in epochs:
        assert len(epoch.unique(dim=0)) == TRAIN
    assert torch.equal(task.batch(per_epoch - 1)[0].flatten(1), epochs[0][-20:])  # back to an epoch that is past


def test_evaluation_uses_the_first_samples_of_the_test_data(data_dir: Path) -> None:
    task = load_task("outlast.tasks.fashion_mnist", {"dataDir": str(data_dir)}, seed=0)
    model = task.model()
    assert task.evaluate(model, 10)["samples"] == 10
    assert task.evaluate(model, None)["samples"] == TEST == task.evaluate(model, 10_000)["samples"]
    assert task.evaluate(model, 10) == task.evaluate(model, 10)  # dropout is off
    assert model.training


def test_a_model_can_be_built_without_disturbing_the_random_state() -> None:
    task = load_task("outlast.tasks.synthetic", {"parameters": 10}, seed=0)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    task.model()
    assert torch.equal(torch.rand(3), expected)


FORK = """
import os, sys, torch
from outlast.tasks import fashion_mnist, load_task
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()  # 1, or more where the import of numpy starts its BLAS's threads (OPENBLAS_NUM_THREADS)
task = load_task("outlast.tasks.fashion_mnist", {"dataDir": sys.argv[1]}, 0)
task.model()
started = threads() - before
read, write = os.pipe()
def digest():
    torch.set_num_threads(1)
    model = task.model(); torch.manual_seed(0)
    task.loss(model, task.batch(4)).backward()
    return repr(float(sum(p.grad.double().abs().sum() for p in model.parameters())))
if os.fork() == 0:
    os.write(write, digest().encode()); os._exit(0)
os.close(write)
child = os.read(read, 100).decode()
os.wait()
print(started, child == digest())
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads through /proc")
def test_building_a_task_starts_no_thread_and_a_fork_computes_the_same(data_dir: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", FORK, str(data_dir)], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert result.stdout.split() == ["0", "True"]


MODULE = """
from __future__ import annotations
import torch
from torch import nn
SEEN = {}
def setup(args, seed):
    SEEN.update(args, seed=seed)
def model():
    return nn.Linear(4, 3)
def batches_per_epoch():
    return 5
def batch(index):
    g = torch.Generator().manual_seed(index)
    x = torch.rand(8, 4, generator=g)
    return x, x[:, :3].argmax(1)
"""

CLASS = """
from outlast.tasks import Task
import torch
from torch import nn
class Mine(Task):
    def model(self): return nn.Linear(self.args["width"], 2)
    def batches_per_epoch(self): return 2
    def batch(self, index): return torch.zeros(1, self.args["width"]), torch.zeros(1, dtype=torch.int64)
    def evaluate(self, model, samples): return {"accuracy": 0.5, "loss": 1, "samples": samples}
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's own, whose modules are forgotten afterwards."""
    for name in [m for m in sys.modules if m.startswith("own_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_module_with_functions_is_a_task(code: Path) -> None:
    (code / "own_module.py").write_text(MODULE)
    task = load_task("own_module", {"depth": 2}, seed=9, search=[str(code)])
    assert sys.modules["own_module"].SEEN == {"depth": 2, "seed": 9}
    model = task.model()
    assert torch.equal(model.state_dict()["weight"], task.model().state_dict()["weight"])
    assert task.loss(model, task.batch(0)).ndim == 0
    result = task.evaluate(model, 16)
    assert result["samples"] == 16
    assert 0.0 <= result["accuracy"] <= 1.0
    assert result["loss"] > 0.0


@pytest.mark.parametrize("path", ["own_class", "own_class:Mine", "own_class.Mine"])
def test_a_class_is_a_task(code: Path, path: str) -> None:
    (code / "own_class.py").write_text(CLASS)
    task = load_task(path, {"width": 6}, seed=0, search=[str(code)])
    assert task.model().weight.shape == (2, 6)  # type: ignore[union-attr]
    assert task.evaluate(task.model(), 3) == {"accuracy": 0.5, "loss": 1.0, "samples": 3}


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("own_absent", None, ["no module named 'own_absent'", "training.source"]),
        ("own_absent.tasks:Mine", None, ["no module named 'own_absent'"]),
        ("own_needy", "import own_library_that_is_not_here", ["needs 'own_library_that_is_not_here'", "install"]),
        ("own_rude", "1 / 0", ["importing it raised ZeroDivisionError"]),
        ("own_typo", "def model(:", ["importing it raised SyntaxError"]),
        ("own_empty", "", ["has no model(), batches_per_epoch(), batch()"]),
        ("own_part", "def model(): ...\ndef batch(i): ...", ["has no batches_per_epoch()"]),
        ("own_two", CLASS + "class Other(Mine): pass", ["several tasks (Mine, Other)", "name one: own_two.Mine"]),
        ("own_one:Yours", CLASS, ["has no class Yours", "Mine"]),
        (
            "own_fails",
            CLASS + "    def __init__(self, a, s): raise KeyError('x')",
            ["Mine(args, seed) raised KeyError"],
        ),
    ],
    ids=lambda v: v if isinstance(v, str) and v.startswith("own_") else "",
)
def test_what_is_no_task_is_refused_with_a_remedy(
    code: Path, path: str, source: str | None, expected: list[str]
) -> None:
    if source is not None:
        (code / f"{path.split(':')[0]}.py").write_text(source)
    with pytest.raises(TaskError) as refused:
        load_task(path, {}, seed=0, search=[str(code)])
    for words in expected:
        assert words in str(refused.value)


def test_a_model_that_is_none_is_refused(code: Path) -> None:
    (code / "own_none.py").write_text(MODULE.replace("return nn.Linear(4, 3)", "return None"))
    with pytest.raises(TaskError, match=r"returned NoneType; return a torch\.nn\.Module"):
        load_task("own_none", {}, seed=0, search=[str(code)]).model()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"paramters": 5}, "no such argument; it takes batches, busy, computeMs, parameters, tensors"),
        ({"parameters": "many"}, "'many' is of type str; outlast.tasks.synthetic wants int"),
        ({"busy": 1}, "1 is of type int"),
        ({"parameters": 0}, "use 1 or more"),
        ({"parameters": 2, "tensors": 3}, "more tensors than parameters"),
    ],
)
def test_wrong_arguments_are_named(args: dict[str, object], words: str) -> None:
    with pytest.raises(TaskError) as refused:
        load_task("outlast.tasks.synthetic", args, seed=0)
    assert words in str(refused.value)
    assert "training.args." in str(refused.value)


def test_synthetic_gradients_are_known_exactly() -> None:
    task = load_task("outlast.tasks.synthetic", {"parameters": 1001, "tensors": 3}, seed=0)
    model = task.model()
    assert [p.numel() for p in model.parameters()] == [334, 334, 333]
    target = float(task.batch(2)[1])
    assert abs(target - 1.0) <= 0.1
    loss = task.loss(model, task.batch(2))
    loss.backward()  # type: ignore[no-untyped-call]
    for p in model.parameters():
        assert p.grad is not None
        assert torch.equal(p.grad, p.detach() - target)
    exact = sum(0.5 * float((p.detach().double() - target).square().sum()) for p in model.parameters())
    assert math.isclose(float(loss.detach()), exact, rel_tol=1e-4)


def test_resnet_has_statistics_and_scales(data_dir: Path) -> None:
    def count(width: float) -> int:
        model = load_task("outlast.tasks.resnet", {"data": "patterns", "width": width}, seed=0).model()
        assert any("running_mean" in name for name, _ in model.named_buffers())
        return sum(p.numel() for p in model.parameters())

    assert count(1.0) == 11_173_962  # torchvision's, with a 3×3 first convolution and ten classes
    assert count(0.25) < count(0.5) / 3.5
    task = load_task("outlast.tasks.resnet", {"dataDir": str(data_dir), "width": 0.125}, seed=0)
    assert task.batch(0)[0].shape == (32, 3, 32, 32)
    assert task.evaluate(task.model(), None)["samples"] == TEST


def test_resnet_without_normalisation_has_no_statistics_and_a_calm_signal() -> None:
    args = {"data": "patterns", "width": 0.125, "norm": "none", "batchSize": 16}
    task = load_task("outlast.tasks.resnet", args, seed=0)
    model = task.model()
    assert list(model.named_buffers()) == []
    with torch.no_grad():
        scores = model(task.batch(0)[0])
    assert 0 < float(scores.abs().max()) < 3, "depth does not blow it up"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for index in range(2):  # in the first step only what comes after a block's zeros moves
        optimizer.zero_grad()
        task.loss(model, task.batch(index)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in model.parameters())


def test_resnet_refuses_an_unknown_norm() -> None:
    with pytest.raises(TaskError, match="neither 'batch' nor 'none'"):
        load_task("outlast.tasks.resnet", {"data": "patterns", "norm": "layer"}, seed=0)


def test_weights_are_loaded_before_they_are_measured() -> None:
    task = load_task("outlast.tasks.synthetic", {"parameters": 100}, seed=0)

    def load_goal(model: nn.Module) -> None:
        for p in model.parameters():
            p.data.fill_(1.0)

    assert evaluate_weights(task, task.model(), load_goal, None) == {"accuracy": 1.0, "loss": 0.0, "samples": 100}


def test_a_diverged_run_is_reported_as_such() -> None:
    class Diverged(Task):
        def evaluate(self, model: nn.Module, samples: int | None) -> Evaluation:
            return Evaluation(accuracy=math.nan, loss=math.inf, samples=1)

    result = evaluate_weights(Diverged({}, 0), nn.Linear(1, 1), lambda model: None, None)
    assert result == {"accuracy": 0.0, "loss": math.inf, "samples": 1}
