"""The paper's task with workers that take their time, the same everywhere: two give some 55 gradients a second."""

from __future__ import annotations

import time

from outlast.tasks.base import Batch
from outlast.tasks.fashion_mnist import FashionMnist

PAUSE_S = 0.03


class PacedFashionMnist(FashionMnist):
    def batch(self, index: int) -> Batch:
        time.sleep(PAUSE_S)
        return super().batch(index)
