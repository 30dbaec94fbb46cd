"""The self-check for manual optimisation: every private loss as usual, and losses declared as post-processing apart.

``training_step`` runs on the copy with stand-ins for optimizers and schedulers: nothing is stepped, and each loss that
is handed to ``manual_backward`` is kept. A loss declared as post-processing must give the very same gradient whatever
private samples, and however many, the step was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_dp.errors import PrivacyError
from lightning_dp.gradients import LossReduction, RowMemory, UnitMap
from lightning_dp.sampling import UnitRows
from lightning_dp.strategies.manual import parameters_of, reaches
from lightning_dp.strategies.muted import muted_copy
from lightning_dp.strategies.selfcheck import check_module

__all__ = ("check_manual_module",)

SAME = 1e-5  # of the gradient's norm: equal computations, up to the order of sums

Step = Callable[[LightningModule, Any], Any]


def check_manual_module(
    module: LightningModule,
    *,
    public: Sequence[str],
    dataset: Any,
    collate: Callable[[list[Any]], Any],
    run_step: Step,
    transfer: Callable[[Any], Any],
    loss_reduction: LossReduction,
    units_of: Callable[[Any, UnitMap], UnitMap],
    rows: UnitRows | None = None,
) -> None:
    """Runs the checks.

    Args:
        module: left untouched.
        public: names of the parameters trained by post-processing.
        dataset: where the samples come from.
        collate: makes batches of a few of them.
        run_step: runs ``training_step`` in the precision of the run.
        transfer: moves a batch to the device through the user's hooks.
        loss_reduction: as given to the strategy.
        units_of: the map of the rows of a batch, from the map of its samples.
        rows: which samples each unit owns; ``None`` where a unit is a sample.

    Raises:
        PrivacyError: naming what is wrong, and the fix.
    """
    kinds = _check_post_processing(module, public, dataset, collate, run_step, transfer)
    for index, is_public in enumerate(kinds):
        if is_public:
            continue

        def one_loss(twin: LightningModule, batch: Any, index: int = index) -> Tensor:
            losses = _losses(twin, module, batch, run_step, reseed=False)
            if len(losses) != len(kinds):
                raise PrivacyError(_other_number(len(kinds), len(losses)))
            return losses[index]

        check_module(
            module,
            dataset=dataset,
            collate=collate,
            run_step=one_loss,
            transfer=transfer,
            loss_reduction=loss_reduction,
            units_of=units_of,
            row_memory=RowMemory(),  # the run calls the layers in another order: one loss after the other
            rows=rows,
        )


def _check_post_processing(
    module: LightningModule,
    public: Sequence[str],
    dataset: Any,
    collate: Callable[[list[Any]], Any],
    run_step: Step,
    transfer: Callable[[Any], Any],
) -> list[bool]:
    """Which of the step's losses are post-processing; each of those must not see the batch, its size included."""
    twin = muted_copy(module)
    named = dict(twin.named_parameters())
    parameters = [named[name] for name in public]
    last = len(dataset) - 1
    with isolate_rng(include_cuda=module.device.type == "cuda"):
        found = []
        for rows in ([0, last], [last // 2, last // 2], [last, 0, last // 3]):
            batch = transfer(collate([dataset[i] for i in rows]))
            torch.manual_seed(0)
            with torch.enable_grad():
                losses = _losses(twin, module, batch, run_step, reseed=True)
            kinds = [reaches(loss, parameters) for loss in losses]
            found.append((kinds, [_gradient(loss, parameters) for loss, k in zip(losses, kinds, strict=True) if k]))
    first_kinds, first = found[0]
    if not any(not kind for kind in first_kinds):
        raise PrivacyError(
            "training_step made no private backward pass: every loss reaches parameters declared as post-processing, or none "
            "was handed to self.manual_backward. Detach the generator's output in the discriminator's loss."
        )
    for kinds, gradients in found[1:]:
        if kinds != first_kinds:
            raise PrivacyError(_other_number(len(first_kinds), len(kinds)))
        for one, other in zip(first, gradients, strict=True):
            error = float((one - other).norm()) / max(float(one.norm()), 1e-12)
            if not error <= SAME:
                raise PrivacyError(
                    f"the gradient of parameters declared as post_processing changes by {error:.1%} with the private batch, so "
                    "their update is not post-processing. Their loss may use private data through private parameters only: no "
                    "real samples or labels, not the number of samples (draw a fixed number of latents), and latents drawn "
                    "after the private optimizer's step. Or leave them out of post_processing: they are then noised."
                )
    return first_kinds


def _gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    grads = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, grads, strict=True)]
    )


