"""A plain PyTorch script. One line makes it outlast its parameter servers: the optimizer.

Start it with `outlast run examples/script.yaml --kill head@3s`.
"""

import torch
import torch.nn.functional as F
from torch import nn

import outlast

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 3))
teacher = nn.Linear(20, 3)  # what is to be learned: which of its three outputs is the largest

optimizer = outlast.Optimizer(model, torch.optim.SGD, lr=0.1)

for step in range(2000):  # the job's stopAfter ends the run before that
    optimizer.seed_step()  # each worker draws other batches, a restarted one the same again
    inputs = torch.randn(64, 20)
    with torch.no_grad():
        targets = teacher(inputs).argmax(dim=1)

    optimizer.zero_grad()
    loss = F.cross_entropy(model(inputs), targets)
    loss.backward()
    optimizer.step()

    if step % 100 == 0:
        print(f"step {step}: loss {loss.item():.3f}")
