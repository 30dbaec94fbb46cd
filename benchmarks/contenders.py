"""Ways to make one training step: plain, private by this project, private by others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.networks import loss_of
from lightning_dp.gradients import Ascent, Clipping, GradientEngine
from lightning_dp.strategies.previous import PreviousAscent

__all__ = ("CONTENDERS", "Step")

Step = Callable[[], None]
RATE, BOUND, NOISE = 0.01, 1.0, 1.0


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """No privacy: what the ratio refers to."""
    optimizer = _optimizer(model)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(model(x), y).backward()
        optimizer.step()

    return step


def lightning_dp(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """The engine of this project."""
    optimizer = _optimizer(model)
    engine = GradientEngine(model, Clipping(BOUND), noise_multiplier=NOISE, expected_batch_size=len(x))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        engine.backward(loss_of(model(x), y), len(x))
        engine.write_gradients()
        optimizer.step()

    return step


def bam(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """Bias-aware minimisation: a second pass at a point of each unit's own."""
    optimizer, ascent = _optimizer(model), Ascent()
    engine = GradientEngine(model, Clipping(BOUND), noise_multiplier=NOISE, expected_batch_size=len(x))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with engine.mixing(len(x), ascent) as passes:
            loss = loss_of(model(x), y)
            with passes.first():
                loss.backward()
            with passes.again():
                loss = loss_of(model(x), y)
                with passes.second():
                    loss.backward()
        engine.write_gradients()
        optimizer.step()

    return step


def dp_sat(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """One pass at a point along the last private gradient."""
    optimizer, previous = _optimizer(model), PreviousAscent(0.05)
    engine = GradientEngine(model, Clipping(BOUND), noise_multiplier=NOISE, expected_batch_size=len(x))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with previous.applied():
            engine.backward(loss_of(model(x), y), len(x))
        engine.write_gradients()
        previous.remember(engine.trainable())
        optimizer.step()

    return step


def _opacus(model: nn.Module, x: Tensor, y: Tensor, mode: str) -> Step:
    from opacus import PrivacyEngine

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=len(x))
    if y.dim() > 1 and mode == "ghost":
        raise ValueError("its loss wrapper takes one loss a sample, and this one is a mean over positions")
    arguments = {
        "module": model, "optimizer": _optimizer(model), "data_loader": loader, "noise_multiplier": NOISE,
        "max_grad_norm": BOUND, "poisson_sampling": False, "grad_sample_mode": mode,
    }  # fmt: skip
    criterion: Callable[[Tensor, Tensor], Tensor] = loss_of
    if mode == "ghost":
        model, optimizer, criterion, _ = PrivacyEngine().make_private(criterion=nn.CrossEntropyLoss(), **arguments)
    else:
        model, optimizer, _ = PrivacyEngine().make_private(**arguments)

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

    return step


def opacus(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """Opacus with its default hooks."""
    return _opacus(model, x, y, "hooks")


def opacus_ghost(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """Opacus with ghost clipping."""
    return _opacus(model, x, y, "ghost")


def vmap_grad(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """``torch.func.vmap(torch.func.grad(...))``, clipped and noised by hand."""
    optimizer = _optimizer(model)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}

    def sample_loss(values: dict[str, Tensor], one: Tensor, target: Tensor) -> Tensor:
        return loss_of(torch.func.functional_call(model, (values, frozen), (one[None],)), target[None])

    per_sample = torch.func.vmap(torch.func.grad(sample_loss), (None, 0, 0))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        gradients = per_sample({name: p.detach() for name, p in parameters.items()}, x, y)
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
        factors = (BOUND / norms).clamp(max=1.0)
        for name, p in parameters.items():
            total = torch.einsum("b,b...->...", factors, gradients[name])
            p.grad = (total + NOISE * BOUND * torch.randn_like(total)) / len(x)
        optimizer.step()

    return step


def fastdp(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """fastDP (Bu et al.), where it is installed: it is not on the package index."""
    from fastDP import PrivacyEngine  # type: ignore[import-not-found]

    optimizer = _optimizer(model)
    engine = PrivacyEngine(
        model, batch_size=len(x), sample_size=100 * len(x), epochs=1, noise_multiplier=NOISE, max_grad_norm=BOUND,
        clipping_fn="Abadi", clipping_mode="MixOpt",
    )  # fmt: skip
    engine.attach(optimizer)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(model(x), y).backward()
        optimizer.step()

    return step


CONTENDERS: dict[str, Callable[[nn.Module, Tensor, Tensor], Step]] = {
    "plain": plain,
    "lightning_dp": lightning_dp,
    "bam": bam,
    "dp_sat": dp_sat,
    "opacus": opacus,
    "opacus_ghost": opacus_ghost,
    "vmap_grad": vmap_grad,
    "fastdp": fastdp,
}
