"""A few units of the training data run through a copy of the module: what the self-check looks at."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients import Clipping, GradientEngine, LossReduction, RowMemory, UnitMap
from lightning_dp.strategies.step import unit_map

__all__ = ("UNCLIPPED", "Probe", "Step")

UNCLIPPED = 1e30

Step = Callable[[Any, Any], Any]


class Probe:
    """Losses and gradients of any of the units, by the engine and by plain PyTorch, and the module's state.

    Args:
        module: a copy of what is to be trained; it may be written to.
        units: the samples of a few units.
        collate: makes batches of samples.
        run_step: runs ``training_step`` in the precision of the run.
        transfer: moves a batch to the device through the user's hooks.
        units_of: the map of the rows of a batch, from the map of its samples.
        row_memory: learns, for the run to come, which kind of rows each layer sees.
        loss_reduction: as given to the strategy.
    """

    def __init__(
        self,
        module: nn.Module,
        units: Sequence[Sequence[Any]],
        collate: Callable[[list[Any]], Any],
        run_step: Step,
        transfer: Callable[[Any], Any],
        units_of: Callable[[Any, UnitMap], UnitMap],
        row_memory: RowMemory,
        loss_reduction: LossReduction,
    ) -> None:
        self.module, self.units, self.collate = module, units, collate
        self.run_step, self.transfer, self.loss_reduction = run_step, transfer, loss_reduction
        self.units_of, self.row_memory = units_of, row_memory

    def loss(self, units: Sequence[int], seed: int = 0) -> Tensor:
        """The step's loss on a batch of some units, with the random numbers of ``seed``."""
        return self.loss_of(self.batch([sample for unit in units for sample in self.units[unit]], seed))

    def batch(self, samples: list[Any], seed: int = 0) -> Any:
        """The batch of some samples, where the step will find it."""
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        batch = self.transfer(self.collate(samples))
        if batch is None:
            raise PrivacyError(
                "collate_fn or a batch-transfer hook turned a training batch into None, which skips the step because "
                "of what its samples are. Always return a batch; give unusable samples a loss of zero instead."
            )
        return batch

    def loss_of(self, batch: Any) -> Tensor:
        """The step's loss on a batch."""
        with torch.enable_grad():
            output = self.run_step(self.module, batch)
        loss = output.get("loss") if isinstance(output, dict) else output
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            raise PrivacyError(
                "training_step must return a loss that depends on the module's parameters (a tensor, or a dict with "
                f"'loss'); it returned {type(output).__name__ if loss is None else 'a loss without a gradient'}."
            )
        if loss.numel() != 1:
            raise PrivacyError(
                f"training_step must return one number, the mean (or sum) of the samples' losses; its loss has shape "
                f"{tuple(loss.shape)}."
            )
        return loss

    def private_gradient(self, units: Sequence[int], weights: Sequence[float]) -> Tensor:
        """The engine's weighted sum over the units, unclipped and flat."""
        counts = tuple(len(self.units[unit]) for unit in units)
        same = len({len(samples) for samples in self.units}) == 1
        owners = unit_map(sum(counts), counts[0] if same else 1, None if same else counts)
        batch = self.batch([sample for unit in units for sample in self.units[unit]])
        return self.private_gradient_of(batch, self.units_of(batch, owners), weights)

    def private_gradient_of(self, batch: Any, units: UnitMap, weights: Sequence[float]) -> Tensor:
        """The same over a batch that is there already."""
        with GradientEngine(
            self.module,
            Clipping(UNCLIPPED),
            noise_multiplier=0.0,
            expected_batch_size=1,
            loss_reduction=self.loss_reduction,
            row_memory=self.row_memory,
        ) as engine:
            engine.expect(units)
            engine.backward(self.loss_of(batch), units, torch.tensor(weights))
            return torch.cat([g.flatten() for g in engine.clipped_sum()])

    def plain_gradient(self, units: Sequence[int]) -> Tensor:
        """PyTorch's own gradient of the batch's loss, flat."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        loss = self.loss(units)
        if _is_checkpointed_reentrantly(loss):
            raise PrivacyError(
                "a part of the network runs under activation checkpointing with use_reentrant=True, whose gradients cannot be "
                "compared with those of the engine. Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False); in "
                "transformers, gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})."
            )
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, grads, strict=True)]
        )

    def draws_masks(self) -> bool:
        """Whether a training step draws random numbers: by what it computes, and by the names of its parts.

        Evaluation mode is for those only: some networks cache what they computed from parameters in it.
        """
        drops = [m for m in self.module.modules() if "drop" in type(m).__name__.lower()]
        if any(getattr(m, "p", getattr(m, "drop_prob", 1.0)) != 0 for m in drops):
            return True
        first, *more = (self.loss([0], seed).detach() for seed in range(4))
        return not all(torch.equal(first, other) for other in more)

    def is_random(self) -> bool:
        """Whether the step draws random numbers even in evaluation mode, so that single runs cannot be compared."""
        first = self.loss([0]).detach()
        torch.rand(7)
        batch = self.transfer(self.collate(list(self.units[0])))
        second = self.run_step(self.module, batch)
        second = second["loss"] if isinstance(second, dict) else second
        return not torch.allclose(first, second.detach(), rtol=1e-3)

    def state(self) -> dict[str, Tensor]:
        """Copies of all buffers and parameters by name."""
        return {name: t.detach().clone() for name, t in self._tensors()}

    def restore(self, before: dict[str, Tensor]) -> None:
        """Puts them back."""
        with torch.no_grad():
            for name, tensor in self._tensors():
                if name in before:
                    tensor.copy_(before[name])

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.module.named_buffers()
        yield from self.module.named_parameters()


def _is_checkpointed_reentrantly(loss: Tensor) -> bool:
    """Whether the loss's graph has a node of ``torch.utils.checkpoint`` in its older form."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return False