def _other_number(one: int, other: int) -> str:
    return (
        f"training_step made {one} backward passes on some samples and {other}, or others, on different ones: what a step does "
        "must not depend on its data."
    )


def _losses(
    twin: LightningModule, module: LightningModule, batch: Any, run_step: Step, *, reseed: bool
) -> list[Tensor]:
    """The losses that ``training_step`` of the copy hands to ``manual_backward``, in order."""
    losses: list[Tensor] = []
    number = 0

    def stepped() -> None:
        nonlocal number
        number += 1
        if reseed:  # how many numbers the private part drew must not shift what the next part draws
            torch.manual_seed(number)

    def backward(loss: Tensor, *_: Any, **__: Any) -> None:
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise PrivacyError("self.manual_backward needs one number that depends on the module's parameters.")
        losses.append(loss)

    twins = dict(zip(module.parameters(), twin.parameters(), strict=True))
    optimizers = [_Optimizer(o, twins, stepped) for o in module.trainer.optimizers]
    for optimizer in optimizers:
        optimizer.others = optimizers

    def chosen(use_pl_optimizer: bool = True) -> Any:
        return optimizers if len(optimizers) > 1 else optimizers[0]

    replaced = {
        "manual_backward": backward,
        "optimizers": chosen,
        "lr_schedulers": lambda: _schedulers(module),
        "toggle_optimizer": lambda optimizer: optimizer.toggle(),
        "untoggle_optimizer": lambda optimizer: optimizer.untoggle(),
        "toggled_optimizer": lambda optimizer: optimizer.toggle_model(),
        "clip_gradients": lambda *_, **__: None,
    }
    twin.__dict__.update(replaced)
    states = [(p, p.requires_grad) for p in twin.parameters()]
    try:
        run_step(twin, batch)
    finally:
        for parameter, required in states:
            parameter.requires_grad_(required)
        for name in replaced:
            twin.__dict__.pop(name, None)
    return losses


def _schedulers(module: LightningModule) -> Any:
    inert = [_Scheduler() for _ in module.trainer.lr_scheduler_configs]
    return None if not inert else inert[0] if len(inert) == 1 else inert


class _Scheduler:
    def step(self, *_: Any, **__: Any) -> None:
        return None


class _Optimizer:
    """Stands where an optimizer was: it has the copy's parameters and steps nothing."""

    def __init__(self, real: Any, twins: dict[nn.Parameter, nn.Parameter], stepped: Callable[[], None]) -> None:
        self.param_groups = [{**group, "params": [twins[p] for p in group["params"]]} for group in real.param_groups]
        self.defaults, self.state = dict(real.defaults), {}  # type: ignore[var-annotated]
        self.others: list[_Optimizer] = [self]
        self._stepped, self._before = stepped, {}  # type: ignore[var-annotated]

    @property
    def optimizer(self) -> _Optimizer:
        return self

    def zero_grad(self, *_: Any, **__: Any) -> None:
        return None

    def step(self, closure: Callable[[], Any] | None = None, **_: Any) -> Any:
        output = None if closure is None else closure()
        self._stepped()
        return output

    def toggle(self) -> None:
        self._before = {p: p.requires_grad for o in self.others for p in parameters_of(o)}
        own = parameters_of(self)
        for parameter, required in self._before.items():
            parameter.requires_grad_(required and parameter in own)

    def untoggle(self) -> None:
        for parameter, required in self._before.items():
            parameter.requires_grad_(required)

    @contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        self.toggle()
        yield
        self.untoggle()
