"""What a training task is, and how an import path becomes one.

A task says what is trained on which data; how it is made to outlast its servers is no concern of it. The rules:

1. A task is deterministic: `model()` follows from the seed alone, `batch(index)` from (seed, index) alone. A worker
   that takes over another's slot computes the same gradient from the same weights.
2. `batch(index)` is random access. Batch indices are handed out to slots by the servers and may skip or repeat.
3. Building a task starts no thread and draws nothing from the global random state: processes fork after it. Data is
   read-only and shared between them.
4. Randomness inside the model (dropout) is the caller's: it seeds torch's global generator before each step.

`load_task` accepts a subclass of `Task`, any class with the same methods, or a module with these functions at top level
(`setup(args, seed)` is called first if there is one). `loss` and `evaluate` may be left out: see `Task`.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, TypedDict, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
REQUIRED = ("model", "batches_per_epoch", "batch")
OPTIONAL = ("loss", "evaluate")
EVALUATION_BATCHES = 50
PERMUTATION_STRIDE = 1_000_003  # a prime: permutations of neighbouring seeds do not repeat each other's epochs

T = TypeVar("T")


class TaskError(Exception):
    """A task cannot be imported, built or used as it is. The message names the fact, what is expected and a remedy."""


class Evaluation(TypedDict):
    """`accuracy` in 0…1 (NaN where the task knows none), mean `loss`, and on how many `samples` both were measured."""

    accuracy: float
    loss: float
    samples: int


class Task:
    """The base of a task, with defaults for `loss` and `evaluate` (classification with cross-entropy)."""

    def __init__(self, args: Mapping[str, Any], seed: int) -> None:
        self.args = dict(args)
        self.seed = seed

    def model(self) -> nn.Module:
        """A new model with its initial weights. torch's global generator is seeded around the call by `load_task`."""
        raise NotImplementedError

    def batches_per_epoch(self) -> int:
        """How many batches one pass over the training data has: 1 or more."""
        raise NotImplementedError

    def batch(self, index: int) -> Batch:
        """(inputs, targets) of batch `index`; epoch = index // batches_per_epoch. Same index, same batch."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy of `model` on the batch, a scalar to call `backward()` on."""
        inputs, targets = batch
        return F.cross_entropy(model(inputs), targets)

    def evaluate(self, model: nn.Module, samples: int | None) -> Evaluation:
        """How good `model` is, on fixed data: the first `samples` of the test data (None: all of it).

        The default has no test data: it measures the mean loss over the first training batches, and accuracy where
        the model returns one score a class.
        """
        return _evaluate_batches(self, model, samples)


