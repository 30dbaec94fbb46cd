"""One step on a copy of the network: what the engine does with each layer, and all that it cannot do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_dp.errors import PrivacyConfigError, PrivacyError
from lightning_dp.gradients import LossReduction, RowMemory, units_of_batch
from lightning_dp.gradients.bare import leaves_of, map_leaves, tensors_in
from lightning_dp.gradients.graphs import is_graph_batch
from lightning_dp.gradients.reals import as_real, carries_gradient
from lightning_dp.gradients.taps import uncompiled
from lightning_dp.inspection.layers import layer_rows, observe
from lightning_dp.inspection.report import Inspection, Problem
from lightning_dp.strategies.muted import muted_copy
from lightning_dp.strategies.refusals import REFUSALS, Subject
from lightning_dp.strategies.selfcheck import Checks
from lightning_dp.strategies.step import step_arguments

__all__ = ("inspect",)

ABOUT_LIGHTNING = frozenset(
    {"dataloader_iterator", "manual_physical_batches", "post_processing_names"}
)  # refusals that ask a LightningModule
COUPLED = (
    "the gradient of a batch is not the sum of its samples' own gradients (they differ by {error:.1%}), so clipping one "
    "bounds nothing. Something couples the samples: a normalisation over the batch, a contrastive loss, a mean over valid "
    "tokens. Make the loss a mean over samples of terms that depend on one sample each."
)


def inspect(model: nn.Module, example_batch: Any, *, loss_reduction: LossReduction = "mean") -> Inspection:
    """Shows how a network would be trained privately, before anything is trained.

    A copy of the network takes one step without noise. The report has a row for each module with parameters (how its
    gradients per sample are had, by which route, at what cost) and every problem at once: the refusals that ``fit`` would
    raise about the module, layers that cannot be taken apart into samples, gradients that come round the layers, and
    whether samples influence each other or are written into buffers. A network that cannot be trained privately is
    reported, never an exception.

    The report holds nothing of the batch but its size. What is computed on the way is not private and is not kept.

    Args:
        model: an ``nn.Module``, or a LightningModule (then with its own ``training_step`` and loss). Left untouched.
        example_batch: for a LightningModule, what ``training_step`` gets; otherwise what the network is called with: a
            tensor, a tuple of positional or a dict of keyword arguments, a batch of graphs. Axis 0 of its tensors is the
            batch; with a single sample, nothing can be said about the samples' influence on each other.
        loss_reduction: whether ``training_step`` returns the ``"mean"`` or the ``"sum"`` of the samples' losses.

    Raises:
        PrivacyConfigError: if ``example_batch`` holds no tensor with a batch axis and no graphs.

    Example:
        >>> import torch
        >>> import lightning_dp
        >>> report = lightning_dp.inspect(torch.nn.Sequential(torch.nn.Linear(4, 3)), torch.randn(8, 4))
        >>> report.ok, report.rows[0].way
        (True, 'rule')
    """
    units = _samples_in(example_batch)
    problems = _refusals(model)
    lazy = any(problem.name == "lazy_parameters" for problem in problems)
    try:
        twin = muted_copy(model)
    except PrivacyConfigError as error:
        return Inspection(layer_rows(model, []), (*problems, Problem("forward", str(error))), units)
    if lazy:
        return Inspection((), tuple(problems), units)
    device = next((p.device for p in twin.parameters()), torch.device("cpu"))
    batch = map_leaves(example_batch, lambda leaf: leaf.to(device) if _holds_samples(leaf) else leaf)
    step: Callable[[Any, Any], Any] = _training_step if isinstance(twin, LightningModule) else _generic_step
    with isolate_rng(include_cuda=device.type == "cuda"), uncompiled():
        checks = _checks(twin, batch, units, step, loss_reduction)
        # What keeps batches of other sizes from being taken apart keeps this one, too, and is reported with its layer.
        with suppress(Exception):
            checks.learn_rows()
        try:
            owners = units_of_batch(batch, units)
        except PrivacyError as error:
            return Inspection(layer_rows(model, []), (*problems, Problem("samples", str(error))), units)
        observed, found = observe(twin, lambda: _scalar(step(twin, batch)), owners, checks.row_memory)
        problems += found
        if not any(problem.name in {"batch_norm", "forward", "no_trainable_parameters"} for problem in problems):
            problems += _behaviour(checks, loss_reduction, engine_works=not found)
    return Inspection(layer_rows(model, observed), tuple(problems), units)


def _refusals(model: nn.Module) -> list[Problem]:
    """What the table of refusals says about the module."""
    # The rows of this phase look at the module alone; a plain network has no training step to ask about.
    subject = Subject(cast(Any, None), cast(LightningModule, model))
    rows = [row for row in REFUSALS if row.phase == "module"]
    if not isinstance(model, LightningModule):
        rows = [row for row in rows if row.name not in ABOUT_LIGHTNING]
    return [Problem(row.name, message) for row in rows if (message := row.check(subject))]


def _checks(
    twin: nn.Module, batch: Any, units: int, step: Callable[[Any, Any], Any], loss_reduction: LossReduction
) -> Checks:
    """The self-check on a few samples of the batch."""
    return Checks(
        twin,
        [[i] for i in sorted({i * (units - 1) // 4 for i in range(5)})],
        collate=lambda rows: _take(batch, rows, units),
        run_step=step,
        transfer=lambda b: b,
        units_of=units_of_batch,
        row_memory=RowMemory(),
        loss_reduction=loss_reduction,
    )


def _behaviour(checks: Checks, loss_reduction: LossReduction, engine_works: bool) -> list[Problem]:
    """The self-check's questions, each asked whatever the others' answers were."""
    problems: list[Problem] = []
    with _into(problems, "state"):
        checks.state_is_not_written()
    with _into(problems, "samples"):
        if not engine_works:
            _batch_is_sum_of_samples(checks, len(checks.units), loss_reduction)
        elif len(checks.units) > 1:
            checks.engine_matches_plain_backward()
            checks.units_are_independent()
    return problems


def _batch_is_sum_of_samples(checks: Checks, count: int, loss_reduction: LossReduction) -> None:
    """Without the engine: does the batch's own gradient fall apart into those of its samples?"""
    modes = {child: child.training for child in checks.module.modules()}
    checks.module.eval()  # dropout draws other masks for one sample than for several
    try:
        alone = torch.stack([checks.plain_gradient([i]) for i in range(count)]).sum(0)
        batch = checks.plain_gradient(range(count)) * (count if loss_reduction == "mean" else 1)
    finally:
        for child, training in modes.items():
            child.training = training
    error = float((alone - batch).norm()) / max(float(alone.norm()), float(batch.norm()), 1e-12)
    if error > checks.tolerance:
        raise PrivacyError(COUPLED.format(error=error))


