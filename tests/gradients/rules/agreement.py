"""The property that every rule is held to: the clipped sum is the one of a plain loop over the units' own losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_dp.gradients import Clipping, GradientEngine, UnitMap
from tests.gradients.oracle import clipped_sum, layer_numbers

Run = Callable[[nn.Module], Tensor]
TOLERANCE = 1e-4


def unit_maps(most_rows: int = 3) -> st.SearchStrategy[UnitMap]:
    """Plain batches, units of several consecutive rows, and rows in any order and number."""
    ragged = st.lists(st.integers(0, 3), min_size=1, max_size=6)
    return st.one_of(
        st.builds(UnitMap, st.integers(1, 4)),
        ragged.map(lambda rows: UnitMap(max(rows) + 1, torch.tensor(rows))),
    )


def row_counts(units: UnitMap, folds: Iterable[int] = (1, 2)) -> st.SearchStrategy[int]:
    """How many rows a batch of these units may have: axes may be folded in behind each."""
    base = units.num_units if units.rows is None else units.rows.numel()
    return st.sampled_from([base * fold for fold in folds])


def unit_losses(out: Tensor, units: UnitMap) -> Tensor:
    """A loss for each unit, curved in every output, from outputs ``(R, ...)``."""
    flat = out.flatten(1)
    target = torch.sin(torch.arange(flat.shape[1], dtype=flat.dtype))
    losses = ((flat - target) ** 2).sum(1)
    owner = units.per_row(torch.arange(units.num_units), len(losses))
    return losses.new_zeros(units.num_units).index_add(0, owner, losses)


def assert_agrees(module: nn.Module, run: Run, units: UnitMap, seed: int = 0, tolerance: float = TOLERANCE) -> None:
    """Compares the engine with ordinary gradients of each unit's loss, taken in one and the same (seeded) pass.

    Args:
        module: the network.
        run: from the network to its outputs, rows first.
        units: whose rows they are.
        seed: set before each pass, for networks that draw random numbers.
        tolerance: relative.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    torch.manual_seed(seed)
    gradients = []
    for loss in unit_losses(run(module), units):
        grads = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
        gradients.append([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)])
    norms = torch.tensor([float(torch.cat([g.flatten() for g in unit]).norm()) for unit in gradients])
    bound = max(float(norms.median()), 1e-6)  # some units are clipped, some are not
    truth = clipped_sum(gradients, bound, "flat", layer_numbers(module))
    with GradientEngine(module, Clipping(bound), noise_multiplier=0.0, expected_batch_size=1) as engine:
        torch.manual_seed(seed)
        engine.backward(unit_losses(run(module), units).mean(), units)
        got = engine.clipped_sum()
    # Units may cancel each other in the sum, down to rounding: it is then held to the scale of what was summed.
    for one, other in zip(got, truth, strict=True):
        assert float((one - other).abs().max()) < tolerance * max(float(other.abs().max()), 1e-2 * bound)
    assert all(isinstance(p, nn.Parameter) and p.grad is None for p in module.parameters())