class LoadedTask(Task):
    """What `load_task` returns: the user's task with its defaults filled in and its answers checked."""

    def __init__(self, path: str, inner: Any, args: Mapping[str, Any], seed: int) -> None:
        super().__init__(args, seed)
        self.path = path
        self.inner = inner
        missing = [name for name in REQUIRED if not callable(getattr(inner, name, None))]
        if missing:
            raise TaskError(
                f"training.task {path!r} has no {', '.join(f'{m}()' for m in missing)}; a task defines "
                f"{', '.join(f'{r}()' for r in REQUIRED)} in a class or at the module's top level "
                f"(outlast.tasks.synthetic is a short example)"
            )
        self._batch: Callable[[int], Batch] = inner.batch
        self._loss: Callable[[nn.Module, Batch], Tensor] = getattr(inner, "loss", super().loss)

    def model(self) -> nn.Module:
        """The model, the same for the same seed. Leaves torch's global generator as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = _guarded(self.path, "model()", self.inner.model)
        if not isinstance(model, nn.Module):
            raise TaskError(
                f"training.task {self.path!r}: model() returned {type(model).__name__}; return a torch.nn.Module"
            )
        return model

    def batches_per_epoch(self) -> int:
        count = _guarded(self.path, "batches_per_epoch()", self.inner.batches_per_epoch)
        if not isinstance(count, int) or count < 1:
            raise TaskError(f"training.task {self.path!r}: batches_per_epoch() returned {count!r}; return 1 or more")
        return count

    def batch(self, index: int) -> Batch:
        return self._batch(index)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._loss(model, batch)

    def evaluate(self, model: nn.Module, samples: int | None) -> Evaluation:
        evaluate = getattr(self.inner, "evaluate", None)
        if evaluate is None:
            return _evaluate_batches(self, model, samples)
        raw = cast(Mapping[str, Any], evaluate(model, samples))
        return Evaluation(
            accuracy=float(raw.get("accuracy", math.nan)),
            loss=float(raw.get("loss", math.nan)),
            samples=int(raw.get("samples", samples or 0)),
        )


def load_task(path: str, args: Mapping[str, Any], seed: int, search: Sequence[str] = ()) -> LoadedTask:
    """Import and build the task at `path`: `package.module`, `package.module:Class` or `package.module.Class`.

    A module counts as a task if it has the functions at top level, a class called `Task`, or exactly one subclass of
    `outlast.tasks.Task`. Folders in `search` are put on `sys.path` first (where the job's own code lies). Raises
    `TaskError`, also for whatever the task's own constructor raises.
    """
    for folder in reversed(search):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    target = _resolve(path)
    inner: Any
    if isinstance(target, ModuleType):
        inner = target
        setup = getattr(target, "setup", None)
        if callable(setup):
            _guarded(path, "setup(args, seed)", setup, dict(args), seed)
    else:
        inner = _guarded(path, f"{target.__name__}(args, seed)", target, dict(args), seed)
    return LoadedTask(path, inner, args, seed)


def read_args(args: Mapping[str, Any], defaults: Mapping[str, T], task: str) -> dict[str, T]:
    """`defaults` overridden by `args`. Raises `TaskError` for an unknown name or a value of another type.

    A default of None accepts anything; a float accepts an int.
    """
    unknown = sorted(set(args) - set(defaults))
    if unknown:
        raise TaskError(
            f"training.args.{unknown[0]}: {task} has no such argument; it takes {', '.join(sorted(defaults))}"
        )
    merged = dict(defaults)
    for name, value in args.items():
        default = defaults[name]
        if default is not None and not _fits(value, default):
            raise TaskError(
                f"training.args.{name}: {value!r} is of type {type(value).__name__}; {task} wants "
                f"{type(default).__name__}, such as {default!r}"
            )
        merged[name] = value
    return merged


class Permutations:
    """Which `size` samples make up batch `index`: a new permutation of `count` samples every epoch.

    Samples left over by the last full batch of an epoch are dropped in that epoch. Raises nothing; `count` >= `size`.
    """

    def __init__(self, count: int, size: int, seed: int) -> None:
        self.per_epoch = count // size
        self._count, self._size, self._seed = count, size, seed
        self._cached: dict[int, Tensor] = {}  # two epochs: slots cross an epoch's end one after the other

    def batch(self, index: int) -> Tensor:
        """int64 `[size]`, indices into the training data."""
        epoch, position = divmod(index, self.per_epoch)
        order = self._cached.get(epoch)
        if order is None:
            generator = torch.Generator().manual_seed((self._seed * PERMUTATION_STRIDE + epoch) % 2**63)
            order = torch.randperm(self._count, generator=generator)
            self._cached = {e: p for e, p in self._cached.items() if abs(e - epoch) == 1}
            self._cached[epoch] = order
        return order[position * self._size : (position + 1) * self._size]


def _fits(value: object, default: object) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    return isinstance(value, type(default))


def _resolve(path: str) -> ModuleType | type[Any]:
    module_path, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_path)
    except ImportError as error:
        parent, _, last = module_path.rpartition(".")
        wanted = error.name or module_path
        if not attribute and parent and wanted == module_path:
            # `package.module.Class`: the class is not a module, and is looked for in its parent.
            try:
                return _class(path, importlib.import_module(parent), last)
            except ImportError:
                pass
        raise TaskError(_import_remedy(path, error)) from error
    except Exception as error:
        raise TaskError(
            f"training.task {path!r}: importing it raised {type(error).__name__}: {error}; "
            "it must import without side effects"
        ) from error
    return _class(path, module, attribute) if attribute else _task_of(path, module)


def _class(path: str, module: ModuleType, name: str) -> type[Any]:
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        raise TaskError(
            f"training.task {path!r}: module {module.__name__} has no class {name}; "
            f"its classes are {', '.join(_classes(module)) or 'none'}"
        )
    return found


def _task_of(path: str, module: ModuleType) -> ModuleType | type[Any]:
    if all(callable(getattr(module, name, None)) for name in REQUIRED):
        return module
    own = getattr(module, "Task", None)
    if inspect.isclass(own) and own is not Task:
        return own
    subclasses = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, Task) and c is not Task]
    subclasses = [c for c in subclasses if c.__module__ == module.__name__]
    if len(subclasses) == 1:
        return subclasses[0]
    if subclasses:
        names = ", ".join(c.__name__ for c in subclasses)
        raise TaskError(
            f"training.task {path!r} has several tasks ({names}); name one: {path}.{subclasses[0].__name__}"
        )
    return module  # LoadedTask names what it lacks


def _classes(module: ModuleType) -> list[str]:
    return [n for n, c in vars(module).items() if inspect.isclass(c) and c.__module__ == module.__name__]


def _import_remedy(path: str, error: ImportError) -> str:
    missing = error.name or str(error)
    if path.startswith(missing) or missing in path.split(":")[0]:
        return (
            f"training.task {path!r} cannot be imported: no module named {missing!r}; check the path, and that "
            "its code is next to the job's file, in training.source or in the image"
        )
    return (
        f"training.task {path!r} cannot be imported: it needs {missing!r} ({error}); "
        "install that in the image or the environment that runs the job"
    )


def _guarded(path: str, what: str, call: Callable[..., Any], *arguments: object) -> Any:
    try:
        return call(*arguments)
    except TaskError:
        raise
    except Exception as error:
        raise TaskError(f"training.task {path!r}: {what} raised {type(error).__name__}: {error}") from error


def _evaluate_batches(task: Task, model: nn.Module, samples: int | None) -> Evaluation:
    """The default evaluation: on the first training batches, `samples` samples or EVALUATION_BATCHES of them."""
    was_training = model.training
    model.eval()
    total, correct, seen = 0.0, 0.0, 0
    scored = True
    try:
        with torch.no_grad():
            for index in range(min(EVALUATION_BATCHES, task.batches_per_epoch())):
                inputs, targets = batch = task.batch(index)
                size = len(inputs)
                total += float(task.loss(model, batch)) * size
                scores = model(inputs) if scored else None
                scored = isinstance(scores, Tensor) and scores.ndim == 2 and targets.dtype == torch.int64
                correct += float((scores.argmax(1) == targets).sum()) if scored and scores is not None else 0.0
                seen += size
                if samples is not None and seen >= samples:
                    break
    finally:
        model.train(was_training)
    return Evaluation(accuracy=correct / seen if scored else math.nan, loss=total / seen, samples=seen)