@contextmanager
def _into(problems: list[Problem], name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # also what the user's own code raises on another batch: it would do so in training
        known = isinstance(error, (PrivacyError, PrivacyConfigError))
        problems.append(Problem(name, str(error) if known else f"the step failed: {type(error).__name__}: {error}"))


def _training_step(module: LightningModule, batch: Any) -> Any:
    return module.training_step(*step_arguments(module, batch, 0))


def _generic_step(network: nn.Module, batch: Any) -> Tensor:
    """A loss with curvature in every output that has a row for each sample."""
    if isinstance(batch, Mapping):
        output = network(**batch)
    elif isinstance(batch, (tuple, list)):
        output = network(*batch)
    else:
        output = network(batch)
    units = next(t.shape[0] for t in tensors_in(batch) if t.dim() > 0)
    parts = [t for t in tensors_in(output) if carries_gradient(t) and t.dim() > 0 and t.shape[0] == units]
    if not parts:
        raise PrivacyError(
            "the network returns no tensor with one row for each sample, so its outputs cannot be told apart by sample. "
            "Return such tensors, or inspect the LightningModule with its training_step."
        )
    losses = [(as_real(part).reshape(units, -1).float() - 0.5).square().mean(1) for part in parts]
    return torch.stack(losses).sum(0).mean()


def _scalar(output: Any) -> Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise PrivacyError("the training step must return one number that depends on the module's parameters: the loss")
    return loss


def _holds_samples(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) or is_graph_batch(leaf)


def _samples_in(batch: Any) -> int:
    """How many samples a batch holds."""
    if _is_packed(batch):
        raise PrivacyConfigError(
            "example_batch holds a PackedSequence, which cannot be taken apart into samples here. Inspect the network with "
            "padded sequences that training_step packs, or let fit check it: its self-check takes single samples first."
        )
    found = [leaf for leaf in leaves_of(batch) if _holds_samples(leaf)]
    graphs = [leaf for leaf in found if is_graph_batch(leaf)]
    if graphs:
        return int(graphs[0].num_graphs)
    units = next((t.shape[0] for t in found if t.dim() > 0), 0)
    if units < 1:
        raise PrivacyConfigError(
            "example_batch must hold tensors with the batch on axis 0, or a torch-geometric Batch: a batch as training sees it"
        )
    return int(units)


def _is_packed(batch: Any) -> bool:
    if isinstance(batch, PackedSequence):
        return True
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return any(_is_packed(part) for part in parts)


def _take(batch: Any, rows: Sequence[int], units: int) -> Any:
    """The same batch with some of its samples."""

    def some(leaf: Any) -> Any:
        if is_graph_batch(leaf):
            return leaf.from_data_list(leaf.index_select(list(rows)))
        if isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == units:
            return leaf[list(rows)]
        return leaf

    return map_leaves(batch, some)
