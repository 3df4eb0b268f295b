"""Ready-made tasks (fashion_mnist, resnet, synthetic) and the interface for one's own. See `base` for the rules."""

from __future__ import annotations

from outlast.tasks.base import Batch, Evaluation, LoadedTask, Permutations, Task, TaskError, load_task, read_args

__all__ = ["Batch", "Evaluation", "LoadedTask", "Permutations", "Task", "TaskError", "load_task", "read_args"]
