"""Random predictions, targets and groups, the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_dp.metrics import Groups
from lightning_dp.metrics.functional import Outcomes

GROUPS = Groups({"sex": ["female", "male"], "age": ["<40", "40-60", ">60"]})


@dataclass(frozen=True)
class Data:
    probs: Tensor
    targets: Tensor
    groups: Tensor  # (n, 2), for GROUPS
    outcomes: Outcomes

    @property
    def cells(self) -> Tensor:
        return self.groups[:, 0] * 3 + self.groups[:, 1]


def data(task: Any, n: int, seed: int, classes: int = 4, ties: bool = False, dtype: Any = torch.float32) -> Data:
    """Miscalibrated predictions with some skill; ``ties`` rounds them to a grid."""
    make = torch.Generator().manual_seed(seed)
    outcomes = Outcomes.of(task, None if task == "binary" else classes)
    logits = 2 * torch.randn(n, len(outcomes), generator=make, dtype=torch.float64)
    if task == "multiclass":
        probs = logits.softmax(1)
        targets = torch.multinomial((logits / 2).softmax(1), 1, generator=make)[:, 0] if n else torch.zeros(0).long()
        if ties:
            probs = (probs * 8).round() + 0.5
            probs = probs / probs.sum(1, keepdim=True)
    else:
        probs = logits.sigmoid()
        targets = (torch.rand(n, len(outcomes), generator=make, dtype=torch.float64) < (logits / 2).sigmoid()).long()
        if ties:
            probs = (probs * 8).round() / 8
        if task == "binary":
            probs, targets = probs[:, 0], targets[:, 0]
    groups = torch.stack([torch.randint(0, 2, (n,), generator=make), torch.randint(0, 3, (n,), generator=make)], 1)
    return Data(probs.to(dtype), targets, groups, outcomes)
